"""The binary version of CIFAR-10 and CIFAR-100, as published, in its archive or unpacked.

A record is one label byte (CIFAR-100: a coarse and a fine one; the last counts), then 3 x 32 x 32 bytes:
the red, green and blue planes, row by row. (Described at www.cs.toronto.edu/~kriz/cifar.html.)
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from decoupled.data.dataset import Split, checked_split
from decoupled.data.files import Unzipped, opened, read_up_to
from decoupled.data.tar import check_size, read_members
from decoupled.errors import DataError

_PIXELS = 3 * 32 * 32
# Of an archive, beyond the records: headers, padding and a page about the data.
_MOST_BESIDES = 1 << 20


class Layout(NamedTuple):
    """What the files of a set hold.

    The format itself does not tell where a file ends, so the numbers of records do.

    Attributes:
      train, test: number of records of each file, by name, in order.
      label_bytes: per record, 1 or 2; the last is the label.
      num_classes: labels must lie below it.
    """

    train: Mapping[str, int]
    test: Mapping[str, int]
    label_bytes: int
    num_classes: int


def read_cifar(source: str | os.PathLike[str], layout: Layout) -> tuple[Split, Split]:
    """The train and test Splits of a folder or of a tar.gz archive.

    An archive is read in place and once. It may unpack to the records and a MiB more; beside the two Splits
    no more than the records is held in memory.

    Args:
      source: folder that holds the files, or archive with them in any folder.
      layout: what the files are.

    Raises:
      DataError: a file is missing, damaged or of another size, or a label is out of range.
    """
    source = Path(source)
    record = layout.label_bytes + _PIXELS
    sizes = {name: count * record for name, count in {**layout.train, **layout.test}.items()}
    contents = _read_folder(source, sizes) if _is_folder(source) else _read_archive(source, sizes)
    train, test = (_split([contents[name] for name in part], layout, source) for part in layout[:2])
    return train, test


def _split(contents: list[bytearray], layout: Layout, source: Path) -> Split:
    parts = [np.frombuffer(part, np.uint8).reshape(-1, layout.label_bytes + _PIXELS) for part in contents]
    images = np.empty((sum(map(len, parts)), 32, 32, 3), np.uint8)
    planes = [part[:, layout.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for part in parts]
    np.concatenate(planes, out=images)
    labels = np.concatenate([part[:, layout.label_bytes - 1] for part in parts])
    return checked_split(images, labels, layout.num_classes, str(source))


def _is_folder(source: Path) -> bool:
    try:
        return source.is_dir()
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error}") from error


def _read_folder(source: Path, sizes: Mapping[str, int]) -> dict[str, bytearray]:
    contents = {}
    for name, size in sizes.items():
        with opened(source / name) as file:
            # One byte more, to see that there is none; of an endless file no more than that is read.
            contents[name] = read_up_to(file, size + 1)
        found = len(contents[name])
        if found > size:
            raise DataError(f"{source}: {name} has more than the {size} bytes of the published file")
        check_size(found, size, f"{source}: {name}")
    return contents


def _read_archive(source: Path, sizes: Mapping[str, int]) -> dict[str, bytearray]:
    with opened(source) as file:
        unzipped = Unzipped(file, source, sum(sizes.values()) + _MOST_BESIDES)
        return read_members(unzipped, sizes, str(source))

"""The binary version of CIFAR-10 and CIFAR-100, as published, in its archive or unpacked.

A record is one label byte (CIFAR-100: a coarse and a fine one; the last counts), then 3 x 32 x 32 bytes:
the red, green and blue planes, row by row. (Described at www.cs.toronto.edu/~kriz/cifar.html.)
"""

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from decoupled.data.dataset import Split, checked_split
from decoupled.errors import DataError

_PIXELS = 3 * 32 * 32
# The largest file, CIFAR-100's train.bin, is half of this: nothing may unpack to more.
_MOST_BYTES = 1 << 28


def read_cifar_split(source: Path, members: Sequence[str], label_bytes: int, num_classes: int) -> Split:
    """A Split from the files `members` of a folder or of a tar archive.

    Archives are read in place: nothing is unpacked to disk, so no member can escape a folder.

    Args:
      source: folder that holds the members, or archive with them in any folder.
      members: file names, in order.
      label_bytes: per record, 1 or 2; the last is the label.
      num_classes: labels must lie below it.

    Raises:
      DataError: a member is missing or damaged, or a label is out of range.
    """
    if source.is_dir():
        contents = [_read_file(source / member) for member in members]
    else:
        contents = _read_archive(source, members)
    images, labels = [], []
    for member, content in zip(members, contents, strict=True):
        size = label_bytes + _PIXELS
        if not content or len(content) % size:
            raise DataError(
                f"{source}: {member} has {len(content)} bytes, not a whole number of {size}-byte records"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        labels.append(records[:, label_bytes - 1])
        images.append(records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return checked_split(
        np.ascontiguousarray(np.concatenate(images)),
        np.concatenate(labels),
        num_classes,
        str(source),
    )


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: too large to be a CIFAR file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read_archive(source: Path, members: Sequence[str]) -> list[bytes]:
    found: dict[str, bytes] = {}
    try:
        with gzip.open(source) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for entry in archive:
                name = Path(entry.name).name
                if name not in members or not entry.isreg():
                    continue
                if entry.size > _MOST_BYTES:
                    raise DataError(f"{source}: {name} is too large to be a CIFAR file")
                file = archive.extractfile(entry)
                assert file is not None  # Regular files can always be read.
                found[name] = file.read()
            # To the very end, where gzip keeps the checksum of what was read.
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source}: cannot be read as a tar.gz archive: {error}") from error
    missing = [member for member in members if member not in found]
    if missing:
        raise DataError(f"{source}: no {', '.join(missing)} in this archive")
    return [found[member] for member in members]

"""IDX files, the format of MNIST and Fashion-MNIST, gzipped or not.

Layout: two zero bytes, a type byte (8: unsigned bytes), the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values. (Described at yann.lecun.com/exdb/mnist.)
"""

import math
import os
import struct
from pathlib import Path

import numpy as np

from decoupled.data.dataset import Split, checked_split
from decoupled.data.files import GZIP_MAGIC, Reader, Unzipped, opened, read_up_to
from decoupled.errors import DataError
from decoupled.shapes import UInt8

_UNSIGNED_BYTE = 8
# The largest published file, 60000 images of 28x28, has 45 MiB.
_MOST_BYTES = 1 << 26


def read_idx(
    path: str | os.PathLike[str], rank: int, most_bytes: int = _MOST_BYTES
) -> UInt8[np.ndarray, "..."]:
    """Reads unsigned bytes of `rank` dimensions.

    No more is read, or unpacked, than the header promises and a byte; memory is taken for what is there.

    Args:
      path: of the file, gzipped or not.
      rank: number of dimensions that it must have.
      most_bytes: that it may promise.

    Raises:
      DataError: the file is not such an IDX file, is cut short or goes on too long.
    """
    path = Path(path)
    with opened(path) as file:
        zipped = file.read(2) == GZIP_MAGIC
        file.seek(0)
        header_bytes = 4 * (rank + 1)
        reader = Unzipped(file, path, header_bytes + most_bytes + 1) if zipped else file
        dimensions = _read_header(reader, path, rank)
        size = math.prod(dimensions)
        # No images, but each of a pixel more than memory has addresses, are too many for NumPy too.
        if math.prod(max(dimension, 1) for dimension in dimensions) > most_bytes:
            promised = " x ".join(map(str, dimensions))
            raise DataError(f"{path}: its header promises {promised} bytes; that is no data set")
        values = read_up_to(reader, size + 1)
    if len(values) != size:
        found = "more" if len(values) > size else f"only {len(values)}"
        raise DataError(f"{path}: its header promises {size} bytes, the file has {found}")
    return np.frombuffer(values, np.uint8).reshape(dimensions)


def read_idx_split(images_path: Path, labels_path: Path, num_classes: int) -> Split:
    """A Split of grey images (examples, height, width, 1) from a pair of IDX files."""
    images = read_idx(images_path, rank=3)[..., None]
    return checked_split(images, read_idx(labels_path, rank=1), num_classes, str(labels_path))


def _read_header(reader: Reader, path: Path, rank: int) -> tuple[int, ...]:
    start = read_up_to(reader, 4)
    if start != bytes([0, 0, _UNSIGNED_BYTE, rank]):
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes in {rank} dimensions"
            f" (it starts with {start.hex(' ') or 'nothing'})"
        )
    sizes = read_up_to(reader, 4 * rank)
    if len(sizes) != 4 * rank:
        raise DataError(f"{path}: ends within its header")
    return struct.unpack(f">{rank}I", sizes)

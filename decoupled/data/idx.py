"""IDX files, the format of MNIST and Fashion-MNIST, gzipped or not.

Layout: two zero bytes, a type byte (8: unsigned bytes), the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values. (Described at yann.lecun.com/exdb/mnist.)
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from decoupled.data.dataset import Split, checked_split
from decoupled.errors import DataError

_UNSIGNED_BYTE = 8
_GZIP_MAGIC = b"\x1f\x8b"
_MOST_BYTES = 1 << 31


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Reads unsigned bytes of `rank` dimensions.

    No more is read than the header promises, so a damaged file cannot fill the memory.

    Raises:
      DataError: the file is not such an IDX file, is cut short or goes on too long.
    """
    try:
        with _open(path) as file:
            dimensions = _read_header(file, path, rank)
            size = math.prod(dimensions)
            if size > _MOST_BYTES:
                raise DataError(f"{path}: its header promises {size} bytes; that is no data set")
            values = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(values) != size:
        found = "more" if len(values) > size else f"only {len(values)}"
        raise DataError(f"{path}: its header promises {size} bytes, the file has {found}")
    return np.frombuffer(values, np.uint8).reshape(dimensions)


def read_idx_split(images_path: Path, labels_path: Path, num_classes: int) -> Split:
    """A Split of grey images (examples, height, width, 1) from a pair of IDX files."""
    images = read_idx(images_path, rank=3)[..., None]
    return checked_split(images, read_idx(labels_path, rank=1), num_classes, str(labels_path))


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    with open(path, "rb") as file:
        gzipped = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if gzipped else open(path, "rb")


def _read_header(file: BinaryIO | gzip.GzipFile, path: Path, rank: int) -> tuple[int, ...]:
    start = file.read(4)
    if start != bytes([0, 0, _UNSIGNED_BYTE, rank]):
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes in {rank} dimensions"
            f" (it starts with {start.hex(' ') or 'nothing'})"
        )
    sizes = file.read(4 * rank)
    if len(sizes) != 4 * rank:
        raise DataError(f"{path}: ends within its header")
    return struct.unpack(f">{rank}I", sizes)

"""Reads files that nobody vouches for: regular ones only, in pieces, unzipped within bounds.

What a file promises costs no memory; only what it holds does. A few kilobytes of gzip may hold gigabytes:
`Unzipped` takes the most that may come of it.
"""

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from decoupled.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
_GZIP_FORMAT = 31  # as zlib numbers it, with the largest window
_PIECE = 1 << 16


@runtime_checkable
class Reader(Protocol):
    """What `read_up_to` needs of a file."""

    def read(self, count: int, /) -> bytes:
        """At most `count` bytes; none at the end only."""
        ...


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file; a pipe, which might never be written to, is not waited for.

    Raises:
      DataError: it is no such file, or it cannot be opened, or read within the `with`.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"{path}: cannot be read: it is not a regular file")
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_up_to(reader: Reader, size: int) -> bytearray:
    """`size` bytes, or what is left if that is less; memory is taken as they come."""
    content = bytearray()
    while len(content) < size and (piece := reader.read(min(_PIECE, size - len(content)))):
        content += piece
    return content


def skip(reader: Reader, size: int) -> int:
    """Reads past `size` bytes; returns how many there were."""
    left = size
    while left > 0 and (piece := reader.read(min(_PIECE, left))):
        left -= len(piece)
    return size - left


class Unzipped:
    """What one gzip member holds, read in order and checked at its end.

    zlib itself reads gzip's header here, at the speed of C: `gzip.open` takes minutes over a long file
    name in it, or over many empty members.

    Args:
      file: the compressed bytes.
      path: for messages.
      most: bytes that may be unpacked.
    """

    def __init__(self, file: BinaryIO, path: Path, most: int):
        self._file, self._path, self._most = file, path, most
        self._inflate = zlib.decompressobj(_GZIP_FORMAT)
        self._unpacked = 0

    def read(self, count: int, /) -> bytes:
        """At most `count` bytes; none at the end only.

        Raises:
          DataError: the gzip data is damaged, cut short or followed by something, or unpacks to too much.
        """
        while not self._inflate.eof:
            compressed = self._inflate.unconsumed_tail or self._file.read(_PIECE)
            try:
                piece = self._inflate.decompress(compressed, count)
            except zlib.error as error:
                raise DataError(f"{self._path}: cannot be read: {error}") from error
            if self._inflate.eof:
                self._check_nothing_follows()
            if piece:
                self._unpacked += len(piece)
                if self._unpacked > self._most:
                    raise DataError(f"{self._path}: unpacks to more than {self._most} bytes")
                return piece
            if not compressed:
                raise DataError(f"{self._path}: cannot be read: its gzip data is cut short")
        return b""

    def _check_nothing_follows(self) -> None:
        rest = self._inflate.unused_data
        while rest:
            if rest.strip(b"\0"):  # zeros may fill up a block
                raise DataError(f"{self._path}: cannot be read: something follows its gzip data")
            rest = self._file.read(_PIECE)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

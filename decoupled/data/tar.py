"""Members of a tar archive, read in place: nothing is unpacked to disk, so no path can escape a folder.

Only the plain headers that all tar formats share are understood. Extensions (long names, sparse files, pax
records) are skipped, not followed: short names of ordinary files need none, and they are where the
surprises of the format are. Links lead nowhere.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from decoupled.data.files import Reader, read_up_to, skip
from decoupled.errors import DataError

_BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_MOST_HEADERS = 1000


class _Header(NamedTuple):
    name: str
    size: int
    kind: bytes


def read_members(reader: Reader, sizes: Mapping[str, int], where: str) -> dict[str, bytearray]:
    """The contents of the regular files called as in `sizes`, in whatever folder of the archive.

    Reads to the very end, where gzip keeps its checksum.

    Args:
      reader: of the archive; whoever makes it bounds its length.
      sizes: of each member wanted, in bytes.
      where: for messages.

    Raises:
      DataError: the archive is damaged, a member is missing, comes twice or has another size, or there are
        more headers than any data set has.
    """
    found: dict[str, bytearray] = {}
    for _ in range(_MOST_HEADERS):
        header = _next_header(reader, where)
        if header is None:
            break
        name, padding = header.name, -header.size % _BLOCK
        if header.kind in _REGULAR and name in sizes:
            if name in found:
                raise DataError(f"{where}: {name} is in this archive twice")
            check_size(header.size, sizes[name], f"{where}: {name}")
            found[name] = read_up_to(reader, header.size)
            complete = len(found[name]) + skip(reader, padding) == header.size + padding
        else:
            size = 0 if header.kind in _WITHOUT_CONTENT else header.size + padding
            complete = skip(reader, size) == size
        if not complete:
            raise DataError(f"{where}: cannot be read as a tar archive: it is cut short in {name!r}")
    else:
        raise DataError(f"{where}: more than {_MOST_HEADERS} members; that is no data set")
    while reader.read(1 << 16):
        pass
    if missing := [name for name in sizes if name not in found]:
        raise DataError(f"{where}: no {', '.join(missing)} in this archive")
    return found


def check_size(size: int, expected: int, what: str) -> None:
    """Refuses a file that has another size than the published one.

    Raises:
      DataError: it has.
    """
    if size != expected:
        raise DataError(f"{what} has {size} bytes, but the published file has {expected}")


def _next_header(reader: Reader, where: str) -> _Header | None:
    """The next header, or None at the end."""
    block = bytes(read_up_to(reader, _BLOCK))
    if not block.strip(b"\0") and len(block) in (0, _BLOCK):
        return None
    unsummed = block[:148] + b" " * 8 + block[156:]
    if len(block) < _BLOCK or _octal(block[148:156]) != sum(unsummed):
        raise DataError(f"{where}: cannot be read as a tar archive: a header is damaged")
    size = _octal(block[124:136])
    if size is None:
        raise DataError(f"{where}: cannot be read as a tar archive: a header has no size")
    # Latin-1 has a character for every byte; the names looked for are ASCII.
    path = block[:100].partition(b"\0")[0].decode("latin-1")
    return _Header(path.rpartition("/")[2], size, block[156:157])


def _octal(field: bytes) -> int | None:
    """An octal number; None for anything else, such as a size from 8 GiB, which is written otherwise."""
    digits = field.partition(b"\0")[0].strip(b" ") or b"0"
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None

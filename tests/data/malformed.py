"""What can be wrong with a file: changes to its bytes, to gzip's content and to tar's headers.

Every function takes a `random.Random`, so that a seed, or hypothesis, decides all.
"""

import gzip
import re
import zlib

BLOCK = 512
# Start and length of the fields of a tar header that matter, or used to.
TAR_FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "time": (136, 12),
    "checksum": (148, 8),
    "kind": (156, 1),
    "magic": (257, 8),
    "sparse map": (386, 96),
    "extended": (482, 1),
    "real size": (483, 12),
}
_KINDS = b"0\x001234567LKxgSVMNX\xff"
_NAMES = (b"../../part.bin", b"/etc/passwd", b"train.bin/", b"x/train.bin", b"\xff\xfe", b"n" * 100, b"")
_NUMBERS = (
    b"%011o\0" % 0,
    b"%011o\0" % 511,
    b"%011o\0" % (1 << 32),
    b"77777777777\0",
    b"\x80" + b"\x7f" * 11,  # the other way to write a size, base 256: large
    b"\xff" * 12,  # ... and negative
    b"-0000000001\0",
    b"0o777777777\0",
    b"1_0\0",
    b" " * 12,
)
_PAX = (
    b"20 hdrcharset=\xff\xfe\n",
    b"6000 size=" + b"9" * 5989 + b"\n",
    b"9" * 5000 + b" a=b\n",
    b"14 size=-1536\n",
    b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n",
    b"29 GNU.sparse.size=200000000\n",
    b"22 GNU.sparse.map=a,b\n",
    b"19 path=../escape\n",
)


def mutated(rng, content, others):
    """One to three changes; inside gzip, if it is gzipped, more often than not."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        inside = unpacked(content) if rng.random() < 0.8 else b""
        if inside:
            donor = rng.choice(others)
            # Stored without compression now and then: that is faster, and lets bytes reach the parser.
            content = gzip.compress(
                _changed(rng, inside, [unpacked(donor) or donor]), rng.choice((0, 1)), mtime=0
            )
        else:
            content = _changed(rng, content, others)
    return content


def unpacked(content):
    """What a gzip file holds; b"" for any other file, or a damaged one."""
    try:
        return zlib.decompressobj(31).decompress(content)
    except zlib.error:
        return b""


def unpacked_size(content, most):
    """How many bytes can be had of a gzip file before its end or first damage; no more than `most`."""
    inflate, size = zlib.decompressobj(31), 0
    try:
        while size < most and not inflate.eof:
            piece = inflate.decompress(content, 1 << 16)
            content, size = inflate.unconsumed_tail, size + len(piece)
            if not piece:
                break
    except zlib.error:
        pass
    return min(size, most)


def tar_header(name, size_field=b"00000000000\0", kind=b"0"):
    """A header of the plain format, with its right checksum."""
    header = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size_field.ljust(12, b"\0")
    header += b"00000000000\0" + b" " * 8 + kind
    return with_checksum(header.ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"))


def with_checksum(header):
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def tar_entry(name, content, kind=b"0"):
    return tar_header(name, b"%011o\0" % len(content), kind) + content + b"\0" * (-len(content) % BLOCK)


def _changed(rng, content, others):
    headers = [at for at in range(0, len(content), BLOCK) if content[at + 257 : at + 262] == b"ustar"]
    if headers and rng.random() < 0.6:
        return rng.choice((_other_field, _other_size, _extension, _twice))(
            rng, content, rng.choice(headers)
        )
    return rng.choice(_CHANGES)(rng, content, others)


def _position(rng, content):
    """Anywhere, but often where headers are."""
    return rng.randrange(min(len(content), rng.choice((4, 20, len(content)))) or 1) if content else 0


def _cut(rng, content, others):
    return content[: rng.choice((_position(rng, content), len(content) - 1))]


def _flip(rng, content, others):
    at = _position(rng, content)
    return (
        content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        if content
        else b""
    )


def _extreme_number(rng, content, others):
    at, width = _position(rng, content), rng.choice((1, 2, 4, 8))
    number = rng.choice((0, 1, (1 << 8 * width) - 1, 1 << 8 * width - 1, (1 << 8 * width - 1) - 1))
    return content[:at] + number.to_bytes(width, "big") + content[at + width :]


def _other_numbers(rng, content, others):
    """Several of the first, as in a header of 32-bit numbers."""
    for at in (4, 8, 12):
        if rng.random() < 0.6:
            number = rng.choice((0, 1, 6, 1 << 16, 1 << 31, (1 << 32) - 1))
            content = content[:at] + number.to_bytes(4, "big") + content[at + 4 :]
    return content


def _small_number(rng, content, others):
    at = _position(rng, content)
    return content[:at] + bytes([rng.randrange(16)]) + content[at + 1 :]


def _insert(rng, content, others):
    at = rng.choice((_position(rng, content), len(content)))
    size = rng.choice((1, 2, 16, 512, 3073, 3074, 20_000))
    return content[:at] + bytes([rng.randrange(256)]) * size + content[at:]


def _inflate(rng, content, others):
    """Many zeros, which gzip makes next to nothing of."""
    return content + b"\0" * rng.choice((1 << 16, 1 << 18, 3 << 20)) if rng.random() < 0.05 else content * 2


def _remove(rng, content, others):
    at = _position(rng, content)
    return content[:at] + content[at + rng.choice((1, 4, 512, 3073)) :]


def _splice(rng, content, others):
    other = rng.choice(others)
    return content[: _position(rng, content)] + other[_position(rng, other) :]


_CHANGES = (
    _cut,
    _flip,
    _extreme_number,
    _other_numbers,
    _small_number,
    _insert,
    _inflate,
    _remove,
    _splice,
)


def _other_field(rng, content, at):
    start, length = TAR_FIELDS[rng.choice(list(TAR_FIELDS))]
    values = {100: _NAMES, 1: [bytes([kind]) for kind in _KINDS]}.get(length, _NUMBERS)
    value = rng.choice(values)[:length].ljust(length, b"\0")
    header = content[at : at + start] + value + content[at + start + length : at + BLOCK]
    if rng.random() < 0.9:
        header = with_checksum(header)
    return content[:at] + header + content[at + BLOCK :]


def _other_size(rng, content, at):
    """A member of another size, in header and content alike."""
    size = int(re.match(rb"[0-7]*", content[at + 124 : at + 136])[0] or b"0", 8)
    name, rest = content[at : at + 100].rstrip(b"\0"), content[at + BLOCK + size + -size % BLOCK :]
    return content[:at] + tar_entry(name, bytes(rng.choice((0, 1, 3072, 3073, 6146, 6148, 9219)))) + rest


def _extension(rng, content, at):
    if rng.random() < 0.02:
        return content[:at] + tar_header(b"x", kind=rng.choice((b"L", b"0"))) * 1500 + content[at:]
    kind, size = bytes([rng.choice(_KINDS)]), rng.choice(_NUMBERS)
    pax = tar_entry(b"./PaxHeaders/x", rng.choice(_PAX), rng.choice((b"x", b"g")))
    return content[:at] + rng.choice((pax, pax, tar_header(b"x", size, kind))) + content[at:]


def _twice(rng, content, at):
    end = at + BLOCK * rng.choice((1, 8, 14))
    return content[:at] + content[at:end] * 2 + content[end:]

"""The parsers on generated malformed files: their own error or a sound result, soon, in little memory."""

import gzip
import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoupled.data import tar
from decoupled.data.cifar_binary import Layout, read_cifar
from tests.data.formats import cifar_bytes, random_split
from tests.data.fuzz import fuzz
from tests.data.malformed import BLOCK, mutated, tar_entry, tar_header
from tests.data.parsers import Parser, all_parsers, attack

FEW = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


PARSERS = [f"IDX {part}" for part in ("images", "images, gzipped", "labels", "labels, gzipped")]
PARSERS += [f"CIFAR-{classes} {kind}" for classes in (10, 100) for kind in ("folder", "archive")]


@pytest.fixture(scope="module")
def parsers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parsers")
    return folder, {parser.name: parser for parser in all_parsers(folder)}


@pytest.fixture(scope="module")
def read(parsers):
    """(name of a parser, content of a file) -> whether it was read; it must not go wrong."""

    def attacked(name, content):
        outcome = attack(parsers[1][name], content, parsers[0])
        assert not outcome.problem
        return outcome.accepted

    return attacked


def test_all_parsers_are_attacked(parsers):
    assert set(parsers[1]) == set(PARSERS)


@pytest.mark.parametrize("name", PARSERS)
@FEW
@given(rng=st.randoms(use_true_random=False))
def test_changed_files(parsers, read, name, rng):
    files = parsers[1][name].files
    read(name, mutated(rng, rng.choice(files), files))


@FEW
@given(
    start=st.sampled_from([b"\0\0\x08\x03", b"\0\0\x08\x01", b"\0\0\x0d\x03", b"\x1f\x8b\x08\0"]),
    dimensions=st.tuples(*[st.sampled_from([0, 1, 6, 1 << 16, 1 << 31, (1 << 32) - 1])] * 3),
    extra=st.integers(-2, 2),
    gzipped=st.booleans(),
)
def test_idx_headers(read, start, dimensions, extra, gzipped):
    size = max(min(math.prod(dimensions), 1 << 17) + extra, 0)
    content = start + struct.pack(">3I", *dimensions) + b"\1" * size
    content = zipped(content) if gzipped else content
    # Six labels lie beside the file.
    valid = start == b"\0\0\x08\x03" and dimensions[0] == 6 and 0 < math.prod(dimensions) == size
    assert read("IDX images, gzipped" if gzipped else "IDX images", content) == valid


SIZES = st.sampled_from(
    [b"%011o" % 3073, b"%011o" % 6146, b"77777777777", b"\x80" + b"\x7f" * 11, b"x", b""]
)
NAMES = st.sampled_from([b"train.bin", b"../../train.bin", b"/test.bin", b"test.bin", b"\xff", b""])
KINDS = st.sampled_from([b"0", b"\0", b"1", b"2", b"5", b"L", b"S", b"x", b"g"])


@FEW
@given(st.lists(st.builds(tar_header, NAMES, SIZES, KINDS), max_size=4), st.booleans())
def test_tar_headers(read, headers, ended):
    content = b"".join(header + b"\0" * 13 * BLOCK for header in headers) + b"\0" * 2 * BLOCK * ended
    read("CIFAR-10 archive", zipped(content))


IDX = struct.pack(">4B3I", 0, 0, 8, 3, 60, 500, 560)
RECORDS = [tar_entry(b"a/train.bin", bytes(2 * 3073)), tar_entry(b"a/test.bin", bytes(3073))]
GOOD = b"".join(RECORDS)


def zipped(content):
    return gzip.compress(content, 1, mtime=0)


TRAPS = {
    "promises 16 MiB": lambda: IDX,
    "promises 16 MiB, gzipped": lambda: zipped(IDX),
    "unpacks to more than promised": lambda: zipped(IDX + bytes(1 << 25)),
    "a long name in gzip's header": lambda: b"\x1f\x8b\x08\x08" + b"a" * (1 << 24),
    "many gzip members": lambda: zipped(b"") * 300_000,
    "64 MiB after the end of tar": lambda: zipped(GOOD + bytes(1 << 26)),
    "a large member of tar": lambda: zipped(tar_header(b"x", b"%011o" % (1 << 26)) + bytes(1 << 26) + GOOD),
    "many members of tar": lambda: zipped(tar_header(b"x") * 1500 + GOOD),
    "nested long names in tar": lambda: zipped(tar_header(b"x", kind=b"L") * 1500 + GOOD),
    "a member of tar twice": lambda: zipped(GOOD + RECORDS[0]),
    "a link in tar for a member": lambda: zipped(tar_header(b"a/train.bin", kind=b"2") + RECORDS[1]),
    "a tar.gz in gzip": lambda: zipped(zipped(GOOD)),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_bombs_and_traps_are_refused(read, trap):
    parser = "CIFAR-10 archive" if "tar" in trap else "IDX images"
    assert not read(parser + ", gzipped" * ("gzip" in trap and "tar" not in trap), TRAPS[trap]())


@pytest.mark.parametrize(
    "records",
    [b"20 hdrcharset=\xff\xfe\n", b"9" * 5000 + b" a=b\n", b"22 GNU.sparse.map=a,b\n"],
    ids=range(3),
)
def test_tar_extensions_are_not_followed(read, records):
    assert read("CIFAR-10 archive", zipped(tar_entry(b"./PaxHeaders/x", records, b"x") + GOOD))


def test_paths_that_climb_out_write_nothing(tmp_path):
    """All members are found by their last name; none is unpacked."""
    (tmp_path / "inner").mkdir()
    climbing = GOOD.replace(RECORDS[0], tar_entry(b"../escaped/train.bin", bytes(2 * 3073)))
    (tmp_path / "inner" / "cifar.tar.gz").write_bytes(zipped(climbing))
    train, _ = read_cifar(
        tmp_path / "inner" / "cifar.tar.gz", Layout({"train.bin": 2}, {"test.bin": 1}, 1, 10)
    )
    assert len(train) == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "cifar.tar.gz"]


def test_memory_for_a_valid_archive(tmp_path):
    """The records, and the images and labels made of them: not three times what is in the archive."""
    images, labels = random_split(0, 600, (32, 32, 3))
    records = cifar_bytes(images, labels)
    content = tar_entry(b"train.bin", records[: 400 * 3073]) + tar_entry(b"test.bin", records[400 * 3073 :])
    layout = Layout({"train.bin": 400}, {"test.bin": 200}, 1, 10)
    parser = Parser("", [], lambda path: read_cifar(path, layout), "whole.tar.gz", 1 << 22)
    outcome = attack(parser, zipped(content), tmp_path)
    assert outcome.accepted
    assert outcome.times < 3


def test_the_fuzzer_finds_a_defect(monkeypatch, tmp_path):
    """One that needs a damaged number with a right checksum; and the same run on the same seed."""
    (parser,) = (p for p in all_parsers(tmp_path) if p.name == "CIFAR-10 archive")
    clean, again = (fuzz(parser, 40, 1, tmp_path)._replace(seconds=0, times=0) for _ in range(2))
    assert clean == again
    assert (clean.problem, clean.tried - clean.accepted) == ("", 40)
    assert clean.kept > 2
    monkeypatch.setattr(tar, "_octal", lambda field: int(field.strip(b"\0 ") or b"0", 8))
    report = fuzz(parser, 500, 1, tmp_path)
    assert report.problem.startswith("ValueError: invalid literal")
    assert not np.array_equal(report.content, parser.files[0])

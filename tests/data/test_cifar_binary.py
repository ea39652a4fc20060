"""The CIFAR reader on archives and folders written byte by byte, whole and damaged."""

import lzma
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoupled import DataError
from decoupled.data import cifar10, cifar100
from decoupled.data.cifar_binary import Layout, read_cifar
from decoupled.data.published import CIFAR10_LAYOUT, CIFAR100_LAYOUT
from tests.data.formats import cifar_bytes, random_split, write_tar

BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]
SMALL10 = CIFAR10_LAYOUT._replace(train=dict.fromkeys(BATCHES, 3), test={"test_batch.bin": 3})
SMALL100 = CIFAR100_LAYOUT._replace(train={"train.bin": 4}, test={"test.bin": 4})
PART = Layout({"part.bin": 2}, {"test.bin": 1}, label_bytes=1, num_classes=10)


def cifar10_members():
    splits = {name: random_split(i, 3, (32, 32, 3)) for i, name in enumerate([*BATCHES, "test_batch.bin"])}
    members = {f"cifar-10-batches-bin/{n}": cifar_bytes(*split) for n, split in splits.items()}
    return splits, members


@pytest.mark.parametrize("archived", [True, False])
def test_cifar10(tmp_path, archived):
    splits, members = cifar10_members()
    if archived:
        write_tar(
            tmp_path / "cifar-10-binary.tar.gz", {**members, "cifar-10-batches-bin/readme.html": b"hi"}
        )
    else:
        (tmp_path / "cifar-10-batches-bin").mkdir()
        for name, content in members.items():
            (tmp_path / name).write_bytes(content)
    dataset = cifar10(str(tmp_path), False, SMALL10)
    np.testing.assert_array_equal(dataset.train.images, np.concatenate([splits[n][0] for n in BATCHES]))
    np.testing.assert_array_equal(dataset.train.labels, np.concatenate([splits[n][1] for n in BATCHES]))
    np.testing.assert_array_equal(dataset.test.images, splits["test_batch.bin"][0])
    name = "cifar-10-binary.tar.gz" if archived else "cifar-10-batches-bin"
    assert dataset.source == str(tmp_path / name)


def test_cifar100_takes_the_fine_label(tmp_path):
    members = {}
    for seed, name in enumerate(("train.bin", "test.bin")):
        images, fine = random_split(seed, 4, (32, 32, 3), classes=100)
        members[f"cifar-100-binary/{name}"] = cifar_bytes(images, fine // 5, fine)
    write_tar(tmp_path / "cifar-100-binary.tar.gz", members)
    dataset = cifar100(str(tmp_path), False, SMALL100)
    np.testing.assert_array_equal(dataset.test.labels, fine)
    np.testing.assert_array_equal(dataset.test.images, images)


def test_damaged_archives_are_named_in_one_line(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    _, members = cifar10_members()
    write_tar(path, members)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1  # in the checksum at gzip's end
    cases = [(bytes(flipped), "cannot be read"), (lzma.compress(b"x"), "cannot be read")]
    cases += [
        (whole[: len(whole) // 2], "gzip data is cut short"),
        (b"not a tar", "cannot be read"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            cifar10(str(tmp_path), False, SMALL10)
    del members["cifar-10-batches-bin/test_batch.bin"]
    write_tar(path, members)
    with pytest.raises(DataError, match=r"no test_batch.bin in this archive"):
        cifar10(str(tmp_path), False, SMALL10)


def test_files_of_another_length_than_published(tmp_path):
    """The format does not tell its end: a file cut off after a whole record looks like any other."""
    write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar10_members()[1])
    with pytest.raises(DataError, match=r"_1\.bin has 9219 bytes, but the published file has 30730000"):
        cifar10(str(tmp_path), download=False)
    images, labels = random_split(0, 3, (32, 32, 3))
    (tmp_path / "test.bin").write_bytes(cifar_bytes(images[:1], labels[:1]))
    for content, message in (
        (cifar_bytes(images[:1], labels[:1]), "part.bin has 3073 bytes, but the published file has 6146"),
        (cifar_bytes(images, labels), "part.bin has more than the 6146 bytes"),
        (b"", "part.bin has 0 bytes"),
        (cifar_bytes(images[:2], np.array([0, 10], np.uint8)), r"label 10 of example 1 is outside 0\.\.9"),
    ):
        (tmp_path / "part.bin").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_cifar(tmp_path, PART)
    (tmp_path / "part.bin").write_bytes(cifar_bytes(images[:2], labels[:2]))
    train, test = read_cifar(str(tmp_path), PART)
    assert (len(train), len(test)) == (2, 1)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_cifar(tmp_path, PART)
    os.mkfifo(tmp_path / "part.bin")
    with pytest.raises(DataError, match="not a regular file"):
        read_cifar(tmp_path, PART)
    with pytest.raises(DataError, match="not a regular file"):
        read_cifar(tmp_path / "part.bin", PART)
    (tmp_path / "part.bin").unlink()
    (tmp_path / "part.bin").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_cifar(tmp_path, PART)


@given(st.binary(max_size=600))
def test_any_bytes_as_an_archive_give_a_data_error(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("cifar") / "cifar.tar.gz"
    path.write_bytes(junk)
    with pytest.raises(DataError):
        read_cifar(path, PART)

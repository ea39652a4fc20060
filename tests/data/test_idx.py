"""The IDX reader on files written byte by byte, whole and damaged."""

import contextlib
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoupled import DataError
from decoupled.data import FASHION_MNIST, MNIST, idx_dataset, published
from decoupled.data.idx import read_idx
from tests.data.formats import idx_bytes, write_idx_files

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("subfolder", ["", "mnist"])
def test_mnist_from_a_data_folder(tmp_path, gzipped, subfolder):
    contents = write_idx_files(tmp_path / subfolder, gzipped)
    dataset = idx_dataset(MNIST, tmp_path if gzipped else str(tmp_path), download=False)
    assert (dataset.name, dataset.num_classes) == ("mnist", 10)
    assert dataset.source == str(tmp_path / subfolder)
    for split, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        np.testing.assert_array_equal(split.images[..., 0], contents[prefix][0])
        np.testing.assert_array_equal(split.labels, contents[prefix][1])
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG\r\n", "not an IDX file"),
        (idx_bytes(np.zeros(4, np.uint8)), "not an IDX file of unsigned bytes in 3 dimensions"),
        (GOOD[:9], "ends within its header"),
        (GOOD[:-1], "promises 24 bytes, the file has only 23"),
        (GOOD + b"x", "promises 24 bytes, the file has more"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "that is no data set"),
        (
            b"\0\0\x08\x03" + b"\0" * 4 + b"\xff" * 8,
            "promises 0 x 4294967295 x 4294967295 bytes; that is no",
        ),
        # The content is the test's name, the same for every worker only without the time in it.
        (gzip.compress(GOOD, mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8b" + b"junk" * 10, "cannot be read"),
        (gzip.compress(GOOD, mtime=0) + b"more", "something follows its gzip data"),
        (gzip.compress(GOOD, mtime=0) * 2, "something follows its gzip data"),
        (gzip.compress(GOOD + b"x", mtime=0), "promises 24 bytes, the file has more"),
    ],
)
def test_damaged_files_are_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, rank=3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=64), st.integers(0, len(GOOD)))
def test_any_bytes_give_an_array_or_a_data_error(tmp_path_factory, junk, keep):
    path = tmp_path_factory.mktemp("idx") / "file"
    for content in (junk, GOOD[:keep] + junk, gzip.compress(GOOD, mtime=0)[:keep] + junk):
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            assert read_idx(path, rank=3).ndim == 3


def test_zeros_that_fill_up_a_block_may_follow_gzip(tmp_path):
    (tmp_path / "file").write_bytes(gzip.compress(GOOD, mtime=0) + b"\0" * 100_000)
    assert read_idx(tmp_path / "file", rank=3).shape == (2, 3, 4)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "absent", rank=1)


def test_images_of_another_size_to_test_on(tmp_path):
    write_idx_files(tmp_path, gzipped=False)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((5, 20, 20), np.uint8)))
    with pytest.raises(
        DataError, match=r"t10k-images.*: its images are 20x20, but those of mnist are 28x28"
    ):
        idx_dataset(MNIST, str(tmp_path), download=False)


def test_images_without_pixels(tmp_path):
    write_idx_files(tmp_path, gzipped=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((12, 0, 0), np.uint8)))
    with pytest.raises(DataError, match="none with a pixel"):
        idx_dataset(MNIST, str(tmp_path), download=False)


@pytest.mark.parametrize(
    ("size", "classes", "message"),
    [
        (12, 3, "train-images-idx3-ubyte: its images are 12x12, but those of mnist are 28x28"),
        (28, 3, "train-labels-idx1-ubyte: no example of class 3, 4, 5, 6, 7, 8, 9, but mnist has the"),
    ],
)
def test_what_is_no_mnist(tmp_path, size, classes, message):
    write_idx_files(tmp_path, gzipped=False, size=size, classes=classes)
    with pytest.raises(DataError, match=message):
        idx_dataset(MNIST, tmp_path)


@pytest.mark.parametrize("gzipped", [True, False])
def test_a_set_whose_files_are_called_as_those_of_another(gzipped, tmp_path, monkeypatch):
    """MNIST's are known by their labels, however they are packed."""
    labels = write_idx_files(tmp_path, gzipped)["train"][1]
    digest = hashlib.sha256(labels.tobytes()).hexdigest()
    monkeypatch.setitem(published._TRAINING_LABELS, "mnist", digest)
    with pytest.raises(DataError, match=f"{tmp_path} holds mnist, not fashion_mnist"):
        idx_dataset(FASHION_MNIST, tmp_path)
    assert idx_dataset(MNIST, tmp_path).name == "mnist"


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_as_debian_packs_it_is_no_mnist():
    with pytest.raises(DataError, match=f"{DEBIAN} holds fashion_mnist, not mnist"):
        idx_dataset(MNIST, DEBIAN)

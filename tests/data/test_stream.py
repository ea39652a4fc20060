"""Data sets that are read while a run trains on them: the same examples as in memory, in the same order."""

import threading

import chex
import numpy as np
import pytest

from decoupled import DataError, UsageError
from decoupled.data import (
    Reading,
    Stream,
    batches_from,
    hold_out,
    own_dataset,
    preprocess,
    shuffled_batches,
)
from decoupled.data.dataset import batches_in_order

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3)).astype(np.float32)
IMAGES = RNG.integers(256, size=(23, 4, 4, 2)).astype(np.uint8)
Y = RNG.integers(5, size=23)
WEIGHT = RNG.integers(1, 4, size=23)


class Examples:
    """By number, in one of the forms that an example may have."""

    def __init__(self, x=X, form="pair"):
        self.x, self.form = x, form

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if self.form == "pair":
            return self.x[i], Y[i]
        return {"x": {"a": self.x[i], "b": (i, self.x[i, :1])}, "y": Y[i], "weight": WEIGHT[i]}


class Broken(Examples):
    def __getitem__(self, i):
        return (self.x[i], Y[i]) if i != 17 else self.missing


class Locked(Examples):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Changing(Examples):
    def __getitem__(self, i):
        self.x = self.x + 1
        return self.x[i], Y[i]


def streamed(source, workers=0, **more):
    return own_dataset(
        {"train": source, "test": source, "num_outputs": 5, **more}, "n", reading=Reading(True, workers)
    )


@pytest.mark.parametrize("form", ["pair", "dict"])
def test_batches_are_those_of_arrays_in_memory(form):
    source = Examples(form=form)
    stream = streamed(source).train
    memory = own_dataset({"train": source, "test": source, "num_outputs": 5}, "n").train
    assert isinstance(stream, Stream)
    assert not isinstance(memory, Stream)
    for held_out in (False, True):
        if held_out:
            (stream, held), (memory, of_memory) = hold_out(stream, 6), hold_out(memory, 6)
            chex.assert_trees_all_equal(held.rows(np.arange(6)), tuple(of_memory))
        for done in (0, 3, 8):
            run = (4, 7, 3, np.array([0, 2]))  # batch size, seed, epochs, rows of this process
            found, expected = ([*batches_from(done, split, *run)] for split in (stream, memory))
            chex.assert_trees_all_equal(found, expected)
        assert len(found) == 3 * (len(stream) // 4) - 8
        chex.assert_trees_all_equal(
            *([*shuffled_batches(split, 4, 7, 2, start=1)] for split in (stream, memory))
        )
        order = [np.array([3, 1]), np.array([0])]
        chex.assert_trees_all_equal(*([*batches_in_order(split, order)] for split in (stream, memory)))


def test_images_are_standardised_by_a_sample_and_data_told_apart():
    stream = streamed(Examples(IMAGES))
    np.testing.assert_allclose(preprocess(stream.train.images).mean, IMAGES.mean((0, 1, 2)), rtol=1e-6)
    assert stream.fingerprint() == streamed(Examples(IMAGES)).fingerprint()
    assert stream.fingerprint() != streamed(Examples(IMAGES[:22])).fingerprint()
    assert stream.fingerprint() != streamed(Examples(np.flip(IMAGES, 1))).fingerprint()


def test_mistakes():
    with pytest.raises(UsageError, match="n, train: example 0 is another each time it is read"):
        streamed(Changing())
    with pytest.raises(UsageError, match=r"how many is not known before all are read: .* num_outputs"):
        own_dataset((Examples(), Examples()), "n", reading=Reading(True))
    with pytest.raises(DataError, match="n, train: no examples in it"):
        streamed([])
    large = np.where(np.arange(23)[:, None] == 20, np.nan, X)
    for source, outputs, message in (
        (Examples(large), 5, "n, train inputs of example 20 are not finite"),
        (Examples(), 4, r"n, train: label 4 of example \d+ is outside 0\.\.3"),
    ):
        with pytest.raises(DataError, match=message):
            streamed(source, num_outputs=outputs).train.rows(np.arange(23))
    with pytest.raises(AttributeError, match="missing"):  # with a traceback, as it is one's own
        [*batches_in_order(own_dataset((Broken(X[:, :1]), Examples()), "n").train, [np.arange(3)])]
    with pytest.raises(UsageError, match=r"cannot be sent to other processes \(TypeError: .*lock"):
        [*batches_from(0, streamed(Locked(), workers=1).train, 4, 0, 1, slice(None))]


@pytest.mark.slow
def test_worker_processes_read_the_same_and_tell_what_fails():
    run = (4, 7, 2, slice(None))
    chex.assert_trees_all_equal(
        *([*batches_from(1, streamed(Examples(), workers).train, *run)] for workers in (0, 2))
    )
    whole = {"train": Examples(), "test": Examples()}
    in_memory = [own_dataset(whole, "n", reading=Reading(False, workers)).train for workers in (0, 1)]
    chex.assert_trees_all_equal(*map(tuple, in_memory))
    with pytest.raises(UsageError, match=r"the data set fails: .*test_stream.py, line \d+: AttributeError"):
        own_dataset({**whole, "train": Broken()}, "n", reading=Reading(False, 1))

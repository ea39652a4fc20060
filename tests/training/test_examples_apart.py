"""What a run trains on, and what its accuracies are of: a linear classifier's, by NumPy."""

import jax
import numpy as np
import pytest

from configs import digits
from decoupled import data
from decoupled.training import NoWorkdir, train_and_evaluate
from decoupled.training.builder import build


class Kept(NoWorkdir):
    """Keeps in memory what a run would write."""

    def __init__(self):
        self.lines, self.state = [], None

    def log(self, kind, step, values):
        self.lines.append({"kind": kind, **values})

    def save(self, state):
        self.state = jax.device_get(state)


def job():
    config = digits.get_config()
    changes = {"model.mlp.depth": 0, "epochs": 1, "log_every": 100, "batch_size": 128}
    config.update_from_flattened_dict(changes)
    return build(config)


def bytes_of(split):
    return {image.tobytes() for image in split.images}


def test_training_validation_and_test_examples_are_apart():
    made, published = job(), data.digits()
    parts = made.dataset.train, made.validation, made.dataset.test
    images = [bytes_of(part) for part in parts]
    assert [len(part) for part in parts] == [1237, 200, 360]
    assert not images[0] & images[1]
    assert not images[0] & images[2]
    assert not images[1] & images[2]
    assert images[0] | images[1] == bytes_of(published.train)


def test_accuracies_are_those_of_the_split_they_name():
    made, kept = job(), Kept()
    summary = train_and_evaluate(made, kept)
    dense = kept.state.modules[0].params
    (dense,) = dense.values() if "kernel" not in dense else (dense,)
    train = made.dataset.train.images.astype(np.float64)
    mean, deviation = train.mean(), train.std()

    def logits(split):
        x = (split.images.reshape(len(split), -1) - mean) / deviation
        return x @ dense["kernel"] + dense["bias"]

    def accuracy(split):
        return float(np.mean(logits(split).argmax(1) == split.labels))

    def loss(split):
        out = logits(split)
        return float(np.mean(np.log(np.exp(out).sum(1)) - out[np.arange(len(split)), split.labels]))

    told = {line["kind"]: line["accuracy"] for line in kept.lines if line["kind"] != "train"}
    expected = {"validation": accuracy(made.validation), "test": accuracy(made.dataset.test)}
    assert len({*expected.values(), accuracy(made.dataset.train)}) == 3
    assert told == pytest.approx(expected, abs=1e-9)
    assert summary["test_accuracy"] == told["test"]
    assert summary["test_loss"] == pytest.approx(loss(made.dataset.test), rel=1e-4)


def test_the_seed_alone_changes_the_order_of_examples():
    split = data.digits().test
    first = [next(data.shuffled_batches(split, 100, seed, epoch=1))[1] for seed in (0, 1)]
    assert (first[0] != first[1]).any()

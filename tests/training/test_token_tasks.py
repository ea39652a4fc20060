"""Tokens as examples in train.py: labels and weights a token, local losses and SGs; NumPy is the oracle."""

import json
import sys

import chex
import jax
import numpy as np
import pytest
import scipy.special

import decoupled
from configs import digits
from decoupled.data import shuffled_batches
from decoupled.training import Workdir, read_metrics, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.predict import load_predictor
from decoupled.training.saved_config import read_config
from decoupled.training.step import alignment_step, evaluator, no_totals
from tests.helpers import folder_with, gate

pytestmark = pytest.mark.usefixtures("undrawn")

MINE = """
import numpy as np
from flax import linen as nn
from decoupled import from_linen

rng = np.random.default_rng(0)
x = rng.integers(7, size=(60, 5))
lengths = rng.integers(1, 6, size=60)
weight = np.where(np.arange(5) < lengths[:, None], rng.choice([1.0, 2.0], size=(60, 5)), 0)
y = np.where(weight > 0, (x * 3) % 7, -100)


def padded():
    return (x[:43], y[:43], weight[:43]), {"x": x[43:], "y": y[43:], "weight": weight[43:]}


class Examples:
    def __len__(self):
        return 60

    def __getitem__(self, i):
        return {"x": x[i], "y": y[i], "weight": weight[i]}


def one_by_one():
    return Examples()


def whole():
    return (x[:43], x[:43]), (x[43:], x[43:])


def one_weight_an_example():
    return x, x, lengths


def embedded(num_outputs, depth=2):
    hidden = [from_linen(nn.Dense(6))] * depth
    return [from_linen(nn.Embed(7, 6)), *hidden, from_linen(nn.Dense(num_outputs))]


def summed(num_outputs):
    return [from_linen(nn.Embed(7, 6)), decoupled_sum, from_linen(nn.Dense(num_outputs))]


from decoupled import from_functions
decoupled_sum = from_functions(lambda key, h: {}, lambda params, h: h.sum(1), "sum")
"""
SETTINGS = {
    "dataset": "sequences:padded",
    "model.name": "sequences:embedded",
    "estimator.name": "local_loss",
    "batch_axes": 2,
    "batch_size": 8,
    "epochs": 1,
    "validation_examples": 5,
    "log_every": 2,
    "alignment_every": 3,
    "optimizer.name": "sgd",
    "estimator_optimizer.name": "sgd",
    "optimizer.schedule": "constant",
    "estimator_optimizer.schedule": "constant",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "rnn"])
def test_a_model_of_the_package_learns_tokens(name, here, tmp_path):
    small = {"gpt.width": 16, "gpt.heads": 2, "gpt.depth": 1, "gpt.context": 5}
    small |= {"rnn.width": 16, "rnn.depth": 1, "rnn.vocabulary": 7}
    own = {f"model.{field}": value for field, value in small.items()}
    rates = {"optimizer.name": "adam", "optimizer.learning_rate": 3e-2, "epochs": 10}
    settings = config(**{"model.name": name, **own, **rates, "estimator_optimizer.name": "adam"})
    with Workdir(tmp_path / "run", settings.to_dict()) as workdir:
        summary = train_and_evaluate(build(settings), workdir)
    assert summary["test_accuracy"] > 0.9  # each token by itself tells its label


WAYS = ("stacked", "dispatched", "mesh", "shard_map", "pmap")


here = folder_with("sequences", MINE)


def config(**changes):
    result = digits.get_config()
    result.update_from_flattened_dict({**SETTINGS, **changes})
    return result


def means(logits, split):
    """Loss and accuracy of all tokens that count, by NumPy."""
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), -1)
    labels = np.maximum(split.labels, 0)
    each = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    right = log_p.argmax(-1) == labels
    weight = getattr(split, "weight", np.ones(labels.shape))
    return {"loss": np.average(each, weights=weight), "accuracy": np.average(right, weights=weight)}


def first_steps(count=2, **changes):
    """(state, totals, cosines, evaluation) after some steps, as the loop takes them."""
    job = build(config(**changes))
    train, execution = job.dataset.train, job.execution
    key, rows = execution.place_state(jax.random.key(7)), execution.rows(8)
    state = jax.jit(job.learner.init)(jax.random.key(0), train.images[:8], train.labels[:8])
    state, totals = execution.place_state(state), execution.place_state(no_totals(job.learner))
    step = None
    for _, batch in zip(range(count), shuffled_batches(train, 8, 0, 1, rows), strict=False):
        images, labels, *weight = execution.place_batch(batch)
        step = step or execution.compile_step(state, totals, images, labels, key, *weight)
        state, totals = step(state, totals, images, labels, key, *weight)
    measure = execution.measure(alignment_step(job.learner, job.preprocess))
    cosines = measure(state, images, labels, key, *weight)
    evaluate = evaluator(job.learner, job.preprocess, 8, execution, job.metric)
    unstacked = job.learner.unstack(jax.device_get(state))
    # No multiple of the batch, nor of the devices.
    return unstacked, jax.device_get(totals)[:3], cosines, evaluate(state, job.dataset.test)


@pytest.fixture(scope="module")
def fused_steps():
    return {}


@pytest.mark.parametrize("way", gate(WAYS))
def test_every_way_takes_the_same_steps(way, here, fused_steps):
    changes = {"step" if way in ("stacked", "dispatched") else "parallel.mode": way}
    if not fused_steps:
        fused_steps["taken"] = first_steps()
    chex.assert_trees_all_close(first_steps(**changes), fused_steps["taken"], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("estimator", gate(("linear", "local_loss"), "local_loss"))
def test_a_run_counts_tokens_by_their_weights(here, estimator):
    settings = config(**{"estimator.name": estimator, "optimizer.learning_rate": 0.0})
    job = build(settings)
    with Workdir(here / "run", settings.to_dict()) as workdir:
        summary = train_and_evaluate(job, workdir)
    predict = load_predictor(here / "run")
    test, held = job.dataset.test, job.validation
    expected = means(predict(test.images), test)
    assert summary["test_accuracy"] == pytest.approx(expected["accuracy"], rel=1e-5)
    assert summary["test_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    lines = read_metrics(here / "run")
    (validation,) = (line for line in lines if line["kind"] == "validation")
    assert validation["accuracy"] == pytest.approx(means(predict(held.images), held)["accuracy"], rel=1e-5)
    # At a rate of 0 each report is a mean over the tokens of its batches.
    batches = [*shuffled_batches(job.dataset.train, 8, 0, 1)]
    first = type(job.dataset.train)(*map(np.concatenate, zip(*batches[:2], strict=True)))
    train = next(line for line in lines if line["kind"] == "train")
    assert train["loss"] == pytest.approx(means(predict(first.images), first)["loss"], rel=1e-5)
    # The config that it has saved makes the same run.
    again = build(read_config(here / "run" / "config.json"))
    assert again.learner.rules.batch_axes == 2
    assert again.fingerprint == job.fingerprint
    assert json.loads((here / "run" / "data.json").read_text(encoding="utf-8"))["targets"]["shape"] == [5]


def test_examples_one_by_one_have_weights_too(here):
    job = build(config(dataset="sequences:one_by_one"))
    mine = sys.modules["sequences"]
    parts = [job.dataset.train, job.validation, job.dataset.test]
    total = sum(part.weight.sum() for part in parts)
    assert (total, sum(map(len, parts))) == (mine.weight.sum(), 60)
    assert all((part.labels >= 0).all() for part in parts)  # whatever stood where nothing counts


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_axes": 1}, decoupled.DataError, r"weight has shape \(43, 5\), but targets have the"),
        ({"dataset": "sequences:one_weight_an_example"}, decoupled.DataError, r"weight has shape \(48,\)"),
        (
            {"dataset": "digits", "model.name": "mlp"},
            decoupled.UsageError,
            r"^config.batch_axes is 2, but targets of digits have shape \(\d+,\): choose 1, or",
        ),
        ({"batch_axes": 3}, decoupled.UsageError, r"config.batch_axes is 3, but targets of seq"),
        ({"batch_axes": 0}, decoupled.UsageError, "config.batch_axes is 0: choose a whole number"),
        ({"model.name": "sequences:summed"}, decoupled.UsageError, "examples"),
        (
            {"parallel.mode": "pipeline", "estimator.name": "linear"},
            decoupled.UsageError,
            "^config.parallel.mode is 'pipeline', which counts all examples alike, but seq",
        ),
    ],
)
def test_mistakes(changes, error, message, here):
    with pytest.raises(error, match=message) as told:
        build(config(**changes))
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_fit_takes_a_weighted_split_as_it_is(here):
    job = build(config(validation_examples=0, **{"optimizer.learning_rate": 0.0}))
    options = {"epochs": 1, "batch_size": 8, "progress": False}
    fitted = decoupled.fit(job.learner, job.dataset.train, validation=job.dataset.test, **options)
    expected = means(fitted.predict(job.dataset.test.images), job.dataset.test)
    assert fitted.history[0]["validation_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert fitted.history[0]["validation_accuracy"] == pytest.approx(expected["accuracy"], rel=1e-5)


@pytest.mark.slow
def test_a_pipeline_takes_tokens_that_all_count(here):
    changes = {"dataset": "sequences:whole", "parallel.mode": "pipeline", "estimator.name": "linear"}
    settings = config(**changes, **{"optimizer.learning_rate": 0.0})
    job = build(settings)
    with Workdir(here / "run", settings.to_dict()) as workdir:
        train_and_evaluate(job, workdir)
    predict = load_predictor(here / "run")
    (last,) = (line for line in read_metrics(here / "run") if line["kind"] == "train" and line["step"] == 4)
    # Of two stages: what was fed as 2 and 3 has come to the top since the last report.
    batches = [*shuffled_batches(job.dataset.train, 8, 0, 1)]
    parts = [means(predict(x), type(job.dataset.train)(x, y))["accuracy"] for x, y in batches[1:3]]
    assert last["accuracy"] == pytest.approx(np.mean(parts), rel=1e-5)

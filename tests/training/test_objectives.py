"""Losses and metrics by name, against NumPy; how a run is judged by them; tasks of other kinds."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import decoupled
from configs import digits
from decoupled.data import Preprocess, Split
from decoupled.training.builder import build
from decoupled.training.monitor import Monitor
from decoupled.training.objectives import LOSSES, METRICS, Metric, own_metric
from decoupled.training.progress import Progress
from decoupled.training.step import evaluator
from decoupled.training.workdir import NoWorkdir
from tests.helpers import folder_with

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 5, 4)).astype(np.float32)
TOKENS = RNG.integers(4, size=(7, 5)).astype(np.int32)
VALUES = RNG.normal(size=(7, 4)).astype(np.float32)
HOLD = (VALUES > 0).astype(np.float32)
FLAT = LOGITS[:, 0]


def test_losses():
    each = -np.take_along_axis(scipy.special.log_softmax(LOGITS, -1), TOKENS[..., None], -1)[..., 0]
    softmax = LOSSES["softmax_cross_entropy"]
    np.testing.assert_allclose(softmax(LOGITS, TOKENS), each.mean(1), rtol=1e-5)
    np.testing.assert_allclose(softmax(FLAT, TOKENS[:, 0]), each[:, 0], rtol=1e-5)
    p = scipy.special.expit(FLAT)
    binary = -(HOLD * np.log(p) + (1 - HOLD) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(LOSSES["sigmoid_cross_entropy"](FLAT, HOLD), binary, rtol=1e-5)


def test_metrics():
    right = LOGITS.argmax(-1) == TOKENS
    expected = {
        "accuracy": (LOGITS, TOKENS, right.mean(1)),
        "multilabel_accuracy": (FLAT, HOLD, ((FLAT > 0) == (HOLD == 1)).mean(1)),
        "mean_absolute_error": (FLAT, VALUES, np.abs(FLAT - VALUES).mean(1)),
        "mean_squared_error": (FLAT, VALUES, ((FLAT - VALUES) ** 2).mean(1)),
    }
    assert expected.keys() == METRICS.keys()
    for name, (output, y, scores) in expected.items():
        np.testing.assert_allclose(METRICS[name].function(output, jnp.asarray(y)), scores, rtol=1e-5)
        assert METRICS[name].larger_is_better == name.endswith("accuracy")
        with pytest.raises(decoupled.UsageError, match="takes"):
            METRICS[name].function(output, jnp.asarray(y)[:, :1])


@pytest.mark.parametrize(
    ("loss", "metric", "outputs", "y"),
    [
        ("softmax_cross_entropy", "accuracy", LOGITS, TOKENS),
        ("squared_error", "mean_squared_error", FLAT, VALUES),
        ("sigmoid_cross_entropy", "multilabel_accuracy", FLAT, HOLD),
    ],
)
def test_evaluation_counts_every_example_once(loss, metric, outputs, y):
    """The last batch is filled up, whatever the rank."""
    identity = decoupled.from_functions(lambda key, h: {}, lambda params, h: h, "identity")
    optimizer = optax.sgd(1.0)
    learner = decoupled.make_learner([identity], [], LOSSES[loss], optimizer, optimizer)
    state = learner.init(jax.random.key(0), jnp.asarray(outputs), jnp.asarray(y))
    as_it_is = Preprocess(lambda key, x: x, lambda x: x, None, None)
    found = evaluator(learner, as_it_is, 3, metric=METRICS[metric])(state, Split(outputs, y))
    scores, losses = (
        METRICS[metric].function(outputs, jnp.asarray(y)),
        LOSSES[loss](outputs, jnp.asarray(y)),
    )
    np.testing.assert_allclose(found[metric], np.mean(scores), rtol=1e-5)
    np.testing.assert_allclose(found["loss"], np.mean(losses), rtol=1e-5)


class Listener(NoWorkdir, Progress):
    def __init__(self):
        self.logged = self.said = None

    def log(self, kind, step, values):
        self.logged = json.dumps(values, allow_nan=False)

    def say(self, text):
        self.said = text


def test_the_best_network_has_the_smallest_error_or_the_largest_score():
    for larger, better in ((True, [True, False, True, False]), (False, [True, True, False, True])):
        metric, listener = Metric("score", lambda output, y: y, larger), Listener()
        monitor = Monitor(listener, listener, [], metric=metric)
        for step, (score, expected) in enumerate(zip([2.0, 1.0, 3.0, 0.5], better, strict=True)):
            result = {"score": score, "loss": 0.0}
            assert monitor.evaluation("validation", step, 1, result) == expected
        assert "score 0.5000" in listener.said
        assert monitor.best == ({"score": 3.0, "step": 2} if larger else {"score": 0.5, "step": 3})
        with pytest.raises(decoupled.TrainingError, match="not finite: the metric score"):
            monitor.evaluation("test", 9, 1, {"score": np.nan, "loss": 0.0})
        other = Monitor(listener, listener, [])
        other.go_on(monitor.notes())  # the config was changed
        assert other.best is None


MINE = """
import numpy as np
from flax import linen as nn
from decoupled import from_linen
from decoupled.training.objectives import Metric

x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)


def values():
    return x, x[:, 0] * 2


def labels():
    return x, x > 0


def tokens():
    t = np.arange(500).reshape(100, 5) % 7
    return t, t


def embedded(num_outputs):
    return [from_linen(nn.Embed(7, 4)), from_linen(nn.Dense(num_outputs))]


class Fails:
    def __len__(self):
        return 5

    def __getitem__(self, i):
        return [][i]


def fails():
    return Fails()


def mean(output, y):
    return abs(output - y).mean()


def each(output, y):
    return abs(output - y).sum(1)


def broken(output, y):
    return output.no_such_thing


error = Metric("error", each, larger_is_better=False)
loss = each
"""


here = folder_with("tasks", MINE)


def config(**changes):
    result = digits.get_config()
    result.validation_examples, result.batch_size = 20, 10
    result.model.mlp.width, result.model.mlp.depth = 8, 1
    result.update_from_flattened_dict(changes)
    return result


VALUES_TASK = {"dataset": "tasks:values", "loss": "squared_error", "metric": "mean_squared_error"}
TASKS = {
    "values": VALUES_TASK,
    "labels": {
        "dataset": "tasks:labels",
        "loss": "sigmoid_cross_entropy",
        "metric": "multilabel_accuracy",
    },
    "tokens": {"dataset": "tasks:tokens", "model.name": "tasks:embedded"},
    "own": {**VALUES_TASK, "loss": "tasks:each", "metric": "tasks:error"},
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("estimator", ["linear", "local_loss", "direct_feedback_alignment"])
def test_tasks(task, estimator, here):
    """Built, with the whole of a step traced: by estimators that see targets, losses and output errors."""
    if task == "tokens" and estimator != "linear":  # which have one output an example
        with pytest.raises(decoupled.UsageError, match=r"batch_axes=2|made for 7 outputs, .* has 35"):
            build(config(**TASKS[task], **{"estimator.name": estimator}))
        return
    job = build(config(**TASKS[task], **{"estimator.name": estimator}))
    x = jax.eval_shape(job.preprocess.evaluate, job.dataset.train.images[:10])
    state = jax.eval_shape(job.learner.init, jax.random.key(0), x, job.dataset.train.labels[:10])
    output = jax.eval_shape(job.learner.predict, state, x)
    assert (
        output.shape == {"values": (10, 1), "labels": (10, 3), "tokens": (10, 5, 7), "own": (10, 1)}[task]
    )
    assert job.description.get("metric", "accuracy") == job.metric.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "tasks:values"}, r"accuracy takes .*float32 \(10, 1\): choose another config.metric"),
        ({**VALUES_TASK, "loss": "softmax_cross_entropy"}, "the log loss takes"),
        ({**VALUES_TASK, "loss": "squared"}, "config.loss is 'squared': choose one of .*module:function"),
        ({**VALUES_TASK, "metric": "mse"}, "config.metric is 'mse': choose one of accuracy, mean_absolute"),
        ({**VALUES_TASK, "metric": "tasks:mean"}, r"config.metric gives .* one number an example, \(10,\)"),
        ({**VALUES_TASK, "metric": "tasks:x"}, "config.metric is 'tasks:x', which is a ndarray: name a"),
        ({**VALUES_TASK, "metric": "tasks:loss"}, "whose name loss something else in a run has"),
        ({**VALUES_TASK, "metric": "tasks:broken"}, r"own fails: .*tasks.py, line \d+: AttributeError"),
        ({**VALUES_TASK, "loss": "tasks:mean"}, r"the loss of an output \(10, 1\) has shape \(\)"),
        ({**VALUES_TASK, "loss": "tasks:broken"}, r"own fails: .*tasks.py, line \d+: AttributeError"),
        ({"dataset": "tasks:fails"}, r"'tasks:fails', and .*tasks.py, line \d+: IndexError: list index"),
        ({**VALUES_TASK, "data_dir": "/x", "crop_padding": 1}, "are no images"),
    ],
)
def test_mistakes(changes, message, here):
    with pytest.raises(decoupled.UsageError, match=message) as told:
        build(config(**changes))
    assert "\n" not in str(told.value)


def test_a_metric_is_a_function_or_a_metric():
    metric = METRICS["mean_squared_error"]
    assert own_metric("w", "x", metric) is metric
    assert own_metric("w", "x", len) == Metric("x", len, larger_is_better=True)

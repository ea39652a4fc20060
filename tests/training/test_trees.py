"""Inputs and targets of several arrays, from a data set of one's own through a whole run."""

import sys

import numpy as np
import pytest

import decoupled
from configs import digits
from decoupled.training import Workdir, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.predict import load_predictor
from tests.helpers import folder_with

pytestmark = pytest.mark.usefixtures("undrawn")

MINE = """
import jax.numpy as jnp
import numpy as np
from decoupled import estimators, from_functions, losses

rng = np.random.default_rng(0)
n = 53
pair = rng.integers(5, size=n), rng.normal(size=(n, 2, 3))
x = {"wide": rng.normal(size=(n, 4)).astype(np.float32), "pair": pair}
y = {"class": rng.integers(3, size=n), "value": rng.normal(size=n)}
weight = rng.integers(0, 3, size=n)


def part(rows):
    return {"x": {"wide": x["wide"][rows], "pair": tuple(leaf[rows] for leaf in x["pair"])},
            "y": {name: leaf[rows] for name, leaf in y.items()}, "weight": weight[rows]}


def arrays():
    return {"train": part(slice(40)), "test": part(slice(40, None)), "num_outputs": 4}


def without_width():
    return {"train": part(slice(40)), "test": part(slice(40, None))}


def other_parts():
    return {"train": part(slice(40)), "test": {**part(slice(40)), "x": x["wide"][:40]}, "num_outputs": 4}


class Examples:
    def __init__(self, start, end):
        self.numbers = range(start, end)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, i):
        return part(self.numbers[i])


def one_by_one():
    return {"train": Examples(0, 40), "test": Examples(40, n), "num_outputs": 4}


def first(params, h):
    token, matrix = h["pair"]
    wide = jnp.tanh(h["wide"] @ params["w"])
    return {"wide": wide, "token": token, "flat": matrix.reshape(len(token), 6)}


def second(params, h):
    joined = jnp.concatenate([h["wide"], h["flat"], params["table"][h["token"]]], 1)
    return {"class": joined @ params["v"], "value": joined @ params["u"]}


def network():
    import jax
    def init(**shapes):
        return lambda key, h: {name: 0.3 * jax.random.normal(key, shape) for name, shape in shapes.items()}
    return [
        from_functions(init(w=(4, 4)), first, "first"),
        from_functions(init(table=(5, 2), v=(12, 3), u=(12, 1)), second, "second"),
    ]


def estimator(context):
    return estimators.joined(estimators.linear(context))


def loss(output, y):
    return losses.softmax_cross_entropy(output["class"], y["class"]) + losses.squared_error(
        output["value"], y["value"]
    )


def right(output, y):
    return output["class"].argmax(-1) == y["class"]
"""


here = folder_with("forest", MINE)


def config(**changes):
    result = digits.get_config()
    names = {"dataset": "arrays", "model.name": "network", "estimator.name": "estimator"}
    names |= {"loss": "loss", "metric": "right"}
    settings = {field: f"forest:{name}" for field, name in names.items()}
    settings |= {"batch_size": 8, "validation_examples": 0, "epochs": 1, "optimizer.name": "sgd"}
    result.update_from_flattened_dict({**settings, "estimator_optimizer.name": "sgd", **changes})
    return result


def test_a_run_trains_evaluates_and_predicts(here):
    settings = config()
    with Workdir(here / "run", settings.to_dict()) as workdir:
        summary = train_and_evaluate(build(settings), workdir)
    assert summary["modules"][0]["output"] == [[6], [], [4]]  # by name: flat, token, wide
    mine, predict = sys.modules["forest"], load_predictor(here / "run")
    test = mine.part(slice(40, None))
    logits, values = (np.asarray(predict(test["x"])[name], np.float64) for name in ("class", "value"))
    labels, counts = test["y"]["class"], test["weight"]
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(13), labels]
    each += 0.5 * (values[:, 0] - test["y"]["value"]) ** 2
    assert summary["test_loss"] == pytest.approx(np.average(each, weights=counts), rel=1e-5)
    expected = np.average(logits.argmax(1) == labels, weights=counts)
    assert summary["test_right"] == pytest.approx(expected, rel=1e-5)
    for x, message in (
        (
            test["x"]["wide"],
            "images are array, but this network takes {'pair': .array, array., 'wide'",
        ),
        (
            {**test["x"], "wide": np.zeros((2, 5))},
            r"images\['wide'\] are float64 of shape \(2, 5\), but",
        ),
    ):
        with pytest.raises(decoupled.UsageError, match=message):
            predict(x)


def test_examples_one_by_one_make_the_same_arrays(here):
    found, expected = (build(config(dataset=f"forest:{name}")).dataset for name in ("one_by_one", "arrays"))
    assert found.fingerprint() == expected.fingerprint()
    assert found.train.images["pair"][1].dtype == np.float32
    assert found.train.labels["value"].shape == (40, 1)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["mesh", "shard_map", "pmap", "dispatched", "stream"])
def test_every_way_trains_the_same(way, here):
    changes = {"step": way} if way == "dispatched" else {"parallel.mode": way}
    if way == "stream":
        changes = {"stream": True, "dataset": "forest:one_by_one"}
    losses = []
    for path, settings in (("one", config()), ("other", config(**changes))):
        with Workdir(here / path, settings.to_dict()) as workdir:
            losses.append(train_and_evaluate(build(settings), workdir)["test_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"dataset": "forest:without_width"},
            decoupled.UsageError,
            "targets are several arrays, which do not",
        ),
        ({"dataset": "forest:other_parts"}, decoupled.DataError, "examples to train with have other parts"),
        ({"crop_padding": 1}, decoupled.UsageError, "but inputs are several arrays, and no images"),
        (
            {"loss": "softmax_cross_entropy"},
            decoupled.UsageError,
            "^config.loss is .*, which is for one array, but a target has several",
        ),
        (
            {"metric": "accuracy"},
            decoupled.UsageError,
            "^config.metric is .*one array, but",
        ),
        ({"estimator.name": "linear"}, decoupled.UsageError, "estimators.joined"),
    ],
)
def test_mistakes(changes, error, message, here):
    with pytest.raises(error, match=message) as told:
        build(config(**changes))
    assert "\n" not in str(told.value)

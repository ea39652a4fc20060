"""Whole runs on real data, in this process: accuracy, files on disk, and what stops a run."""

import itertools
import json
import re

import chex
import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import decoupled
from configs import digits
from decoupled.training import Workdir, read_metrics, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.step import evaluator, no_totals, train_step


def config(**changes):
    result = digits.get_config()
    result.update_from_flattened_dict(changes)
    return result


def run(path, **changes):
    settings = config(**changes)
    with Workdir(path, settings.to_dict()) as workdir:
        return train_and_evaluate(build(settings), workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "new" / "run"
    return path, run(path, epochs=25)


def test_digits_are_learnt_through_synthetic_gradients(finished):
    _, summary = finished
    assert summary["test_accuracy"] >= 0.93
    assert summary["method"] == "loss_shaped"


def test_summary_says_what_was_run(finished):
    path, summary = finished
    assert json.loads((path / "summary.json").read_text(encoding="utf-8")) == summary
    promised = """dataset method model modules seed epochs steps test_accuracy test_loss
        examples_per_second seconds device versions"""
    assert set(promised.split()) <= set(summary)
    assert summary["steps"] == 25 * (1237 // 64)
    parameters = [entry["parameters"] for entry in summary["modules"]]
    assert parameters == [64 * 128 + 3 * 128, *[128 * 128 + 3 * 128] * 2, 128 * 10 + 10]
    assert summary["modules"][0]["estimator_parameters"] == 2 * 10 * 128 + 10
    stored = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(config(epochs=25).to_dict()))


def test_metrics_tell_the_run_boundary_by_boundary(finished):
    path, summary = finished
    lines = read_metrics(path)
    train = [line for line in lines if line["kind"] == "train"]
    assert train[-1]["step"] == summary["steps"]
    assert train[-1]["loss"] < 0.5 * train[0]["loss"] < 1.5
    assert all(0 <= line["accuracy"] <= 1 for line in train)
    assert all(0.2 < r2 <= 1 for r2 in train[-1]["r2"])
    assert len(train[-1]["estimator_loss"]) == 3
    alignment = [line["cosine"] for line in lines if line["kind"] == "alignment"]
    assert alignment[0] != [0, 0, 0]
    assert np.mean(alignment[-1]) > 0.4
    assert [line["epoch"] for line in lines if line["kind"] == "validation"] == [*range(1, 26)]
    tests = [line for line in lines if line["kind"] == "test"]
    assert [line["accuracy"] for line in tests] == [summary["test_accuracy"]]


def test_tensorboard_events_hold_the_same_numbers(finished):
    path, summary = finished
    (events,) = path.glob("events.out.tfevents.*")
    content, values, at = events.read_bytes(), {}, 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + size])
        values.update({value.tag: value.simple_value for value in event.summary.value})
        at += 16 + size
    assert values["test/accuracy"] == pytest.approx(summary["test_accuracy"])
    assert "alignment/cosine/boundary_2" in values


def test_report_stands_alone(finished):
    path, _ = finished
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "loss_shaped on digits" in page
    assert page.count("<svg") == 5
    for title in ("Accuracy", "Loss", "Loss of the estimator", "R²", "Alignment"):
        assert title in page
    outside = [url for url in re.findall(r'(?:src|href)="([^"]+)"', page) if not url.startswith("#")]
    assert outside == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"estimator.name": "backprop"}, marks=pytest.mark.slow),
        {"boundaries": "none"},
        pytest.param(
            {"estimator.name": "recursive_least_squares", "boundaries": "0,2", "show_test": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"estimator.name": "linear", "estimator.conditioned": False, "model.dtype": "bfloat16"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"estimator.name": "mlp", "model.norm": "layer", "validation_examples": 0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_ways_to_run(tmp_path, changes, capsys):
    summary = run(tmp_path / "run", epochs=2, **changes)
    assert summary["test_accuracy"] > 0.3
    kinds = {line["kind"] for line in read_metrics(tmp_path / "run")}
    assert ("validation" in kinds) == (changes.get("validation_examples") != 0)
    assert ("alignment" in kinds) == (changes.get("boundaries") != "none")
    tests = sum(line["kind"] == "test" for line in read_metrics(tmp_path / "run"))
    assert tests == (2 if changes.get("show_test") else 1)
    # Whoever calls it from a notebook or a script is told all the same.
    assert f"epoch 2  test accuracy {summary['test_accuracy']:.4f}" in capsys.readouterr().err


def test_evaluation_counts_every_example_once():
    job = build(config())
    images, labels = job.dataset.test
    state = job.learner.init(jax.random.key(0), job.preprocess.evaluate(images[:2]), labels[:2])
    result = evaluator(job.learner, job.preprocess, batch_size=100)(state, job.dataset.test)
    logits = job.learner.predict(state, job.preprocess.evaluate(images))
    assert result["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).mean()))
    losses = decoupled.losses.softmax_cross_entropy(logits, labels)
    assert result["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_a_network_without_hidden_layers_has_no_boundaries():
    job = build(config(**{"model.mlp.depth": 0}))
    assert (job.learner.estimators, job.description["method"]) == ((), "backprop")


def test_batches_that_leave_something_to_normalise():
    """Two examples on two devices are one batch; a map has many pixels."""
    build(config(**{"batch_size": 1, "model.norm": "layer"}))
    build(config(**{"batch_size": 1, "model.mlp.depth": 0}))
    build(config(**{"batch_size": 1, "model.name": "cnn", "model.cnn.features": (4,)}))
    settings = {"model.mlp.width": 8, "model.mlp.depth": 1, "parallel.mode": "pmap", "batch_size": 2}
    job = build(config(**{"estimator.name": "noise", **settings}))
    batch = job.execution.place_batch(tuple(part[:2] for part in job.dataset.train))
    x = job.preprocess.evaluate(job.dataset.train.images[:2])
    state = job.execution.place_state(job.learner.init(jax.random.key(0), x, batch[1]))
    key, totals = job.execution.place_state((jax.random.key(1), no_totals(job.learner)))
    job.execution.compile_step(state, totals, *batch, key)


@pytest.mark.parametrize(
    ("changes", "estimate", "fit"),
    [
        ({"estimator.name": "backprop"}, "h, incoming", "nothing"),
        ({"estimator.name": "direct_feedback_alignment"}, "h, error", "nothing"),
        ({"estimator.name": "mean_teacher", "estimator.conditioned": False}, "h", "h, y"),
        ({"estimator.name": "probe"}, "h, y", "h, y"),
        ({"estimator.name": "linear"}, "h, y", "h, y, target"),
        ({"estimator.name": "linear", "estimator.conditioned": False}, "h", "h, target"),
        ({"estimator.name": "bp_lambda", "estimator.conditioned": False}, "h, incoming", "h, target"),
    ],
)
def test_what_an_estimate_and_a_fit_see_is_told(changes, estimate, fit):
    told = build(config(**changes)).description
    assert (told["estimate_sees"], told["fit_sees"]) == (estimate, fit)


def test_options_reach_the_learner():
    job = build(config(update_probability=0.0))
    images, labels = (part[:64] for part in job.dataset.train)
    x = job.preprocess.evaluate(images)
    state = job.learner.init(jax.random.key(0), x, labels)
    new, _ = jax.jit(job.learner.update)(state, x, labels, jax.random.key(1))
    chex.assert_trees_all_equal(new.modules, state.modules)
    assert int(new.step) == 1

    # Decoupled weight decay and the cosine schedule, with all gradients zero below the last module.
    steps = 4
    decayed = build(config(epochs=1, batch_size=300, **{"optimizer.weight_decay": 0.5}))
    kernels = [state.modules[0].params["Dense_0"]["kernel"]]
    update = jax.jit(decayed.learner.update_module[0])
    zero = jax.tree.map(jax.numpy.zeros_like, state.estimators[0].params)
    for _ in range(steps):
        step = update(state.modules[0], zero, x, labels, jax.random.key(0))
        state = state._replace(modules=(step.module, *state.modules[1:]))
        kernels.append(step.module.params["Dense_0"]["kernel"])
    shrunk = [1 - float((b / a).mean()) for a, b in itertools.pairwise(kernels)]
    rates = [1e-3 * 0.5 * (1 + np.cos(np.pi * t / steps)) for t in range(steps)]
    np.testing.assert_allclose(shrunk, 0.5 * np.array(rates), rtol=2e-2, atol=1e-6)


def test_augmentation_and_coins_change_from_step_to_step():
    settings = config(flip=True, crop_padding=2, **{"optimizer.learning_rate": 0.0, "model.norm": "none"})
    job = build(settings)
    batch = tuple(part[:64] for part in job.dataset.train)
    state = job.learner.init(jax.random.key(0), job.preprocess.evaluate(batch[0]), batch[1])
    step = jax.jit(train_step(job.learner, job.preprocess))
    losses = []
    for _ in range(2):
        state, totals = step(state, no_totals(job.learner), *batch, jax.random.key(5))
        losses.append(float(totals.loss))
    plain = job.learner.loss(job.learner.predict(state, job.preprocess.evaluate(batch[0])), batch[1])
    assert len({*losses, float(plain.mean())}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "imagenet"}, "config.dataset is 'imagenet': choose one of cifar10, cifar100, digits"),
        (
            {"estimator.name": "lineer"},
            "config.estimator.name is 'lineer': choose one of auxiliary_network, backprop,",
        ),
        (
            {"model.name": "alexnet"},
            "config.model.name is 'alexnet': choose one of cnn, gpt, mlp, resnet, ",
        ),
        ({"model.norm": "group"}, "config.model.norm is 'group': choose one of batch, layer, none"),
        ({"boundaries": "3"}, "cannot cut after layer 3"),
        ({"boundaries": "first"}, "config.boundaries is 'first': say all, none, layer indices"),
        ({"boundaries": "even:9"}, "config.boundaries is 'even:9', but the network has"),
        (
            {"batch_size": 1},
            "normalisation of one example leaves nothing of it: choose a larger batch .*norm=layer",
        ),
        (
            {"estimator.name": "local_loss", "estimator.conditioned": False},
            "config.estimator.conditioned is False, but every estimate of local_loss is made of the labels",
        ),
        (
            {
                "estimator.name": "bp_lambda",
                "estimator.bp_lambda.estimator": "probe",
                "estimator.conditioned": False,
            },
            "config.estimator.conditioned is False, but every estimate of probe is made of the labels",
        ),
        (
            {"estimator.name": "similarity", "estimator.conditioned": False},
            r"needs a context that encodes y \(config.estimator.conditioned\)",
        ),
        (
            {"estimator.name": "direct_random_target_projection", "estimator.conditioned": False},
            r"needs a context \(config.estimator.conditioned\): it projects the label",
        ),
        ({"data_dir": "/data"}, "config.data_dir is '/data', but digits is in no folder: leave it out"),
        ({"batch_size": 2000}, "batch_size is 2000, but there are only 1237"),
        ({"epochs": 0}, "config.epochs is 0: choose a whole number from 1 to 2147483647"),
        ({"update_probability": 1.5}, "config.update_probability is 1.5"),
        ({"optimizer.learning_rate": float("nan")}, "config.optimizer.learning_rate is nan"),
        (
            {"optimizer.schedule": "stop"},
            "schedule is 'stop': choose one of constant, cosine",
        ),
        ({"estimator_optimizer.schedule": "stop"}, "config.estimator_optimizer.schedule is 'stop'"),
        ({"epochs": 2**31 - 1}, "which makes 40802189293 steps: choose so few"),
        ({"validation_examples": 1437}, "validation_examples is 1437"),
        ({"seed": -1}, "config.seed is -1: choose a whole number from 0 to 4294967295"),
        ({"crop_padding": 9}, "crop_padding is 9: shifted so far"),
        ({"cutout": 15}, "cutout is 15: from 15 on, the square leaves nothing"),
        ({"model.mlp.dropout": 2.0}, "config.model.mlp.dropout is 2.0"),
        (
            {"model.cnn.features": (8, 0)},
            r"config.model.cnn.features is \(8, 0\): choose a tuple of whole numbers",
        ),
        ({"estimator.mlp.hidden": (4.5,)}, r"config.estimator.mlp.hidden is \(4.5,\)"),
        ({"estimator.name": "convolutional"}, "convolutional synthetic gradient needs activations"),
        ({"model.name": "cnn", "model.cnn.features": (4, 4, 4, 4)}, "1x1 is too small an image"),
        ({"model.name": "vgg"}, "1x1 is too small an image"),
        (
            {"model.name": "vgg", "model.vgg.layers": "8,pol"},
            "config.model.vgg.layers is '8,pol': say numbers",
        ),
        ({"model.name": "resnet", "model.resnet.depth": 18}, "no ResNet for small images has 18 layers"),
        ({"model.name": "vit", "model.vit.heads": 5}, "5 heads cannot share a width of 192"),
        ({"model.name": "vit", "model.vit.patch_size": 3}, "8x8 cannot be cut into patches of 3x3"),
        (
            {"estimator.name": "recursive_least_squares", "estimator.recursive_least_squares.decay": 1.5},
            r"recursive_least_squares.decay is 1.5: choose a number from 0 up to, but not, 1",
        ),
    ],
)
def test_wrong_configs_are_refused_by_name(changes, message):
    with pytest.raises(decoupled.UsageError, match=message):
        build(config(**changes))

"""Whole runs on real data, in this process: accuracy, files on disk, and what stops a run."""

import json
import re

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import decoupled
from configs import digits
from decoupled.builder import build
from decoupled.training import Workdir, read_metrics, train_and_evaluate
from decoupled.training.step import evaluator


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
    assert json.loads((path / "summary.json").read_text()) == summary
    promised = """dataset method model modules seed epochs steps test_accuracy test_loss
        examples_per_second seconds device versions"""
    assert set(promised.split()) <= set(summary)
    assert summary["steps"] == 25 * (1237 // 64)
    parameters = [entry["parameters"] for entry in summary["modules"]]
    assert parameters == [64 * 128 + 3 * 128, *[128 * 128 + 3 * 128] * 2, 128 * 10 + 10]
    assert summary["modules"][0]["estimator_parameters"] == 2 * 10 * 128 + 10
    stored = json.loads((path / "config.json").read_text())
    assert stored == json.loads(json.dumps(config(epochs=25).to_dict()))


def test_metrics_tell_the_run_boundary_by_boundary(finished):
    path, summary = finished
    lines = read_metrics(path)
    train = [line for line in lines if line["kind"] == "train"]
    assert train[-1]["step"] == summary["steps"]
    assert train[-1]["loss"] < 0.5 * train[0]["loss"] < 1.5
    assert all(0 <= line["accuracy"] <= 1 for line in train)
    assert all(0.2 < r2 <= 1 for r2 in train[-1]["r2"])
    assert len(train[-1]["sg_loss"]) == 3
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
    page = (path / "report.html").read_text()
    assert "loss_shaped on digits" in page
    assert page.count("<svg") == 5
    for title in ("Accuracy", "Loss", "SG loss", "R²", "Alignment"):
        assert title in page
    outside = [url for url in re.findall(r'(?:src|href)="([^"]+)"', page) if not url.startswith("#")]
    assert outside == []


def test_a_run_can_be_repeated_exactly(tmp_path):
    runs = []
    for name in ("one", "two"):
        run(tmp_path / name, epochs=2, **{"model.mlp.dropout": 0.1, "update_probability": 0.5})
        lines = read_metrics(tmp_path / name)
        runs.append([{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator.name": "backprop"},
        {"boundaries": "none"},
        {"estimator.name": "recursive_least_squares", "boundaries": "0,2", "show_test": True},
        {"estimator.name": "linear", "estimator.conditioned": False, "model.dtype": "bfloat16"},
        {"estimator.name": "mlp", "model.norm": "layer", "validation_examples": 0},
    ],
)
def test_other_ways_to_run(tmp_path, changes):
    summary = run(tmp_path / "run", epochs=2, **changes)
    assert summary["test_accuracy"] > 0.3
    kinds = {line["kind"] for line in read_metrics(tmp_path / "run")}
    assert ("validation" in kinds) == (changes.get("validation_examples") != 0)
    assert ("alignment" in kinds) == (changes.get("boundaries") != "none")
    tests = sum(line["kind"] == "test" for line in read_metrics(tmp_path / "run"))
    assert tests == (2 if changes.get("show_test") else 1)


def test_evaluation_counts_every_example_once():
    job = build(config())
    images, labels = job.dataset.test
    state = job.learner.init(jax.random.key(0), job.preprocess.evaluate(images[:2]), labels[:2])
    result = evaluator(job.learner, job.preprocess, batch_size=100)(state, job.dataset.test)
    logits = job.learner.predict(state, job.preprocess.evaluate(images))
    assert result["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).mean()))
    losses = decoupled.losses.softmax_cross_entropy(logits, labels)
    assert result["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("field", ["optimizer", "estimator_optimizer"])
def test_numbers_that_run_away_stop_the_run(tmp_path, field):
    message = r"^not finite at step 19: .*gradient after hidden_2: lower config\.optimizer\.learning_rate"
    with pytest.raises(decoupled.TrainingError, match=message):
        run(tmp_path / "run", epochs=2, **{"model.norm": "none", f"{field}.learning_rate": 1e30})
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_workdir_holds_one_run_and_must_be_writable(finished, tmp_path):
    with pytest.raises(decoupled.UsageError, match="already holds a run"):
        Workdir(finished[0], {})
    (tmp_path / "file").write_text("")
    with pytest.raises(decoupled.UsageError, match=r"cannot write to .*: choose another --workdir"):
        Workdir(tmp_path / "file" / "run", {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "imagenet"}, "config.dataset is 'imagenet': choose one of cifar10, cifar100, digits"),
        ({"estimator.name": "lineer"}, "config.estimator.name is 'lineer': choose one of backprop, conv"),
        ({"model.name": "vit"}, "config.model.name is 'vit': choose one of cnn, mlp"),
        ({"model.norm": "group"}, "config.model.norm is 'group': choose one of batch, layer, none"),
        ({"boundaries": "3"}, "cannot cut after layer 3"),
        ({"boundaries": "first"}, "config.boundaries is 'first': say all, none, or layer indices"),
        ({"batch_size": 2000}, "batch_size is 2000, but there are only 1237"),
        ({"epochs": 0}, "config.epochs is 0: it must be at least 1"),
        ({"update_probability": 1.5}, "config.update_probability is 1.5"),
        ({"optimizer.learning_rate": float("nan")}, "config.optimizer.learning_rate is nan"),
        ({"optimizer.schedule": "step"}, "schedule is 'step': choose one of constant, cosine"),
        ({"validation_examples": 1437}, "validation_examples is 1437"),
    ],
)
def test_wrong_configs_are_refused_by_name(changes, message):
    with pytest.raises(decoupled.UsageError, match=message):
        build(config(**changes))

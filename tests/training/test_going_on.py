"""A run that is trained further, or may not be; the best network on the way, and what it predicts."""

import concurrent.futures
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoupled
from configs import digits
from decoupled import LearnerState, data
from decoupled.training import (
    Workdir,
    builder,
    load_trained,
    new_workdir,
    read_metrics,
    resume,
    train_and_evaluate,
)
from decoupled.training.builder import build
from decoupled.training.going_on import changes_to_go_on_with
from decoupled.training.predict import load_predictor

pytestmark = pytest.mark.usefixtures("undrawn")

SETTINGS = {
    "model.mlp.width": 8,
    "model.mlp.depth": 1,
    "estimator.name": "linear",
    "optimizer.schedule": "constant",
    "optimizer.learning_rate": 0.1,
    "estimator_optimizer.schedule": "constant",
    "average_decay": 0.8,
    "batch_size": 256,
    "log_every": 3,
    "alignment_every": 5,
    "show_test": True,
}


def config(**changes):
    result = digits.get_config()
    result.update_from_flattened_dict({**SETTINGS, **changes})
    return result


def run(path, accept_changes=False, fingerprint="", **changes):
    settings = config(**changes)
    job = build(settings)
    job = job._replace(fingerprint=fingerprint or job.fingerprint)
    with Workdir(path, settings.to_dict(), accept_changes) as workdir:
        return train_and_evaluate(job, workdir)


def told(path):
    lines = read_metrics(path)
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]


def content(path):
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def states(path, *kinds):
    job = build(config())
    x = jax.eval_shape(job.preprocess.evaluate, job.dataset.train.images[:2])
    like = jax.eval_shape(job.learner.init, jax.random.key(0), x, job.dataset.train.labels[:2])
    return [load_trained(str(path), like, kind) for kind in kinds]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, run(str(path), epochs=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished")
    return path, run(path, epochs=2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"model.mlp.width": 9, "epochs": 4},
            decoupled.UsageError,
            r"step 8 does not fit the changed config \(config.epochs was 2, is 4; config.model.mlp.width"
            r" was 8, is 9\): set back what changes the network",
        ),
        (
            {"parallel.mode": "pipeline", "epochs": 4},
            decoupled.UsageError,
            r"config.parallel.mode was 'none', is 'pipeline'\): set back .* \(in a pipeline",
        ),
        (
            # Twice as many epochs, of a third of the steps.
            {"batch_size": 1000, "epochs": 4},
            decoupled.UsageError,
            "has done 8 steps, but this config ends it after 4: choose more config.epochs",
        ),
        (
            {"fingerprint": "ab" * 32, "epochs": 4},
            decoupled.DataError,
            "step 8 is of a run on other data than those from scikit-learn's wheel: give it the same",
        ),
    ],
)
def test_a_run_that_may_not_go_on_is_as_it_was(finished, changes, error, message):
    path, _ = finished
    before = content(path)
    with pytest.raises(error, match=message):
        run(path, accept_changes=True, **changes)
    assert content(path) == before


def copied(finished, tmp_path):
    path, summary = finished
    return shutil.copytree(path, tmp_path / "run"), summary


def test_a_finished_run_that_is_trained_further_is_as_the_longer_run(whole, finished, tmp_path):
    (other, longer), (path, shorter) = whole, copied(finished, tmp_path)
    summary = run(path, epochs=4)
    assert (shorter["steps"], summary["steps"], summary["resumed_at"]) == (8, 16, 8)
    assert told(path) == told(other)
    chex.assert_trees_all_equal(states(path, "trained", "best"), states(other, "trained", "best"))
    for field in ("test_accuracy", "test_loss", "best_validation", "data"):
        assert summary[field] == longer[field]
    assert json.loads((path / "summary_at_step_8.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(shorter)
    )


@pytest.mark.parametrize("section", ["optimizer", "estimator_optimizer"])
@pytest.mark.parametrize("drawn_out", [{"schedule": "step"}, {"warmup_fraction": 0.1}])
def test_what_is_drawn_out_over_all_epochs_needs_a_flag(section, drawn_out, tmp_path):
    settings = config(epochs=2, **{f"{section}.{field}": value for field, value in drawn_out.items()})
    (tmp_path / "config.json").write_text(json.dumps(settings.to_dict()), encoding="utf-8")
    longer = {**settings.to_dict(), "epochs": 4}
    with pytest.raises(decoupled.UsageError, match="is drawn out over all epochs, and so is a warm-up"):
        changes_to_go_on_with(tmp_path, longer, finished=True, accept_changes=False)


@pytest.mark.slow
def test_a_pipeline_is_trained_further_from_what_was_on_its_way(tmp_path):
    pipeline = {"parallel.mode": "pipeline", "model.mlp.depth": 2}
    run(tmp_path / "whole", epochs=4, **pipeline)
    run(tmp_path / "parts", epochs=2, **pipeline)
    run(tmp_path / "parts", epochs=4, **pipeline)
    assert told(tmp_path / "parts") == told(tmp_path / "whole")


@pytest.mark.slow
def test_going_on_in_another_mode_whose_state_is_the_same(whole, finished, tmp_path):
    """On a mesh, with the numbers of one device but for rounding."""
    (_, expected), (path, _) = whole, copied(finished, tmp_path)
    with pytest.raises(
        decoupled.UsageError, match=r"\(config.parallel.mode was 'none', is 'mesh'\): choose"
    ):
        run(path, epochs=4, **{"parallel.mode": "mesh"})
    summary = run(path, accept_changes=True, epochs=4, **{"parallel.mode": "mesh"})
    assert (summary["resumed_at"], summary["parallel"]) == (8, "mesh")
    assert summary["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-3)


def test_the_summary_says_where_data_came_from(whole):
    _, summary = whole
    assert summary["data"] == {
        "source": "scikit-learn's wheel",
        "fingerprint": data.digits().fingerprint(),
    }


def test_the_best_network_is_kept_and_predicts_from_the_workdir_alone(whole, monkeypatch):
    path, summary = whole
    lines = [line for line in read_metrics(path) if line["kind"] == "validation"]
    best = max(lines, key=lambda line: line["accuracy"])  # the first of them
    assert summary["best_validation"] == {"accuracy": best["accuracy"], "step": best["step"]}
    assert [int(folder.name) for folder in (path / "best").iterdir()] == [best["step"]]

    dataset = data.digits()
    _, held_out = data.hold_out(dataset.train, 200)
    monkeypatch.setattr(builder, "_dataset", None)  # no data at hand
    for which, split, accuracy in (
        ("trained", dataset.test, summary["test_accuracy"]),
        ("best", held_out, best["accuracy"]),
    ):
        logits = load_predictor(str(path), which)(split.images)
        assert logits.dtype == np.float32
        assert np.mean(np.asarray(logits).argmax(-1) == split.labels) == pytest.approx(accuracy)


def test_what_does_not_predict(whole, tmp_path):
    path, _ = whole
    predict = load_predictor(path)
    for images in (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 9, 8, 1), np.uint8), np.zeros((2, 8, 8, 1))):
        with pytest.raises(decoupled.UsageError, match=r"takes uint8 of shape \(examples, 8, 8, 1\)"):
            predict(images)
    with pytest.raises(decoupled.UsageError, match=r"holds no run of train.py: .*config.json"):
        load_predictor(tmp_path)
    with pytest.raises(
        decoupled.UsageError, match="there is no 'last' network of a run: choose 'trained' or"
    ):
        load_predictor(path, "last")


def test_what_is_no_config_of_this_version_does_not_predict(whole, tmp_path):
    path, _ = whole
    shutil.copy(path / "data.json", tmp_path)
    saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
    older = {**saved, "optimizer": {**saved["optimizer"]}}
    del older["optimizer"]["clip_norm"]
    for written, message in (
        ({}, r"config\.\S+ is missing"),
        (older, "config.optimizer.clip_norm is missing"),
        ({**saved, "epochs": "3"}, "config.epochs is '3': choose a whole number"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(written), encoding="utf-8")
        with pytest.raises(decoupled.UsageError, match=message) as caught:
            load_predictor(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")


def test_the_best_network_is_that_of_the_checkpoint_that_is_gone_on_from(tmp_path):
    def best():
        shape = jax.ShapeDtypeStruct((), jnp.int32)
        return int(load_trained(tmp_path, LearnerState(shape, (), ()), "best").step)

    def opened():
        workdir = Workdir(tmp_path, {})
        saved = workdir.resume(print)
        workdir.go_on(print)
        return workdir, saved

    workdir, _ = opened()
    with workdir:
        for step in (1, 2, 3, 4):
            workdir.log("train", step, {"loss": 1.0})
            workdir.save_best(LearnerState(jnp.int32(step), (), ()), step)
            if step in (2, 3):
                workdir.checkpoint(step, {"w": np.int32(step)}, {})
    assert best() == 4
    workdir, saved = opened()
    workdir.close()
    assert (saved.step, best()) == (3, 3)
    for file in (tmp_path / "checkpoints" / "3").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    workdir, saved = opened()
    assert (saved.step, best()) == (2, 2)
    with workdir:
        workdir.finish({"steps": 2}, lambda summary, lines: "page")
    assert best() == 2
    with pytest.raises(decoupled.DataError, match=r"holds no best network: train.py writes it where"):
        load_trained(tmp_path / "elsewhere", LearnerState(jnp.int32(0), (), ()), "best")


def test_other_data_in_another_process(monkeypatch):
    monkeypatch.setattr(resume, "_from_first_process", lambda tree: tree + 1)
    with pytest.raises(decoupled.DataError, match=r"process 0 has other data, from here, than process 0"):
        resume.check_data("ab" * 32, "here", None)


def test_runs_that_start_together_have_folders_of_their_own(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_workdir(str(tmp_path / "runs" / "digits"), "now"), range(8)))
    assert {path.name for path in made} == {"now", *(f"now-{number}" for number in range(2, 9))}
    assert sorted(made) == sorted((tmp_path / "runs" / "digits").iterdir())
    (tmp_path / "file").write_text("", encoding="utf-8")
    for parent in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(decoupled.UsageError, match=r"file.*: choose a --workdir"):
            new_workdir(parent, "now")

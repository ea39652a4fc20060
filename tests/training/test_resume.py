"""A run that was stopped and goes on is the run that was not, bit for bit."""

import json
import os
import signal

import chex
import jax
import pytest

import decoupled
from configs import digits
from decoupled.training import Workdir, feeds, load_trained, read_metrics, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.interruption import StopRequests

pytestmark = pytest.mark.usefixtures("undrawn")


def config(**changes):
    result = digits.get_config()
    result.update_from_flattened_dict(
        {
            "model.mlp.width": 16,
            "model.mlp.depth": 1,
            "batch_size": 128,
            "epochs": 2,
            "log_every": 4,
            "alignment_every": 5,
            "checkpoint_every": 0,
            "show_test": True,
            **changes,
        }
    )
    return result


def run(path, settings, stop_at=None, accept_changes=False, job=None):
    """Trains; at the report of step `stop_at` it is asked to stop, as by a person or a scheduler."""
    with Workdir(path, settings.to_dict(), accept_changes) as workdir:
        log = workdir.log

        def log_and_ask(kind, step, values):
            log(kind, step, values)
            if kind == "train" and step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        workdir.log = log_and_ask
        return train_and_evaluate(job or build(settings), workdir)


def told(path):
    lines = read_metrics(path)
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]


def trained(path, job):
    x = jax.eval_shape(job.preprocess.evaluate, job.dataset.train.images[:2])
    like = jax.eval_shape(job.learner.init, jax.random.key(0), x, job.dataset.train.labels[:2])
    return load_trained(path, like)


QUICK = {
    "update probability": {"update_probability": 0.5, "model.mlp.dropout": 0.1},
}
SLOW = {
    "pipeline": {"parallel.mode": "pipeline", "parallel.stages": 2},
    "batches that are brought": {},
    "batches that are brought to a mesh": {"parallel.mode": "mesh", "parallel.devices": 2},
    "least squares": {"estimator.name": "recursive_least_squares"},
    "dispatched": {"step": "dispatched"},
    "stacked": {"step": "stacked", "model.mlp.depth": 3},
    "mesh": {"parallel.mode": "mesh", "parallel.devices": 2},
    "shard_map": {"parallel.mode": "shard_map", "parallel.devices": 2},
    "pmap": {"parallel.mode": "pmap", "parallel.devices": 2},
    "deep pipeline": {"parallel.mode": "pipeline", "parallel.stages": 2, "model.mlp.depth": 4},
}


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_stopped_and_gone_on_is_as_never_stopped(case, tmp_path, monkeypatch):
    settings = config(**{**QUICK, **SLOW}[case])
    monkeypatch.setattr(feeds, "fits_on_device", lambda arrays: "brought" not in case)
    job = build(settings)
    whole = run(tmp_path / "whole", settings, job=job)
    # A stop falls on the step after the report that asks for it, and so between two reports; an epoch has 9
    # steps.
    for stop in (4, 12):
        with pytest.raises(decoupled.Interrupted, match="stopped by SIGTERM after step") as stopped:
            run(tmp_path / "parts", settings, stop_at=stop, job=job)
        assert stopped.value.signal == signal.SIGTERM
    parts = run(tmp_path / "parts", settings, job=job)
    assert told(tmp_path / "parts") == told(tmp_path / "whole")
    chex.assert_trees_all_equal(trained(tmp_path / "parts", job), trained(tmp_path / "whole", job))
    assert parts["test_accuracy"] == whole["test_accuracy"]
    assert (parts["resumed_at"], whole["resumed_at"]) == (stop + 1, None)
    assert parts["best_validation"] == whole["best_validation"]
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["18"]


def test_a_request_after_the_last_step_is_heeded_when_all_is_on_disk(tmp_path):
    settings = config(epochs=1, validation_examples=0, show_test=False)
    job = build(settings)
    with Workdir(tmp_path / "run", settings.to_dict()) as workdir:
        save = workdir.save

        def save_and_ask(state):
            os.kill(os.getpid(), signal.SIGTERM)
            save(state)

        workdir.save = save_and_ask
        with pytest.raises(decoupled.Interrupted, match="came after the last step: results in ") as stopped:
            train_and_evaluate(job, workdir)
    assert stopped.value.signal == signal.SIGTERM
    assert json.loads((tmp_path / "run" / "summary.json").read_bytes())["steps"] == 1437 // 128
    trained(tmp_path / "run", job)


def test_before_it_begins_signals_are_not_its_own():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequests() as requests:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            requests.begin()
            os.kill(os.getpid(), signal.SIGINT)
            assert requests.noted == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):  # the second one does what it did before
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)

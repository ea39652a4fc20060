"""Whole runs whose steps are stacked, dispatched or pipelined, against a fused one; and what is refused."""

import chex
import jax
import numpy as np
import pytest

import decoupled
from configs import digits
from decoupled.training import Workdir, read_metrics, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.step import no_totals
from tests import helpers

pytestmark = pytest.mark.usefixtures("undrawn")


def config(**changes):
    result = digits.get_config()
    result.update_from_flattened_dict(
        {
            "model.mlp.width": 16,
            "epochs": 2,
            "optimizer.learning_rate": 0.01,
            "log_every": 10,
            "alignment_every": 1000,
            **changes,
        }
    )
    return result


def run(path, **changes):
    settings = config(**changes)
    with Workdir(path, settings.to_dict()) as workdir:
        summary = train_and_evaluate(build(settings), workdir)
    return summary, [line for line in read_metrics(path) if line["kind"] == "train"]


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    return run(tmp_path_factory.mktemp("fused") / "run")


@pytest.mark.parametrize("step", helpers.gate(["stacked", "dispatched"], "stacked"))
def test_other_steps_make_the_same_run(step, fused, tmp_path):
    summary, lines = run(tmp_path / "run", step=step)
    expected, expected_lines = fused
    np.testing.assert_allclose(summary["test_loss"], expected["test_loss"], rtol=1e-3)
    for line, wanted in zip(lines, expected_lines, strict=True):
        for field in ("loss", "accuracy", "estimator_loss", "r2"):
            np.testing.assert_allclose(line[field], wanted[field], rtol=2e-2, atol=1e-3)


@pytest.mark.slow
def test_a_pipeline_learns_as_a_fused_run_does(fused, tmp_path):
    summary, lines = run(tmp_path / "run", **{"parallel.mode": "pipeline"})
    assert summary["devices"] == 2
    assert abs(summary["test_accuracy"] - fused[0]["test_accuracy"]) < 0.1
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert len(lines[-1]["r2"]) == 3
    assert lines[-1]["r2"][1] > 0  # between the stages


def test_totals_of_a_pipeline_start_anew_when_they_have_been_read():
    job = build(config(**{"parallel.mode": "pipeline", "model.mlp.depth": 1}))
    images, labels = (part[:64] for part in job.dataset.train)
    state = job.learner.init(jax.random.key(0), job.preprocess.evaluate(images), labels)
    step = job.execution.compile_step()
    state, totals = step(state, no_totals(job.learner), images, labels, jax.random.key(1))
    for _ in range(3):
        state, totals = step(state, totals, images, labels, jax.random.key(1))
    assert float(totals.steps) == 3  # the last is on its way
    state, totals = step(state, no_totals(job.learner), images, labels, jax.random.key(1))
    assert float(totals.steps) == 1
    chex.assert_trees_all_equal_structs(totals, no_totals(job.learner))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "fusd"}, "config.step is 'fusd': choose one of dispatched, fused, stacked"),
        ({"step": "dispatched", "parallel.mode": "mesh"}, "'dispatched', which uses one device"),
        ({"parallel.mode": "pipeline", "parallel.stages": 3}, "3 stages cannot share 2 devices equally"),
        ({"parallel.mode": "pipeline", "boundaries": "none"}, "cannot make 2 stages of 1 modules"),
        (
            {"parallel.mode": "pipeline", "parallel.stages": 1, "batch_size": 63},
            "batch_size is 63, which the 2 devices of a stage cannot share alike",
        ),
        ({"parallel.mode": "pipeline", "update_probability": 0.5}, "in a pipeline every module updates"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(decoupled.UsageError, match=message):
        build(config(**changes))

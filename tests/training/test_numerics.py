"""Numbers that are not finite, and estimators that diverge, in whole runs."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import decoupled
from configs import digits
from decoupled import data
from decoupled.data import batches_from
from decoupled.learning.state import BoundaryMetrics
from decoupled.learning.watch import Watch
from decoupled.training import Workdir, builder, feeds, read_metrics, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.monitor import Monitor
from decoupled.training.progress import Progress
from decoupled.training.step import Totals
from decoupled.training.workdir import NoWorkdir

pytestmark = pytest.mark.usefixtures("undrawn")


def run(path, **changes):
    settings = digits.get_config()
    small = {"model.mlp.width": 16, "model.mlp.depth": 2, "batch_size": 128, "epochs": 2}
    settings.update_from_flattened_dict({**small, "estimator.name": "linear", **changes})
    job = build(settings)
    with Workdir(path, settings.to_dict()) as workdir:
        return train_and_evaluate(job, workdir)


def test_numbers_that_run_away_stop_the_run(tmp_path):
    message = (
        r"^not finite: .*the gradient of output, first in update (\d) \(seen at step \1; last checkpoint:"
        r" step \d\): lower config\.optimizer\.learning_rate or config\.estimator_optimizer\.learning_rate"
    )
    with pytest.raises(decoupled.TrainingError, match=message) as stopped:
        run(
            tmp_path / "run",
            **{"optimizer.learning_rate": 1e30, "model.norm": "none", "checkpoint_every": 1},
        )
    assert not (tmp_path / "run" / "summary.json").exists()
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert f"last checkpoint: step {max(kept)})" in str(stopped.value)
    assert max(kept) < int(re.search(r"first in update (\d)", str(stopped.value))[1])


@pytest.mark.parametrize("skip", [False, True])
def test_a_bad_batch(skip, tmp_path, monkeypatch):
    """The third step's batch is all white, which becomes infinite on its way into the network."""

    preprocess = data.preprocess

    def with_white(done, *arguments):
        for number, (images, labels) in enumerate(batches_from(done, *arguments), done + 1):
            yield np.full_like(images, 255) if number == 3 else images, labels

    def white_is_infinite(images, *arguments):
        usual = preprocess(images, *arguments)

        def train(key, images):
            return jnp.where(jnp.all(images == 255), jnp.inf, usual.train(key, images))

        return usual._replace(train=train)

    monkeypatch.setattr(feeds, "batches_from", with_white)
    monkeypatch.setattr(feeds, "fits_on_device", lambda arrays: False)
    monkeypatch.setattr(builder.data, "preprocess", white_is_infinite)
    changes = {"model.norm": "none", "skip_not_finite": skip}
    if not skip:
        with pytest.raises(decoupled.TrainingError, match=r"the gradient of output, first in update 3"):
            run(tmp_path / "run", **changes)
        return
    summary = run(tmp_path / "run", **changes)
    assert np.isfinite(summary["test_loss"])
    first, second = (line for line in read_metrics(tmp_path / "run") if line["kind"] == "train")
    assert first["loss"] is None
    assert second["loss"] > 0


class Listener(NoWorkdir, Progress):
    """Stands in for a run's workdir and progress."""

    path = "run"
    last_checkpoint = 40

    def __init__(self):
        self.said, self.logged = [], []

    def say(self, line):
        self.said.append(line)

    def show(self, step, values):
        pass

    def log(self, kind, step, values):
        self.logged.append(values)


def totals(loss, r2=0.0, estimator_loss=1.0):
    boundary = BoundaryMetrics(jnp.asarray(estimator_loss), jnp.asarray(estimator_loss / (1 - r2)))
    return Totals(jnp.ones(()), jnp.asarray(loss), jnp.asarray(0.5), (boundary,))


def watcher(skips=False):
    listener = Listener()
    return listener, Monitor(listener, listener, ["hidden_0"], skips)


def test_the_first_that_was_not_finite_is_named():
    _, monitor = watcher()
    watches = [Watch("the gradient of a", 9, 4, 6), Watch("the fit of b", 9, 5, 5), Watch("fine", 9, 0, 0)]
    message = r"^not finite: the fit of b, first in update 5 \(seen at step 9; last checkpoint: step 40\)"
    with pytest.raises(decoupled.TrainingError, match=message):
        monitor.check(9, watches)


def test_few_skipped_updates_are_told_and_many_stop_the_run():
    listener, monitor = watcher(skips=True)
    monitor.check(10, [Watch("the gradient of a", 10, 3, 2)])
    monitor.check(20, [Watch("the gradient of a", 20, 3, 2)])
    assert listener.said == ["the gradient of a was not finite: skipped 3 of 10 updates"]
    with pytest.raises(decoupled.TrainingError, match="not finite in 6 of the last 10 updates"):
        monitor.check(30, [Watch("the gradient of a", 30, 9, 2)])


def test_losses_of_skipped_steps_are_left_out():
    listener, monitor = watcher(skips=True)
    monitor.training(10, 1.0, totals(np.nan), 1.0)
    assert listener.logged[0]["loss"] is None
    _, strict = watcher()
    with pytest.raises(decoupled.TrainingError, match=r"^not finite: the loss"):
        strict.training(10, 1.0, totals(np.nan), 1.0)


def test_an_estimator_far_worse_than_none_is_told_once():
    listener, monitor = watcher()
    for step, r2 in enumerate((-5.0, -50.0, -60.0, 0.1, -70.0)):
        monitor.training(step, 1.0, totals(1.0, r2), 1.0)
    assert [line[:46] for line in listener.said] == [
        "step 1: the estimator after hidden_0 diverges ",
        "step 4: the estimator after hidden_0 diverges ",
    ]
    assert "(R2 -50): lower config.estimator_optimizer.learning_rate" in listener.said[0]


def test_the_best_network_is_the_first_of_the_highest_validation_accuracy():
    _, monitor = watcher()
    seen = [
        ("validation", 0.5),
        ("validation", 0.7),
        ("test", 0.9),
        ("validation", 0.6),
        ("validation", 0.7),
    ]
    best = [
        monitor.evaluation(kind, step, step, {"accuracy": accuracy, "loss": 1.0})
        for step, (kind, accuracy) in enumerate(seen, 1)
    ]
    assert best == [True, True, False, False, False]
    assert monitor.best == {"accuracy": 0.7, "step": 2}

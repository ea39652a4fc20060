"""Do stages in processes of their own keep out of each other's way, when one is slow or one is killed?

python -m benchmarks.asynchronous

Workers compute on one thread each, and the feeder is paced so that they do not fill the machine: what is
measured is who waits for whom, not how stages share too few cores.

(1) A 4-stage MLP whose third stage sleeps 9 times as long as its update usually takes: the update rates of
    the stages below it, as ratios to those of an undisturbed run at the same pace, in turns; medians.
(2) Fashion-MNIST (digits, where that is not installed): test accuracy of runs in which one worker is killed
    half-way, and of the same runs undisturbed. While its successor starts, which takes seconds, minibatches
    pass the stage by: the run must be long enough for that not to matter.
"""

import itertools
import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import decoupled
from benchmarks.one_core import THREADS
from benchmarks.part import Measured, Part, Row, Verdict, main
from configs import digits, fashion_mnist
from decoupled import data, estimators
from decoupled.asynchronous import AsyncOptions, AsyncResult, Supervisor, run_asynchronously
from decoupled.data import Dataset
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.training.step import evaluator


def make_mlp(depth: int, width: int, num_classes: int, steps: int) -> Learner:
    """Layers with a loss-shaped synthetic gradient after all but the last; Adam, 1e-3 to 0 in `steps`."""
    modules = decoupled.cut(decoupled.models.mlp(depth, width, num_classes, norm="batch"), range(depth))
    boundary = estimators.loss_shaped(num_classes, context=estimators.one_hot(num_classes))
    loss = decoupled.losses.softmax_cross_entropy
    adam = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    return decoupled.make_learner(modules, [boundary] * depth, loss, adam, adam)


def paced(batches: Iterator[Any], seconds: float) -> Iterator[Any]:
    """The batches, one every so many seconds."""
    due = time.monotonic()
    for batch in batches:
        time.sleep(max(0.0, due - time.monotonic()))
        yield batch
        due = max(due + seconds, time.monotonic() - seconds)


def slow_stage(
    minibatches: int = 400, width: int = 64, batch_size: int = 64, turns: int = 3, load: float = 0.5
) -> dict[str, Any]:
    """The third of four stages is slowed 10 times: it sleeps 9 times as long as it usually takes.

    Args:
      load: of the machine's cores, as a part, that all stages together are to be kept busy at most.

    Returns:
      The pace of the feeder (seconds a minibatch); busy seconds of an update in each stage; for each stage
      its update rate in the disturbed run as a ratio to the undisturbed one, median over the turns; what
      each stage dropped in the last disturbed run.
    """
    make = partial(make_mlp, 3, width, 10, minibatches)
    learner = make()
    rng = np.random.default_rng(0)
    batch = (
        rng.normal(size=(batch_size, 32)).astype(np.float32),
        rng.integers(10, size=batch_size).astype(np.int32),
    )
    state = jax.jit(learner.init)(jax.random.key(0), *batch)

    def run(pace: float, delays: dict[int, float]) -> AsyncResult:
        options = AsyncOptions(delays=delays, snapshot_every=10**9)
        feed = paced(itertools.repeat(batch, minibatches), pace)
        return run_asynchronously(make, state, feed, jax.random.key(1), num_stages=4, options=options)

    # Unpaced, all cores are busy: an update takes at least as long as it will.
    probe = run(0.0, {})
    busy = [report.counts.busy_seconds / report.counts.updates for report in probe.reports]
    pace = sum(busy) / (load * (os.cpu_count() or 1))
    ratios = []
    for _ in range(turns):
        calm = run(pace, {})
        # It takes the time between minibatches where that is longer than its update: ten times slower at
        # either would else not show.
        usual = calm.reports[2].counts.busy_seconds / calm.reports[2].counts.updates
        slow = run(pace, {2: 9 * max(usual, pace)})
        pairs = zip(calm.reports, slow.reports, strict=True)
        ratios.append([b.updates_per_second / a.updates_per_second for a, b in pairs])
    if not turns:
        return {"busy_seconds_an_update": busy}
    return {
        "pace_seconds": pace,
        "busy_seconds_an_update": busy,
        "rate_ratios": [statistics.median(ratio) for ratio in zip(*ratios, strict=True)],
        "rate_ratios_by_turn": ratios,
        "undisturbed_updates_per_second": [r.updates_per_second for r in calm.reports],
        "disturbed_updates_per_second": [r.updates_per_second for r in slow.reports],
        "disturbed_dropped_inputs": [r.dropped_inputs for r in slow.reports],
        "disturbed_dropped_targets": [r.dropped_targets for r in slow.reports],
    }


def killed_worker(
    epochs: int = 10,
    seeds: Sequence[int] = (0, 1, 2),
    victim: int = 1,
    pace: float = 0.02,
    width: int = 128,
) -> dict[str, Any]:
    """One of three stages is killed half-way and restarted from its snapshot, 100 updates old at most.

    Args:
      pace: seconds a minibatch; 0: as fast as the lowest stage takes them.

    Returns:
      Test accuracies, one a seed, undisturbed and with the kill; their means and sample deviations; what
      the killed runs reported.
    """
    dataset, batch_size = _images()
    preprocess = data.preprocess(dataset.train.images, 0, False)
    evaluate_images = jax.jit(preprocess.evaluate)
    batches_an_epoch = data.batches_per_epoch(dataset.train, batch_size)
    make = partial(make_mlp, 5, width, dataset.num_classes, epochs * batches_an_epoch)
    learner = make()
    evaluate = evaluator(learner, preprocess, 500)

    def batches(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for epoch in range(epochs):
            for images, labels in data.shuffled_batches(dataset.train, batch_size, seed, epoch):
                yield np.asarray(evaluate_images(images)), labels

    def run(seed: int, kill: bool) -> AsyncResult:
        first = next(batches(seed))
        init_key, run_key = jax.random.split(jax.random.key(seed))
        state: LearnerState = jax.jit(learner.init)(init_key, *first)
        with Supervisor(make, state, first, run_key, num_stages=3, options=AsyncOptions()) as supervisor:
            for number, batch in enumerate(paced(batches(seed), pace)):
                if kill and number == epochs * batches_an_epoch // 2:
                    os.kill(supervisor.pids[victim] or 0, signal.SIGKILL)
                supervisor.feed(*batch)
            return supervisor.finish()

    results = {kill: [run(seed, kill) for seed in seeds] for kill in (False, True)}
    accuracies = {
        kill: [evaluate(result.state, dataset.test)["accuracy"] for result in of_kind]
        for kill, of_kind in results.items()
    }
    return {
        "dataset": dataset.name,
        "minibatches": epochs * batches_an_epoch,
        "undisturbed": _spread(accuracies[False]),
        "killed": _spread(accuracies[True]),
        "events": [str(event) for result in results[True] for event in result.events],
        "updates": {_NAMES[kill]: [_updates(r) for r in results[kill]] for kill in results},
        "mean_staleness": {_NAMES[kill]: [_staleness(r) for r in results[kill]] for kill in results},
    }


_NAMES = {False: "undisturbed", True: "killed"}


def _updates(result: AsyncResult) -> list[int]:
    return [report.counts.updates for report in result.reports]


def _staleness(result: AsyncResult) -> list[float]:
    return [round(report.mean_staleness, 2) for report in result.reports]


def _spread(accuracies: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return {"mean": statistics.mean(accuracies), "deviation": deviation, "each": accuracies}


def _images() -> tuple[Dataset, int]:
    """Fashion-MNIST or digits, whichever is there, with the batch size of its config."""
    try:
        return data.idx_dataset(data.FASHION_MNIST, "", False), fashion_mnist.get_config().batch_size
    except decoupled.DataError:
        return data.digits(), digits.get_config().batch_size


def measure(quick: bool) -> Measured:
    jax.devices()  # This process has made its threads, so what follows concerns the workers alone.
    os.environ[THREADS] = "1"
    if quick:
        slow = slow_stage(minibatches=10, turns=0)
        busy = 1e3 * max(slow["busy_seconds_an_update"])
        return Measured([Row("busy time of an update", "slowest stage", {"stages": 4}, busy, "ms")], [])
    slow, killed = slow_stage(), killed_worker()
    rows, settings = [], {"stages": 4, "slowed": "third, 10 times"}
    for stage, ratio in enumerate(slow["rate_ratios"]):
        rate = slow["disturbed_updates_per_second"][stage]
        row = Row(RATE, f"stage {stage}", settings, rate, "updates/s", ratio, "undisturbed")
        rows.append(row)
    settings = {"dataset": killed["dataset"], "minibatches": killed["minibatches"], "stages": 3}
    for name in ("undisturbed", "killed"):
        for seed, accuracy in enumerate(killed[name]["each"]):
            rows.append(Row("test accuracy", name, {**settings, "seed": seed}, 100 * accuracy, "%"))
    for number, event in enumerate(killed["events"]):
        rows.append(Row(f"event: {event}", "killed", settings, number, "th event"))
    least = min(slow["rate_ratios"][:2])
    means = [100 * killed[name]["mean"] for name in ("undisturbed", "killed")]
    spread = 100 * max(killed[name]["deviation"] for name in ("undisturbed", "killed"))
    return Measured(
        rows,
        [
            Verdict(
                "third of four stages slowed 10 times: stages below it lose less than 10 % of their rate",
                f"{100 * (1 - least):.1f} %",
                least > 0.9,
            ),
            Verdict(
                "a worker killed half-way: accuracy of an undisturbed run, within noise",
                f"{means[1]:.2f} against {means[0]:.2f} % (standard deviation {spread:.2f})",
                means[1] > means[0] - 2 * spread,
            ),
        ],
    )


RATE = "update rate with one slow stage"

PART = Part(
    "Do stages in processes of their own keep out of each other's way?",
    "benchmarks.asynchronous",
    "Stages as processes with one thread each, fed at a pace that does not fill the machine. One stage"
    " sleeps 9 times as long as its update usually takes: update rates as ratios to an undisturbed run, in"
    " turns, medians. One of three workers is killed half-way through a run on images: test accuracy with"
    " and without, same seeds.",
    measure,
)

if __name__ == "__main__":
    main(PART)

"""Trains a network, watches it, and writes down what happened."""

import platform
import signal
import time
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

import decoupled
from decoupled.data import AnySplit, Dataset, Preprocess, batches_per_epoch
from decoupled.data.dataset import rows_of
from decoupled.errors import Interrupted
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.learning.watch import read_watches
from decoupled.training.clock import Clock, Times
from decoupled.training.execution import Execution
from decoupled.training.feeds import Run, compiled
from decoupled.training.inner_loop import Between, Pace, Position, take_steps
from decoupled.training.interruption import StopRequests, agreed
from decoupled.training.monitor import Monitor
from decoupled.training.objectives import Metric
from decoupled.training.overview import describe_modules, overview
from decoupled.training.own_names import theirs_if_so
from decoupled.training.progress import Progress, SilentProgress
from decoupled.training.report import render_report
from decoupled.training.resume import check_data, resume
from decoupled.training.saved_shapes import to_json
from decoupled.training.step import Totals, alignment_step, evaluator, no_totals
from decoupled.training.workdir import NoWorkdir, Workdir
from decoupled.types import Key, PyTree


class Job(NamedTuple):
    """All that a run needs to know.

    Attributes:
      dataset: its `train` without the examples held out.
      fingerprint: of the data before any were held out; a run goes on with no others.
      validation: held-out training examples; may be empty.
      preprocess: bytes to inputs.
      learner: the modules and how they are trained, on whole batches.
      metric: that it is judged by.
      execution: how its steps are compiled, and where state and batches live.
      description: facts about the run that go into its summary (method, model, ...).
      seed: of parameters, order of examples and all other randomness.
      epochs, batch_size: lengths; the examples left over at an epoch's end are dropped.
      log_every, alignment_every: steps between reports.
      checkpoint_every: steps between checkpoints; 0 for none but where the run ends or is asked to stop.
      skip_not_finite: whether the learner's optimizers skip updates that are not finite.
      show_test: report the test accuracy after each epoch too. It never steers anything.
      own_names: of functions of one's own, by field of the config.
    """

    dataset: Dataset
    fingerprint: str
    validation: AnySplit
    preprocess: Preprocess
    learner: Learner
    metric: Metric
    execution: Execution
    description: dict[str, Any]
    seed: int
    epochs: int
    batch_size: int
    log_every: int
    alignment_every: int
    checkpoint_every: int
    skip_not_finite: bool
    show_test: bool
    own_names: dict[str, str]


def train_and_evaluate(job: Job, workdir: Workdir | NoWorkdir) -> dict[str, Any]:
    """Runs a job to its end, from its last checkpoint if the workdir has one.

    Asked to stop, by SIGINT or SIGTERM, it does so after the steps it is at, with a checkpoint; after the
    last one, when all results are on disk.

    Returns:
      What it stored in the workdir's summary.json.

    Raises:
      UsageError: the batch is larger than the training set, or the run that is there cannot go on so; or
        a function of one's own fails.
      DataError: there are checkpoints, but none of them can be read, or they are another network's, or of a
        run on other data.
      TrainingError: a number is no longer finite, or results cannot be written.
      Interrupted: it was asked to stop.
    """
    folder = workdir.path if isinstance(workdir, Workdir) else None
    with StopRequests() as requests, theirs_if_so(job.own_names, folder):
        summary = _train_and_evaluate(job, workdir, requests)
    if stop := agreed(requests.noted):
        raise Interrupted(
            f"{signal.Signals(stop).name} came after the last step: results in {workdir.path}", stop
        )
    return summary


def _train_and_evaluate(job: Job, workdir: Workdir | NoWorkdir, requests: StopRequests) -> dict[str, Any]:
    started = time.monotonic()
    train, learner, execution = job.dataset.train, job.learner, job.execution
    steps_per_epoch = batches_per_epoch(train, job.batch_size)
    last = steps_per_epoch * job.epochs
    init_key, step_key = jax.random.split(jax.random.key(job.seed))
    first = rows_of(train, np.arange(job.batch_size))

    def init(key: Key, images: PyTree, labels: PyTree) -> LearnerState:
        return learner.init(key, job.preprocess.evaluate(images), labels)

    def place_totals() -> Totals:
        return execution.place_state(no_totals(learner))

    state = jax.jit(init)(init_key, *first[:2])
    inputs = jax.eval_shape(job.preprocess.evaluate, first[0])
    modules = describe_modules(learner, state, inputs)

    state, step_key = execution.place_state(state), execution.place_state(step_key)
    run = Run(train, job.batch_size, job.seed, job.epochs)
    steps = compiled(execution, run, state, place_totals(), step_key)
    align = execution.measure(alignment_step(learner, job.preprocess))
    at_once = min(1000, max(job.batch_size, 100))
    evaluate = evaluator(learner, job.preprocess, at_once, execution, job.metric)

    def check(done: int, state: PyTree) -> None:
        monitor.check(done, read_watches(learner.chain, *execution.of_each_link(state)))

    def report(done: int, totals: Totals) -> None:
        totals = totals._replace(boundaries=learner.each_boundary(totals.boundaries))
        speed = clock.report(done) * job.batch_size
        monitor.training(done, done / steps_per_epoch, totals, speed)

    def look(done: int, state: PyTree, batch: PyTree | None, epoch_ends: bool) -> bool:
        """Measures the network between two steps."""
        if batch is not None:
            images, labels, *weight = batch
            cosines = align(execution.whole_state(state), images, labels, step_key, *weight)
            monitor.alignment(done, jax.device_get(cosines))
        if epoch_ends:
            monitor.boundaries()
            epoch = done // steps_per_epoch
            if len(job.validation):
                result = evaluate(execution.whole_state(state), job.validation)
                if monitor.evaluation("validation", done, epoch, result):
                    workdir.save_best(execution.whole_state(state), done)
        return False

    def keep(done: int, state: PyTree, totals: PyTree) -> None:
        notes = {"times": clock.times(), "monitor": monitor.notes(), "data": job.fingerprint}
        workdir.checkpoint(done, execution.snapshot(state, totals), notes)

    def show_test(done: int, state: PyTree) -> None:
        """Not a part of any checkpoint: a run that goes on from the end of an epoch begins with this."""
        if job.show_test and 0 < done < last and done % steps_per_epoch == 0:
            result = evaluate(execution.whole_state(state), job.dataset.test)
            monitor.evaluation("test", done, done // steps_per_epoch, result)

    measurements = job.alignment_every if learner.estimators else 0
    pace = Pace(steps_per_epoch, last, job.log_every, measurements, job.checkpoint_every)
    show = Progress if jax.process_index() == 0 else SilentProgress
    with show(last) as progress:
        progress.say(
            f"{job.dataset.name}: {len(train)} training examples, from {job.dataset.source}\n"
            f"{overview(modules)}"
        )
        below = [m["name"] for m in modules[:-1]]
        monitor = Monitor(workdir, progress, below, job.skip_not_finite, job.metric)
        saved = workdir.resume(progress.say)
        check_data(job.fingerprint, job.dataset.source, saved)
        state, totals, done = resume(
            execution, saved, workdir.changes, last, steps.warm_up, state, place_totals()
        )
        # From here on the run goes on for certain.
        workdir.go_on(progress.say, _needed_to_predict(job))
        clock = Clock(Times(*saved.notes["times"]) if saved else Times(reported_at=done))
        if saved:
            monitor.go_on(saved.notes["monitor"])
        requests.begin()
        show_test(done, state)
        state, totals, done, stop = take_steps(
            Position(state, totals, done),
            steps.begin(done),
            place_totals,
            pace,
            clock,
            Between(lambda: agreed(requests.noted), check, report, look, keep, show_test),
            progress.move,
        )
        if stop:
            raise Interrupted(
                f"stopped by {signal.Signals(stop).name} after step {done}:"
                f" --workdir={workdir.path} goes on from there",
                stop,
            )
        trained = execution.whole_state(execution.finish(state))
        test = evaluate(trained, job.dataset.test)
        monitor.evaluation("test", done, job.epochs, test)
        workdir.save(trained)

    summary = {
        "dataset": job.dataset.name,
        "data": {"source": job.dataset.source, "fingerprint": job.fingerprint},
        **job.description,
        "seed": job.seed,
        "epochs": job.epochs,
        "batch_size": job.batch_size,
        "steps": done,
        f"test_{job.metric.name}": test[job.metric.name],
        "test_loss": test["loss"],
        "examples_per_second": done * job.batch_size / clock.times().trained,
        "seconds": time.monotonic() - started,
        "resumed_at": saved.step if saved else None,
        "best_validation": monitor.best,
        "device": f"{execution.devices} x {jax.devices()[0].device_kind}",
        "devices": execution.devices,
        "processes": jax.process_count(),
        "versions": _versions(),
        "modules": modules,
    }
    workdir.finish(summary, render_report)
    return summary


def _needed_to_predict(job: Job) -> dict[str, Any]:
    """What of the data a trained network needs, once they are not at hand."""
    mean, deviation = job.preprocess.mean, job.preprocess.deviation
    return {
        "dataset": job.dataset.name,
        "source": job.dataset.source,
        "fingerprint": job.fingerprint,
        "num_classes": job.dataset.num_classes,
        "inputs": to_json(job.dataset.train.images),
        "targets": to_json(job.dataset.train.labels),
        "mean": None if mean is None else mean.tolist(),
        "deviation": None if deviation is None else deviation.tolist(),
    }


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax")
    return {
        "decoupled": decoupled.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **{name: metadata.version(name) for name in packages},
    }

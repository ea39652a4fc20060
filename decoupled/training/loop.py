"""Trains a network, watches it, and writes down what happened."""

import platform
import time
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

import decoupled
from decoupled.data import Dataset, Preprocess, Split, batches_per_epoch, shuffled_batches
from decoupled.learner import Learner
from decoupled.state import LearnerState
from decoupled.training.execution import Execution
from decoupled.training.monitor import Monitor
from decoupled.training.overview import describe_modules, overview
from decoupled.training.progress import Progress, SilentProgress
from decoupled.training.report import render_report
from decoupled.training.step import Totals, alignment_step, evaluator, no_totals
from decoupled.training.workdir import NoWorkdir, Workdir
from decoupled.types import Array, Key


class Job(NamedTuple):
    """All that a run needs to know.

    Attributes:
      dataset: its `train` without the examples held out.
      validation: held-out training examples; may be empty.
      preprocess: bytes to inputs.
      learner: the modules and how they are trained, on whole batches.
      execution: how its steps are compiled, and where state and batches live.
      description: facts about the run that go into its summary (method, model, ...).
      seed: of parameters, order of examples and all other randomness.
      epochs, batch_size: lengths; the examples left over at an epoch's end are dropped.
      log_every, alignment_every: steps between reports.
      show_test: report the test accuracy after each epoch too. It never steers anything.
    """

    dataset: Dataset
    validation: Split
    preprocess: Preprocess
    learner: Learner
    execution: Execution
    description: dict[str, Any]
    seed: int
    epochs: int
    batch_size: int
    log_every: int
    alignment_every: int
    show_test: bool


def train_and_evaluate(job: Job, workdir: Workdir | NoWorkdir) -> dict[str, Any]:
    """Runs a job from start to end; returns what it stored in the workdir's summary.json.

    Raises:
      UsageError: the batch is larger than the training set.
      TrainingError: the loss is no longer finite, or results cannot be written.
    """
    started = time.monotonic()
    train, learner, execution = job.dataset.train, job.learner, job.execution
    steps_per_epoch = batches_per_epoch(train, job.batch_size)
    init_key, step_key = jax.random.split(jax.random.key(job.seed))
    first = (train.images[: job.batch_size], train.labels[: job.batch_size])

    def init(key: Key, images: Array, labels: Array) -> LearnerState:
        return learner.init(key, job.preprocess.evaluate(images), labels)

    def place_totals() -> Totals:
        return execution.place_state(no_totals(learner))

    state = jax.jit(init)(init_key, *first)
    inputs = jax.eval_shape(job.preprocess.evaluate, first[0])
    modules = describe_modules(learner, state, inputs)

    state, step_key = execution.place_state(state), execution.place_state(step_key)
    rows = execution.rows(job.batch_size)
    placed = execution.place_batch(tuple(part[rows] for part in first))
    # Compiled ahead: the first step costs no more than others, and no later one can retrace.
    step = execution.compile_step(state, place_totals(), *placed, step_key)
    align = execution.measure(alignment_step(learner, job.preprocess))
    evaluate = evaluator(learner, job.preprocess, min(1000, max(job.batch_size, 100)), execution)

    done, training_seconds = 0, 0.0
    show = Progress if jax.process_index() == 0 else SilentProgress
    with show(steps_per_epoch * job.epochs) as progress:
        progress.say(f"{job.dataset.name}: {len(train)} training examples\n{overview(modules)}")
        monitor = Monitor(workdir, progress, [module["name"] for module in modules[:-1]])
        for epoch in range(1, job.epochs + 1):
            totals, since, clock = place_totals(), done, time.monotonic()
            for batch in shuffled_batches(train, job.batch_size, job.seed, epoch, rows):
                batch = execution.place_batch(batch)
                state, totals = step(state, totals, *batch, step_key)
                done += 1
                if done % job.log_every == 0 or done % steps_per_epoch == 0:
                    totals, steps = jax.device_get(totals), done - since  # waits for the device
                    totals = totals._replace(boundaries=learner.each_boundary(totals.boundaries))
                    seconds = time.monotonic() - clock
                    training_seconds += seconds
                    speed = steps * job.batch_size / seconds
                    monitor.training(done, done / steps_per_epoch, totals, speed)
                    totals, since, clock = place_totals(), done, time.monotonic()
                if learner.estimators and (done % job.alignment_every == 0 or done == 1):
                    jax.block_until_ready(totals)  # or training would go on during the pause
                    pause = time.monotonic()
                    cosines = align(execution.whole_state(state), *batch, step_key)
                    monitor.alignment(done, jax.device_get(cosines))
                    clock += time.monotonic() - pause
            monitor.boundaries()
            if len(job.validation):
                whole = execution.whole_state(state)
                monitor.evaluation("validation", done, epoch, evaluate(whole, job.validation))
            if job.show_test and epoch < job.epochs:
                whole = execution.whole_state(state)
                monitor.evaluation("test", done, epoch, evaluate(whole, job.dataset.test))
        trained = execution.whole_state(execution.finish(state))
        test = evaluate(trained, job.dataset.test)
        monitor.evaluation("test", done, job.epochs, test)
        workdir.save(trained)

    summary = {
        "dataset": job.dataset.name,
        **job.description,
        "seed": job.seed,
        "epochs": job.epochs,
        "batch_size": job.batch_size,
        "steps": done,
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "examples_per_second": done * job.batch_size / training_seconds,
        "seconds": time.monotonic() - started,
        "device": f"{execution.devices} x {jax.devices()[0].device_kind}",
        "devices": execution.devices,
        "processes": jax.process_count(),
        "versions": _versions(),
        "modules": modules,
    }
    workdir.finish(summary, render_report)
    return summary


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax")
    return {
        "decoupled": decoupled.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **{name: metadata.version(name) for name in packages},
    }

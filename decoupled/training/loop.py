"""Trains a network, watches it, and writes down what happened."""

import math
import platform
import time
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import decoupled
from decoupled.data import Dataset, Preprocess, Split, batches_per_epoch, shuffled_batches
from decoupled.errors import TrainingError
from decoupled.learner import Learner, LearnerState
from decoupled.training.overview import describe_modules, overview
from decoupled.training.progress import Progress
from decoupled.training.report import render_report
from decoupled.training.step import Totals, alignment_step, evaluator, no_totals, train_step
from decoupled.training.workdir import Workdir, read_metrics


class Job(NamedTuple):
    """All that a run needs to know.

    Attributes:
      dataset: its `train` without the examples held out.
      validation: held-out training examples; may be empty.
      preprocess: bytes to inputs.
      learner: the modules and how they are trained.
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
    description: dict[str, Any]
    seed: int
    epochs: int
    batch_size: int
    log_every: int
    alignment_every: int
    show_test: bool


def train_and_evaluate(job: Job, workdir: Workdir) -> dict[str, Any]:
    """Runs a job from start to end; returns what it stored in the workdir's summary.json.

    Raises:
      UsageError: the batch is larger than the training set.
      TrainingError: the loss is no longer finite, or results cannot be written.
    """
    train = job.dataset.train
    started = time.monotonic()
    steps_per_epoch = batches_per_epoch(train, job.batch_size)
    total_steps = steps_per_epoch * job.epochs
    init_key, step_key = jax.random.split(jax.random.key(job.seed))
    first = (train.images[: job.batch_size], train.labels[: job.batch_size])
    state = jax.jit(
        lambda key, images, labels: job.learner.init(key, job.preprocess.evaluate(images), labels)
    )(init_key, *first)
    modules = describe_modules(
        job.learner, state, jax.eval_shape(job.preprocess.evaluate, jnp.asarray(first[0]))
    )
    progress = Progress(total_steps)
    progress.say(f"{job.dataset.name}: {len(train)} training examples\n{overview(modules)}")

    # Compiled ahead: the first step costs no more than others, and no later one can retrace.
    step_function = jax.jit(train_step(job.learner, job.preprocess), donate_argnums=(0, 1))
    step = step_function.lower(state, no_totals(job.learner), *first, step_key).compile()
    align = jax.jit(alignment_step(job.learner, job.preprocess))
    evaluate = evaluator(job.learner, job.preprocess, min(1000, max(job.batch_size, 100)))

    done, training_seconds = 0, 0.0
    for epoch in range(job.epochs):
        totals, since, clock = no_totals(job.learner), done, time.monotonic()
        for images, labels in shuffled_batches(train, job.batch_size, job.seed, epoch):
            state, totals = step(state, totals, images, labels, step_key)
            done += 1
            if done % job.log_every == 0 or done % steps_per_epoch == 0:
                record = _means(jax.device_get(totals), done - since)
                seconds = time.monotonic() - clock
                training_seconds += seconds
                _check_finite(record, done, modules)
                record["examples_per_second"] = (done - since) * job.batch_size / seconds
                workdir.log("train", done, {"epoch": done / steps_per_epoch, **record})
                progress.show(done, _headline(record))
                totals, since, clock = no_totals(job.learner), done, time.monotonic()
            if job.learner.estimators and (done % job.alignment_every == 0 or done == 1):
                pause = time.monotonic()
                cosines = jax.device_get(align(state, images, labels, step_key))
                workdir.log("alignment", done, {"cosine": [round(float(c), 6) for c in cosines]})
                clock += time.monotonic() - pause
        _report_epoch(job, state, evaluate, workdir, progress, epoch, done)
    test = evaluate(state, job.dataset.test)
    if not job.show_test:
        workdir.log("test", done, {"epoch": job.epochs, **test})
    progress.say(f"test accuracy {test['accuracy']:.4f}  loss {test['loss']:.4f}")
    progress.close()

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
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": _versions(),
        "modules": modules,
    }
    workdir.finish(summary, render_report(summary, read_metrics(workdir.path)))
    return summary


def _means(totals: Totals, steps: int) -> dict[str, Any]:
    """Averages over `steps`, ready for JSON."""
    boundaries = totals.boundaries
    return {
        "loss": float(totals.loss) / steps,
        "accuracy": float(totals.accuracy) / steps,
        "sg_loss": [None if b is None else float(b.sg_loss) / steps for b in boundaries],
        "r2": [
            None if b is None or b.target_power == 0 else 1 - float(b.sg_loss) / float(b.target_power)
            for b in boundaries
        ],
    }


def _headline(record: dict[str, Any]) -> dict[str, float]:
    known = [r2 for r2 in record["r2"] if r2 is not None]
    worst = {"worst R2": min(known)} if known else {}
    return {
        "loss": record["loss"],
        "accuracy": record["accuracy"],
        "examples/s": record["examples_per_second"],
        **worst,
    }


def _check_finite(record: dict[str, Any], step: int, modules: list[dict[str, Any]]) -> None:
    bad = [] if math.isfinite(record["loss"]) else ["the loss"]
    bad += [
        f"the synthetic gradient after {modules[i]['name']}"
        for i, value in enumerate(record["sg_loss"])
        if value is not None and not math.isfinite(value)
    ]
    if bad:
        raise TrainingError(
            f"not finite at step {step}: {', '.join(bad)}: lower config.optimizer.learning_rate or"
            " config.estimator_optimizer.learning_rate, or normalise (config.model.norm=batch)"
        )


def _report_epoch(
    job: Job,
    state: LearnerState,
    evaluate,
    workdir: Workdir,
    progress: Progress,
    epoch: int,
    step: int,
) -> None:
    splits = {"validation": job.validation} if len(job.validation) else {}
    if job.show_test:
        splits["test"] = job.dataset.test
    for kind, split in splits.items():
        result = evaluate(state, split)
        workdir.log(kind, step, {"epoch": epoch + 1, **result})
        progress.say(
            f"epoch {epoch + 1}/{job.epochs}  {kind} accuracy {result['accuracy']:.4f}"
            f"  loss {result['loss']:.4f}"
        )


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax")
    return {
        "decoupled": decoupled.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **{name: metadata.version(name) for name in packages},
    }

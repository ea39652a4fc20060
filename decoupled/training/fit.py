"""Training in one call: arrays and a network in, trained state and history out."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.data.augment import AS_THEY_ARE
from decoupled.data.dataset import take
from decoupled.errors import UsageError
from decoupled.estimators.checks import check_weight
from decoupled.extras import extra
from decoupled.learning.learner import Learner
from decoupled.learning.stack import Stack
from decoupled.learning.state import LearnerState
from decoupled.training.arrays import (
    Arrays,
    arrays_of,
    check_alike,
    fingerprint,
    inputs_of,
    placed,
)
from decoupled.training.average import evaluated
from decoupled.training.clock import Clock, Times
from decoupled.training.defaults import learner_of, metric_of
from decoupled.training.feeds import Run, compiled
from decoupled.training.fit_checks import (
    callbacks_of,
    check_evaluated,
    check_finite,
    check_labels,
    is_true,
    whole_number,
)
from decoupled.training.inner_loop import Between, Pace, Position, take_steps
from decoupled.training.interruption import StopRequests
from decoupled.training.objectives import Metric
from decoupled.training.parallel import one_device
from decoupled.training.progress import Progress, SilentProgress
from decoupled.training.step import Totals, evaluator, means, no_totals
from decoupled.types import Estimator, Module, PyTree


class Epoch(NamedTuple):
    """What a callback is told.

    Attributes:
      epoch: number of the one that has ended, from 1.
      state: at its end; a copy, to keep or to change.
      metrics: its entry in the history.
    """

    epoch: int
    state: LearnerState
    metrics: dict[str, Any]


class Fitted(NamedTuple):
    """What `fit` has made of a network.

    Attributes:
      state: as training has left it.
      history: one entry an epoch, of plain numbers: "epoch", from 1; "loss", and the metric by its name,
        means over the epoch's steps, each as it was before its update; "estimator_loss" and "r2", lists
        with one number a boundary (None where there is none); and "validation_loss" and the metric as
        "validation_NAME", at the epoch's end, where there is validation.
      learner: that trained it.
      batch_size: so many examples `predict` takes at a time.
      interrupted: whether ^C, or the notebook's stop, has ended it early.
    """

    state: LearnerState
    history: list[dict[str, Any]]
    learner: Learner
    batch_size: int
    interrupted: bool

    def predict(self, x: PyTree) -> PyTree:
        """The network's output for inputs like those of training, (examples, ...), in evaluation mode.

        Raises:
          UsageError: x holds what is no array of numbers, or arrays of unequal lengths.
        """
        predict, state = jax.jit(self.learner.predict), evaluated(self.state)
        x = inputs_of("predict", x)
        count = len(jax.tree.leaves(x)[0])
        parts = [
            predict(state, take(x, np.arange(start, min(start + self.batch_size, count))))
            for start in range(0, max(count, 1), self.batch_size)
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def fit(
    learner: Learner | Sequence[Module | Stack],
    data: tuple[PyTree, ...],
    *,
    epochs: int | np.integer,
    estimator: Estimator | Sequence[Estimator] | None = None,
    batch_size: int | np.integer = 128,
    validation: tuple[PyTree, ...] | None = None,
    metric: Metric | Callable[[Any, Any], Any] | None = None,
    callbacks: Iterable[Callable[[Epoch], Any]] | Callable[[Epoch], Any] = (),
    seed: int | np.integer = 0,
    progress: bool = True,
    workdir: str | os.PathLike[str] | None = None,
) -> Fitted:
    """Trains a network on arrays.

    Each epoch goes through all examples in an order of its own, by whole batches: those left over, fewer
    than one, come up in other epochs. Evaluation leaves none out. ^C, or the notebook's stop, ends training
    after the steps it is at, half a second of them or one, and what there is is returned; a second one
    interrupts at once.

    Args:
      learner: from `make_learner`; or a list of modules, which then learn by Adam with a learning rate of
        1e-3, as their estimators do, softmax cross-entropy if y are integers and half the squared error if
        they are real numbers.
      data: (x, y), or (x, y, weight): arrays of NumPy or JAX that lead with the examples, or pytrees of
        them. y is None for a loss that has no use for it; `weight` is (examples,), or (examples, time)
        where the learner's batch_axes is 2. They stay on the device if they are there, or fit in easily.
      epochs: how many.
      estimator: of every boundary, or a list of one each; to be given with a list of modules.
      batch_size: examples a step, and at a time in evaluation.
      validation: like `data`; evaluated after each epoch.
      metric: (output, y) -> one number an example, as the loss is called; by default the accuracy if the
        loss is softmax cross-entropy.
      callbacks: each is called with an `Epoch` after every epoch. If one returns True, training ends there.
      seed: of parameters, order of examples and all other randomness.
      progress: show a bar in a notebook or on a terminal (if tqdm is installed), log lines elsewhere.
      workdir: a folder for checkpoints, one an epoch and one where training is interrupted. The same call
        goes on from the last one, to the same bits on the same device, or returns what an earlier one has
        ended with; with more epochs it trains further.

    Raises:
      UsageError: an argument cannot be, or does not go with another.
      DataError: the workdir has checkpoints, but none of them can be read.
      TrainingError: a loss or metric is no longer finite, or a checkpoint cannot be written.
      MissingPackage: there is a workdir, but not what reads and writes checkpoints.
    """
    train = arrays_of("data", data)
    held = None if validation is None else arrays_of("validation", validation)
    if held is not None:
        check_alike(train, held)
    epochs, batch_size = whole_number("epochs", epochs, 1), whole_number("batch_size", batch_size, 1)
    seed = whole_number("seed", seed, 0)
    if batch_size > train.examples:
        raise UsageError(
            f"batch_size is {batch_size}, but there are only {train.examples} examples: choose at most"
            f" {train.examples}"
        )
    learner = learner_of(learner, estimator, train.y)
    for what, arrays in (("data", train), ("validation", held)):
        if arrays is not None and arrays.weight is not None:
            check_weight(what, jnp.asarray(arrays.weight), arrays.x, learner.rules.batch_axes)
    metric = metric_of(metric, learner, train.y)
    job = _Job(
        learner=learner,
        train=placed(train),
        held=None if held is None else placed(held),
        metric=metric,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        callbacks=callbacks_of(callbacks),
        show=Progress if progress else SilentProgress,
    )
    signals = (signal.SIGINT,) if workdir is None else (signal.SIGINT, signal.SIGTERM)
    facts = {"seed": seed, "batch_size": batch_size, "metric": metric.name}
    with _opened(workdir, facts, train, held) as folder, StopRequests(signals) as requests:
        position, history = _train(job, requests, folder)
    if requests.noted == signal.SIGTERM:  # even if it came after the last step
        signal.raise_signal(requests.noted)  # which ends the program, as it would have at once
    return Fitted(position.state, history, learner, batch_size, interrupted=position.stopped != 0)


class _Job(NamedTuple):
    """What `fit` was asked for."""

    learner: Learner
    train: Arrays
    held: Arrays | None
    metric: Metric
    epochs: int
    batch_size: int
    seed: int
    callbacks: tuple[Callable[[Epoch], Any], ...]
    show: type[Progress]


def _opened(
    workdir: str | os.PathLike[str] | None, facts: dict[str, Any], train: Arrays, held: Arrays | None
) -> contextlib.AbstractContextManager[Any]:
    """The folder to go on from, or None; the arrays are those that were given, wherever they are put."""
    if workdir is None:
        return contextlib.nullcontext()
    with extra("train"):
        from decoupled.training.fit_folder import FitFolder
    return FitFolder(workdir, facts | {"data": fingerprint(train), "validation": fingerprint(held)})


def _train(job: _Job, requests: StopRequests, folder: Any) -> tuple[Position, list[dict[str, Any]]]:
    """Where training has led, and its history."""
    learner, train, metric = job.learner, job.train, job.metric
    epochs, batch_size = job.epochs, job.batch_size
    per_epoch = train.examples // batch_size
    last = per_epoch * epochs
    history: list[dict[str, Any]] = []
    ended, speed = False, 0.0  # by a callback; in examples a second

    saved = None if folder is None else folder.latest()
    if saved is not None and saved.step > last:
        raise UsageError(
            f"{folder.path} holds {saved.step // per_epoch} epochs, but epochs is {epochs}: choose as many,"
            " or another workdir"
        )
    # As in train.py's runs, so that these are the same.
    init_key, step_key = jax.random.split(jax.random.key(job.seed))
    first = take(train, np.arange(batch_size))
    start = jax.jit(learner.init)(init_key, first.x, first.y), no_totals(learner)
    check_labels("data", train, learner, start[0], first.x)
    if job.held is not None:
        check_evaluated(learner, metric, start[0], train, job.held, batch_size)
        check_labels("validation", job.held, learner, start[0], first.x)
    position = Position(*start, done=0)
    if saved is not None:
        state, totals = folder.restored(saved, start)
        position = Position(state, totals, saved.step)
        history = saved.notes["history"]
        if saved.step == last or saved.notes["ended"] == epochs:
            return position, history
    execution = one_device(learner, AS_THEY_ARE, metric)
    weight = () if train.weight is None else (train.weight,)
    run = Run((train.x, train.y, *weight), batch_size, job.seed, epochs)
    steps = compiled(execution, run, *start, step_key)
    del start, first  # of no use any more where another state was restored
    evaluate = evaluator(learner, AS_THEY_ARE, batch_size, execution, metric)
    clock = Clock(Times(reported_at=position.done))

    def report(done: int, totals: Totals) -> None:
        nonlocal speed
        speed = clock.report(done) * batch_size
        totals = totals._replace(boundaries=learner.each_boundary(totals.boundaries))
        history.append({"epoch": done // per_epoch, **means(totals, metric.name)})
        check_finite(learner, history[-1], folder, train)

    def look(done: int, state: LearnerState, *_: Any) -> bool:
        nonlocal ended
        entry = history[-1]
        if (held := job.held) is not None:
            split = (held.x, held.y) if held.weight is None else held
            entry |= {f"validation_{name}": value for name, value in evaluate(state, split).items()}
            check_finite(learner, entry, folder, held)
        shown = {name: value for name, value in entry.items() if isinstance(value, float)}
        display.show(done, {**shown, "examples/s": speed})
        for callback in job.callbacks:
            answer = callback(Epoch(done // per_epoch, jax.tree.map(jnp.copy, state), dict(entry)))
            ended |= is_true(answer)
        return ended

    def keep(done: int, state: LearnerState, totals: Totals) -> None:
        if folder is not None:
            folder.save(done, (state, totals), {"history": history, "ended": epochs if ended else 0})

    with job.show(last) as display:
        if saved is not None:
            display.say(f"going on from step {saved.step} of {last}")
        requests.begin()
        position = take_steps(
            position,
            steps.begin(position.done),
            lambda: no_totals(learner),
            Pace(per_epoch, last, checkpoints=0 if folder is None else per_epoch),
            clock,
            Between(lambda: requests.noted, lambda done, state: None, report, look, keep),
            display.move,
        )
        if position.stopped:
            kept = "" if folder is None else f", and a checkpoint is in {folder.path}"
            display.say(
                f"interrupted after step {position.done} of {last}: what there is is returned{kept}"
            )
    return position, history

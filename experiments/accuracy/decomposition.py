"""What limits a synthetic gradient: its form, the target it is fitted to, or its fit to that target?

python -m experiments.accuracy.decomposition

A network is trained for a while, then held still. Of the true gradient's power at a boundary, an estimate
misses a share, 1 - R². It has three parts, which add up:

  form    what the best fit of the form to the *true* gradient misses, on examples it was not fitted to;
  target  what the best fit to the *bootstrapped* target, made of the estimate above, misses beyond that;
  fit     what the estimator as trained misses beyond that: noise, and how far it lags behind a target that
          moves while the modules above it learn.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.analysis import boundary_gradients
from decoupled.data import batches_from, batches_per_epoch
from decoupled.estimators import one_hot
from decoupled.estimators.synthetic_gradient import flatten
from decoupled.learning.state import LearnerState
from decoupled.training.builder import build
from decoupled.training.loop import Job
from decoupled.training.step import no_totals
from decoupled.training.workdir import write_whole
from decoupled.types import Array, PyTree
from experiments.accuracy.settings import NETWORKS, Chosen, config_of

# est_params, h, y -> what the form is linear in.
Features = Callable[[PyTree, Array, Array], Array]

_CLASSES = 10


class Shares(NamedTuple):
    """Of the true gradient's power at one boundary."""

    form: float
    target: float
    fit: float


class Seen(NamedTuple):
    """At one boundary, for many examples: arrays (examples, features)."""

    inputs: Any
    true: Any
    target: Any
    estimate: Any


def error_features(est_params: PyTree, h: Array, y: Array) -> Array:
    """softmax(hW' + b) - y, with W as it has been learnt."""
    return prediction_features(est_params, h, y)[:, :-1] - one_hot(_CLASSES)(y)


def prediction_features(est_params: PyTree, h: Array, y: Array) -> Array:
    """softmax(hW' + b) and 1."""
    del y
    logits = flatten(h) @ est_params["W"].T + est_params["b"][None, :]
    return jnp.concatenate([jax.nn.softmax(logits), jnp.ones((len(h), 1))], axis=1)


def linear_features(est_params: PyTree, h: Array, y: Array) -> Array:
    """h, y and 1."""
    del est_params
    return jnp.concatenate([flatten(h), one_hot(_CLASSES)(y), jnp.ones((len(h), 1))], axis=1)


def unconditional_features(est_params: PyTree, h: Array, y: Array) -> Array:
    """h and 1."""
    return linear_features(est_params, h, y)[:, [*range(flatten(h).shape[1]), -1]]


FORMS: dict[str, Features] = {
    "loss_shaped": error_features,
    "linear": linear_features,
    "loss_shaped_no_labels": prediction_features,
    "linear_no_labels": unconditional_features,
}


def trained_for(job: Job, steps: int) -> LearnerState:
    """The state after so many of a run's steps."""
    batches = batches_from(0, job.dataset.train, job.batch_size, job.seed, job.epochs, slice(None))
    init_key, step_key = jax.random.split(jax.random.key(job.seed))
    x = job.preprocess.evaluate(jnp.asarray(job.dataset.train.images[: job.batch_size]))
    state = jax.jit(job.learner.init)(init_key, x, job.dataset.train.labels[: job.batch_size])
    totals = no_totals(job.learner)
    step = None
    for _, (images, labels) in zip(range(steps), batches, strict=False):
        if step is None:
            step = job.execution.compile_step(state, totals, images, labels, step_key)
        state, totals = step(state, totals, images, labels, step_key)
    return state


def seen_in(job: Job, state: LearnerState, features: Features, batches: int) -> list[Seen]:
    """Gradients at every boundary, for so many batches of an epoch that is yet to come."""
    learner = job.learner

    @jax.jit
    def look(images: Array, y: Array, key: Array) -> list[Seen]:
        x = job.preprocess.evaluate(images)
        true, estimated = boundary_gradients(learner, state, x, y, key)
        h, outputs, targets = x, [], []
        for i, update in enumerate(learner.update_module):
            above = state.estimators[i].params if i < len(true) else None
            result = update(state.modules[i], above, h, y, key)
            h = result.h_out
            outputs.append(h)
            targets.append(result.grad_h_in)
        return [
            Seen(features(estimator.params, h, y), *map(flatten, (g, target, estimate)))
            for estimator, h, g, target, estimate in zip(
                state.estimators, outputs, true, targets[1:], estimated, strict=False
            )
        ]

    chosen = batches_from(0, job.dataset.train, job.batch_size, job.seed + 1000, 1, slice(None))
    looks = [
        jax.device_get(look(images, labels, jax.random.key(i)))
        for i, (images, labels) in zip(range(batches), chosen, strict=False)
    ]
    return [Seen(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*looks, strict=True)]


def shares(seen: Seen) -> Shares:
    """Best fits on four fifths of the examples, errors on the rest."""
    cut = len(seen.inputs) * 4 // 5
    fitted, rest = Seen(*(part[:cut] for part in seen)), Seen(*(part[cut:] for part in seen))

    def missed(estimate: np.ndarray) -> float:
        return float(np.square(estimate - rest.true).sum() / np.square(rest.true).sum())

    def best(wanted: np.ndarray) -> np.ndarray:
        return rest.inputs @ np.linalg.lstsq(fitted.inputs, wanted)[0]

    form, with_target, all_in_all = (
        missed(best(fitted.true)),
        missed(best(fitted.target)),
        missed(rest.estimate),
    )
    return Shares(form, with_target - form, all_in_all - with_target)


def measured(chosen: Chosen, method: str, seed: int, epochs: int, batches: int) -> list[Shares]:
    """One entry a boundary, lowest first, after so many of a run's epochs."""
    job = build(config_of(chosen, method, seed, {}))
    steps = epochs * batches_per_epoch(job.dataset.train, job.batch_size)
    state = trained_for(job, steps)
    return [shares(seen) for seen in seen_in(job, state, FORMS[method], batches)]


def row(method: str, boundary: int, found: Sequence[Shares]) -> str:
    """Mean and range over seeds, as a row of a table in Markdown."""
    cells = [
        f"{statistics.mean(part):.2f} ({min(part):.2f} to {max(part):.2f})"
        for part in zip(*found, strict=True)
    ]
    total = statistics.mean(sum(part) for part in found)
    return f"| {method} | {boundary} | {' | '.join(cells)} | {total:.2f} |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.accuracy.decomposition",
        description="What limits a synthetic gradient: its form, its target or its fit?",
    )
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    parser.add_argument("--data_dir", default="", help="folder that holds the data set")
    parser.add_argument("--methods", default=",".join(FORMS))
    parser.add_argument("--epochs", type=int, default=2, help="of training, of a schedule of 5")
    parser.add_argument("--batches", type=int, default=60, help="to measure on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    chosen = parser.parse_args(arguments)
    common = Chosen(chosen.network, 5, chosen.data_dir)
    lines = ["| method | boundary | form | target | fit | missed in all |", "| --- " * 6 + "|"]
    for method in chosen.methods.split(","):
        if method not in FORMS:
            parser.error(f"no method {method!r}: choose from {','.join(FORMS)}")
        by_seed = [
            measured(common, method, seed, chosen.epochs, chosen.batches) for seed in range(chosen.seeds)
        ]
        depth = len(by_seed[0])
        for boundary in sorted({0, depth // 2, depth - 1}):
            lines.append(row(method, boundary, [found[boundary] for found in by_seed]))
            print(lines[-1], flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_whole(chosen.out / "decomposition.md", "\n".join(lines) + "\n")
    print(f"written: {chosen.out / 'decomposition.md'}")


if __name__ == "__main__":
    main()

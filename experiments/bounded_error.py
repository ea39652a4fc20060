"""U17, proposition 2 and corollary 1: where the SG errs little enough, training converges.

python -m experiments.bounded_error
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from decoupled.estimators import as_given, linear
from decoupled.learning.learner import make_learner
from decoupled.learning.state import LearnerState
from decoupled.losses import squared_error
from decoupled.types import Array, Key, Module, PyTree
from experiments.claim import Check, Claim, Drawing, Finding, Size, at_least, at_most, main
from experiments.linear_networks import (
    identity_module,
    in_float64,
    least_squares_loss,
    line_searched,
    linear_module,
    with_params,
)
from experiments.toy_data import SETS, signed


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
      seeds: of data and start.
      hidden: layers of the deep network.
      examples: of each data set.
      steps: of every run.
    """

    seeds: int
    hidden: int
    examples: int
    steps: int


SCALES: dict[Size, Scale] = {
    "trial": Scale(1, 2, 40, 200),
    "quick": Scale(3, 5, 100, 4000),
    "full": Scale(10, 10, 100, 10_000),
}
_DIM, _WIDTH = 5, 8
_DELTA = 0.1
BOUND = (1 - _DELTA) / (1 + _DELTA)
_RATES = 2.0 ** -np.arange(-2, 16)  # tried in each step, the highest first
_RECORDED = 200  # points of a curve
_CONVERGED = 1e-8


class Track(NamedTuple):
    """A run, one number a step.

    Attributes:
      loss: before the step.
      error: of the network's gradient as its SGs make it, |ĝ - g| / |g|.
      moved: whether the network did.
      can: whether its loss falls at some rate.
    """

    loss: Array
    error: Array
    moved: Array
    can: Array


def networks(hidden: int) -> dict[str, list[Module]]:
    """Modules with an SG after each but the last."""
    widths = [_DIM, *[_WIDTH] * hidden, 1]
    middle = len(widths) // 2
    layers = [linear_module(pair, f"layer_{i}") for i, pair in enumerate(itertools.pairwise(widths))]
    halves = [linear_module(widths[: middle + 1], "lower"), linear_module(widths[middle:], "upper")]
    return {
        "one layer, SG below the loss": [linear_module([_DIM, 1], "linear"), identity_module("output")],
        "deep, SG in the middle": halves,
        "deep, SG everywhere": layers,
    }


def track(modules: Sequence[Module], x: Array, y: Array, key: Key, steps: int) -> Track:
    """Trains network and SGs together; the network pauses where the bound is broken.

    It steps at the largest rate, of some, at which its loss falls by half of what it would fall by along a
    straight line in the worst direction that the bound allows (Armijo's condition).
    """
    learner = make_learner(
        modules,
        [line_searched(linear(as_given))] * (len(modules) - 1),
        squared_error,
        optax.sgd(1.0),
        optax.sgd(1.0),
    )
    state = in_float64(learner.init(key, x, y))

    def loss_at(params: PyTree) -> Array:
        return squared_error(learner.predict(with_params(state, params), x), y).mean()

    def step(state: LearnerState, _: Any) -> tuple[LearnerState, Track]:
        new, _metrics = learner.update(state, x, y, key)
        old = [module.params for module in state.modules]
        found = jax.tree.map(jnp.subtract, old, [module.params for module in new.modules])
        loss, true = jax.value_and_grad(loss_at)(old)
        length = optax.tree.norm(true)
        error = optax.tree.norm(jax.tree.map(jnp.subtract, found, true)) / length

        def tried(rate: Array) -> tuple[PyTree, Array]:
            moved = jax.tree.map(lambda p, g: p - rate * g, old, found)
            return moved, loss_at(moved)

        moved, losses = jax.vmap(tried)(jnp.asarray(_RATES))
        descends = losses <= loss - 0.5 * _RATES * (1 - BOUND) * length**2
        first = jnp.argmax(descends)
        moves = descends.any() & (error <= BOUND)
        params = jax.tree.map(lambda now, then: jnp.where(moves, then[first], now), old, moved)
        return with_params(new, params), Track(loss, error, moves, descends.any())

    return jax.lax.scan(step, state, length=steps)[1]


def measure(size: Size) -> Finding:
    scale = SCALES[size]
    with jax.enable_x64(True):
        keys = [jax.random.key(seed) for seed in range(scale.seeds)]
        data = [
            make(jax.random.fold_in(key, 0), scale.examples, _DIM) for make in SETS.values() for key in keys
        ]
        x = jnp.stack([points for points, _ in data])
        y = jnp.stack([signed(labels) for _, labels in data])
        starts = jnp.stack([jax.random.fold_in(key, 1) for key in keys] * len(SETS))
        optima = np.array([least_squares_loss(*pair) for pair in zip(x, y, strict=True)])

        def run(modules: Sequence[Module]) -> Track:
            tracks = jax.vmap(lambda x, y, key: track(modules, x, y, key, scale.steps))
            return jax.device_get(jax.jit(tracks)(x, y, starts))

        tracks = {name: run(modules) for name, modules in networks(scale.hidden).items()}
    return _finding(tracks, optima[:, None], scale)


def _finding(tracks: dict[str, Track], optima: np.ndarray, scale: Scale) -> Finding:
    checks: list[Check] = []
    paused = {}
    for name, run in tracks.items():
        excess = run.loss - optima
        # Nearer to the end, the loss moves by less than it can be told with.
        far = excess > _CONVERGED
        within = far & (run.error <= BOUND)
        paused[name] = 100 * (far & ~run.moved).sum() / far.sum()
        checks += [
            at_most(
                f"{name}: final loss above least squares, worst of all sets and seeds",
                float(excess[:, -1].max()),
                _CONVERGED,
            ),
            at_least(
                f"{name}: steps within the bound at which some rate lowers the loss, %",
                float(100 * run.can[within].mean()),
                100.0,
            ),
        ]
    listed = ", ".join(f"{name} {share:.2g} %" for name, share in paused.items())
    remarks = (
        f"{len(SETS)} data sets, two of which are this project's (XOR and a ring), of {scale.examples}"
        f" points in {_DIM} dimensions, squared error, {scale.seeds} seeds, {scale.steps} steps of all"
        f" points, float64; deep networks have {scale.hidden} hidden layers of {_WIDTH}. δ = {_DELTA:g}:"
        f" the network moves where its gradient, as the SGs make it, is at most {BOUND:.2f} of the true"
        f" one's length away from this. Until the loss was within {_CONVERGED:g} of the least it paused"
        f" in so many of the steps: {listed}. As recalled, the paper bounds the error of the gradient by"
        " that of the SG times K, the most that h moves with the parameters; the error itself is"
        " measured here, so that nothing is lost in K."
    )
    return Finding(checks, [_drawing(tracks, optima)], list(range(scale.seeds)), remarks)


def _drawing(tracks: dict[str, Track], optima: np.ndarray) -> Drawing:
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    grid = figure.subplots(2, len(tracks), sharex=True, sharey="row")
    for (name, run), (above, below) in zip(tracks.items(), grid.T, strict=True):
        every = max(1, run.loss.shape[1] // _RECORDED)
        steps = np.arange(0, run.loss.shape[1], every)
        above.semilogy(
            steps, np.maximum(run.loss - optima, 1e-16)[:, ::every].T, color="#0072b2", linewidth=0.7
        )
        above.set_title(name, fontsize=10)
        below.semilogy(steps, run.error[:, ::every].T, color="#0072b2", linewidth=0.7)
        below.axhline(BOUND, color="#d55e00", linestyle=":", label="bound: above it the network pauses")
        below.set_xlabel("step")
    grid[0][0].set_ylabel("loss above least squares")
    grid[1][0].set_ylabel("error of the gradient / its length")
    grid[1][0].legend(fontsize=8)
    return Drawing(
        figure,
        "A line a data set and seed. Above: the loss, less the least-squares loss (below 1e-16 drawn"
        " there). Below: how far the network's gradient, as its SGs make it, is from the true one.",
    )


CLAIM = Claim(
    id="bounded-error",
    module="experiments.bounded_error",
    title="Training converges where the SG errs little enough",
    claim="If the SG's error stays small enough against the true gradient, a small enough step lowers the"
    " loss, and training converges; in deep linear networks with squared error and linear SGs there is"
    " such a step size in every step.",
    source="U17, proposition 2; corollary 1 and the bound are from memory",
    certainty="told",
    how="Linear networks are trained with linear SGs, whose rate is found by line search. In every step the"
    " network's gradient, as the SGs make it, is compared with the true one. Where they differ by more"
    " than (1 - δ) / (1 + δ) of its length, the network waits while its SGs go on learning. Else it"
    " moves, at the largest rate at which the loss falls by a set part of what a straight line would"
    " give. NumPy's least squares gives the loss to be reached.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

"""U17: a synthetic gradient that cannot represent dL/dh changes what is learnt.

python -m experiments.insufficient_estimator
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import constant_estimator, new_critical_point
from experiments.claim import Check, Claim, Finding, Size, at_least, at_most, main
from experiments.constant_estimator import POINTS
from experiments.insufficient_figures import draw_boundaries, draw_lines, draw_training
from experiments.intervals import interval
from experiments.ring_networks import EXAMPLES, GRID, METHODS, RINGS, WIDTH, OnRings, train_on_rings


class Scale(NamedTuple):
    seeds: int
    steps: int
    depth: int  # hidden layers, the boundary in their middle
    methods: Sequence[str]
    points: int  # training sets in which a new critical point is looked for
    point_steps: int


_NEEDED = ("backprop", "linear SG", "MLP SG")  # by the checks
_SLOPES = (-3.0, -0.5, 0.1, 1.0, 20.0)
SCALES: dict[Size, Scale] = {
    "trial": Scale(seeds=2, steps=20, depth=2, methods=_NEEDED, points=2, point_steps=100),
    "quick": Scale(seeds=5, steps=1500, depth=6, methods=tuple(METHODS), points=20, point_steps=10_000),
    "full": Scale(seeds=12, steps=1500, depth=6, methods=tuple(METHODS), points=60, point_steps=10_000),
}


def measure(size: Size) -> Finding:
    scale = SCALES[size]
    rings = {
        name: train_on_rings(METHODS[name], scale.seeds, scale.steps, scale.depth) for name in scale.methods
    }
    with jax.enable_x64(True):
        points = new_critical_point.critical_points(scale.points)
        runs = {
            name: new_critical_point.train_from_random_starts(estimator, points, scale.point_steps)
            for name, estimator in new_critical_point.SGS.items()
        }
    return _finding(rings, points, runs, scale)


def _finding(
    rings: dict[str, OnRings],
    points: list[new_critical_point.Point],
    runs: dict[str, new_critical_point.Run],
    scale: Scale,
) -> Finding:
    backprop, by_linear, by_mlp = (rings[name] for name in ("backprop", "linear SG", "MLP SG"))
    by_constant = [constant_estimator.conditions(a) for a in _SLOPES]
    system = max(float(p.conditions.worst) for p in points)
    turned = _angle(runs["linear SG"].w, np.stack([p.w[:, 0] for p in points]))
    found = _angle(runs["loss-shaped SG"].w, np.stack([p.optimum[0][:, 0] for p in points]))
    ends = "lower end of a 95 % interval"
    checks: list[Check] = [
        at_least(
            f"ring, flipped labels: training loss with a linear SG above backprop's, {ends}, nats",
            interval(by_linear.loss[1] - backprop.loss[1]).low,
            0.0,
        ),
        at_least(
            f"ring, flipped labels: training loss with a linear SG above that with an MLP SG, {ends}, nats",
            interval(by_linear.loss[1] - by_mlp.loss[1]).low,
            0.0,
        ),
        at_least(
            "ring, flipped labels: log ratio of steepness with backprop to that with a linear SG (the"
            f" regulariser), {ends}",
            interval(np.log(backprop.slope[1] / by_linear.slope[1])).low,
            0.0,
        ),
        at_most(
            "ring, clean labels: training accuracy of backprop above that with an MLP SG, mean",
            float((backprop.accuracy - by_mlp.accuracy)[0].mean()),
            0.01,
        ),
        at_most(
            "new critical point: largest norm of dL/dθ above, SG(h, y) dh/dθ below and dL_SG/dφ, worst",
            system,
            1e-9,
        ),
        at_least(
            "new critical point: norm of the loss's true gradient there, smallest",
            min(float(p.conditions.gradient) for p in points),
            1e-3,
        ),
        at_least(
            "the loss's minimum: |SG(h, y) dh/dθ| there with the best linear SG, smallest",
            min(float(p.at_optimum.below[0]) for p in points),
            1e-3,
        ),
        at_most(
            f"|ax + b| at {len(POINTS)} points, SG a constant: largest norm of what moves the system"
            f" where b and the constant are 0, for {len(_SLOPES)} slopes",
            max(float(p.worst) for p in by_constant),
            1e-12,
        ),
        at_least(
            "the same: norm of the loss's true gradient there, smallest (by hand: 1.5)",
            min(float(p.gradient) for p in by_constant),
            1.5,
        ),
        at_most(
            "joint training with a linear SG: angle of w from the new critical point's, worst, degrees",
            float(turned.max()),
            1.0,
        ),
        at_most(
            "joint training with a loss-shaped SG: angle of w from the minimum's, median, degrees",
            float(np.median(found)),
            1.0,
        ),
    ]
    drawings = [
        draw_boundaries(GRID, list(RINGS), rings),
        draw_training(list(RINGS), rings),
        draw_lines(points, runs),
    ]
    return Finding(checks, drawings, list(range(scale.seeds)), _remarks(rings, points, found, scale))


def _remarks(
    rings: dict[str, OnRings], points: list[new_critical_point.Point], found: np.ndarray, scale: Scale
) -> str:
    def means(values: Callable[[OnRings], Any], kind: int = 1) -> str:
        return ", ".join(f"{name} {np.mean(values(ring)[kind]):.3g}" for name, ring in rings.items())

    excess = [p.excess for p in points]
    return (
        f"Rings: {scale.seeds} seeds, {EXAMPLES} points, {scale.depth} hidden layers of {WIDTH},"
        f" {scale.steps} steps of Adam, all points in each. Clean labels were tried first: there the form"
        f" hardly matters (mean training loss: {means(lambda r: r.loss, 0)}): at zero loss each example's"
        " gradient is zero, which any of the SGs can be, so that this minimum is kept; the linear SG"
        " only takes longer. With flipped labels gradients remain. Means over seeds: training loss"
        f" {means(lambda r: r.loss)}; training accuracy {means(lambda r: r.accuracy)}; accuracy on new"
        f" points {means(lambda r: r.held_out)}; steepness {means(lambda r: r.slope)}. To be able to"
        " represent the gradient is not enough: it changes with every step, and the loss-shaped SG and"
        " the MLP SG follow it only in part (R² in the figure), so that they too keep the network from"
        " learning the flipped labels. Only part of the distance between backprop and the linear SG is a"
        f" matter of its form. New critical point: {len(points)} training sets of"
        f" {new_critical_point.EXAMPLES} points, double precision. It can be found in closed form: what"
        " the best linear SG leaves of the gradient is orthogonal to h, y and 1, but not to the part of"
        " x that h does not tell, so that at rest w has the direction of a linear regression of y on x,"
        f" whatever the loss, with scale and offset those of the log loss. Its loss is {min(excess):.2g}"
        f" to {max(excess):.2g} nats above the minimum. With a linear layer below, there is no such point"
        " where h tells all of x: the boundary must be narrower than its input. Joint training with the"
        f" loss-shaped SG ended at the minimum of the loss from {int((found < 1).sum())} of {len(points)}"
        " starts (so the check is on the median; on the worst, as it first was, it fails): the SG loss"
        " is then not convex, and joint training can run away. The SGs' learning rate is 0.02: at 0.05,"
        " as it first was, the fit of the linear SG diverged from one of 60 starts, whose h is large"
        " (see the claim on line search)."
    )


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between the rows of two arrays, as lines: degrees from 0 to 90."""
    cosines = np.abs((a * b).sum(axis=1)) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.degrees(np.arccos(np.minimum(cosines, 1.0)))


CLAIM = Claim(
    id="insufficient-estimator",
    module="experiments.insufficient_estimator",
    title="Where the SG cannot represent the gradient",
    claim="Where the SG cannot represent dL/dh it acts as a regulariser: some critical points of the loss"
    " are none of the system with SGs, which may have new ones. Its"
    " example: f = ax + b is to be 0 at -2, -1, 1 and 2, the loss is |f|, and the SG a constant.",
    source="U17, on critical points; the example, of its supplement, is from memory",
    certainty="told",
    how="Rings: a deep ReLU network is trained to tell a disc from a ring around it, with the log loss"
    " and one boundary in its middle: by backprop, with a linear SG, with a loss-shaped SG, (softmax(hW'"
    " + b) - y)V, and with an MLP of 64 hidden units, all from the same weights; with clean labels, and"
    " with one label in eight flipped. How smooth the learnt function is is told by its steepness, the"
    " mean norm of the slope of the logit at the training points. A new critical point: the smallest"
    " network that has one, logistic regression of points in the plane through a boundary of one unit."
    " The point is computed, and all that moves the SG system is measured there, with the gradient of"
    " the loss beside it; then network and SG are trained together from random starts. The paper's"
    " example is checked as it stands; the rings and the log loss's point are this project's.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

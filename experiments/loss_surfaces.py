"""U17, figure 2: the loss that a synthetic gradient (SG) stands for, by layer, as training goes on.

python -m experiments.loss_surfaces
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import decoupled
from decoupled.analysis import activations, boundary_gradients, cosine, linear_implicit_prediction
from decoupled.analysis.drawing import COLOURS, Panel, draw_by_layer
from decoupled.estimators import as_given, backprop, linear
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.losses import squared_error
from decoupled.types import Array, Estimator, Key, Loss, PyTree
from experiments.claim import Check, Claim, Drawing, Finding, Size, main
from experiments.intervals import interval, positive
from experiments.toy_data import binary_log_loss


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
      seeds: of labels and start.
      steps: of training, on all points in each.
      snapshots: when the layers are looked at.
    """

    seeds: int
    steps: int
    snapshots: int


SCALES: dict[Size, Scale] = {
    "trial": Scale(2, 30, 3),
    "quick": Scale(10, 2000, 10),
    "full": Scale(30, 10_000, 16),
}
HIDDEN, _WIDTH, _SIDE = 5, 20, 20
_ONE, _ALL = "one SG", "SGs everywhere"
_PLACES = {_ONE: (HIDDEN // 2,), _ALL: tuple(range(HIDDEN))}
# What SGs see: factors of h and y.
_BOTH = "h and y"
_SEEN = {_BOTH: (1.0, 1.0), "h alone": (1.0, 0.0), "y alone": (0.0, 1.0)}
_LABELS = ("half of the labels random", "all labels random")
_LEAST, _MOST = 1e-3, 1 - 1e-3  # of a prediction of which a log loss is taken


LOSSES: dict[str, Loss] = {"squared error": squared_error, "log loss": binary_log_loss}


def points(key: Key) -> tuple[Array, Array]:
    """A grid in the plane, (points, 2), and classes, (label sets, points, 1): of a half plane, some"
    " random."""
    side = jnp.linspace(-1, 1, _SIDE)
    x = jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 2)
    classes_key, which_key = jax.random.split(key)
    random = jax.random.bernoulli(classes_key, 0.5, (len(x),))
    half = jax.random.bernoulli(which_key, 0.5, (len(x),))
    told = x[:, 0] > 0
    return x, jnp.stack([jnp.where(half, random, told), random]).astype(x.dtype)[..., None]


def linear_sg(seen: Array) -> Estimator:
    """hA + yB + c, of h and y times these factors, (2,)."""
    whole = linear(as_given)
    train = whole.training_gradient
    assert train is not None

    def estimate(est_params: PyTree, h: Array, y: Array, signal: None) -> Array:
        return whole.estimate(est_params, seen[0] * h, seen[1] * y, signal)

    def training_gradient(est_params: PyTree, h: Array, y: Array, target: Array) -> tuple[Array, PyTree]:
        return train(est_params, seen[0] * h, seen[1] * y, target)

    return whole._replace(estimate=estimate, training_gradient=training_gradient)


def implied_losses(loss_name: str, learner: Learner, state: LearnerState, x: Array, y: Array) -> Array:
    """What each SG takes the loss of each point for: (SGs, points).

    The label at which an SG vanishes is its prediction; what it stands for is the loss of this, with the
    point's own label.
    """
    found = []
    for estimator, own, h in zip(
        learner.estimators, state.estimators, activations(learner, state, x), strict=False
    ):
        if estimator.name == "linear":
            prediction = linear_implicit_prediction(own.params, h)
            if loss_name == "log loss":
                chance = jnp.clip(prediction, _LEAST, _MOST)
                found.append(binary_log_loss(jnp.log(chance) - jnp.log1p(-chance), y))
            else:
                found.append(squared_error(prediction, y))
    return jnp.stack(found)


def _learner(loss: Loss, places: tuple[int, ...], seen: Array) -> Learner:
    layers = decoupled.models.mlp(HIDDEN, _WIDTH, 1)
    boundaries = [linear_sg(seen) if i in places else backprop() for i in range(HIDDEN)]
    return decoupled.make_learner(layers, boundaries, loss, optax.adam(1e-3), optax.adam(1e-2))


class Seen(NamedTuple):
    """Of each snapshot, label set and seed: (snapshots, label sets, seeds, ...).

    Attributes:
      correlation: of true and implied loss over the points, (..., SGs).
      true: loss of each point, (..., points).
      implied: by each SG, (..., SGs, points).
      cosine: of what each boundary hands down with the true gradient, (..., boundaries).
    """

    correlation: Any
    true: Any
    implied: Any
    cosine: Any


def _train(
    loss_name: str, places: tuple[int, ...], seen: tuple[str, ...], scale: Scale, steps: np.ndarray
) -> dict[str, Seen]:
    """What there is to see after each of these numbers of steps, by what SGs see."""
    keys = jax.random.split(jax.random.key(0), scale.seeds)
    loss = LOSSES[loss_name]

    def run(key: Key, factors: Array) -> Seen:
        x, labels = points(key)
        learner = _learner(loss, places, factors)

        def on(y: Array) -> Seen:
            def look(state: LearnerState, count: Array) -> tuple[LearnerState, Seen]:
                state = jax.lax.fori_loop(0, count, lambda _, s: learner.update(s, x, y, key)[0], state)
                true = loss(learner.predict(state, x), y)
                implied = implied_losses(loss_name, learner, state, x, y)
                correlation = jax.vmap(_correlation, (0, None))(implied, true)
                gradients = boundary_gradients(learner, state, x, y, key)
                cosines = jnp.stack([cosine(*pair) for pair in zip(*gradients, strict=True)])
                return state, Seen(correlation, true, implied, cosines)

            return jax.lax.scan(look, learner.init(key, x, y), jnp.diff(steps, prepend=0))[1]

        return jax.vmap(on, out_axes=1)(labels)

    each_seed = jax.vmap(run, in_axes=(0, None), out_axes=2)
    factors = jnp.asarray([_SEEN[name] for name in seen])
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(each_seed, in_axes=(None, 0)))(keys, factors))
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], found) for i, name in enumerate(seen)}


def _correlation(a: Array, b: Array) -> Array:
    a, b = a - a.mean(), b - b.mean()
    length = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.where(length > 0, (a @ b) / jnp.where(length > 0, length, 1.0), 0.0)


def measure(size: Size) -> Finding:
    scale = SCALES[size]
    steps = np.unique(np.geomspace(10, scale.steps, scale.snapshots).round().astype(int))
    found, cosines = {}, {}
    for loss in LOSSES:
        everywhere = _train(loss, _PLACES[_ALL], tuple(_SEEN), scale, steps)
        cosines |= {(loss, name): seen.cosine for name, seen in everywhere.items()}
        found[loss, _ALL] = everywhere[_BOTH]
        found[loss, _ONE] = _train(loss, _PLACES[_ONE], (_BOTH,), scale, steps)[_BOTH]
    checks = [check for loss in LOSSES for check in _judged(found[loss, _ALL], loss)]
    checks += [_both_are_needed({name: cosines[loss, name] for name in _SEEN}, loss) for loss in LOSSES]
    drawings = [
        _curves(found, steps),
        _layers(found),
        _cosines_drawn(cosines),
        _surfaces(found["log loss", _ALL]),
    ]
    return Finding(checks, drawings, list(range(scale.seeds)), _remarks(found, cosines, steps, scale))


def _judged(seen: Seen, loss: str) -> list[Check]:
    """Of SGs everywhere; a number a seed, the mean over both label sets."""
    by_layer = seen.correlation.mean(1)  # (snapshots, seeds, SGs)
    nearer_the_top = interval((by_layer[..., -1] - by_layer[..., 0]).mean(0))
    best = by_layer.mean((1, 2)).argmax()
    falls = interval((by_layer[best] - by_layer[-1]).mean(-1))
    return [
        positive(
            f"{loss}, SGs everywhere: correlation of implied and true loss, mean over training, highest"
            " SG above the lowest",
            nearer_the_top,
        ),
        positive(
            f"{loss}, SGs everywhere: the same, mean of all SGs, where it is best above the end", falls
        ),
    ]


def _both_are_needed(cosines: dict[str, np.ndarray], loss: str) -> Check:
    """Cosines (snapshots, label sets, seeds, SGs) by what SGs see; a number a seed."""
    means = {seen: found.mean((0, 1, 3)) for seen, found in cosines.items()}
    one = np.maximum(means["h alone"], means["y alone"])
    return positive(
        f"{loss}, SGs everywhere: cosine with the true gradient, mean over training and SGs, of SGs that"
        " see h and y above the better of those that see one alone",
        interval(means[_BOTH] - one),
    )


def _remarks(
    found: dict[tuple[str, str], Seen],
    cosines: dict[tuple[str, str], np.ndarray],
    steps: np.ndarray,
    scale: Scale,
) -> str:
    told = []
    for (loss, place), seen in found.items():
        by_snapshot = seen.correlation.mean((1, 2, 3))
        best = by_snapshot.argmax()
        told.append(
            f"{loss}, {place}: {by_snapshot[best]:.2f} at step {steps[best]}, {by_snapshot[-1]:.2f} at"
            " the end"
        )
    agree = [f"{loss}, SGs see {seen}: {own.mean():.2f}" for (loss, seen), own in cosines.items()]
    return (
        f"A grid of {_SIDE} x {_SIDE} points, {HIDDEN} hidden ReLU layers of {_WIDTH}, linear SGs, Adam"
        f" (0.001; SGs 0.01), {scale.steps} steps of all points, {scale.seeds} seeds. Correlation over"
        f" the points, where it is best and at the end, mean of SGs: {'; '.join(told)}. Cosine with the"
        f" true gradient, mean of everything: {'; '.join(agree)}. A linear SG of a log loss has no"
        f" prediction between 0 and 1 by itself: what it tells is cut off at {_LEAST:g} and {_MOST:g}."
    )


def _curves(found: dict[tuple[str, str], Seen], steps: np.ndarray) -> Drawing:
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    grid = figure.subplots(len(LOSSES), len(_LABELS), sharex=True, sharey=True)
    for row, loss in zip(grid, LOSSES, strict=True):
        for k, axes in enumerate(row):
            for i in range(HIDDEN):
                own = found[loss, _ALL].correlation[:, k, :, i].mean(1)
                axes.semilogx(steps, own, color=COLOURS[i], label=f"SGs everywhere, layer {i + 1}")
            one = found[loss, _ONE].correlation[:, k, :, 0].mean(1)
            axes.semilogx(steps, one, color="black", linestyle="--", label="one SG")
            axes.set_title(f"{loss}, {_LABELS[k]}", fontsize=10)
        row[0].set_ylabel("correlation")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    grid[0][0].legend(fontsize=7)
    return Drawing(
        figure, "Correlation, over the points, of the loss that an SG stands for with the true one."
    )


def _layers(found: dict[tuple[str, str], Seen]) -> Drawing:
    panels = [
        Panel(
            f"{loss}: correlation, mean\nover training",
            {label: found[loss, _ALL].correlation[:, k].mean(0) for k, label in enumerate(_LABELS)},
        )
        for loss in LOSSES
    ]
    return Drawing(
        draw_by_layer(panels, range(1, HIDDEN + 1), "SG above hidden layer"),
        "The same by layer, SGs everywhere: means over seeds, with bands from the least to the largest.",
    )


def _cosines_drawn(cosines: dict[tuple[str, str], np.ndarray]) -> Drawing:
    panels = [
        Panel(
            f"{loss}: cosine, mean over training",
            {f"SGs see {seen}": cosines[loss, seen].mean((0, 1)) for seen in _SEEN},
        )
        for loss in LOSSES
    ]
    return Drawing(
        draw_by_layer(panels, range(1, HIDDEN + 1), "SG above hidden layer"),
        "How well what an SG hands down agrees with the true gradient, by what SGs see: means over both"
        " label sets and over seeds, with bands from the least to the largest seed.",
    )


def _surfaces(seen: Seen) -> Drawing:
    """Of the first seed, half of the labels random."""
    rows = np.unique(np.linspace(0, len(seen.true) - 1, 3).round().astype(int))
    shown = [0, HIDDEN // 2, HIDDEN - 1]
    figure = Figure(figsize=(9, 2.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(shown) + 1, squeeze=False)
    for line, at in zip(grid, rows, strict=True):
        surfaces = {"true loss": seen.true[at, 0, 0]}
        surfaces |= {f"SG above layer {i + 1}": seen.implied[at, 0, 0, i] for i in shown}
        for axes, (name, values) in zip(line, surfaces.items(), strict=True):
            axes.imshow(values.reshape(_SIDE, _SIDE), origin="lower", cmap="cividis")
            axes.set(xticks=[], yticks=[])
            if at == rows[0]:
                axes.set_title(name, fontsize=9)
        line[0].set_ylabel(f"look {at + 1}", fontsize=9)
    return Drawing(
        figure,
        "The loss of each point of the plane, and what SGs take it for, each in its own scale; early, in"
        " between and at the end of training. Log loss, half of the labels random, SGs everywhere, one"
        " seed.",
    )


CLAIM = Claim(
    id="loss-surfaces",
    module="experiments.loss_surfaces",
    title="The loss that SGs stand for, layer by layer",
    claim="The loss that an SG stands for is nearer to the true one the higher the SG stands, and nearest"
    " early in training; later it drifts away. SGs that see h alone, or the label alone, are worse.",
    source="U17, figure 2; that SGs that see h or y alone are worse is from memory",
    certainty="told",
    how="A network with 5 hidden ReLU layers learns the class of each point of a grid in the plane, where"
    " half or all of the labels are random, with one linear SG or one after every hidden layer. The"
    " label at which an SG vanishes is what it predicts; the loss of that prediction, at every point"
    " with its own label, is compared with the network's own loss there. An SG that sees h or the label"
    " alone has no such label; so with it the gradients are compared.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

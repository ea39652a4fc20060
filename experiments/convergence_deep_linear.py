"""U17: deep linear networks with SGs, compared with backprop from the same start.

python -m experiments.convergence_deep_linear
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from decoupled.estimators import as_given, linear, loss_shaped, one_hot
from decoupled.learning.learner import Learner, make_learner
from decoupled.learning.state import LearnerState
from decoupled.losses import softmax_cross_entropy, squared_error
from decoupled.types import Array, Estimator, Key, Loss, Module
from experiments.claim import Check, Claim, Drawing, Finding, Size, at_least, at_most, main
from experiments.linear_networks import (
    Layer,
    in_float64,
    layers_of,
    least_squares_loss,
    line_searched,
    linear_module,
    near_orthogonal,
    whole_map,
    with_layers,
)
from experiments.toy_data import SETS, signed


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
      seeds: of data and start.
      hidden: layers.
      sizes: examples, and steps of training on all of them, by number of dimensions.
    """

    seeds: int
    hidden: int
    sizes: dict[int, tuple[int, int]]


SCALES: dict[Size, Scale] = {
    "trial": Scale(1, 1, {2: (40, 100)}),
    "quick": Scale(2, 10, {2: (100, 1000), 100: (300, 2500)}),
    "full": Scale(4, 10, {2: (100, 2000), 100: (300, 4000)}),
}
_WIDTH, _RATE = 8, 0.05
_RECORDED = 50  # points of a trajectory
_SEPARABLE = "linearly separable"


class Task(NamedTuple):
    """A loss, and the SGs that are tried with it.

    Attributes:
      outputs: of the network.
      loss: of output and y.
      encode: labels (n,) -> y.
      predict: output -> what two networks are compared by: the output, or the classes' probabilities.
      estimators: by name of their form.
    """

    outputs: int
    loss: Loss
    encode: Callable[[Array], Array]
    predict: Callable[[Array], Array]
    estimators: dict[str, Estimator]


class Track(NamedTuple):
    """One method's way beside backprop's from the same start, (points,) each.

    Attributes:
      loss: mean.
      function: root mean squared difference of the two networks' predictions over the examples.
      parameters: distance of the two networks' parameters, as a fraction of how far backprop has gone.
    """

    loss: Array
    function: Array
    parameters: Array


def tasks() -> dict[str, Task]:
    one_hot_2 = one_hot(2)
    linear_forms = {"linear": line_searched(linear(as_given))}
    softmax_forms = {
        "linear": line_searched(linear(one_hot_2)),
        # Not affine in its parameters: the search is one Gauss-Newton step along the gradient.
        "softmax": line_searched(loss_shaped(2, one_hot_2)),
    }
    return {
        "squared error": Task(1, squared_error, signed, lambda out: out, linear_forms),
        "log loss": Task(2, softmax_cross_entropy, lambda labels: labels, jax.nn.softmax, softmax_forms),
    }


def learners(task: Task, widths: Sequence[int]) -> dict[str, Learner]:
    """Backprop, and every kind of SG at one boundary and at all."""
    middle = len(widths) // 2
    cuts = {
        "middle": [linear_module(widths[: middle + 1], "lower"), linear_module(widths[middle:], "upper")],
        "everywhere": [
            linear_module(pair, f"layer_{i}") for i, pair in enumerate(itertools.pairwise(widths))
        ],
    }

    def learner(modules: list[Module], boundaries: list[Estimator]) -> Learner:
        return make_learner(modules, boundaries, task.loss, optax.sgd(_RATE), optax.sgd(1.0))

    return {"backprop": learner([linear_module(widths, "network")], [])} | {
        f"{form} SG, {place}": learner(modules, [estimator] * (len(modules) - 1))
        for form, estimator in task.estimators.items()
        for place, modules in cuts.items()
    }


def tracks(task: Task, widths: Sequence[int], x: Array, y: Array, key: Key, steps: int) -> dict[str, Track]:
    """Trains all methods side by side from one start, on all examples in each step."""
    methods = learners(task, widths)
    start = near_orthogonal(key, widths)
    states = {
        name: with_layers(learner, in_float64(learner.init(key, x, y)), start)
        for name, learner in methods.items()
    }
    every = max(1, steps // _RECORDED)

    def update(_: Any, states: dict[str, LearnerState]) -> dict[str, LearnerState]:
        return {name: methods[name].update(state, x, y, key)[0] for name, state in states.items()}

    def measured(states: dict[str, LearnerState]) -> dict[str, Track]:
        layers = {name: layers_of(state) for name, state in states.items()}
        reference = layers["backprop"]
        gone = _distance(reference, start)

        def predictions(own: Sequence[Layer]) -> Array:
            return task.predict(_output(own, x))

        return {
            name: Track(
                task.loss(_output(own, x), y).mean(),
                _root_mean_square(predictions(own) - predictions(reference)),
                _distance(own, reference) / jnp.where(gone > 0, gone, 1.0),
            )
            for name, own in layers.items()
        }

    def interval(states, _):
        states = jax.lax.fori_loop(0, every, update, states)
        return states, measured(states)

    _, later = jax.lax.scan(interval, states, length=steps // every)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), measured(states), later)


def _root_mean_square(differences: Array) -> Array:
    """Over examples, of the lengths of their rows."""
    return jnp.sqrt(jnp.sum(jnp.square(differences), axis=1).mean())


def _output(layers: Sequence[Layer], x: Array) -> Array:
    whole = whole_map(layers)
    return x @ whole["W"] + whole["b"][None, :]


def _distance(a: Any, b: Any) -> Array:
    return optax.tree.norm(jax.tree.map(jnp.subtract, a, b))


class Measured(NamedTuple):
    """Tracks of one loss in one number of dimensions, leaves (sets, seeds, points).

    Attributes:
      tracks: one a method.
      optimum: least mean squared error, (sets, seeds); NaN for a log loss.
    """

    tracks: dict[str, Track]
    optimum: np.ndarray


def measure(size: Size) -> Finding:
    scale = SCALES[size]
    with jax.enable_x64(True):
        measured = {
            (name, dim): _measured(task, dim, scale)
            for dim in scale.sizes
            for name, task in tasks().items()
        }
    return _finding(measured, scale)


def _measured(task: Task, dim: int, scale: Scale) -> Measured:
    """One loss in one number of dimensions, on all sets and seeds at once."""
    examples, steps = scale.sizes[dim]
    keys = [jax.random.key(seed) for seed in range(scale.seeds)]
    data = [make(jax.random.fold_in(key, 0), examples, dim) for make in SETS.values() for key in keys]
    x, labels = (jnp.stack(parts) for parts in zip(*data, strict=True))
    starts = jnp.stack([jax.random.fold_in(key, 1) for key in keys] * len(SETS))
    y = jax.vmap(task.encode)(labels)
    widths = [dim, *[_WIDTH] * scale.hidden, task.outputs]
    found = jax.jit(jax.vmap(lambda x, y, key: tracks(task, widths, x, y, key, steps)))(x, y, starts)
    shape = (len(SETS), scale.seeds)
    found = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(*shape, -1), found)
    if task.loss is not squared_error:
        return Measured(found, np.full(shape, np.nan))
    optima = [least_squares_loss(*pair) for pair in zip(x, y, strict=True)]
    return Measured(found, np.reshape(optima, shape))


def _finding(measured: dict[tuple[str, int], Measured], scale: Scale) -> Finding:
    squares = [m for (task, _), m in measured.items() if task == "squared error"]
    logs = [m for (task, _), m in measured.items() if task == "log loss"]

    def worst(
        groups: Sequence[Measured], form: str, number: Callable[[Measured, str], np.ndarray]
    ) -> float:
        numbers = [number(m, name) for m in groups for name in m.tracks if form in name]
        return float(np.max(np.nan_to_num(numbers, nan=np.inf)))

    def excess(m: Measured, name: str) -> np.ndarray:
        return np.asarray(m.tracks[name].loss[..., -1] - m.optimum)

    def function(m: Measured, name: str) -> np.ndarray:
        return np.asarray(m.tracks[name].function[..., -1])

    def parameters(m: Measured, name: str) -> np.ndarray:
        return np.asarray(m.tracks[name].parameters[..., -1])

    def above(m: Measured, name: str) -> np.ndarray:
        return np.asarray(m.tracks[name].loss[..., -1] - m.tracks["backprop"].loss[..., -1])

    def above_overlapping(m: Measured, name: str) -> np.ndarray:
        return np.asarray(above(m, name))[[k for k, data in enumerate(SETS) if data != _SEPARABLE]]

    def separable_loss(m: Measured, name: str) -> np.ndarray:
        return np.asarray(m.tracks[name].loss)[list(SETS).index(_SEPARABLE), :, -1]

    all_of = "worst of all sets, dimensions, places of the SG and seeds"
    checks: list[Check] = [
        at_most(
            "squared error, backprop: final loss above least squares, worst",
            worst(squares, "backprop", excess),
            1e-8,
        ),
        at_most(
            f"squared error, linear SG: final loss above least squares, {all_of}",
            worst(squares, "linear", excess),
            1e-8,
        ),
        # Two losses within 1e-8 of the least allow 2 sqrt(2e-8) between the outputs.
        at_most(
            f"squared error, linear SG: outputs' final distance to backprop's (rms), {all_of}",
            worst(squares, "linear", function),
            3e-4,
        ),
        at_most(
            "log loss, classes overlap, softmax SG: final loss above backprop's, nats, worst",
            worst(logs, "softmax", above_overlapping),
            1e-4,
        ),
        at_most(
            "log loss, separable classes, softmax SG: final loss, nats, worst (there is no minimum; the"
            " losses tend to 0)",
            worst(logs, "softmax", separable_loss),
            1e-2,
        ),
        at_least(
            "log loss, linear SG: final loss above backprop's, nats, where it is largest: this form does"
            " not suffice",
            worst(logs, "linear", above),
            1e-3,
        ),
    ]
    by_set = {
        (dim, name): max(float(above(m, method)[k].max()) for method in m.tracks if "linear" in method)
        for (task, dim), m in measured.items()
        if task == "log loss"
        for k, name in enumerate(SETS)
    }
    listed = "; ".join(f"{name}, {dim} dimensions: {value:.2g}" for (dim, name), value in by_set.items())
    sizes = ", ".join(f"{n} points and {t} steps in {d} dimensions" for d, (n, t) in scale.sizes.items())
    separable = worst(logs, "softmax", lambda m, name: above(m, name)[[list(SETS).index(_SEPARABLE)]])
    remarks = (
        f"{scale.hidden} hidden layers of {_WIDTH}, {scale.seeds} seeds, {sizes}; gradient descent on the"
        f" whole set at rate {_RATE:g} and SGs by line search, float64. With squared error all methods end"
        " in the same function. Their parameters do not end in the same place, since many factors give"
        f" one product: they are up to {worst(squares, 'middle', parameters):.2g} of backprop's own way"
        f" apart with one SG, up to {worst(squares, 'everywhere', parameters):.2g} with an SG everywhere;"
        " they part in the first steps, before the SGs have learnt. With a log loss the gradient is not"
        f" linear in (h, y). The linear SG's final loss above backprop's, in nats (largest): {listed}. Why"
        " a linear SG reaches the same loss in 2 dimensions where the classes overlap: the error of a"
        " least-squares fit is orthogonal to h, so that where h still holds all of x the mean of x SG is"
        " the mean of x dL/dh, and the layers below get the right mean gradient from wrong single ones."
        f" In 100 dimensions h, {_WIDTH} wide, does not hold all of x, and the network comes to rest"
        " elsewhere. The softmax form (softmax(hW' + b) - y)V can be the gradient, and ends at backprop's"
        " loss where there is a minimum. On separable sets a log loss has none, all losses are still"
        f" falling, and after the same number of steps the softmax SG's is up to {separable:.2g} nats"
        " above backprop's, or below it: asked to end within 1e-4 of it there too, as this check first was,"
        " it fails. Fitted by Adam and not by line search, the softmax SG diverged in many runs."
    )
    drawings = [_drawing(task, dim, m, scale) for (task, dim), m in measured.items()]
    return Finding(checks, drawings, list(range(scale.seeds)), remarks)


_COLOURS = {
    "backprop": ("#000000", "-"),
    "linear SG, middle": ("#0072b2", "--"),
    "linear SG, everywhere": ("#56b4e9", "-."),
    "softmax SG, middle": ("#d55e00", "--"),
    "softmax SG, everywhere": ("#e69f00", "-."),
}


def _drawing(task: str, dim: int, measured: Measured, scale: Scale) -> Drawing:
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    grid = figure.subplots(3, len(SETS), sharex=True, sharey="row")
    every = max(1, scale.sizes[dim][1] // _RECORDED)
    steps = every * np.arange(measured.tracks["backprop"].loss.shape[-1])
    methods = [name for name in _COLOURS if name in measured.tracks]
    with_optimum = np.isfinite(measured.optimum).all()
    rows = {
        "loss": "loss above\nleast squares" if with_optimum else "log loss (nats)",
        "function": "predictions: distance\nto backprop's (rms)",
        "parameters": "parameters: distance\nto backprop's / its way",
    }
    for (field, label), row in zip(rows.items(), grid, strict=True):
        row[0].set_ylabel(label, fontsize=9)
        for k, axes in enumerate(row):
            for name in methods:
                values = getattr(measured.tracks[name], field)[k]
                if field == "loss" and with_optimum:
                    values = np.maximum(values - measured.optimum[k][:, None], 1e-16)
                colour, style = _COLOURS[name]
                if field == "loss":
                    axes.plot(steps, values.T, color=colour, linestyle=style, linewidth=1)
                elif name != "backprop":  # at step 0 the distance is 0
                    axes.plot(steps[1:], values[:, 1:].T, color=colour, linestyle=style, linewidth=1)
            logarithmic = field == "function" or (field == "loss" and with_optimum)
            axes.set_yscale("log" if logarithmic else "linear")
            axes.tick_params(labelsize=8)
    for axes, name in zip(grid[0], SETS, strict=True):
        axes.set_title(name, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=9)
    styles = [_COLOURS[name] for name in methods]
    lines = [grid[0][0].plot([], [], color=colour, linestyle=style)[0] for colour, style in styles]
    figure.legend(lines, methods, loc="outside upper center", ncols=5, fontsize=9, frameon=False)
    less = ", less the least-squares loss (below 1e-16 drawn there)" if with_optimum else ""
    kind = "outputs" if with_optimum else "class probabilities"
    return Drawing(
        figure,
        f"{task.capitalize()}, {dim} dimensions: a column a data set, a line a seed. First row: the"
        f" loss{less}. Second: how far the network's {kind} are from those of the network that backprop"
        " trains from the same start, root mean square over the examples. Third: how far its parameters"
        " are, as a fraction of the way that backprop has gone.",
    )


CLAIM = Claim(
    id="convergence-deep-linear",
    module="experiments.convergence_deep_linear",
    title="Linear SGs converge in deep linear networks",
    claim="With squared error a deep linear network with linear SGs converges to the same loss as with"
    " backprop; with a log loss it need not, unless the SG can take the form of the gradient.",
    source="U17, on learning dynamics; the half on the log loss is this project's",
    certainty="told",
    how="A deep linear network is trained on four data sets (XOR and a ring are this project's), in 2 and"
    " in 100 dimensions, from one start by backprop, with one SG in the middle, and with an SG at every"
    " boundary. NumPy's least squares gives the lowest squared error; for the log loss backprop's own"
    " loss is the measure. Two networks"
    " are compared by their predictions and by their parameters, as training goes on.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

"""U17: critical points of the loss stay critical when synthetic gradients take part.

python -m experiments.critical_points
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from decoupled.analysis import CriticalPoint, best_linear, critical_point
from decoupled.estimators import as_given, backprop, linear, one_hot
from decoupled.learning.learner import Learner, make_learner
from decoupled.learning.state import LearnerState
from decoupled.losses import softmax_cross_entropy, squared_error
from decoupled.modules import from_functions
from decoupled.modules.chains import init_chain
from decoupled.types import Array, Estimator, Key, Loss, Module, PyTree
from experiments.claim import Check, Claim, Drawing, Finding, Size, at_least, at_most, main
from experiments.linear_networks import linear_module


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
      seeds: of data and start.
      descent_steps: before Newton's method.
      hidden: layers of the deep linear network.
    """

    seeds: int
    descent_steps: int
    hidden: int


SCALES: dict[Size, Scale] = {
    "trial": Scale(1, 300, 2),
    "quick": Scale(5, 3000, 4),
    "full": Scale(20, 10000, 4),
}
_FEATURES, _HIDDEN, _OUTPUTS, _EXAMPLES = 6, 4, 3, 60
_RELU_FEATURES, _RELU_WIDTH, _RELU_EXAMPLES = 8, 48, 100


class Found(NamedTuple):
    """Critical points of one kind of network, a seed along each leading axis.

    Attributes:
      points: the conditions, with the best linear SG at every boundary.
      misfit: 1 - R² of those SGs, the worst of all boundaries; 0 where they are exact.
      excess: of the loss over the global minimum.
    """

    points: CriticalPoint
    misfit: Array
    excess: Any


class Network(NamedTuple):
    """One network, trained by backprop and with linear SGs at all boundaries."""

    modules: Sequence[Module]
    loss: Loss
    context: Callable[[Array], Array]

    def learner(self, estimator: Estimator, steps: int) -> Learner:
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
        boundaries = [estimator] * (len(self.modules) - 1)
        return make_learner(self.modules, boundaries, self.loss, optimizer, optax.sgd(0.0))


def _key() -> Key:
    """Of steps in which nothing is drawn."""
    return jax.random.key(0)


def measure(size: Size) -> Finding:
    scale = SCALES[size]
    with jax.enable_x64(True):
        found = {
            **_linear_networks("linear", [_FEATURES, _HIDDEN, _OUTPUTS], scale),
            **_linear_networks("deep linear", [_FEATURES, *[_HIDDEN] * scale.hidden, _OUTPUTS], scale),
            "ReLU, zero loss": _relu_network(scale),
        }
        control = _log_loss_network(scale)
    # NumPy arrays stay in float64 outside as well.
    found = {name: jax.tree.map(np.asarray, f) for name, f in found.items()}
    control = jax.tree.map(np.asarray, control)
    finding = _finding(found, control, scale)
    return finding._replace(drawings=[_drawing({**found, "log loss, control": control})])


def _linear_networks(name: str, widths: list[int], scale: Scale) -> dict[str, Found]:
    """Squared error; minima, and saddles, to which backprop is driven from starts of low rank."""
    modules = [linear_module(pair, f"layer_{i}") for i, pair in enumerate(_pairs(widths))]
    network = Network(modules, squared_error, as_given)
    starts = {"minimum": _HIDDEN, "saddle of rank 1": 1, "zero weights": 0}

    def one(seed: Array, live: Array) -> tuple[CriticalPoint, Array, Array, Array]:
        data_key, start_key = jax.random.split(jax.random.key(seed))
        x, y = _regression(data_key)
        start = [_silenced(p.params, live, i, len(modules)) for i, p in _start(modules, start_key, x)]
        return *_measured(network, start, x, y, scale, _newton), x, y

    each = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))
    points, misfit, x, y = each(jnp.arange(scale.seeds), jnp.asarray(list(starts.values())))
    optimum = np.array([_least_squares_loss(*pair) for pair in zip(x[0], y[0], strict=True)])
    return {
        f"{name}: {start}": Found(
            jax.tree.map(lambda leaf, k=k: leaf[k], points), misfit[k], points.loss[k] - optimum
        )
        for k, start in enumerate(starts)
    }


def _relu_network(scale: Scale) -> Found:
    """Squared error of random targets, which the network interpolates."""
    widths = [_RELU_FEATURES, _RELU_WIDTH, _RELU_WIDTH]
    modules = [_relu_module(pair, f"hidden_{i}") for i, pair in enumerate(_pairs(widths))]
    modules.append(linear_module([_RELU_WIDTH, 1], "output"))
    network = Network(modules, squared_error, as_given)

    def one(seed: Array) -> tuple[CriticalPoint, Array]:
        x_key, y_key, start_key = jax.random.split(jax.random.key(seed), 3)
        x = jax.random.normal(x_key, (_RELU_EXAMPLES, _RELU_FEATURES))
        y = jax.random.normal(y_key, (_RELU_EXAMPLES, 1))
        start = [p.params for _, p in _start(modules, start_key, x)]
        return _measured(network, start, x, y, scale, _gauss_newton)

    points, misfit = jax.jit(lambda seeds: jax.lax.map(one, seeds))(jnp.arange(scale.seeds))
    return Found(points, misfit, points.loss)


def _log_loss_network(scale: Scale) -> Found:
    """The control: a log loss, whose gradient no linear SG can represent."""
    widths = [_FEATURES, _HIDDEN, _OUTPUTS]
    modules = [linear_module(pair, f"layer_{i}") for i, pair in enumerate(_pairs(widths))]
    network = Network(modules, softmax_cross_entropy, one_hot(_OUTPUTS))

    def one(seed: Array) -> tuple[CriticalPoint, Array]:
        data_key, start_key, label_key = jax.random.split(jax.random.key(seed), 3)
        x, logits = _regression(data_key)
        y = jax.random.categorical(label_key, logits)
        start = [p.params for _, p in _start(modules, start_key, x)]
        return _measured(network, start, x, y, scale, _newton)

    points, misfit = jax.jit(jax.vmap(one))(jnp.arange(scale.seeds))
    return Found(points, misfit, np.full(scale.seeds, np.nan))


def _measured(
    network: Network, start: list[PyTree], x: Array, y: Array, scale: Scale, polish: Callable[..., Array]
) -> tuple[CriticalPoint, Array]:
    """Backprop from `start` to a critical point, there the best SGs, then the conditions."""
    by_backprop = network.learner(backprop(), scale.descent_steps)
    by_sg = network.learner(linear(network.context), scale.descent_steps)
    state = _with_params(by_backprop, by_backprop.init(_key(), x, y), start)

    def step(state: LearnerState, _: None) -> tuple[LearnerState, None]:
        return by_backprop.update(state, x, y, _key())[0], None

    state, _ = jax.lax.scan(step, state, length=scale.descent_steps)
    vector, unravel = ravel_pytree([module.params for module in state.modules])

    def output(vector: Array) -> Array:
        return by_backprop.predict(_with_params(by_backprop, state, unravel(vector)), x)

    # Descent would take millions of steps to a gradient of 1e-9.
    vector = polish(output, lambda out: network.loss(out, y).mean(), vector, y)
    state = _with_params(by_sg, by_sg.init(_key(), x, y), unravel(vector))
    state, misfit = _with_best_estimators(by_sg, state, x, y, network.context(y))
    return critical_point(by_sg, state, x, y, _key()), misfit


def _with_best_estimators(
    learner: Learner, state: LearnerState, x: Array, y: Array, context: Array
) -> tuple[LearnerState, Array]:
    """The best linear SG at every boundary, from the highest down; and the worst 1 - R²."""
    h_ins = [x]
    for module, own in zip(learner.modules, state.modules, strict=True):
        h_ins.append(module.apply(own.params, own.state, h_ins[-1], _key(), True)[0])
    estimators, misfit, est_params = list(state.estimators), jnp.zeros(()), None
    for i in reversed(range(1, len(learner.modules))):
        target = learner.update_module[i](state.modules[i], est_params, h_ins[i], y, _key()).grad_h_in
        assert target is not None
        fit = best_linear(h_ins[i], target, context)
        est_params, misfit = fit.params, jnp.maximum(misfit, 1 - fit.r2)
        estimators[i - 1] = estimators[i - 1]._replace(params=est_params)
    return state._replace(estimators=tuple(estimators)), misfit


def _newton(output: Callable[[Array], Array], loss: Callable, vector: Array, y: Array) -> Array:
    """To the nearest critical point of any kind; directions without curvature are left alone.

    In a linear network critical points are not isolated: along some directions nothing changes.
    """
    del y

    def mean_loss(vector: Array) -> Array:
        return loss(output(vector))

    def step(vector: Array, _: None) -> tuple[Array, None]:
        curvature, directions = jnp.linalg.eigh(jax.hessian(mean_loss)(vector))
        along = directions.T @ jax.grad(mean_loss)(vector)
        curved = jnp.abs(curvature) > 1e-8 * jnp.abs(curvature).max()
        return vector - directions @ jnp.where(curved, along / jnp.where(curved, curvature, 1.0), 0.0), None

    return jax.lax.scan(step, vector, length=15)[0]


def _gauss_newton(output: Callable[[Array], Array], loss: Callable, vector: Array, y: Array) -> Array:
    """To zero squared error, by the smallest step that would reach it were the network linear."""
    del loss

    def step(vector: Array, _: None) -> tuple[Array, None]:
        jacobian = jax.jacrev(lambda v: output(v).ravel())(vector)
        residual = (output(vector) - y).ravel()
        weights = jax.scipy.linalg.solve(jacobian @ jacobian.T, residual, assume_a="pos")
        return vector - jacobian.T @ weights, None

    return jax.lax.scan(step, vector, length=15)[0]


def _with_params(learner: Learner, state: LearnerState, params: Sequence[PyTree]) -> LearnerState:
    optimizer = learner.rules.optimizer
    modules = tuple(
        module._replace(params=own, opt_state=optimizer.init(own))
        for module, own in zip(state.modules, params, strict=True)
    )
    return state._replace(modules=modules)


def _start(modules: Sequence[Module], key: Key, x: Array) -> Any:
    return enumerate(init_chain(modules, key, x))


def _silenced(layers: PyTree, live: Array, i: int, depth: int) -> PyTree:
    """Layer i of `depth`, with all weights to and from hidden units beyond the first `live` at zero.

    No gradient reaches such units, nor comes from them, so that backprop leaves them as they are: the
    network keeps the rank `live`, and ends in a saddle if more would have lowered the loss.
    """
    (layer,) = layers
    from_live, to_live = (jnp.arange(n) < live for n in layer["W"].shape)
    W = layer["W"] if i == 0 else jnp.where(from_live[:, None], layer["W"], 0.0)
    return ({**layer, "W": W if i == depth - 1 else jnp.where(to_live[None, :], W, 0.0)},)


def _relu_module(widths: Sequence[int], name: str) -> Module:
    def init(key: Key, h: Array) -> PyTree:
        del h
        W = jax.nn.initializers.he_normal()(key, tuple(widths), jnp.result_type(float))
        return {"W": W, "b": jnp.zeros((widths[1],))}

    return from_functions(init, lambda p, h: jax.nn.relu(h @ p["W"] + p["b"][None, :]), name)


def _regression(key: Key) -> tuple[Array, Array]:
    """x, (examples, features), and a noisy linear function of it, (examples, outputs)."""
    x_key, map_key, noise_key = jax.random.split(key, 3)
    x = jax.random.normal(x_key, (_EXAMPLES, _FEATURES))
    clean = x @ jax.random.normal(map_key, (_FEATURES, _OUTPUTS)) / _FEATURES**0.5
    return x, clean + 0.5 * jax.random.normal(noise_key, clean.shape)


def _least_squares_loss(x: Array, y: Array) -> float:
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    residual = inputs @ np.linalg.lstsq(inputs, y, rcond=None)[0] - y
    return float(0.5 * np.mean(np.sum(residual**2, axis=1)))


def _pairs(widths: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(widths))


def _finding(found: dict[str, Found], control: Found, scale: Scale) -> Finding:
    def worst(choose: Callable[[Found], Any]) -> float:
        return float(max(np.max(jax.tree.leaves(choose(f))) for f in found.values()))

    linear_ones = [f for name, f in found.items() if "linear" in name]
    saddles = [f for name, f in found.items() if "saddle" in name or "zero weights" in name]
    kept = "worst of all networks and seeds"
    checks: list[Check] = [
        at_most(
            f"backprop's gradient norm |dL/dθ| at its critical points, {kept}",
            worst(lambda f: f.points.gradient),
            1e-9,
        ),
        at_most(f"|dL/dθ| above the boundary, {kept}", worst(lambda f: f.points.above), 1e-8),
        at_most(f"|SG(h, y) dh/dθ| below a boundary, {kept}", worst(lambda f: f.points.below), 1e-8),
        at_most(f"|dL_SG/dφ| at a boundary, {kept}", worst(lambda f: f.points.fit), 1e-8),
        at_most(
            "linear networks: 1 - R² of the best linear SG, worst",
            max(float(np.max(f.misfit)) for f in linear_ones),
            1e-9,
        ),
        at_least(
            "loss of the saddles above the global minimum, smallest: they are no minima",
            min(float(np.min(f.excess)) for f in saddles),
            1e-3,
        ),
        at_least(
            "control, log loss with the best linear SG: |SG(h, y) dh/dθ| at the minimum, smallest",
            float(np.min(control.points.below)),
            1e-3,
        ),
    ]
    r2 = 1 - np.asarray(control.misfit)
    remarks = (
        f"Networks: linear {_FEATURES}-{_HIDDEN}-{_OUTPUTS} with one boundary; deep linear with"
        f" {scale.hidden} hidden layers of {_HIDDEN} and a boundary above each; ReLU with two hidden"
        f" layers of {_RELU_WIDTH} and a boundary above each, interpolating {_RELU_EXAMPLES} random"
        f" targets; {scale.seeds} seeds, float64. For the saddles backprop was started with hidden units"
        " that have zero weights in and out: no gradient ever reaches them. In linear networks every"
        " minimum is global (Baldi & Hornik 1989, Kawaguchi 2016), so that a critical point with a higher"
        " loss is a saddle. At zero loss each example's gradient is zero, and any SG that can be zero"
        " represents it. The control shows that the conditions can fail: where a log loss bends the"
        f" gradient, the best linear SG reaches an R² of only {r2.min():.3f} to {r2.max():.3f}, and at the"
        " minimum of the loss the layer below is still pushed away. (That needs the bottleneck: a"
        " least-squares SG errs orthogonally to h, so that if h still held all of x the layer's mean"
        " gradient would be right for any loss.) The converse of the proposition is not claimed: an SG that"
        " cannot represent the gradient makes critical points of its own. In a linear network with squared"
        " error there are none: the SG loss is convex in φ and its minimum exact, so where it is at rest"
        " SG(h, y) = dL/dh on the data."
    )
    return Finding(checks, [], list(range(scale.seeds)), remarks)


_MARKS = (
    ("gradient", "|dL/dθ|, backprop", "#000000", "x"),
    ("above", "|dL/dθ| above", "#0072b2", "o"),
    ("below", "|SG(h, y) dh/dθ| below", "#d55e00", "^"),
    ("fit", "|dL_SG/dφ|", "#009e73", "s"),
)
_FLOOR = 1e-18


def _drawing(found: dict[str, Found]) -> Drawing:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for column, f in enumerate(found.values()):
        for k, (field, label, colour, marker) in enumerate(_MARKS):
            values = np.concatenate([np.ravel(v) for v in jax.tree.leaves(getattr(f.points, field))])
            place = column + 0.18 * (k - 1.5) + np.linspace(-0.05, 0.05, len(values))
            style = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 4}
            axes.plot(place, np.maximum(values, _FLOOR), **style, label=label if column == 0 else None)
    axes.axvspan(len(found) - 1.5, len(found) - 0.5, color="#eeeeee", zorder=0)
    axes.axhline(1e-8, color="#cc79a7", linestyle="--", label="bound, 1e-8")
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR / 5, 10)
    axes.set_xlim(-0.5, len(found) - 0.5)
    axes.set_xticks(range(len(found)), [name.replace(": ", ":\n").replace(", ", ",\n") for name in found])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel("norm (gradient of a mean over examples)")
    axes.legend(loc="upper left", ncols=5, fontsize=8, bbox_to_anchor=(0, 1.12), frameon=False)
    caption = (
        "One mark a seed (and boundary): what must vanish at a critical point, at points where backprop's"
        f" own gradient has vanished. Norms below {_FLOOR:g} are drawn there. In the shaded column the SG"
        " cannot represent the gradient: the triangles stay high, and the point is not kept."
    )
    return Drawing(figure, caption)


CLAIM = Claim(
    id="critical-points",
    module="experiments.critical_points",
    title="Critical points are kept",
    claim="Wherever the SG can represent dL/dh, a critical point of the original problem is one of the"
    " system with SGs: dL/dθ vanishes above the boundary, SG(h, y) dh/dθ below it, and dL_SG/dφ in the"
    " SG.",
    source="U17, on critical points; deep linear networks as its case are from memory",
    certainty="told",
    how="Backprop is driven to a critical point: a descent, then Newton's method, until the gradient norm"
    " is below 1e-9. There the best linear SG is fitted to each boundary in closed form (least squares),"
    " from the highest boundary down, and the three conditions are measured as norms: in a linear and a"
    " deep linear network with squared error, at minima and at saddles, and in a ReLU network with zero"
    " loss. As a control, the same in a linear network with a log loss, whose gradient is not linear.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

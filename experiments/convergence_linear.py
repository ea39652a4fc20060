"""U17, theorem 1: linear regression with a linear SG converges to the least-squares solution.

python -m experiments.convergence_linear
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from decoupled.estimators import as_given, backprop, linear
from decoupled.learning.learner import make_learner
from decoupled.losses import squared_error
from decoupled.types import Array, Estimator, PyTree
from experiments.claim import Check, Claim, Drawing, Finding, Size, at_least, at_most, main
from experiments.linear_networks import identity_module, line_searched, linear_module


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
      problems: regression problems, one a seed.
      starts: of the runs with line search, for each problem and rate.
      fixed_starts: of those with a fixed SG rate.
      steps: of every run.
      rates: of the main network, as fractions of the rate at which gradient descent stops converging.
      sg_rates: fixed ones, as fractions of the same limit of the SG loss at the least-squares solution.
    """

    problems: int
    starts: int
    fixed_starts: int
    steps: int
    rates: tuple[float, ...]
    sg_rates: tuple[float, ...]


_RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1)
_SG_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1.1)
SCALES: dict[Size, Scale] = {
    "trial": Scale(1, 5, 2, 300, (0.1, 0.5), (0.3,)),
    "quick": Scale(3, 100, 20, 4000, _RATES, _SG_RATES),
    "full": Scale(5, 100, 20, 8000, (0.01, *_RATES), (0.001, *_SG_RATES)),
}
_FEATURES, _EXAMPLES = 5, 50
_CONVERGED = 1e-8
_RECORDED = 100  # points of a curve


class Problem(NamedTuple):
    """A regression problem; rates are those above which gradient descent diverges.

    Attributes:
      x, y: (examples, features) and (examples, 1).
      optimum: least mean loss.
      largest_rate: of gradient descent on the loss.
      largest_sg_rate: of gradient descent on the SG loss, where h is the least-squares prediction.
    """

    x: Array
    y: Array
    optimum: Array
    largest_rate: Array
    largest_sg_rate: Array


def problem(seed: int) -> Problem:
    """Gaussian points and a noisy linear function of them; NumPy's answers for all that is known."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(_EXAMPLES, _FEATURES))
    y = x @ rng.normal(size=(_FEATURES, 1)) / _FEATURES**0.5 + rng.normal(size=(_EXAMPLES, 1))
    ones = np.ones((_EXAMPLES, 1))
    inputs = np.concatenate([x, ones], axis=1)
    prediction = inputs @ np.linalg.lstsq(inputs, y, rcond=None)[0]
    sg_inputs = np.concatenate([prediction, y, ones], axis=1)
    curvature = np.linalg.eigvalsh(inputs.T @ inputs / _EXAMPLES)[-1]
    sg_curvature = np.linalg.eigvalsh(2 * sg_inputs.T @ sg_inputs / _EXAMPLES)[-1]
    optimum = 0.5 * np.mean((prediction - y) ** 2)
    return Problem(*map(jnp.asarray, (x, y, optimum, 2 / curvature, 2 / sg_curvature)))


def excess_losses(problem: Problem, estimator: Estimator, rate: Array, seed: Array, steps: int) -> Array:
    """Loss above the least-squares solution's, along one run.

    Main network x W + b and SG are trained together, by the library's own update, from random starts: the
    SG too, which so may point uphill at first. NaN once it is infinite.

    Returns:
      (points,): before the first step, then at regular intervals, and after the last step.
    """
    modules = [linear_module([_FEATURES, 1], "linear"), identity_module("output")]
    learner = make_learner(modules, [estimator], squared_error, optax.sgd(rate), optax.sgd(1.0))
    x, y, key = problem.x, problem.y, jax.random.key(seed)
    state = learner.init(key, x, y)
    leaves, structure = jax.tree.flatten((state.modules[0].params, state.estimators[0].params))
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
    random = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    main_params, sg_params = jax.tree.unflatten(structure, random)
    state = state._replace(
        modules=(state.modules[0]._replace(params=main_params), state.modules[1]),
        estimators=(state.estimators[0]._replace(params=sg_params),),
    )

    def excess(state) -> Array:
        return squared_error(learner.predict(state, x), y).mean() - problem.optimum

    def interval(state, _):
        state = jax.lax.fori_loop(0, every, lambda _, s: learner.update(s, x, y, key)[0], state)
        return state, excess(state)

    every = max(1, steps // _RECORDED)
    _, curve = jax.lax.scan(interval, state, length=steps // every)
    return jnp.concatenate([excess(state)[None], curve])


def measure(size: Size) -> Finding:
    scale = SCALES[size]
    with jax.enable_x64(True):
        problems = [problem(seed) for seed in range(scale.problems)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
        rates, sg_rates = jnp.asarray(scale.rates), jnp.asarray(scale.sg_rates)

        def searched(p: Problem, fraction: Array, seed: Array) -> Array:
            rate = fraction * p.largest_rate
            return excess_losses(p, line_searched(linear(as_given)), rate, seed, scale.steps)

        def fixed(p: Problem, sg_fraction: Array, fraction: Array, seed: Array) -> Array:
            sg_rate = optax.sgd(sg_fraction * p.largest_sg_rate)
            sg = linear(as_given)._replace(optimizer=lambda _: sg_rate)
            return excess_losses(p, sg, fraction * p.largest_rate, seed, scale.steps)

        def exact(p: Problem, fraction: Array, seed: Array) -> Array:
            return excess_losses(p, backprop(), fraction * p.largest_rate, seed, scale.steps)

        seeds, few = jnp.arange(scale.starts), jnp.arange(scale.fixed_starts)
        curves = _grid(searched, stacked, rates, seeds)
        fixed_curves = _grid(fixed, stacked, sg_rates, rates, few)
        backprop_curves = _grid(exact, stacked, rates, few)
    return _finding(scale, curves, fixed_curves, backprop_curves)


def _grid(function: Callable[..., Array], *arguments: PyTree) -> np.ndarray:
    """`function` of all combinations of the arguments' values, those of the first along the first axis."""
    for axis in reversed(range(len(arguments))):
        function = jax.vmap(function, [0 if i == axis else None for i in range(len(arguments))])
    return np.asarray(jax.jit(function)(*arguments))


def _finding(scale: Scale, curves: np.ndarray, fixed: np.ndarray, exact: np.ndarray) -> Finding:
    """What was found.

    Args:
      curves: excess losses with line search, (problems, rates, starts, points).
      fixed: with fixed SG rates, (problems, sg_rates, rates, starts, points).
      exact: by backprop, as `curves`.
    """
    converged = curves[..., -1] < _CONVERGED
    per_rate = converged.sum(axis=2).min(axis=0)  # the worst problem's number of starts, one a rate
    reached = np.nan_to_num(curves[:, 0, :, -1], nan=np.inf).max()
    all_converge = np.cumprod(per_rate == scale.starts).astype(bool)
    largest = max(np.asarray(scale.rates)[all_converge], default=0.0)
    smallest = min(scale.rates)
    checks: list[Check] = [
        at_least(
            f"line search: starts of {scale.starts} that reach the least-squares loss to within"
            f" {_CONVERGED:g}, at {smallest:g} of gradient descent's largest rate (worst problem)",
            float(per_rate[0]),
            scale.starts,
        ),
        at_most(
            "line search: loss above the least-squares loss at that rate, worst start", reached, _CONVERGED
        ),
        at_least(
            "line search: largest main rate up to which all starts converge, as a fraction of gradient"
            " descent's largest",
            float(largest),
            smallest,
        ),
    ]
    fractions = (fixed[..., -1] < _CONVERGED).mean(axis=(0, 3))
    diverged = ~np.isfinite(fixed[..., -1]) | (fixed[..., -1] > fixed[..., 0].max())
    stable = np.asarray(scale.rates) < 1
    remarks = (
        f"{scale.problems} problems ({_EXAMPLES} points, {_FEATURES} features and a bias), {scale.starts}"
        f" random starts of network and SG each ({scale.fixed_starts} without line search), {scale.steps}"
        " steps of the whole set, float64. How small the main rate must be: with line search all starts"
        f" converged up to {largest:g} of 2/λmax, the rate above which gradient descent itself diverges."
        " The reason: here the best SG is the same wherever the network is (A = 1, B = -1, c = 0), so"
        " that the SG need only be learnt once; and line search learns it at any scale of h. Without line"
        f" search the outcome depends on the SG's rate: below its limit, {fractions[:, stable].mean():.0%}"
        f" of the runs at stable main rates converged and {diverged[:, :, stable].mean():.0%} diverged"
        " (the rest were on their way). The SG's largest stable rate falls as 1/h²: most starts have a"
        " larger h than the solution, and where the SG points uphill at first, h grows until the fixed"
        " rate is above that limit, and the SG diverges. So the SG must learn slowly enough to be stable,"
        " and fast enough to have turned before h has grown; line search does both."
    )
    drawing = _drawing(scale, curves, fixed, exact)
    return Finding(checks, [drawing], list(range(scale.problems)), remarks)


def _drawing(scale: Scale, curves: np.ndarray, fixed: np.ndarray, exact: np.ndarray) -> Drawing:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    table, lines = figure.subplots(1, 2, width_ratios=(1.45, 1))

    rows = ["backprop", "SG, line search", *(f"SG, rate {rate:g}" for rate in scale.sg_rates)]
    measured = [exact[:, None], curves[:, None], fixed]
    percent = 100 * np.concatenate([(m[..., -1] < _CONVERGED).mean(axis=(0, 3)) for m in measured])
    image = table.imshow(percent, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(percent):
        for j, value in enumerate(row):
            colour = "white" if value < 50 else "black"
            table.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    table.set_xticks(range(len(scale.rates)), [f"{rate:g}" for rate in scale.rates])
    table.set_yticks(range(len(rows)), rows)
    table.set_xlabel("main rate / (2/λmax of the loss)")
    table.set_title("starts that converge, %", fontsize=10)
    figure.colorbar(image, ax=table, label="%", shrink=0.8)

    chosen = int(np.argmin(np.abs(np.asarray(scale.rates) - 0.1)))
    steps = np.arange(curves.shape[-1]) * max(1, scale.steps // _RECORDED)
    floor = 1e-17
    many = np.maximum(curves[0, chosen], floor)
    lines.plot(steps, many.T, color="#56b4e9", linewidth=0.5, alpha=0.5, rasterized=True)
    lines.plot([], [], color="#56b4e9", label="SG, line search: each start")
    lines.plot(steps, np.median(many, axis=0), color="#0072b2", label="median")
    median = np.median(np.maximum(exact[0, chosen], floor), axis=0)
    lines.plot(steps, median, color="#000000", linestyle="--", label="backprop: median")
    lines.axhline(_CONVERGED, color="#d55e00", linestyle=":", label=f"bound, {_CONVERGED:g}")
    lines.set_yscale("log")
    lines.set_xlabel("step")
    lines.set_ylabel("loss above the least-squares loss")
    lines.set_title(f"main rate {scale.rates[chosen]:g}", fontsize=10)
    lines.legend(fontsize=8)
    caption = (
        f"Left: how many starts come within {_CONVERGED:g} of the least-squares loss, by main rate and by"
        " how the SG is trained; SG rates are fractions of the largest stable one at the solution. Right:"
        " the loss above the least-squares loss along the runs of one problem; values below 1e-17 are"
        " drawn there."
    )
    return Drawing(figure, caption)


CLAIM = Claim(
    id="convergence-linear",
    module="experiments.convergence_linear",
    title="A linear SG converges in linear regression",
    claim="Linear regression trained with a linear SG between its output and the loss, whose learning"
    " rate is chosen by line search, converges to the least-squares solution if the main rate is small"
    " enough.",
    source="U17, theorem 1",
    certainty="told",
    how="Network x W + b and SG hA + yB + c are trained together on all examples from random starts. In"
    " each step the SG goes along its gradient to where the SG loss is least (a closed form, since that"
    " loss is quadratic). NumPy's least squares gives the loss to be reached. The main rate is swept, as"
    " a fraction of 2/λmax, above which gradient descent diverges; then the same with fixed SG rates.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

"""What does a fused step cost, compared with backprop of the same network?

python -m benchmarks.step_time

A 6x256 MLP with batch norm, batches of 256 MNIST-sized images, a boundary after every layer but the
last, Adam. The baseline is plain JAX: `jax.grad` of the mean loss and one optax state, written as one
would without this package. Methods take turns, a few steps each, so that whatever else the machine does
falls on all alike.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import decoupled
from benchmarks.baselines import plain_backprop
from benchmarks.part import Measured, Part, Row
from benchmarks.part import main as part_main
from benchmarks.timing import interleaved_seconds, median_ratio
from decoupled import estimators
from decoupled.types import Module

DEPTH, WIDTH, BATCH, CLASSES = 6, 256, 256, 10


def chain(layers: list[Module], estimator: decoupled.Estimator) -> tuple[Callable, Callable]:
    """The fused step of this package."""
    adam, loss = optax.adam(1e-3), decoupled.losses.softmax_cross_entropy
    modules = decoupled.cut(layers, range(DEPTH))
    learner = decoupled.make_learner(modules, [estimator] * DEPTH, loss, adam, adam)

    def update(state, x, y, key):
        state, metrics = learner.update(state, x, y, key)
        return state, (metrics.loss, metrics.boundaries)

    return learner.init, update


def methods() -> dict[str, tuple[Callable, Callable]]:
    layers = decoupled.models.mlp(DEPTH, WIDTH, CLASSES, norm="batch")
    labels = estimators.one_hot(CLASSES)
    return {
        "plain jax.grad + optax": plain_backprop(layers),
        "backprop": chain(layers, estimators.backprop()),
        "loss_shaped": chain(layers, estimators.loss_shaped(CLASSES, labels)),
        "linear": chain(layers, estimators.linear(labels)),
        "recursive_least_squares": chain(layers, estimators.recursive_least_squares(labels)),
        "recursive_least_squares, solve_every=10": chain(
            layers, estimators.recursive_least_squares(labels, solve_every=10)
        ),
    }


class Times(NamedTuple):
    """Of one method.

    Attributes:
      milliseconds: a step.
      ratio, flop_ratio: to plain backprop.
      temporary_mib: allocated besides arguments and outputs.
    """

    milliseconds: float
    ratio: float
    flop_ratio: float
    temporary_mib: float


def measure_times(chosen: dict[str, tuple[Callable, Callable]], turns: int) -> dict[str, Times]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(BATCH, 28, 28, 1)), jnp.float32)
    y = jnp.asarray(rng.integers(CLASSES, size=BATCH), jnp.int32)
    key = jax.random.key(0)
    steps, states = {}, {}
    for name, (init, update) in chosen.items():
        states[name] = jax.jit(init)(key, x, y)
        steps[name] = jax.jit(update, donate_argnums=0).lower(states[name], x, y, key).compile()
    seconds = interleaved_seconds(steps, states, dict.fromkeys(steps, (x, y, key)), turns)
    base = next(iter(steps))
    flops = {name: step.cost_analysis()["flops"] for name, step in steps.items()}
    return {
        name: Times(
            1e3 * statistics.median(seconds[name]),
            median_ratio(seconds, name, base),
            flops[name] / flops[base],
            step.memory_analysis().temp_size_in_bytes / 2**20,
        )
        for name, step in steps.items()
    }


def measure(quick: bool) -> Measured:
    # Compiling all of them would take most of a quick run.
    chosen = dict(list(methods().items())[: 2 if quick else None])
    times = measure_times(chosen, 1 if quick else 30)
    base = next(iter(times))
    settings = {"depth": DEPTH, "width": WIDTH, "batch": BATCH}
    rows = [
        Row("step time", name, settings, t.milliseconds, "ms", t.ratio, base) for name, t in times.items()
    ]
    memory = {name: t.temporary_mib / times[base].temporary_mib for name, t in times.items()}
    rows += [
        Row("temporary memory", name, settings, t.temporary_mib, "MiB", memory[name], base)
        for name, t in times.items()
    ]
    return Measured(rows, [])


def figures(rows: Sequence[Row]) -> list[Figure]:
    """One bar a method."""
    own = [row for row in rows if row.question == "step time"]
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row.method for row in own], [row.ratio or 0.0 for row in own], color="#0072b2")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel("time of a step, relative to plain jax.grad + optax (lower is better)")
    axes.invert_yaxis()
    return [figure]


PART = Part(
    "What does a fused step cost, compared with backprop?",
    "benchmarks.step_time",
    "A 6x256 MLP with batch norm, batches of 256 MNIST-sized images, a boundary after every layer but the"
    " last, Adam. Methods take turns, 20 steps each; medians; ratios within a turn.",
    measure,
    figures,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], add_help=False)
    parser.add_argument("--turns", type=int, default=30)
    arguments, rest = parser.parse_known_args()
    if rest:
        part_main(PART)
        return
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; medians of {arguments.turns} turns")
    print(
        "| method | ms a step | time ratio | FLOP ratio | temporary MiB |\n| --- | --- | --- | --- | --- |"
    )
    for name, t in measure_times(methods(), arguments.turns).items():
        numbers = (
            f"{t.milliseconds:.2f}",
            f"{t.ratio:.2f}",
            f"{t.flop_ratio:.2f}",
            f"{t.temporary_mib:.1f}",
        )
        print(f"| {name} | {' | '.join(numbers)} |")


if __name__ == "__main__":
    main()

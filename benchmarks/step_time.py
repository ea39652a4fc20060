"""What does a fused step cost, compared with backprop of the same network?

python -m benchmarks.step_time

A 6x256 MLP with batch norm, batches of 256 MNIST-sized images, a boundary after every layer but the
last, Adam. The baseline is plain JAX: `jax.grad` of the mean loss and one optax state, written as one
would without this package. Methods take turns, a few steps each, so that whatever else the machine does
falls on all alike.
"""

import argparse
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import decoupled
from benchmarks.baselines import plain_backprop
from benchmarks.timing import interleaved_seconds
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=30)
    turns = parser.parse_args().turns
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(BATCH, 28, 28, 1)), jnp.float32)
    y = jnp.asarray(rng.integers(CLASSES, size=BATCH), jnp.int32)
    key = jax.random.key(0)
    steps, states = {}, {}
    for name, (init, update) in methods().items():
        states[name] = jax.jit(init)(key, x, y)
        steps[name] = jax.jit(update, donate_argnums=0).lower(states[name], x, y, key).compile()
    seconds = interleaved_seconds(steps, states, dict.fromkeys(steps, (x, y, key)), turns)

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; medians of {turns} turns")
    print(
        "| method | ms a step | time ratio | FLOP ratio | temporary MiB |\n| --- | --- | --- | --- | --- |"
    )
    base = next(iter(steps))
    base_flops = steps[base].cost_analysis()["flops"]
    for name, step in steps.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
        memory = step.memory_analysis().temp_size_in_bytes / 2**20
        print(
            f"| {name} | {1e3 * statistics.median(seconds[name]):.2f} | {statistics.median(ratios):.2f}"
            f" | {step.cost_analysis()['flops'] / base_flops:.2f} | {memory:.1f} |"
        )


if __name__ == "__main__":
    main()

"""What a step of each method costs, compared with backprop's of the same network."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.timing import interleaved_seconds, median_ratio
from configs import fashion_mnist
from decoupled.builder import build
from experiments.accuracy.settings import Fields


class Costs(NamedTuple):
    """Of a method's fused step, as ratios to backprop's.

    Attributes:
      time: median of interleaved turns.
      flops: by the compiler's count, which knows nothing of LAPACK's solutions.
      memory: temporary bytes of the compiled step.
    """

    time: float
    flops: float
    memory: float


def costs(methods: Mapping[str, Fields], turns: int) -> dict[str, Costs]:
    """By name, as `methods`, of which one is "backprop"."""
    steps, states, arguments = {}, {}, {}
    for name, fields in methods.items():
        config = fashion_mnist.get_config()
        config.update_from_flattened_dict(fields)
        job = build(config)
        images, labels = (jnp.asarray(part[: job.batch_size]) for part in job.dataset.train)
        arguments[name] = (job.preprocess.evaluate(images), labels, jax.random.key(0))
        states[name] = jax.jit(job.learner.init)(jax.random.key(0), *arguments[name][:2])
        update = jax.jit(job.learner.update, donate_argnums=0)
        steps[name] = update.lower(states[name], *arguments[name]).compile()
    seconds = interleaved_seconds(steps, states, arguments, turns, None)
    flops = {name: step.cost_analysis()["flops"] for name, step in steps.items()}
    memory = {name: step.memory_analysis().temp_size_in_bytes for name, step in steps.items()}
    return {
        name: Costs(
            median_ratio(seconds, name, "backprop"),
            flops[name] / flops["backprop"],
            memory[name] / memory["backprop"],
        )
        for name in steps
    }

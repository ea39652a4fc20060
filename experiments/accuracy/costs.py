"""What a step of each method costs, compared with backprop's of the same network."""

from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from benchmarks.timing import interleaved_seconds, median_ratio
from decoupled.training.builder import build
from experiments.compare import compiled_steps


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


def costs(methods: Mapping[str, ConfigDict], turns: int) -> dict[str, Costs]:
    """By name, as `methods`, configs of which one is "backprop"."""
    jobs = {name: build(config) for name, config in methods.items()}
    steps, states, arguments = compiled_steps(jobs)
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

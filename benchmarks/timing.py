"""Times of compiled steps, taken in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from decoupled.types import PyTree


def interleaved_seconds(
    steps: Mapping[str, Callable],
    states: Mapping[str, PyTree],
    arguments: Mapping[str, tuple[Any, ...]],
    turns: int,
    steps_a_turn: int | None = 20,
) -> dict[str, list[float]]:
    """Seconds a step, one number a turn, for steps (state, *arguments) -> (state, ...), all by name.

    Steps take turns, a few at a time, so that whatever else the machine does falls on all alike: compare
    them by the median of their ratios within a turn. The first turn, not counted, warms them up.

    Args:
      steps_a_turn: None for as many (at most 20) as the slowest step takes in half a second.
    """
    states = dict(states)

    def seconds_of(name: str, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            states[name], *_ = steps[name](states[name], *arguments[name])
        jax.block_until_ready(states[name])
        return (time.perf_counter() - start) / count

    slowest = max(seconds_of(name, steps_a_turn or 1) for name in steps)
    if steps_a_turn is None:
        slowest = min(slowest, max(seconds_of(name, 1) for name in steps))  # The first was a cold start.
        steps_a_turn = max(1, min(20, int(0.5 / slowest)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name in steps:
            seconds[name].append(seconds_of(name, steps_a_turn))
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """Of one step's time to another's, within a turn."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))

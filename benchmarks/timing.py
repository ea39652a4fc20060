"""Times of compiled steps, taken in turns."""

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
    steps_a_turn: int = 20,
) -> dict[str, list[float]]:
    """Seconds a step, one number a turn, for steps (state, *arguments) -> (state, ...), all by name.

    Steps take turns, a few at a time, so that whatever else the machine does falls on all alike: compare
    them by the median of their ratios within a turn. The first turn, not counted, warms them up.
    """
    states = dict(states)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(steps_a_turn):
                states[name], *_ = step(states[name], *arguments[name])
            jax.block_until_ready(states[name])
            if turn > 0:
                seconds[name].append((time.perf_counter() - start) / steps_a_turn)
    return seconds

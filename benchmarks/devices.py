"""Devices of one core each, on a machine that has only cores.

XLA:CPU computes for all devices of a process with one pool of threads: a device at work alone uses every
core, whatever --xla_cpu_multi_thread_eigen says (seen on jax 0.10.2, by processor time). So what n one-core
devices can do is bounded from outside: while they work, the process may use n cores.

A device that waits then lends its core to the others. That favours who waits: GPipe, not the pipeline.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from decoupled.errors import UsageError


def device_flags(count: int) -> str:
    """XLA flags for `count` CPU devices."""
    return f"--xla_force_host_platform_device_count={count}"


def stage_mesh(count: int) -> Mesh:
    """The first `count` devices, along an axis "stage"."""
    return jax.make_mesh((count,), ("stage",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def confined(step: Callable, cores: int) -> Callable:
    """The same step, for which all threads of the process may use so many cores.

    Raises:
      UsageError: the machine has fewer.
    """
    if cores > len(_CORES):
        raise UsageError(f"{cores} one-core devices need {cores} cores: this process may use {len(_CORES)}")

    def run(*args: Any) -> Any:
        _allow(set(_CORES[:cores]))
        return step(*args)

    return run


# As they are before anything is confined.
_CORES = (
    sorted(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else list(range(os.cpu_count() or 1))
)


def _allow(cores: set[int]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("one-core devices need Linux: no other system confines a process to a core")
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:  # It has ended since.
            continue


def cores_in_use(
    step: Callable, state: Any, arguments: tuple[Any, ...], steps: int = 5
) -> tuple[float, Any]:
    """Processor seconds for each second that passes while a step runs, and its last state."""
    state, *_ = jax.block_until_ready(step(state, *arguments))
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        state, *_ = step(state, *arguments)
    jax.block_until_ready(state)
    return (time.process_time() - processor) / (time.perf_counter() - wall), state

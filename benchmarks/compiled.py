"""A step compiled ahead of its first run, with what the compiler says of it."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks.flops import matmul_flops


class Compiled(NamedTuple):
    """A step and its costs.

    Attributes:
      step: (state, *arguments) -> (state, ...); the state is donated.
      temporary_bytes: what it allocates besides arguments and outputs.
      peak_bytes: arguments + outputs + temporaries - what outputs share with arguments.
      compile_seconds: of XLA, without tracing.
      flops: of matrix products.
    """

    step: Callable
    temporary_bytes: int
    peak_bytes: int
    compile_seconds: float
    flops: float


def compile_step(update: Callable, state: Any, *arguments: Any) -> Compiled:
    """Compiles `update`; the state and arguments may be shapes and dtypes."""
    lowered = jax.jit(update, donate_argnums=0).lower(state, *arguments)
    start = time.perf_counter()
    step = lowered.compile()
    seconds = time.perf_counter() - start
    memory: Any = step.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    return Compiled(step, temporary, total + temporary, seconds, matmul_flops(update, state, *arguments))

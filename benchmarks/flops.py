"""Multiplications and additions of a program's matrix products, counted before it is compiled.

XLA's own count takes the body of a loop once, whatever the number of turns.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def matmul_flops(function: Callable, *args: Any) -> float:
    """Two for each multiply-add of every `dot_general`; a scan counts its turns, a branch the dearest.

    Args:
      function: of arrays; traced, not run.
      args: arrays, or their shapes and dtypes.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> float:
    parameters = equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    inner = [_count(jaxpr) for value in parameters.values() for jaxpr in _jaxprs(value)]
    if equation.primitive.name == "cond":
        return max(inner)
    return sum(inner) * parameters["length"] if equation.primitive.name == "scan" else sum(inner)


def _jaxprs(value: Any) -> list[Any]:
    """The programs in a parameter of an equation."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [
        v.jaxpr if hasattr(v, "jaxpr") else v for v in values if hasattr(v, "jaxpr") or hasattr(v, "eqns")
    ]

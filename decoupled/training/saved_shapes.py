"""Shapes and types of examples as JSON: of one array, or of dicts and tuples of arrays."""

from typing import Any

import jax
import numpy as np

from decoupled.types import PyTree


def to_json(arrays: PyTree) -> dict[str, Any]:
    """What `from_json` makes shapes of again.

    Args:
      arrays: leaves (examples, ...), in dicts by texts and tuples.
    """
    if isinstance(arrays, dict):
        return {"dict": {name: to_json(part) for name, part in arrays.items()}}
    if isinstance(arrays, tuple):
        return {"tuple": [to_json(part) for part in arrays]}
    return {"shape": list(arrays.shape[1:]), "dtype": str(arrays.dtype)}


def from_json(saved: Any) -> PyTree:
    """Shapes of one example, (1, ...).

    Raises:
      KeyError, TypeError, ValueError: it is nothing that `to_json` makes.
    """
    if "dict" in saved:
        return {name: from_json(part) for name, part in saved["dict"].items()}
    if "tuple" in saved:
        return tuple(from_json(part) for part in saved["tuple"])
    return jax.ShapeDtypeStruct((1, *map(int, saved["shape"])), np.dtype(saved["dtype"]))

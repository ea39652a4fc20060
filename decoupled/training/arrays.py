"""The arrays that `fit` is given: checked, and put where steps take them from."""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef

from decoupled.errors import UsageError
from decoupled.shapes import AnyArray, Shaped
from decoupled.training.feeds import fits_on_device
from decoupled.types import PyTree


class Arrays(NamedTuple):
    """Examples, in leaves that lead with them.

    Attributes:
      x: inputs, a pytree.
      y: labels or targets, a pytree; may be None.
      weight: of each example, or token; None: all count alike.
    """

    x: PyTree
    y: PyTree
    weight: Shaped[AnyArray, "*examples"] | None

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(jax.tree.leaves(self.x)[0])


def arrays_of(what: str, given: Any) -> Arrays:
    """What was given as (x, y) or (x, y, weight).

    Args:
      what: how the caller's argument is called: "data" or "validation".

    Raises:
      UsageError: it is something else, holds what is no array of numbers, or arrays of unequal lengths.
    """
    parts = tuple(given) if isinstance(given, (tuple, list)) else ()
    if len(parts) not in (2, 3):
        told = f"of {len(parts)} parts" if isinstance(given, (tuple, list)) else f"a {type(given).__name__}"
        raise UsageError(
            f"{what} is {told}, but must be a pair (x, y), or (x, y, weight); y is None for a loss that has"
            " no use for it"
        )
    x, y, weight = (*parts, None)[:3]
    found = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _array(what, path, leaf), {"x": x, "y": y, "weight": weight}
    )
    if not jax.tree.leaves(found["x"]):
        raise UsageError(f"{what}: x holds no array")
    if weight is not None and not isinstance(found["weight"], (np.ndarray, jax.Array)):
        raise UsageError(f"{what}: weight is one array, (examples,), not a {type(weight).__name__}")
    _check_lengths(what, found)
    arrays = Arrays(**found)
    if arrays.examples == 0:
        raise UsageError(f"{what}: there is no example in it")
    if arrays.weight is not None:
        _check_weights(what, np.asarray(arrays.weight))
    return arrays


def inputs_of(what: str, x: PyTree) -> PyTree:
    """Inputs alone, as arrays.

    Raises:
      UsageError: as `arrays_of` does.
    """
    found = jax.tree_util.tree_map_with_path(lambda path, leaf: _array(what, path, leaf), {"x": x})
    if not jax.tree.leaves(found):
        raise UsageError(f"{what}: x holds no array")
    _check_lengths(what, found)
    return found["x"]


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """Of x and y, by how the caller calls them."""
    return {name: leaf.shape for name, leaf in _named({"x": arrays.x, "y": arrays.y}).items()}


def not_finite(arrays: Arrays) -> list[str]:
    """The names of arrays in x and y with an infinity, or what is no number, in an example that counts."""

    def finite(leaf: AnyArray) -> bool:
        if arrays.weight is not None and arrays.weight.ndim == 1:
            leaf = leaf[np.asarray(arrays.weight) != 0]
        return not jnp.issubdtype(leaf.dtype, jnp.inexact) or bool(jnp.isfinite(leaf).all())

    return [name for name, leaf in _named({"x": arrays.x, "y": arrays.y}).items() if not finite(leaf)]


def check_alike(data: Arrays, validation: Arrays) -> None:
    """That a network can be evaluated on what it is not trained on.

    Raises:
      UsageError: x or y is of another structure, or an array of another number of axes.
    """
    for name in ("x", "y"):
        own, other = (jax.tree.structure(getattr(arrays, name)) for arrays in (data, validation))
        if own != other:
            raise UsageError(f"{name} of validation is {_told(other)}, but that of data {_told(own)}")
    shapes, others = shapes_of(data), shapes_of(validation)
    for name, shape in shapes.items():
        if len(shape) != len(others[name]):
            raise UsageError(f"{name} of validation has shape {others[name]}, but that of data {shape}")


def placed(arrays: Arrays) -> Arrays:
    """The same on the device, if they fit in there easily; others stay where they are."""
    return jax.tree.map(jnp.asarray, arrays) if fits_on_device(arrays) else arrays


def fingerprint(arrays: Arrays | None) -> str:
    """sha256 of the structure and of every array's type, shape and content, hexadecimal."""
    digest = hashlib.sha256(str(jax.tree.structure(arrays)).encode())
    for leaf in map(np.asarray, jax.tree.leaves(arrays)):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _array(what: str, path: tuple, leaf: Any) -> Shaped[AnyArray, "examples ..."]:
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if array.ndim == 0 or not _is_number(array.dtype):
        told = f"of type {array.dtype}" if array.ndim else repr(leaf)
        raise UsageError(
            f"{what}: {_name(path)} is {told}: give arrays of numbers, which lead with the examples"
        )
    if isinstance(array, np.ndarray):  # JAX has no numbers in another machine's order of bytes
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array


def _is_number(dtype: Any) -> bool:
    """Whether JAX has such: it has none of more than 64 bits, or of two such."""
    if jnp.issubdtype(dtype, np.inexact):
        return dtype.itemsize <= (16 if jnp.issubdtype(dtype, np.complexfloating) else 8)
    return np.issubdtype(dtype, np.bool_) or jnp.issubdtype(dtype, np.integer)


def _check_lengths(what: str, found: dict[str, PyTree]) -> None:
    """That every array leads with as many examples as the first of x."""
    named = _named(found)
    first = next(name for name in named if name.startswith("x"))
    count = len(named[first])
    for name, leaf in named.items():
        if len(leaf) != count:
            raise UsageError(
                f"{what}: {first} has {count} examples, but {name} has {len(leaf)}: every array leads with"
                " the same examples"
            )


def _check_weights(what: str, weight: np.ndarray) -> None:
    """That means can be taken with these weights."""
    counts = weight >= 0
    if not (counts & np.isfinite(weight)).all():
        odd = weight[~(counts & np.isfinite(weight))]
        raise UsageError(f"{what}: a weight is {odd[0]}, but each must be 0, or more and finite")
    if not weight.any():
        raise UsageError(f"{what}: every weight is 0, so no example counts")


def _named(tree: PyTree) -> dict[str, AnyArray]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple) -> str:
    """Such as x or x['mask']."""
    return str(path[0].key) + jax.tree_util.keystr(path[1:])


def _told(structure: PyTreeDef) -> str:
    return str(structure).removeprefix("PyTreeDef(").removesuffix(")").replace("*", "array")

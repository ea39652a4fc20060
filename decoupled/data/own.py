"""Anyone's data: arrays, or objects that give one example at a time, made a checked Dataset."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from decoupled.data.dataset import Dataset, Split, hold_out
from decoupled.errors import DataError, UsageError
from decoupled.shapes import Float, Integer

_ARRAYS = ("train_inputs", "train_targets", "test_inputs", "test_targets")
_SPLITS = ("train", "test")
_FIELDS = (("inputs", "targets"), ("x", "y"), ("image", "label"))
_FORMS = (
    f"a Dataset, arrays ({', '.join(_ARRAYS)}), a dict of these, (train, test), or an object of examples"
)
_INT32 = np.iinfo(np.int32)
_ROWS = 1000  # looked at in one go


def own_dataset(value: Any, name: str, multi_label: bool = False) -> Dataset:
    """A Dataset from what someone's function has returned; all of it is read into memory.

    Inputs may have any rank. They stay as they are, but for numbers of 64 bits, which become 32. Targets
    that are integers are classes: one an example, or one a token. Real numbers are values, (examples,
    outputs); of one number an example they become (examples, 1).

    Args:
      value: a Dataset; four arrays, train_inputs, train_targets, test_inputs and test_targets, in a tuple
        or a dict; or two splits, (train, test) or a dict of them. A split is a pair of arrays, or an object
        with `__len__` and `__getitem__` whose examples are pairs (x, y) or dicts. One split alone is all
        there is: a fixed random fifth of it is for tests. A dict may have `num_outputs` as well, where the
        data do not tell.
      name: how messages and the run call it.
      multi_label: targets are labels that each hold or do not, whatever their type.

    Raises:
      UsageError: it is something else.
      DataError: arrays that do not belong together, labels out of range, or numbers that are not finite.
    """
    splits, outputs = _splits(value, name)
    train, test = (
        _typed(split, f"{name}, {which}", multi_label) for which, split in zip(_SPLITS, splits, strict=True)
    )
    for what, one, other in zip(("inputs", "targets"), train, test, strict=True):
        if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
            raise DataError(
                f"{name}: {what} of an example are {one.dtype}{list(one.shape[1:])} to train with, but"
                f" {other.dtype}{list(other.shape[1:])} to test with: make them alike"
            )
    classes = np.issubdtype(train.labels.dtype, np.integer)
    if outputs is None:
        found = max(int(train.labels.max()), int(test.labels.max())) + 1
        outputs = found if classes else train.labels.shape[-1]
    if isinstance(outputs, bool) or not isinstance(outputs, int | np.integer) or outputs < 1:
        raise UsageError(f"{name}: num_outputs is {outputs!r}: give a whole number from 1")
    for which, split in zip(_SPLITS, (train, test), strict=True):
        if classes:
            _check_range(split.labels, int(outputs), f"{name}, {which}")
    known = isinstance(value, Dataset)
    source = value.source if known and value.source != "memory" else name
    return Dataset(value.name if known else name, int(outputs), train, test, source)


def _splits(value: Any, name: str) -> tuple[tuple[Split, Split], Any]:
    """Those to train and test with, as they were given, and num_outputs if it was."""
    outputs = None
    if isinstance(value, Dataset):
        return (value.train, value.test), value.num_classes
    if isinstance(value, Mapping):
        given = dict(value)
        outputs = given.pop("num_outputs", None)
        if given.keys() == set(_ARRAYS):
            value = tuple(given[key] for key in _ARRAYS)
        elif given.keys() == set(_SPLITS):
            value = (given["train"], given["test"])
        else:
            raise UsageError(f"{name} returns a dict of {', '.join(map(str, given))}: return {_FORMS}")
    if isinstance(value, tuple) and len(value) == 4 and all(map(_is_array, value)):
        return (Split(*value[:2]), Split(*value[2:])), outputs
    if isinstance(value, tuple) and len(value) == 2 and not all(map(_is_array, value)):
        return (_split(value[0], f"{name}, train"), _split(value[1], f"{name}, test")), outputs
    whole = _split(value, name)
    _check_lengths(whole, name)
    return hold_out(whole, max(1, len(whole) // 5)), outputs


def _split(value: Any, where: str) -> Split:
    if isinstance(value, tuple) and len(value) == 2 and all(map(_is_array, value)):
        return Split(*map(np.asarray, value))
    if _is_array(value) or isinstance(value, tuple | str | Mapping):
        raise UsageError(f"{where} is a {type(value).__name__}: return {_FORMS}")
    if not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        raise UsageError(f"{where} is a {type(value).__name__}, which is no data set: return {_FORMS}")
    return _read(value, where)


def _read(source: Any, where: str) -> Split:
    """All examples of an object, one after another, in two arrays."""
    columns: list[np.ndarray] = []
    for i in range(len(source)):
        parts = [np.asarray(part) for part in _pair(source[i], f"{where}: example {i}")]
        if not columns:
            columns = [np.empty((len(source), *part.shape), part.dtype) for part in parts]
        for column, part, what in zip(columns, parts, ("inputs", "targets"), strict=True):
            if part.shape != column.shape[1:] or not np.can_cast(part.dtype, column.dtype, "same_kind"):
                raise DataError(
                    f"{where}: {what} of example {i} are {part.dtype}{list(part.shape)}, of example 0"
                    f" {column.dtype}{list(column.shape[1:])}: make them alike (pad what is shorter)"
                )
            column[i] = part
    if not columns:
        raise DataError(f"{where}: no examples in it")
    return Split(*columns)


def _pair(example: Any, where: str) -> tuple[Any, Any]:
    if isinstance(example, tuple | list) and len(example) == 2:
        return example[0], example[1]
    if isinstance(example, Mapping):
        for x, y in _FIELDS:
            if x in example and y in example:
                return example[x], example[y]
    told = (
        f"a dict of {', '.join(map(str, example))}" if isinstance(example, Mapping) else f"{type(example)}"
    )
    names = ", ".join(f"{x} and {y}" for x, y in _FIELDS)
    raise UsageError(f"{where} is {told}: give a pair (x, y), or a dict with {names}")


def _typed(split: Split, where: str, multi_label: bool) -> Split:
    """With 32 bits at most, and targets that tell by their type whether they are classes or values."""
    inputs, targets = (
        _array(part, f"{where} {what}") for part, what in zip(split, ("inputs", "targets"), strict=True)
    )
    _check_lengths(Split(inputs, targets), where)
    several = multi_label or (targets.dtype == bool and targets.ndim > 1)
    if several or np.issubdtype(targets.dtype, np.floating):
        targets = targets.astype(np.float32)
        return Split(inputs, targets[:, None] if targets.ndim == 1 else targets)
    return Split(inputs, targets.astype(np.int32))


def _array(values: Any, where: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim == 0 or not (array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)):
        raise UsageError(f"{where} are {array.dtype} of shape {array.shape}: give an array of numbers")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise UsageError(f"{where} are {array.dtype}: give real numbers")
    if jnp.issubdtype(array.dtype, jnp.floating):
        array = array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)
        _check_finite(array, where)
    elif array.dtype.itemsize > 4 and array.size:
        if array.min() < _INT32.min or array.max() > _INT32.max:
            raise DataError(f"{where} go from {array.min()} to {array.max()}, which 32 bits do not hold")
        array = array.astype(np.int32)
    return array


def _check_finite(array: Float[np.ndarray, "examples *shape"], where: str) -> None:
    for start in range(0, len(array), _ROWS):
        part = np.isfinite(array[start : start + _ROWS])
        if not part.all():
            bad = start + int(np.argmin(part.reshape(len(part), -1).all(1)))
            raise DataError(f"{where} of example {bad} are not finite")


def _check_lengths(split: Split, where: str) -> None:
    inputs, targets = split
    if len(inputs) != len(targets):
        raise DataError(f"{where}: {len(inputs)} inputs but {len(targets)} targets")
    if np.size(inputs) == 0 or np.size(targets) == 0:
        raise DataError(f"{where}: no examples in it, or none with a number")


def _check_range(labels: Integer[np.ndarray, "examples *tokens"], classes: int, where: str) -> None:
    wrong = ((labels < 0) | (labels >= classes)).reshape(len(labels), -1)
    if wrong.any():
        example = int(np.argmax(wrong.any(1)))
        label = int(labels.reshape(len(labels), -1)[example][wrong[example]][0])
        raise DataError(f"{where}: label {label} of example {example} is outside 0..{classes - 1}")


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")

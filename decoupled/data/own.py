"""Anyone's data: arrays, or objects that give one example at a time, made a checked Dataset."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.data.dataset import AnySplit, Dataset, Split, WeightedSplit, hold_out
from decoupled.errors import DataError, UsageError
from decoupled.shapes import Float, Integer
from decoupled.types import PyTree

_ARRAYS = ("train_inputs", "train_targets", "test_inputs", "test_targets")
_SPLITS = ("train", "test")
_FIELDS = (("inputs", "targets"), ("x", "y"), ("image", "label"))
_WEIGHT = "weight"
_PARTS = ("inputs", "targets", _WEIGHT)
_FORMS = (
    f"a Dataset, arrays ({', '.join(_ARRAYS)}), a dict of these, (train, test), or an object of examples"
)
_INT32 = np.iinfo(np.int32)
_ROWS = 1000  # looked at in one go


def own_dataset(value: Any, name: str, multi_label: bool = False, batch_axes: int = 1) -> Dataset:
    """A Dataset from what someone's function has returned; all of it is read into memory.

    Inputs and targets are arrays, or dicts and tuples of them. Inputs may have any rank. They stay as they
    are, but for numbers of 64 bits, which become 32. Targets that are integers are classes: one an example,
    or one a token. Real numbers are values, (examples, outputs); of one number an example (or token) they
    become (examples, 1). What is in targets where a weight is 0 does not matter.

    Args:
      value: a Dataset; four arrays, train_inputs, train_targets, test_inputs and test_targets, in a tuple
        or a dict; or two splits, (train, test) or a dict of them. A split is (x, y) or (x, y, weight), a
        dict of these by name, or an object with `__len__` and `__getitem__` whose examples are such tuples
        or dicts. One split alone is all there is: a fixed random fifth of it is for tests. A dict may have
        `num_outputs` as well, where the data do not tell.
      name: how messages and the run call it.
      multi_label: targets are labels that each hold or do not, whatever their type.
      batch_axes: leading axes of targets and weight that count examples; 2 where tokens are examples.

    Raises:
      UsageError: it is something else.
      DataError: arrays that do not belong together, labels out of range, or numbers that are not finite.
    """
    splits, outputs = _splits(value, name)
    train, test = (
        _typed(split, f"{name}, {which}", multi_label, batch_axes)
        for which, split in zip(_SPLITS, splits, strict=True)
    )
    _check_alike(train, test, name)
    labels, several = train.labels, not _is_array(train.labels)
    classes = not several and np.issubdtype(labels.dtype, np.integer)
    if outputs is None:
        if several:
            raise UsageError(
                f"{name}: targets are several arrays, which do not tell how wide the output is: return a"
                " dict that has num_outputs too"
            )
        outputs = max(int(part.labels.max()) for part in (train, test)) + 1 if classes else labels.shape[-1]
    if isinstance(outputs, bool) or not isinstance(outputs, int | np.integer) or outputs < 1:
        raise UsageError(f"{name}: num_outputs is {outputs!r}: give a whole number from 1")
    for which, split in zip(_SPLITS, (train, test), strict=True):
        if classes:
            _check_range(split.labels, int(outputs), f"{name}, {which}")
    known = isinstance(value, Dataset)
    source = value.source if known and value.source != "memory" else name
    return Dataset(value.name if known else name, int(outputs), train, test, source)


def _splits(value: Any, name: str) -> tuple[tuple[AnySplit, AnySplit], Any]:
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
        elif _columns(given) is not None:
            value = given
        else:
            raise UsageError(f"{name} returns a dict of {', '.join(map(str, given))}: return {_FORMS}")
    if isinstance(value, tuple) and len(value) == 4 and all(map(_is_tree, value)):
        return (Split(*value[:2]), Split(*value[2:])), outputs
    if isinstance(value, tuple) and len(value) == 2 and all(map(_may_be_split, value)):
        return (_split(value[0], f"{name}, train"), _split(value[1], f"{name}, test")), outputs
    whole = _split(value, name)
    _check_lengths(whole, name)
    return hold_out(whole, max(1, len(whole) // 5)), outputs


def _split(value: Any, where: str) -> AnySplit:
    columns = _columns(value)
    if columns is not None:
        return _of(tuple(jax.tree.map(np.asarray, column) for column in columns))
    if _is_array(value) or isinstance(value, tuple | str | Mapping):
        raise UsageError(f"{where} is a {type(value).__name__}: return {_FORMS}")
    if not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        raise UsageError(f"{where} is a {type(value).__name__}, which is no data set: return {_FORMS}")
    return _read(value, where)


def _columns(value: Any) -> tuple[Any, ...] | None:
    """x, y and perhaps weight, where a split is given as arrays; else None."""
    if isinstance(value, Mapping):
        value = _by_name(value)
    whole = isinstance(value, tuple) and len(value) in (2, 3) and all(map(_is_tree, value))
    return tuple(value) if whole else None


def _may_be_split(value: Any) -> bool:
    if isinstance(value, tuple | Mapping):
        return _columns(value) is not None
    return not _is_array(value)


def _of(parts: tuple[PyTree, ...]) -> AnySplit:
    return Split(*parts) if len(parts) == 2 else WeightedSplit(*parts)


def _read(source: Any, where: str) -> AnySplit:
    """All examples of an object, one after another, in arrays."""
    columns: PyTree = None
    for i in range(len(source)):
        parts = jax.tree.map(np.asarray, _parts(source[i], f"{where}: example {i}"))
        if columns is None:
            columns = jax.tree.map(lambda part: np.empty((len(source), *part.shape), part.dtype), parts)
        if jax.tree.structure(parts) != jax.tree.structure(columns):
            raise DataError(f"{where}: example {i} has other parts than example 0: make them alike")
        for (what, part), (_, column) in zip(_named(parts), _named(columns), strict=True):
            if part.shape != column.shape[1:] or not np.can_cast(part.dtype, column.dtype, "same_kind"):
                raise DataError(
                    f"{where}: {what} of example {i} are {part.dtype}{list(part.shape)}, of example 0"
                    f" {column.dtype}{list(column.shape[1:])}: make them alike (pad what is shorter)"
                )
            column[i] = part
    if columns is None:
        raise DataError(f"{where}: no examples in it")
    return _of(columns)


def _parts(example: Any, where: str) -> tuple[Any, ...]:
    """x and y of an example, and its weight where there is one."""
    if isinstance(example, tuple | list) and len(example) in (2, 3):
        return tuple(example)
    if isinstance(example, Mapping) and (found := _by_name(example)) is not None:
        return found
    told = (
        f"a dict of {', '.join(map(str, example))}" if isinstance(example, Mapping) else f"{type(example)}"
    )
    names = ", ".join(f"{x} and {y}" for x, y in _FIELDS)
    raise UsageError(
        f"{where} is {told}: give (x, y), or (x, y, weight), or a dict with {names}, and perhaps {_WEIGHT}"
    )


def _by_name(given: Mapping) -> tuple[Any, ...] | None:
    for x, y in _FIELDS:
        if x in given and y in given:
            return (given[x], given[y], *([given[_WEIGHT]] if _WEIGHT in given else []))
    return None


def _typed(split: AnySplit, where: str, multi_label: bool, batch_axes: int) -> AnySplit:
    """With 32 bits at most, and targets that tell by their type whether they are classes or values."""
    _check_lengths(split, where)
    weight = _weight(split, where, batch_axes)

    def input_array(path: Any, leaf: Any) -> np.ndarray:
        return _array(leaf, f"{where} inputs{jax.tree_util.keystr(path)}")

    def target_array(path: Any, leaf: Any) -> np.ndarray:
        targets = np.asarray(leaf)
        if weight is not None and targets.shape[: weight.ndim] == weight.shape:
            counted = (weight != 0).reshape(*weight.shape, *[1] * (targets.ndim - weight.ndim))
            targets = np.where(counted, targets, np.zeros_like(targets))
        targets = _array(targets, f"{where} targets{jax.tree_util.keystr(path)}")
        several = multi_label or (targets.dtype == bool and targets.ndim > batch_axes)
        if several or np.issubdtype(targets.dtype, np.floating):
            targets = targets.astype(np.float32)
            return targets[..., None] if targets.ndim == batch_axes else targets
        return targets.astype(np.int32)

    inputs = jax.tree_util.tree_map_with_path(input_array, split.images)
    targets = jax.tree_util.tree_map_with_path(target_array, split.labels)
    return Split(inputs, targets) if weight is None else WeightedSplit(inputs, targets, weight)


def _weight(split: AnySplit, where: str, batch_axes: int) -> Float[np.ndarray, "examples *tokens"] | None:
    if isinstance(split, Split):
        return None
    weight = _array(split.weight, f"{where} weight").astype(np.float32)
    shapes = {np.shape(leaf)[:batch_axes] for leaf in jax.tree.leaves(split.labels)}
    if weight.shape not in shapes:
        told = " or ".join(map(str, sorted(shapes)))
        raise DataError(
            f"{where}: weight has shape {weight.shape}, but targets have the examples {told} where"
            f" batch_axes is {batch_axes}: give one number an example"
        )
    if (weight < 0).any() or not (weight > 0).any():
        told = "is negative in places" if (weight < 0).any() else "is 0 throughout, so no example counts"
        raise DataError(f"{where}: weight {told}")
    return weight


def _check_alike(train: AnySplit, test: AnySplit, name: str) -> None:
    """That one network serves both splits."""
    if jax.tree.structure(tuple(train)) != jax.tree.structure(tuple(test)):
        raise DataError(f"{name}: examples to train with have other parts than those to test with")
    for (what, one), (_, other) in zip(_named(tuple(train)), _named(tuple(test)), strict=True):
        if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
            raise DataError(
                f"{name}: {what} of an example are {one.dtype}{list(one.shape[1:])} to train with, but"
                f" {other.dtype}{list(other.shape[1:])} to test with: make them alike"
            )


def _named(parts: tuple[PyTree, ...]) -> Iterator[tuple[str, Any]]:
    """Every array of a split, and what it is called: inputs, or inputs['mask']."""
    for what, part in zip(_PARTS, parts, strict=False):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            yield what + jax.tree_util.keystr(path), leaf


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


def _check_lengths(split: AnySplit, where: str) -> None:
    named = dict(_named(tuple(split)))
    first = next(iter(named))
    for what, leaf in named.items():
        if np.ndim(leaf) == 0:
            raise UsageError(f"{where} {what} are one number, {leaf}: give an array of numbers")
        if len(leaf) != len(named[first]):
            raise DataError(f"{where}: {len(named[first])} {first} but {len(leaf)} {what}")
        if np.size(leaf) == 0:
            raise DataError(f"{where}: no examples in it, or none with a number")


def _check_range(labels: Integer[np.ndarray, "examples *tokens"], classes: int, where: str) -> None:
    wrong = ((labels < 0) | (labels >= classes)).reshape(len(labels), -1)
    if wrong.any():
        example = int(np.argmax(wrong.any(1)))
        label = int(labels.reshape(len(labels), -1)[example][wrong[example]][0])
        raise DataError(f"{where}: label {label} of example {example} is outside 0..{classes - 1}")


def _is_tree(value: Any) -> bool:
    """An array, or dicts and tuples of arrays; dicts by texts, which a run can save."""
    if type(value) is dict:
        return bool(value) and all(isinstance(key, str) and _is_tree(value[key]) for key in value)
    if type(value) is tuple:
        return bool(value) and all(map(_is_tree, value))
    return _is_array(value)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")

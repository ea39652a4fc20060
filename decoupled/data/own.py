"""Anyone's data: arrays, or objects that give one example at a time, made a checked Dataset."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.data.dataset import AnySplit, Dataset, Split, WeightedSplit, hold_out
from decoupled.data.stream import Stream, read_ahead
from decoupled.errors import DataError, UsageError
from decoupled.shapes import Float
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


class Reading(NamedTuple):
    """How an object that gives examples by number is read.

    Attributes:
      stream: when they are needed, and not into memory first.
      workers: processes that read them; 0: this one.
    """

    stream: bool = False
    workers: int = 0


_INTO_MEMORY = Reading()


def own_dataset(
    value: Any,
    name: str,
    multi_label: bool = False,
    batch_axes: int = 1,
    reading: Reading = _INTO_MEMORY,
) -> Dataset:
    """A Dataset from what someone's function has returned.

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
      reading: of objects with `__len__` and `__getitem__`.

    Raises:
      UsageError: it is something else.
      DataError: arrays that do not belong together, labels out of range, or numbers that are not finite.
    """
    splits, outputs = _splits(value, name, reading)
    train, test = (
        _typed(split, f"{name}, {which}", multi_label, batch_axes)
        for which, split in zip(_SPLITS, splits, strict=True)
    )
    _check_alike(_sample(train), _sample(test), name)
    labels, several = train.labels, not _is_array(train.labels)
    classes = not several and np.issubdtype(labels.dtype, np.integer)
    if outputs is None:
        if several:
            raise UsageError(
                f"{name}: targets are several arrays, which do not tell how wide the output is: return a"
                " dict that has num_outputs too"
            )
        if classes and isinstance(train, Stream):
            raise UsageError(
                f"{name}: targets are classes, and how many is not known before all are read: return a dict"
                " that has num_outputs too"
            )
        outputs = max(int(part.labels.max()) for part in (train, test)) + 1 if classes else labels.shape[-1]
    if isinstance(outputs, bool) or not isinstance(outputs, int | np.integer) or outputs < 1:
        raise UsageError(f"{name}: num_outputs is {outputs!r}: give a whole number from 1")
    if classes:
        train, test = (
            _in_range(split, int(outputs), f"{name}, {which}")
            for which, split in zip(_SPLITS, (train, test), strict=True)
        )
    known = isinstance(value, Dataset)
    source = value.source if known and value.source != "memory" else name
    return Dataset(value.name if known else name, int(outputs), train, test, source)


def _sample(split: AnySplit) -> tuple[PyTree, ...]:
    return split.sample if isinstance(split, Stream) else tuple(split)


def _splits(value: Any, name: str, reading: Reading) -> tuple[tuple[AnySplit, AnySplit], Any]:
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
        train, test = (_split(v, f"{name}, {s}", reading) for v, s in zip(value, _SPLITS, strict=True))
        return (train, test), outputs
    whole = _split(value, name, reading)
    if not isinstance(whole, Stream):
        _check_lengths(tuple(whole), name)
    return hold_out(whole, max(1, len(whole) // 5)), outputs


def _split(value: Any, where: str, reading: Reading) -> AnySplit:
    columns = _columns(value)
    if columns is not None:
        return _of(tuple(jax.tree.map(np.asarray, column) for column in columns))
    if _is_array(value) or isinstance(value, tuple | str | Mapping):
        raise UsageError(f"{where} is a {type(value).__name__}: return {_FORMS}")
    if not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        raise UsageError(f"{where} is a {type(value).__name__}, which is no data set: return {_FORMS}")
    if len(value) == 0:
        raise DataError(f"{where}: no examples in it")
    examples = _Examples(value, where, jax.tree.map(np.asarray, _parts(value[0], f"{where}: example 0")))
    if not reading.stream:
        return _of(examples.all(reading.workers))
    once, again = (_leaves(examples(np.arange(1))) for _ in range(2))
    if not all(np.array_equal(*pair, equal_nan=True) for pair in zip(once, again, strict=True)):
        raise UsageError(
            f"{where}: example 0 is another each time it is read, so that no run could go on as it was: let"
            " it depend on its number alone"
        )
    return Stream(examples, np.arange(len(value)), reading.workers)


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


@dataclass(frozen=True)
class _Examples:
    """An object that gives examples by number, read into arrays.

    Attributes:
      like: the parts of its first example, whose shapes and types all have.
    """

    source: Any
    where: str
    like: tuple[PyTree, ...]

    def __call__(self, rows: np.ndarray) -> tuple[PyTree, ...]:
        columns = self._empty(len(rows))
        for k, i in enumerate(map(int, rows)):
            parts = jax.tree.map(np.asarray, _parts(self.source[i], f"{self.where}: example {i}"))
            if jax.tree.structure(parts) != jax.tree.structure(self.like):
                raise DataError(
                    f"{self.where}: example {i} has other parts than example 0: make them alike"
                )
            for (what, part), (_, column) in zip(_named(parts), _named(columns), strict=True):
                if part.shape != column.shape[1:] or not np.can_cast(part.dtype, column.dtype, "same_kind"):
                    raise DataError(
                        f"{self.where}: {what} of example {i} are {part.dtype}{list(part.shape)}, of"
                        f" example 0 {column.dtype}{list(column.shape[1:])}: make them alike (pad what is"
                        " shorter)"
                    )
                column[k] = part
        return columns

    def all(self, workers: int) -> tuple[PyTree, ...]:
        """Every example, read in so many processes beside this one; 0: in this one."""
        count = len(self.source)
        if not workers:
            return self(np.arange(count))
        columns = self._empty(count)
        order = [np.arange(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS)]
        for rows, parts in zip(order, read_ahead(self, order, workers), strict=True):
            for column, part in zip(_leaves(columns), _leaves(parts), strict=True):
                column[rows] = part
        return columns

    def _empty(self, count: int) -> tuple[PyTree, ...]:
        return jax.tree.map(lambda part: np.empty((count, *part.shape), part.dtype), self.like)


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
    if isinstance(split, Stream):
        return split.then(partial(_typed_parts, where, multi_label, batch_axes))
    parts = tuple(split)
    _check_lengths(parts, where)
    typed = _of(_typed_parts(where, multi_label, batch_axes, parts, np.arange(len(_leaves(parts)[0]))))
    if isinstance(typed, WeightedSplit) and not typed.weight.any():
        raise DataError(f"{where}: weight is 0 throughout, so no example counts")
    return typed


def _typed_parts(
    where: str, multi_label: bool, batch_axes: int, parts: tuple[PyTree, ...], rows: np.ndarray
) -> tuple[PyTree, ...]:
    weight = _weight(parts, where, batch_axes, rows)

    def input_array(path: Any, leaf: Any) -> np.ndarray:
        return _array(leaf, f"{where} inputs{jax.tree_util.keystr(path)}", rows)

    def target_array(path: Any, leaf: Any) -> np.ndarray:
        targets = np.asarray(leaf)
        if weight is not None and targets.shape[: weight.ndim] == weight.shape:
            counted = (weight != 0).reshape(*weight.shape, *[1] * (targets.ndim - weight.ndim))
            targets = np.where(counted, targets, np.zeros_like(targets))
        targets = _array(targets, f"{where} targets{jax.tree_util.keystr(path)}", rows)
        several = multi_label or (targets.dtype == bool and targets.ndim > batch_axes)
        if several or np.issubdtype(targets.dtype, np.floating):
            targets = targets.astype(np.float32)
            return targets[..., None] if targets.ndim == batch_axes else targets
        return targets.astype(np.int32)

    inputs = jax.tree_util.tree_map_with_path(input_array, parts[0])
    targets = jax.tree_util.tree_map_with_path(target_array, parts[1])
    return (inputs, targets) if weight is None else (inputs, targets, weight)


def _weight(
    parts: tuple[PyTree, ...], where: str, batch_axes: int, rows: np.ndarray
) -> Float[np.ndarray, "examples *tokens"] | None:
    if len(parts) == 2:
        return None
    weight = _array(parts[2], f"{where} weight", rows).astype(np.float32)
    shapes = {np.shape(leaf)[:batch_axes] for leaf in jax.tree.leaves(parts[1])}
    if weight.shape not in shapes:
        told = " or ".join(map(str, sorted(shapes)))
        raise DataError(
            f"{where}: weight has shape {weight.shape}, but targets have the examples {told} where"
            f" batch_axes is {batch_axes}: give one number an example"
        )
    if (weight < 0).any():
        raise DataError(f"{where}: weight is negative in places")
    return weight


def _check_alike(train: tuple[PyTree, ...], test: tuple[PyTree, ...], name: str) -> None:
    """That one network serves both splits."""
    if jax.tree.structure(train) != jax.tree.structure(test):
        raise DataError(f"{name}: examples to train with have other parts than those to test with")
    for (what, one), (_, other) in zip(_named(train), _named(test), strict=True):
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


def _array(values: Any, where: str, rows: np.ndarray) -> np.ndarray:
    """One of the arrays of the examples `rows`."""
    array = np.asarray(values)
    if array.ndim == 0 or not (array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)):
        raise UsageError(f"{where} are {array.dtype} of shape {array.shape}: give an array of numbers")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise UsageError(f"{where} are {array.dtype}: give real numbers")
    if jnp.issubdtype(array.dtype, jnp.floating):
        array = array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)
        _check_finite(array, where, rows)
    elif array.dtype.itemsize > 4 and array.size:
        if array.min() < _INT32.min or array.max() > _INT32.max:
            raise DataError(f"{where} go from {array.min()} to {array.max()}, which 32 bits do not hold")
        array = array.astype(np.int32)
    return array


def _check_finite(array: Float[np.ndarray, "examples *shape"], where: str, rows: np.ndarray) -> None:
    for start in range(0, len(array), _ROWS):
        part = np.isfinite(array[start : start + _ROWS])
        if not part.all():
            bad = start + int(np.argmin(part.reshape(len(part), -1).all(1)))
            raise DataError(f"{where} of example {rows[bad]} are not finite")


def _check_lengths(parts: tuple[PyTree, ...], where: str) -> None:
    named = dict(_named(parts))
    first = next(iter(named))
    for what, leaf in named.items():
        if np.ndim(leaf) == 0:
            raise UsageError(f"{where} {what} are one number, {leaf}: give an array of numbers")
        if len(leaf) != len(named[first]):
            raise DataError(f"{where}: {len(named[first])} {first} but {len(leaf)} {what}")
        if np.size(leaf) == 0:
            raise DataError(f"{where}: no examples in it, or none with a number")


def _in_range(split: AnySplit, classes: int, where: str) -> AnySplit:
    """The same, once it is known that its labels are classes; of a Stream, whenever some are read."""
    if isinstance(split, Stream):
        return split.then(partial(_parts_in_range, classes, where))
    _parts_in_range(classes, where, tuple(split), np.arange(len(split)))
    return split


def _parts_in_range(
    classes: int, where: str, parts: tuple[PyTree, ...], rows: np.ndarray
) -> tuple[PyTree, ...]:
    labels = parts[1]
    wrong = ((labels < 0) | (labels >= classes)).reshape(len(labels), -1)
    if wrong.any():
        k = int(np.argmax(wrong.any(1)))
        label = int(labels.reshape(len(labels), -1)[k][wrong[k]][0])
        raise DataError(f"{where}: label {label} of example {rows[k]} is outside 0..{classes - 1}")
    return parts


def _leaves(tree: PyTree) -> list[np.ndarray]:
    return jax.tree.leaves(tree)


def _is_tree(value: Any) -> bool:
    """An array, or dicts and tuples of arrays; dicts by texts, which a run can save."""
    if type(value) is dict:
        return bool(value) and all(isinstance(key, str) and _is_tree(value[key]) for key in value)
    if type(value) is tuple:
        return bool(value) and all(map(_is_tree, value))
    return _is_array(value)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")

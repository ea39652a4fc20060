"""What a loader returns: labelled images, or other inputs with their targets, checked, and split."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from decoupled.data.stream import Order, Stream
from decoupled.errors import DataError, UsageError
from decoupled.shapes import Float, Integer, Shaped
from decoupled.types import Array, PyTree


class Split(NamedTuple):
    """Labelled images in host memory; or, of someone's own, any inputs and their targets.

    Attributes:
      images: (examples, height, width, channels), uint8; or (examples, ...); or a pytree of such arrays.
      labels: (examples,), int32; or (examples, ...): int32 classes, or float32 values; or a pytree.
    """

    images: PyTree
    labels: PyTree

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.images)[0])


class WeightedSplit(NamedTuple):
    """A split whose examples, or tokens, do not all count alike.

    Attributes:
      images, labels: as of a `Split`.
      weight: of each example, (examples,), or token, (examples, time); float32.
    """

    images: PyTree
    labels: PyTree
    weight: Float[np.ndarray, "examples *tokens"]

    def __len__(self) -> int:
        return len(self.weight)


AnySplit: TypeAlias = Split | WeightedSplit | Stream


class Dataset(NamedTuple):
    """A named data set with its published train and test splits.

    Attributes:
      name: as it appears in every output.
      num_classes: labels run from 0 to num_classes - 1; of values, the width of the network's output.
      train, test: as published.
      source: where it is from: a file or folder, or what made it.
    """

    name: str
    num_classes: int
    train: AnySplit
    test: AnySplit
    source: str = "memory"

    def fingerprint(self) -> str:
        """sha256 of all arrays, their shapes and what they are called; of a `Stream` of its sample's."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            if isinstance(split, Stream):
                digest.update(f"{len(split)}".encode())
            for part in split.sample if isinstance(split, Stream) else split:
                for path, array in jax.tree.leaves_with_path(part):
                    digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def checked_split(
    images: Shaped[np.ndarray, "examples *shape"],
    labels: Integer[np.ndarray, " examples"],
    num_classes: int,
    where: str,
) -> Split:
    """A Split, once images and labels are known to belong together.

    Raises:
      DataError: there are no examples, the counts differ, or a label is out of range.
    """
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels")
    if images.size == 0:
        raise DataError(f"{where}: no examples in it, or none with a pixel")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"{where}: label {int(labels[first])} of example {first} is outside 0..{num_classes - 1}"
        )
    return Split(images, labels.astype(np.int32))


def hold_out(split: AnySplit, count: int, seed: int = 0) -> tuple[AnySplit, AnySplit]:
    """Splits off `count` examples, drawn by a fixed `seed` so that every run holds out the same ones.

    Returns:
      The rest, and the examples held out.

    Raises:
      UsageError: `count` leaves nothing to train on.
    """
    if not 0 <= count < len(split):
        raise UsageError(
            f"validation_examples is {count}, but the training set has {len(split)} examples:"
            f" choose 0 to {len(split) - 1}"
        )
    order = np.random.default_rng(seed).permutation(len(split))
    kept, held = np.sort(order[count:]), np.sort(order[:count])
    if isinstance(split, Stream):
        return split.part(kept), split.part(held)
    return take(split, kept), take(split, held)


def batches_per_epoch(split: AnySplit, batch_size: int) -> int:
    """Number of full batches in a split.

    Raises:
      UsageError: there is not even one.
    """
    if batch_size > len(split):
        raise UsageError(
            f"batch_size is {batch_size}, but there are only {len(split)} training examples"
            " (after validation_examples are held out): choose a smaller batch"
        )
    return len(split) // batch_size


def shuffled_batches(
    split: AnySplit,
    batch_size: int,
    seed: int,
    epoch: int,
    rows: slice | Integer[np.ndarray, " rows"] = slice(None),
    start: int = 0,
) -> Iterator[tuple[PyTree, ...]]:
    """One epoch of full batches, from number `start` on, in an order that depends on (seed, epoch) alone.

    The examples left over, fewer than a batch, come up in other epochs. `rows` of each batch are returned:
    images and labels, and their weights where there are some.
    """
    batches_per_epoch(split, batch_size)  # says if there is none
    for chosen in order_of_epoch(len(split), batch_size, seed, epoch)[start:]:
        yield rows_of(split, chosen[rows])


def batches_from(
    done: int,
    split: AnySplit | tuple[PyTree, ...],
    batch_size: int,
    seed: int,
    epochs: int,
    rows: slice | Integer[np.ndarray, " rows"],
) -> Iterator[tuple[PyTree, ...]]:
    """All batches of a run, epoch after epoch (counted from 1), but for the first `done`."""
    count = examples_in(split)
    if isinstance(split, Stream):
        order = _Order(count, batch_size, seed, done, count // batch_size * epochs, rows)
        yield from split.batches(order, in_processes=True)
        return
    finished, start = divmod(done, count // batch_size)
    for epoch in range(finished + 1, epochs + 1):
        for chosen in order_of_epoch(count, batch_size, seed, epoch)[start:]:
            yield rows_of(split, chosen[rows])
        start = 0


def batches_in_order(split: AnySplit | tuple[PyTree, ...], order: Order) -> Iterator[tuple[PyTree, ...]]:
    """The rows of each entry of `order`: images and labels, and weights where there are some."""
    if isinstance(split, Stream):
        return split.batches(order)
    return (take(tuple(split), order[i]) for i in range(len(order)))


def examples_in(split: AnySplit | tuple[PyTree, ...]) -> int:
    """How many there are."""
    return len(split) if isinstance(split, Stream) else len(jax.tree.leaves(split[0])[0])


def rows_of(split: AnySplit | tuple[PyTree, ...], chosen: np.ndarray) -> tuple[PyTree, ...]:
    """Images and labels, and weights where there are some."""
    return split.rows(chosen) if isinstance(split, Stream) else take(tuple(split), chosen)


@dataclass(frozen=True)
class _Order:
    """Which examples make up each batch of a run from number `done` to the `last`, by its number."""

    count: int
    batch_size: int
    seed: int
    done: int
    last: int
    rows: Any

    def __len__(self) -> int:
        return self.last - self.done

    def __getitem__(self, i: int, /) -> np.ndarray:
        epoch, batch = divmod(self.done + i, self.count // self.batch_size)
        return order_of_epoch(self.count, self.batch_size, self.seed, epoch + 1)[batch][self.rows]


@functools.lru_cache(2)
def order_of_epoch(
    count: int, batch_size: int, seed: int, epoch: int
) -> Integer[np.ndarray, "batches batch_size"]:
    """Which of `count` examples make up each batch of an epoch: by (seed, epoch) alone."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.flags.writeable = False
    return order[: count // batch_size * batch_size].reshape(-1, batch_size)


def take(arrays: PyTree, rows: np.ndarray) -> PyTree:
    """Some rows of every array: on the host of those of NumPy, of others where they are."""
    return jax.tree.map(
        lambda leaf: leaf[rows] if isinstance(leaf, np.ndarray) else _take(leaf, rows), arrays
    )


@jax.jit
def _take(leaf: Array, rows: Array) -> Array:
    return leaf.at[rows].get(mode="promise_in_bounds")

"""Where steps take their batches from: a data set on the device, or batches that are brought there."""

import collections
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.data.dataset import AnySplit, batches_from, examples_in, order_of_epoch, rows_of
from decoupled.data.stream import Stream
from decoupled.shapes import Integer
from decoupled.training.execution import Execution
from decoupled.types import Array, Key, PyTree

_AHEAD = 2  # batches on their way to the device while a step runs


class Feed(NamedTuple):
    """Steps, and the batches that they are taken on.

    Attributes:
      take: (state, totals, done, count) -> (state, totals) after `count` steps, all in one epoch, where
        `done` were taken before; destroys the first two.
      last_batch: () -> that of the step taken last, placed.
    """

    take: Callable[[PyTree, PyTree, int, int], tuple[PyTree, PyTree]]
    last_batch: Callable[[], PyTree]


class Run(NamedTuple):
    """Whose batches they are.

    Attributes:
      split: the training set: of a data set; or images, labels and, where there are some, weights.
      batch_size, seed, epochs: which batches there are follows from these.
    """

    split: AnySplit | tuple[PyTree, ...]
    batch_size: int
    seed: int
    epochs: int

    def order(self, epoch: int) -> Integer[np.ndarray, "batches batch_size"]:
        """The rows of each batch of an epoch, counted from 1."""
        return order_of_epoch(examples_in(self.split), self.batch_size, self.seed, epoch)


class Compiled(NamedTuple):
    """A step, or a loop of steps, before it is known where a run goes on.

    Attributes:
      begin: number of steps done -> the feed of those that are left.
      warm_up: (number of steps, state, totals) -> (state, totals); see `Execution`.
    """

    begin: Callable[[int], Feed]
    warm_up: Callable[[int, PyTree, PyTree], tuple[PyTree, PyTree]]


def compiled(execution: Execution, run: Run, state: PyTree, totals: PyTree, key: Key) -> Compiled:
    """Steps of a run, compiled ahead: the first costs no more than others, and no later one can retrace.

    Args:
      state, totals, key: placed, like those of every step.
    """
    split, compile_loop = run.split, execution.compile_loop
    if compile_loop is None or isinstance(split, Stream) or not fits_on_device(split):
        return _one_by_one(execution, run, state, totals, key)

    @functools.lru_cache(1)
    def order(epoch: int) -> Array:
        return execution.place_state(jnp.asarray(run.order(epoch), jnp.int32))

    def batch_of(done: int) -> PyTree:
        epoch, number = divmod(done - 1, len(run.order(1)))
        rows = run.order(epoch + 1)[number][execution.rows(run.batch_size)]
        return execution.place_batch(rows_of(run.split, rows))

    on_host = tuple(split)
    loop = compile_loop(state, totals, on_host, order(1), key)
    if loop is None:
        return _one_by_one(execution, run, state, totals, key)
    data = execution.place_state(jax.tree.map(jnp.asarray, on_host))
    return Compiled(
        lambda done: in_a_loop(loop, data, order, len(run.order(1)), batch_of),
        lambda steps, state, totals: (state, totals),
    )


def fits_on_device(arrays: PyTree) -> bool:
    """Whether arrays are to lie on the device: they do, or need at most a quarter of what is free there.

    On a CPU, which is the machine's own memory, an eighth of all: a run that goes on must find the same.
    """
    on_host = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays) if not isinstance(leaf, jax.Array))
    (device,) = jnp.zeros(()).devices()
    if (stats := device.memory_stats()) is not None:
        return 4 * on_host <= stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    return 8 * on_host <= _memory()


def _memory() -> int:
    """Of the machine, in bytes; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def read_ahead(split: AnySplit | tuple[PyTree, ...]) -> AnySplit | tuple[PyTree, ...]:
    """The same examples; where a device would wait for batches of them, threads put these together."""
    if isinstance(split, Stream) or jax.default_backend() == "cpu" or find_spec("grain") is None:
        return split
    return Stream(functools.partial(rows_of, split), np.arange(examples_in(split)))


def _one_by_one(execution: Execution, run: Run, state: PyTree, totals: PyTree, key: Key) -> Compiled:
    rows = execution.rows(run.batch_size)

    def arguments(images: PyTree, labels: PyTree, *weight: Array) -> tuple[PyTree, ...]:
        """Of a step, behind state and totals."""
        return images, labels, key, *weight

    first = arguments(*execution.place_batch(rows_of(run.split, np.arange(run.batch_size)[rows])))
    step = execution.compile_step(state, totals, *first)

    def begin(done: int) -> Feed:
        batches = batches_from(done, read_ahead(run.split), run.batch_size, run.seed, run.epochs, rows)
        return one_by_one(
            lambda state, totals, batch: step(state, totals, *arguments(*batch)),
            brought(execution.place_batch, batches),
        )

    return Compiled(
        begin, lambda steps, state, totals: execution.warm_up(steps, step, state, totals, *first)
    )


def one_by_one(
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]], batches: Iterable[PyTree]
) -> Feed:
    """Each step is called by itself.

    Args:
      step: (state, totals, batch) -> (state, totals), which destroys the first two.
      batches: of the steps that are left, placed.
    """
    left, last = iter(batches), None

    def take(state: PyTree, totals: PyTree, done: int, count: int) -> tuple[PyTree, PyTree]:
        nonlocal last
        del done
        for batch in itertools.islice(left, count):
            state, totals = step(state, totals, batch)
            last = batch
        return state, totals

    return Feed(take, lambda: last)


def brought(place: Callable[[PyTree], PyTree], batches: Iterator[PyTree]) -> Iterator[PyTree]:
    """Batches, placed a few steps before they are asked for, so that they arrive while a step runs."""
    waiting: collections.deque[PyTree] = collections.deque()
    for batch in batches:
        waiting.append(place(batch))
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def in_a_loop(
    loop: Callable[..., tuple[PyTree, PyTree]],
    data: PyTree,
    orders: Callable[[int], PyTree],
    steps_per_epoch: int,
    batch_of: Callable[[int], PyTree],
) -> Feed:
    """Steps are taken many in one call, on a data set that lies on the device.

    Args:
      loop: (state, totals, data, order, first, count) -> (state, totals); see `train_loop`.
      data: the whole data set, placed.
      orders: number of an epoch, from 1 -> the rows of each of its batches, placed.
      batch_of: number of steps done -> the batch of the last of them, placed.
    """
    now = 0

    def take(state: PyTree, totals: PyTree, done: int, count: int) -> tuple[PyTree, PyTree]:
        nonlocal now
        now = done + count
        epoch, first = divmod(done, steps_per_epoch)
        return loop(state, totals, data, orders(epoch + 1), np.int32(first), np.int32(count))

    return Feed(take, lambda: batch_of(now))

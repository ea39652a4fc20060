"""Data sets that stay where they are: read a batch at a time, by grain, in threads or worker processes."""

import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import flags

from decoupled.errors import DataError, UsageError
from decoupled.extras import extra
from decoupled.shapes import Integer
from decoupled.types import PyTree

_THREADS, _AHEAD = 4, 8  # batches that are read at a time, and that wait to be used
_SAMPLE = 256


@runtime_checkable
class Order(Protocol):
    """Which examples make up each of some batches."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


class Stream:
    """A split of a data set that gives its examples by number, which are never all in memory.

    Args:
      read: rows of the data set -> their images and labels, and weights if there are some; checked. It must
        give the same whenever it is asked.
      indices: of the split's examples in the data set.
      workers: processes that read the batches of a run; 0: threads of this one.
    """

    def __init__(
        self,
        read: Callable[[Any], tuple[PyTree, ...]],
        indices: Integer[np.ndarray, " examples"],
        workers: int = 0,
    ):
        self._read, self._indices, self._workers = read, indices, workers

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def images(self) -> PyTree:
        """Of the examples of `sample`."""
        return self.sample[0]

    @property
    def labels(self) -> PyTree:
        """Of the examples of `sample`."""
        return self.sample[1]

    @functools.cached_property
    def sample(self) -> tuple[PyTree, ...]:
        """Up to 256 of its examples, spread evenly."""
        return self.rows(np.unique(np.linspace(0, len(self) - 1, _SAMPLE).round().astype(int)))

    def rows(self, chosen: Integer[np.ndarray, " rows"]) -> tuple[PyTree, ...]:
        """Images and labels, and weights where there are some, of these of its examples."""
        return self._read(self._indices[chosen])

    def part(self, chosen: Integer[np.ndarray, " rows"]) -> "Stream":
        """These of its examples, as a split."""
        return Stream(self._read, self._indices[chosen], self._workers)

    def then(self, change: Callable[[tuple[PyTree, ...], np.ndarray], tuple[PyTree, ...]]) -> "Stream":
        """The same examples, with what is read changed: (parts, rows of the data set) -> parts."""
        return Stream(_Then(self._read, change), self._indices, self._workers)

    def batches(self, order: Order, in_processes: bool = False) -> Iterator[tuple[PyTree, ...]]:
        """What `rows` gives for each entry of `order`, read ahead.

        Args:
          in_processes: in the worker processes, if it has some, which take a few seconds to start.
        """
        return read_ahead(self._read, _Chosen(self._indices, order), self._workers if in_processes else 0)


@dataclass(frozen=True)
class _Then:
    """`read`, and then `change`."""

    read: Callable[[Any], tuple[PyTree, ...]]
    change: Callable[[tuple[PyTree, ...], np.ndarray], tuple[PyTree, ...]]

    def __call__(self, rows: np.ndarray) -> tuple[PyTree, ...]:
        return self.change(self.read(rows), rows)


@dataclass(frozen=True)
class _Chosen:
    """Entries of `order`, as rows of the data set."""

    indices: np.ndarray
    order: Order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int, /) -> np.ndarray:
        return self.indices[self.order[i]]


def read_ahead(
    read: Callable[[Any], tuple[PyTree, ...]], order: Order, workers: int
) -> Iterator[tuple[PyTree, ...]]:
    """read(rows) for each entry of `order`, in that order, some of them ahead of when they are asked for.

    Raises:
      UsageError: reading fails in a worker.
    """
    with extra("train"):
        import grain

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    batches = grain.MapDataset.source(_Batches(read, order, told=workers > 0)).to_iter_dataset(options)
    if workers:
        several = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(several, worker_init_fn=_begin_worker)
        _check_pickled(read)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain asks for its own, which in a notebook nobody has parsed
    iterator = iter(batches)
    try:
        for batch in iterator:
            if isinstance(batch, _Failed):
                raise batch.kind(batch.message)
            yield batch
    finally:
        iterator.close()


def _check_pickled(read: Callable) -> None:
    with extra("train"):
        import cloudpickle
    try:
        cloudpickle.dumps(read)
    except Exception as error:  # Whatever its parts may raise.
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"config.read_workers is set, but the data set cannot be sent to other processes ({said}):"
            " leave it 0, or open files and the like in __getitem__"
        ) from error


class _Failed(NamedTuple):
    """What reading a batch in a worker has failed with."""

    kind: type[Exception]
    message: str


@dataclass(frozen=True)
class _Batches:
    """What grain reads: a data set of batches.

    Attributes:
      told: errors are given in the place of a batch, since processes do not pass on where they came from.
    """

    read: Callable[[Any], tuple[PyTree, ...]]
    order: Order
    told: bool

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.read(self.order[index])
        except (DataError, UsageError) as error:
            if not self.told:
                raise
            return _Failed(type(error), str(error))
        except Exception as error:  # Whatever someone's data set may raise.
            if not self.told:
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(f"{type(error).__name__}: {error}".split())
            return _Failed(
                UsageError,
                f"the data set fails: {last.filename}, line {last.lineno}: {said} (in a worker:"
                " config.read_workers=0 has its traceback)",
            )


def _begin_worker(index: int, count: int) -> None:
    """A worker ends when the process that it works for does, however that ends, and at nothing else.

    ^C reaches all processes of a terminal.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(process: Any) -> None:
    process.join()
    os._exit(0)

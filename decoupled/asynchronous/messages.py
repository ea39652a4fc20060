"""What a worker and its supervisor say to each other, and how it travels.

A message is a NamedTuple of plain values and NumPy arrays, pickled with the arrays' bytes beside the
pickle, so that they are neither copied into it nor out of it. Each worker has a connection of its own: what
one that dies has written half is lost with its connection, and nobody else reads from there.
"""

import pickle
import struct
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.types import PyTree

_COUNT = struct.Struct(">I")


class Counts(NamedTuple):
    """What a worker has done since it was started.

    Attributes:
      updates: minibatches that its modules were updated from.
      fits: targets that its top estimator was fitted to.
      dropped_targets: targets for minibatches that it no longer remembered.
      staleness_max, staleness_sum: minibatches that came between one and the target for it; over the fits.
      seconds: from its first minibatch to the end of the last one, on the wall.
      busy_seconds: spent on updates and fits.
    """

    updates: int = 0
    fits: int = 0
    dropped_targets: int = 0
    staleness_max: int = 0
    staleness_sum: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0


class Start(NamedTuple):
    """To a worker, first of all: the state to begin with, from `to_host`."""

    state: PyTree


class Begun(NamedTuple):
    """From a worker, first of all: it has imported the program and what it was sent."""


class Ready(NamedTuple):
    """From a worker: its programs are compiled."""


class Input(NamedTuple):
    """To a worker: a minibatch to update from.

    Attributes:
      number: of the minibatch.
      h: (batch, ...), output of the stage below.
      y: labels of the same minibatch.
    """

    number: int
    h: PyTree
    y: PyTree


class Target(NamedTuple):
    """To a worker: what its top estimator should have said about minibatch `number`, shape of its h_out."""

    number: int
    grad_h: PyTree


class Stepped(NamedTuple):
    """From a worker: an input is dealt with.

    Attributes:
      number: of the minibatch.
      up: for the stage above; None from the highest.
      down: for the stage below; None from the lowest.
      loss: mean over the batch, from the highest stage; None from the others.
      counts: so far.
    """

    number: int
    up: Input | None
    down: Target | None
    loss: float | None
    counts: Counts


class Fitted(NamedTuple):
    """From a worker: a target is dealt with, or dropped."""

    number: int
    counts: Counts


class Snapshot(NamedTuple):
    """From a worker: its state after so many updates since it was started, from `to_host`."""

    state: PyTree
    updates: int


class Stop(NamedTuple):
    """To a worker: nothing more will come."""


class Final(NamedTuple):
    """From a worker, last of all: its state, from `to_host`."""

    state: PyTree


class Failed(NamedTuple):
    """From a worker: it ends, because of an exception.

    Attributes:
      error: its type and message, in one line.
      traceback: all of it.
    """

    error: str
    traceback: str


class _HostKey(NamedTuple):
    """A typed key, which NumPy has no type for."""

    data: np.ndarray
    implementation: str


def to_host(tree: PyTree) -> PyTree:
    """The tree with NumPy arrays, and typed keys as what they are made of."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return _HostKey(np.asarray(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf)))
        return np.asarray(leaf)

    return jax.tree.map(move, tree)


def to_device(tree: PyTree) -> PyTree:
    """The inverse of `to_host`; copies, so that the arrays may be donated."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, _HostKey):
            return jax.random.wrap_key_data(jnp.array(leaf.data), impl=leaf.implementation)
        return jnp.array(leaf, copy=True)

    return jax.tree.map(move, tree, is_leaf=lambda leaf: isinstance(leaf, _HostKey))


def send(connection: Connection, message: object) -> None:
    """Writes a message whole; waits while the pipe is full.

    Raises:
      OSError: nobody is at the other end any more.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    connection.send_bytes(_COUNT.pack(len(buffers)) + head)
    for buffer in buffers:
        connection.send_bytes(buffer.raw())


def receive(connection: Connection) -> Any:
    """Waits for a message and reads it whole; its arrays are read-only.

    Raises:
      EOFError, OSError: the other end closed, perhaps in the middle of a message.
    """
    head = connection.recv_bytes()
    (count,) = _COUNT.unpack_from(head)
    buffers = [connection.recv_bytes() for _ in range(count)]
    return pickle.loads(memoryview(head)[_COUNT.size :], buffers=buffers)

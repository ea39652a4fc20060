"""What travels arrives as it was, or not at all."""

import multiprocessing
from multiprocessing.connection import Connection
from unittest.mock import create_autospec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoupled.asynchronous.messages import Input, Snapshot, receive, send, to_device, to_host


@pytest.fixture
def pipe():
    ours, theirs = multiprocessing.Pipe()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_arrays_of_every_kind_arrive(pipe):
    ours, theirs = pipe
    arrays = {
        "flat": np.arange(12, dtype=np.float32).reshape(3, 4),
        "transposed": np.arange(6).reshape(2, 3).T,
        "strided": np.arange(10)[::3],
        "scalar": np.asarray(3, np.int32),
        "empty": np.zeros((0, 4)),
        "half": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    }
    send(theirs, Snapshot(arrays, 5))
    state, updates = receive(ours)
    assert updates == 5
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name], array)
        assert state[name].dtype == array.dtype


def test_what_is_passed_on_arrives(pipe):
    """The supervisor sends on what it was sent."""
    ours, theirs = pipe
    sent = Input(3, np.arange(4.0), np.arange(4))
    for _ in range(2):
        send(theirs, sent)
        sent = receive(ours)
    assert sent.number == 3
    np.testing.assert_array_equal(sent.h, np.arange(4.0))
    np.testing.assert_array_equal(sent.y, np.arange(4))


@pytest.mark.parametrize("cut_after", [0, 1])
def test_half_a_message_is_an_end_of_the_pipe(pipe, cut_after):
    """As of a process that is killed between two writes, or in one."""
    ours, theirs = pipe
    written = []

    recorder = create_autospec(Connection, instance=True)
    recorder.send_bytes.side_effect = lambda data: written.append(bytes(data))
    send(recorder, Input(0, np.arange(4.0), np.arange(4)))
    for data in written[:cut_after]:
        theirs.send_bytes(data)
    theirs.close()
    with pytest.raises((EOFError, OSError)):
        receive(ours)


def test_typed_keys_survive_the_host():
    tree = {"key": jax.random.key(3), "array": jnp.ones(2)}
    back = to_device(to_host(tree))
    assert back["key"].dtype == tree["key"].dtype
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(tree["key"]))
    assert all(isinstance(leaf, np.ndarray | str) for leaf in jax.tree.leaves(to_host(tree)))

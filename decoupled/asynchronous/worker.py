"""A process that trains one stage: it takes what comes, and never waits for anything but its input."""

import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.asynchronous.messages import (
    Begun,
    Counts,
    Failed,
    Final,
    Fitted,
    Input,
    Ready,
    Snapshot,
    Start,
    Stepped,
    Stop,
    Target,
    receive,
    send,
    to_device,
    to_host,
)
from decoupled.learning.chain import Chain, ChainState
from decoupled.learning.examples import Examples
from decoupled.learning.fused import update_chain
from decoupled.learning.learner import Learner
from decoupled.learning.module_update import Rules
from decoupled.parallel.stages import cut_into_stages, fit_top
from decoupled.shapes import AnyArray, Float, Integer, Shaped
from decoupled.types import Array, Key, PyTree


class Job(NamedTuple):
    """What a worker is told when its process starts; all of it can be pickled.

    Attributes:
      make_learner: () -> Learner, the whole network.
      num_stages, stage: which part of it.
      example: zeros of the shapes of an input and its labels.
      key: data of the run's key, and the name of its implementation.
      x64: whether the run computes with 64 bits.
      gpu: number of the GPU to use; None: a CPU device.
      delay: seconds to sleep in every update.
      snapshot_every, max_staleness: as in AsyncOptions.
    """

    make_learner: Callable[[], Learner]
    num_stages: int
    stage: int
    example: Input
    key: tuple[np.ndarray, str]
    x64: bool
    gpu: int | None
    delay: float
    snapshot_every: int
    max_staleness: int


def run_worker(connection: Connection, job: Job) -> None:
    """The body of a worker's process."""
    # Ctrl-C reaches all processes of a terminal; the supervisor decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    send(connection, Begun())
    _choose_device(job)
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    try:
        train_stage(connection, inbox, job)
    except Exception as error:
        line = " ".join("".join(traceback.format_exception_only(error)).split())
        send(connection, Failed(line, traceback.format_exc()))


def _listen(connection: Connection, inbox: queue.SimpleQueue) -> None:
    """Takes messages off the pipe, so that the supervisor's end is never full for long."""
    try:
        while True:
            inbox.put(receive(connection))
    except (EOFError, OSError):
        # The supervisor is gone, and whatever this process was doing is of no use to anyone.
        os._exit(1)


def _choose_device(job: Job) -> None:
    if job.gpu is None:
        jax.config.update("jax_platforms", "cpu")
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(job.gpu)
        # Other stages may be on the same one.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_x64", job.x64)


def train_stage(connection: Connection, inbox: queue.SimpleQueue, job: Job) -> None:
    """Deals with messages in turn, until it is told to stop; answers over the connection."""
    learner = job.make_learner()
    stage = cut_into_stages(learner.chain, job.num_stages)[job.stage]
    data, implementation = job.key
    key = jax.random.wrap_key_data(jnp.asarray(data), impl=implementation)
    update = jax.jit(stage_update(learner.rules, stage, key), donate_argnums=0)

    def fit_to(
        state: ChainState,
        h: Float[Array, "batch *features"],
        y: Shaped[Array, "batch *label"],
        target: Float[Array, "batch *features"],
    ) -> ChainState:
        return fit_top(learner.rules, stage, state, h, Examples(y), target)[0]

    fit = jax.jit(fit_to, donate_argnums=0)
    highest = len(stage.estimators) < len(stage.links)

    start = inbox.get()
    assert isinstance(start, Start)
    state = to_device(start.state)
    _compile(update, None if highest else fit, to_device(start.state), job.example)
    del start
    send(connection, Ready())

    remembered: dict[int, tuple[AnyArray, AnyArray]] = {}
    counts, newest, began = Counts(), -1, None
    while True:
        message = inbox.get()
        now = time.monotonic()
        if isinstance(message, Stop):
            send(connection, Final(to_host(state)))
            return
        if isinstance(message, Target):
            seen = remembered.pop(message.number, None)
            if seen is None:
                counts = counts._replace(dropped_targets=counts.dropped_targets + 1)
            else:
                state = jax.block_until_ready(fit(state, *seen, message.grad_h))
                counts = _after_fit(counts, newest - message.number, time.monotonic() - now)
            send(connection, Fitted(message.number, counts))
            continue
        assert isinstance(message, Input)
        began = now if began is None else began
        newest = message.number
        state, h_out, grad_h_in, loss = update(state, message.h, message.y, newest)
        if not highest:
            remembered[newest] = (h_out, jnp.asarray(message.y))
            for number in [n for n in remembered if n < newest - job.max_staleness]:
                del remembered[number]
        up = None if highest else Input(newest, np.asarray(h_out), message.y)
        down = None if grad_h_in is None else Target(newest, np.asarray(grad_h_in))
        loss = None if loss is None else float(loss)
        jax.block_until_ready(state)
        if job.delay:
            time.sleep(job.delay)
        end = time.monotonic()
        counts = counts._replace(
            updates=counts.updates + 1,
            seconds=end - began,
            busy_seconds=counts.busy_seconds + end - now,
        )
        send(connection, Stepped(newest, up, down, loss, counts))
        if counts.updates % job.snapshot_every == 0:
            send(connection, Snapshot(to_host(state), counts.updates))


def stage_update(rules: Rules, stage: Chain, key: Key) -> Callable[..., tuple[PyTree, ...]]:
    """A pure (state, h, y, number) -> (state, h_out, grad_h_in, mean loss).

    A minibatch's randomness comes from the run's key and its number, as in the training loop's fused step.
    """

    def update(
        state: ChainState,
        h: Float[Array, "batch *features"],
        y: Shaped[Array, "batch *label"],
        number: Integer[Array, ""],
    ) -> tuple[PyTree, ...]:
        _, update_key = jax.random.split(jax.random.fold_in(key, number))
        step = update_chain(rules, stage, state, h, Examples(y), update_key, opaque_true=number >= 0)
        loss = None if step.losses is None else jnp.mean(step.losses)
        return step.state, step.h_out, step.grad_h_in, loss

    return update


def _compile(update: Callable, fit: Callable | None, state: ChainState, example: Input) -> None:
    """Runs both functions once, on a state that is thrown away."""
    state, h_out, *_ = update(state, example.h, example.y, 0)
    if fit is not None:
        fit(state, h_out, jnp.asarray(example.y), np.zeros(h_out.shape, h_out.dtype))


def _after_fit(counts: Counts, staleness: int, seconds: float) -> Counts:
    return counts._replace(
        fits=counts.fits + 1,
        staleness_max=max(counts.staleness_max, staleness),
        staleness_sum=counts.staleness_sum + staleness,
        busy_seconds=counts.busy_seconds + seconds,
    )

"""Real processes: few, since each takes seconds to start."""

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import types

import chex
import jax
import numpy as np
import pytest

from decoupled import TrainingError, UsageError
from decoupled.asynchronous import AsyncOptions, Supervisor, run_asynchronously
from decoupled.asynchronous.plan import make_plan
from decoupled.asynchronous.worker import run_worker
from tests.asynchronous import learners

LEARNER = learners.tiny()


@pytest.fixture(scope="module")
def state():
    return learners.start(LEARNER)


@pytest.fixture(autouse=True)
def no_process_left():
    yield
    assert multiprocessing.active_children() == []


def wait_for(condition, seconds):
    """Seconds until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "waited in vain"
        time.sleep(0.01)
    return time.monotonic() - start


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


CALM = 40
CALM_BATCHES = learners.batches(CALM)


@pytest.fixture(scope="module")
def standard_input():
    """As in `python - < program.py`: the program says it is a file, and no other process finds that."""
    program = types.ModuleType("__main__")
    program.__file__ = "<stdin>"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__main__", program)
        yield
    assert program.__file__ == "<stdin>"


@pytest.fixture(scope="module")
def undisturbed(state, standard_input):
    options = AsyncOptions(queue_size=CALM, keep_order=True)

    def paced():
        for batch in CALM_BATCHES:
            yield batch
            time.sleep(0.005)

    return run_asynchronously(learners.tiny, state, paced(), learners.KEY, num_stages=2, options=options)


def test_all_minibatches_pass_in_order(undisturbed):
    lower, upper = undisturbed.reports
    numbers = list(range(CALM))
    assert [n for kind, n in lower.order if kind == "update"] == numbers
    assert [n for kind, n in lower.order if kind == "fit"] == numbers
    assert list(upper.order) == [("update", n) for n in numbers]
    assert [n for n, _ in undisturbed.losses] == numbers
    assert (lower.dropped_inputs, lower.dropped_targets) == (0, 0)
    assert (upper.dropped_inputs, upper.dropped_targets) == (0, 0)
    assert undisturbed.events == ()


def test_it_does_what_single_module_updates_in_that_order_do(undisturbed, state):
    oracle = learners.Oracle(LEARNER, state)
    oracle.replay(undisturbed.reports[0].order, undisturbed.reports[1].order, CALM_BATCHES)
    assert int(undisturbed.state.step) == CALM
    chex.assert_trees_all_close(undisturbed.state.modules, tuple(oracle.modules), rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(
        undisturbed.state.estimators, tuple(oracle.estimators), rtol=1e-3, atol=1e-4
    )


def test_it_learns(undisturbed):
    losses = [loss for _, loss in undisturbed.losses]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


COUNT = 60
DELAY = 0.1
SNAPSHOT_EVERY = 4
BATCHES = learners.batches(COUNT)


@pytest.fixture(scope="module")
def disturbed(state):
    """(result, seconds until the death was noticed)"""
    options = AsyncOptions(snapshot_every=SNAPSHOT_EVERY, delays={1: DELAY})
    with Supervisor(
        learners.tiny, state, BATCHES[0], learners.KEY, num_stages=2, options=options
    ) as supervisor:
        for number, batch in enumerate(BATCHES):
            if number == COUNT // 2:
                victim = supervisor.pids[0]
                os.kill(victim, signal.SIGKILL)
                noticed = wait_for(lambda: supervisor.events, seconds=5)
            supervisor.feed(*batch)
            time.sleep(0.005)
        result = supervisor.finish()
    assert is_gone(victim)
    return result, noticed


def test_the_lower_stage_does_not_wait_for_the_slow_one(disturbed):
    lower, upper = disturbed[0].reports
    # As much as the upper stage's queue and look-ahead do not take would be waited for.
    assert lower.counts.seconds < (COUNT - 10) * DELAY / 2
    assert upper.dropped_inputs > 0
    assert upper.counts.updates + upper.dropped_inputs == lower.counts.updates
    assert upper.counts.seconds >= upper.counts.updates * DELAY


def test_the_death_is_told_soon_and_as_what_it_was(disturbed):
    result, noticed = disturbed
    assert noticed < 1.5
    (event,) = result.events
    assert event.stage == 0
    assert event.modules == tuple(module.name for module in LEARNER.modules[:2])
    assert "SIGKILL" in event.cause
    assert event.restarted_at in (event.updates, None)  # numbered from 0; or none was waiting
    assert 0 <= event.lost_updates <= SNAPSHOT_EVERY


def test_only_updates_since_the_snapshot_are_lost(disturbed):
    """Adam counts the updates that a state has seen."""
    result, _ = disturbed
    lower, upper = result.reports
    assert lower.counts.updates == COUNT
    assert lower.dropped_inputs == 0
    assert lower.restarts == 1
    modules = [learners.adam_steps(module) for module in result.state.modules]
    assert modules[:2] == [lower.counts.updates - lower.lost_updates] * 2
    assert modules[2] == upper.counts.updates
    assert learners.adam_steps(result.state.estimators[0]) == modules[0]


def test_an_exception_is_told_as_such_when_it_comes_too_often(state):
    options = AsyncOptions(max_restarts=0)
    make = learners.failing_in_workers
    state = make().init(jax.random.key(0), *learners.batches(1)[0])
    with pytest.raises(TrainingError, match=r"stage 0 \(hidden_0 hidden_1 output\).*planted in a module"):
        run_asynchronously(make, state, learners.batches(2), learners.KEY, num_stages=1, options=options)


@pytest.fixture
def heeds_interrupts():
    """A shell has its background jobs ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_all_workers(state, heeds_interrupts):
    supervisor = Supervisor(learners.tiny, state, BATCHES[0], learners.KEY, num_stages=1)
    pids = []

    def press_ctrl_c():
        wait_for(lambda: supervisor.pids[0] is not None, seconds=10)
        pids.extend(supervisor.pids)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press_ctrl_c)
    presser.start()
    with pytest.raises(KeyboardInterrupt), supervisor:
        time.sleep(10)
    presser.join()
    assert is_gone(*pids)


def test_a_worker_without_its_supervisor_ends(state):
    """When the supervisor dies, all that its workers see is that the pipe is closed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    (stage,) = make_plan(learners.tiny, state, learners.batches(1)[0], learners.KEY, 1, AsyncOptions())
    process = context.Process(target=run_worker, args=(theirs, stage.job), daemon=True)
    process.start()
    theirs.close()
    ours.close()
    process.join(60)
    assert process.exitcode == 1


def program_with(monkeypatch, file=None):
    """A `__main__` of which workers see this file, if any; and a function that was defined there."""
    program = types.ModuleType("__main__")
    if file is not None:
        program.__file__ = str(file)
    exec("def my_learner(): pass", program.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", program)
    return program.my_learner


def test_a_function_of_a_notebook_is_refused_before_anything_is_started(state, monkeypatch):
    make = program_with(monkeypatch)
    with pytest.raises(UsageError, match="cannot import my_learner, which was defined in a notebook"):
        Supervisor(functools.partial(make), state, BATCHES[0], learners.KEY, num_stages=1)


def test_a_program_that_workers_cannot_import_is_told_at_once(state, monkeypatch, tmp_path):
    """One without `if __name__ == "__main__":`, and one with its function inside of that."""
    file = tmp_path / "program.py"
    file.write_text("raise SystemExit('planted: no guard')", encoding="utf-8")
    program_with(monkeypatch, file)
    supervisor = Supervisor(learners.tiny, state, BATCHES[0], learners.KEY, num_stages=1)
    with pytest.raises(UsageError, match=r'belongs under `if __name__ == "__main__":`'), supervisor:
        pass
    assert supervisor.events == ()


def test_no_batches_are_refused(state):
    with pytest.raises(UsageError, match="no batches"):
        run_asynchronously(learners.tiny, state, [], learners.KEY, num_stages=1)

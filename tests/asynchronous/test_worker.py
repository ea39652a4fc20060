"""What a worker makes of its messages, in this process."""

import multiprocessing
import queue
from functools import partial

import chex
import jax
import numpy as np
import pytest

from decoupled.asynchronous.messages import (
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
)
from decoupled.asynchronous.plan import make_plan
from decoupled.asynchronous.report import AsyncOptions
from decoupled.asynchronous.worker import train_stage
from decoupled.errors import UsageError
from tests import helpers
from tests.asynchronous import learners

LEARNER = learners.tiny()
BATCHES = learners.batches(8)


@pytest.fixture(scope="module")
def state():
    return learners.start(LEARNER)


def plan(state, num_stages, **options):
    return make_plan(learners.tiny, state, BATCHES[0], learners.KEY, num_stages, AsyncOptions(**options))


def work(stage, messages):
    """What a worker answers."""
    ours, theirs = multiprocessing.Pipe()
    inbox = queue.SimpleQueue()
    for message in (Start(stage.state), *messages, Stop()):
        inbox.put(message)
    train_stage(theirs, inbox, stage.job)
    answers = [receive(ours)]
    while not isinstance(answers[-1], Final):
        answers.append(receive(ours))
    ours.close()
    theirs.close()
    return answers


def test_one_stage_is_the_fused_learner(state):
    (stage,) = plan(state, 1, snapshot_every=4)
    answers = work(stage, [Input(n, *batch) for n, batch in enumerate(BATCHES)])
    update, fused, losses, after_4 = jax.jit(LEARNER.update), state, [], None
    for number, batch in enumerate(BATCHES):
        fused, metrics = update(fused, *batch, learners.key_of(number))
        losses.append(float(metrics.loss))
        after_4 = fused if number == 3 else after_4
    ready, *steps, final = answers
    assert isinstance(ready, Ready)
    assert [s.loss for s in steps if isinstance(s, Stepped)] == losses
    chex.assert_trees_all_equal(final.state.modules, fused.modules)
    chex.assert_trees_all_equal(final.state.estimators, fused.estimators)
    snapshots = [(i, s) for i, s in enumerate(steps) if isinstance(s, Snapshot)]
    assert [(i, s.updates) for i, s in snapshots] == [(4, 4), (9, 8)]
    chex.assert_trees_all_equal(snapshots[0][1].state.modules, after_4.modules)


def test_a_target_is_fitted_with_the_output_and_labels_of_its_minibatch(state):
    """Targets come late, and not in order; some never, some too late, some twice, some for nothing."""
    lower, _ = plan(state, 2, max_staleness=3)
    targets = [np.random.default_rng(n).normal(size=(16, 6)).astype(np.float32) for n in range(6)]
    script = [0, 1, (1, "fit"), 2, 4, (0, "late"), (1, "twice"), (2, "fit"), (3, "unseen"), 6, (4, "fit")]
    messages, oracle, expected = [], learners.Oracle(LEARNER, state), []
    for step in script:
        if isinstance(step, int):
            messages.append(Input(step, *BATCHES[step]))
            expected.append(oracle.update_lower(step, *BATCHES[step]))
        else:
            number, what = step
            messages.append(Target(number, targets[number]))
            if what == "fit":
                oracle.fit_lower(number, targets[number])
    answers = work(lower, messages)
    outputs = [a.up for a in answers if isinstance(a, Stepped)]
    assert [up.number for up in outputs] == [0, 1, 2, 4, 6]
    for up, h_out in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(up.y, BATCHES[up.number][1])
        np.testing.assert_allclose(up.h, h_out, rtol=1e-4, atol=1e-5)
    final = answers[-1].state
    chex.assert_trees_all_close(final.modules, tuple(oracle.modules[:2]), rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(final.estimators, tuple(oracle.estimators), rtol=1e-3, atol=1e-5)
    counts = [a.counts for a in answers if isinstance(a, Stepped | Fitted)][-1]
    # Late by 0 (1 at 1), 2 (2 at 4) and 2 (4 at 6).
    assert (counts.updates, counts.fits, counts.dropped_targets) == (5, 3, 3)
    assert (counts.staleness_max, counts.staleness_sum) == (2, 4)


def test_the_highest_stage_sends_targets_and_nothing_up(state):
    _, upper = plan(state, 2)
    oracle = learners.Oracle(LEARNER, state)
    h, (_, y) = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32), BATCHES[0]
    _, step, _ = work(upper, [Input(5, h, y)])
    oracle._outputs[5] = h, y
    oracle.update_upper(5)
    assert step.up is None
    assert step.down.number == 5
    np.testing.assert_allclose(step.down.grad_h, oracle._targets[5], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_estimator_is_built_like_layers_of_another_stage():
    learner = learners.like_layers_above()
    state = learners.start(learner)
    lower, _ = make_plan(
        learners.like_layers_above, state, BATCHES[0], learners.KEY, 2, AsyncOptions(max_staleness=3)
    )
    target = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    oracle = learners.Oracle(learner, state)
    for number in (0, 1):
        oracle.update_lower(number, *BATCHES[number])
    oracle.fit_lower(0, target)
    inputs = [Input(number, *BATCHES[number]) for number in (0, 1)]
    final = work(lower, [*inputs, Target(0, target)])[-1].state
    chex.assert_trees_all_close(final.modules, tuple(oracle.modules[:2]), rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(final.estimators, tuple(oracle.estimators), rtol=1e-3, atol=1e-5)


def test_equal_modules_are_told_apart_across_stages(state):
    plans = make_plan(learners.alike, state, BATCHES[0], learners.KEY, 2, AsyncOptions())
    assert [stage.modules for stage in plans] == [("layer_0", "layer_1"), ("layer_2",)]


def test_mistakes_are_told_before_anything_starts(state):
    make = partial(make_plan, learners.tiny, state, BATCHES[0], learners.KEY)
    with pytest.raises(UsageError, match="4 stages of 3 modules"):
        make(4, AsyncOptions())
    with pytest.raises(UsageError, match="queue_size is 0"):
        make(2, AsyncOptions(queue_size=0))
    with pytest.raises(UsageError, match="stages 0 to 1"):
        make(2, AsyncOptions(delays={2: 1.0}))
    with pytest.raises(UsageError, match="top level of a file"):
        make_plan(lambda: LEARNER, state, BATCHES[0], learners.KEY, 2, AsyncOptions())
    with pytest.raises(UsageError, match="axis_name"):
        make_plan(_mapped, state, BATCHES[0], learners.KEY, 2, AsyncOptions())


def _mapped():
    return helpers.make_learner(
        helpers.mlp_modules(), helpers.synthetic_gradients()["linear"], axis_name="data"
    )

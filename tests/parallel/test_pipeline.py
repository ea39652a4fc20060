"""The pipeline against queues written by hand around each module's own update, and what may be cut."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoupled
from decoupled.parallel.pipeline import make_mesh, make_pipeline
from tests import helpers

SYNTHETIC = helpers.synthetic_gradients()
TICKS = 6


def batches(count=TICKS):
    return [helpers.batch(seed=i) for i in range(count)]


def keys(count=TICKS):
    return [jax.random.key(100 + i) for i in range(count)]


def run_by_hand(learner, state, edges, data):
    """Oracle: one dictionary of messages a tick. Returns the state when all has gone through.

    Args:
      edges: first module of each stage.
    """
    modules, estimators = list(state.modules), list(state.estimators)
    update_module = [jax.jit(update) for update in learner.update_module]
    update_estimator = [jax.jit(update) for update in learner.update_estimator]
    stages = [range(a, b) for a, b in zip(edges, [*edges[1:], len(modules)], strict=True)]
    inbox, targets, seen = {}, {}, collections.defaultdict(dict)
    for tick in range(len(data) + 2 * len(stages)):
        if tick < len(data):
            inbox[0] = tick, data[tick][0]
        new_inbox, new_targets = {}, {}
        for s, stage in enumerate(stages):
            if s in targets:
                number, target = targets[s]
                i = stage[-1]
                estimators[i], _ = update_estimator[i](
                    estimators[i], seen[s][number], data[number][1], target
                )
            if s not in inbox:
                continue
            number, h = inbox[s]
            y, key = data[number][1], keys()[number]
            for i in stage:
                above = estimators[i].params if i < len(estimators) else None
                step = update_module[i](modules[i], above, h, y, key)
                modules[i] = step.module
                if i > stage[0]:
                    estimators[i - 1], _ = update_estimator[i - 1](estimators[i - 1], h, y, step.grad_h_in)
                elif s > 0:
                    new_targets[s - 1] = number, step.grad_h_in
                h = step.h_out
            seen[s][number] = h
            new_inbox[s + 1] = number, h
        inbox, targets = new_inbox, new_targets
    return modules, estimators


def problem(name, depth=3, **options):
    learner = helpers.make_learner(
        helpers.mlp_modules(depth, norm="layer", **options), SYNTHETIC[name], rate=0.2, est_rate=0.05
    )
    x, y = helpers.batch()
    return learner, helpers.noisy(learner.init(jax.random.key(0), x, y))


def run(pipeline, state, data):
    running = pipeline.start(state, *data[0])
    for (x, y), key in zip(data, keys(), strict=True):
        running = pipeline.tick(running, x, y, key)
    return pipeline.drain(running)


@pytest.mark.parametrize("name", helpers.gate(["loss_shaped", "recursive_least_squares"], "loss_shaped"))
def test_two_stages_do_what_queues_by_hand_do(name):
    learner, state = problem(name, dropout=0.2)
    pipeline = make_pipeline(learner, make_mesh(2))
    finished = run(pipeline, state, batches())
    joined = pipeline.join(finished)
    modules, estimators = run_by_hand(learner, state, [0, 2], batches())
    chex.assert_trees_all_close(list(joined.modules), modules, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(list(joined.estimators), estimators, rtol=1e-4, atol=1e-5)
    assert joined.step == TICKS
    # Each stage is where it should be, and the caller's state is still there.
    for s, stage in enumerate(finished.stages):
        assert {leaf.device for leaf in jax.tree.leaves(stage.chain)} == {jax.devices()[s]}
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_one_stage_over_two_devices_is_the_fused_update():
    learner, state = problem("linear")
    pipeline = make_pipeline(learner, make_mesh(1))
    finished = run(pipeline, state, batches())
    losses = []
    update = jax.jit(learner.update)
    for (x, y), key in zip(batches(), keys(), strict=True):
        state, metrics = update(state, x, y, key)
        losses.append(metrics.loss)
    chex.assert_trees_all_close(pipeline.join(finished), state, rtol=1e-4, atol=1e-5)
    (totals,), _ = pipeline.take_totals(finished)
    np.testing.assert_allclose(totals.measured, sum(losses), rtol=1e-4)


def test_weights_go_along():
    """One stage does what the fused update does; of two, the upper one sees the same weights."""
    learner, state = problem("linear")
    ((x, y), *_), weight = batches(), jnp.asarray([1.0, 0, 2, 1, 0, 0, 1, 3])
    spoiled = jnp.where(weight[:, None] == 0, jnp.nan, x)
    expected, metrics = jax.jit(learner.update)(state, x, y, keys()[0], weight)
    for stages in (1, 2):
        pipeline = make_pipeline(learner, make_mesh(stages))
        running = pipeline.tick(pipeline.start(state, x, y), spoiled, y, keys()[0], weight)
        finished = pipeline.drain(running)
        chex.assert_trees_all_close(pipeline.join(finished), expected, rtol=1e-4, atol=1e-5)
        totals, _ = pipeline.take_totals(finished)
        np.testing.assert_allclose(totals[-1].measured, metrics.loss, rtol=1e-5)


def test_totals_count_every_minibatch_once_and_start_anew():
    learner, state = problem("linear")
    pipeline = make_pipeline(learner, make_mesh(2), measure=lambda losses, output, y: jnp.ones(()))
    (lower, upper), fresh = pipeline.take_totals(run(pipeline, state, batches()))
    assert (lower.measured, float(upper.measured)) == (None, TICKS)
    assert all(float(b.target_power) > 0 for b in (*lower.boundaries, *upper.boundaries))
    emptied, _ = pipeline.take_totals(fresh)
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(emptied))


def test_no_stage_waits_for_the_one_above():
    """A tick of the lower stage is the same whatever the upper one has become."""
    learner, state = problem("linear")
    pipeline = make_pipeline(learner, make_mesh(2))
    running = pipeline.tick(pipeline.start(state, *batches()[0]), *batches()[0], keys()[0])
    moved = jax.tree.map(lambda leaf: leaf + leaf.dtype.type(1), running.stages[1].chain.modules)
    chain = running.stages[1].chain._replace(modules=moved)
    other = running._replace(stages=(running.stages[0], running.stages[1]._replace(chain=chain)))
    other = jax.tree.map(lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, other)
    ticked = [pipeline.tick(state, *batches()[1], keys()[1]).stages[0] for state in (running, other)]
    chex.assert_trees_all_equal(ticked[0].chain, ticked[1].chain)


@pytest.mark.parametrize(
    ("estimator", "stages", "message"),
    [
        (
            decoupled.estimators.backprop(),
            2,
            r"boundary 1 .*backprop reads the incoming signal.*reads nothing",
        ),
        (SYNTHETIC["linear"], 5, "cannot make 5 stages of 4 modules: choose 1 to 4"),
    ],
)
def test_what_cannot_be_cut_is_refused(estimator, stages, message):
    learner = helpers.make_learner(helpers.mlp_modules(3), estimator)
    with pytest.raises(decoupled.UsageError, match=message):
        make_pipeline(learner, make_mesh(stages, jax.devices()[:1] * stages))


def test_an_update_probability_is_refused():
    learner = helpers.make_learner(helpers.mlp_modules(3), SYNTHETIC["linear"], update_probability=0.5)
    with pytest.raises(decoupled.UsageError, match="update_probability is below 1"):
        make_pipeline(learner, make_mesh(2))


def test_devices_that_cannot_be_shared_equally():
    with pytest.raises(decoupled.UsageError, match="3 stages cannot share 2 devices equally"):
        make_mesh(3)

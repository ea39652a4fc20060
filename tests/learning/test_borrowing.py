"""Borrowed parameters against losses by hand through copies of known age; locks; and where they go."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import decoupled
from decoupled import estimators, from_functions, from_linen, losses
from decoupled.estimators.local_loss import from_local_loss
from decoupled.learning.dispatch import dispatched
from decoupled.learning.stack import Stack
from decoupled.learning.watch import read_watches, watched_estimator
from decoupled.parallel.pipeline import make_mesh, make_pipeline
from tests import helpers, padded_tokens

KEY = jax.random.key(3)
WIDTH, RATE = 4, 0.5
CROSS_ENTROPY = losses.softmax_cross_entropy
# The true loss, as an estimator that stands above the network's last module.
TRUE_LOSS = from_local_loss("true_loss", lambda key, h, y: (), lambda p, h, y, w: CROSS_ENTROPY(h, y))
PRIVATE = (
    from_linen(nn.Dense(WIDTH), "private"),
    from_functions(lambda key, h: (), lambda p, h: nn.tanh(h), "tanh"),
)


def readout(**options):
    return estimators.borrowed_readout(private=PRIVATE, **options)


def all_above(**options):
    return estimators.borrowed_next(TRUE_LOSS, next_modules=9, **options)


# Where how much is borrowed makes no difference.
EITHER = [all_above, pytest.param(readout, marks=pytest.mark.slow)]


def learner_of(estimator, modules=None, **options):
    return helpers.make_learner(modules or helpers.mlp_modules(), estimator, RATE, RATE, **options)


def batches(count):
    return [helpers.batch(seed=i) for i in range(count)]


def trained(learner, data, state=None, **options):
    """The states at the start and after every batch."""
    states = [learner.init(KEY, *data[0]) if state is None else state]
    update = jax.jit(learner.update)
    for x, y in data:
        states.append(update(states[-1], x, y, KEY, **options)[0])
    return states


def by_hand(modules, state, data, lenders, privates, every, decay):
    """Oracle: `jax.grad` of the loss behind each module, through copies kept here.

    Args:
      lenders: for each boundary, the modules whose copies follow it.
      privates: for each boundary, what it trains itself; run before the copies.

    Returns:
      Parameters of modules, of private layers, and the copies of all modules.
    """

    def run(module, params, h):
        return module.apply(params, {}, h, KEY, True)[0]

    def loss(own, private, copies, i, h, y):
        h = run(modules[i], own, h)
        if private:
            h = nn.tanh(h @ private["kernel"] + private["bias"][None])
        for j in lenders[i] if i < len(lenders) else ():
            h = run(modules[j], copies[j], h)
        return CROSS_ENTROPY(h, y).mean()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=3)
    params = [m.params for m in state.modules]
    copies, privates = list(params), list(privates)
    for t, (h, y) in enumerate(data, start=1):
        new = []
        for i, own in enumerate(params):
            private = privates[i] if i < len(privates) else {}
            steps = gradient(own, private, copies, i, h, y)
            moved = jax.tree.map(lambda p, g: p - RATE * g, (own, private), steps)
            h = run(modules[i], own, h)
            new.append(moved[0])
            if i < len(privates):
                privates[i] = moved[1]
        params = new
        if t % every == 0:
            copies = jax.tree.map(lambda c, p: decay * c + (1 - decay) * p, copies, params)
    return params, privates, copies


@pytest.mark.parametrize(
    ("make", "every", "decay"),
    [
        (readout, 3, 0.0),
        (all_above, 2, 0.75),
        pytest.param(readout, 1, 0.75, marks=pytest.mark.slow),
        pytest.param(all_above, 1, 0.0, marks=pytest.mark.slow),
    ],
)
def test_steps_are_those_of_the_loss_behind_copies_of_known_age(make, every, decay):
    modules, data = helpers.mlp_modules(), batches(5)
    learner = learner_of(make(every=every, decay=decay), modules)
    first, *_, last = trained(learner, data)
    own = [e.params[0].params if make is readout else {} for e in first.estimators]
    lenders = [[2], [2]] if make is readout else [[1, 2], [2]]
    params, privates, copies = by_hand(modules, first, data, lenders, own, every, decay)
    chex.assert_trees_all_close([m.params for m in last.modules], params, rtol=1e-5, atol=1e-6)
    for estimator, private, lent in zip(last.estimators, privates, lenders, strict=True):
        if make is readout:
            chex.assert_trees_all_close(estimator.params[0].params, private, rtol=1e-5, atol=1e-6)
        expected = [copies[j] for j in lent]
        chex.assert_trees_all_close([v.params for v in estimator.borrowed], expected, rtol=1e-5, atol=1e-6)


def test_copies_as_young_as_can_be_of_all_above_are_backprop():
    modules, data = helpers.mlp_modules(), batches(4)
    learners = [learner_of(e, modules) for e in (all_above(), estimators.backprop())]
    borrowed, backprop = (trained(learner, data)[-1] for learner in learners)
    chex.assert_trees_all_close(borrowed.modules, backprop.modules, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [readout, all_above])
def test_between_renewals_nothing_above_reaches_the_module_below(make):
    """Oracle 6, over steps: the module waits for what is above once in every three."""
    learner, data = learner_of(make(every=3)), batches(5)
    state = learner.init(KEY, *data[0])
    above = jax.tree.map(lambda w: w + 1, state.modules[2].params)
    moved = state._replace(modules=(*state.modules[:2], state.modules[2]._replace(params=above)))
    pairs = list(zip(trained(learner, data, state), trained(learner, data, moved), strict=True))
    bits = [
        jax.tree.all(jax.tree.map(np.array_equal, one.modules[:2], other.modules[:2]))
        for one, other in pairs
    ]
    assert bits == [True, True, True, True, False, False]
    copies = [
        jax.tree.all(jax.tree.map(np.array_equal, one.estimators[1].borrowed, other.estimators[1].borrowed))
        for one, other in pairs
    ]
    assert copies == [True, True, True, False, False, False]
    locks = learner.estimators[0].reads.locks
    assert (locks.forward, locks.update, locks.backward) == (True, False, False)


def stacked(depth, number):
    """An input layer, `depth` equal blocks of which the lower `number` are a stack, an output layer."""
    lowest, *_, output = helpers.mlp_modules()
    block = from_linen(nn.Sequential([nn.Dense(WIDTH), nn.tanh]), "block")
    blocks = [block._replace(name=f"block_{i}") for i in range(depth)]
    one_by_one = [lowest, *blocks, output]
    names = tuple(b.name for b in blocks[:number])
    return one_by_one, [lowest, Stack(block, names), *blocks[number:], output]


@pytest.mark.parametrize(
    ("kind", "microbatches"), [pytest.param("readout", 2, marks=pytest.mark.slow), ("next", 1)]
)
def test_a_stack_borrows_as_its_modules_do_one_by_one(kind, microbatches):
    estimator = (
        readout(every=2, decay=0.5)
        if kind == "readout"
        else estimators.borrowed_next(TRUE_LOSS, 2, every=2)
    )
    one_by_one, links = stacked(depth=4, number=2)
    plain = learner_of(estimator, one_by_one)
    together = learner_of(estimator, links, microbatches=microbatches)
    data = batches(3)
    start, *_, last = trained(together, data)
    expected = trained(plain, data, together.unstack(start))
    chex.assert_trees_all_equal(together.unstack(start), plain.init(KEY, *data[0]))
    chex.assert_trees_all_close(together.unstack(last), expected[-1], rtol=1e-4, atol=1e-5)
    assert isinstance(last.estimators[1].borrowed, decoupled.learning.state.Shared) == (kind == "readout")


def test_what_a_stack_borrows_must_be_the_same_above_all_its_blocks():
    _, links = stacked(depth=3, number=3)
    with pytest.raises(decoupled.UsageError, match=r"the next 2, .* keep the 2 highest out of the stack"):
        learner_of(estimators.borrowed_next(TRUE_LOSS, 2), links)


@pytest.mark.parametrize("make", EITHER)
def test_dispatched_steps_and_steps_on_two_devices_borrow_alike(make):
    learner, data = learner_of(make(every=2)), batches(4)
    start, *_, expected = trained(learner, data)
    dispatch, state = dispatched(learner), jax.tree.map(jnp.copy, start)
    for x, y in data:
        state, _ = dispatch(state, x, y, KEY)
    chex.assert_trees_all_close(state, expected, rtol=1e-5, atol=1e-6)

    split = learner_of(make(every=2), axis_name="data")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P(), P("data"), P("data"), P())
    update = jax.jit(
        jax.shard_map(lambda *args: split.update(*args)[0], mesh=mesh, in_specs=specs, out_specs=P())
    )
    state = start
    for x, y in data:
        state = update(state, x, y, KEY)
    chex.assert_trees_all_close(state, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [estimators.borrowed_readout, all_above])
def test_in_a_pipeline_copies_travel_down(make):
    """The lower stage's copies are of modules as the tick has left them, every second of its batches."""
    learner, data = learner_of(make(every=2)), batches(5)
    pipeline = make_pipeline(learner, make_mesh(2, jax.devices()[:2]))
    state = pipeline.start(learner.init(KEY, *data[0]), *data[0])
    expected = pipeline.join(state)
    update_module = [jax.jit(update) for update in learner.update_module]
    for t, (x, y) in enumerate(data, start=1):
        before, h = expected, x
        state = pipeline.tick(state, x, y, KEY)
        expected = pipeline.join(state)
        for i in range(2):  # the lower stage, which has two modules, by hand
            step = update_module[i](before.modules[i], before.estimators[i].est_params, h, y, KEY)
            chex.assert_trees_all_close(expected.modules[i], step.module, rtol=1e-5, atol=1e-6)
            h = step.h_out
            lent = [1, 2][i:] if make is all_above else [2]
            now = before.estimators[i].borrowed
            if t % 2 == 0:
                now = [decoupled.types.ModuleVariables(*expected.modules[j][:2]) for j in lent]
            chex.assert_trees_all_equal(tuple(expected.estimators[i].borrowed), tuple(now))
    drained = pipeline.join(pipeline.drain(state))
    chex.assert_trees_all_equal(drained.estimators[0].borrowed, expected.estimators[0].borrowed)


@pytest.mark.parametrize("kind", helpers.gate(["readout", "next"], "next"))
def test_padded_tokens_go_through_private_and_borrowed_blocks(kind):
    """Oracles 1 and 10: with the youngest copies the block below descends the loss of what is counted."""
    estimator = (
        estimators.borrowed_readout(private=[padded_tokens.BLOCK])
        if kind == "readout"
        else estimators.borrowed_next(TRUE_LOSS, 2)
    )
    learner = learner_of(estimator, padded_tokens.MODULES, batch_axes=2)
    x, y, weight = padded_tokens.tokens(0.0)
    state = jax.jit(learner.init)(KEY, x, y)
    update = jax.jit(learner.update)
    new, metrics = update(state, x, y, KEY, weight)

    above = state.estimators[0].params[0] if kind == "readout" else state.modules[1]
    before = (state.modules[0].params, above.params, state.modules[2].params)
    value, gradients = jax.jit(jax.value_and_grad(padded_tokens.loss))(before)
    expected = jax.tree.map(lambda p, g: p - RATE * g, state.modules[0].params, gradients[0])
    chex.assert_trees_all_close(new.modules[0].params, expected, rtol=1e-4, atol=1e-6)
    if kind == "readout":
        np.testing.assert_allclose(metrics.boundaries[0].loss, value, rtol=1e-5)
        expected = jax.tree.map(lambda p, g: p - RATE * g, above.params, gradients[1])
        chex.assert_trees_all_close(new.estimators[0].params[0].params, expected, rtol=1e-4, atol=1e-6)

    other = update(state, *padded_tokens.tokens(np.nan)[:2], KEY, weight)[0]
    chex.assert_trees_all_close(other, new, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", EITHER)
def test_examples_of_no_weight_and_microbatches_change_nothing(make):
    x, y = helpers.batch()
    padded = jnp.concatenate([x, jnp.full_like(x[:4], jnp.nan)]), jnp.concatenate([y, y[:4]])
    weight = jnp.asarray([1.0] * 8 + [0.0] * 4)
    learner = learner_of(make())
    state = learner.init(KEY, x, y)
    expected, _ = jax.jit(learner.update)(state, x, y, KEY)
    new, _ = jax.jit(learner_of(make(), microbatches=2).update)(state, *padded, KEY, weight)
    chex.assert_trees_all_close(new, expected, rtol=1e-5, atol=1e-6)


def test_a_stopped_run_goes_on_with_copies_as_old_as_they_were(tmp_path):
    x, y = (np.concatenate(parts) for parts in zip(*batches(3), strict=True))
    learner = learner_of(readout(every=4), helpers.mlp_modules(depth=1))
    whole = decoupled.fit(learner, (x, y), epochs=2, batch_size=8)
    decoupled.fit(learner, (x, y), epochs=1, batch_size=8, workdir=tmp_path)
    resumed = decoupled.fit(learner, (x, y), epochs=2, batch_size=8, workdir=tmp_path)
    chex.assert_trees_all_equal(resumed.state, whole.state)


def test_what_lifts_an_estimator_lifts_one_that_borrows():
    modules, data = helpers.mlp_modules(), batches(2)
    half = learner_of(estimators.bp_lambda(all_above(every=9), 1.0), modules)
    backprop = learner_of(estimators.backprop(), modules)
    states = [trained(learner, data)[-1].modules for learner in (half, backprop)]
    chex.assert_trees_all_close(*states, rtol=1e-5, atol=1e-6)
    with pytest.raises(decoupled.UsageError, match="each gives an estimator one array"):
        estimators.each(all_above())


def test_what_is_said_of_an_estimator_that_borrows_holds_once_it_has():
    """Its optimizer, above all: of the one within, and with what has been put around it."""
    teacher = estimators.mean_teacher(helpers.CLASSES, (4,))
    learner = learner_of(watched_estimator(estimators.borrowed_next(teacher, every=9)))
    x, y = helpers.batch()
    start = learner.init(KEY, x, y)
    state, _ = jax.jit(learner.update)(start, x, y, KEY)
    names = [watch.name for watch in read_watches(learner.chain, state.modules, state.estimators)]
    assert names == ["the fit of the estimator after hidden_0", "the fit of the estimator after hidden_1"]
    before, after = start.estimators[0].params, state.estimators[0].params
    moved = jax.tree.map(lambda a, t: 0.99 * a + 0.01 * t, before["average"], before["teacher"])
    chex.assert_trees_all_close(after["average"], moved, rtol=1e-6, atol=1e-7)
    assert (learner.estimators[0].own_loss, learner.estimators[0].estimate_sees) == (True, ("h",))


def test_mistakes_are_told():
    with pytest.raises(decoupled.UsageError, match="every is 0, but must be a number of 1 or more"):
        readout(every=0)
    with pytest.raises(decoupled.UsageError, match=r"decay is 1.0, but must be in \[0, 1\)"):
        all_above(decay=1.0)
    with pytest.raises(decoupled.UsageError, match="linear has none, or reads or borrows something"):
        estimators.borrowed_next(estimators.linear(estimators.one_hot(3)))
    with pytest.raises(decoupled.UsageError, match="needs what only a learner can give it"):
        decoupled.boundary(readout(), (), *helpers.batch())
    with pytest.raises(decoupled.UsageError, match="make_learner alone can lend"):
        decoupled.Boundary(readout()).init(KEY, *helpers.batch())
    narrow = estimators.borrowed_readout(private=[from_linen(nn.Dense(3), "narrow")])
    x, y = helpers.batch()
    learner = learner_of(narrow)
    with pytest.raises(
        decoupled.UsageError, match=r"^boundary 0 .* last module cannot be fed with \(8, 3\)"
    ):
        learner.update(learner.init(KEY, x, y), x, y, KEY)
    norm = estimators.borrowed_readout(private=[from_linen(nn.BatchNorm(use_running_average=True), "norm")])
    with pytest.raises(decoupled.UsageError, match="norm has mutable state"):
        learner_of(norm).init(KEY, *helpers.batch())

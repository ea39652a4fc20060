"""Stacks and dispatched updates against the same modules one by one; memory and programs that stay flat."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import decoupled
from benchmarks.baselines import Network, scanned_backprop
from benchmarks.compiled import compile_step
from decoupled import estimators, losses
from decoupled.learning.dispatch import dispatched
from decoupled.learning.stack import Stack, stack_equal
from decoupled.learning.walk import walk
from decoupled.models.mlp import HiddenLayer
from tests import helpers

KEY = jax.random.key(5)
UNLOCKED = {
    name: estimator
    for name, estimator in helpers.every_method().items()
    if estimator.reads is decoupled.Reads.NOTHING
}
NORM = {"norm": "batch", "dropout": 0.2}


def modules(depth, width=4, **options):
    """An input layer, equal blocks, and an output layer: `depth` + 1 modules."""
    lowest, *_, output = decoupled.models.mlp(1, width, helpers.CLASSES, **options)
    block = decoupled.from_linen(HiddenLayer(width, **options), "hidden")
    return [lowest, *(block._replace(name=f"hidden_{i}") for i in range(1, depth)), output]


def learner_of(links, estimator, loss=losses.softmax_cross_entropy, **options):
    adam = optax.adam(0.05)
    boundaries = [estimator] * (len(links) - 1)
    return decoupled.make_learner(links, boundaries, loss, adam, adam, **options)


def learners(estimator, depth=4, **options):
    """The same network one by one and stacked, with Adam."""
    one_by_one = modules(depth, **NORM)
    return [learner_of(links, estimator, **options) for links in (one_by_one, stack_equal(one_by_one))]


@pytest.mark.parametrize("name", helpers.gate(UNLOCKED, "linear"))
def test_a_stack_is_its_modules_one_by_one(name):
    plain, stacked = learners(UNLOCKED[name])
    x, y = helpers.batch()
    expected = plain.init(KEY, x, y)
    state = stacked.init(KEY, x, y)
    assert (len(expected.modules), len(state.modules)) == (5, 3)
    chex.assert_trees_all_close(stacked.unstack(state), expected, rtol=1e-6)
    updates = jax.jit(plain.update), jax.jit(stacked.update)
    for i in range(2):
        expected, wanted = updates[0](expected, x, y, jax.random.key(i))
        state, metrics = updates[1](state, x, y, jax.random.key(i))
    chex.assert_trees_all_close(stacked.unstack(state), expected, rtol=1e-3, atol=1e-4)
    measured = stacked.each_boundary(metrics.boundaries)
    chex.assert_trees_all_close(measured, wanted.boundaries, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics.loss, wanted.loss, rtol=1e-4)
    np.testing.assert_allclose(stacked.predict(state, x), plain.predict(expected, x), rtol=1e-3, atol=1e-4)


def stacked_by_hand(learner, state):
    """The state of a learner of 5 modules, for one whose second to fourth are a stack."""

    def put_together(entries):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *entries)

    (lower, *blocks, upper), (first, *inner) = state.modules, state.estimators
    modules, estimators = (lower, put_together(blocks), upper), (first, put_together(inner))
    return state._replace(modules=modules, estimators=estimators)


METHODS = helpers.every_method()
WAITING = [name for name, estimator in METHODS.items() if name not in UNLOCKED]
IN_GATE = [("bp_lambda", "bp_lambda", 2)]


@pytest.mark.parametrize(
    ("below", "within", "every"),
    [
        *IN_GATE,
        *(
            pytest.param(below, within, every, marks=pytest.mark.slow)
            for below, within, every in [
                *((name, name, 0) for name in WAITING),
                ("backprop", "linear", 0),
                ("linear", "backprop", 3),
                ("direct_feedback_alignment", "bp_lambda", 0),
                ("direct_feedback_alignment", "linear", 0),
            ]
        ),
    ],
)
def test_a_stack_that_waits_is_its_modules_one_by_one(below, within, every):
    """Whatever stands under its lowest block, with weights, and with estimators that know something."""
    one_by_one = modules(4, norm="layer", dropout=0.2)
    links = stack_equal(one_by_one)
    links[1] = links[1]._replace(recompute_every=every)
    loss, sgd = losses.softmax_cross_entropy, optax.sgd(0.2)
    boundaries = [METHODS[below], METHODS[within]]
    plain = decoupled.make_learner(one_by_one, [*boundaries, *boundaries[1:] * 2], loss, sgd, sgd)
    stacked = decoupled.make_learner(links, boundaries, loss, sgd, sgd)
    x, y = helpers.batch()
    weight = jnp.asarray([0.0, 1, 2, 1, 0, 0, 3, 0.5])
    state = helpers.noisy(plain.init(KEY, x, y))
    expected, wanted = jax.jit(plain.update)(state, x, y, KEY, weight)
    new, metrics = jax.jit(stacked.update)(stacked_by_hand(stacked, state), x, y, KEY, weight)
    chex.assert_trees_all_close(stacked.unstack(new), expected, rtol=1e-5, atol=1e-6)
    measured = stacked.each_boundary(metrics.boundaries)
    chex.assert_trees_all_close(measured, wanted.boundaries, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("parts", "depth", "every"), [(1, 4, 0), (4, 4, 0), (1, 5, 2)])
def test_backprop_in_a_stack_is_jax_grad_and_optax_clipped_block_by_block(parts, depth, every):
    one_by_one = modules(depth)
    links = stack_equal(one_by_one)
    links[1] = links[1]._replace(recompute_every=every)
    adam = optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.01))
    backprop, loss = [estimators.backprop()] * 2, losses.softmax_cross_entropy
    learner = decoupled.make_learner(links, backprop, loss, adam, adam, microbatches=parts)
    x, y = helpers.batch()
    state = learner.init(KEY, x, y)
    before = learner.unstack(state)
    after = learner.unstack(jax.jit(learner.update)(state, x, y, KEY)[0])
    gradients = helpers.mean_loss_gradients(one_by_one, before, x, y, KEY)
    for old, gradient, new in zip(before.modules, gradients, after.modules, strict=True):
        assert sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)) > 0.01**2
        updates, opt_state = adam.update(gradient, old.opt_state, old.params)
        chex.assert_trees_all_close(new.params, optax.apply_updates(old.params, updates), atol=1e-6)
        chex.assert_trees_all_close(new.opt_state, opt_state, atol=1e-6)


@pytest.mark.parametrize("lowest_is_a_stack", [False, True])
def test_blocks_may_own_nothing_and_be_fed_what_has_no_type_of_its_own(lowest_is_a_stack):
    """Weakly typed activations, as `where` gives of Python's numbers; and NumPy's float64, as users do."""
    block = decoupled.from_functions(lambda key, h: {}, lambda params, h: jnp.sin(h) * 1.0, "wave")
    sign = block._replace(apply=lambda params, state, h, key, train: (jnp.where(h > 0, 1.0, -1.0), state))
    output = decoupled.from_functions(
        lambda key, h: jax.random.normal(key, (5, helpers.CLASSES)), lambda w, h: h @ w, "output"
    )
    below, depth = [] if lowest_is_a_stack else [sign], 3
    links = [*below, Stack(block, tuple(f"wave_{i}" for i in range(depth)), recompute_every=2), output]
    learner = helpers.make_learner(links, estimators.backprop())
    x, y = np.asarray(helpers.batch()[0], np.float64), helpers.batch()[1]
    state = learner.init(KEY, x, y)
    before = learner.unstack(state)
    new = jax.jit(learner.update)(state, x, y, KEY)[0]
    *_, expected = helpers.mean_loss_gradients(learner.modules, before, jnp.asarray(x), y, KEY)
    *_, gradient = helpers.steps_taken(before, learner.unstack(new))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    wave = np.sin(np.sin(np.sin(x if lowest_is_a_stack else np.sign(x))))
    np.testing.assert_allclose(learner.predict(state, x), wave @ state.modules[-1].params, atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["linear", "bp_lambda"])
def test_a_stack_of_float64_keeps_its_types(name):
    block = decoupled.from_functions(lambda key, h: {}, lambda params, h: jnp.sin(h), "wave")
    learner = learner_of([Stack(block, ("a", "b")), block], METHODS[name], loss=lambda out, y: out[:, 0])
    x = jax.ShapeDtypeStruct((8, helpers.CLASSES), jnp.float64)
    y = jax.ShapeDtypeStruct((8,), jnp.int32)
    state = jax.eval_shape(learner.init, KEY, x, y)
    new, metrics = jax.eval_shape(learner.update, state, x, y, KEY)
    assert metrics.output.dtype == metrics.loss.dtype == jnp.float64
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


@pytest.mark.slow
def test_a_stack_that_waits_over_devices():
    """In parts and with batch statistics, under shard_map; against the same parts on one device."""
    links = stack_equal(modules(3, norm="batch"))
    x, y = helpers.batch()

    def update(axis_name):
        options = {"axis_name": axis_name, "microbatches": 2}
        backprop, loss, sgd = [estimators.backprop()] * 2, losses.softmax_cross_entropy, optax.sgd(0.5)
        return decoupled.make_learner(links, backprop, loss, sgd, sgd, **options)

    state = update(None).init(KEY, x, y)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shares = jax.sharding.PartitionSpec("data")
    over = jax.shard_map(
        lambda *given: update("data").update(*given)[0],
        mesh=mesh,
        in_specs=(jax.sharding.PartitionSpec(), shares, shares, jax.sharding.PartitionSpec()),
        out_specs=jax.sharding.PartitionSpec(),
    )
    # Each device normalizes its own rows: two devices with twice the same are as one.
    twice = jnp.concatenate([x, x]), jnp.concatenate([y, y])
    new = jax.jit(over)(state, *twice, KEY)
    expected = jax.jit(update(None).update)(state, x, y, KEY)[0]
    chex.assert_trees_all_close(new, expected, rtol=1e-5, atol=1e-6)


def test_a_mask_that_is_alike_on_all_devices_may_cease_to_be_or_be_made_anew():
    def made(name, apply, width=4):
        def init(key, h):
            return jax.random.normal(key, (jax.tree.leaves(h)[-1].shape[-1], width))

        return decoupled.from_functions(init, apply, name)

    lower = made("lower", lambda w, h: {"a_mask": jnp.ones(len(h), bool), "h": h @ w})
    narrows = made("narrows", lambda w, h: {"a_mask": h["a_mask"] & (h["h"][:, 0] > 0), "h": h["h"] @ w})
    anew = made("anew", lambda w, h: {"a_mask": jnp.ones(len(h["h"]), bool), "h": h["h"] @ w})
    upper = made("upper", lambda w, h: h["h"] @ w * h["a_mask"][:, None], helpers.CLASSES)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, shares = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    links = [lower, Stack(narrows, ("a", "b")), Stack(anew, ("c", "d"), recompute_every=2), upper]
    learner = helpers.make_learner(links, estimators.backprop(), axis_name="data")
    x, y = helpers.batch()
    state = jax.eval_shape(learner.init, KEY, x, y)
    over = jax.shard_map(
        lambda *given: learner.update(*given)[0],
        mesh=mesh,
        in_specs=(whole, shares, shares, whole),
        out_specs=whole,
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(over, state, x, y, KEY), state)


def test_backprop_in_a_stack_takes_a_quarter_less_memory_than_scanned():
    """Of all that a step holds: parameters, two moments, inputs, and the gradients of one block."""
    x, y = jax.ShapeDtypeStruct((256, 256), jnp.float32), jax.ShapeDtypeStruct((256,), jnp.int32)
    lower, block, upper = decoupled.models.mlp(2, 1024, 10)
    stack = Stack(block, tuple(f"block_{i}" for i in range(64)), recompute_every=4)
    learner = learner_of([lower, stack, upper], estimators.backprop())
    peaks = []
    for init, update in (
        (learner.init, learner.update),
        scanned_backprop(Network(lower, block, 64, upper)),
    ):
        state = jax.eval_shape(init, KEY, x, y)
        peaks.append(compile_step(update, state, x, y, KEY).peak_bytes)
    assert peaks[0] <= 0.75 * peaks[1]


def test_blocks_are_updated_one_by_one():
    plain, stacked = learners(UNLOCKED["linear"], depth=3, update_probability=0.5)
    x, y = helpers.batch()
    expected, state = plain.init(KEY, x, y), stacked.init(KEY, x, y)
    updates = jax.jit(plain.update), jax.jit(stacked.update)
    for i in range(3):
        expected, _ = updates[0](expected, x, y, jax.random.key(i))
        state, _ = updates[1](state, x, y, jax.random.key(i))
    chex.assert_trees_all_close(stacked.unstack(state), expected, rtol=1e-3, atol=1e-4)
    counts = [m.opt_state[0].count for m in stacked.unstack(state).modules]
    assert len(set(map(int, counts))) > 1


@pytest.mark.parametrize("name", helpers.gate(["loss_shaped", "backprop"], "loss_shaped"))
def test_a_dispatched_update_is_the_fused_one(name):
    learner = learner_of(modules(4, **NORM), helpers.every_method()[name])
    x, y = helpers.batch()
    expected = learner.init(KEY, x, y)
    state = jax.tree.map(jnp.copy, expected)
    update, fused = dispatched(learner), jax.jit(learner.update)
    for i in range(3):
        expected, wanted = fused(expected, x, y, jax.random.key(i))
        state, metrics = update(state, x, y, jax.random.key(i))
    chex.assert_trees_all_close(state, expected, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(metrics, wanted, rtol=1e-3, atol=1e-4)


def test_equal_modules_share_one_program(monkeypatch):
    learner = learner_of(modules(7, **NORM), UNLOCKED["linear"])
    x, y = helpers.batch()
    traced = []

    def counted(rules, chain, *rest):
        traced.append(chain.links[0].name)
        return walk(rules, chain, *rest)

    monkeypatch.setattr("decoupled.learning.dispatch.walk_in_parts", counted)
    update, state = dispatched(learner), learner.init(KEY, x, y)
    for _ in range(2):
        state, _ = update(state, x, y, KEY)
    assert traced == ["hidden_0", "hidden_1", "output"]


def compiled_update(links, estimator):
    x, y = helpers.batch(size=64)
    adam = optax.adam(1e-3)
    boundaries = [estimator] * (len(links) - 1)
    learner = decoupled.make_learner(links, boundaries, losses.softmax_cross_entropy, adam, adam)
    state = jax.eval_shape(learner.init, KEY, x, y)
    return jax.jit(learner.update, donate_argnums=0).lower(state, x, y, KEY).compile()


@pytest.mark.parametrize("name", helpers.gate(["loss_shaped", "linear"], "loss_shaped"))
def test_neither_memory_nor_program_of_a_stack_grows_with_depth(name):
    shallow, deep = (
        compiled_update(stack_equal(modules(depth, width=64)), UNLOCKED[name]) for depth in (4, 64)
    )
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (shallow, deep)]
    assert temporary[1] < 1.1 * temporary[0]
    assert len(deep.as_text().splitlines()) < 1.05 * len(shallow.as_text().splitlines())


@pytest.mark.slow
def test_memory_of_unequal_modules_does_not_grow_either():
    medium, deep = (compiled_update(modules(depth, width=64), UNLOCKED["linear"]) for depth in (8, 24))
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (medium, deep)]
    assert temporary[1] < 1.25 * temporary[0]


def stacked(names, every=0):
    return learner_of([Stack(modules(2)[1], names, every), modules(1)[1]], estimators.backprop())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: compiled_update(stack_equal(modules(3))[:2], UNLOCKED["linear"]), "the last module has"),
        (
            lambda: compiled_update([Stack(modules(2)[1], ("a", "b")), modules(1)[1]], UNLOCKED["linear"]),
            r"a to b cannot be a stack: a block makes float32\[64, 4\] of float32\[64, 5\]; put",
        ),
        (lambda: dispatched(learners(UNLOCKED["linear"])[1]), "is a stack: a dispatched update takes"),
        (lambda: stacked("ab"), "module 0: a stack's names are 'ab', but must be"),
        (lambda: stacked(()), r"module 0: a stack's names are \(\), but must be"),
        (lambda: stacked(("a", "b"), 1), r"module 0 \(a to b\): recompute_every is 1, but must be"),
        (lambda: stacked(("a", "b"), -3), "recompute_every is -3, but"),
        (lambda: learner_of([Stack(HiddenLayer(4), ("a", "b"))], None), "block of a stack.*from_linen"),
    ],
)
def test_what_cannot_be_stacked_is_refused(make, message):
    with pytest.raises(decoupled.UsageError, match=message):
        make()

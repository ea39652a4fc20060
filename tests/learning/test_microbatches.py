"""Oracle 10: k microbatches are one batch; and the memory of one."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import decoupled
from decoupled import estimators
from decoupled.learning.dispatch import dispatched
from tests import helpers, networks

KEY = jax.random.key(7)
# Noise hangs on every bit of an activation; the similarity loss compares the examples of a part.
METHODS = {n: e for n, e in helpers.every_method().items() if n not in ("noise", "similarity")}
IN_GATE = ("bp_lambda", "mean_teacher", "recursive_least_squares")


def assert_same(actual, expected):
    (state, metrics), (expected_state, expected_metrics) = actual, expected
    chex.assert_trees_all_close(state, expected_state, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param(name, count, marks=[pytest.mark.slow] * (name not in IN_GATE or count == 2))
        for name in METHODS
        for count in (2, 4)
    ],
)
def test_microbatches_are_one_batch(name, count):
    """Padding falls unevenly on them."""
    x, y = helpers.batch()
    weight = jnp.asarray([0.0, 1, 2, 1, 0, 0, 3, 0.5])
    results = []
    for parts in (1, count):
        options = {"est_rate": 0.1, "microbatches": parts}
        learner = helpers.make_learner(helpers.mlp_modules(), METHODS[name], **options)
        state = helpers.noisy(learner.init(KEY, x, y))
        results.append(jax.jit(learner.update)(state, x, y, KEY, weight))
    assert_same(results[1], results[0])


def learners(modules, estimator, **options):
    adam = optax.adam(0.1)
    loss = decoupled.losses.softmax_cross_entropy
    links = [estimator] * (len(modules) - 1)
    return [
        decoupled.make_learner(modules, links, loss, adam, adam, microbatches=parts, **options)
        for parts in (1, 4)
    ]


@pytest.mark.slow
def test_in_a_stack_and_by_dispatch():
    x, y = helpers.batch()
    modules = helpers.mlp_modules(4)
    whole, _ = learners(modules, METHODS["loss_shaped"])
    state = helpers.noisy(whole.init(KEY, x, y))
    expected = jax.jit(whole.update)(state, x, y, KEY)
    _, parts = learners(modules, METHODS["loss_shaped"])
    assert_same(dispatched(parts)(jax.tree.map(jnp.copy, state), x, y, KEY), expected)
    _, stacked = learners(decoupled.stack_equal(modules), METHODS["loss_shaped"])
    one, _ = learners(decoupled.stack_equal(modules), METHODS["loss_shaped"])
    start = one.init(KEY, x, y)
    assert_same(jax.jit(stacked.update)(start, x, y, KEY), jax.jit(one.update)(start, x, y, KEY))


def test_over_devices():
    x, y = helpers.batch()
    weight = jnp.asarray([1.0, 0, 2, 1, 0, 0, 0, 0])
    modules, spec = helpers.mlp_modules(), METHODS["mean_teacher"]
    whole = helpers.make_learner(modules, spec)
    state = whole.init(KEY, x, y)
    expected, _ = jax.jit(whole.update)(state, x, y, KEY, weight)
    parts = helpers.make_learner(modules, spec, axis_name="data", microbatches=4)
    update = jax.pmap(parts.update, axis_name="data", in_axes=(None, 0, 0, None, 0))
    new, _ = update(state, x.reshape(2, 4, 5), y.reshape(2, 4), KEY, weight.reshape(2, 4))
    for device in range(2):
        mine = jax.tree.map(lambda leaf, d=device: leaf[d], new)
        chex.assert_trees_all_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_padded_sequences():
    network = networks.padded_tokens()
    spec, weight = estimators.linear(estimators.one_hot(3)), network.x["mask"].astype(jnp.float32)
    results = []
    for parts in (1, 2):
        learner = decoupled.make_learner(
            network.modules,
            [spec] * 2,
            network.loss,
            optax.sgd(1.0),
            optax.sgd(0.1),
            batch_axes=2,
            microbatches=parts,
        )
        state = helpers.noisy(learner.init(KEY, network.x, network.y))
        results.append(jax.jit(learner.update)(state, network.x, network.y, KEY, weight))
    assert_same(results[1], results[0])


def test_a_module_that_sits_out_stays_bit_for_bit():
    x, y = helpers.batch()
    _, learner = learners(
        helpers.mlp_modules(norm="batch"), METHODS["linear"], update_probability=[1.0, 0.0, 1.0]
    )
    state = helpers.noisy(learner.init(KEY, x, y))
    new, _ = jax.jit(learner.update)(state, x, y, KEY)
    chex.assert_trees_all_equal(new.modules[1], state.modules[1])
    chex.assert_trees_all_equal(new.estimators[0], state.estimators[0])
    for i in (0, 2):
        assert all(
            bool((a != b).any())
            for a, b in zip(jax.tree.leaves(new.modules[i]), jax.tree.leaves(state.modules[i]), strict=True)
        )


@pytest.mark.parametrize("name", ["backprop", "loss_shaped"])
def test_memory_falls_with_their_number(name):
    x, y = helpers.batch(size=4096, features=64)

    def temporary_bytes(parts):
        modules = decoupled.cut(decoupled.models.mlp(6, 64, helpers.CLASSES), range(6))
        learner = helpers.make_learner(modules, METHODS[name], microbatches=parts)
        state = jax.eval_shape(learner.init, KEY, x, y)
        update = jax.jit(lambda state, key: learner.update(state, x, y, key)[0], donate_argnums=0)
        return update.lower(state, KEY).compile().memory_analysis().temp_size_in_bytes

    one, eight = temporary_bytes(1), temporary_bytes(8)
    assert eight < 0.6 * one


def test_a_batch_that_cannot_be_divided():
    x, y = helpers.batch()
    learner = helpers.make_learner(helpers.mlp_modules(), METHODS["linear"], microbatches=3)
    state = learner.init(KEY, x, y)
    with pytest.raises(decoupled.UsageError, match="a batch of 8 cannot be divided into 3 microbatches"):
        learner.update(state, x, y, KEY)
    with pytest.raises(decoupled.UsageError, match="microbatches is 0, but must be a number of 1 or more"):
        helpers.make_learner(helpers.mlp_modules(), METHODS["linear"], microbatches=0)

"""The oracles of the fused step. Expectations come from jax.grad and from NumPy, not from the learner."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import decoupled
from decoupled import estimators
from decoupled.learning.stack import Stack
from tests import helpers

KEY = jax.random.key(7)
METHODS = helpers.every_method()
SYNTHETIC = helpers.synthetic_gradients()
FROM_ZERO = {name: METHODS[name] for name in (*SYNTHETIC, "probe", "local_loss")}
UNLOCKED = [name for name, e in METHODS.items() if e.reads is decoupled.Reads.NOTHING]
TRAINED = {name: e for name, e in METHODS.items() if e.training_gradient is not None}


def start(modules, estimator, x, y, **options):
    learner = helpers.make_learner(modules, estimator, **options)
    return learner, helpers.noisy(learner.init(jax.random.key(0), x, y))


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_true_gradients_give_backprop(norm, dropout):
    x, y = helpers.batch()
    modules = helpers.mlp_modules(depth=3, norm=norm, dropout=dropout)
    learner, state = start(modules, estimators.backprop(), x, y)
    new, metrics = jax.jit(learner.update)(state, x, y, KEY)
    expected = helpers.mean_loss_gradients(modules, state, x, y, KEY)
    chex.assert_trees_all_close(helpers.steps_taken(state, new), expected, atol=1e-6)
    assert metrics.boundaries == (None, None, None)


def test_one_module_alone_is_backprop():
    x, y = helpers.batch()
    modules = decoupled.cut(decoupled.models.mlp(2, 4, helpers.CLASSES), [])
    learner, state = start(modules, estimators.backprop(), x, y)
    new, _ = jax.jit(learner.update)(state, x, y, KEY)
    expected = helpers.mean_loss_gradients(modules, state, x, y, KEY)
    chex.assert_trees_all_close(helpers.steps_taken(state, new), expected, atol=1e-6)


@pytest.mark.parametrize("name", FROM_ZERO)
def test_zero_estimates_leave_everything_below_untouched(name):
    x, y = helpers.batch()
    learner = helpers.make_learner(helpers.mlp_modules(), FROM_ZERO[name])
    state = learner.init(jax.random.key(0), x, y)
    new, _ = jax.jit(learner.update)(state, x, y, KEY)
    chex.assert_trees_all_equal(new.modules[:-1], state.modules[:-1])
    expected = helpers.mean_loss_gradients(learner.modules, state, x, y, KEY)[-1]
    chex.assert_trees_all_close(helpers.steps_taken(state, new)[-1], expected, atol=1e-6)


@pytest.mark.parametrize(
    "name", helpers.gate(TRAINED, "linear", "local_loss", "recursive_least_squares", "bp_lambda")
)
def test_fitting_estimators_moves_no_module(name):
    x, y = helpers.batch()
    results = []
    for est_rate in (0.0, 100.0):
        learner, state = start(helpers.mlp_modules(), TRAINED[name], x, y, est_rate=est_rate)
        results.append(jax.jit(learner.update)(state, x, y, KEY)[0])
    chex.assert_trees_all_equal(results[0].modules, results[1].modules)
    # The fit itself took place.
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), results[1].estimators[0].params, state.estimators[0].params
    )
    moved.pop("weight", None)  # of averages, which stays
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", sorted(METHODS.keys() - TRAINED.keys()))
def test_fixed_estimators_stay_bit_for_bit_and_cost_no_optimizer_state(name):
    x, y = helpers.batch()
    adam = optax.adam(0.1)
    loss = decoupled.losses.softmax_cross_entropy
    learner = decoupled.make_learner(helpers.mlp_modules(), [METHODS[name]] * 2, loss, adam, adam)
    state = learner.init(KEY, x, y)
    new, metrics = jax.jit(learner.update)(state, x, y, KEY)
    chex.assert_trees_all_equal(new.estimators, state.estimators)
    assert metrics.boundaries == (None, None)
    assert not jax.tree.leaves([e.opt_state for e in state.estimators])


def test_estimate_and_fit_by_hand():
    """One linear SG between two linear modules, every quantity written out in NumPy."""
    x, y = helpers.batch()
    modules = [
        decoupled.from_functions(lambda key, h: {"w": jax.random.normal(key, (5, 4))}, matmul, "a"),
        decoupled.from_functions(lambda key, h: {"w": jax.random.normal(key, (4, 3))}, matmul, "b"),
    ]
    learner, state = start(modules, estimators.linear(estimators.one_hot(3)), x, y, est_rate=0.5)
    new, metrics = jax.jit(learner.update)(state, x, y, KEY)

    x, labels = np.asarray(x, np.float64), np.eye(3)[np.asarray(y)]
    w1, w2 = (np.asarray(m.params["w"], np.float64) for m in state.modules)
    A, B, c = (np.asarray(state.estimators[0].params[k], np.float64) for k in "ABc")
    h = x @ w1
    logits = h @ w2
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    grad_h_hat = h @ A + labels @ B + c
    target = (softmax - labels) @ w2.T
    residual = grad_h_hat - target

    assert metrics.loss == pytest.approx(-np.log((softmax * labels).sum(1)).mean(), rel=1e-5)
    w1_step, w2_step = (step["w"] for step in helpers.steps_taken(state, new))
    np.testing.assert_allclose(w1_step, x.T @ grad_h_hat / 8, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(w2_step, h.T @ (softmax - labels) / 8, rtol=1e-4, atol=1e-5)
    fitted = new.estimators[0].params
    np.testing.assert_allclose(fitted["A"], A - 0.5 * 2 * h.T @ residual / 8, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fitted["B"], B - 0.5 * 2 * labels.T @ residual / 8, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fitted["c"], c - 0.5 * 2 * residual.sum(0) / 8, rtol=1e-4, atol=1e-4)
    boundary = metrics.boundaries[0]
    assert boundary.loss == pytest.approx((residual**2).sum(1).mean(), rel=1e-4)
    assert boundary.target_power == pytest.approx((target**2).sum(1).mean(), rel=1e-4)


def matmul(params, h):
    return h @ params["w"]


# Noise hangs on every bit of an activation, and these may differ with the batch size.
@pytest.mark.parametrize(
    "name",
    helpers.gate(
        sorted(METHODS.keys() - {"noise"}),
        *("backprop", "linear", "local_loss", "mean_teacher", "recursive_least_squares", "similarity"),
    ),
)
def test_nothing_depends_on_the_batch_size(name):
    x, y = helpers.batch()
    learner, state = start(helpers.mlp_modules(), METHODS[name], x, y, est_rate=0.1)
    once, metrics_once = jax.jit(learner.update)(state, x, y, KEY)
    twice, metrics_twice = jax.jit(learner.update)(state, jnp.tile(x, (3, 1)), jnp.tile(y, 3), KEY)
    chex.assert_trees_all_close(once, twice, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(metrics_once.boundaries, metrics_twice.boundaries, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_best_linear_estimator_of_a_linear_network_is_its_gradient():
    """U17: for a squared error, dL/dh is linear in (h, y)."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(64, 5))), jnp.asarray(rng.normal(size=(64, 3)))
    w1, w2 = jnp.asarray(rng.normal(size=(5, 4))), jnp.asarray(rng.normal(size=(4, 3)))
    h = x @ w1
    target = (h @ w2 - y) @ w2.T
    estimator = estimators.recursive_least_squares(estimators.as_given, ridge=1e-14)
    est_params = estimator.init(KEY, h, y)
    tx = estimator.optimizer(optax.identity())
    opt_state = tx.init(est_params)
    _, moments = estimator.training_gradient(est_params, h, y, target)
    updates, _ = tx.update(moments, opt_state, est_params)
    est_params = optax.apply_updates(est_params, updates)
    np.testing.assert_allclose(estimator.estimate(est_params, h, y, None), target, atol=1e-12)


def test_linear_estimator_learns_the_gradient_of_a_linear_network():
    """The same by training: with the network at rest, the SG's error goes to nothing."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 5)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(64, 3)), jnp.float32)
    modules = [
        decoupled.from_functions(lambda key, h: {"w": jax.random.normal(key, (5, 4))}, matmul, "a"),
        decoupled.from_functions(lambda key, h: {"w": jax.random.normal(key, (4, 3))}, matmul, "b"),
    ]
    estimator = estimators.recursive_least_squares(estimators.as_given, ridge=1e-6)
    learner = helpers.make_learner(modules, estimator, rate=0.0, loss=decoupled.losses.squared_error)
    state = learner.init(KEY, x, y)
    update = jax.jit(learner.update)
    for _ in range(5):
        state, metrics = update(state, x, y, KEY)
    assert metrics.boundaries[0].loss < 1e-8 * metrics.boundaries[0].target_power


def test_a_module_that_sits_out_stays_bit_for_bit():
    x, y = helpers.batch()
    modules = helpers.mlp_modules(norm="batch")
    adam = optax.adam(0.1)
    learner = decoupled.make_learner(
        modules,
        [SYNTHETIC["linear"]] * 2,
        decoupled.losses.softmax_cross_entropy,
        adam,
        adam,
        update_probability=[1.0, 0.0, 1.0],
    )
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))
    new, _ = jax.jit(learner.update)(state, x, y, KEY)
    chex.assert_trees_all_equal(new.modules[1], state.modules[1])
    chex.assert_trees_all_equal(new.estimators[0], state.estimators[0])
    for moved, old in [(new.modules[0], state.modules[0]), (new.modules[2], state.modules[2])]:
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(old), strict=True):
            assert bool((a != b).any())


def test_modules_update_independently_and_as_often_as_asked():
    x, y = helpers.batch()
    learner, state = start(helpers.mlp_modules(), SYNTHETIC["linear"], x, y, update_probability=0.3)
    update = jax.jit(learner.update)

    def moved(i):
        new, _ = update(state, x, y, jax.random.key(i))
        return [bool((step["Dense_0"]["bias"] != 0).any()) for step in hidden_steps(state, new)]

    def hidden_steps(before, after):
        return helpers.steps_taken(before, after)[:2]

    pattern = np.array([moved(i) for i in range(300)])
    assert np.abs(pattern.mean(0) - 0.3).max() < 0.1
    assert abs(np.corrcoef(pattern.T)[0, 1]) < 0.2


def test_error_estimators_get_the_output_error():
    x, y = helpers.batch()
    learner, state = start(helpers.mlp_modules(), METHODS["direct_feedback_alignment"], x, y)
    new, _ = jax.jit(learner.update)(state, x, y, KEY)

    @jax.jit
    def by_hand(state):
        error = jax.nn.softmax(learner.predict(state, x)) - jax.nn.one_hot(y, helpers.CLASSES)
        h, expected = x, []
        for module, own, estimator in zip(learner.modules, state.modules, state.estimators, strict=False):

            def run(params, module=module, h=h):
                return module.apply(params, {}, h, KEY, True)[0]

            h, pullback = jax.vjp(run, own.params)
            expected += pullback(error @ estimator.params["B"] / 8)
        return expected

    chex.assert_trees_all_close(helpers.steps_taken(state, new)[:2], by_hand(state), atol=1e-6)


def test_a_locked_boundary_below_an_unlocked_one_gets_its_estimate():
    """Two modules share one synthetic gradient: backprop within, an SG above."""
    x, y = helpers.batch()
    layers = decoupled.models.mlp(3, 4, helpers.CLASSES)
    one_by_one = decoupled.cut(layers, [0, 1, 2])
    sgd = optax.sgd(1.0)
    loss = decoupled.losses.softmax_cross_entropy
    spec = [estimators.backprop(), SYNTHETIC["linear"], estimators.backprop()]
    learner = decoupled.make_learner(one_by_one, spec, loss, sgd, sgd)
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))
    new, _ = jax.jit(learner.update)(state, x, y, KEY)

    pair = [decoupled.compose(layers[:2]), decoupled.compose(layers[2:])]

    @jax.jit
    def by_hand(state):
        params = [m.params for m in state.modules]
        h, pullback = jax.vjp(lambda p: pair[0].apply(p, ({}, {}), x, KEY, True)[0], tuple(params[:2]))
        cotangent = SYNTHETIC["linear"].estimate(state.estimators[1].params, h, y, None) / 8

        def top_loss(p):
            return loss(pair[1].apply(p, ({}, {}), h, KEY, True)[0], y).mean()

        return [*pullback(cotangent)[0], *jax.grad(top_loss)(tuple(params[2:]))]

    chex.assert_trees_all_close(helpers.steps_taken(state, new), by_hand(state), atol=1e-6)


@pytest.mark.parametrize(
    "name", helpers.gate(UNLOCKED, "linear", "mean_teacher", "recursive_least_squares")
)
def test_updating_modules_one_by_one_equals_the_fused_step(name):
    x, y = helpers.batch()
    learner, state = start(helpers.mlp_modules(norm="batch", dropout=0.3), METHODS[name], x, y)
    fused, _ = jax.jit(learner.update)(state, x, y, KEY)

    @jax.jit
    def one_by_one(state):
        h, modules, fitted = x, [], []
        for i in range(3):
            est_params = state.estimators[i].params if i < 2 else None
            step = learner.update_module[i](state.modules[i], est_params, h, y, KEY)
            modules.append(step.module)
            if i > 0:
                fit = learner.update_estimator[i - 1]
                fitted.append(fit(state.estimators[i - 1], h, y, step.grad_h_in)[0])
            h = step.h_out
        return tuple(modules), tuple(fitted), step.losses

    modules, fitted, losses = one_by_one(state)
    chex.assert_trees_all_close(modules, fused.modules, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(fitted, fused.estimators, rtol=1e-5, atol=1e-5)
    assert losses.shape == (8,)


def test_a_mixed_chain_one_by_one_equals_the_fused_step():
    """Boundaries that read the error, nothing, and the incoming gradient, each given its own signal."""
    x, y = helpers.batch()
    spec = [METHODS["direct_feedback_alignment"], SYNTHETIC["linear"], estimators.backprop()]
    sgd = optax.sgd(1.0)
    loss = decoupled.losses.softmax_cross_entropy
    learner = decoupled.make_learner(helpers.mlp_modules(depth=3), spec, loss, sgd, sgd)
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))
    fused, _ = jax.jit(learner.update)(state, x, y, KEY)

    @jax.jit
    def one_by_one(state):
        h_ins, updated = [x], []
        for i in range(3):
            h_ins.append(learner.modules[i].apply(*state.modules[i][:2], h_ins[i], KEY, True)[0])
        top = learner.update_module[3](state.modules[3], None, h_ins[3], y, KEY)
        error = jax.nn.softmax(top.h_out) - jax.nn.one_hot(y, helpers.CLASSES)
        for i, signal in enumerate((error, None, top.grad_h_in)):
            est_params = state.estimators[i].params
            step = learner.update_module[i](state.modules[i], est_params, h_ins[i], y, KEY, signal)
            updated.append(step.module)
        return (*updated,)

    chex.assert_trees_all_close(one_by_one(state), fused.modules[:3], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_memory_grows_far_less_with_depth_than_under_backprop():
    """Nothing of a module need be kept once the next one has been fed; the compiler keeps a little."""
    x, y = helpers.batch(size=2048, features=64)

    def temporary_bytes(depth, estimator):
        layers = decoupled.models.mlp(depth, 64, helpers.CLASSES)
        learner = helpers.make_learner(decoupled.cut(layers, range(depth)), estimator)
        state = jax.eval_shape(learner.init, KEY, x, y)

        def update(state, key):
            return learner.update(state, x, y, key)[0]

        compiled = jax.jit(update, donate_argnums=0).lower(state, KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    growth = {
        name: temporary_bytes(24, METHODS[name]) - temporary_bytes(6, METHODS[name])
        for name in ("loss_shaped", "backprop")
    }
    assert growth["backprop"] > 18 * x.size * 4  # 18 more layers' activations, at least
    assert growth["loss_shaped"] < 0.2 * growth["backprop"]


def test_the_second_update_does_not_retrace():
    x, y = helpers.batch()
    learner, state = start(helpers.mlp_modules(norm="batch"), SYNTHETIC["linear"], x, y)
    update = jax.jit(chex.assert_max_traces(learner.update, n=1))
    for i in range(3):
        state, _ = update(state, x, y, jax.random.key(i))
    assert int(state.step) == 3


def test_evaluation_uses_batch_statistics_and_changes_nothing():
    x, y = helpers.batch()
    modules = helpers.mlp_modules(norm="batch")
    learner, state = start(modules, SYNTHETIC["linear"], x, y)
    new, _ = jax.jit(learner.update)(state, x, y, KEY)
    before = state.modules[0].state["batch_stats"]["BatchNorm_0"]["mean"]
    after = new.modules[0].state["batch_stats"]["BatchNorm_0"]["mean"]
    dense = state.modules[0].params["Dense_0"]
    batch_mean = (x @ dense["kernel"] + dense["bias"][None]).mean(0)
    np.testing.assert_allclose(after, 0.9 * before + 0.1 * batch_mean, rtol=1e-5, atol=1e-6)
    alone = learner.predict(new, x[:1])
    np.testing.assert_allclose(learner.predict(new, x)[:1], alone, rtol=1e-5, atol=1e-6)


def test_bfloat16_boundaries_keep_float32_parameters():
    x, y = helpers.batch()
    modules = helpers.mlp_modules(dtype=jnp.bfloat16)
    learner, state = start(modules, SYNTHETIC["loss_shaped"], x, y)
    new, metrics = jax.jit(learner.update)(state, x, y, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves((new.modules, new.estimators))} == {jnp.dtype("float32")}
    assert np.isfinite(metrics.loss)


@pytest.mark.parametrize(
    ("count", "probability", "message"),
    [
        (1, 1.0, "3 modules have 2 boundaries between them, but 1 estimators were given"),
        (2, 1.5, "a probability lies between 0 and 1"),
        (2, [1.0], "1 update probabilities for 3 modules"),
    ],
)
def test_wrong_chains_are_refused(count, probability, message):
    sgd = optax.sgd(1.0)
    loss = decoupled.losses.softmax_cross_entropy
    with pytest.raises(decoupled.UsageError, match=message):
        decoupled.make_learner(
            helpers.mlp_modules(),
            [estimators.backprop()] * count,
            loss,
            sgd,
            sgd,
            update_probability=probability,
        )


def test_every_part_may_have_an_optimizer_of_its_own():
    """Each step is its own rate times the gradient that a rate of 1 shows."""
    x, y = helpers.batch()
    modules, estimator = helpers.mlp_modules(), SYNTHETIC["loss_shaped"]
    alike, state = start(modules, estimator, x, y)
    one, _ = jax.jit(alike.update)(state, x, y, KEY)
    rates, est_rates = [0.5, 0.0, 0.25], [0.125, 2.0]
    loss = decoupled.losses.softmax_cross_entropy
    learner = decoupled.make_learner(
        modules, [estimator] * 2, loss, [*map(optax.sgd, rates)], [*map(optax.sgd, est_rates)]
    )
    new, _ = jax.jit(learner.update)(state, x, y, KEY)
    for kind, own in (("modules", rates), ("estimators", est_rates)):
        for before, after, unit, rate in zip(
            *(getattr(s, kind) for s in (state, new, one)), own, strict=True
        ):
            expected = jax.tree.map(lambda b, u, r=rate: b - r * (b - u), before.params, unit.params)
            chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-6)


def test_a_list_of_optimizers_has_one_each():
    modules, sgd = helpers.mlp_modules(), optax.sgd(1.0)
    loss = decoupled.losses.softmax_cross_entropy
    with pytest.raises(decoupled.UsageError, match=r"^optimizer: 2 were given for 3 modules"):
        decoupled.make_learner(modules, [SYNTHETIC["linear"]] * 2, loss, [sgd, sgd], sgd)
    with pytest.raises(decoupled.UsageError, match=r"^estimator_optimizer 1: .* not an optax"):
        decoupled.make_learner(modules, [SYNTHETIC["linear"]] * 2, loss, sgd, [sgd, 1])


@pytest.mark.parametrize("stacked", [False, True])
def test_parameters_that_have_no_gradient_are_refused(stacked):
    block = decoupled.from_functions(
        lambda key, h: {"table": jnp.arange(3)}, lambda params, h: h * params["table"].sum(), "looks_up"
    )
    output = helpers.mlp_modules(depth=1)[-1]
    link = Stack(block, ("looks_up", "again")) if stacked else block
    learner = helpers.make_learner([link, output], estimators.linear())
    with pytest.raises(decoupled.UsageError, match=r"looks_up: params\['table'\] is of type int32, which"):
        learner.init(jax.random.key(0), *helpers.batch())

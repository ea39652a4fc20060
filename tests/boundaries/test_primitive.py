"""The boundary against the chain form, and under every transformation a model may be put through."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import decoupled
from decoupled import Reads, estimators, losses
from tests import helpers

KEY = jax.random.key(7)
METHODS = helpers.every_method()
DEPTH = 2


@cache
def chain(name, **options):
    """A chain with the method at every boundary, a state in which no estimate is trivial, and a batch."""
    x, y = helpers.batch()
    learner = helpers.make_learner(helpers.mlp_modules(DEPTH), METHODS[name], **options)
    return learner, helpers.noisy(learner.init(jax.random.key(0), x, y)), x, y


def forward(learner, modules, est_params, x, y, error=None, **options):
    """The same network, with `boundary` between its modules."""
    h = x
    for i, module in enumerate(learner.modules):
        h, _ = module.apply(modules[i], {}, h, jax.random.fold_in(KEY, i), True)
        if i < len(learner.estimators):
            place = f"boundary {i}"
            h = decoupled.boundary(learner.estimators[i], est_params[i], h, y, error, name=place, **options)
    return h


def parameters(state):
    return [m.params for m in state.modules], [e.params for e in state.estimators]


def mean_loss(learner, modules, est_params, x, y, **options):
    error = None
    if learner.estimators[0].reads is Reads.ERROR:
        output = forward(learner, modules, est_params, x, y)
        error = losses.output_error(learner.loss, output, y)[1]
    output = forward(learner, modules, est_params, x, y, error, **options)
    return learner.loss(output, y).mean()


def gradients(learner, modules, est_params, x, y, **options):
    """Of both, or of the modules alone where the estimators are not trained."""
    trained = learner.estimators[0].training_gradient is not None
    grad = jax.jit(jax.grad(partial(mean_loss, learner, **options), (0, 1) if trained else 0))
    result = grad(modules, est_params, x, y)
    return result if trained else (result, None)


@cache
def on_one_device(name):
    """The gradients in the chain of that method, which several tests compare with; compiled once."""
    learner, state, x, y = chain(name)
    return gradients(learner, *parameters(state), x, y)


@pytest.mark.parametrize("name", METHODS)
def test_boundary_form_equals_chain_form(name):
    """Oracle 8. SGD with rate 1 shows the chain's gradients; least squares shows its moments."""
    learner, state, x, y = chain(name)
    new, _ = jax.jit(learner.update)(state, x, y, KEY)
    grad_modules, est_gradients = on_one_device(name)
    chex.assert_trees_all_close(grad_modules, helpers.steps_taken(state, new), atol=1e-6)
    if est_gradients is None:
        return
    spec = METHODS[name]
    for gradient, before, after in zip(est_gradients, state.estimators, new.estimators, strict=True):
        if spec.optimizer is None:
            expected = jax.tree.map(jnp.subtract, before.params, after.params)
            chex.assert_trees_all_close(gradient, expected, rtol=1e-4, atol=1e-5)
        else:
            updates, _ = spec.optimizer(optax.sgd(1.0)).update(gradient, before.opt_state, before.params)
            expected = jax.tree.map(jnp.subtract, after.params, before.params)
            chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropped", ["jit", "vmap", "remat", "scan"])
def test_forward_is_the_identity_bit_for_bit(dropped):
    learner, state, x, y = chain("linear")
    modules, est_params = parameters(state)
    wrap = {
        "jit": jax.jit,
        "vmap": lambda f: lambda *a: jax.vmap(f, in_axes=(None, None, 0))(*a[:2], a[2][None])[0],
        "remat": jax.checkpoint,
        "scan": lambda f: lambda *a: jax.lax.scan(lambda c, x: (c, f(*a[:2], x)), 0, a[2][None])[1][0],
    }[dropped]

    def plain(modules, est_params, x):
        h = x
        for i, module in enumerate(learner.modules):
            h, _ = module.apply(modules[i], {}, h, jax.random.fold_in(KEY, i), True)
        return h

    def bounded(modules, est_params, x):
        return forward(learner, modules, est_params, x, y)

    args = (modules, est_params, x)
    np.testing.assert_array_equal(wrap(bounded)(*args), wrap(plain)(*args))


@pytest.mark.parametrize("name", ["linear", "bp_lambda", "recursive_least_squares"])
@pytest.mark.parametrize("loss_is", ["sum", "half of a larger batch"])
def test_the_number_of_examples_is_explicit(name, loss_is):
    learner, state, x, y = chain(name)
    expected = on_one_device(name)
    count = {"sum": 1, "half of a larger batch": 16}[loss_is]

    def scaled(modules, est_params):
        return mean_loss(learner, modules, est_params, x, y, num_examples=count) * 8 / count

    actual = jax.jit(jax.grad(scaled, (0, 1)))(*parameters(state))
    chex.assert_trees_all_close(
        jax.tree.map(lambda g: g * count / 8, actual), expected, rtol=1e-5, atol=1e-6
    )


def test_examples_alone_under_vmap_add_up_to_the_batch():
    learner, state, x, y = chain("linear")
    expected = on_one_device("linear")

    def loss_of_one(modules, est_params, x, y):
        h = x
        for i, module in enumerate(learner.modules):
            h = module.apply(modules[i], {}, h[None], KEY, True)[0][0]
            if i < DEPTH:
                h = decoupled.boundary(METHODS["linear"], est_params[i], h, y, batch_axes=0)
        return learner.loss(h[None], y[None])[0]

    each = jax.vmap(jax.grad(loss_of_one, (0, 1)), in_axes=(None, None, 0, 0))
    each = jax.jit(each)(*parameters(state), x, y)
    chex.assert_trees_all_close(jax.tree.map(lambda g: g.mean(0), each), expected, rtol=1e-4, atol=1e-6)


def test_vmap_over_networks():
    learner, state, x, y = chain("loss_shaped")
    two = jax.tree.map(lambda w: jnp.stack([w, 1.5 * w]), parameters(state))
    gradients_of = jax.jit(lambda p: gradients(learner, *p, x, y))
    grads = jax.jit(jax.vmap(gradients_of))(two)
    for i, factor in enumerate((1.0, 1.5)):
        alone = gradients_of(jax.tree.map(lambda w, f=factor: f * w, parameters(state)))
        chex.assert_trees_all_close(jax.tree.map(lambda g, i=i: g[i], grads), alone, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "recursive_least_squares", "direct_feedback_alignment"])
def test_rematerialisation_changes_nothing(name):
    learner, state, x, y = chain(name)
    expected = on_one_device(name)
    remat = jax.checkpoint(partial(mean_loss, learner))
    trained = METHODS[name].training_gradient is not None
    actual = jax.jit(jax.grad(remat, (0, 1) if trained else 0))(*parameters(state), x, y)
    chex.assert_trees_all_close(actual, expected if trained else expected[0], atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "recursive_least_squares", "bp_lambda"])
def test_scan_over_layers_equals_a_loop(name):
    x, y = helpers.batch(features=4)
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)
    one = METHODS[name].init(KEY, x, y)
    est_params = jax.tree.map(lambda w: jnp.asarray(0.3 * rng.normal(size=(3, *w.shape)), jnp.float32), one)

    def layer(h, kernel, est_params):
        return decoupled.boundary(METHODS[name], est_params, jnp.tanh(h @ kernel), y)

    def loss(h):
        return losses.softmax_cross_entropy(h[:, : helpers.CLASSES], y).mean()

    def looped(kernels, est_params):
        h = x
        for i in range(3):
            h = layer(h, kernels[i], jax.tree.map(lambda w, i=i: w[i], est_params))
        return loss(h)

    def scanned(kernels, est_params):
        return loss(jax.lax.scan(lambda h, p: (layer(h, *p), None), x, (kernels, est_params))[0])

    expected = jax.jit(jax.grad(looped, (0, 1)))(kernels, est_params)
    chex.assert_trees_all_close(
        jax.jit(jax.grad(scanned, (0, 1)))(kernels, est_params), expected, atol=1e-6
    )


PARALLEL = ["linear", "recursive_least_squares", "direct_feedback_alignment", "probe", "bp_lambda"]


@pytest.mark.parametrize("name", PARALLEL)
def test_pmap_shard_map_and_a_mesh_equal_one_device(name):
    """Oracle 7, with gradients averaged over devices as those of any model are."""
    learner, state, x, y = chain(name)
    modules, est_params = parameters(state)
    expected = on_one_device(name)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    split = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y)]
    on_mesh = jax.jit(partial(gradients, learner))(modules, est_params, *split)
    chex.assert_trees_all_close(on_mesh, expected, rtol=1e-4, atol=1e-5)

    def local(modules, est_params, x, y):
        return jax.lax.pmean(gradients(learner, modules, est_params, x, y), "data")

    halves = [a.reshape(2, 4, *a.shape[1:]) for a in (x, y)]
    mapped = jax.pmap(local, axis_name="data", in_axes=(None, None, 0, 0))(modules, est_params, *halves)
    chex.assert_trees_all_close(jax.tree.map(lambda g: g[1], mapped), expected, rtol=1e-4, atol=1e-5)

    def summed(modules, est_params, x, y):
        # Gradients of replicated parameters come out summed over devices.
        grads = gradients(learner, modules, est_params, x, y)
        return jax.tree.map(lambda g: g / 2, grads)

    sharded = jax.jit(
        jax.shard_map(summed, mesh=mesh, in_specs=(P(), P(), P("data"), P("data")), out_specs=P())
    )
    chex.assert_trees_all_close(sharded(modules, est_params, x, y), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "loss_shaped", "recursive_least_squares", "probe", "backprop"])
def test_bfloat16_activations_and_float32_estimators(name):
    x, y = helpers.batch(features=4)
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.normal(size=(4, helpers.CLASSES)), jnp.float32)
    est_params = jax.tree.map(
        lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), METHODS[name].init(KEY, x, y)
    )

    def loss(h, est_params, dtype):
        h = decoupled.boundary(METHODS[name], est_params, h.astype(dtype), y)
        return losses.softmax_cross_entropy(h @ w.astype(dtype), y).mean()

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    half, full = (gradient(x, est_params, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    chex.assert_trees_all_close(half, full, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("traced", [False, True])
def test_the_true_gradient_can_be_let_through_while_the_estimator_learns(traced):
    learner, state, x, y = chain("linear")
    off = jnp.asarray(False) if traced else False
    grad_modules, est_gradients = gradients(learner, *parameters(state), x, y, use_estimate=off)
    expected = helpers.mean_loss_gradients(learner.modules, state, x, y, KEY)
    chex.assert_trees_all_close(grad_modules, expected, atol=1e-6)
    # The target is then the true gradient too.
    h = [x]
    for i, module in enumerate(learner.modules[:-1]):
        h.append(module.apply(state.modules[i].params, {}, h[-1], KEY, True)[0])
    grad_h = jax.grad(
        lambda h: learner.loss(
            learner.modules[2].apply(state.modules[2].params, {}, h, KEY, True)[0], y
        ).sum()
    )(h[2])
    _, target_gradient = METHODS["linear"].training_gradient(state.estimators[1].params, h[2], y, grad_h)
    chex.assert_trees_all_close(est_gradients[1], target_gradient, rtol=1e-5, atol=1e-6)


def test_every_kth_step_lets_the_true_gradient_through_without_retracing():
    learner, state, x, y = chain("linear")
    true = helpers.mean_loss_gradients(learner.modules, state, x, y, KEY)

    @jax.jit
    @partial(chex.assert_max_traces, n=1)
    def first_module(step):
        return gradients(learner, *parameters(state), x, y, use_estimate=step % 3 != 0)[0][0]

    def is_true(step):
        gradient = first_module(step)
        return all(
            np.allclose(*pair, atol=1e-6)
            for pair in zip(jax.tree.leaves(gradient), jax.tree.leaves(true[0]), strict=True)
        )

    assert [is_true(step) for step in range(6)] == [True, False, False, True, False, False]


@pytest.mark.parametrize("name", ["linear", "recursive_least_squares", "probe", "kickback"])
def test_a_frozen_network_trains_its_estimators_alone_and_the_other_way_round(name):
    learner, state, x, y = chain(name)
    modules, est_params = parameters(state)
    both = on_one_device(name)
    frozen_estimators = jax.jit(jax.grad(lambda m: mean_loss(learner, m, est_params, x, y)))(modules)
    chex.assert_trees_all_close(frozen_estimators, both[0], atol=1e-6)
    if METHODS[name].training_gradient is not None:
        frozen_network = jax.jit(jax.grad(lambda e: mean_loss(learner, modules, e, x, y)))(est_params)
        chex.assert_trees_all_close(frozen_network, both[1], atol=1e-6)


def grad_at(estimator, est_params, h, y=None, error=None, **options):
    def loss(h):
        return decoupled.boundary(estimator, est_params, h, y, error, name="mine", **options).sum()

    return jax.grad(loss)(h)


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint])
def test_what_is_missing_is_told_by_name(around):
    x, y = helpers.batch(features=4)
    linear, direct = METHODS["linear"], METHODS["direct_feedback_alignment"]
    with pytest.raises(decoupled.UsageError, match=r"^mine: linear sees the labels, but was given none"):
        around(lambda h: grad_at(linear, linear.init(KEY, x, y), h))(x)
    with pytest.raises(decoupled.UsageError, match=r"^mine: direct.* error, but none has reached it"):
        around(lambda h: grad_at(direct, direct.init(KEY, x, y), h, y))(x)
    with pytest.raises(decoupled.UsageError, match=r"^mine: .* not those for activations \(8, 3\)"):
        around(lambda h: grad_at(linear, linear.init(KEY, x, y), h[:, :3], y))(x)
    with pytest.raises(decoupled.UsageError, match=r"^mine: .*made for 3 outputs, but the error has 5"):
        around(lambda h: grad_at(direct, direct.init(KEY, x, y), h, y, jnp.ones((8, 5))))(x)
    with pytest.raises(decoupled.UsageError, match=r"^mine: y has shape \(1,\), but h, of shape \(8, 4\)"):
        around(lambda h: grad_at(linear, linear.init(KEY, x, y), h, y[:1]))(x)
    with pytest.raises(decoupled.UsageError, match=r"^mine: the error has shape \(4, 3\), but h"):
        around(lambda h: grad_at(direct, direct.init(KEY, x, y), h, y, jnp.ones((4, 3))))(x)


@pytest.mark.parametrize("name", ["linear", "probe"])
def test_a_scan_over_time_is_told_how_many_examples_the_loss_has(name):
    """As the tokens of one activation: the estimator of every time step is the same."""
    estimator = METHODS[name]
    x, y = helpers.batch(features=4)
    h, y = x.reshape(2, 4, 4), y.reshape(2, 4)  # time, batch, features
    est_params = jax.tree.map(lambda w: w + 0.1, estimator.init(KEY, x, y.ravel()))

    def at_once(est_params, h):
        return jnp.square(decoupled.boundary(estimator, est_params, h, y, batch_axes=2)).mean()

    def scanned(est_params, h):
        def step(total, now):
            out = decoupled.boundary(estimator, est_params, *now, num_examples=8)
            return total + jnp.square(out).sum(), None

        return jax.lax.scan(step, 0.0, (h, y))[0] / h.size

    expected = jax.jit(jax.grad(at_once, (0, 1)))(est_params, h)
    chex.assert_trees_all_close(jax.jit(jax.grad(scanned, (0, 1)))(est_params, h), expected, atol=1e-6)


def test_maps_and_their_convolutional_estimator():
    """Boundary form = chain form, on (batch, height, width, channels)."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 4, 4, 2)), jnp.float32)
    _, y = helpers.batch()
    sg = estimators.convolutional((3,), context=estimators.one_hot(helpers.CLASSES))
    modules = decoupled.cut(decoupled.models.cnn((4,), helpers.CLASSES, kernel_size=3), [0])
    learner = helpers.make_learner(modules, sg)
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))
    new, _ = jax.jit(learner.update)(state, x, y, KEY)
    grad_modules, est_gradients = gradients(learner, *parameters(state), x, y)
    chex.assert_trees_all_close(grad_modules, helpers.steps_taken(state, new), rtol=1e-4, atol=1e-5)
    expected = jax.tree.map(jnp.subtract, state.estimators[0].params, new.estimators[0].params)
    chex.assert_trees_all_close(est_gradients[0], expected, rtol=1e-4, atol=1e-4)


def test_labels_of_tokens_need_tokens_as_examples():
    x, y = helpers.batch(features=4)
    linear = METHODS["linear"]
    with pytest.raises(decoupled.UsageError, match=r"^mine: one_hot encodes .* batch_axes=2"):
        grad_at(linear, linear.init(KEY, x, y), x.reshape(2, 4, 4), y.reshape(2, 4))


def test_integers_have_no_gradient():
    with pytest.raises(decoupled.UsageError, match=r"^boundary: h is int32, which has no gradient"):
        decoupled.boundary(METHODS["backprop"], {}, jnp.arange(3))


def test_nothing_is_asked_for_where_no_gradient_is_taken():
    x, y = helpers.batch(features=4)
    for estimator in METHODS.values():
        h = decoupled.boundary(estimator, estimator.init(KEY, x, y), x)
        np.testing.assert_array_equal(h, x)


def test_tokens_are_examples_of_their_own():
    """With two batch axes, (batch, time, features) is as (batch * time, features)."""
    estimator = estimators.linear(estimators.one_hot(helpers.CLASSES))
    x, y = helpers.batch(features=4)
    est_params = jax.tree.map(lambda w: w + 0.1, estimator.init(KEY, x, y))

    def loss(est_params, h, y, axes):
        h = decoupled.boundary(estimator, est_params, h, y, batch_axes=axes)
        return jnp.square(h).mean(-1).mean()

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=3)
    flat = gradient(est_params, x, y, 1)
    tokens = gradient(est_params, x.reshape(2, 4, 4), y.reshape(2, 4), 2)
    chex.assert_trees_all_close((tokens[0], tokens[1].reshape(8, 4)), flat, atol=1e-6)

"""Real networks, small, in chain and boundary form: several arrays, masks, weights. Oracles 1, 2, 8, 10."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import decoupled
from decoupled import Reads, estimators, losses
from decoupled.estimators.local_loss import from_local_loss
from decoupled.leaves import per_example, real_part
from tests import helpers, networks
from tests.networks import CLASSES, NETWORKS

KEY = jax.random.key(7)
SGD = optax.sgd(1.0)


def methods(network):
    """Every estimator that applies, told of the network's labels; of one array."""

    def context(y):
        return jax.nn.one_hot(network.labels(y), CLASSES)

    def loss(output, y):
        return losses.softmax_cross_entropy(output, network.labels(y))

    output = jax.eval_shape(lambda: run(network, first_params(network)))
    width = sum(leaf.size for leaf in jax.tree.leaves(output)) // network.y_rows()
    found = {
        "backprop": estimators.backprop(),
        "linear": estimators.linear(context),
        "bp_lambda": estimators.bp_lambda(estimators.linear(context), 0.3),
        "sg_prop": estimators.sg_prop(estimators.linear(context), 0.3),
        "sigmoid": estimators.sigmoid(context),
        "recursive_least_squares": estimators.recursive_least_squares(context),
        "similarity": estimators.similarity(CLASSES, context, loss=loss),
        "direct_feedback_alignment": estimators.direct_feedback_alignment(width),
        "loss_shaped": estimators.loss_shaped(CLASSES, context),
        "mlp": estimators.mlp((6,), context),
        "local_loss": estimators.local_loss(CLASSES, (4,), loss=loss),
        "probe": estimators.probe(CLASSES, loss),
        "direct_random_target_projection": estimators.direct_random_target_projection(context),
        "kickback": estimators.kickback(),
        "noise": estimators.noise(),
    }
    if hasattr(network.y, "shape"):
        found["mean_teacher"] = estimators.mean_teacher(CLASSES, (4,))
    return found


def first_params(network):
    h, all_params = network.x, []
    for i, module in enumerate(network.modules):
        params, _ = module.init(jax.random.fold_in(KEY, i), h)
        all_params.append(params)
        h, _ = module.apply(params, {}, h, KEY, True)
    return all_params


def run(network, all_params):
    h = network.x
    for module, params in zip(network.modules, all_params, strict=True):
        h, _ = module.apply(params, {}, h, KEY, True)
    return h


def lifted(estimator, lift):
    return {"joined": estimators.joined, "each": estimators.each, "alone": lambda e: e}[lift](estimator)


def learner_of(network, estimator):
    boundaries = [estimator] * (len(network.modules) - 1)
    made = decoupled.make_learner(
        network.modules, boundaries, network.loss, SGD, SGD, batch_axes=network.batch_axes
    )
    return made, helpers.noisy(made.init(KEY, network.x, network.y))


def weighted_loss(network, output, y, weight):
    rows, y = per_example((output, y), network.batch_axes)
    each = network.loss(rows, y)
    if weight is None:
        return each.mean()
    weight = weight.reshape(-1)
    return jnp.sum(jnp.where(weight > 0, each, 0) * weight) / weight.sum()


def in_boundary_form(network, estimator, weight):
    """(params of modules, est_params) -> the loss, with `boundary` between the modules."""

    def loss(all_params, est_params):
        error = None
        if estimator.reads is Reads.ERROR:
            output = per_example(run(network, all_params), network.batch_axes)
            _, error = losses.output_error(network.loss, output, per_example(network.y, network.batch_axes))
            axes = jnp.shape(jax.tree.leaves(network.y)[0])[: network.batch_axes]
            error = jax.tree.map(lambda leaf: leaf.reshape(*axes, *leaf.shape[1:]), error)
        h = network.x
        for i, (module, params) in enumerate(zip(network.modules, all_params, strict=True)):
            h, _ = module.apply(params, {}, h, KEY, True)
            if i < len(est_params):
                options = {"weight": weight, "batch_axes": network.batch_axes}
                h = decoupled.boundary(estimator, est_params[i], h, network.y, error, **options)
        return weighted_loss(network, h, network.y, weight)

    return loss


def weights_of(network):
    axes = jnp.shape(jax.tree.leaves(network.y)[0])[: network.batch_axes]
    if network.batch_axes == 2:
        return network.x["mask"].astype(jnp.float32)
    return jnp.asarray([1, 0, 2, 1, 0, 3], jnp.float32)[: axes[0]]


NAMES = (*helpers.every_method(),)
IN_GATE = {
    ("padded_tokens", "bp_lambda"),
    ("padded_tokens", "recursive_least_squares"),
    ("two_heads", "direct_feedback_alignment"),
    ("lstm", "linear"),
}


def cases():
    """Few in the gate; every method on every network where all tests run."""
    found = []
    for name, method in itertools.product(NETWORKS, NAMES):
        lifts = ["alone"] if name in ("two_heads", "padded_tokens") else ["joined", "each"]
        for lift in lifts if (name, method) != ("two_heads", "mean_teacher") else []:
            slow = (name, method) not in IN_GATE or (lift == "each" and method != "linear")
            found.append(pytest.param(name, method, lift, marks=[pytest.mark.slow] * slow))
    return found


@pytest.mark.parametrize(("name", "method", "lift"), cases())
def test_boundary_form_equals_chain_form(name, method, lift):
    network = NETWORKS[name]()
    weight = weights_of(network)
    estimator = lifted(methods(network)[method], lift)
    learner, state = learner_of(network, estimator)
    new, _ = jax.jit(learner.update)(state, network.x, network.y, KEY, weight)
    params, est_params = [m.params for m in state.modules], [e.params for e in state.estimators]
    trained = estimator.training_gradient is not None
    loss = in_boundary_form(network, estimator, weight)
    grads = jax.jit(jax.grad(loss, (0, 1) if trained else 0))(params, est_params)
    of_modules = grads[0] if trained else grads
    chex.assert_trees_all_close(of_modules, helpers.steps_taken(state, new), rtol=1e-5, atol=1e-6)
    if trained:
        tx = estimator.optimizer(SGD) if estimator.optimizer else SGD
        for gradient, before, after in zip(grads[1], state.estimators, new.estimators, strict=True):
            updates, _ = tx.update(gradient, before.opt_state, before.params)
            expected = jax.tree.map(jnp.subtract, after.params, before.params)
            chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_true_gradients_give_backprop(name):
    """With weights, of which some are 0."""
    network = NETWORKS[name]()
    weight = weights_of(network)
    learner, state = learner_of(network, estimators.backprop())
    new, metrics = jax.jit(learner.update)(state, network.x, network.y, KEY, weight)

    def loss(all_params):
        return weighted_loss(network, run(network, all_params), network.y, weight)

    value, expected = jax.jit(jax.value_and_grad(loss))([m.params for m in state.modules])
    chex.assert_trees_all_close(helpers.steps_taken(state, new), expected, rtol=1e-5, atol=1e-6)
    assert metrics.loss == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_zero_estimates_leave_everything_below_untouched(name):
    network = NETWORKS[name]()
    estimator = estimators.joined(methods(network)["linear"])
    learner, _ = learner_of(network, estimator)
    state = learner.init(KEY, network.x, network.y)
    new, _ = jax.jit(learner.update)(state, network.x, network.y, KEY)
    chex.assert_trees_all_equal(new.modules[:-1], state.modules[:-1])
    assert float(jnp.abs(new.estimators[-1].params["c"]).sum()) > 0  # the fit took place


def garbage(tree, uncounted, seed):
    """The tree with something else in its uncounted rows: NaN in real numbers, and what is no label."""

    def spoil(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.where(uncounted.reshape(-1, *[1] * (leaf.ndim - 1)), [jnp.nan, 1e30][seed], leaf)
        return jnp.where(uncounted.reshape(-1, *[1] * (leaf.ndim - 1)), [-100, 10**6][seed], leaf)

    return jax.tree.map(spoil, tree)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] * (name not in ("similarity", "mean_teacher", "bp_lambda"))
        )
        for name in NAMES
        if name != "noise"  # it hangs on every bit of an activation, and these on the size of the batch
    ],
)
def test_a_weight_is_how_often_an_example_is_there(method):
    """Not at all where it is 0, whatever is in it."""
    network = networks.two_towers()
    weight = weights_of(network)
    estimator = estimators.joined(methods(network)[method])
    learner, state = learner_of(network, estimator)
    x, y = (garbage(tree, weight == 0, 0) for tree in (network.x, network.y))
    new, metrics = jax.jit(learner.update)(state, x, y, KEY, weight)
    times = np.asarray(weight, int)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), (network.x, network.y))
    expected, same = jax.jit(learner.update)(state, *repeated, KEY)
    chex.assert_trees_all_close(new, expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(metrics.boundaries, same.boundaries, rtol=1e-4)
    assert metrics.loss == pytest.approx(float(same.loss), rel=1e-5)


def test_padding_changes_nothing_whatever_it_holds():
    network = networks.padded_tokens()
    weight = weights_of(network)
    learner, state = learner_of(network, methods(network)["linear"])
    update = jax.jit(learner.update)
    expected, _ = update(state, network.x, network.y, KEY, weight)
    mask = network.x["mask"]
    x = {"tokens": jnp.where(mask, network.x["tokens"], 6), "mask": mask}
    spoiled, _ = update(state, x, jnp.where(mask, network.y, -100), KEY, weight)
    chex.assert_trees_all_equal(spoiled, expected)


def test_nothing_counts_nothing_moves():
    network = networks.two_towers()
    learner, state = learner_of(network, estimators.joined(methods(network)["linear"]))
    new, metrics = jax.jit(learner.update)(state, network.x, network.y, KEY, jnp.zeros(6))
    chex.assert_trees_all_equal(new._replace(step=state.step), state)
    assert metrics.loss == 0


def test_what_a_mask_is_passes_and_has_no_gradient():
    network = networks.padded_tokens()
    h, _ = network.modules[0].apply(first_params(network)[0], {}, network.x, KEY, True)
    assert real_part(h) is h["h"]
    out = decoupled.boundary(estimators.backprop(), {}, h, batch_axes=2)
    chex.assert_trees_all_equal(out, h)


def attending(name, width):
    """Every token looks at every other, and no mask keeps it from that."""

    def apply(w, h):
        return jax.nn.softmax(jnp.einsum("btc,bsc->bts", h, h)) @ h @ w

    return decoupled.from_functions(lambda key, h: jax.random.normal(key, width), apply, name)


def test_a_token_that_does_not_count_is_looked_at_all_the_same():
    """As in training on the end of a sequence alone; all together, and module by module."""
    modules = [attending("a", (4, 5)), attending("b", (5, 5)), attending("c", (5, CLASSES))]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32)
    network = networks.Network(modules, losses.softmax_cross_entropy, x, jnp.ones((2, 4), jnp.int32), 2)
    weight = jnp.asarray([[0.0, 0, 0, 1], [0, 0, 1, 2]])
    learner, state = learner_of(network, estimators.backprop())
    new, metrics = jax.jit(learner.update)(state, x, network.y, KEY, weight)

    def loss(all_params):
        return weighted_loss(network, run(network, all_params), network.y, weight)

    value, expected = jax.jit(jax.value_and_grad(loss))([m.params for m in state.modules])
    assert metrics.loss == pytest.approx(float(value), rel=1e-5)
    chex.assert_trees_all_close(helpers.steps_taken(state, new), expected, rtol=1e-4, atol=1e-6)

    @jax.jit
    def one_by_one(state):
        h_ins = [x]
        for module, own in zip(modules, state.modules, strict=True):
            h_ins.append(module.apply(own.params, {}, h_ins[-1], KEY, True)[0])
        updated, signal = [], None
        for i in (2, 1, 0):
            args = (state.modules[i], {}, h_ins[i], network.y, KEY, signal, weight)
            step = learner.update_module[i](*args)
            updated.insert(0, step.module)
            signal = step.grad_h_in
        return tuple(updated)

    chex.assert_trees_all_close(one_by_one(state), new.modules, rtol=1e-4, atol=1e-6)


def test_nothing_is_read_of_padded_tokens_by_heads_and_losses():
    """What is at padding is zero here, where the length of a vector has no gradient."""
    layer = decoupled.from_functions(lambda key, h: jax.random.normal(key, (3, 3)), lambda w, h: h @ w, "l")
    x = jnp.ones((2, 3, 3)).at[0, 2].set(jnp.nan)
    weight, y = jnp.asarray([[1.0, 1, 0], [1, 1, 1]]), jnp.zeros((2, 3), jnp.int32)

    def length(est_params, h, y, weight):
        return jnp.linalg.norm(h @ est_params, axis=1)

    head = from_local_loss("length", lambda key, h, y: jnp.eye(3), length)
    learner = decoupled.make_learner(
        [layer, layer], [head], lambda out, y: jnp.linalg.norm(out, axis=1), SGD, SGD, batch_axes=2
    )
    update, start = jax.jit(learner.update), learner.init(KEY, x, y)
    for given in (weight, jnp.zeros((2, 3))):
        state, metrics = update(start, x, y, KEY, given)
        chex.assert_tree_all_finite((state.modules, state.estimators, metrics.loss, metrics.boundaries))


@pytest.mark.parametrize("name", ["backprop", "linear"])
def test_where_nothing_counts_a_boundary_hands_nothing_down(name):
    network = networks.two_heads()
    estimator, h = methods(network)[name], jnp.ones((6, 5))
    est_params = estimator.init(KEY, h, network.y)

    def loss(est_params, h):
        out = decoupled.boundary(estimator, est_params, h, network.y, weight=jnp.zeros(6))
        return (out * 0).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)))(est_params, h)
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


@pytest.mark.parametrize("inner", ["linear", "similarity"])
def test_bp_lambda_goes_around_a_lift_as_it_goes_within(inner):
    network = networks.two_towers()
    weight, own = weights_of(network), methods(network)[inner]
    results = []
    for spec in (
        estimators.bp_lambda(estimators.joined(own), 0.3),
        estimators.joined(estimators.bp_lambda(own, 0.3)),
    ):
        learner, state = learner_of(network, spec)
        results.append(jax.jit(learner.update)(state, network.x, network.y, KEY, weight)[0])
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "lift"), [("local_loss", estimators.each), ("direct_feedback_alignment", lambda own: own)]
)
def test_an_array_without_numbers_changes_nothing(name, lift):
    """Such as a memory that is still empty: all is as it is without."""
    x, y = helpers.batch()
    own = helpers.every_method()[name]
    first, last = helpers.mlp_modules(1)

    def apply(params, state, h, key, train):
        h, state = first.apply(params, state, h, key, train)
        return {"a_memory": h[:, :0], "h": h}, state

    beside = last._replace(
        init=lambda key, h: last.init(key, h["h"]),
        apply=lambda params, state, h, *others: last.apply(params, state, h["h"], *others),
    )
    alone = helpers.make_learner([first, last], own)
    learner = helpers.make_learner([first._replace(apply=apply), beside], lift(own))
    state = helpers.noisy(alone.init(KEY, x, y))
    lifted = jax.tree.unflatten(jax.tree.structure(learner.init(KEY, x, y)), jax.tree.leaves(state))
    expected, _ = jax.jit(alone.update)(state, x, y, KEY)
    found, _ = jax.jit(learner.update)(lifted, x, y, KEY)
    chex.assert_trees_all_close(jax.tree.leaves(found), jax.tree.leaves(expected), rtol=1e-5, atol=1e-6)

    h, error = jax.random.normal(KEY, (8, 4)), jax.random.normal(KEY, (8, CLASSES))

    def loss(spec, state, h):
        handed_on = decoupled.boundary(spec, state.estimators[0].params, h, y, error)
        return sum(leaf.sum() for leaf in jax.tree.leaves(handed_on))

    expected = jax.jit(jax.grad(lambda h: loss(own, state, h)))(h)
    found = jax.jit(jax.grad(lambda h: loss(lift(own), lifted, h)))({"a_memory": h[:, :0], "h": h})
    np.testing.assert_allclose(found["h"], expected, rtol=1e-6)


def test_each_keeps_its_optimizers_in_nnx():
    network = networks.two_towers()
    estimator = estimators.each(methods(network)["recursive_least_squares"])

    class Model(nnx.Module):
        def __init__(self):
            self.cut = decoupled.NNXBoundary(estimator, network.x, rngs=nnx.Rngs(0), y=network.y)

    state = nnx.state(Model(), nnx.Param)
    tx = decoupled.split_optimizer(SGD, estimator.optimizer(SGD))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, state), tx.init(state), state)
    chex.assert_trees_all_equal_structs(updates, state)


def test_small_weights_in_half_precision():
    """Only how they stand to one another matters."""
    network = networks.two_heads()

    def apply(w, h):
        return h.astype(jnp.float16) @ w.astype(jnp.float16)

    layer = decoupled.from_functions(lambda key, h: jax.random.normal(key, (4, 4)), apply, "layer")
    x, y = network.x, jnp.zeros(6, jnp.int32)
    learner = helpers.make_learner([layer, layer], estimators.linear())
    state = helpers.noisy(learner.init(KEY, x, y))
    update = jax.jit(learner.update)
    expected, _ = update(state, x, y, KEY, weights_of(network))
    new, _ = update(state, x, y, KEY, weights_of(network) * 1e-3)
    chex.assert_trees_all_close(new, expected, rtol=2e-2, atol=2e-2)

"""Real networks, small, in chain and boundary form: several arrays, masks, weights. Oracles 1, 2, 8, 10."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import decoupled
from decoupled import Reads, estimators, losses
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
    ("two_towers", "similarity"),
    ("two_towers", "recursive_least_squares"),
    ("padded_tokens", "bp_lambda"),
    ("padded_tokens", "recursive_least_squares"),
    ("two_heads", "direct_feedback_alignment"),
    ("unet", "linear"),
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

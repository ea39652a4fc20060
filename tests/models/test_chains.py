"""Networks of each family as chains: true gradients, synthetic ones, stacks, bfloat16."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoupled import estimators, losses, models
from decoupled.learning.stack import Stack, stack_equal
from decoupled.modules.chains import init_chain
from tests import helpers
from tests.models.tiny import (
    CLASSES,
    VOCABULARY,
    all_kinds_of_layers,
    each_token,
    filled,
    images,
    networks,
    tokens,
)

KEY = jax.random.key(0)


def batch_for(kind):
    """x, y and the loss."""
    if kind == "tokens":
        return *tokens(), each_token
    return *images(side=8), losses.softmax_cross_entropy


@pytest.mark.parametrize("kind", helpers.gate(["images", "tokens"], "tokens"))
def test_true_gradients_down_the_chain_are_those_of_the_whole_network(kind):
    layers, (x, y, loss) = all_kinds_of_layers()[kind], batch_for(kind)
    learner = helpers.make_learner(layers, estimators.backprop(), loss=loss)
    state = filled(jax.eval_shape(learner.init, KEY, x, y))

    @jax.jit
    def both(state):
        after, metrics = learner.update(state, x, y, KEY)
        expected = helpers.mean_loss_gradients(layers, state, x, y, KEY, loss)
        return helpers.steps_taken(state, after), expected, metrics.loss

    actual, expected, loss_of_batch = both(state)
    chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0])) > 1e-4  # nothing is cut off
    assert np.isfinite(loss_of_batch)


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_a_step_with_synthetic_gradients_in_bfloat16(kind):
    layers, (x, y, loss) = all_kinds_of_layers(jnp.bfloat16)[kind], batch_for(kind)
    layers = layers[1:4:2] + layers[5:] if kind == "images" else layers[:2] + layers[3:]  # in half the time
    learner = helpers.make_learner(layers, estimators.linear(), 0.1, 0.01, loss=loss)
    state = filled(jax.eval_shape(learner.init, KEY, x, y), scale=0.1)
    after, metrics = jax.jit(learner.update)(state, x, y, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert np.isfinite(metrics.loss)
    for old, new in zip(
        [*state.modules, *state.estimators], [*after.modules, *after.estimators], strict=True
    ):
        assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype(jnp.float32)}
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
        pairs = zip(jax.tree.leaves(old.params), jax.tree.leaves(new.params), strict=True)
        assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


@pytest.mark.parametrize("family", networks())
def test_shapes_and_dtypes_of_the_computation(family):
    layers = networks(jnp.bfloat16)[family]
    x, y = tokens() if family in ("gpt", "rnn") else images(side=8)
    *hidden, output = outputs(layers, x)
    assert {h.dtype for h in hidden} == {output.dtype} == {jnp.dtype(jnp.bfloat16)}
    assert {h.shape[0] for h in hidden} == {len(x)}
    assert output.shape == (*y.shape, VOCABULARY if y.ndim == 2 else CLASSES)
    # What `Stack` asks of equal layers.
    ends = [x, *hidden, output]
    i = 0
    for link in stack_equal(layers):
        count = len(link.names) if isinstance(link, Stack) else 1
        if count > 1:
            assert len({(h.shape, h.dtype) for h in ends[i : i + count + 1]}) == 1
        i += count


@pytest.mark.parametrize(
    ("layers", "runs"),
    [
        (models.vgg(3, models.VGG11B), [2]),
        (models.vgg(3, (4, 8, 8, 8, "pool", 8, 8, "pool", 8)), [2]),
        (models.resnet(20, 3), [3, 2, 2]),
        (models.resnet(110, 3), [18, 17, 17]),
        (models.resnet_large(18, 3), [2]),
        (models.resnet_large(50, 3), [2, 3, 5, 2]),
        (models.vit(12, 8, 3, heads=2, patch_size=4), [12]),
        (models.gpt(12, 8, 3, heads=2, context=4), [12]),
        (models.rnn(4, 8, 3), [3]),
        (models.rnn(4, 8, 3, vocabulary=5), [4]),
    ],
)
def test_equal_layers_stack_and_every_layer_has_its_name(layers, runs):
    links = stack_equal(layers)
    assert [len(link.names) for link in links if isinstance(link, Stack)] == runs
    assert len({layer.name for layer in layers}) == len(layers)


def outputs(layers, x):
    """The shapes of what comes out of each layer."""
    found = []

    def run(key, h):
        for layer, own in zip(layers, init_chain(layers, key, h), strict=True):
            h, _ = layer.apply(own.params, own.state, h, key, True)
            found.append(jax.ShapeDtypeStruct(h.shape, h.dtype))

    jax.eval_shape(run, KEY, x)
    return found

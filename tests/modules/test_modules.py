"""The Module seam: Linen modules, plain functions, composition, cuts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import decoupled
from tests import helpers

KEY = jax.random.key(0)


class Noisy(nn.Module):
    """Batch norm and dropout: mutable state and a random stream."""

    @nn.compact
    def __call__(self, h, train):
        h = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(h))
        return nn.Dropout(0.5, deterministic=not train)(h)


def test_linen_module_does_what_linen_does():
    h = jax.random.normal(KEY, (6, 3))
    module = decoupled.from_linen(nn.Dense(4))
    variables = module.init(KEY, h)
    out, state = module.apply(variables.params, variables.state, h, KEY, True)
    np.testing.assert_allclose(out, nn.Dense(4).apply({"params": variables.params}, h))
    assert state == variables.state == {}
    assert module.name == "Dense"


def test_mutable_state_moves_in_training_only():
    h = jax.random.normal(KEY, (6, 3)) + 5.0
    module = decoupled.from_linen(Noisy())
    variables = module.init(KEY, h)
    assert float(variables.state["batch_stats"]["BatchNorm_0"]["mean"].max()) == 0.0
    _, trained = module.apply(*variables, h, KEY, True)
    _, evaluated = module.apply(*variables, h, KEY, False)
    assert float(jnp.abs(trained["batch_stats"]["BatchNorm_0"]["mean"]).max()) > 0.0
    chex.assert_trees_all_equal(evaluated, variables.state)


def test_keys_rule_dropout():
    h = jax.random.normal(KEY, (6, 3))
    module = decoupled.from_linen(Noisy())
    variables = module.init(KEY, h)

    def run(seed, train=True):
        return np.asarray(module.apply(*variables, h, jax.random.key(seed), train)[0])

    np.testing.assert_array_equal(run(1), run(1))
    assert (run(1) != run(2)).any()
    np.testing.assert_array_equal(run(1, train=False), run(2, train=False))


def test_composition_is_the_layers_in_order():
    h = jax.random.normal(KEY, (6, 3))
    layers = [decoupled.from_linen(nn.Dense(4), "a"), decoupled.from_linen(Noisy(), "b")]
    pair = decoupled.compose(layers)
    params, state = pair.init(KEY, h)
    out, new_state = pair.apply(params, state, h, KEY, True)
    middle, _ = layers[0].apply(params[0], state[0], h, jax.random.fold_in(KEY, 0), True)
    expected, expected_state = layers[1].apply(
        params[1], state[1], middle, jax.random.fold_in(KEY, 1), True
    )
    np.testing.assert_array_equal(out, expected)
    chex.assert_trees_all_equal(new_state[1], expected_state)
    assert pair.name == "a+b"


def test_cuts_group_layers():
    layers = decoupled.models.mlp(4, 8, 3)
    names = [module.name for module in decoupled.cut(layers, [2, 0])]
    assert names == ["hidden_0", "hidden_1+hidden_2", "hidden_3+output"]
    assert len(decoupled.cut(layers, [])) == 1


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        ([4], r"cannot cut after layer 4: the network has 5 layers, .* 0 to 3"),
        ([-1], "cannot cut after layer -1"),
        ([1, 1], "named twice"),
    ],
)
def test_impossible_cuts_are_refused(boundaries, message):
    with pytest.raises(decoupled.UsageError, match=message):
        decoupled.cut(decoupled.models.mlp(4, 8, 3), boundaries)


def test_cnn_layers_halve_the_image():
    layers = decoupled.models.cnn((4, 6), 10, kernel_size=3, norm="batch")
    h = jnp.zeros((2, 8, 8, 3))
    shapes = []
    for layer in layers:
        variables = layer.init(KEY, h)
        h, _ = layer.apply(*variables, h, KEY, True)
        shapes.append(h.shape)
    assert shapes == [(2, 4, 4, 4), (2, 2, 2, 6), (2, 10)]


class NNXNoisy(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, h):
        return self.dropout(self.norm(self.dense(h)))


def test_nnx_module_does_what_nnx_does():
    h = jax.random.normal(KEY, (64, 3)) + 5.0
    module = decoupled.from_nnx(NNXNoisy, "noisy")
    variables = module.init(KEY, h)
    apply = jax.jit(module.apply, static_argnums=4)
    own = NNXNoisy(nnx.Rngs(KEY))
    own.eval()
    out, state = apply(*variables, h, KEY, False)
    np.testing.assert_allclose(out, own(h), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(state, variables.state)
    first, state = apply(*variables, h, KEY, True)
    again, _ = apply(*variables, h, KEY, True)
    other, other_state = apply(*variables, h, jax.random.key(1), True)
    np.testing.assert_array_equal(first, again)
    assert bool((first != other).any())
    assert 0.3 < float((first == 0).mean()) < 0.7
    own.dropout.rate = 0.0
    own.train()
    own(h)
    np.testing.assert_allclose(state["rest"]["norm"]["mean"][...], own.norm.mean[...], rtol=1e-5)
    # Random numbers come from the key and leave no trace in the state.
    chex.assert_trees_all_equal(state, other_state)


def test_nnx_modules_in_a_chain_train_as_backprop_does():
    x, y = jax.random.normal(KEY, (8, 3)), jnp.arange(8) % 4
    modules = [
        decoupled.from_nnx(NNXNoisy, "noisy"),
        decoupled.from_nnx(lambda rngs: nnx.Linear(4, 4, rngs=rngs), "output"),
    ]
    learner = helpers.make_learner(modules, decoupled.estimators.backprop())
    state = learner.init(KEY, x, y)
    new, _ = jax.jit(learner.update)(state, x, y, KEY)
    expected = helpers.mean_loss_gradients(modules, state, x, y, KEY)
    chex.assert_trees_all_close(helpers.steps_taken(state, new), expected, atol=1e-6)
    assert learner.predict(new, x).shape == (8, 4)

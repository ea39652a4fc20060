"""Modules and estimators on their own, and networks without this package."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, serialization

import decoupled
from decoupled import models, stack_equal
from decoupled.models.mlp import HiddenLayer
from decoupled.models.output import OutputLayer
from decoupled.training import (
    flax_variables,
    load_estimator,
    load_module,
    save_estimator,
    save_module,
)
from tests import helpers

WIDTH = 6


def network(depth=3, seed=0, stacked=False, cut=None):
    layers = models.mlp(depth, WIDTH, helpers.CLASSES, norm="batch")
    modules = decoupled.cut(layers, range(depth) if cut is None else cut)
    links = stack_equal(modules) if stacked else modules
    learner = helpers.make_learner(links, helpers.every_method()["loss_shaped"])
    x, y = helpers.batch()
    state = jax.jit(learner.init)(jax.random.key(seed), x, y)
    for step in range(2):
        state, _ = jax.jit(learner.update)(state, x, y, jax.random.key(step))
    return learner, state


@pytest.mark.parametrize("stacked", [False, True])
def test_a_module_moves_into_another_network(stacked, tmp_path):
    learner, state = network(stacked=stacked)
    save_module(str(tmp_path / "module.npz"), learner, state, "hidden_2")
    other, theirs = network(depth=4, seed=1, stacked=stacked)
    new = other.unstack(load_module(str(tmp_path / "module.npz"), other, theirs, "hidden_1"))
    source, before = learner.unstack(state), other.unstack(theirs)
    chex.assert_trees_all_equal(new.modules[1][:2], source.modules[2][:2])
    fresh = other.rules.optimizer.init(source.modules[2].params)
    chex.assert_trees_all_equal(new.modules[1].opt_state, fresh)
    untouched = [0, 2, 3, 4]
    chex.assert_trees_all_equal([new.modules[i] for i in untouched], [before.modules[i] for i in untouched])
    chex.assert_trees_all_equal(new.estimators, before.estimators)


@pytest.mark.parametrize("stacked", [False, True])
def test_an_estimator_moves_into_another_network(stacked, tmp_path):
    learner, state = network(stacked=stacked)
    save_estimator(str(tmp_path / "sg.npz"), learner, state, "hidden_1")
    other, theirs = network(depth=4, seed=1, stacked=stacked)
    new = other.unstack(load_estimator(str(tmp_path / "sg.npz"), other, theirs, "hidden_2"))
    chex.assert_trees_all_equal(new.estimators[2].params, learner.unstack(state).estimators[1].params)
    before = other.unstack(theirs)
    chex.assert_trees_all_equal(new.modules, before.modules)
    chex.assert_trees_all_equal(new.estimators[0], before.estimators[0])


def test_what_does_not_fit_is_refused(tmp_path):
    learner, state = network()
    path = tmp_path / "part.npz"
    save_module(path, learner, state, "hidden_1")
    with pytest.raises(decoupled.DataError, match=r"is float32\[6, 6\], but float32\[5, 6\] in this"):
        load_module(path, learner, state, "hidden_0")
    with pytest.raises(decoupled.DataError, match=r"holds .* not what this part has"):
        load_module(path, learner, state, "output")
    with pytest.raises(decoupled.UsageError, match="no module is called 'h': choose one of hidden_0, hid"):
        load_module(path, learner, state, "h")
    with pytest.raises(decoupled.UsageError, match="no module is called 'output': choose one of hidden"):
        save_estimator(path, learner, state, "output")
    with pytest.raises(decoupled.DataError, match=r"absent\.npz cannot be read"):
        load_module(tmp_path / "absent.npz", learner, state, "hidden_1")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(decoupled.DataError, match=r"array\.npy holds one array, which is not"):
        load_module(tmp_path / "array.npy", learner, state, "hidden_1")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(decoupled.DataError, match=r"part\.npz cannot be read"):
        load_module(path, learner, state, "hidden_1")
    with pytest.raises(decoupled.TrainingError, match="cannot write"):
        save_module(tmp_path / "no" / "folder.npz", learner, state, "hidden_1")


class Plain(nn.Module):
    """The same network as Flax has it."""

    depth: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = HiddenLayer(WIDTH, "batch", name=f"hidden_{i}")(x, train=False)
        return OutputLayer(helpers.CLASSES, name="output")(x)


@pytest.mark.parametrize("options", [{}, {"stacked": True}, {"cut": [1]}, {"cut": []}])
def test_a_trained_network_is_plain_flax(options):
    learner, state = network(**options)
    x, _ = helpers.batch()
    stored = serialization.msgpack_serialize(flax_variables(learner, state))
    variables = serialization.msgpack_restore(stored)
    plain = Plain(3).apply(variables, x)
    np.testing.assert_allclose(plain, learner.predict(state, x), rtol=1e-5, atol=1e-6)


def test_nnx_modules_too():
    module = decoupled.from_nnx(lambda rngs: nnx.Linear(5, helpers.CLASSES, rngs=rngs), "layer")
    learner = helpers.make_learner([module], helpers.every_method()["backprop"])
    x, y = helpers.batch()
    state = learner.init(jax.random.key(0), x, y)
    kernel = flax_variables(learner, state)["params"]["layer"]["kernel"]
    bias = flax_variables(learner, state)["params"]["layer"]["bias"]
    np.testing.assert_allclose(x @ jnp.asarray(kernel) + bias[None], learner.predict(state, x), rtol=1e-5)

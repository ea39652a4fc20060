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
from decoupled.training.overview import describe_modules
from tests import helpers

WIDTH = 6


def network(depth=3, seed=0, stacked=False, cut=None):
    layers = models.mlp(depth, WIDTH, helpers.CLASSES, norm="batch")
    modules = decoupled.cut(layers, range(depth) if cut is None else cut)
    links = stack_equal(modules) if stacked else modules
    learner = helpers.make_learner(links, helpers.every_method()["loss_shaped"])
    x, y = helpers.batch()
    state = learner.init(jax.random.key(seed), x, y)
    for step in range(2):
        state, _ = jax.jit(learner.update)(state, x, y, jax.random.key(step))
    return learner, state


@pytest.mark.parametrize("stacked", [False, pytest.param(True, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("stacked", [False, pytest.param(True, marks=pytest.mark.slow)])
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


def test_bfloat16_comes_back(tmp_path):
    learner, state = learner_of(decoupled.from_linen(nn.Dense(3, param_dtype=jnp.bfloat16), "half"))
    save_module(tmp_path / "half.npz", learner, state, "half")
    new = load_module(tmp_path / "half.npz", learner, state, "half")
    chex.assert_trees_all_equal(new.modules[0].params, state.modules[0].params)
    assert new.modules[0].params["kernel"].dtype == jnp.bfloat16


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


def learner_of(*modules):
    learner = helpers.make_learner(modules, helpers.every_method()["backprop"])
    x, y = helpers.batch()
    return learner, learner.init(jax.random.key(0), x, y)


def stored(learner, state):
    """The variables, having been bytes."""
    variables = serialization.msgpack_serialize(flax_variables(learner, state))
    return serialization.msgpack_restore(variables)


def dense(name=""):
    return decoupled.from_linen(nn.Dense(helpers.CLASSES), name)


def affine(kind):
    """A module of one's own, whose parameters are a tuple or a list."""
    return decoupled.from_functions(
        lambda key, h: kind([jnp.ones((h.shape[1], 3)), jnp.arange(3.0)]),
        lambda params, h: h @ params[0] + params[1][None],
        "affine",
    )


def test_layers_called_alike_are_those_of_a_compact_module():
    class Compact(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.Dense(helpers.CLASSES)(x)
            return x

    learner, state = learner_of(dense(), dense(), dense())
    x, _ = helpers.batch()
    plain = Compact().apply(stored(learner, state), x)
    np.testing.assert_allclose(plain, learner.predict(state, x), rtol=1e-5)


def test_every_layer_has_an_entry_of_its_own():
    a, b = dense("a"), dense("b")
    cases = {
        "a number that is taken": ([a, dense("a_0"), a], {"a_1", "a_0", "a_2"}),
        "a plus in a name": ([dense("a+b"), a], {"a+b", "a"}),
        "a plus in a name of parts": ([decoupled.compose([dense("a+b"), b]), a], {"a+b", "b", "a"}),
        "parts of equal modules": ([decoupled.compose([a, b]), decoupled.compose([a, a])], 4),
        "parts of parts": ([decoupled.compose([decoupled.compose([a, b]), dense("c")])], {"a", "b", "c"}),
        "a name with a slash": ([dense("a/b"), a], {"a/b", "a"}),
    }
    for modules, expected in cases.values():
        learner, state = learner_of(*modules)
        entries = flax_variables(learner, state)["params"]
        assert expected in (entries.keys(), len(entries))
        exported = sorted(leaf.tobytes() for leaf in jax.tree.leaves(entries))
        own = [module.params for module in state.modules]
        assert exported == sorted(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(own))


@pytest.mark.parametrize("stacked", [False, True])
def test_a_module_that_was_given_a_name_holds_its_layers(stacked):
    block = decoupled.compose([dense("first"), dense("second")], "block")
    blocks = [block._replace(name=f"block_{i}") for i in range(2)]
    learner, state = learner_of(dense("below"), *(stack_equal(blocks) if stacked else blocks), dense("top"))
    params, whole = flax_variables(learner, state)["params"], learner.unstack(state)
    assert params.keys() == {"below", "block_0", "block_1", "top"}
    for i in range(2):
        by_hand = dict(zip(("first", "second"), whole.modules[1 + i].params, strict=True))
        chex.assert_trees_all_equal(params[f"block_{i}"], by_hand)


@pytest.mark.parametrize("kind", [tuple, list])
def test_parameters_that_are_a_tuple_are_one_entry(kind):
    learner, state = learner_of(affine(kind), dense())
    entry = stored(learner, state)["params"]["affine"]
    np.testing.assert_array_equal(entry["0"], np.ones((5, 3)))
    np.testing.assert_array_equal(entry["1"], np.arange(3))


def test_boxes_and_keys_are_plain_arrays_too():
    kernel_init = nn.with_partitioning(nn.initializers.ones, (None, None))
    boxed = decoupled.from_linen(nn.Dense(3, kernel_init=kernel_init))
    noisy = decoupled.from_nnx(lambda rngs: nnx.Dropout(0.5, rngs=rngs), "noisy")
    learner, state = learner_of(boxed, noisy, dense("top"))
    variables = stored(learner, state)
    np.testing.assert_array_equal(variables["params"]["Dense"]["kernel"], np.ones((5, 3)))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables["rngs"]["noisy"]))


def test_a_state_without_collections_is_refused():
    counting = decoupled.Module(
        "counting",
        lambda key, h: decoupled.ModuleVariables({}, jnp.zeros(())),
        lambda params, state, h, key, train: (h, state + train),
    )
    learner, state = learner_of(counting, dense())
    with pytest.raises(decoupled.UsageError, match=r"module counting: its state is .* make it a dict"):
        flax_variables(learner, state)


@pytest.mark.parametrize("stacked", [False, True])
def test_one_of_several_modules_called_alike_is_chosen_by_number(stacked, tmp_path):
    block = dense("block")
    links = [dense("below"), *(stack_equal([block] * 2) if stacked else [block] * 2), dense("top")]
    learner, state = learner_of(*links)
    path = str(tmp_path / "block.npz")
    several = "2 modules are called 'block': choose one of below, block_0, block_1, top"
    for ambiguous in (save_module, load_module):
        with pytest.raises(decoupled.UsageError, match=several):
            ambiguous(path, learner, state, "block")
    with pytest.raises(decoupled.UsageError, match=r"choose one of below, block_0, block_1$"):
        save_estimator(path, learner, state, "block")
    save_module(path, learner, state, "block_1")
    new = learner.unstack(load_module(path, learner, state, "block_0"))
    before = learner.unstack(state)
    chex.assert_trees_all_equal(new.modules[1].params, before.modules[2].params)
    chex.assert_trees_all_equal(new.modules[2], before.modules[2])
    assert not np.allclose(before.modules[1].params["kernel"], before.modules[2].params["kernel"])
    x, _ = helpers.batch()
    entries = describe_modules(learner, state, x)
    assert [entry["name"] for entry in entries] == ["below", "block_0", "block_1", "top"]

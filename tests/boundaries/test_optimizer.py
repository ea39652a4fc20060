"""`split_optimizer` against optimizers applied by hand to each part."""

import dataclasses
from typing import Any, NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import decoupled
from decoupled import Boundary, estimators
from tests import helpers

KEY = jax.random.key(0)
CONTEXT = estimators.one_hot(helpers.CLASSES)


class Network(nn.Module):
    estimator: decoupled.Estimator

    @nn.compact
    def __call__(self, x, y=None):
        h = Boundary(self.estimator, name="first")(nn.Dense(4)(x), y)
        return Boundary(self.estimator, name="second")(nn.Dense(3)(h), y)


def problem(estimator):
    x, y = helpers.batch()
    params = Network(estimator).init(KEY, x, y)["params"]
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), params)
    return params, gradient


def parts(tree):
    layers = {name: tree[name] for name in ("Dense_0", "Dense_1")}
    return layers, {name: tree[name]["est_params"] for name in ("first", "second")}


@pytest.mark.parametrize(
    "each",
    [optax.adam(0.1), {"first": optax.adam(0.1), "second": optax.sgd(0.3)}],
    ids=["one for all", "by name"],
)
def test_every_part_has_its_own_optimizer_and_state(each):
    params, gradient = problem(estimators.mlp((3,), CONTEXT))
    layers_tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01))
    tx = decoupled.split_optimizer(layers_tx, each)
    state, actual = tx.init(params), params
    for _ in range(3):
        updates, state = jax.jit(tx.update)(gradient, state, actual)
        actual = optax.apply_updates(actual, updates)
    by_name = each if isinstance(each, dict) else dict.fromkeys(("first", "second"), each)
    layers_gradient, est_gradients = parts(gradient)
    layers, est_params = parts(params)

    def by_hand(tx, gradient, params):
        opt_state = tx.init(params)
        for _ in range(3):
            updates, opt_state = tx.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
        return params

    chex.assert_trees_all_close(parts(actual)[0], by_hand(layers_tx, layers_gradient, layers), atol=1e-6)
    for name, own in by_name.items():
        expected = by_hand(own, est_gradients[name], est_params[name])
        chex.assert_trees_all_close(parts(actual)[1][name], expected, atol=1e-6)
    assert jax.tree.structure(actual) == jax.tree.structure(params)


def test_an_estimator_that_solves_can_bring_its_optimizer():
    x, y = helpers.batch(size=64)
    sg = estimators.recursive_least_squares(CONTEXT)
    params, _ = problem(sg)
    tx = decoupled.split_optimizer(optax.set_to_zero(), sg.optimizer(optax.identity()))

    def sg_error(params):
        """With the layers at rest, how far the second boundary's estimate is from its target."""
        h = x @ params["Dense_0"]["kernel"] @ params["Dense_1"]["kernel"]
        return estimators.sg_loss(sg.estimate(params["second"]["est_params"], h, y, None), h)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(
            lambda p: 0.5 * jnp.square(Network(sg).apply({"params": p}, x, y)).sum(1).mean()
        )
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    before, state = params, tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    chex.assert_trees_all_equal(parts(params)[0], parts(before)[0])
    assert sg_error(params) < 1e-4 * sg_error(before)  # the target of h'h/2 is h, which is linear in h


def test_least_squares_left_to_another_optimizer_still_learns():
    """No method may silently train nothing: without its solver it descends."""
    x, y = helpers.batch(size=64)
    sg = estimators.recursive_least_squares(CONTEXT)
    params, _ = problem(sg)
    adam = optax.adam(0.05)
    loss = jax.grad(lambda p: 0.5 * jnp.square(Network(sg).apply({"params": p}, x, y)).sum(1).mean())

    @jax.jit
    def step(params, state):
        updates, state = adam.update(loss(params), state, params)
        return optax.apply_updates(params, updates), state

    state = adam.init(params)
    before = params["Dense_0"]["kernel"]
    for _ in range(20):
        params, state = step(params, state)
    assert np.any(params["second"]["est_params"]["K"])
    assert np.any(params["Dense_0"]["kernel"] != before)


def test_boundaries_and_optimizers_must_match_by_name():
    params, _ = problem(estimators.linear(CONTEXT))
    tx = decoupled.split_optimizer(optax.sgd(1.0), {"first": optax.sgd(1.0), "thrid": optax.sgd(1.0)})
    with pytest.raises(decoupled.UsageError, match=r"\['first', 'thrid'\], but .*\['first', 'second'\]"):
        tx.init(params)


def test_feedback_weights_that_are_passed_along_stay():
    params = {"params": {"w": jnp.ones(3)}, "feedback": {"cut": {"est_params": {"B": jnp.ones(3)}}}}
    tx = decoupled.split_optimizer(optax.adamw(0.1), optax.adamw(0.1))
    updates, _ = tx.update(params, tx.init(params), params)
    assert not np.any(updates["feedback"]["cut"]["est_params"]["B"])
    assert np.all(updates["params"]["w"])


def test_a_model_without_trained_estimators_is_all_layers():
    params = {"w": jnp.ones(3)}
    tx = decoupled.split_optimizer(optax.sgd(1.0), optax.set_to_zero())
    updates, _ = tx.update({"w": jnp.ones(3)}, tx.init(params))
    np.testing.assert_array_equal(updates["w"], -jnp.ones(3))


def test_est_params_may_be_a_single_array():
    params = {"layer": jnp.ones(2), "mine": {"est_params": jnp.ones(3)}}
    tx = decoupled.split_optimizer(optax.sgd(1.0), optax.sgd(0.5))
    updates, _ = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_close(
        updates, {"layer": -jnp.ones(2), "mine": {"est_params": -0.5 * jnp.ones(3)}}
    )


class Two(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    feedback: Any
    boundary: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cut:
    est_params: Any


@jax.tree_util.register_pytree_node_class
class Unnamed:
    """A node whose children have numbers for keys."""

    def __init__(self, *parts):
        self.parts = parts

    def tree_flatten(self):
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(*parts)


def cut(*leaves):
    """A boundary's node in a tree: each leaf is an array of its own."""
    return {"est_params": {f"w{i}": leaf for i, leaf in enumerate(leaves)}}


# A tree, and the paths of its boundaries.
TREES = {
    "a layer called feedback": ({"Dense_0": "l", "feedback": {"kernel": "l"}, "b": cut("e")}, {"b"}),
    "a block with a layer called feedback": ({"block": {"feedback": "l"}}, set()),
    "a boundary called feedback": ({"Dense_0": "l", "feedback": cut("e")}, {"feedback"}),
    "all variables": ({"params": {"a": "l", "b": cut("e")}, "feedback": {"b": cut("f")}}, {"params/b"}),
    "and a layer called feedback": (
        {"params": {"feedback": "l"}, "feedback": {"feedback": "f"}, "batch_stats": {"feedback": "l"}},
        set(),
    ),
    "attributes": (Two({"b": cut("e")}, {"b": cut("e", "e"), "a": "l"}), {"first/b", "second/b"}),
    "attributes that are boundaries": (Two(cut("e"), cut("e", "e")), {"first", "second"}),
    "est_params of attributes": ({"b": {"est_params": Two("e", Two("e", "e"))}}, {"b"}),
    "a dataclass": (Model("l", Cut(Two("e", "e"))), {"boundary"}),
    "nodes without names": ({"b": Unnamed(cut("e"), "l", cut("e"))}, {"b/0", "b/2"}),
    "a list": ({"blocks": ["l", cut("e"), cut("e")]}, {"blocks/1", "blocks/2"}),
    "a key with a slash": ({"a/b": cut("e"), "a": {"b": cut("e", "e")}}, {"['a/b']", "['a']['b']"}),
    "numbers and their names": ({"a": [cut("e")], "b": {0: cut("e")}}, {"a/0", "b/0"}),
    "a list and a dict": ({"a/0": cut("e"), "a": [cut("e")]}, {"['a/0']", "['a'][0]"}),
    "in blocks": ({"block_1": {"Boundary_0": cut("e"), "Dense_0": "l"}}, {"block_1/Boundary_0"}),
    "a boundary alone": (cut("e"), {""}),
    "frozen": (flax.core.freeze({"feedback": "l", "b": cut("e")}), {"b"}),
    "with nothing in places": ({"a": None, "b": {"est_params": {"w": "e", "v": None}}, "c": {}}, {"b"}),
    "without parameters": ({"a": "l", "b": {"est_params": {}}}, set()),
    "est_params within est_params": ({"b": {"est_params": {"est_params": "e", "a": "e"}}}, {"b"}),
}


@pytest.mark.parametrize("name", TREES)
def test_each_parameter_is_moved_by_the_optimizer_it_belongs_to(name):
    owners, paths = TREES[name]
    numbers = iter(range(1, 10))
    gradient = jax.tree.map(lambda _: jnp.full(2, float(next(numbers))), owners)
    params = jax.tree.map(jnp.ones_like, gradient)
    tx = decoupled.split_optimizer(optax.trace(0.5), optax.sgd(0.25))
    state = tx.init(params)
    assert state.estimators.keys() == paths
    _, state = tx.update(gradient, state, params)
    updates, state = tx.update(gradient, state, params)
    # Momentum, by its definition: the second update is of 1.5 gradients.
    by_hand = {"l": 1.5, "e": -0.25, "f": 0.0}
    chex.assert_trees_all_close(updates, jax.tree.map(lambda o, g: by_hand[o] * g, owners, gradient))
    assert state.estimators.keys() == paths
    each = dict.fromkeys(paths, optax.sgd(0.25))
    updates, _ = decoupled.split_optimizer(optax.trace(0.5), each).update(gradient, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_boundaries_with_attributes_for_keys_keep_their_own_states():
    params = Two({"cut": cut(jnp.ones(2))}, {"cut": cut(jnp.ones(3))})
    gradient = Two({"cut": cut(jnp.full(2, 0.1))}, {"cut": cut(jnp.full(3, -7.0))})
    adam = optax.scale_by_adam()
    tx = decoupled.split_optimizer(optax.sgd(1.0), adam)
    state, own = tx.init(params), [adam.init(p) for p in params]
    for _ in range(3):
        updates, state = tx.update(gradient, state, params)
        by_hand = [adam.update(g, s, p) for g, s, p in zip(gradient, own, params, strict=True)]
        own = [s for _, s in by_hand]
        chex.assert_trees_all_close(updates, Two(*(u for u, _ in by_hand)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.feedback = nnx.Linear(5, 4, rngs=rngs)
        sg = estimators.linear(CONTEXT)
        self.cuts = nnx.List([decoupled.NNXBoundary(sg, 4, rngs=rngs) for _ in range(2)])
        direct = estimators.direct_feedback_alignment(helpers.CLASSES)
        self.fixed = decoupled.NNXBoundary(direct, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x, y):
        h = self.norm(self.feedback(x))
        for boundary in self.cuts:
            h = boundary(h, y)
        return h


@pytest.mark.parametrize("given", ["model", "state", "gradients of a model", "nnx.Optimizer"])
def test_an_nnx_model_and_its_state_are_alike(given):
    x, y = helpers.batch()
    model = Nnx(nnx.Rngs(0))
    model.norm.use_running_average = True
    gradient = nnx.grad(lambda m: jnp.square(m(x, y)).mean())(model)
    before, g = nnx.to_pure_dict(nnx.state(model)), nnx.to_pure_dict(gradient)
    tx = decoupled.split_optimizer(optax.sgd(1.0), optax.sgd(0.5))
    if given == "nnx.Optimizer":
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        optimizer.update(model, gradient)
    else:
        params = nnx.state(model, nnx.Param) if given == "state" else model
        state = tx.init(params)
        assert state.estimators.keys() == {"cuts/0", "cuts/1"}
        if given == "gradients of a model":
            graph, *parts = nnx.split(model, nnx.Param, ...)
            updates, _ = tx.update(nnx.merge(graph, gradient, parts[1]), state, model)
            moved = optax.apply_updates(model, updates)
            nnx.update(model, nnx.state(moved))
        else:
            updates, _ = tx.update(gradient, state, params)
            nnx.update(model, optax.apply_updates(nnx.state(model, nnx.Param), updates))
    after = nnx.to_pure_dict(nnx.state(model))
    step = jax.tree.map(jnp.subtract, before, after)
    chex.assert_trees_all_close(step["feedback"], g["feedback"], atol=1e-6)
    for i in range(2):
        by_hand = jax.tree.map(lambda w: 0.5 * w, g["cuts"][i])
        chex.assert_trees_all_close(step["cuts"][i], by_hand, atol=1e-6)
    assert np.any(g["cuts"][1]["est_params"]["c"])
    chex.assert_trees_all_equal(after["fixed"], before["fixed"])
    chex.assert_trees_all_equal(after["norm"]["mean"], before["norm"]["mean"])


def test_an_optimizer_by_parameters_names_finds_them_however_they_are_held():
    x, y = helpers.batch()
    sg = estimators.mean_teacher(helpers.CLASSES, hidden=(3,))
    est_params = sg.init(KEY, x, y)
    gradient = jax.tree.map(jnp.ones_like, est_params)
    own = sg.optimizer(optax.sgd(1.0))
    expected, _ = own.update(gradient, own.init(est_params))
    tx = decoupled.split_optimizer(optax.sgd(1.0), own)
    frozen = flax.core.freeze({"cut": {"est_params": est_params}})
    model = decoupled.NNXBoundary(sg, x.shape[1], rngs=nnx.Rngs(0))
    for params in (frozen, nnx.state(model, nnx.Param), model):
        updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        chex.assert_trees_all_close(jax.tree.leaves(updates), jax.tree.leaves(expected))


def test_what_an_update_leaves_out_keeps_its_state_and_what_init_has_not_seen_is_refused():
    params = {"a": cut(jnp.ones(2)), "b": cut(jnp.ones(2)), "c": jnp.ones(2)}
    tx = decoupled.split_optimizer(optax.sgd(1.0), optax.adam(0.1))
    state = tx.init(params)
    _, new = tx.update({**params, "b": None}, state, {**params, "b": None})
    chex.assert_trees_all_equal(new.estimators["b"], state.estimators["b"])
    assert new.estimators["a"][0].count == 1
    with pytest.raises(decoupled.UsageError, match=r"gradients of the boundaries \['d'\], .* \['a', 'b'\]"):
        tx.update({**params, "d": cut(jnp.ones(2))}, state)

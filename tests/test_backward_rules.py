"""Feedback Alignment on Linen models that know nothing of it, against backprop and matrices by hand."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import decoupled
from decoupled import estimators, feedback_alignment, losses, sign_symmetric
from tests import helpers

KEY = jax.random.key(0)


class Network(nn.Module):
    """A model as anyone writes it, with layers made in `setup` and inline."""

    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.conv = nn.Conv(3, (3, 3), strides=2, dtype=self.dtype)
        self.hidden = nn.Dense(6, dtype=self.dtype)
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.output = nn.Dense(helpers.CLASSES, use_bias=False, dtype=self.dtype)

    def __call__(self, x):
        h = nn.relu(self.conv(x))
        h = nn.relu(self.norm(self.hidden(h.reshape(h.shape[0], -1))))
        return self.output(inputs=h)


def images():
    rng = np.random.default_rng(0)
    _, y = helpers.batch()
    return jnp.asarray(rng.normal(size=(8, 4, 4, 2)), jnp.float32), y


def init(rule, model, x, key=KEY):
    with nn.intercept_methods(rule):
        return model.init(key, x)


def gradient_of(rule, model, variables, x, y):
    def loss(params):
        with nn.intercept_methods(rule):
            logits = model.apply({**variables, "params": params}, x)
        return losses.softmax_cross_entropy(logits, y).mean()

    return jax.jit(jax.grad(loss))(variables["params"])


@pytest.mark.parametrize("rule", [feedback_alignment, sign_symmetric])
def test_parameters_and_forward_pass_stay_what_they_were(rule):
    x, _ = images()
    variables = init(rule, Network(), x)
    plain = Network().init(KEY, x)
    chex.assert_trees_all_equal_shapes(variables["params"], plain["params"])
    feedback, kernels = variables["feedback"], plain["params"]
    assert feedback.keys() == {"conv", "hidden", "output"}
    for name, layer in feedback.items():
        assert layer["kernel"].shape == kernels[name]["kernel"].shape
        assert not np.allclose(layer["kernel"], variables["params"][name]["kernel"])
    chex.assert_trees_all_equal(init(rule, Network(), x), variables)
    with nn.intercept_methods(rule):
        ruled = Network().apply(variables, x)
    np.testing.assert_array_equal(ruled, Network().apply({"params": variables["params"]}, x))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rule", [feedback_alignment, sign_symmetric])
def test_with_b_equal_to_w_it_is_backprop(rule, dtype):
    """Oracle 3."""
    x, y = images()
    model = Network(dtype)
    variables = init(rule, model, x)
    kernels = {name: {"kernel": variables["params"][name]["kernel"]} for name in variables["feedback"]}

    def loss(params):
        return losses.softmax_cross_entropy(model.apply({"params": params}, x), y).mean()

    expected = jax.jit(jax.grad(loss))(variables["params"])
    symmetric = {**variables, "feedback": kernels}
    chex.assert_trees_all_close(gradient_of(rule, model, symmetric, x, y), expected, atol=1e-6)
    other = gradient_of(rule, model, variables, x, y)
    chex.assert_trees_all_close(other["output"], expected["output"], atol=1e-6)
    for below in ("conv", "hidden"):
        assert not np.allclose(other[below]["kernel"], expected[below]["kernel"], atol=1e-4)


@pytest.mark.parametrize("rule", [feedback_alignment, sign_symmetric])
def test_two_dense_layers_by_hand(rule):
    x, y = helpers.batch()
    model = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(helpers.CLASSES)])
    variables = init(rule, model, x)
    actual = gradient_of(rule, model, variables, x, y)
    first, last = "layers_0", "layers_2"
    a, b = (np.asarray(variables["params"][name]["kernel"], np.float64) for name in (first, last))
    B = np.asarray(variables["feedback"][last]["kernel"], np.float64)
    back = np.sign(b) * np.abs(B) if rule is sign_symmetric else B
    h = np.tanh(np.asarray(x, np.float64) @ a)
    logits = h @ b
    error = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[np.asarray(y)]
    np.testing.assert_allclose(actual[last]["kernel"], h.T @ error / 8, atol=1e-5)
    signal = (error @ back.T) * (1 - h**2)
    np.testing.assert_allclose(actual[first]["kernel"], x.T @ signal / 8, atol=1e-5)
    np.testing.assert_allclose(actual[first]["bias"], signal.mean(0), atol=1e-5)


def test_direct_feedback_on_one_hidden_layer_is_feedback_alignment():
    """Oracle 3."""
    x, y = helpers.batch()
    layers = decoupled.models.mlp(1, 4, helpers.CLASSES)
    ruled = [decoupled.with_backward_rule(layer, feedback_alignment) for layer in layers]
    aligned = helpers.make_learner(ruled, estimators.backprop())
    state = jax.jit(aligned.init)(KEY, x, y)
    expected, _ = jax.jit(aligned.update)(state, x, y, KEY)
    direct = helpers.make_learner(layers, estimators.direct_feedback_alignment(helpers.CLASSES))
    start = jax.jit(direct.init)(KEY, x, y)
    B = state.modules[1].state["feedback"]["Dense_0"]["kernel"].T
    start = start._replace(
        modules=tuple(
            m._replace(params=own.params) for m, own in zip(start.modules, state.modules, strict=True)
        ),
        estimators=(start.estimators[0]._replace(params={"B": B}),),
    )
    actual, _ = jax.jit(direct.update)(start, x, y, KEY)
    for a, b in zip(actual.modules, expected.modules, strict=True):
        chex.assert_trees_all_close(a.params, b.params, atol=1e-6)
    chex.assert_trees_all_equal(
        [m.state["feedback"] for m in expected.modules], [m.state["feedback"] for m in state.modules]
    )


@pytest.mark.parametrize("lift", ["scan", "remat"])
def test_lifted_layers(lift):
    x, _ = helpers.batch()

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, h, _):
            return nn.tanh(nn.Dense(5)(h)), None

    def stack(lifted):
        class Stack(nn.Module):
            @nn.compact
            def __call__(self, h):
                if lifted and lift == "scan":
                    axes = {"params": 0, "feedback": 0}
                    scan = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=2)
                    return scan(name="layers")(h, None)[0]
                for i in range(2):
                    h, _ = (nn.remat(Layer) if lifted else Layer)(name=f"layer_{i}")(h, None)
                return h

        return Stack()

    variables = init(feedback_alignment, stack(True), x)
    looped = variables
    if lift == "scan":
        looped = {
            collection: {f"layer_{i}": jax.tree.map(lambda w, i=i: w[i], tree["layers"]) for i in range(2)}
            for collection, tree in variables.items()
        }

    def gradient(model, variables):
        def loss(params):
            with nn.intercept_methods(feedback_alignment):
                return jnp.square(model.apply({**variables, "params": params}, x)).mean()

        return jax.jit(jax.grad(loss))(variables["params"])

    actual, expected = gradient(stack(True), variables), gradient(stack(False), looped)
    if lift == "scan":
        expected = {"layers": jax.tree.map(lambda *w: jnp.stack(w), *expected.values())}
    chex.assert_trees_all_close(actual, expected, atol=1e-6)


def test_many_devices_equal_one():
    x, y = helpers.batch()

    def make(axis_name=None):
        ruled = [
            decoupled.with_backward_rule(m, feedback_alignment) for m in helpers.mlp_modules(norm="layer")
        ]
        return helpers.make_learner(ruled, estimators.backprop(), axis_name=axis_name)

    state = jax.jit(make().init)(KEY, x, y)
    expected, _ = jax.jit(make().update)(state, x, y, KEY)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(
        lambda *a: make("data").update(*a)[0],
        mesh=mesh,
        in_specs=(P(), P("data"), P("data"), P()),
        out_specs=P(),
    )
    chex.assert_trees_all_close(jax.jit(sharded)(state, x, y, KEY), expected, rtol=1e-5, atol=1e-6)
    mapped = jax.pmap(make("data").update, axis_name="data", in_axes=(None, 0, 0, None))
    new, _ = mapped(state, x.reshape(2, 4, 5), y.reshape(2, 4), KEY)
    chex.assert_trees_all_close(jax.tree.map(lambda w: w[1], new), expected, rtol=1e-5, atol=1e-6)

    def plain_gradient(variables, x, y):
        return jax.tree.map(lambda g: g / 2, gradient_of(feedback_alignment, nn.Dense(3), variables, x, y))

    variables = init(feedback_alignment, nn.Dense(3), x)
    split = jax.shard_map(plain_gradient, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())
    expected = gradient_of(feedback_alignment, nn.Dense(3), variables, x, y)
    chex.assert_trees_all_close(jax.jit(split)(variables, x, y), expected, rtol=1e-5, atol=1e-6)


def test_attention_and_sharded_kernels_are_covered():
    """DenseGeneral's kernels have more axes; partitioned ones come in a box."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)), jnp.float32)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, h):
            h = h + nn.MultiHeadDotProductAttention(num_heads=2)(h)
            kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "data"))
            return nn.Dense(4, kernel_init=kernel_init)(nn.tanh(h))

    variables = nn.meta.unbox(init(feedback_alignment, Model(), x))
    attention = variables["feedback"]["MultiHeadDotProductAttention_0"]
    assert attention.keys() == {"query", "key", "value", "out"}
    boxed = init(feedback_alignment, Model(), x)
    assert isinstance(boxed["params"]["Dense_0"]["kernel"], nn.Partitioned)

    def gradient(variables, rule=None):
        def loss(params):
            if rule is None:
                return jnp.square(Model().apply({"params": params}, x)).mean()
            with nn.intercept_methods(rule):
                return jnp.square(Model().apply({**variables, "params": params}, x)).mean()

        return nn.meta.unbox(jax.jit(jax.grad(loss))(variables["params"]))

    def kernels(tree):
        return {k: kernels(v) for k, v in tree.items() if k != "bias"} if isinstance(tree, dict) else tree

    symmetric = {**variables, "feedback": kernels(variables["params"])}
    chex.assert_trees_all_close(gradient(symmetric, feedback_alignment), gradient(variables), atol=1e-5)
    ruled = gradient(boxed, feedback_alignment)
    chex.assert_trees_all_close(ruled, gradient(variables, feedback_alignment), atol=1e-6)
    assert not np.allclose(
        *(g["MultiHeadDotProductAttention_0"]["out"]["kernel"] for g in (ruled, gradient(variables))),
        atol=1e-3,
    )


@pytest.mark.parametrize("name", ["probe", "mlp"])
def test_estimators_own_layers_are_left_alone(name):
    x, y = helpers.batch()
    estimator = helpers.every_method()[name]

    class Model(nn.Module):
        @nn.compact
        def __call__(self, h, y):
            return nn.Dense(3)(decoupled.Boundary(estimator)(nn.tanh(nn.Dense(4)(h)), y))

    variables = jax.tree.map(lambda w: w + 0.1, jax.jit(lambda: init_with_rule(Model(), x, y))())
    assert variables["feedback"].keys() == {"Dense_0", "Dense_1"}

    def loss(params):
        return jnp.square(Model().apply({**variables, "params": params}, x, y)).mean()

    with nn.intercept_methods(feedback_alignment):  # around all of the differentiation
        actual = jax.jit(jax.grad(loss))(variables["params"])
    expected = jax.jit(jax.grad(loss))(variables["params"])
    # Below the boundary no rule has any effect: the estimate is what it was.
    chex.assert_trees_all_close(actual["Dense_0"], expected["Dense_0"], atol=1e-6)


def init_with_rule(model, *arguments):
    with nn.intercept_methods(feedback_alignment):
        return model.init(KEY, *arguments)


def test_a_rule_that_cannot_act_is_refused():
    x, _ = helpers.batch()
    plain = decoupled.from_functions(
        lambda key, h: {"w": jnp.ones((5, 3))}, lambda p, h: h @ p["w"], "mine"
    )
    with pytest.raises(decoupled.UsageError, match=r"module mine: .* it has none: make it with from_linen"):
        decoupled.with_backward_rule(plain, feedback_alignment).init(KEY, x)
    pooling = decoupled.from_functions(lambda key, h: {}, lambda p, h: h[:, ::2], "pool")
    decoupled.with_backward_rule(pooling, feedback_alignment).init(KEY, x)


def test_missing_feedback_is_told_by_layer():
    x, y = images()
    plain = Network().init(KEY, x)
    with pytest.raises(decoupled.UsageError, match="layer conv: its feedback weights are missing"):
        gradient_of(feedback_alignment, Network(), plain, x, y)


def test_vmap_over_networks():
    x, y = helpers.batch()
    model = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])
    keys = jax.random.split(KEY, 2)
    variables = jax.vmap(partial(init, feedback_alignment, model, x))(keys)
    grads = jax.vmap(lambda v: gradient_of(feedback_alignment, model, v, x, y))(variables)
    for i in range(2):
        alone = jax.tree.map(lambda w, i=i: w[i], variables)
        expected = gradient_of(feedback_alignment, model, alone, x, y)
        chex.assert_trees_all_close(jax.tree.map(lambda g, i=i: g[i], grads), expected, atol=1e-6)

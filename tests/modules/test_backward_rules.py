"""Feedback Alignment on Linen models that know nothing of it, against backprop and matrices by hand."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
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
    state = aligned.init(KEY, x, y)
    expected, _ = jax.jit(aligned.update)(state, x, y, KEY)
    direct = helpers.make_learner(layers, estimators.direct_feedback_alignment(helpers.CLASSES))
    start = direct.init(KEY, x, y)
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

    state = make().init(KEY, x, y)
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


class Own(nn.Module):
    """A kernel of one's own, between layers that a rule knows or not."""

    known: bool = True

    @nn.compact
    def __call__(self, x):
        h = nn.tanh(nn.Dense(4)(x)) if self.known else x
        h = h @ self.param("mine", nn.initializers.ones, (h.shape[-1], 4))
        h = nn.LayerNorm()(nn.Einsum((4, 4), "bi,ij->bj")(h))
        return nn.Dense(3, name="feedback")(h) if self.known else h


def test_init_says_which_layers_it_met_and_which_stay_exact(caplog):
    x, y = helpers.batch()
    with caplog.at_level("INFO", "absl"):
        init(feedback_alignment, Network(), images()[0])
        variables = init(feedback_alignment, Own(), x)
        module = decoupled.from_linen(nn.Dense(2), "hidden_0")
        decoupled.with_backward_rule(module, feedback_alignment).init(KEY, x)
    every, some, of_a_module = caplog.records
    assert of_a_module.getMessage().endswith("these layers of hidden_0, Dense: Dense")
    assert every.levelname == "INFO"
    assert every.getMessage().endswith("these layers of Network: conv, hidden, output")
    assert some.levelname == "WARNING"
    assert "layers of Own: Dense_0, feedback; signals pass back exactly through" in some.getMessage()
    assert some.getMessage().endswith(" Einsum_0/kernel, mine")
    # And so they do: with feedback that is the kernel of the known layers, all is backprop.
    known = {name: {"kernel": variables["params"][name]["kernel"]} for name in ("Dense_0", "feedback")}
    actual = gradient_of(feedback_alignment, Own(), {**variables, "feedback": known}, x, y)

    def loss(params):
        return losses.softmax_cross_entropy(Own().apply({"params": params}, x), y).mean()

    chex.assert_trees_all_close(actual, jax.jit(jax.grad(loss))(variables["params"]), atol=1e-6)


def test_each_line_is_told_once_and_in_a_plain_script_too(capsys):
    x, y = helpers.batch()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)  # absl's default
    try:
        modules = [decoupled.from_linen(nn.Dense(3), name) for name in ("first", "second")]
        ruled = [decoupled.with_backward_rule(module, feedback_alignment) for module in modules]
        learner = helpers.make_learner(ruled, estimators.backprop())
        jax.eval_shape(lambda key: learner.init(key, x, y), KEY)  # as a rehearsal does
        learner.init(KEY, x, y)
    finally:
        logging.set_verbosity(verbosity)
    assert capsys.readouterr().err.splitlines() == [
        f"a backward rule acts on these layers of {name}, Dense: Dense" for name in ("first", "second")
    ]


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (nn.Einsum((5, 4), "bi,ij->bj"), "kernel"),
        (Own(known=False), "Einsum_0/kernel, mine"),
        (nn.RNN(nn.OptimizedLSTMCell(2)), "cell/hf/kernel, cell/hg/kernel"),
    ],
)
def test_a_rule_that_acts_on_no_layer_is_refused(model, left):
    x, _ = helpers.batch()
    h = x[None] if isinstance(model, nn.RNN) else x
    with pytest.raises(decoupled.UsageError, match=f"{type(model).__name__} has none: .* exactly .*{left}"):
        init(feedback_alignment, model, h)
    ruled = decoupled.with_backward_rule(decoupled.from_linen(model, "mine"), sign_symmetric)
    with pytest.raises(decoupled.UsageError, match=r"^module mine: a backward rule acts on") as raised:
        ruled.init(KEY, h)
    assert "\n" not in str(raised.value)


def test_a_state_that_is_called_feedback_is_no_feedback():
    """The word in a path of one's own is not the collection."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.SpectralNorm(nn.Einsum((5, 4), "bi,ij->bj"), name="feedback")(x, update_stats=False)

    x, _ = helpers.batch()
    ruled = decoupled.with_backward_rule(decoupled.from_linen(Model()), feedback_alignment)
    with pytest.raises(decoupled.UsageError, match="Model has none"):
        ruled.init(KEY, x)
    own = decoupled.from_functions(lambda key, h: jnp.ones((5, 3)), lambda p, h: h @ p, "own")
    pair = decoupled.compose([own, decoupled.from_linen(nn.Dense(3))])
    _, state = decoupled.with_backward_rule(pair, feedback_alignment).init(KEY, x)
    assert state[1]["feedback"].keys() == {"kernel"}


def test_layers_through_which_no_signal_passes_need_no_rule(caplog):
    tokens = jnp.zeros((2, 3), jnp.int32)
    for model in (nn.Embed(4, 5), nn.LayerNorm()):
        h = tokens if isinstance(model, nn.Embed) else jnp.ones((2, 3))
        ruled = decoupled.with_backward_rule(decoupled.from_linen(model), feedback_alignment)
        assert "feedback" not in ruled.init(KEY, h).state
    assert not caplog.records


def test_a_part_of_a_model_is_told_of_but_not_refused(caplog):
    class Coder(nn.Module):
        def setup(self):
            self.first, self.second = nn.Einsum((5, 4), "bi,ij->bj"), nn.Dense(3)

        def encode(self, x):
            return self.first(x)

        def __call__(self, x):
            return self.second(self.encode(x))

    x, _ = helpers.batch()
    with nn.intercept_methods(feedback_alignment):
        Coder().init(KEY, x, method="encode")
    (record,) = caplog.records
    assert "but Coder has none: signals pass back exactly through first/kernel" in record.getMessage()


class Scanned(nn.Module):
    """A recurrent network by `nn.scan`, as `nn.RNN` is."""

    broadcast: Any = ("params",)

    @nn.compact
    def __call__(self, x):
        options = {"variable_broadcast": self.broadcast, "split_rngs": {"params": False}}
        scan = nn.scan(nn.SimpleCell, in_axes=1, out_axes=1, **options)
        return scan(4, name="cell")(jnp.zeros((len(x), 4)), x)[1]


@pytest.mark.parametrize("kind", ["RNN", "scan"])
def test_a_recurrent_network_that_hands_feedback_on_is_its_steps_one_by_one(kind):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    both = ("params", "feedback")
    model = nn.RNN(nn.SimpleCell(4), variable_broadcast=both) if kind == "RNN" else Scanned(both)
    variables = init(feedback_alignment, model, x)
    assert variables["feedback"]["cell"].keys() == {"i", "h"}

    def unrolled(params):
        own = {"params": params["cell"], "feedback": variables["feedback"]["cell"]}
        carry, out = jnp.zeros((2, 4)), []
        for t in range(3):
            carry, h = nn.SimpleCell(4).apply(own, carry, x[:, t])
            out.append(h)
        return jnp.stack(out, axis=1)

    def gradient(outputs, rule):
        def loss(params):
            with nn.intercept_methods(rule):
                return jnp.square(outputs(params)).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    def scanned(params):
        return model.apply({**variables, "params": params}, x)

    expected = gradient(unrolled, feedback_alignment)
    chex.assert_trees_all_close(gradient(scanned, feedback_alignment), expected, atol=1e-5)

    def pass_on(next_fun, args, kwargs, context):
        return next_fun(*args, **kwargs)

    exact = gradient(scanned, pass_on)
    assert not np.allclose(exact["cell"]["h"]["kernel"], expected["cell"]["h"]["kernel"], atol=1e-2)


class Vmapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})(4)(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.RNN(nn.SimpleCell(4)), r"layer cell/i: what is around .* nn\.RNN\(cell, variable_broadcast="),
        (nn.RNN(nn.LSTMCell(4)), "layer cell/ii: what is around it does not hand on the collection 'feedb"),
        (
            Scanned(),
            "layer cell/i: what is around it does not hand on the collection 'feedback': name that",
        ),
        (Vmapped(), "layer VmapDense_0: what is around it does not hand on the collection 'feedback'"),
        (nn.WeightNorm(nn.Dense(4)), "layer WeightNorm: WeightNorm maps all variables .* leave one of the"),
        (nn.Sequential([nn.WeightNorm(nn.Dense(4))]), "layer layers_0: WeightNorm maps all variables"),
        (nn.SpectralNorm(nn.Dense(4)), "layer SpectralNorm: SpectralNorm maps all variables of the layer"),
    ],
)
def test_what_is_around_a_layer_and_keeps_feedback_from_it_is_named(model, message):
    x = jnp.ones((2, 3, 5))
    module = decoupled.with_backward_rule(decoupled.from_linen(model), feedback_alignment)
    with pytest.raises(decoupled.UsageError, match=message) as raised:
        module.init(KEY, x)
    assert "\n" not in str(raised.value)

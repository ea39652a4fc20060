"""Boundaries in models that people write: batch norm, dropout, evaluation, scans, rematerialisation."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import decoupled
from decoupled import Boundary, NNXBoundary, estimators, losses
from tests import helpers

KEY = jax.random.key(0)
CONTEXT = estimators.one_hot(helpers.CLASSES)
LINEAR = estimators.linear(CONTEXT)
DIRECT = estimators.direct_feedback_alignment(helpers.CLASSES)


class Network(nn.Module):
    """An MLP; with `estimator` None it is what it was before anyone thought of boundaries."""

    estimator: decoupled.Estimator | None = None
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x, y=None, error=None, train=False, use_estimate=True):
        h = x
        for i in range(2):
            h = nn.Dense(4, name=f"dense_{i}")(h)
            h = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"norm_{i}")(h))
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
            if self.estimator is not None:
                name = f"cut_{i}"
                h = Boundary(self.estimator, name=name)(h, y, error, use_estimate=use_estimate)
        return nn.Dense(helpers.CLASSES, name="output")(h)


def loss_of(model, params, rest, x, y, **options):
    logits, state = model.apply(
        {"params": params, **rest},
        x,
        y,
        train=True,
        rngs={"dropout": jax.random.key(1)},
        mutable=["batch_stats"],
        **options,
    )
    return losses.softmax_cross_entropy(logits, y).mean(), state


def without_boundaries(tree):
    return {name: value for name, value in tree.items() if not name.startswith("cut")}


def test_one_grad_call_gives_all_gradients_and_batch_statistics_as_before():
    x, y = helpers.batch()
    decoupled_model, plain = Network(LINEAR), Network()
    variables = decoupled_model.init(KEY, x, y)
    params, stats = variables["params"], variables["batch_stats"]
    grad = jax.jit(jax.grad(partial(loss_of, decoupled_model), has_aux=True))
    gradient, state = grad(params, {"batch_stats": stats}, x, y)
    expected, expected_state = jax.jit(jax.grad(partial(loss_of, plain), has_aux=True))(
        without_boundaries(params), {"batch_stats": stats}, x, y
    )
    chex.assert_trees_all_close(state, expected_state, atol=1e-6)
    # An estimator starts at zero: exactly nothing below the boundary, the truth above the last one.
    for name in ("dense_0", "norm_0", "dense_1", "norm_1"):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient[name]))
    chex.assert_trees_all_close(gradient["output"], expected["output"], atol=1e-6)
    # The boundary above learns at once; what stands below an untrained one has no target yet.
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["cut_1"]["est_params"]))


def test_evaluation_needs_no_labels_and_is_what_it_was():
    x, y = helpers.batch()
    variables = Network(LINEAR).init(KEY, x, y)
    plain = {**variables, "params": without_boundaries(variables["params"])}
    np.testing.assert_array_equal(Network(LINEAR).apply(variables, x), Network().apply(plain, x))


def test_init_without_labels_takes_them_to_be_integers():
    x, y = helpers.batch()
    chex.assert_trees_all_equal(Network(LINEAR).init(KEY, x), Network(LINEAR).init(KEY, x, y))


def test_a_fixed_matrix_lives_beside_the_parameters_and_is_reproducible():
    x, y = helpers.batch()
    model = Network(DIRECT, dropout=0.0)
    variables = model.init(KEY, x)
    assert variables["feedback"]["cut_0"]["est_params"]["B"].shape == (helpers.CLASSES, 4)
    chex.assert_trees_all_equal(model.init(KEY, x), variables)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    assert not any(name.startswith("cut") for name in params)

    def with_error(params):
        logits, _ = model.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
        error = losses.output_error(losses.softmax_cross_entropy, logits, y)[1]
        return loss_of(model, params, rest, x, y, error=error)[0]

    gradient = jax.grad(with_error)(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["dense_0"]["kernel"]))
    missing = "boundary cut_0: the fixed parameters of direct_feedback_alignment are missing"
    with pytest.raises(decoupled.UsageError, match=missing):
        model.apply({"params": params, "batch_stats": rest["batch_stats"]}, x)


def test_an_estimator_without_parameters_adds_no_collection():
    x, _ = helpers.batch()
    assert set(Network(estimators.kickback()).init(KEY, x)) == {"params", "batch_stats"}


def test_mistakes_name_the_boundary_by_its_path():
    x, y = helpers.batch()
    model = Network(LINEAR)
    variables = model.init(KEY, x, y)

    def loss(params, x, y):
        return model.apply({**variables, "params": params}, x, y).sum()

    message = "boundary cut_1: linear sees the labels, but was given none"
    with pytest.raises(decoupled.UsageError, match=message):
        jax.grad(loss)(variables["params"], x, None)
    direct = Network(DIRECT)
    variables = direct.init(KEY, x, y)
    with pytest.raises(decoupled.UsageError, match=r"boundary cut_1: direct.* none has reached it"):
        jax.grad(lambda p: direct.apply({**variables, "params": p}, x, y).sum())(variables["params"])
    continuous = Network(estimators.linear(estimators.as_given))
    with pytest.raises(decoupled.UsageError, match=r"^boundary cut_0: .* int32.*no y was given .* pass it"):
        continuous.init(KEY, x)
    variables = continuous.init(KEY, x, jnp.ones((8, 1)))
    message = r"boundary cut_1: .*labels \(8, 7\): they are B \(1, 4\) where B \(7, 4\) is needed"
    with pytest.raises(decoupled.UsageError, match=message):
        jax.grad(lambda p: continuous.apply({**variables, "params": p}, x, jnp.ones((8, 7))).sum())(
            variables["params"]
        )
    assert continuous.apply(variables, x, jnp.ones((8, 7))).shape == (8, 3)  # no gradient, no question
    with pytest.raises(decoupled.UsageError, match=r"boundary Boundary: a convolutional .* \(8, 5\)"):
        Boundary(estimators.convolutional(context=CONTEXT)).init(KEY, x, y)


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, y):
        return Boundary(LINEAR)(nn.tanh(nn.Dense(5)(h)), y), None


@pytest.mark.parametrize("lift", ["scan", "remat"])
def test_lifted_transformations(lift):
    """A scan over layers keeps one estimator a layer; rematerialisation changes no gradient."""
    x, y = helpers.batch()

    class Stack(nn.Module):
        lifted: bool

        @nn.compact
        def __call__(self, h, y):
            if lift == "scan" and self.lifted:
                block = nn.scan(
                    Block,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=nn.broadcast,
                    length=3,
                )
                return block(name="layers")(h, y)[0]
            block = nn.remat(Block) if self.lifted else Block
            for i in range(3):
                h, _ = block(name=f"layer_{i}")(h, y)
            return h

    def gradient(lifted, params):
        def loss(params):
            return jnp.square(Stack(lifted).apply({"params": params}, x, y)).sum(1).mean()

        return jax.jit(jax.grad(loss))(params)

    params = Stack(lifted=False).init(KEY, x, y)["params"]
    params = jax.tree.map(lambda w: w + 0.1, params)
    expected = gradient(False, params)
    if lift == "scan":
        stack = lambda trees: {"layers": jax.tree.map(lambda *w: jnp.stack(w), *trees)}  # noqa: E731
        params, expected = (stack([t[f"layer_{i}"] for i in range(3)]) for t in (params, expected))
    chex.assert_trees_all_close(gradient(True, params), expected, atol=1e-6)


@pytest.mark.parametrize("estimator", [LINEAR, DIRECT], ids=["trained", "fixed"])
def test_linen_boundaries_on_two_devices(estimator):
    x, y = helpers.batch()
    model = Network(estimator, dropout=0.0)
    variables = model.init(KEY, x, y)
    params = jax.tree.map(lambda w: w + 0.1, variables["params"])
    rest = {name: value for name, value in variables.items() if name != "params"}

    def gradient(params, rest, x, y):
        def loss(params):
            logits = model.apply({"params": params, **rest}, x)
            error = losses.output_error(losses.softmax_cross_entropy, logits, y)[1]
            logits = model.apply({"params": params, **rest}, x, y, error)
            return losses.softmax_cross_entropy(logits, y).mean()

        return jax.grad(loss)(params)

    expected = jax.jit(gradient)(params, rest, x, y)
    halves = x.reshape(2, 4, 5), y.reshape(2, 4)
    mapped = jax.pmap(
        lambda *a: jax.lax.pmean(gradient(*a), "data"), axis_name="data", in_axes=(None, None, 0, 0)
    )(params, rest, *halves)
    chex.assert_trees_all_close(jax.tree.map(lambda g: g[1], mapped), expected, rtol=1e-4, atol=1e-5)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    summed = jax.shard_map(
        lambda *a: jax.tree.map(lambda g: g / 2, gradient(*a)),
        mesh=mesh,
        in_specs=(P(), P(), P("data"), P("data")),
        out_specs=P(),
    )
    sharded = jax.jit(summed)(params, rest, x, y)
    chex.assert_trees_all_close(sharded, expected, rtol=1e-4, atol=1e-5)


class NNXNetwork(nnx.Module):
    def __init__(self, estimator, rngs):
        self.dense = nnx.Linear(5, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.boundary = NNXBoundary(estimator, 4, rngs=rngs, name="first")
        self.output = nnx.Linear(4, helpers.CLASSES, rngs=rngs)

    def __call__(self, x, y=None, error=None):
        h = self.dropout(nnx.relu(self.norm(self.dense(x))))
        return self.output(self.boundary(h, y, error))


def nnx_loss(model, x, y, error=None):
    return losses.softmax_cross_entropy(model(x, y, error), y).mean()


def test_nnx_boundary_equals_the_primitive():
    x, y = helpers.batch()
    model = NNXNetwork(LINEAR, nnx.Rngs(0))
    for name in "ABc":
        variable = model.boundary.est_params[name]
        variable[...] = 0.1 + variable[...]
    model.eval()
    gradient = nnx.jit(nnx.grad(nnx_loss))(model, x, y)
    est_params = {name: model.boundary.est_params[name][...] for name in "ABc"}

    def plain(kernel, est_params):
        h = nnx.relu(model.norm(x @ kernel))
        h = decoupled.boundary(LINEAR, est_params, h, y)
        return losses.softmax_cross_entropy(model.output(h), y).mean()

    expected = jax.grad(plain, (0, 1))(model.dense.kernel[...], est_params)
    np.testing.assert_allclose(gradient["dense"]["kernel"][...], expected[0], atol=1e-6)
    for name in "ABc":
        actual = gradient["boundary"]["est_params"][name][...]
        np.testing.assert_allclose(actual, expected[1][name], atol=1e-6)


def test_nnx_models_train_and_evaluate():
    x, y = helpers.batch(size=32)
    model = NNXNetwork(LINEAR, nnx.Rngs(0))
    tx = decoupled.split_optimizer(optax.adam(0.02), optax.adam(0.02))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(nnx_loss)(model, x, y)
        optimizer.update(model, gradient)
        return loss

    values = [float(step(model, optimizer)) for _ in range(150)]
    assert np.mean(values[-20:]) < 0.75 * np.mean(values[:10])
    model.eval()
    assert model(x).shape == (32, helpers.CLASSES)


def test_nnx_fixed_parameters_are_no_params():
    x, y = helpers.batch()
    model = NNXNetwork(DIRECT, nnx.Rngs(0))
    assert "boundary" not in nnx.state(model, nnx.Param)
    model.eval()
    logits = model(x)
    error = losses.output_error(losses.softmax_cross_entropy, logits, y)[1]
    gradient = nnx.grad(nnx_loss)(model, x, y, error)
    assert np.any(gradient["dense"]["kernel"][...])
    with pytest.raises(decoupled.UsageError, match=r"boundary first: direct.* none has reached it"):
        nnx.grad(nnx_loss)(model, x, y)
    tokens = jnp.zeros((2, 3), jnp.int32)
    NNXBoundary(LINEAR, 4, y=tokens, batch_axes=2, rngs=nnx.Rngs(0))
    with pytest.raises(decoupled.UsageError, match=r"boundary third: a convolutional .* \(1, 4\)"):
        NNXBoundary(estimators.convolutional(), 4, rngs=nnx.Rngs(0), name="third")


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        (LINEAR, {"use_estimate": False}),
        (LINEAR, {"num_examples": 5}),
        (DIRECT, {"num_examples": 5}),
    ],
    ids=["true gradient", "examples", "error"],
)
def test_both_modules_pass_everything_on(kind, estimator, options):
    """Tokens as examples, an error, and every option: as `boundary` with the same parameters."""
    x, y = helpers.batch(features=4)
    h, y, error = x.reshape(2, 4, 4), y.reshape(2, 4), jnp.ones((2, 4, helpers.CLASSES))
    if kind == "linen":
        module = Boundary(estimator, batch_axes=2)
        variables = jax.tree.map(lambda w: w + 0.1, module.init(KEY, h, y))
        ((est_params,),) = (v.values() for v in variables.values())
        call = partial(module.apply, variables)
    else:
        call = NNXBoundary(estimator, 4, rngs=nnx.Rngs(0), batch_axes=2)
        for variable in call.est_params.values():
            variable[...] = variable[...] + 0.1
        est_params = {name: variable[...] for name, variable in call.est_params.items()}

    def gradient(through):
        return jax.grad(lambda h: jnp.square(through(h)).mean())(h)

    actual = gradient(lambda h: call(h, y, error, **options))
    with_options = partial(decoupled.boundary, estimator, est_params, batch_axes=2, **options)
    expected = gradient(lambda h: with_options(h, y, error))
    plain = gradient(lambda h: decoupled.boundary(estimator, est_params, h, y, error, batch_axes=2))
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert not np.allclose(expected, plain, atol=1e-4)

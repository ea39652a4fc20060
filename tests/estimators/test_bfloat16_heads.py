"""Auxiliary heads on activations in bfloat16: what they compute in, and how near it comes to float32."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar
from decoupled import estimators
from decoupled.estimators.auxiliary_head import AuxiliaryHead
from decoupled.training.builder import make_learner_of
from tests.models.tiny import filled

KEY = jax.random.key(0)
MODELS = {
    "cnn": {"model.cnn.features": (4, 6)},
    "vgg": {"model.vgg.layers": "4,pool,6,pool", "model.vgg.dense": (5,), "boundaries": "even:2"},
    "resnet": {"model.resnet.depth": 8, "model.resnet.width": 2},
    "mlp": {"model.mlp.depth": 2, "model.mlp.width": 8},
}

HEADS = ("probe", "borrowed_readout", "borrowed_next")


def products(jaxpr):
    """The types of what goes into each matrix product and convolution, inner ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.primitive.name, {str(operand.aval.dtype) for operand in equation.invars}
        for inner in jax.tree.leaves(equation.params):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def step_of(dtype, model, method):
    config = cifar.get_config()
    changes = {"model.name": model, "model.dtype": dtype, "estimator.name": method, **MODELS[model]}
    config.update_from_flattened_dict(changes)
    learner = make_learner_of(config, 10, 5)
    x, y = jnp.zeros((4, 16, 16, 3)), jnp.zeros(4, jnp.int32)
    state = jax.eval_shape(learner.init, KEY, x, y)
    parameters = jax.tree.leaves([part.params for part in (*state.modules, *state.estimators)])
    assert all(leaf.dtype == jnp.float32 for leaf in parameters)
    return jax.make_jaxpr(learner.update)(state, x, y, KEY).jaxpr


@pytest.mark.parametrize(
    ("model", "method"),
    [
        *itertools.product(["cnn", "vgg", "mlp"], ["local_loss"]),
        pytest.param("resnet", "local_loss", marks=pytest.mark.slow),
        *itertools.product(["mlp"], HEADS),
    ],
)
def test_one_flag_leaves_no_product_in_float32(model, method):
    found = list(products(step_of("bfloat16", model, method)))
    assert all(operands == {"bfloat16"} for _, operands in found)
    usual = list(products(step_of("float32", model, method)))
    assert [name for name, _ in found] == [name for name, _ in usual]
    assert all(operands == {"float32"} for _, operands in usual)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((64, 8, 8, 6), {}), ((64, 20), {}), ((64, 20), {"hidden": (9, 7)}), ((64, 20), {"hidden": ()})],
)
def test_losses_and_gradients_are_those_of_float32(shape, options):
    rng = np.random.default_rng(0)
    half = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    y = jnp.asarray(rng.integers(10, size=len(half)), jnp.int32)
    estimator = estimators.local_loss(10, **options)
    est_params = filled(jax.eval_shape(estimator.init, KEY, half, y), scale=0.1)

    @jax.jit
    def both(h):
        return estimator.training_gradient(est_params, h, y), estimator.estimate(est_params, h, y)

    (fitted, estimate), (whole_fitted, whole_estimate) = both(half), both(half.astype(jnp.float32))
    chex.assert_trees_all_equal_dtypes(fitted, whole_fitted)
    assert fitted[0].dtype == jnp.float32
    assert estimate.dtype == jnp.bfloat16
    np.testing.assert_allclose(fitted[0], whole_fitted[0], rtol=2e-3)
    pairs = zip(
        *map(jax.tree.leaves, ((fitted[1], estimate), (whole_fitted[1], whole_estimate))), strict=True
    )
    for own, whole in pairs:
        assert jnp.linalg.norm((own - whole).ravel()) < 0.06 * jnp.linalg.norm(whole.ravel())


def test_outputs_are_float32_and_means_of_many_pixels_too():
    """In bfloat16 a sum of ones stays at 256."""
    head = AuxiliaryHead(1, (), filters=(1,), kernel_size=1)
    h = jnp.ones((1, 7 * 32, 7 * 32, 1), jnp.bfloat16)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(head.first_params, KEY, h))
    params["Dense_1"]["kernel"] = jnp.ones((7 * 7, 1))  # of the linear layer on averages
    out = jax.jit(head.predict)(params, h)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, [[49.0]])

"""Losses against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from decoupled import losses


def test_softmax_cross_entropy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)), np.array([0, 2, 1, 1, 0])
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]
    actual = losses.softmax_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_squared_error_and_its_gradient():
    rng = np.random.default_rng(0)
    output, target = (jnp.asarray(rng.normal(size=(5, 3)), jnp.float32) for _ in range(2))
    per_example = losses.squared_error(output, target)
    np.testing.assert_allclose(per_example, 0.5 * ((output - target) ** 2).sum(1), rtol=1e-5)
    gradient = jax.grad(lambda o: losses.squared_error(o, target).sum())(output)
    np.testing.assert_allclose(gradient, output - target, rtol=1e-5)


def test_squared_error_of_half_precision_is_summed_in_single():
    """1000 squares of 1/16: bfloat16 has no number between 3.9 and 4 that would hold the sum, 3.90625."""
    output = jnp.full((2, 1000), 0.0625, jnp.bfloat16)
    per_example = losses.squared_error(output, jnp.zeros_like(output))
    np.testing.assert_allclose(per_example, 0.5 * 1000 / 256)
    assert per_example.dtype == jnp.float32

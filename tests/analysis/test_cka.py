"""CKA against its definition by centred Gram matrices, in NumPy, and cases known in advance."""

import jax.numpy as jnp
import numpy as np
import pytest

from decoupled.analysis import cka_of_layers, linear_cka

RNG = np.random.default_rng(0)


def by_definition(a, b):
    """tr(KHLH) / sqrt(tr(KHKH) tr(LHLH)), Kornblith 2019, equations 3 and 4."""
    n = len(a)
    centring = np.eye(n) - np.ones((n, n)) / n
    ka, kb = (h.reshape(n, -1) @ h.reshape(n, -1).T @ centring for h in (a, b))
    return np.trace(ka @ kb) / np.sqrt(np.trace(ka @ ka) * np.trace(kb @ kb))


def activations(n, *units):
    return (RNG.normal(size=(n, *units)) + 2).astype(np.float32)


@pytest.mark.parametrize(("n", "units"), [(20, (4,)), (6, (2, 5)), (8, (8,))])
def test_linear_cka(n, units):
    a = activations(n, *units)
    b = activations(n, 3) + 0.7 * a.reshape(n, -1)[:, :3]
    expected = by_definition(a.astype(float), b.astype(float))
    assert linear_cka(a, b) == pytest.approx(expected, abs=1e-5)
    assert linear_cka(b, a) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("n", [12, 4])
def test_what_cka_does_not_see(n):
    a = activations(n, 5)
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0].astype(np.float32)
    assert linear_cka(a, 3 * a @ rotation - 7) == pytest.approx(1, abs=1e-5)
    assert linear_cka(1e-15 * a, 1e15 * a) == pytest.approx(1, abs=1e-5)
    assert linear_cka(a, a * np.array([[1, 10, 1, 1, 1]], np.float32)) < 0.99


def test_cka_of_unrelated_and_constant_layers():
    a = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    b = jnp.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(a, b) == pytest.approx(0, abs=1e-6)
    assert linear_cka(a, jnp.ones((4, 2))) == 0


def test_cka_of_layers():
    a, b = [activations(10, 3), activations(10, 12)], [activations(10, 5)]
    found = cka_of_layers(a, b)
    assert found.shape == (2, 1)
    assert found[1, 0] == pytest.approx(by_definition(a[1], b[0]), abs=1e-4)

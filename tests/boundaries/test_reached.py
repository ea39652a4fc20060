"""Boundaries whose output nobody uses: unrolled and in `lax.scan`, with a backward pass by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from decoupled import boundary, estimators, new_tap, read_taps, tie

SG = estimators.linear()
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)
W = jnp.asarray([0.7, -0.4])
EST_PARAMS = {"A": jnp.asarray([[0.5, -0.2], [0.1, 0.3]]), "c": jnp.asarray([0.2, -0.1])}
STEPS = 3


def window(w, est_params, tap, unroll, tied):
    """h -> tanh(w h) a step, whose outputs make the loss; the last h goes to the next window alone."""

    def step(h, _):
        out = jnp.tanh(h * w[None])
        return boundary(SG, est_params, out, tap=tap), 0.5 * jnp.square(out).sum() / len(X)

    if unroll:
        h, each = X, []
        for _ in range(STEPS):
            h, loss = step(h, None)
            each.append(loss)
        total = sum(each)
    else:
        h, each = jax.lax.scan(step, X, None, length=STEPS)
        total = each.sum()
    return tie(total, h) if tied else total


def by_hand(last_hands_down):
    """Of w, and of the estimator's c: in NumPy, with the estimate as the gradient by each h."""
    w, A, c = (np.asarray(a, np.float64) for a in (W, EST_PARAMS["A"], EST_PARAMS["c"]))
    hs = [np.asarray(X, np.float64)]
    for _ in range(STEPS):
        hs.append(np.tanh(hs[-1] * w))
    grad_w, grad_c = np.zeros(2), np.zeros(2)
    incoming = np.zeros_like(hs[0])  # by the last h, on which this window's loss does not depend
    for t in reversed(range(STEPS)):
        out = hs[t + 1]
        reached = last_hands_down or t < STEPS - 1
        estimate = (out @ A + c) * reached
        grad_c += 2 * (estimate - incoming).sum(0) / len(X) * reached
        slope = (out + estimate) * (1 - out**2)
        grad_w += (slope * hs[t]).sum(0) / len(X)
        incoming = slope * w
    return grad_w, grad_c


@pytest.mark.parametrize(("unroll", "tied"), [(True, True), (False, True), (False, False), (True, False)])
def test_a_tied_loss_reaches_the_end_of_a_window_unrolled_or_not(unroll, tied):
    gradient = jax.jit(jax.grad(window, (0, 1, 2)), static_argnums=(3, 4))
    grad_w, est_gradient, seen = gradient(W, EST_PARAMS, new_tap(), unroll, tied)
    # A scan's carry is reached without being tied; what is unrolled is not.
    reached = tied or not unroll
    expected_w, expected_c = by_hand(last_hands_down=reached)
    np.testing.assert_allclose(grad_w, expected_w, rtol=1e-5)
    np.testing.assert_allclose(est_gradient["c"], expected_c, rtol=1e-5)
    (report,) = read_taps(seen).values()
    assert report.examples == len(X) * (STEPS if reached else STEPS - 1)


def test_outputs_of_a_scan_that_nobody_uses_are_tied_too():
    def loss(w, tied):
        hs = jax.lax.map(lambda x: boundary(SG, EST_PARAMS, jnp.tanh(x[None] * w[None])), X)
        return tie(0.0, hs) if tied else 0.0 * w.sum()

    out = np.tanh(np.asarray(X) * np.asarray(W))
    estimate = out @ np.asarray(EST_PARAMS["A"]) + np.asarray(EST_PARAMS["c"])
    expected = (estimate * (1 - out**2) * np.asarray(X)).sum(0)
    np.testing.assert_allclose(jax.grad(loss)(W, True), expected, rtol=1e-5)
    assert not jax.grad(loss)(W, False).any()


def test_tying_changes_neither_the_loss_nor_any_other_gradient():
    loss = lambda w, h: jnp.square(w * h).sum()  # noqa: E731
    h = X.at[0, 0].set(jnp.inf)  # which a zero times it would spoil
    tied = jax.value_and_grad(lambda w, h: tie(loss(w, jnp.where(jnp.isfinite(h), h, 0)), [h]), (0, 1))
    plain = jax.value_and_grad(lambda w, h: loss(w, jnp.where(jnp.isfinite(h), h, 0)), (0, 1))
    chex.assert_trees_all_equal(tied(W[None], h), plain(W[None], h))


def test_tying_on_two_devices():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    x = jnp.concatenate([X, X[:1]])

    def gradient(w, x):
        def loss(w):
            out = jnp.tanh(x * w[None])
            return tie(out.sum() / 4, boundary(SG, EST_PARAMS, out, num_examples=4))

        return jax.grad(loss)(w)

    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())
    np.testing.assert_allclose(jax.jit(sharded)(W, x), gradient(W, x), rtol=1e-5)

"""A linear synthetic gradient fitted in closed form, step by step, in place of SGD.

U17 (section 3) proves convergence for a linear SG whose learning rate is chosen by line search. For a
linear SG the practical form of that search is to solve: with x = (h, y, 1), the exponentially weighted
SG loss  sum_s decay^(t-s) |x_s K - target_s|^2  has, with a ridge, the minimiser

    K_t = (G_t + ridge I)^-1 C_t,    G_t, C_t: running averages of x'x and x' target.

Solved at every step this is recursive least squares (e.g. Ljung 1999, section 11.2), in a form that cannot
diverge: whatever the network does, K_t is the exact fit to what was lately seen. It takes the optax seam
as follows. `training_gradient` hands over the batch means of x'x and x' target, which may be averaged over
devices; the optimizer moves the running averages, which live in est_params beside K, and solves. For K it
hands over the gradient of the SG loss: the solver has no use for it, and a compiler then drops it, but any
other optimizer would still fit K with it, though by descent.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import Context, at_least_float32, flatten, sg_loss
from decoupled.types import Array, Estimator, Key, PyTree


def recursive_least_squares(
    context: Context = None, decay: float = 0.97, ridge: float = 1e-3, solve_every: int = 1
) -> Estimator:
    """The linear SG (h, y, 1) K, fitted by exponentially weighted normal equations.

    Args:
      context: encodes y; None leaves it out.
      decay: of the past in one step, in [0, 1): the fit remembers about 1 / (1 - decay) steps.
      ridge: as a fraction of the mean square of a feature.
      solve_every: steps between solutions, each about (features)^3 / 3 multiplications.

    Raises:
      UsageError: a number is out of its range.
    """
    if not (0 <= decay < 1 and ridge >= 0 and solve_every >= 1):
        raise UsageError(
            "recursive least squares needs 0 <= decay < 1, ridge >= 0 and solve_every >= 1,"
            f" not decay {decay}, ridge {ridge}, solve_every {solve_every}"
        )

    def features_of(h: Array, y: Array) -> Array:
        parts = [at_least_float32(flatten(h)), jnp.ones((h.shape[0], 1))]
        if context is not None:
            parts.append(context(y))
        return jnp.concatenate(parts, axis=1)

    def init(key: Key, h: Array, y: Array) -> PyTree:
        del key
        inputs, outputs = features_of(h, y).shape[1], flatten(h).shape[1]
        return {
            "K": jnp.zeros((inputs, outputs)),
            "gram": jnp.zeros((inputs, inputs)),
            "cross": jnp.zeros((inputs, outputs)),
        }

    def estimate(est_params: PyTree, h: Array, y: Array, signal: Array | None = None) -> Array:
        del signal
        return (features_of(h, y) @ est_params["K"]).reshape(h.shape)

    def training_gradient(est_params: PyTree, h: Array, y: Array, target: Array) -> tuple[Array, PyTree]:
        x, target = features_of(h, y), at_least_float32(flatten(target))
        estimate = x @ est_params["K"]
        gradient = {
            "K": 2 * x.T @ (estimate - target) / h.shape[0],
            "gram": x.T @ x / h.shape[0],
            "cross": x.T @ target / h.shape[0],
        }
        return sg_loss(estimate, target), gradient

    return Estimator(
        "recursive_least_squares",
        init,
        estimate,
        training_gradient,
        optimizer=_solver(decay, ridge, solve_every),
        form="(h, 1)K" if context is None else "(h, y, 1)K",
        sees_y=context is not None,
    )


def _solver(decay: float, ridge: float, solve_every: int) -> optax.GradientTransformation:
    """Moves the averages towards a batch's moments, and K to their least-squares solution."""

    def init(params: PyTree) -> Array:
        del params
        return jnp.zeros((), jnp.int32)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        gram_step, cross_step = ((1 - decay) * (updates[name] - params[name]) for name in ("gram", "cross"))
        gram, cross = params["gram"] + gram_step, params["cross"] + cross_step
        due = state % solve_every == 0
        K = jax.lax.cond(due, _solve, lambda *_: params["K"], gram, cross, jnp.asarray(ridge, gram.dtype))
        return {"K": K - params["K"], "gram": gram_step, "cross": cross_step}, state + 1

    return optax.GradientTransformation(init, update)


@partial(jnp.vectorize, signature="(n,n),(n,m),()->(n,m)")  # layers under a scan are stacked
@jax.custom_batching.sequential_vmap  # LAPACK, one by one, is far faster than XLA's batched solver on CPUs
def _solve(gram: Array, cross: Array, ridge: Array) -> Array:
    # Relative to the trace, so that averages still growing from zero need no correction.
    damping = ridge * jnp.trace(gram) / gram.shape[0] + jnp.finfo(gram.dtype).tiny
    damped = gram + damping * jnp.eye(gram.shape[0])
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), cross)

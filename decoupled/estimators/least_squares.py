"""Part of an estimator fitted in closed form, step by step: exponentially weighted least squares.

With features x of an example, the exponentially weighted SG loss  sum_s decay^(t-s) |x_s K - target_s|^2
has, with a ridge, the minimiser

    K_t = (G_t + ridge I)^-1 C_t,    G_t, C_t: running averages of x'x and x' target.

Solved at every step this is recursive least squares (e.g. Ljung 1999, section 11.2), in a form that cannot
diverge: whatever the network does, K_t is the exact fit to what was lately seen. It takes the optax seam
as follows. `training_gradient` hands over `moments`, the batch means of x'x and x' target, which may be
averaged over devices or summed, since a weight goes with them (`averages`); the optimizer moves the running
averages, which live in est_params beside K, and solves. For K it hands over the gradient of the SG loss:
the solver has no use for it, and a compiler then drops it, but any other optimizer would still fit K with
it, though by descent.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from decoupled import weights
from decoupled.errors import UsageError
from decoupled.estimators.averages import mean_of, no_weight, weight_of
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, PyTree

_SOLVED = ("K", "gram", "cross", "weight")


def unsolved(inputs: int, outputs: int) -> dict[str, Array]:
    """K and the averages before the first step: zeros, hence so is x K."""
    return {
        "K": jnp.zeros((inputs, outputs)),
        "gram": jnp.zeros((inputs, inputs)),
        "cross": jnp.zeros((inputs, outputs)),
        "weight": no_weight(),
    }


def moments(
    x: Float[Array, "batch inputs"],
    target: Float[Array, "batch outputs"],
    residual: Float[Array, "batch outputs"],
    weight: Shaped[AnyArray, " batch"] | None = None,
) -> dict[str, Array]:
    """What `solver` needs of a batch, in the structure of `unsolved`.

    Args:
      x: features.
      target: what x K is fitted to.
      residual: the estimate's error.
      weight: of each example; None: all count alike.
    """
    means = {
        "K": weights.mean_product(2 * x, residual, weight),
        "gram": weights.mean_product(x, x, weight),
        "cross": weights.mean_product(x, target, weight),
    }
    return {**means, "weight": weight_of(x, weight)}


def solver(
    decay: float, ridge: float, solve_every: int = 1
) -> Callable[[optax.GradientTransformation], optax.GradientTransformation]:
    """Moves the averages towards a batch's moments, K to their solution, and all else as the user has it.

    Args:
      decay: of the past in one step, in [0, 1): the fit remembers about 1 / (1 - decay) steps.
      ridge: as a fraction of the mean square of a feature. What rounding needs, 4 epsilon of the sum of
        these squares, is the least it is taken for: 0 gives the fit of least norm, to rounding.
      solve_every: steps between solutions, each about (features)^3 / 3 multiplications.

    Returns:
      What an Estimator has for its `optimizer`.

    Raises:
      UsageError: a number is out of its range; or, from `init` and `update`, the averages are in half
        precision, in which they would neither move nor be solved.
    """
    if not (0 <= decay < 1 and 0 <= ridge < math.inf and solve_every >= 1):
        raise UsageError(
            "least squares needs 0 <= decay < 1, ridge >= 0 and solve_every >= 1,"
            f" not decay {decay}, ridge {ridge}, solve_every {solve_every}"
        )

    def beside(descent: optax.GradientTransformation) -> optax.GradientTransformation:
        descend: Any = descent.update  # of dicts, which optax's types do not know

        def init(params: PyTree) -> tuple[Array, optax.OptState]:
            _check_precision(params)
            return jnp.zeros((), jnp.int32), descent.init(_descended(params))

        def update(
            updates: PyTree, state: PyTree, params: PyTree = None
        ) -> tuple[PyTree, tuple[Array, optax.OptState]]:
            _check_precision(params)
            steps, rest = state
            moved, rest = descend(_descended(updates), rest, _descended(params))
            mean = {n: mean_of(updates[n], updates["weight"], params[n]) for n in ("gram", "cross")}
            gram_step, cross_step = ((1 - decay) * (mean[n] - params[n]) for n in ("gram", "cross"))
            gram, cross = params["gram"] + gram_step, params["cross"] + cross_step
            due = steps % solve_every == 0
            K = jax.lax.cond(
                due, solve, lambda *_: params["K"], gram, cross, jnp.asarray(ridge, gram.dtype)
            )
            solved = {"K": K - params["K"], "gram": gram_step, "cross": cross_step}
            still = {"weight": jnp.zeros_like(params["weight"])}
            return {**moved, **solved, **still}, (steps + 1, rest)

        return optax.GradientTransformation(init, update)

    return beside


def _check_precision(params: PyTree) -> None:
    dtype = params["gram"].dtype
    if jnp.finfo(dtype).bits < 32:
        raise UsageError(
            f"the averages of least squares are {dtype}, too coarse to be solved: leave est_params in"
            " float32 when you cast a model's parameters; activations and layers may be in half precision"
        )


def _descended(tree: PyTree) -> PyTree:
    return {name: leaf for name, leaf in tree.items() if name not in _SOLVED}


@partial(jnp.vectorize, signature="(n,n),(n,m),()->(n,m)")  # layers under a scan are stacked
@jax.custom_batching.sequential_vmap  # LAPACK, one by one, is far faster than XLA's batched solver on CPUs
def solve(
    gram: Float[Array, "inputs inputs"], cross: Float[Array, "inputs outputs"], ridge: Float[Array, ""]
) -> Float[Array, "inputs outputs"]:
    """(gram + ridge I)^-1 cross, with the ridge as a fraction of gram's mean diagonal element."""
    # Relative to the trace, so that averages still growing from zero need no correction. With less than the
    # floor, rounding alone may leave a matrix that has no Cholesky factor.
    precision = jnp.finfo(gram.dtype)
    damping = jnp.maximum(ridge / gram.shape[0], 4 * precision.eps) * jnp.trace(gram) + precision.tiny
    damped = gram + damping * jnp.eye(gram.shape[0])
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), cross)

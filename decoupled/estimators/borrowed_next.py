"""An estimator that stands a few modules higher than its boundary: copies of these lie between."""

import jax

from decoupled import weights
from decoupled.argument_checks import check_estimator
from decoupled.errors import UsageError
from decoupled.estimators.borrowing import apply_borrowed, borrower, rows_of
from decoupled.leaves import like, per_example, real_part, with_real_part
from decoupled.modules.chains import like_output
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, Borrows, Estimator, Key, Module, PyTree, Reads, WithBorrowed


def borrowed_next(
    estimator: Estimator, next_modules: int = 1, every: int = 1, decay: float = 0.0
) -> Estimator:
    """The gradient that another estimator has for the output of the next modules, led back through copies.

    The module below is told what the next ones can make of its output: it learns to serve them, not a head
    alone. Copies are renewed every so many steps; in between nothing from above reaches the module below.
    They are run in evaluation mode, and never trained here.

    Args:
      estimator: with a loss of its own, or none; reads nothing beyond (h, y). It sees the output of the
        highest copy.
      next_modules: how many are copied; fewer where the network ends, and then the highest is the last.
      every: steps from one renewal to the next.
      decay: of the copies, where they are running averages over renewals, in [0, 1); 0: none.

    Raises:
      UsageError: the estimator is fitted to gradients from above, or reads something; or a number is out of
        its range.

    References:
      Overlapping local updates: Xiong, Ren & Urtasun 2020, "LoCo" (arXiv 2008.01342), whose neighbouring
      modules share a block; Guo et al. 2022, "BackLink" (arXiv 2205.07141). There the gradient crosses into
      the next module's parameters at hand; here into a copy, so that modules stay unlocked.
    """
    check_estimator("borrowed_next", estimator)
    fitted = estimator.training_gradient is not None and not estimator.own_loss
    made_of_modules = estimator.borrows is not None or estimator.structure is not None
    if estimator.reads is not Reads.NOTHING or fitted or made_of_modules:
        raise UsageError(
            f"borrowed_next leads back what an estimator with a loss of its own gives, such as local_loss:"
            f" {estimator.name} has none, or reads or borrows something from above"
        )

    is_trained = estimator.training_gradient is not None

    def bind(modules: tuple[Module, ...], batch_axes: int) -> Estimator:
        def above(est_params: WithBorrowed, h: PyTree) -> PyTree:
            """Real part of the highest copy's output."""
            for module, variables in zip(modules, est_params.borrowed, strict=True):
                h = apply_borrowed(module, variables, h)
            return real_part(h)

        def init(key: Key, h: PyTree, y: PyTree) -> PyTree:
            for module in modules:
                variables = jax.eval_shape(module.init, jax.random.key(0), h)
                h = like_output(module, variables, h)
            return estimator.init(key, rows_of(real_part(h), batch_axes, None), y)

        def estimate(
            est_params: WithBorrowed,
            h: PyTree,
            y: PyTree,
            signal: None = None,
            weight: Shaped[AnyArray, " batch"] | None = None,
        ) -> PyTree:
            def up(real: PyTree) -> PyTree:
                return above(est_params, with_real_part(h, real))

            output, pullback = jax.vjp(up, real_part(h))
            weights_too = (weight,) if estimator.estimate_sees_weight and weight is not None else ()
            rows = rows_of(output, batch_axes, weight)
            found = estimator.estimate(est_params.own, rows, y, signal, *weights_too)
            found = weights.as_cotangent(weights.zeroed(found, weight), weight)
            cotangent = jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), like(found, output), output)
            (gradient,) = pullback(cotangent)
            return like(weights.as_gradient(per_example(gradient, batch_axes), weight), gradient)

        def training_gradient(
            est_params: WithBorrowed,
            h: PyTree,
            y: PyTree,
            target: PyTree = None,
            weight: Shaped[AnyArray, " batch"] | None = None,
        ) -> tuple[Float[Array, ""], PyTree]:
            assert estimator.training_gradient is not None
            del target
            rows = rows_of(above(est_params, h), batch_axes, weight)
            weights_too = () if weight is None else (weight,)
            return estimator.training_gradient(est_params.own, rows, y, None, *weights_too)

        return Estimator("", init, estimate, training_gradient if is_trained else None)

    return borrower(
        f"borrowed_next({estimator.name})",
        Borrows(bind, next_modules, every, decay),
        is_trained,
        optimizer=estimator.optimizer,
        sees_y=estimator.sees_y,
        y_in_fit_alone=estimator.y_in_fit_alone,
    )

"""An SG that never sees the label: a strong local prediction teaches the module to make it plain."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from decoupled import weights
from decoupled.errors import UsageError
from decoupled.estimators.auxiliary_head import AuxiliaryHead
from decoupled.estimators.averages import mean_of, no_weight, weight_of
from decoupled.estimators.synthetic_gradient import flatten
from decoupled.losses import softmax_cross_entropy
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, Estimator, Key, PyTree


def mean_teacher(num_classes: int, hidden: Sequence[int] = (512,), decay: float = 0.99) -> Estimator:
    """(p - q)W', the gradient of p's log loss that is to be expected where only h is known.

    The log loss of a linear prediction p = softmax(hW + b) has the gradient (p - y)W', with y one-hot. It
    is linear in y, so its expectation given h is (p - P(y|h))W'. Another head on h, with hidden layers and
    fitted to the labels, estimates P(y|h): q, the teacher. Were it no stronger than p there would be
    nothing to teach (p = q), and what one linear layer cannot read from h is what it tells the module to
    write more plainly. Labels enter the fits alone; an estimate is a function of h.

    What the module gives away for a wrong q does not come back, since nothing in h then tells of it. So q
    must be right early, and move little: its parameters are running averages of those that are fitted.
    Without the averages a network of six layers ended 2 points lower.

    Args:
      num_classes: of p and q.
      hidden: widths of the teacher's ReLU layers, beside which it has a linear one.
      decay: of the averages in one step, in [0, 1).

    Raises:
      UsageError: the teacher is no stronger than p, or the decay is out of its range.

    References:
      Tarvainen & Valpola 2017, "Mean teachers are better role models" (arXiv 1703.01780), for averages;
      Zhang et al. 2019, "Be your own teacher" (arXiv 1905.08094), for heads that teach weaker ones. J16,
      section 3.3, has the SG without labels (DNI beside cDNI).
    """
    if not hidden or not 0 <= decay < 1:
        raise UsageError(
            f"a teacher needs hidden layers and a decay in [0, 1), not hidden {tuple(hidden)} and decay"
            f" {decay}"
        )
    head = AuxiliaryHead(num_classes, tuple(hidden))

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        h = jnp.asarray(h)
        del y
        taught = {"W": jnp.zeros((flatten(h).shape[1], num_classes)), "b": jnp.zeros((num_classes,))}
        teacher = head.first_params(key, h)
        # Another array for each, since states are donated.
        average = jax.tree.map(jnp.array, teacher)
        return {"taught": taught, "teacher": teacher, "average": average, "weight": no_weight()}

    def estimate(
        est_params: PyTree, h: Float[Array, "batch *features"], y: PyTree, signal: None = None
    ) -> Float[Array, "batch *features"]:
        del y, signal
        p = jax.nn.softmax(_logits(est_params["taught"], h))
        return ((p - belief(est_params, h)) @ est_params["taught"]["W"].T).reshape(h.shape)

    def training_gradient(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        target: Float[Array, "batch *features"] | None = None,
        weight: Shaped[AnyArray, " batch"] | None = None,
    ) -> tuple[Float[Array, ""], PyTree]:
        del target
        q = belief(est_params, h)

        def loss(fitted: PyTree) -> Array:
            taught = optax.softmax_cross_entropy(_logits(fitted["taught"], h), q)
            losses = taught + softmax_cross_entropy(head.predict(fitted["teacher"], h), y)
            return weights.mean(losses, weight)

        value, gradient = jax.value_and_grad(loss)({n: est_params[n] for n in ("taught", "teacher")})
        # The mean over examples of what is the same for all.
        one = weight_of(flatten(h), weight)
        behind = jax.tree.map(lambda a, t: one * (a - t), est_params["average"], est_params["teacher"])
        return value, {**gradient, "average": behind, "weight": one}

    def belief(est_params: PyTree, h: Array) -> Array:
        return jax.nn.softmax(at_least_float32(head.predict(est_params["average"], h)))

    def averaging(descent: optax.GradientTransformation) -> optax.GradientTransformation:
        kinds = {"taught": "descended", "teacher": "descended", "average": "averaged", "weight": "still"}
        txs: Any = {"descended": descent, "averaged": optax.sgd(1 - decay), "still": optax.set_to_zero()}
        by_kind = optax.partition(txs, kinds)

        def update(
            updates: PyTree, state: optax.OptState, params: PyTree = None, **extra: Any
        ) -> tuple[PyTree, optax.OptState]:
            weight = updates["weight"]
            behind = jax.tree.map(lambda summed: mean_of(summed, weight, 0.0), updates["average"])
            return by_kind.update({**updates, "average": behind}, state, params, **extra)

        return optax.GradientTransformationExtraArgs(by_kind.init, update)

    return Estimator(
        "mean_teacher",
        init,
        estimate,
        training_gradient,
        optimizer=averaging,
        own_loss=True,
        y_in_fit_alone=True,
    )


def _logits(taught: PyTree, h: Array) -> Array:
    """hW + b."""
    return at_least_float32(flatten(h)) @ taught["W"] + taught["b"][None, :]

"""Greedy training by similarity: examples of a class should look alike, those of others not."""

import math

import jax
import jax.numpy as jnp

from decoupled import weights
from decoupled.errors import UsageError
from decoupled.estimators.auxiliary_head import AuxiliaryHead, averaged
from decoupled.estimators.local_loss import from_local_loss
from decoupled.estimators.synthetic_gradient import Context, encoded, flatten
from decoupled.losses import checked_losses, softmax_cross_entropy
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, Estimator, Key, Loss, PyTree

_KERNEL_INIT = jax.nn.initializers.lecun_normal()
_FEW_CHANNELS = 3  # The angle between so few numbers, centred, says next to nothing.
_MOST_PREDICTING = 2048  # Features that the prediction is made of, where these are maps.


def similarity(
    num_outputs: int,
    context: Context,
    weight: float = 0.99,
    width: int = 128,
    loss: Loss = softmax_cross_entropy,
) -> Estimator:
    """The gradient of  weight * |S(hM) - S(y)|^2 + (1 - weight) * loss(hW + b, y)  ("predsim").

    S is the matrix of cosines between the examples of a batch, each centred over its features; the square
    is the mean over pairs. An example's gradient therefore depends on the rest of its batch: under a mapped
    axis, on the examples of its own device. S has (examples)^2 entries: better not to count tokens here.

    On maps, (batch, height, width, channels), M is a 3x3 convolution to as many channels, of each of which
    S is told the standard deviation over all positions: what differs within an image, wherever it is. The
    prediction is made of h averaged to 2048 features, or one a channel where these are more. Maps of one
    position have no deviation, and those of three channels or fewer no angle worth comparing: they are
    taken for vectors.

    Args:
      num_outputs: of the predicting part, a linear classifier.
      context: encodes y for S(y): `one_hot` for labels.
      weight: of the similarity against the prediction, from 0 to 1.
      width: of hM, where h is vectors.
      loss: of the prediction.

    Raises:
      UsageError: there is no context, or the weight is out of its range.

    References:
      Nøkland & Eidnes 2019 (arXiv 1901.06656), section 2. Between convolution layers of their VGGs this is
      their predsim loss; their fully connected layers have an M as wide as h.
    """
    if context is None or not 0 <= weight <= 1:
        raise UsageError(
            "the similarity loss needs a context that encodes y (config.estimator.conditioned), and a"
            " weight from 0 to 1"
        )
    head = AuxiliaryHead(num_outputs, ())

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        h = jnp.asarray(h)
        labels(y, h)
        head_key, key = jax.random.split(key)
        shape = (3, 3, *[h.shape[-1]] * 2) if _on_maps(h) else (flatten(h).shape[1], width)
        return {"M": _KERNEL_INIT(key, shape), "head": head.first_params(head_key, _predicting(h))}

    def losses(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        counts: Shaped[AnyArray, " batch"] | None,
    ) -> Float[Array, " batch"]:
        if weight > 0 and h.shape[0] == 1:
            raise UsageError("the similarity loss compares examples, but the batch holds only one")
        difference = cosines(_compared(h, est_params["M"])) - cosines(labels(y, h))
        output = head.predict(est_params["head"], _predicting(h))
        prediction = checked_losses(loss(output, y), output)
        to_others = jax.vmap(lambda squares: weights.mean(squares, counts))(jnp.square(difference))
        return weight * to_others + (1 - weight) * prediction

    def labels(y: PyTree, h: Float[Array, "batch *features"]) -> Float[AnyArray, "batch context"]:
        encoding = encoded(context, y, h)
        if encoding.shape[1] == 1:
            raise UsageError(
                "the similarity loss compares encoded labels by their angle, which one number has not: use"
                " a context of two features or more, such as one_hot"
            )
        return encoding

    return from_local_loss("similarity", init, losses)._replace(estimate_sees_weight=True)


def _on_maps(h: Float[Array, "batch *features"]) -> bool:
    return h.ndim == 4 and h.shape[-1] > _FEW_CHANNELS and math.prod(h.shape[1:3]) > 1


def _compared(
    h: Float[Array, "batch *features"], m: Float[AnyArray, "*inputs outputs"]
) -> Float[Array, "batch outputs"]:
    """What S is told of each example."""
    if not _on_maps(h):
        return flatten(h) @ m
    dtype = jnp.result_type(h, m)
    h, m = jnp.asarray(h, dtype), jnp.asarray(m, dtype)
    layout = ("NHWC", "HWIO", "NHWC")
    return deviations(jax.lax.conv_general_dilated(h, m, (1, 1), "SAME", dimension_numbers=layout))


def deviations(h: Float[AnyArray, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """The standard deviation of each map over its positions."""
    # Safe where a map is constant, as that of a dead unit: the gradient there is zero.
    return jnp.sqrt(at_least_float32(h).var((1, 2)) + 1e-12)


def _predicting(h: Float[Array, "batch *features"]) -> Float[Array, "batch *fewer"]:
    """What the prediction is made of: maps are averaged until there are few features."""
    if not _on_maps(h):
        return h
    _, height, width, channels = h.shape
    rows = columns = 1
    while (rows, columns) != (height, width) and (
        (height // rows) * (width // columns) * channels > _MOST_PREDICTING
    ):
        rows, columns = min(2 * rows, height), min(2 * columns, width)
    return averaged(h, rows, columns)


def cosines(rows: Float[AnyArray, "batch features"]) -> Float[Array, "batch batch"]:
    """Between any two examples, centred over their features."""
    rows = at_least_float32(rows)
    centred = rows - rows.mean(1, keepdims=True)
    # Safe where a row is constant, whose cosine with anything is taken as zero.
    length = jnp.sqrt(jnp.sum(jnp.square(centred), axis=1, keepdims=True) + 1e-12)
    unit = centred / length
    return unit @ unit.T

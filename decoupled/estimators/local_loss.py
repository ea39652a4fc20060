"""Greedy training: each module descends the loss of an auxiliary head of its own."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from decoupled import weights
from decoupled.estimators.auxiliary_head import AuxiliaryHead
from decoupled.losses import checked_losses, softmax_cross_entropy
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, Estimator, Key, Loss, PyTree

# (est_params, h, y, weight) -> one loss per example, (batch,).
LocalLoss: TypeAlias = Callable[[PyTree, Array, PyTree, AnyArray | None], Array]


def local_loss(
    num_outputs: int,
    hidden: Sequence[int] = (64,),
    linear: bool = True,
    filters: Sequence[int] = (16,),
    kernel_size: int = 5,
    loss: Loss = softmax_cross_entropy,
) -> Estimator:
    """The gradient of the loss of an auxiliary head  hW + relu(hU + c)V + b,  which starts at zero.

    The head stands in for the rest of the network: it is fitted to the labels, on the way up, and the
    module below it descends its loss  l.  Of  dl/dh = (softmax - y)(W' + V' diag(hU + c > 0) U')  (for log
    loss and one hidden layer) the first part is the loss-shaped SG, exact in form where only a linear layer
    follows; the second bends with h, for modules further below, which need not make classes linearly
    separable yet. W is quick to learn, and without it the highest modules would serve a hidden layer that
    the network does not have above them: with it 64 hidden units do what 128 do without
    (`experiments.accuracy` measures both). Give heads a larger learning rate than modules.

    On maps, (batch, height, width, channels), U is a convolution, as what follows there is: a head that
    sees every pixel for itself has little need of good features.

    Args:
      num_outputs: of the head.
      hidden: widths of its ReLU layers U on vectors; empty for a linear head.
      linear: whether there is a W beside them.
      filters: channels of its convolutions on maps, in the place of `hidden`; empty to flatten maps.
      kernel_size: of these convolutions.
      loss: (output of the head, y) -> (batch,).

    References:
      Nøkland & Eidnes 2019, "Training neural networks with local error signals" (arXiv 1901.06656), the
      prediction loss, of a linear head; Belilovsky et al. 2019 (arXiv 1812.11446) for heads with hidden
      layers.
    """
    head = AuxiliaryHead(num_outputs, tuple(hidden), linear, tuple(filters), kernel_size)

    def init(key: Key, h: Float[AnyArray, "batch *features"], y: PyTree) -> PyTree:
        h = jnp.asarray(h)
        del y
        return head.first_params(key, h)

    def losses(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        weight: Shaped[AnyArray, " batch"] | None,
    ) -> Float[Array, " batch"]:
        del weight
        output = head.predict(est_params, h)
        return checked_losses(loss(output, y), output)

    return from_local_loss("local_loss", init, losses)


def from_local_loss(
    name: str, init: Callable[[Key, Array, PyTree], PyTree], losses: LocalLoss
) -> Estimator:
    """An estimator that gives its module the gradient of a local loss, and descends that loss itself."""

    def estimate(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        signal: None = None,
        weight: Shaped[AnyArray, " batch"] | None = None,
    ) -> Float[Array, "batch *features"]:
        del signal
        if weight is None:
            return jax.grad(lambda h: losses(est_params, h, y, None).sum())(h)
        # Only where examples look at one another does it matter how often each of them counts.
        total = jax.grad(lambda h: (weight * losses(est_params, h, y, weight)).sum())(h)
        return weights.as_gradient(total, weight)

    def training_gradient(
        est_params: PyTree,
        h: Float[Array, "batch *features"],
        y: PyTree,
        target: Float[Array, "batch *features"] | None = None,
        weight: Shaped[AnyArray, " batch"] | None = None,
    ) -> tuple[Float[Array, ""], PyTree]:
        del target
        return jax.value_and_grad(lambda p: weights.mean(losses(p, h, y, weight), weight))(est_params)

    return Estimator(name, init, estimate, training_gradient, own_loss=True)

"""Greedy training: each module descends the loss of an auxiliary head of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn

from decoupled.estimators.synthetic_gradient import flatten
from decoupled.losses import softmax_cross_entropy
from decoupled.own_layers import own_layers
from decoupled.types import Array, Estimator, Key, Loss, PyTree

# (est_params, h, y) -> one loss per example, (batch,).
LocalLoss = Callable[[PyTree, Array, Array], Array]


def local_loss(
    num_outputs: int, hidden: Sequence[int] = (128,), loss: Loss = softmax_cross_entropy
) -> Estimator:
    """The gradient of the loss of an auxiliary head: ReLU layers `hidden`, then a linear one from zero.

    Args:
      num_outputs: of the head.
      hidden: widths of its hidden layers.
      loss: (output of the head, y) -> (batch,).

    References:
      Nøkland & Eidnes 2019, "Training neural networks with local error signals" (arXiv 1901.06656), the
      prediction loss; Belilovsky et al. 2019 (arXiv 1812.11446) for heads with hidden layers.
    """
    head = AuxiliaryHead(num_outputs, tuple(hidden))

    def init(key: Key, h: Array, y: Array) -> PyTree:
        del y
        return head.first_params(key, h)

    def losses(est_params: PyTree, h: Array, y: Array) -> Array:
        return loss(head.predict(est_params, h), y)

    return from_local_loss("local_loss", init, losses, "dl/dh, l of an auxiliary head")


def from_local_loss(
    name: str, init: Callable[[Key, Array, Array], PyTree], losses: LocalLoss, form: str
) -> Estimator:
    """An estimator that gives its module the gradient of a local loss, and descends that loss itself."""

    def estimate(est_params: PyTree, h: Array, y: Array, signal: Array | None = None) -> Array:
        del signal
        return jax.grad(lambda h: losses(est_params, h, y).sum())(h)

    def training_gradient(
        est_params: PyTree, h: Array, y: Array, target: Array | None = None
    ) -> tuple[Array, PyTree]:
        del target
        return jax.value_and_grad(lambda p: losses(p, h, y).mean())(est_params)

    return Estimator(name, init, estimate, training_gradient, form=form, own_loss=True)


class AuxiliaryHead(nn.Module):
    """ReLU layers on a flattened activation, then a linear layer that starts at zero."""

    num_outputs: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Array) -> Array:
        h = flatten(h)
        for features in self.hidden:
            h = nn.relu(nn.Dense(features)(h))
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros)(h)

    def predict(self, params: PyTree, h: Array) -> Array:
        """Its output with given parameters."""
        with own_layers():
            out: Any = self.apply({"params": params}, h)
        return out

    def first_params(self, key: Key, h: Array) -> PyTree:
        """Those to start from, for activations like h."""
        with own_layers():
            return self.init(key, h)["params"]

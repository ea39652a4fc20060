"""Greedy training: each module descends the loss of an auxiliary head of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from decoupled.estimators.synthetic_gradient import flatten
from decoupled.losses import softmax_cross_entropy
from decoupled.own_layers import own_layers
from decoupled.types import Array, Estimator, Key, Loss, PyTree

# (est_params, h, y) -> one loss per example, (batch,).
LocalLoss = Callable[[PyTree, Array, Array], Array]


def local_loss(
    num_outputs: int,
    hidden: Sequence[int] = (64,),
    linear: bool = True,
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

    Args:
      num_outputs: of the head.
      hidden: widths of its ReLU layers U; empty for a linear head.
      linear: whether there is a W beside them.
      loss: (output of the head, y) -> (batch,).

    References:
      Nøkland & Eidnes 2019, "Training neural networks with local error signals" (arXiv 1901.06656), the
      prediction loss, of a linear head; Belilovsky et al. 2019 (arXiv 1812.11446) for heads with hidden
      layers.
    """
    head = AuxiliaryHead(num_outputs, tuple(hidden), linear)

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
    """A linear layer on top of ReLU layers on a flattened activation, and one beside them; from zero."""

    num_outputs: int
    hidden: tuple[int, ...]
    linear: bool = True

    @nn.compact
    def __call__(self, h: Array) -> Array:
        h = flatten(h)
        if not self.hidden or not self.linear:
            return self._above(h, self.hidden, bias=True)
        # One product for both layers that read h, since thin ones are slow.
        first, *others = self.hidden
        both = nn.Dense(first + self.num_outputs, kernel_init=_zeros_in_the_last(self.num_outputs))(h)
        return self._above(nn.relu(both[:, :first]), others, bias=False) + both[:, first:]

    def _above(self, h: Array, hidden: Sequence[int], bias: bool) -> Array:
        for features in hidden:
            h = nn.relu(nn.Dense(features)(h))
        return nn.Dense(self.num_outputs, use_bias=bias, kernel_init=nn.initializers.zeros)(h)

    def predict(self, params: PyTree, h: Array) -> Array:
        """Its output with given parameters."""
        with own_layers():
            out: Any = self.apply({"params": params}, h)
        return out

    def first_params(self, key: Key, h: Array) -> PyTree:
        """Those to start from, for activations like h."""
        with own_layers():
            return self.init(key, h)["params"]


def _zeros_in_the_last(count: int) -> Callable[..., Array]:
    """A kernel as `nn.Dense` has it by default, but for the last columns."""

    def init(key: Key, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
        inputs, outputs = shape
        kernel = nn.initializers.lecun_normal()(key, (inputs, outputs - count), dtype)
        return jnp.concatenate([kernel, jnp.zeros((inputs, count), dtype)], axis=1)

    return init

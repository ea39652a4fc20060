"""A Linen ResNet whose residual blocks learn apart: one boundary after each.

python -m examples.linen_resnet
"""

import jax
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

from decoupled import Boundary, estimators, split_optimizer

SG = estimators.loss_shaped(10, context=estimators.one_hot(10))


class Block(nn.Module):
    """Two convolutions around a shortcut, as in any ResNet."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, h, train):
        def conv_norm(h, size, stride):
            h = nn.Conv(self.features, (size, size), stride, use_bias=False)(h)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(h)

        out = conv_norm(nn.relu(conv_norm(h, 3, self.stride)), 3, 1)
        if out.shape != h.shape:
            h = conv_norm(h, 1, self.stride)
        return nn.relu(h + out)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x, y=None, train=False):
        h = nn.Conv(16, (3, 3))(x)
        for features, stride in ((16, 1), (32, 2), (64, 2)):
            h = Block(features, stride)(h, train)
            h = Boundary(SG)(h, y)
        return nn.Dense(10)(h.mean((1, 2)))


def main(steps: int = 300, batch_size: int = 64) -> float:
    """Trains on digits; returns the accuracy on those held back."""
    data = load_digits()
    images, labels = (data.images[..., None] / 16).astype("float32"), data.target
    train, test = slice(None, 1400), slice(1400, None)
    model = ResNet()
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    params, stats = variables["params"], variables["batch_stats"]
    tx = split_optimizer(optax.adam(1e-3), optax.adam(1e-3))
    opt_state = tx.init(params)

    @jax.jit
    def step(params, stats, opt_state, x, y):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            logits, new = model.apply(variables, x, y, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), new["batch_stats"]

        gradient, stats_now = jax.grad(loss, has_aux=True)(params)
        updates, new_opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), stats_now, new_opt_state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.integers(1400, size=batch_size)
        params, stats, opt_state = step(params, stats, opt_state, images[train][batch], labels[batch])
    logits = model.apply({"params": params, "batch_stats": stats}, images[test])
    accuracy = float((logits.argmax(-1) == labels[test]).mean())
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()

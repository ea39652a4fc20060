"""A Linen Vision Transformer whose encoder blocks learn apart, each from a local loss.

python -m examples.linen_vit
"""

import jax
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

from decoupled import Boundary, estimators, split_optimizer

GREEDY = estimators.local_loss(10)  # an auxiliary head after each block


class EncoderBlock(nn.Module):
    """Attention and an MLP, each around a shortcut, as in any ViT."""

    @nn.compact
    def __call__(self, h):
        h = h + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(h))
        out = nn.gelu(nn.Dense(4 * h.shape[-1])(nn.LayerNorm()(h)))
        return h + nn.Dense(h.shape[-1])(out)


class ViT(nn.Module):
    depth: int = 3
    width: int = 48

    @nn.compact
    def __call__(self, x, y=None):
        h = nn.Conv(self.width, (2, 2), (2, 2))(x)  # patches
        h = h.reshape(h.shape[0], -1, self.width)
        h = h + self.param("position", nn.initializers.normal(0.02), (1, *h.shape[1:]))
        for _ in range(self.depth):
            h = EncoderBlock()(h)
            h = Boundary(GREEDY)(h, y)
        return nn.Dense(10)(nn.LayerNorm()(h).reshape(h.shape[0], -1))


def main(steps: int = 500, batch_size: int = 64) -> float:
    """Trains on digits; returns the accuracy on those held back."""
    data = load_digits()
    images, labels = (data.images[..., None] / 16).astype("float32"), data.target
    model = ViT()
    params = jax.jit(model.init)(jax.random.key(0), images[:1])
    tx = split_optimizer(optax.adam(1e-3), optax.adam(1e-3))
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, x, y):
        def loss(params):
            logits = model.apply(params, x, y)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, new_opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), new_opt_state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.integers(1400, size=batch_size)
        params, opt_state = step(params, opt_state, images[batch], labels[batch])
    logits = model.apply(params, images[1400:])
    accuracy = float((logits.argmax(-1) == labels[1400:]).mean())
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()

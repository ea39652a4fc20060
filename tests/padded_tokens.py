"""A small Transformer on padded sequences, and the loss of what counts of them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import decoupled
from decoupled import from_functions, from_linen
from tests.helpers import CLASSES


class Attending(nn.Module):
    """A block over tokens, some of which are hidden from all others."""

    @nn.compact
    def __call__(self, batch):
        h, seen = batch["h"], batch["seen"]
        mask = nn.make_attention_mask(jnp.ones_like(seen), seen)
        return {"h": h + nn.MultiHeadDotProductAttention(2)(h, mask=mask), "seen": seen}


BLOCK = from_linen(Attending(), "block")
OUTPUT = from_functions(
    lambda key, h: jax.random.normal(key, (4, CLASSES)), lambda w, h: h["h"] @ w, "output"
)
MODULES = [BLOCK, BLOCK._replace(name="middle"), OUTPUT]


def tokens(hidden):
    """x, y, weight; x has this where it does not count."""
    rng = np.random.default_rng(0)
    seen = np.arange(5) < np.array([5, 3, 4])[:, None]
    h = rng.normal(size=(3, 5, 4)).astype(np.float32)
    h[~seen] = hidden
    return {"h": h, "seen": seen}, rng.integers(CLASSES, size=(3, 5)), seen.astype(np.float32)


def loss(params):
    """Mean of the tokens that count, of two blocks and the output with these parameters."""
    h, y, weight = tokens(0.0)
    for module, p in zip(MODULES, params, strict=True):
        h = module.apply(p, {}, h, jax.random.key(0), True)[0]
    each = decoupled.losses.softmax_cross_entropy(h.reshape(15, -1), y.reshape(-1))
    return (each * weight.reshape(-1)).sum() / weight.sum()

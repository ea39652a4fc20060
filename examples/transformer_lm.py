"""A small Transformer language model with a synthetic gradient for every token, on text made at run time.

python -m examples.transformer_lm
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from decoupled import Boundary, estimators, split_optimizer

LETTERS = " abcdefghijklmnopqrstuvwxyz."
SG = estimators.recursive_least_squares(context=estimators.one_hot(len(LETTERS)))


def make_text(sentences: int, seed: int) -> np.ndarray:
    """Letters, as integers, of sentences in which the verb depends on the animal."""
    rng = np.random.default_rng(seed)
    animals = {"dog": "barks", "cat": "purrs", "owl": "hoots", "lion": "roars", "bee": "hums"}
    names = rng.choice(list(animals), size=sentences)
    adjectives = rng.choice(["old", "young", "small", "angry", "happy"], size=sentences)
    text = "".join(f"the {a} {n} {animals[n]}. " for a, n in zip(adjectives, names, strict=True))
    return np.array([LETTERS.index(letter) for letter in text], np.int32)


class Block(nn.Module):
    @nn.compact
    def __call__(self, h):
        past = nn.make_causal_mask(h[..., 0])
        h = h + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(h), mask=past)
        return h + nn.Dense(h.shape[-1])(nn.gelu(nn.Dense(4 * h.shape[-1])(nn.LayerNorm()(h))))


class LanguageModel(nn.Module):
    depth: int = 2
    width: int = 64

    @nn.compact
    def __call__(self, tokens, following=None):
        h = nn.Embed(len(LETTERS), self.width)(tokens)
        h = h + self.param("position", nn.initializers.normal(0.02), (1, *h.shape[1:]))
        for _ in range(self.depth):
            h = Block()(h)
            # Every token is an example: (batch, time, width), and the letter that follows is its label.
            h = Boundary(SG, batch_axes=2)(h, following)
        return nn.Dense(len(LETTERS))(nn.LayerNorm()(h))


def main(steps: int = 400, batch_size: int = 16, length: int = 64) -> float:
    """Trains on one text; returns the loss on another, in nats a letter."""
    text, other = make_text(2000, seed=0), make_text(200, seed=1)
    model = LanguageModel()
    params = jax.jit(model.init)(jax.random.key(0), text[None, :length])
    tx = split_optimizer(optax.adam(1e-3), SG.optimizer(optax.identity()))
    opt_state = tx.init(params)

    def loss(params, windows):
        tokens, following = windows[:, :-1], windows[:, 1:]
        logits = model.apply(params, tokens, following)
        return optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()

    @jax.jit
    def step(params, opt_state, windows):
        updates, new_opt_state = tx.update(jax.grad(loss)(params, windows), opt_state, params)
        return optax.apply_updates(params, updates), new_opt_state

    def windows(text, starts):
        return jnp.asarray(np.stack([text[i : i + length + 1] for i in starts]))

    rng = np.random.default_rng(0)
    for _ in range(steps):
        starts = rng.integers(len(text) - length - 1, size=batch_size)
        params, opt_state = step(params, opt_state, windows(text, starts))
    held_out = float(loss(params, windows(other, range(0, len(other) - length - 1, length))))
    print(f"loss on new text {held_out:.3f} nats a letter")
    return held_out


if __name__ == "__main__":
    main()

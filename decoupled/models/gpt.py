"""A language model of causal transformer blocks as a chain to cut, after GPT-2 (Radford et al. 2019)."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.errors import UsageError
from decoupled.models.transformer import TransformerBlock, check_heads
from decoupled.modules import from_linen
from decoupled.shapes import AnyArray, Float, Integer
from decoupled.types import Array, Module

_DEVIATION = 0.02  # of the first weights, in GPT-2 as in GPT
_DRAW = nn.initializers.normal(_DEVIATION)


def gpt(
    depth: int,
    width: int,
    vocabulary: int,
    *,
    heads: int,
    context: int,
    mlp_width: int | None = None,
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> list[Module]:
    """Embedding, `depth` equal causal blocks, readout: tokens (batch, time) to (batch, time, vocabulary).

    GPT-2 small is `gpt(12, 768, 50257, heads=12, context=1024)`, but for the readout: that has weights of
    its own here, since modules of a chain share none. Blocks share their functions, so that
    `stack_equal` can stack them.

    Args:
      depth: number of blocks.
      width: of each position; a multiple of `heads`.
      vocabulary: number of tokens, which are integers from 0.
      heads: of the attention.
      context: the longest sequence, for which there are learned positions.
      mlp_width: hidden units of each block's MLP; by default 4 x width.
      dropout: rate, of embeddings, attention weights and what blocks add.
      dtype: of the computation; parameters stay float32.

    Raises:
      UsageError: `heads` do not divide `width`; (from init and apply) a sequence is longer than `context`,
        or not of integers.
    """
    check_heads(width, heads)
    embedding = from_linen(TokenEmbedding(vocabulary, width, context, dropout, dtype), "embedding")
    # What blocks add up to is then as large in deep networks as in shallow ones.
    draw_added = nn.initializers.normal(_DEVIATION / (2 * max(depth, 1)) ** 0.5)
    block = TransformerBlock(heads, mlp_width or 4 * width, True, dropout, dtype, _DRAW, draw_added)
    equal = from_linen(block, "block")
    blocks = [equal._replace(name=f"block_{i}") for i in range(depth)]
    return [embedding, *blocks, from_linen(Readout(vocabulary, dtype), "readout")]


class TokenEmbedding(nn.Module):
    """Integer tokens (batch, time) to (batch, time, features); learned positions if it has a context."""

    vocabulary: int
    features: int
    context: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Integer[AnyArray, "batch time"], train: bool
    ) -> Float[Array, "batch time features"]:
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise UsageError(
                f"tokens are integers (batch, time), not {tokens.dtype}{list(tokens.shape)}: cast them"
            )
        embed = nn.Embed(self.vocabulary, self.features, embedding_init=_DRAW, dtype=self.dtype)
        h = embed(tokens)
        if self.context is not None:
            if (time := tokens.shape[1]) > self.context:
                raise UsageError(
                    f"a sequence of {time} tokens is longer than the context of {self.context}: cut it, or"
                    " choose a longer context"
                )
            positions = self.param("positions", _DRAW, (self.context, self.features))
            h = h + positions[None, :time].astype(self.dtype)
        return nn.Dropout(self.dropout, deterministic=not train)(h)


class Readout(nn.Module):
    """Layer norm, then Dense without bias, at each position."""

    vocabulary: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "batch time features"]) -> Float[Array, "batch time vocabulary"]:
        h = nn.LayerNorm(dtype=self.dtype)(h)
        return nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, kernel_init=_DRAW)(h)

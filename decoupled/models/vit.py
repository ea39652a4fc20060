"""A vision transformer as a chain of blocks to cut, after Dosovitskiy et al. 2021 (arXiv 2010.11929)."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.errors import UsageError
from decoupled.models.transformer import TransformerBlock, check_heads
from decoupled.modules import from_linen
from decoupled.shapes import AnyArray, Float, Real
from decoupled.types import Array, Module

_DRAW_POSITIONS = nn.initializers.normal(0.02)


def vit(
    depth: int,
    width: int,
    num_outputs: int,
    *,
    heads: int,
    patch_size: int,
    mlp_width: int | None = None,
    class_token: bool = True,
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> list[Module]:
    """Patches with learned positions, `depth` equal encoder blocks, the output layer: depth + 2 layers.

    ViT-B/16 is `vit(12, 768, 1000, heads=12, patch_size=16)`. Blocks share their functions, so that
    `stack_equal` can stack them.

    Args:
      depth: number of blocks.
      width: of each token; a multiple of `heads`.
      num_outputs: of the last layer.
      heads: of the attention.
      patch_size: of the squares that an image is cut into; its sides must be multiples.
      mlp_width: hidden units of each block's MLP; by default 4 x width.
      class_token: whether the output is that of a token of its own, or of the mean over patches.
      dropout: rate, of embeddings, attention weights and what blocks add.
      dtype: of the computation; parameters stay float32.

    Raises:
      UsageError: `heads` do not divide `width`; (from init) patches do not tile the image.
    """
    check_heads(width, heads)
    patches = from_linen(PatchEmbedding(width, patch_size, class_token, dropout, dtype), "patches")
    block = TransformerBlock(heads, mlp_width or 4 * width, dropout=dropout, dtype=dtype)
    equal = from_linen(block, "block")
    blocks = [equal._replace(name=f"block_{i}") for i in range(depth)]
    return [patches, *blocks, from_linen(TokenOutput(num_outputs, class_token, dtype), "output")]


class PatchEmbedding(nn.Module):
    """(batch, height, width, channels) to (batch, patches, features), and one more for the class token."""

    features: int
    patch_size: int
    class_token: bool
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, h: Real[AnyArray, "batch height width channels"], train: bool
    ) -> Float[Array, "batch tokens features"]:
        side = self.patch_size
        if h.shape[1] % side or h.shape[2] % side:
            raise UsageError(
                f"an image of {h.shape[1]}x{h.shape[2]} cannot be cut into patches of {side}x{side}: choose"
                " a patch size that divides both sides"
            )
        h = nn.Conv(self.features, (side, side), (side, side), "VALID", dtype=self.dtype, name="project")(h)
        h = h.reshape(h.shape[0], -1, self.features)
        if self.class_token:
            token = self.param("class_token", nn.initializers.zeros, (1, 1, self.features))
            token = jnp.broadcast_to(token.astype(self.dtype), (h.shape[0], 1, self.features))
            h = jnp.concatenate([token, h], 1)
        h = h + self.param("positions", _DRAW_POSITIONS, (1, *h.shape[1:])).astype(self.dtype)
        return nn.Dropout(self.dropout, deterministic=not train)(h)


class TokenOutput(nn.Module):
    """Layer norm, then Dense, of the first token or of the mean over all."""

    num_outputs: int
    class_token: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "batch tokens features"]) -> Float[Array, "batch outputs"]:
        h = nn.LayerNorm(dtype=self.dtype)(h)
        return nn.Dense(self.num_outputs, dtype=self.dtype)(h[:, 0] if self.class_token else h.mean(1))

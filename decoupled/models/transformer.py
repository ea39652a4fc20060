"""The block that transformers repeat."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.errors import UsageError
from decoupled.shapes import Float
from decoupled.types import Array


class TransformerBlock(nn.Module):
    """Self-attention and an MLP (GELU), each after a layer norm and beside a shortcut.

    Maps (batch, time, width) to the same shape.

    Attributes:
      heads: of the attention; they share the width.
      mlp_width: hidden units of the MLP.
      causal: whether a position sees itself and those before it alone.
      dropout: rate, of attention weights and of what is added to the shortcut.
      dtype: of the computation; parameters stay float32, and softmax and norms compute in float32.
      draw: initialises matrices.
      draw_added: ... those whose output is added to the shortcut.
    """

    heads: int
    mlp_width: int
    causal: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    draw: Callable = nn.initializers.xavier_uniform()
    draw_added: Callable = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch time features"], train: bool
    ) -> Float[Array, "batch time features"]:
        attend = nn.MultiHeadDotProductAttention(
            self.heads,
            dtype=self.dtype,
            dropout_rate=self.dropout,
            broadcast_dropout=False,
            deterministic=not train,
            kernel_init=self.draw,
            out_kernel_init=self.draw_added,
            force_fp32_for_softmax=True,
            name="attention",
        )
        drop = nn.Dropout(self.dropout, deterministic=not train)
        h = h.astype(self.dtype)
        mask = nn.make_causal_mask(jnp.ones((1, h.shape[1]))) if self.causal else None
        h = h + drop(attend(nn.LayerNorm(dtype=self.dtype, name="attention_norm")(h), mask=mask))
        hidden = nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(h)
        hidden = nn.Dense(self.mlp_width, dtype=self.dtype, kernel_init=self.draw, name="mlp_in")(hidden)
        out = nn.Dense(h.shape[-1], dtype=self.dtype, kernel_init=self.draw_added, name="mlp_out")
        return h + drop(out(nn.gelu(hidden)))


def check_heads(width: int, heads: int) -> None:
    """That the heads can share the width.

    Raises:
      UsageError: they cannot.
    """
    if width % heads:
        raise UsageError(
            f"{heads} heads cannot share a width of {width}: choose a width that is a multiple of the heads"
        )

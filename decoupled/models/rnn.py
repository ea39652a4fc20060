"""Recurrent layers as a chain, one on top of the other over the whole sequence."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from decoupled.errors import UsageError
from decoupled.models.gpt import TokenEmbedding
from decoupled.modules import from_linen
from decoupled.modules.linen import FEEDBACK
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Module, PyTree


def rnn(
    depth: int,
    width: int,
    num_outputs: int,
    *,
    cell: Callable[..., nn.RNNCellBase] = nn.LSTMCell,
    vocabulary: int | None = None,
    last_step: bool = False,
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> list[Module]:
    """`depth` recurrent layers, then a linear one at each step; below, an embedding if there are tokens.

    Maps (batch, time, features), or integer tokens (batch, time), to (batch, time, num_outputs). Carries
    start at zero with each sequence and stay inside their layer: a boundary cuts between layers, never
    between steps. Recurrent layers share their functions, so that `stack_equal` can stack them.

    Args:
      depth: number of recurrent layers.
      width: units of each, and features of the embedding.
      num_outputs: of the last layer.
      cell: `nn.SimpleCell`, `nn.GRUCell`, `nn.LSTMCell` or another of Linen's, called as
        `cell(width, dtype=dtype)`.
      vocabulary: number of tokens; None if the input is (batch, time, features).
      last_step: whether the output is that of the last step alone, (batch, num_outputs).
      dropout: rate, between layers.
      dtype: of the computation; parameters stay float32.

    Raises:
      UsageError: (from init and apply) the input has another shape, or tokens are not integers.
    """
    equal = from_linen(RecurrentLayer(cell, width, dropout, dtype), "recurrent")
    layers = [equal._replace(name=f"recurrent_{i}") for i in range(depth)]
    if vocabulary is not None:
        embedding = TokenEmbedding(vocabulary, width, dropout=dropout, dtype=dtype)
        layers.insert(0, from_linen(embedding, "embedding"))
    return [*layers, from_linen(StepOutput(num_outputs, last_step, dtype), "output")]


class RecurrentLayer(nn.Module):
    """A cell that runs over (batch, time, features), then dropout."""

    cell: Callable[..., nn.RNNCellBase]
    width: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, h: Float[AnyArray, "batch time features"], train: bool
    ) -> Float[Array, "batch time width"]:
        if h.ndim != 3:
            raise UsageError(
                f"a recurrent layer takes (batch, time, features), not {list(h.shape)}: reshape the input,"
                " or give a vocabulary if it is tokens"
            )
        cell = self.cell(self.width, dtype=self.dtype)
        start = cell.initialize_carry(jax.random.key(0), h[:, 0].shape)

        def step(cell: nn.RNNCellBase, carry: PyTree, h: AnyArray) -> tuple[PyTree, Array]:
            # The carry is summed up over all steps, so it keeps the precision of parameters.
            after, out = cell(carry, h)
            return jax.tree.map(lambda new, old: new.astype(old.dtype), after, carry), out.astype(
                self.dtype
            )

        # Feedback weights of a backward rule are the same at every step, as parameters are.
        over_time = nn.scan(
            step,
            variable_broadcast=("params", FEEDBACK),
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        _, h = over_time(cell, start, h)
        return nn.Dropout(self.dropout, deterministic=not train)(h)


class StepOutput(nn.Module):
    """Dense, at each step or at the last."""

    num_outputs: int
    last_step: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[AnyArray, "batch time features"]) -> Float[Array, "batch *outputs"]:
        return nn.Dense(self.num_outputs, dtype=self.dtype)(h[:, -1] if self.last_step else h)

"""Images of half the size."""

from flax import linen as nn

from decoupled.errors import UsageError
from decoupled.shapes import AnyArray, Real
from decoupled.types import Array


def halved(h: Real[AnyArray, "batch height width channels"]) -> Real[Array, "batch rows columns channels"]:
    """2x2 max pooling of (batch, height, width, channels); an odd last row or column is left out.

    Raises:
      UsageError: there is nothing left to halve.
    """
    if min(h.shape[1:3]) < 2:
        raise UsageError(
            f"{h.shape[1]}x{h.shape[2]} is too small an image to be halved once more: give the network"
            " fewer layers that halve it"
        )
    return nn.max_pool(h, (2, 2), (2, 2))

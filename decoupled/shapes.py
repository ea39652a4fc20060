"""Arrays with their kinds and shapes, as signatures have them: Float[Array, "batch *features"].

They are jaxtyping's where it is installed, as it is for the tests, which check them in every call. Where it
is not, an annotation is the type of the array alone.
"""

from typing import TYPE_CHECKING, TypeAlias

import jax
import numpy as np

from decoupled.types import Array as Array

if TYPE_CHECKING:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Integer as Integer
    from jaxtyping import Real as Real
    from jaxtyping import Shaped as Shaped
    from jaxtyping import UInt8 as UInt8
else:
    try:
        from jaxtyping import Bool, Float, Integer, Real, Shaped, UInt8
    except ImportError:

        class _ArrayAlone:
            def __class_getitem__(cls, array_and_shape):
                return array_and_shape[0]

        Bool = Float = Integer = Real = Shaped = UInt8 = _ArrayAlone

# What is only read may be NumPy's too.
AnyArray: TypeAlias = jax.Array | np.ndarray

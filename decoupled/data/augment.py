"""From bytes to network inputs, on the device, inside the compiled step."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from decoupled.errors import UsageError
from decoupled.shapes import AnyArray, Bool, Float, Shaped, UInt8
from decoupled.types import Array, Key, PyTree


class Preprocess(NamedTuple):
    """Pure functions from what a data set holds to inputs.

    Attributes:
      train: (key, images) -> inputs, augmented.
      evaluate: images -> inputs.
      mean, deviation: of each channel of the training images; None where inputs are
        taken as they are.
    """

    train: Callable[[Key, PyTree], PyTree]
    evaluate: Callable[[PyTree], PyTree]
    mean: Float[np.ndarray, " channels"] | None
    deviation: Float[np.ndarray, " channels"] | None


# Inputs as they are, of any structure.
AS_THEY_ARE = Preprocess(
    lambda key, inputs: jax.tree.map(jnp.asarray, inputs),
    lambda inputs: jax.tree.map(jnp.asarray, inputs),
    None,
    None,
)


def preprocess(
    train_images: PyTree, crop_padding: int = 0, flip: bool = False, cutout: int = 0
) -> Preprocess:
    """Standardises each channel by the training images' mean and deviation, after shifts and flips.

    Only bytes are, in the shape of images. All else is taken as it is.

    Args:
      train_images: images (examples, height, width, channels) of uint8, or other inputs, in one array or
        several.
      crop_padding: training images are shifted by up to so many pixels each way; 0 for none.
      flip: whether training images are mirrored half the time.
      cutout: side, in pixels, of the square that is blanked in each training image; 0 for none.

    Raises:
      UsageError: `crop_padding` or `cutout` leaves nothing of the images, or there are none to augment.
    """
    augmented = crop_padding or flip or cutout
    told = f"crop_padding is {crop_padding}, flip is {flip} and cutout is {cutout}"
    if not isinstance(train_images, np.ndarray):
        if augmented:
            raise UsageError(
                f"{told}, but inputs are several arrays, and no images (height, width, channels): leave"
                " them out"
            )
        return AS_THEY_ARE
    if train_images.ndim != 4 and augmented:
        raise UsageError(
            f"{told}, but inputs of shape {train_images.shape[1:]} are no images (height, width, channels):"
            " leave them out"
        )
    if crop_padding and crop_padding > min(train_images.shape[1:3]):
        raise UsageError(f"crop_padding is {crop_padding}: shifted so far, nothing of an image is left")
    if cutout and cutout >= (covers := 2 * max(train_images.shape[1:3]) - 1):
        raise UsageError(
            f"cutout is {cutout}: from {covers} on, the square leaves nothing of an image, wherever it lies"
        )
    mean, deviation = None, None
    if train_images.ndim == 4 and train_images.dtype == np.uint8:
        mean, deviation = _channel_statistics(train_images)
    evaluate = standardise(mean, deviation)

    def train(key: Key, images: Shaped[AnyArray, "batch *shape"]) -> Shaped[Array, "batch *shape"]:
        crop_key, flip_key = jax.random.split(key)
        if crop_padding:
            images = random_crop(crop_key, images, crop_padding)
        if flip:
            images = random_flip(flip_key, images)
        inputs = evaluate(images)
        # A third key beside those two, which stay what they are without it.
        return random_cutout(jax.random.fold_in(key, 2), inputs, cutout) if cutout else inputs

    return Preprocess(train, evaluate, mean, deviation)


def standardise(
    mean: Float[np.ndarray, " channels"] | None, deviation: Float[np.ndarray, " channels"] | None
) -> Callable[[PyTree], PyTree]:
    """A function images -> inputs, (batch, height, width, channels); the statistics are one a channel.

    Without statistics inputs are what they are given as, of any structure.
    """
    if mean is None or deviation is None:
        return AS_THEY_ARE.evaluate
    mean_row, deviation_row = (
        jnp.asarray(statistic, jnp.float32)[None, None, None, :] for statistic in (mean, deviation)
    )

    def evaluate(
        images: Shaped[AnyArray, "batch height width channels"],
    ) -> Float[Array, "batch height width channels"]:
        chex.assert_rank(images, 4)
        return (jnp.asarray(images).astype(jnp.float32) - mean_row) / jnp.maximum(deviation_row, 1e-6)

    return evaluate


def random_crop(
    key: Key, images: Shaped[AnyArray, "batch height width channels"], padding: int
) -> Shaped[Array, "batch height width channels"]:
    """Pads by `padding` zeros on each side and cuts each image back to size at a random place."""
    chex.assert_rank(images, 4)
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)

    def crop(image: Array, corner: Array) -> Array:
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def random_flip(
    key: Key, images: Shaped[AnyArray, "batch height width channels"]
) -> Shaped[Array, "batch height width channels"]:
    """Mirrors each image left to right with probability a half."""
    chex.assert_rank(images, 4)
    flipped = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def random_cutout(
    key: Key, inputs: Shaped[AnyArray, "batch height width channels"], side: int
) -> Shaped[Array, "batch height width channels"]:
    """Sets a square of each image to zero, to the mean of standardised ones (DeVries & Taylor 2017).

    Its centre may be any pixel, with equal probability, so that a part of the square may lie outside. Of an
    even side, half lies above and left of the centre, and the rest begins with it.

    Args:
      side: of the square, in pixels.

    References:
      DeVries & Taylor 2017, "Improved regularization of convolutional neural networks with cutout" (arXiv
      1708.04552), section 3.2.
    """
    chex.assert_rank(inputs, 4)
    batch, height, width, _ = inputs.shape
    centres = jax.random.randint(key, (batch, 2), 0, jnp.asarray([[height, width]]))

    def inside(axis: int, size: int) -> Bool[Array, "batch pixels"]:
        offsets = jnp.arange(size)[None, :] - (centres[:, axis, None] - side // 2)
        return (offsets >= 0) & (offsets < side)

    blank = inside(0, height)[:, :, None] & inside(1, width)[:, None, :]
    return jnp.where(blank[..., None], jnp.zeros((), inputs.dtype), inputs)


def _channel_statistics(
    images: UInt8[np.ndarray, "examples height width channels"],
) -> tuple[Float[np.ndarray, " channels"], Float[np.ndarray, " channels"]]:
    """Mean and deviation of each channel, a part at a time: no float copy of a whole data set."""
    total = squares = np.zeros(images.shape[-1])
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000].astype(np.float64)
        total = total + part.sum((0, 1, 2))
        squares = squares + np.square(part).sum((0, 1, 2))
    count = images[..., 0].size
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))

"""Squares blanked in training images: where they lie, how much they blank, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoupled import UsageError, data
from decoupled.data.augment import random_crop, random_cutout, random_flip

HEIGHT, WIDTH = 4, 6
KEY = jax.random.key(3)
BYTES = np.random.default_rng(0).integers(256, size=(40, HEIGHT, WIDTH, 3), dtype=np.uint8)


def square(row, column, side):
    """What stays of an image, by the definition, pixel by pixel."""
    half = side // 2
    rows, columns = (range(centre - half, centre - half + side) for centre in (row, column))
    return np.array([[i not in rows or j not in columns for j in range(WIDTH)] for i in range(HEIGHT)])


@pytest.mark.parametrize("side", [1, 3, 4, 9])
def test_every_centre_is_as_likely_as_any_other(side):
    draws = 4800
    kept = np.asarray(random_cutout(KEY, jnp.ones((draws, HEIGHT, WIDTH, 2)), side))
    np.testing.assert_array_equal(kept[..., 0], kept[..., 1])
    kept = kept[..., 0]
    masks = [square(i, j, side) for i in range(HEIGHT) for j in range(WIDTH)]
    found, counts = np.unique(kept, axis=0, return_counts=True)
    expected, times = np.unique(masks, axis=0, return_counts=True)  # a large square has some alike
    np.testing.assert_array_equal(found, expected)
    probability = times / len(masks)
    assert (np.abs(counts / draws - probability) < 5 * np.sqrt(probability / draws)).all()

    # The chance of each pixel, in closed form: a product of those of its row and its column.
    def chance(size):
        first = np.arange(size) - side + side // 2 + 1  # of the centres that blank it, and the last
        last = np.arange(size) + side // 2
        return (np.minimum(last, size - 1) - np.maximum(first, 0) + 1) / size

    blanked = chance(HEIGHT)[:, None] * chance(WIDTH)[None, :]
    np.testing.assert_allclose(1 - kept.mean(0), blanked, atol=5 * 0.5 / np.sqrt(draws))
    assert 1 - kept.mean() == pytest.approx(blanked.mean(), abs=0.01)
    if side < WIDTH - side:  # away from edges all are alike
        assert np.ptp(blanked[side // 2, side // 2 : WIDTH - side // 2]) < 1e-12


def test_what_is_blanked_is_the_mean_and_the_rest_as_without():
    plain, cut = (data.preprocess(BYTES, crop_padding=2, flip=True, cutout=side) for side in (0, 3))
    images = jnp.asarray(BYTES)
    without, inputs = (np.asarray(pre.train(KEY, images)) for pre in (plain, cut))
    blank = (inputs == 0).all(-1)
    assert 0.2 < blank.mean() < 9 / 24
    np.testing.assert_array_equal(inputs[~blank], without[~blank])
    assert (without[blank] != 0).any()
    np.testing.assert_array_equal(cut.evaluate(images), plain.evaluate(images))


def test_shifts_and_flips_are_drawn_as_ever():
    crop_key, flip_key = jax.random.split(KEY)
    images = jnp.asarray(BYTES)
    shifted = random_flip(flip_key, random_crop(crop_key, images, 2))
    pre = data.preprocess(BYTES, crop_padding=2, flip=True)
    np.testing.assert_array_equal(pre.train(KEY, images), pre.evaluate(shifted))
    # ... and squares by a key of their own.
    ones = np.ones((40, HEIGHT, WIDTH, 1), np.float32)
    found = data.preprocess(ones, cutout=3).train(KEY, ones)
    for key in (KEY, crop_key, flip_key):
        assert (found != random_cutout(key, ones, 3)).any()


def test_inputs_that_are_not_standardised_keep_their_kind():
    inputs = np.ones((5, HEIGHT, WIDTH, 1), np.int32)
    found = data.preprocess(inputs, cutout=2).train(KEY, inputs)
    assert found.dtype == jnp.int32
    assert set(np.unique(found)) == {0, 1}


@pytest.mark.parametrize(
    ("inputs", "side", "message"),
    [
        (BYTES, 11, "^cutout is 11: from 11 on, the square leaves nothing of an image, wherever it lies$"),
        (
            BYTES[..., 0],
            1,
            r"^crop_padding is 0, flip is False and cutout is 1, but .* \(4, 6\) are no images",
        ),
        ((BYTES, BYTES), 1, "cutout is 1, but inputs are several arrays, and no images"),
    ],
)
def test_what_cannot_be_blanked(inputs, side, message):
    with pytest.raises(UsageError, match=message) as told:
        data.preprocess(inputs, cutout=side)
    assert "\n" not in str(told.value)


def test_the_largest_square_leaves_something():
    ones = np.ones((200, HEIGHT, WIDTH, 1), np.float32)
    assert np.asarray(data.preprocess(ones, cutout=2 * WIDTH - 2).train(KEY, ones)).any()
    assert not np.asarray(random_cutout(KEY, ones, 2 * WIDTH - 1)).any()

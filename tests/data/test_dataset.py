"""Splits, batches, the embedded and the generated set, and preparation on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoupled import DataError, UsageError, data
from decoupled.data.augment import random_crop, random_flip
from decoupled.data.dataset import checked_split


def small(examples=10):
    images = np.arange(examples, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    return data.Split(images, np.arange(examples, dtype=np.int32))


def test_held_out_examples_are_the_same_every_time_and_disjoint():
    kept, held = data.hold_out(small(), 3)
    assert sorted([*kept.labels, *held.labels]) == list(range(10))
    assert len(held) == 3
    np.testing.assert_array_equal(held.images[:, 0, 0, 0], held.labels)
    np.testing.assert_array_equal(data.hold_out(small(), 3)[1].labels, held.labels)
    for count in (10, -1):
        with pytest.raises(UsageError, match="validation_examples is"):
            data.hold_out(small(), count)


def test_batches_cover_an_epoch_and_follow_seed_and_epoch():
    def order(seed, epoch):
        batches = list(data.shuffled_batches(small(), 3, seed, epoch))
        assert [len(labels) for _, labels in batches] == [3, 3, 3]
        for images, labels in batches:
            np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
        return np.concatenate([labels for _, labels in batches]).tolist()

    assert len(set(order(0, 0))) == 9
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 0)
    with pytest.raises(UsageError, match="batch_size is 11, but there are only 10"):
        next(data.shuffled_batches(small(), 11, 0, 0))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (3, [0, 1], "3 images but 2 labels"),
        (0, [], "no examples"),
        (2, [0, 4], r"label 4 of example 1 is outside 0\.\.3"),
    ],
)
def test_splits_are_checked(images, labels, message):
    with pytest.raises(DataError, match=message):
        checked_split(np.zeros((images, 2, 2, 1), np.uint8), np.array(labels, np.uint8), 4, "here")


@pytest.mark.parametrize(("make", "shape"), [(data.digits, (8, 8, 1)), (data.procedural, (32, 32, 3))])
def test_sets_that_need_no_download(make, shape):
    dataset, again = make(), make()
    for split, same in ((dataset.train, again.train), (dataset.test, again.test)):
        assert split.images.shape[1:] == shape
        assert split.images.dtype == np.uint8
        assert set(split.labels) == set(range(10))
        np.testing.assert_array_equal(split.images, same.images)
    assert dataset.train.images.max() > 200


def test_inputs_are_standardised_by_the_training_images():
    images = np.random.default_rng(0).integers(256, size=(50, 4, 4, 3), dtype=np.uint8)
    inputs = data.preprocess(images).evaluate(jnp.asarray(images))
    np.testing.assert_allclose(inputs.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std((0, 1, 2)), 1, atol=1e-5)
    flat = data.preprocess(np.full((5, 4, 4, 1), 7, np.uint8)).evaluate(jnp.full((1, 4, 4, 1), 7))
    assert not flat.any()


def test_crops_are_shifts_and_flips_are_mirrors():
    images = jnp.arange(1, 2 * 5 * 5 + 1, dtype=jnp.uint8).reshape(2, 5, 5, 1)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for seed in range(60):
        cropped = np.asarray(random_crop(jax.random.key(seed), images, 2))
        for original, crop in zip(padded, cropped, strict=True):
            shifts = [
                (i, j) for i in range(5) for j in range(5) if (original[i : i + 5, j : j + 5] == crop).all()
            ]
            assert shifts
            seen.update(shifts)
    assert len(seen) == 25
    flips = [np.asarray(random_flip(jax.random.key(seed), images)) for seed in range(20)]
    mirrored = [(f[0] == images[0, :, ::-1]).all() for f in flips]
    assert all((f[0] == images[0]).all() or m for f, m in zip(flips, mirrored, strict=True))
    assert 3 < sum(mirrored) < 17


def test_augmentation_in_training_only():
    images = np.random.default_rng(0).integers(256, size=(8, 6, 6, 3), dtype=np.uint8)
    pre = data.preprocess(images, crop_padding=2, flip=True)
    one, other = (pre.train(jax.random.key(seed), jnp.asarray(images)) for seed in (0, 1))
    assert bool((one != other).any())
    plain = data.preprocess(images)
    np.testing.assert_array_equal(
        plain.train(jax.random.key(0), jnp.asarray(images)), plain.evaluate(jnp.asarray(images))
    )


def test_a_fingerprint_is_of_every_byte():
    dataset = data.Dataset("small", 10, small(), small(3))
    told = {dataset.fingerprint()}
    images, labels = (part.copy() for part in dataset.test)
    images[-1, -1, -1, -1] ^= 1
    labels[-1] ^= 1
    for test in (data.Split(images, dataset.test.labels), data.Split(dataset.test.images, labels)):
        told.add(dataset._replace(test=test).fingerprint())
    told.add(dataset._replace(train=small(9)).fingerprint())
    flat = dataset.train.images.reshape(10, 4, 1, 1)
    told.add(dataset._replace(train=data.Split(flat, dataset.train.labels)).fingerprint())
    assert len(told) == 5
    assert dataset._replace(name="other", source="elsewhere").fingerprint() == dataset.fingerprint()

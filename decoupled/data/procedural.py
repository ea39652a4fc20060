"""A generated stand-in for CIFAR-10: 32x32 colour images of gratings, ten classes, no download."""

import numpy as np

from decoupled.data.dataset import Dataset, Split

_ORIENTATIONS = 5
_WAVELENGTHS = (4.0, 8.0)


def procedural(train_examples: int = 4000, test_examples: int = 1000, seed: int = 0) -> Dataset:
    """Noisy gratings; the class is one of 5 orientations x 2 wavelengths, whatever phase and colours."""
    rng = np.random.default_rng(seed)
    train, test = (_gratings(rng, examples) for examples in (train_examples, test_examples))
    return Dataset("procedural", 10, train, test, f"a generator with seed {seed}")


def _gratings(rng: np.random.Generator, examples: int) -> Split:
    labels = rng.integers(_ORIENTATIONS * len(_WAVELENGTHS), size=examples)
    jitter = rng.uniform(-0.25, 0.25, examples)
    angle = np.pi * (labels % _ORIENTATIONS + jitter) / _ORIENTATIONS
    frequency = 2 * np.pi / np.take(_WAVELENGTHS, labels // _ORIENTATIONS)
    rows, columns = np.mgrid[:32, :32]
    along = (np.cos(angle)[:, None, None] * columns + np.sin(angle)[:, None, None] * rows) * frequency[
        :, None, None
    ]
    phase = rng.uniform(0, 2 * np.pi, examples)
    wave = 0.5 + 0.5 * np.sin(along + phase[:, None, None])
    low, high = rng.uniform(0, 1, (2, examples, 1, 1, 3))
    images = low + (high - low) * wave[..., None] + rng.normal(0, 0.1, (examples, 32, 32, 3))
    return Split((255 * images.clip(0, 1)).astype(np.uint8), labels.astype(np.int32))

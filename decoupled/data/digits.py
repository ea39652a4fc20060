"""scikit-learn's digits: 1797 real handwritten digits of 8x8 pixels that ship in its wheel."""

from typing import Any

import numpy as np

from decoupled.data.dataset import Dataset, Split, hold_out
from decoupled.extras import extra

_TEST_EXAMPLES = 360


def digits() -> Dataset:
    """The digits with a fixed random fifth as test set (there is no published split)."""
    with extra("train"):
        from sklearn.datasets import load_digits
    bunch: Any = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    train, test = hold_out(Split(images, bunch.target.astype(np.int32)), _TEST_EXAMPLES)
    return Dataset("digits", 10, train, test, "scikit-learn's wheel")

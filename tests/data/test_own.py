"""Data of one's own: each form that a function may return, and what is wrong with others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoupled import DataError, UsageError, data
from decoupled.data import own_dataset

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(10, 2, 3)), RNG.integers(4, size=10)
Y[:2] = 3


class Examples:
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]


PAIRS = [(X[i], int(Y[i])) for i in range(10)]
ARRAYS = {"train_inputs": X[:8], "train_targets": Y[:8], "test_inputs": X[8:], "test_targets": Y[8:]}
FORMS = {
    "four arrays": tuple(ARRAYS.values()),
    "a dict of arrays": ARRAYS,
    "a Dataset": data.Dataset("n", 4, data.Split(X[:8], Y[:8]), data.Split(X[8:], Y[8:])),
    "two lists": (PAIRS[:8], PAIRS[8:]),
    "a dict of splits": {"train": Examples(PAIRS[:8]), "test": Examples(PAIRS[8:])},
    "pairs of arrays": ((X[:8], Y[:8]), (X[8:], jnp.asarray(Y[8:]))),
    "dicts": (
        [{"inputs": x, "targets": y} for x, y in PAIRS[:8]],
        [{"image": x, "label": y, "id": 3} for x, y in PAIRS[8:]],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    made = own_dataset(FORMS[form], "n")
    for split, x, y in ((made.train, X[:8], Y[:8]), (made.test, X[8:], Y[8:])):
        np.testing.assert_array_equal(split.images, x.astype(np.float32))
        np.testing.assert_array_equal(split.labels, y)
        assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int32)
    assert (made.name, made.num_classes) == ("n", 4)
    assert len(made.fingerprint()) == 64


@pytest.mark.parametrize("whole", [(X, Y), Examples(PAIRS)])
def test_a_fifth_of_one_split_is_for_tests(whole):
    made, again = own_dataset(whole, "n"), own_dataset(whole, "n")
    assert (len(made.train), len(made.test)) == (8, 2)
    assert made.fingerprint() == again.fingerprint()
    rows = np.concatenate([made.train.images, made.test.images])
    assert sorted(rows[:, 0, 0]) == sorted(X.astype(np.float32)[:, 0, 0])


def of(inputs, targets, **more):
    arrays = {"train_inputs": inputs, "train_targets": targets, **more}
    return {**arrays, "test_inputs": inputs, "test_targets": targets}


@pytest.mark.parametrize(
    ("targets", "several", "outputs", "shape", "dtype"),
    [
        (Y, False, 4, (10,), np.int32),
        (Y > 1, False, 2, (10,), np.int32),
        (np.tile(Y[:, None], 5), False, 4, (10, 5), np.int32),  # tokens
        (Y * 0.5, False, 1, (10, 1), np.float32),
        (X[:, 0], False, 3, (10, 3), np.float32),
        (X[:, 0] > 0, False, 3, (10, 3), np.float32),
        ((X[:, 0] > 0).astype(int), True, 3, (10, 3), np.float32),
        (Y > 1, True, 1, (10, 1), np.float32),
    ],
)
def test_targets(targets, several, outputs, shape, dtype):
    made = own_dataset(of(X, targets), "n", several)
    assert made.num_classes == outputs
    assert (made.train.labels.shape, made.train.labels.dtype) == (shape, dtype)
    np.testing.assert_array_equal(made.train.labels.ravel(), np.ravel(targets).astype(dtype))
    assert own_dataset(of(X, targets, num_outputs=7), "n", several).num_classes == 7


NAN = np.where(np.arange(10)[:, None, None] == 3, np.nan, X)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (X, UsageError, "n is a ndarray: return a Dataset, arrays"),
        (None, UsageError, "n is a NoneType, which is no data set"),
        ((X, Y, X, X, Y), UsageError, "n is a tuple"),
        ({"train": PAIRS}, UsageError, "n returns a dict of train: return"),
        (
            [(X[0], 1, 2, 3)] * 5,
            UsageError,
            r"n: example 0 is .*tuple.*: give \(x, y\), or \(x, y, weight\), or a dict with",
        ),
        ([{"a": 1}] * 5, UsageError, "n: example 0 is a dict of a: give "),
        ([], DataError, "n: no examples in it"),
        ([(X[0], 1), (X[0, :1], 1)], DataError, r"inputs of example 1 are float64\[1, 3\], of example 0"),
        ([(1, 1), (0.5, 1)], DataError, "inputs of example 1 are float64"),
        (of(X, Y[:9]), DataError, "n, train: 10 inputs but 9 targets"),
        (of(X[:0], Y[:0]), DataError, "n, train: no examples in it"),
        (
            (X, Y, X[:, :1], Y),
            DataError,
            r"inputs of an example are float32\[2, 3\] to train with, but float32",
        ),
        ((X, Y, X, Y * 1.0), DataError, "targets of an example are int32.* to train with, but float32"),
        (of(X, Y - 1), DataError, "n, train: label -1 of example"),
        (of(X, Y, num_outputs=3), DataError, r"n, train: label 3 of example 0 is outside 0\.\.2"),
        (of(X, Y, num_outputs="3"), UsageError, "n: num_outputs is '3'"),
        (of(NAN, Y), DataError, "n, train inputs of example 3 are not finite"),
        (of(X, np.array(list("abcdefghij"))), UsageError, "n, train targets are <U1 of shape"),
        (of(X * 1j, Y), UsageError, "complex128: give real numbers"),
        (of(Y + 2**40, Y), DataError, "which 32 bits do not hold"),
    ],
)
def test_what_is_no_data_set(value, error, message):
    with pytest.raises(error, match=message) as told:
        own_dataset(value, "n")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("inputs", [X, Y, X[..., None], Y.astype(np.uint8), np.uint8([[Y]] * 3)])
def test_only_images_in_bytes_are_standardised(inputs):
    prepare = data.preprocess(inputs)
    assert prepare.mean is None
    for made in (prepare.evaluate(inputs[:2]), prepare.train(jax.random.key(0), inputs[:2])):
        np.testing.assert_array_equal(made, jnp.asarray(inputs[:2]))
    if inputs.ndim != 4:
        with pytest.raises(UsageError, match="are no images"):
            data.preprocess(inputs, flip=True)

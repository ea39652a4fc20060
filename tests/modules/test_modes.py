"""Modules that are told of training, each in its own words, against Flax told by hand."""

import functools
import inspect
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import decoupled

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32) + 2.0


def body(h, train):
    """What tells training from evaluation: the mean of the batch, and dropout."""
    h = nn.BatchNorm(use_running_average=not train)(h)
    return nn.Dropout(0.5, deterministic=not train)(h)


class Train(nn.Module):
    @nn.compact
    def __call__(self, h, train=False):
        return body(h, train)


class Training(nn.Module):
    @nn.compact
    def __call__(self, h, *, training: bool):
        return body(h, training)


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, h, mask=None, is_training=False, scale=1.0):
        assert mask is None
        return scale * body(h, is_training)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, h, deterministic: bool = True):
        return body(h, not deterministic)


class EnableDropout(nn.Module):
    @nn.compact
    def __call__(self, h, enable_dropout=False):
        return body(h, enable_dropout)


class Stochastic(nn.Module):
    @nn.compact
    def __call__(self, h, *, stochastic=False):
        return body(h, stochastic)


class IsTest(nn.Module):
    @nn.compact
    def __call__(self, h, is_test=True):
        return body(h, not is_test)


class Both(nn.Module):
    @nn.compact
    def __call__(self, h, deterministic, use_running_average=True):
        assert deterministic == use_running_average
        return body(h, not deterministic)


class Merged(nn.Module):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, h, deterministic: bool | None = None):
        return body(h, not nn.merge_param("deterministic", self.deterministic, deterministic))


class Wrapper(nn.Module):
    inner: nn.Module

    def __call__(self, h, **kwargs):
        return self.inner(h, **kwargs)


# A module, what Flax must be given for it in training, and in evaluation.
TOLD = {
    "train": (Train(), {"train": True}, {"train": False}),
    "training, by keyword only": (Training(), {"training": True}, {"training": False}),
    "is_training, behind others": (IsTraining(), {"is_training": True}, {"is_training": False}),
    "deterministic": (Deterministic(), {"deterministic": False}, {"deterministic": True}),
    "enable_dropout, as in T5": (EnableDropout(), {"enable_dropout": True}, {"enable_dropout": False}),
    "stochastic": (Stochastic(), {"stochastic": True}, {"stochastic": False}),
    "is_test": (IsTest(), {"is_test": False}, {"is_test": True}),
    "two of a meaning": (
        Both(),
        {"deterministic": False, "use_running_average": False},
        {"deterministic": True, "use_running_average": True},
    ),
    "an attribute or an argument": (Merged(), {"deterministic": False}, {"deterministic": True}),
    "an attribute that is set": (Merged(deterministic=True), {}, {}),
    "BatchNorm": (nn.BatchNorm(), {"use_running_average": False}, {"use_running_average": True}),
    "BatchNorm that is told": (nn.BatchNorm(use_running_average=True), {}, {}),
    "Dropout": (nn.Dropout(0.5), {"deterministic": False}, {"deterministic": True}),
    "Dropout that is told": (nn.Dropout(0.5, deterministic=True), {}, {}),
    "SpectralNorm": (nn.SpectralNorm(nn.Dense(4)), {"update_stats": True}, {"update_stats": False}),
    "SpectralNorm, and within": (
        nn.SpectralNorm(Training()),
        {"update_stats": True, "training": True},
        {"update_stats": False, "training": False},
    ),
    "keywords that are passed on": (
        Wrapper(Wrapper(Deterministic())),
        {"deterministic": False},
        {"deterministic": True},
    ),
    "first of a Sequential": (
        nn.Sequential([Training(), nn.tanh]),
        {"training": True},
        {"training": False},
    ),
    "Sequential with nothing to tell": (nn.Sequential([nn.tanh, nn.Dense(3), nn.Dense(2)]), {}, {}),
    "Sequential of layers that are told": (
        nn.Sequential([nn.Dense(3), nn.Dropout(0.5, deterministic=True)]),
        {},
        {},
    ),
    "Sequential of functions": (nn.Sequential([nn.tanh, nn.relu]), {}, {}),
    "attention without dropout": (
        nn.Sequential([nn.Dense(4), nn.MultiHeadDotProductAttention(num_heads=1)]),
        {},
        {},
    ),
    "WeightNorm": (nn.WeightNorm(nn.Dense(3)), {}, {}),
}


@pytest.mark.parametrize("name", TOLD)
def test_linen_modules_are_told_what_flax_is_told_by_hand(name):
    linen_module, in_training, in_evaluation = TOLD[name]
    check_linen(linen_module, in_training, in_evaluation)


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
@pytest.mark.parametrize(
    ("inner", "place", "by_hand"), [(Train, 2, (True,)), (IsTraining, 3, (None, True))]
)
def test_arguments_that_are_static_by_their_places(lift, inner, place, by_hand):
    lifted = lift(inner, static_argnums=(place,))()
    module = decoupled.from_linen(lifted)
    params, state = module.init(KEY, X)
    out, new_state = module.apply(params, state, X, KEY, True)
    variables = {"params": params, **state}
    expected, updated = lifted.apply(variables, X, *by_hand, rngs=streams(), mutable=["batch_stats"])
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    chex.assert_trees_all_close(new_state, dict(updated))


def check_linen(linen_module, in_training, in_evaluation):
    module = decoupled.from_linen(linen_module)
    params, state = module.init(KEY, X)
    variables = {"params": params, **state}
    apply = functools.partial(linen_module.apply, variables, X)
    expected, updated = apply(**in_training, rngs=streams(), mutable=list(state))
    out, new_state = module.apply(params, state, X, KEY, True)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    chex.assert_trees_all_close(new_state, dict(updated))
    out, same = module.apply(params, state, X, KEY, False)
    np.testing.assert_allclose(out, apply(**in_evaluation), rtol=1e-6)
    chex.assert_trees_all_equal(same, state)


def streams():
    return {"dropout": jax.random.fold_in(KEY, 0)}


class Masked(nn.Module):
    def __call__(self, h, mask, train=False):
        return h * mask


class Anything(nn.Module):
    @nn.compact
    def __call__(self, h, **options):
        return body(h, options.get("train", False))


class TwoInside(nn.Module):
    a: nn.Module
    b: nn.Module

    def __call__(self, h, **kwargs):
        return self.b(self.a(h, **kwargs), **kwargs)


class Unclear(nn.Module):
    def __call__(self, h, constraint=None, train_mode="no"):
        return h


class Noisy(nn.Module):
    def __call__(self, h, use_dropout=False):
        return h


class Silent(nn.Module):
    def encode(self, h):
        return h


class NoInput(nn.Module):
    def __call__(self):
        return X


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Masked(), "module Masked asks for 'mask' beside its input: call it in a module of your own"),
        (nn.OptimizedLSTMCell(3), "module OptimizedLSTMCell asks for 'inputs' beside its input"),
        (Anything(), r"module Anything takes any keywords .* name the argument in its __call__"),
        (TwoInside(Train(), Training()), "module TwoInside takes any keywords .* 2 modules in it ask for"),
        (nn.Sequential([nn.Dense(3), Train()]), r"module Sequential, layer 1 \(Train\) takes 'train', but"),
        (nn.Sequential([nn.tanh, Training()]), r"module Sequential, layer 1 \(Training\) takes 'training'"),
        (
            nn.Sequential([nn.tanh, nn.Sequential([Train()])]),
            r"module Sequential, layer 1 \(Train\) takes 'train'",
        ),
        (Unclear(), "module Unclear takes 'train_mode', which seems to say whether it trains, but not how"),
        (Wrapper(Noisy()), "module Wrapper, Noisy in it takes 'use_dropout', which seems to say"),
        (nn.Sequential([nn.tanh, Noisy()]), "module Sequential, layer 1 takes 'use_dropout', which seems"),
        (Silent(), "module Silent has no __call__"),
        (NoInput(), "module NoInput takes no input"),
        (nn.Dense, r"from_linen needs a Linen module, .* not <class 'flax\.linen"),
        (nn.relu, "from_linen needs a Linen module"),
    ],
)
def test_what_cannot_be_told_is_refused(given, message):
    with pytest.raises(decoupled.UsageError, match=message) as raised:
        decoupled.from_linen(given)
    assert "\n" not in str(raised.value)


def with_option(name, default):
    class WithOption(nnx.Module):
        def __init__(self, rngs):
            pass

        def __call__(self, h, *, option=default):
            return h

    call: Any = WithOption.__call__
    *others, option = inspect.signature(call).parameters.values()
    call.__signature__ = inspect.Signature([*others, option.replace(name=name)])
    return WithOption


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("test_mode", False),
        ("isTraining", True),
        ("use_dropout", False),
        ("dropout", True),
        ("is_stochastic", None),
        ("update_batch_stats", True),
        ("validation", False),
        ("mode", "train"),
    ],
)
def test_words_that_seem_to_tell_of_training_are_refused(name, default):
    with pytest.raises(decoupled.UsageError, match=f"module m takes '{name}', which seems to say whether"):
        decoupled.from_nnx(with_option(name, default), "m")


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("dropout_rng", None),
        ("dropout_rate", 0.5),
        ("latest", False),
        ("constraint", None),
        ("mode", "same"),
    ],
)
def test_words_that_tell_of_something_else_are_left_alone(name, default):
    module = decoupled.from_nnx(with_option(name, default), "m")
    np.testing.assert_array_equal(module.apply(*module.init(KEY, X), X, KEY, True)[0], X)


class Untold(nn.Module):
    @nn.compact
    def __call__(self, h, train):
        return nn.Dropout(0.5, name="noise")(h)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.Sequential([nn.Dense(3), nn.Dropout(0.5)]), "layer layers_1 has not been told 'deterministic'"),
        (nn.Sequential([nn.Dense(3), nn.BatchNorm()]), "layer layers_1 has .* told 'use_running_average'"),
        (Untold(), r"layer noise has not been told 'deterministic', .* noise\(deterministic=\.\.\.\)"),
        (nn.remat(Train)(), r"CheckpointTrain traces the .* nn\.jit static_argnums=\(2,\)"),
        (nn.jit(IsTraining)(), r"JitIsTraining traces the .* static_argnums=\(3,\)"),
    ],
)
def test_layers_that_were_not_told_are_named(given, message):
    with pytest.raises(decoupled.UsageError, match=message) as raised:
        decoupled.from_linen(given).init(KEY, X)
    assert "\n" not in str(raised.value)


def test_other_errors_stay_what_they_are():
    class Broken(nn.Module):
        deterministic: bool | None = None

        def __call__(self, h, train):
            raise ValueError("of another kind")

    with pytest.raises(ValueError, match=r"^of another kind"):
        decoupled.from_linen(Broken()).init(KEY, X)


class NNXTold(nnx.Module):
    """Its layers are told by its caller, not by `train()`."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, h, *, training=False):
        return self.norm(h, use_running_average=not training)


class NNXRequired(NNXTold):
    def __call__(self, h, rngs, deterministic):
        return super().__call__(h, training=not deterministic) + rngs.params.normal()


class NNXBehindRngs(NNXTold):
    def __call__(self, h, rngs=None, train=False):
        return super().__call__(h, training=train) + rngs.params.normal()


class NNXTest(NNXTold):
    def __call__(self, h, *, test=False):
        return super().__call__(h, training=not test)


class NNXMasked(NNXTold):
    def __call__(self, h, mask):
        return h * mask


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (NNXTold, "training"),
        (lambda rngs: nnx.Sequential(NNXTold(rngs), nnx.tanh), "training"),
        (NNXTest, "test"),
    ],
)
def test_nnx_modules_are_told_too(make, word):
    module = decoupled.from_nnx(make, "told")
    params, state = module.init(KEY, X)
    out, new_state = module.apply(params, state, X, KEY, True)
    own = make(nnx.Rngs(KEY))
    np.testing.assert_allclose(out, own(X, **{word: word == "training"}), rtol=1e-5)
    chex.assert_trees_all_close(new_state["rest"], nnx.state(own, nnx.BatchStat))
    out, _ = module.apply(params, new_state, X, KEY, False)
    np.testing.assert_allclose(out, own(X, **{word: word == "test"}), rtol=1e-5)


@pytest.mark.parametrize("make", [NNXRequired, NNXBehindRngs])
def test_nnx_modules_that_ask_for_rngs_are_given_some(make):
    module = decoupled.from_nnx(make, "noisy")
    params, state = module.init(KEY, X)
    first, _ = module.apply(params, state, X, KEY, True)
    again, _ = module.apply(params, state, X, KEY, True)
    other, _ = module.apply(params, state, X, jax.random.key(1), True)
    np.testing.assert_array_equal(first, again)
    own = NNXTold(nnx.Rngs(KEY))
    for out in (first, other):
        added = out - own(X, training=True)
        np.testing.assert_allclose(added, jnp.full_like(added, added[0, 0]), rtol=1e-4, atol=1e-5)
    assert abs(float((first - other)[0, 0])) > 1e-3
    dropout = decoupled.from_nnx(lambda rngs: nnx.Sequential(nnx.Dropout(0.5)), "dropout")
    out, _ = dropout.apply(*dropout.init(KEY, X), X, KEY, True)
    assert 0 < float((out == 0).mean()) < 1
    np.testing.assert_array_equal(dropout.apply(*dropout.init(KEY, X), X, KEY, False)[0], X)


def test_nnx_modules_that_cannot_be_told_are_refused():
    with pytest.raises(decoupled.UsageError, match="module m asks for 'mask' beside its input"):
        decoupled.from_nnx(NNXMasked, "m")
    with pytest.raises(decoupled.UsageError, match="needs a function of rngs, not a module"):
        decoupled.from_nnx(NNXTold(nnx.Rngs(0)), "m")

"""Oracle 6: the locks that an estimator's declaration implies are those of its data flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoupled import Module, Reads
from decoupled.types import Locks
from tests import helpers

KEY = jax.random.key(7)
METHODS = helpers.every_method()


def stepper(modules, estimator):
    """A function from a state to the bits of every module's parameters after one step, and that state."""
    x, y = helpers.batch()
    learner = helpers.make_learner(modules, estimator)
    update = jax.jit(learner.update)

    def bits_after(state):
        new, _ = update(state, x, y, KEY)
        return [
            b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(m.params)) for m in new.modules
        ]

    return bits_after, helpers.noisy(learner.init(jax.random.key(0), x, y))


def louder_from(i, modules):
    """The same network forward, but module i sends twice the gradient down."""

    def apply(params, state, h, key, train):
        return modules[i].apply(params, state, 2 * h - jax.lax.stop_gradient(h), key, train)

    return [*modules[:i], Module(modules[i].name, modules[i].init, apply), *modules[i + 1 :]]


def move_module(state, i):
    """The state with the parameters of module i and of everything at the boundaries above it moved."""
    rng = np.random.default_rng(5)
    # Each weight on its own: one number added to all would leave a softmax, and so the gradient, alone.
    moved = jax.tree.map(lambda w: w + rng.normal(size=w.shape).astype(np.float32), state.modules[i].params)
    modules = (*state.modules[:i], state.modules[i]._replace(params=moved), *state.modules[i + 1 :])
    above = helpers.noisy(state, seed=9).estimators[i:]
    return state._replace(modules=modules, estimators=(*state.estimators[:i], *above))


@pytest.mark.parametrize("name", METHODS)
def test_locks_are_those_of_the_data_flow(name):
    estimator, modules = METHODS[name], helpers.mlp_modules()
    bits_after, state = stepper(modules, estimator)
    plain = bits_after(state)
    # Module 1 waits for what is below it, and perhaps for what is above it.
    below, above = bits_after(move_module(state, 0)), bits_after(move_module(state, 2))
    backward = stepper(louder_from(2, modules), estimator)[0](state)
    seen = Locks(
        forward=below[1] != plain[1],
        update=above[1] != plain[1],
        backward=backward[1] != plain[1],
    )
    assert seen == estimator.reads.locks
    assert estimator.reads.direct_error == (seen.update and not seen.backward)
    # The module further down is locked in the same way.
    assert (above[0] != plain[0], backward[0] != plain[0]) == seen[1:]


@pytest.mark.parametrize("name", METHODS)
def test_an_estimator_sees_what_it_says_and_no_more(name):
    estimator = METHODS[name]
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    y = np.arange(8) % helpers.CLASSES
    signal = {
        Reads.NOTHING: None,
        Reads.ERROR: rng.normal(size=(8, helpers.CLASSES)).astype(np.float32),
        Reads.INCOMING: h[::-1],
    }[estimator.reads]

    est_params = jax.tree.map(
        lambda w: w + rng.normal(size=w.shape).astype(np.float32) if w.dtype == np.float32 else w,
        estimator.init(KEY, h, y if estimator.sees_y else None),
    )

    def everything(h=h, y=y, signal=signal, target=h):
        """The estimate, and the fit where there is one."""
        train = estimator.training_gradient
        fit = [train(est_params, h, y, target)] if train else []
        return estimator.estimate(est_params, h, y, signal), fit

    first = everything()

    def differ(*changed):
        pairs = zip(first, changed, strict=True)
        return tuple(
            not all(np.array_equal(p, q) for p, q in zip(*map(jax.tree.leaves, pair), strict=True))
            for pair in pairs
        )

    seen = {
        "h": differ(*everything(h=1.5 * h)),
        "y": differ(*everything(y=(y + 1) % helpers.CLASSES)),
        "target": differ(*everything(target=-h)),
    }
    if signal is not None:
        seen[estimator.reads.value] = differ(*everything(signal=2 * signal))
    # Of some estimators h says no more than where their numbers go.
    told = [tuple(name in part for part in (estimator.estimate_sees, estimator.fit_sees)) for name in seen]
    assert list(seen.values())[1:] == told[1:]
    assert all(said or not truly for said, truly in zip(told[0], seen["h"], strict=True))
    assert estimator.sees_y == any(seen["y"])
    if not estimator.sees_y:
        assert differ(*everything(y=None)) == (False, False)


@pytest.mark.parametrize("name", [name for name, e in METHODS.items() if e.training_gradient])
def test_an_estimator_looks_at_the_target_unless_it_has_its_own_loss(name):
    x, y = helpers.batch()
    modules = helpers.mlp_modules(depth=1)
    learner = helpers.make_learner(modules, METHODS[name])
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))
    h = modules[0].apply(*state.modules[0][:2], x, KEY, True)[0]
    fits = [learner.update_estimator[0](state.estimators[0], h, y, target)[0] for target in (h, -h)]
    same = [
        np.array_equal(*leaves) for leaves in zip(*(jax.tree.leaves(f.params) for f in fits), strict=True)
    ]
    assert all(same) == METHODS[name].own_loss

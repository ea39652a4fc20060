"""Heads built like the network's own next layers, against the same written out; they wait for nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import decoupled
from configs import base
from decoupled import estimators, from_functions, from_linen, from_nnx, losses
from decoupled.estimators.auxiliary_network import depth_at, evenly_spaced
from decoupled.estimators.fitting import Step, fitting, remembering
from decoupled.learning.dispatch import dispatched
from decoupled.learning.stack import Stack
from decoupled.learning.watch import WatchState
from decoupled.modules.backward_rules import feedback_alignment, with_backward_rule
from decoupled.parallel.pipeline import make_mesh, make_pipeline
from decoupled.training.builder import build
from tests import helpers, padded_tokens

KEY = jax.random.key(3)
RATE = 0.5
CROSS_ENTROPY = losses.softmax_cross_entropy
LIKE = estimators.auxiliary_network


class Layer(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    features: int
    stride: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, h, train):
        h = nn.Conv(self.features, (3, 3), self.stride)(h)
        return nn.relu(nn.BatchNorm(not train, axis_name=self.axis_name)(h))


class Output(nn.Module):
    @nn.compact
    def __call__(self, h):
        return nn.Dense(helpers.CLASSES)(h.reshape(h.shape[0], -1))


def convolutional(layers=((4, 1), (5, 1), (6, 2), (7, 1)), axis_name=None):
    """Layers of so many channels and such a stride: the third halves the image."""
    hidden = [
        from_linen(Layer(width, stride, axis_name), f"conv_{i}") for i, (width, stride) in enumerate(layers)
    ]
    return [*hidden, from_linen(Output(), "output")]


def images(size=6, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(size, 4, 4, 2)), jnp.float32)
    return x, jnp.asarray(rng.integers(helpers.CLASSES, size=size), jnp.int32)


def convolved(params, h):
    """A `Layer` in training, written out."""
    kernel, norm = params["Conv_0"], params["BatchNorm_0"]
    layout = ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(h, kernel["kernel"], (1, 1), "SAME", dimension_numbers=layout)
    h = h + kernel["bias"][None, None, None]
    h = (h - h.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(h.var((0, 1, 2), keepdims=True) + 1e-5)
    return jax.nn.relu(h * norm["scale"][None, None, None] + norm["bias"][None, None, None])


def mean_loss(params, h, y, shares):
    """Of the auxiliary network of depth 1 above the lowest boundary of `convolutional`, by hand."""
    highest, last = params
    h = h.reshape(h.shape[0], 2, 2, 2, 2, -1).mean((2, 4))  # the third layer, left out, halves the image
    h = convolved(highest, h)
    out = h.reshape(h.shape[0], -1) @ last["Dense_0"]["kernel"] + last["Dense_0"]["bias"][None]
    each = -jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1)[:, 0]
    return (each * shares).sum()


def learner_of(estimator, modules=None, **options):
    return helpers.make_learner(modules or helpers.mlp_modules(), estimator, RATE, RATE, **options)


def trained(learner, data, state=None):
    """The states at the start and after every batch."""
    states = [learner.init(KEY, *data[0]) if state is None else state]
    update = jax.jit(learner.update)
    for x, y in data:
        states.append(update(states[-1], x, y, KEY)[0])
    return states


def bits_equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def moved(params, seed=4):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: w + jnp.asarray(0.3 * rng.normal(size=w.shape), w.dtype), params)


@pytest.fixture(scope="module")
def one_layer():
    """(learner, state, h, y) of depth 1: above the lowest boundary without what halves the image."""
    x, y = images()
    learner = learner_of(LIKE(1), convolutional())
    state = jax.jit(learner.init)(KEY, x, y)
    states = [e._replace(params=moved(e.params)) for e in state.estimators]
    state = state._replace(estimators=tuple(states))
    h = learner.modules[0].apply(*state.modules[0][:2], x, KEY, True)[0]
    return learner, state, h, y


def test_loss_and_gradients_are_those_of_the_network_written_out(one_layer):
    learner, state, h, y = one_layer
    params, spec = state.estimators[0].params, learner.estimators[0]
    assert [p[name]["kernel"].shape for p, name in zip(params, ("Conv_0", "Dense_0"), strict=True)] == [
        (3, 3, 4, 7),
        (28, 3),  # as many as in the network itself
    ]
    loss, gradient = jax.jit(spec.training_gradient)(params, h, y)
    shares = jnp.full(6, 1 / 6)
    expected, (of_params, of_h) = jax.jit(jax.value_and_grad(mean_loss, (0, 1)))(params, h, y, shares)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    chex.assert_trees_all_close(gradient, of_params, rtol=1e-4, atol=1e-6)
    estimate = jax.jit(spec.estimate)(params, h, y)
    np.testing.assert_allclose(estimate / 6, of_h, rtol=1e-4, atol=1e-6)


def test_rows_of_no_weight_are_a_copy_of_one_that_counts_to_batch_statistics_too(one_layer):
    """As to those of modules: what is in the row changes nothing, and the loss through it is exact."""
    learner, state, h, y = one_layer
    params, spec = state.estimators[0].params, learner.estimators[0]
    weight = jnp.asarray([0, 1, 2, 0, 1, 1], jnp.float32)

    def by_hand(params, h):
        h = jnp.where(weight[:, None, None, None] > 0, h, h[1][None])
        return mean_loss(params, h, y, weight / weight.sum())

    value, (of_params, of_h) = jax.jit(jax.value_and_grad(by_hand, (0, 1)))(params, h)
    for garbage in (jnp.nan, 1e9):
        spoiled = h.at[0].set(garbage).at[3].set(garbage)
        loss, gradient = jax.jit(spec.training_gradient)(params, spoiled, y, None, weight)
        np.testing.assert_allclose(loss, value, rtol=1e-5)
        chex.assert_trees_all_close(gradient, of_params, rtol=1e-4, atol=1e-6)
        estimate = jax.jit(spec.estimate)(params, spoiled, y, None, weight)
        found = estimate * weight[:, None, None, None] / weight.sum()
        np.testing.assert_allclose(found, of_h, rtol=1e-4, atol=1e-6)


def test_nothing_above_reaches_a_module_in_any_step():
    """Oracle 6, over steps; and nothing of what is above is copied."""
    modules = helpers.mlp_modules(depth=3)
    learner, data = learner_of(LIKE(2), modules), [helpers.batch(seed=i) for i in range(4)]
    state = learner.init(KEY, *data[0])
    others = [m._replace(params=moved(m.params)) for m in state.modules[2:]]
    above = tuple(e._replace(params=moved(e.params)) for e in state.estimators[2:])
    other = state._replace(
        modules=(*state.modules[:2], *others), estimators=(*state.estimators[:2], *above)
    )
    for one, two in zip(trained(learner, data, state), trained(learner, data, other), strict=True):
        assert bits_equal(one.modules[:2], two.modules[:2])
        assert bits_equal(one.estimators[:2], two.estimators[:2])
        assert not bits_equal(one.modules[2].params, two.modules[2].params)
        assert not bits_equal(one.modules[3].params, two.modules[3].params)
    locks = learner.estimators[0].reads.locks
    assert (locks.forward, locks.update, locks.backward) == (True, False, False)
    assert [e.borrowed for e in state.estimators] == [()] * 3
    sizes = [[p["Dense_0"]["kernel"].shape for p in e.params] for e in state.estimators]
    assert sizes == [[(4, 4), (4, 4), (4, 3)], [(4, 4), (4, 3)], [(4, 3)]]


def test_layers_are_evenly_spaced_with_the_highest_among_them():
    assert evenly_spaced(1, 5) == (4,)
    assert evenly_spaced(2, 6) == (2, 5)
    assert evenly_spaced(3, 15) == (4, 9, 14)
    assert evenly_spaced(4, 10) == (1, 4, 7, 9)  # 2.5, 5, 7.5, 10, to the nearest even number
    assert evenly_spaced(3, 3) == evenly_spaced(9, 3) == (0, 1, 2)
    assert evenly_spaced(0, 4) == evenly_spaced(2, 0) == ()


def test_depth_falls_in_a_straight_line():
    assert [depth_at(below, 12, 6, 1) for below in range(1, 12)] == [6, 6, 5, 4, 4, 4, 3, 2, 2, 2, 1]
    # The paper's rule (1 - c i / 14) d + c i / 14 for the 16 layers of ResNet-32, d = 5, c = 1 / 2.
    paper = [round(5 * (1 - 0.5 * i / 14) + 0.5 * i / 14) for i in range(15)]
    assert [depth_at(below, 16, 5, 3) for below in range(1, 16)] == paper
    assert depth_at(1, 2, 3, 1) == 3
    assert [depth_at(below, 5, 2, 2) for below in range(1, 5)] == [2] * 4


def test_layers_of_composed_modules_count_one_by_one():
    layers = decoupled.models.mlp(5, 4, helpers.CLASSES)
    modules = decoupled.cut(layers, [0])
    state = learner_of(LIKE(2), modules).init(KEY, *helpers.batch())
    assert [p["Dense_0"]["kernel"].shape for p in state.estimators[0].params] == [(4, 4), (4, 4), (4, 3)]


def fixed(inputs, outputs):
    """A layer that is made for one width."""
    return from_nnx(lambda rngs: nnx.Linear(inputs, outputs, rngs=rngs), f"{inputs}to{outputs}")


def skipping():
    """A layer with a skip: of whatever width, but never another."""

    def init(key, h):
        return jax.random.normal(key, (5, 5))

    return from_functions(init, lambda w, h: h + h @ w, "skipping")


@pytest.mark.parametrize(
    ("layers", "places", "expected"),
    [
        # The layer wanted keeps a width of 5: the nearest that takes 4 makes it one.
        ([fixed(4, 5), skipping(), skipping(), fixed(5, 3)], (2,), (0, 3)),
        ([fixed(4, 5), skipping(), skipping(), fixed(5, 3)], (0, 2), (0, 2, 3)),
        # Nothing wide enough is below the last: only both together lead there.
        ([fixed(4, 6), fixed(6, 5), fixed(5, 3)], (0, 1), (0, 1, 2)),
        ([fixed(4, 6), fixed(6, 5), fixed(5, 3)], (1,), None),
        # One that fits, with which nothing else does, is left out.
        ([fixed(4, 9), from_linen(nn.Dense(5), "any"), fixed(4, 3)], (0, 1), (2,)),
    ],
)
def test_layers_that_do_not_fit_give_way_to_the_nearest_that_do(layers, places, expected):
    found = fitting(tuple(layers), places, jnp.zeros((2, 4)), remembering(), on_maps=True)
    assert found == (None if expected is None else tuple(Step(place, (1, 1)) for place in expected))


def test_maps_are_averaged_to_what_a_layer_is_fed_in_the_network():
    layers, h = tuple(convolutional()[1:]), jnp.zeros((2, 4, 4, 4))
    output = remembering()
    assert fitting(layers, (2,), h, output, True) == (Step(2, (2, 2)), Step(3, (1, 1)))
    assert fitting(layers, (0, 1), h, output, True) == (Step(0, (1, 1)), Step(1, (1, 1)), Step(3, (1, 1)))
    assert fitting(layers, (2,), h, output, False) == (Step(2, (1, 1)), Step(3, (1, 1)))
    odd = jnp.zeros((2, 5, 4, 4))
    assert fitting(layers, (), odd, output, True) == (Step(3, (1, 2)),)  # 5 rows become 3, 4 columns 2


def test_dropout_is_drawn_anew_whenever_h_is_new_and_alike_in_estimate_and_fit():
    h, y = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64)), jnp.float32), jnp.asarray([1])
    output = from_linen(Output(), "output")
    learner = learner_of(LIKE(1), [from_linen(nn.Dense(64)), from_linen(nn.Dropout(0.5)), output])
    spec, params = learner.estimators[0], learner.init(KEY, h, y).estimators[0].params
    estimate, fit = jax.jit(spec.estimate), jax.jit(spec.training_gradient)

    def kept(h):
        """Units with a gradient of their own, and weights with one, where there is one example."""
        of_weights = fit(params, h, y)[1][1]["Dense_0"]["kernel"]
        return np.asarray(estimate(params, h, y)[0] != 0), np.asarray((of_weights != 0).all(1))

    first, again, later = kept(h), kept(h), kept(h * 1.001)
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, again)
    assert 16 < first[0].sum() < 48
    assert 16 < (first[0] != later[0]).sum() < 48
    rows, weight = jnp.concatenate([h, h]), jnp.asarray([1.0, 0.0])
    found = [estimate(params, rows.at[1].set(g), jnp.tile(y, 2), None, weight) for g in (jnp.nan, 7.0)]
    np.testing.assert_array_equal(*found)


def test_backward_rules_are_left_out_of_it():
    plain = helpers.mlp_modules()
    ruled = [with_backward_rule(m, feedback_alignment) for m in plain]
    x, y = helpers.batch()
    one, other = (learner_of(LIKE(1), modules) for modules in (plain, ruled))
    params, h = one.init(KEY, x, y).estimators[0].params, x[:, :4]
    estimates = [learner.estimators[0].estimate(params, h, y) for learner in (one, other)]
    np.testing.assert_array_equal(*estimates)
    assert np.abs(estimates[0]).max() > 0


def stacked(depth, number):
    """An input layer, `depth` equal blocks of which the lower `number` are a stack, an output layer."""
    lowest, *_, output = helpers.mlp_modules()
    block = from_linen(nn.Sequential([nn.Dense(4), nn.tanh]), "block")
    blocks = [block._replace(name=f"block_{i}") for i in range(depth)]
    names = tuple(b.name for b in blocks[:number])
    return [lowest, *blocks, output], [lowest, Stack(block, names), *blocks[number:], output]


def test_blocks_of_a_stack_have_heads_alike_and_learn_as_one_by_one():
    one_by_one, links = stacked(depth=3, number=2)
    plain, together = learner_of(LIKE(1), one_by_one), learner_of(LIKE(1), links)
    data = [helpers.batch(seed=i) for i in range(2)]
    start, *_, last = trained(together, data)
    expected = trained(plain, data, together.unstack(start))
    chex.assert_trees_all_close(together.unstack(last), expected[-1], rtol=1e-4, atol=1e-5)
    assert len(start.estimators[1].params) == 2
    for depths in ((2, 2), (1, 0)):
        with pytest.raises(decoupled.UsageError, match=r"block_0 to .* keep the highest blocks out of the"):
            learner_of(LIKE(*depths), links)


@pytest.mark.slow
def test_a_batch_over_two_devices_has_the_statistics_of_the_whole():
    x, y = images(size=8)
    whole, split = (
        learner_of(LIKE(), convolutional([(4, 1), (5, 2)], name), axis_name=name) for name in (None, "data")
    )
    start = jax.jit(whole.init)(KEY, x, y)
    expected = jax.jit(whole.update)(start, x, y, KEY)[0]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P(), P("data"), P("data"), P())
    update = jax.shard_map(lambda *args: split.update(*args)[0], mesh=mesh, in_specs=specs, out_specs=P())
    chex.assert_trees_all_close(jax.jit(update)(start, x, y, KEY), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dispatched_microbatches_and_pipelines_do_as_local_losses_do():
    modules, data = helpers.mlp_modules(), [helpers.batch(seed=i) for i in range(3)]
    learner = learner_of(LIKE(1), modules)
    start, *_, expected = trained(learner, data)
    parts = trained(learner_of(LIKE(1), modules, microbatches=2), data, start)[-1]
    chex.assert_trees_all_close(parts, expected, rtol=1e-4, atol=1e-5)
    pipeline = make_pipeline(learner, make_mesh(2, jax.devices()[:2]))
    state = pipeline.start(start, *data[0])
    modules, heads, sent = list(start.modules), list(start.estimators), []
    update_module, fit = (
        [*map(jax.jit, each)] for each in (learner.update_module, learner.update_estimator)
    )
    for t, (x, y) in enumerate(data):
        state = pipeline.tick(state, x, y, KEY)
        if t >= 2:  # the head between the stages is fitted when the word comes from above
            heads[1], _ = fit[1](heads[1], *sent[t - 2], None)
        for i in range(2):  # the lower stage, by hand
            step = update_module[i](modules[i], heads[i].params, x, y, KEY)
            modules[i], x = step.module, step.h_out
            if i == 0:
                heads[0], _ = fit[0](heads[0], x, y, None)
        sent.append((x, y))
    joined = pipeline.join(state)
    chex.assert_trees_all_close(joined.modules[:2], tuple(modules[:2]), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(joined.estimators, tuple(heads), rtol=1e-4, atol=1e-5)
    dispatch, state = dispatched(learner), jax.tree.map(jnp.copy, start)
    for x, y in data:
        state, _ = dispatch(state, x, y, KEY)
    chex.assert_trees_all_close(state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_padded_tokens_go_through_blocks_with_their_mask():
    """Oracles 1 and 10: the loss of what is counted, whatever the rest holds."""
    learner = learner_of(LIKE(1), padded_tokens.MODULES, batch_axes=2)
    x, y, weight = padded_tokens.tokens(0.0)
    state = jax.jit(learner.init)(KEY, x, y)
    update = jax.jit(learner.update)
    new, metrics = update(state, x, y, KEY, weight)
    before = (state.modules[0].params, *state.estimators[0].params)
    value, gradients = jax.jit(jax.value_and_grad(padded_tokens.loss))(before)
    np.testing.assert_allclose(metrics.boundaries[0].loss, value, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - RATE * g, before, gradients)
    after = (new.modules[0].params, *new.estimators[0].params)
    chex.assert_trees_all_close(after, expected, rtol=1e-4, atol=1e-6)
    other = update(state, *padded_tokens.tokens(np.nan)[:2], KEY, weight)[0]
    chex.assert_trees_all_close(other, new, rtol=1e-6, atol=1e-7)


def test_what_lifts_an_estimator_lifts_one_with_a_structure():
    modules, data = helpers.mlp_modules(), [helpers.batch()]
    mixed = learner_of(estimators.bp_lambda(LIKE(1), 1.0), modules)
    states = [
        trained(learner, data)[-1].modules
        for learner in (mixed, learner_of(estimators.backprop(), modules))
    ]
    chex.assert_trees_all_close(*states, rtol=1e-5, atol=1e-6)
    with pytest.raises(decoupled.UsageError, match="each gives an estimator one array"):
        estimators.each(LIKE())
    with pytest.raises(decoupled.UsageError, match="borrowed_next leads back"):
        estimators.borrowed_next(LIKE())


def test_mistakes_are_told():
    for options, what in (({"depth": -1}, "depth is -1"), ({"min_depth": 0.5}, "min_depth is 0.5")):
        with pytest.raises(
            decoupled.UsageError, match=f"auxiliary_network: {what}, but must be a number of 0"
        ):
            LIKE(**options)
    x, y = helpers.batch()
    with pytest.raises(decoupled.UsageError, match="needs what only a learner can give it"):
        decoupled.boundary(LIKE(), (), x, y)
    with pytest.raises(decoupled.UsageError, match="make_learner alone can tell of"):
        decoupled.Boundary(LIKE()).init(KEY, x, y)
    modules = [fixed(5, 4), fixed(4, 6), fixed(6, 7), fixed(7, 3)]
    message = (
        r"^boundary 0 \(after 5to4\): auxiliary_network: of the 3 layers above, no 1 or fewer and the last"
    )
    with pytest.raises(decoupled.UsageError, match=message):
        learner_of(LIKE(1), modules).init(KEY, x, y)


def test_a_run_watches_its_fit():
    config = base.get_config()
    fields = {"dataset": "digits", "estimator.name": "auxiliary_network", "model.mlp.depth": 1}
    config.update_from_flattened_dict({**fields, "model.mlp.width": 4})
    learner = build(config).learner
    state = jax.eval_shape(learner.init, KEY, jnp.zeros((2, 64)), jnp.zeros(2, int))
    assert isinstance(state.estimators[0].opt_state, WatchState)

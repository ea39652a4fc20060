"""What taps measure: against the chain form, the analysis and NumPy, under every transformation."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import decoupled
from decoupled import Boundary, NNXBoundary, Reads, Tap, UsageError, losses, new_tap, read_taps
from decoupled.analysis.alignment import boundary_gradients, cosine, r_squared
from tests import helpers

KEY = jax.random.key(7)
METHODS = helpers.every_method()
LINEAR = METHODS["linear"]


def chain(name):
    x, y = helpers.batch()
    learner = helpers.make_learner(helpers.mlp_modules(), METHODS[name])
    return learner, helpers.noisy(learner.init(jax.random.key(0), x, y)), x, y


def measured(learner, state, x, y, **options):
    """The network of the chain, with a boundary and a tap between its modules."""
    error = None
    if learner.estimators[0].reads is Reads.ERROR:
        error = losses.output_error(learner.loss, jax.jit(learner.predict)(state, x), y)[1]

    def loss(taps):
        h = x
        for i, module in enumerate(learner.modules):
            h, _ = module.apply(state.modules[i].params, {}, h, jax.random.fold_in(KEY, i), True)
            if i < len(taps):
                params = state.estimators[i].params
                place = {"tap": taps[i], "name": f"boundary {i}"}
                h = decoupled.boundary(learner.estimators[i], params, h, y, error, **place, **options)
        return learner.loss(h, y).mean()

    reports = read_taps(jax.jit(jax.grad(loss))([new_tap(), new_tap()]))
    assert list(reports) == ["0", "1"]
    return list(reports.values())


@pytest.mark.parametrize("name", ["linear", "recursive_least_squares", "bp_lambda", "mean_teacher"])
def test_fits_are_those_of_the_chain(name):
    learner, state, x, y = chain(name)
    expected = jax.jit(learner.update)(state, x, y, KEY)[1].boundaries
    for report, metrics in zip(measured(learner, state, x, y), expected, strict=True):
        assert report.loss == pytest.approx(float(metrics.loss), rel=1e-4)
        if metrics.target_power is not None:
            assert report.target_power == pytest.approx(float(metrics.target_power), rel=1e-4)
        if metrics.target_power is not None and name != "bp_lambda":  # whose estimate is half its target
            r2 = 1 - float(metrics.loss / metrics.target_power)
            assert report.r_squared == pytest.approx(r2, rel=1e-3)
        assert report.examples == 8


@pytest.mark.parametrize("name", ["loss_shaped", "direct_feedback_alignment", "probe", "backprop"])
def test_alignment_with_the_true_gradient_is_that_of_the_analysis(name):
    """With the true gradient let through, so that it is what comes from above everywhere."""
    learner, state, x, y = chain(name)
    gradients = jax.jit(partial(boundary_gradients, learner))(state, x, y, KEY)
    reports = measured(learner, state, x, y, use_estimate=False)
    for report, true, estimated in zip(reports, gradients.true, gradients.estimated, strict=True):
        assert report.cosine == pytest.approx(float(cosine(estimated, true)), rel=1e-4)
        assert report.r_squared == pytest.approx(float(r_squared(estimated, true)), rel=1e-4)
        true, estimated = (np.asarray(g, np.float64) for g in (true, estimated))
        assert report.target_power == pytest.approx((true**2).sum() / 8, rel=1e-4)
        assert report.estimate_power == pytest.approx((estimated**2).sum() / 8, rel=1e-4)
        if name == "direct_feedback_alignment":  # which is not fitted
            assert report.loss == pytest.approx(((estimated - true) ** 2).sum() / 8, rel=1e-4)


H, Y = helpers.batch(features=4)
EST_PARAMS = jax.tree.map(lambda w: w + 0.1, LINEAR.init(KEY, H, Y))
HALVES = H.reshape(2, 4, 4), Y.reshape(2, 4)


def loss_of(tap, h, y, scale=1 / 8, **options):
    return 0.5 * scale * jnp.square(decoupled.boundary(LINEAR, EST_PARAMS, h, y, tap=tap, **options)).sum()


def of_a_scan(tap):
    def loss(tap):
        each = lambda total, now: (total + loss_of(tap, *now, num_examples=8), None)  # noqa: E731
        return jax.lax.scan(each, 0.0, HALVES)[0]

    return jax.grad(loss)(tap)


def of_shard_map(tap):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    local = jax.grad(lambda tap, h, y: loss_of(tap, h, y, 1 / 4))
    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P())(tap, H, Y)


def of_pmap(tap):
    local = jax.grad(lambda tap, h, y: loss_of(tap, h, y, 1 / 4))
    mean = jax.pmap(lambda *a: jax.lax.pmean(local(*a), "d"), axis_name="d", in_axes=(None, 0, 0))
    return 2 * mean(tap, *HALVES)[0]


WAYS = {
    "grad": jax.grad(lambda tap: loss_of(tap, H, Y)),
    "sum": jax.grad(lambda tap: loss_of(tap, H, Y, 1, num_examples=1)),
    "remat": jax.grad(jax.checkpoint(lambda tap: loss_of(tap, H, Y))),
    "tokens": jax.grad(lambda tap: loss_of(tap, *HALVES, batch_axes=2)),
    "vmap": jax.grad(
        lambda tap: jax.vmap(lambda h, y: loss_of(tap, h, y, batch_axes=0, num_examples=8))(H, Y).sum()
    ),
    "scan": of_a_scan,
    "shard_map": of_shard_map,
    "pmap": of_pmap,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_report_does_not_depend_on_how_gradients_are_summed(way):
    (report,) = read_taps(jax.jit(WAYS[way])(new_tap())).values()
    h, labels = np.asarray(H, np.float64), np.eye(3)[np.asarray(Y)]
    A, B, c = (np.asarray(EST_PARAMS[name], np.float64) for name in "ABc")
    estimate, target = h @ A + labels @ B + c, h
    assert report.examples == 8
    assert report.loss == pytest.approx(((estimate - target) ** 2).sum() / 8, rel=1e-4)
    assert report.target_power == pytest.approx((target**2).sum() / 8, rel=1e-4)
    lengths = np.sqrt((estimate**2).sum() * (target**2).sum())
    assert report.cosine == pytest.approx((estimate * target).sum() / lengths, rel=1e-4)
    r2 = 1 - ((estimate - target) ** 2).sum() / (target**2).sum()
    assert report.r_squared == pytest.approx(r2, rel=1e-4)


def test_nothing_is_computed_for_a_tap_that_is_not_asked_for():
    def program(tap):
        gradient = jax.grad(
            lambda h: 0.5 * jnp.square(decoupled.boundary(LINEAR, EST_PARAMS, h, Y, tap=tap)).sum()
        )
        return jax.jit(gradient).lower(H).compile().as_text().count("fusion")

    assert program(None) == program(new_tap())


def test_where_there_is_nothing_to_compare():
    zero = jax.jit(jax.grad(lambda tap: loss_of(tap, jnp.zeros_like(H), Y)))(new_tap())
    (report,) = read_taps(zero).values()
    assert (report.cosine, report.r_squared) == (0.0, -np.inf)
    (report,) = read_taps(jax.grad(lambda tap: 0.0 * tap.sum())(new_tap())).values()
    assert report.examples == 0
    assert np.isnan([report.loss, report.cosine, report.r_squared]).all()
    with pytest.raises(UsageError, match=r"w of shape \(3,\) is no tap"):
        read_taps({"w": jnp.ones(3)})


class Network(nn.Module):
    stacked: bool = False

    @nn.compact
    def __call__(self, x, y=None, train=True):
        h = nn.BatchNorm(use_running_average=not train)(nn.Dense(4, name="dense")(x))
        h = Boundary(LINEAR, name="first")(h, y)
        if self.stacked:
            axes = {"params": 0, "taps": 0}
            block = nn.scan(
                Block, variable_axes=axes, split_rngs={"params": True}, in_axes=nn.broadcast, length=2
            )
            h, _ = block(name="layers")(h, y)
        else:
            for i in range(2):
                h, _ = Block(name=f"layer_{i}")(h, y)
        return nn.Dense(3, name="output")(h)


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, y):
        return Boundary(LINEAR, name="cut")(nn.tanh(nn.Dense(4)(h)), y), None


def linen_reports(model, variables, x, y):
    rest = {"batch_stats": variables["batch_stats"]}
    _, made = jax.jit(partial(model.apply, mutable=["batch_stats", "taps"]))(variables, x, y)

    def loss(params, taps):
        variables = {"params": params, "taps": taps, **rest}
        logits, _ = model.apply(variables, x, y, mutable=["batch_stats"])
        return losses.softmax_cross_entropy(logits, y).mean()

    gradient, seen = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], made["taps"])
    untapped = jax.jit(jax.grad(partial(loss, taps={})))(variables["params"])
    chex.assert_trees_all_close(gradient, untapped, atol=1e-6)
    return read_taps(seen)


def test_linen_models_measure_where_taps_are_passed_along():
    x, y = helpers.batch()
    model = Network()
    variables = jax.jit(model.init)(KEY, x, y)
    assert set(variables) == {"params", "batch_stats"}
    assert set(jax.eval_shape(partial(model.apply, mutable=True), variables, x, y)[1]) == {
        "params",
        "batch_stats",
    }
    variables["params"] = jax.tree.map(lambda w: w + 0.1, variables["params"])
    reports = linen_reports(model, variables, x, y)
    assert list(reports) == ["first", "layer_0/cut", "layer_1/cut"]
    for report in reports.values():
        assert 0 < report.loss < np.inf
        assert report.r_squared == pytest.approx(float(1 - report.loss / report.target_power), rel=1e-3)
    # Of layers in a scan, reports are stacked.
    stacked = dict(variables)
    layers = [variables["params"][f"layer_{i}"] for i in range(2)]
    of_all = {name: variables["params"][name] for name in ("dense", "BatchNorm_0", "first", "output")}
    stacked["params"] = {**of_all, "layers": jax.tree.map(lambda *w: jnp.stack(w), *layers)}
    of_layers = linen_reports(Network(stacked=True), stacked, x, y)
    assert list(of_layers) == ["first", "layers/cut"]
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], of_layers["layers/cut"])
        chex.assert_trees_all_close(one, reports[f"layer_{i}/cut"], rtol=1e-4)


class NNXNetwork(nnx.Module):
    def __init__(self, tap, rngs):
        self.dense = nnx.Linear(5, 4, rngs=rngs)
        self.cut = NNXBoundary(LINEAR, 4, tap=tap, rngs=rngs)
        self.output = nnx.Linear(4, helpers.CLASSES, rngs=rngs)

    def __call__(self, x, y=None):
        return self.output(self.cut(self.dense(x), y))


def test_nnx_models_measure_where_they_have_taps():
    x, y = helpers.batch()
    model, without = NNXNetwork(True, nnx.Rngs(0)), NNXNetwork(False, nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(without, Tap))

    def loss(model):
        return losses.softmax_cross_entropy(model(x, y), y).mean()

    gradient = nnx.jit(nnx.grad(loss, argnums=nnx.DiffState(0, (nnx.Param, Tap))))(model)
    of_params, seen = nnx.split_state(gradient, nnx.Param, Tap)
    chex.assert_trees_all_close(
        jax.tree.leaves(of_params), jax.tree.leaves(nnx.jit(nnx.grad(loss))(without)), atol=1e-6
    )
    reports = read_taps(seen)
    assert list(reports) == ["cut"]
    h = model.dense(x)
    target = jax.grad(lambda h: losses.softmax_cross_entropy(model.output(h), y).sum())(h)
    assert reports["cut"].loss == pytest.approx(float(jnp.square(target).sum() / 8), rel=1e-4)  # from zero


def test_what_taps_measure_moves_no_parameter():
    """Nor does it count where gradients are clipped."""
    params = {"params": {"dense": jnp.ones(3), "cut": {"est_params": {"A": jnp.ones(2)}}}}
    taps = {"taps": {"cut": {"tap": new_tap()}}}
    gradient = jax.tree.map(jnp.ones_like, {**params, **taps})
    tx = decoupled.split_optimizer(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    updates, _ = tx.update(gradient, tx.init({**params, **taps}), {**params, **taps})
    without, _ = tx.update({"params": gradient["params"]}, tx.init(params), params)
    chex.assert_trees_all_close(updates["params"], without["params"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["taps"]))


def test_taps_beside_the_gradient_of_an_nnx_model_are_left_out():
    model = NNXNetwork(True, nnx.Rngs(0))
    with_taps = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Any(nnx.Param, Tap)))
    gradient = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    tx = decoupled.split_optimizer(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    state = tx.init(nnx.state(model, nnx.Param))
    chex.assert_trees_all_close(tx.update(with_taps, state)[0], tx.update(gradient, state)[0])

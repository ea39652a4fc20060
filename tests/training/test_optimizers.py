"""Optimizers, schedules, averages and smoothed labels that a config names, against definitions in NumPy."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import decoupled
from configs import base
from decoupled import data, losses, stack_equal
from decoupled.learning.watch import read_watches, watched
from decoupled.training import evaluated, objectives, parallel, staged
from decoupled.training.average import averaged
from decoupled.training.builder import build, make_learner_of
from decoupled.training.label_smoothing import cross_entropy
from decoupled.training.optimizers import no_bias_and_no_norm, optimizer_of
from decoupled.training.schedules import learning_rate
from decoupled.training.step import no_totals
from tests import helpers

RATE = 0.1


def config(**changes):
    result = base.get_config()
    result.update_from_flattened_dict(changes)
    return result


def section(**changes):
    result = config().optimizer
    result.update({"learning_rate": RATE, **changes})
    return result


def optimizer(steps=10, **changes):
    result = config()
    result.optimizer.update({"learning_rate": RATE, "schedule": "constant", **changes})
    return optimizer_of(result, "optimizer", steps)


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (4, 3), "bias": (3,), "conv": (2, 2, 3, 4), "scale": (4,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def moved(tx, params, gradients):
    """The parameters after each gradient."""
    state, update, found = tx.init(params), jax.jit(tx.update), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found.append(jax.device_get(params))
    return found


GRADIENTS = [parameters(seed) for seed in (1, 2, 3)]


def test_the_defaults_are_the_optimizers_of_old():
    cosine = optax.cosine_decay_schedule(1e-3, 37)
    for field, expected in (
        ("optimizer", optax.adamw(cosine, weight_decay=0.0)),
        ("estimator_optimizer", optax.adam(cosine)),
    ):
        own = optimizer_of(config(), field, 36.6)
        chex.assert_trees_all_equal(own.init(parameters()), expected.init(parameters()))
        chex.assert_trees_all_equal(
            moved(own, parameters(), GRADIENTS), moved(expected, parameters(), GRADIENTS)
        )
    assert make_learner_of(config(), 3, 1).loss is objectives.softmax_cross_entropy


def rates(steps, **changes):
    rate = learning_rate(section(**changes), steps)
    counts = range(steps + 3)
    return np.array([rate(np.int32(t)) for t in counts] if callable(rate) else [rate for _ in counts])


def wave(t, length):
    return (1 + np.cos(np.pi * min(t, length) / length)) / 2


SHAPES = {
    "constant": ({}, lambda t: 1),
    "cosine": ({"final_fraction": 0.2}, lambda t: 0.2 + 0.8 * wave(t, 20)),
    "step": (
        # Two of them fall on one step.
        {"step_boundaries": (0.25, 0.5, 0.51), "step_factor": 0.5},
        lambda t: 0.5 ** ((t >= 5) + 2 * (t >= 10)),
    ),
}


@pytest.mark.parametrize("schedule", SHAPES)
def test_schedules(schedule):
    options, shape = SHAPES[schedule]
    expected = [RATE * shape(t) for t in range(23)]
    np.testing.assert_allclose(rates(20, schedule=schedule, **options), expected, rtol=1e-6)


AFTER_8 = {
    **SHAPES,
    # The wave takes the rest of the run; what falls, falls at fractions of all of it.
    "cosine": ({}, lambda t: wave(t - 8, 12)),
    "step": (
        {"step_boundaries": (0.25, 0.5), "step_factor": 0.5},
        lambda t: 0.5 ** ((t >= 5) + (t >= 10)),
    ),
}


@pytest.mark.parametrize("schedule", AFTER_8)
def test_a_warm_up_is_a_straight_line_from_zero(schedule):
    options, shape = AFTER_8[schedule]
    expected = [RATE * (t / 8 if t < 8 else shape(t)) for t in range(23)]
    found = rates(20, schedule=schedule, warmup_fraction=0.4, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("own", "rise"), [(0.0, 0.3), (0.5, 0.5)])
def test_one_cycle_is_that_of_optax(own, rise):
    # It ends at 1 / 25 / 10^4 of the highest rate.
    expected = optax.cosine_onecycle_schedule(20, RATE, pct_start=rise)
    found = rates(20, schedule="one_cycle", warmup_fraction=own, final_fraction=4e-6)
    np.testing.assert_allclose(found, [expected(t) for t in range(23)], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found[[0, int(rise * 20)]], [RATE / 25, RATE], rtol=1e-6)


@pytest.mark.parametrize("schedule", [*SHAPES, "one_cycle"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_runs_of_no_length(schedule, fraction):
    for steps in (0, 1, 2):
        found = rates(steps, schedule=schedule, warmup_fraction=fraction)
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert (found <= RATE * (1 + 1e-6)).all()


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_as_pytorch_has_it(nesterov):
    found = moved(
        optimizer(name="sgd", momentum=0.9, nesterov=nesterov, weight_decay=0.01), parameters(), GRADIENTS
    )
    for name, p in parameters().items():
        velocity = 0.0
        for step, gradient in enumerate(GRADIENTS):
            g = gradient[name] + 0.01 * p
            velocity = 0.9 * velocity + g
            p = p - RATE * (g + 0.9 * velocity if nesterov else velocity)
            np.testing.assert_allclose(found[step][name], p, rtol=1e-5, atol=1e-6)


def test_sgd_alone():
    found = moved(optimizer(name="sgd"), parameters(), GRADIENTS[:1])
    expected = {name: p - RATE * GRADIENTS[0][name] for name, p in parameters().items()}
    chex.assert_trees_all_close(found[0], expected, rtol=1e-6)


def test_lion_as_chen_et_al_have_it():
    found = moved(optimizer(name="lion", weight_decay=0.01), parameters(), GRADIENTS)
    for name, p in parameters().items():
        m = 0.0
        for step, gradient in enumerate(GRADIENTS):
            g = gradient[name]
            p = p - RATE * (np.sign(0.9 * m + 0.1 * g) + 0.01 * p)
            m = 0.99 * m + 0.01 * g
            np.testing.assert_allclose(found[step][name], p, rtol=1e-5, atol=1e-6)


def test_muon_turns_matrices_and_leaves_the_rest_to_adam():
    found = moved(optimizer(name="muon"), parameters(), GRADIENTS[:1])[0]
    turned = {name: (parameters()[name] - p) / RATE for name, p in found.items()}
    u, _, v = np.linalg.svd(GRADIENTS[0]["kernel"], full_matrices=False)
    # Of the gradient the directions, with singular values near 1, times 0.2 * sqrt(larger side).
    diagonal = u.T @ turned["kernel"] @ v.T / (0.2 * 2)
    np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=0.01)
    assert (np.diag(diagonal) > 0.6).all()
    assert (np.diag(diagonal) < 1.3).all()
    for name in ("bias", "conv", "scale"):  # Adam's first update is the sign, with Nesterov's correction
        nadam = (0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9)) * np.sign(GRADIENTS[0][name])
        np.testing.assert_allclose(turned[name], nadam, rtol=1e-3)


@pytest.mark.parametrize("shape", [(2, 8), (8, 2), (5, 5)])
def test_muons_updates_are_of_adams_size_whatever_the_shape(shape):
    rng = np.random.default_rng(0)
    params, gradient = rng.normal(size=(2, *shape)).astype(np.float32)
    (found,) = moved(optimizer(name="muon"), params, [gradient])
    np.testing.assert_allclose(np.sqrt(np.mean((params - found) ** 2)), RATE * 0.2, rtol=0.25)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon"])
@pytest.mark.parametrize("all_decay", [False, True])
def test_what_decays(name, all_decay):
    """Gradients of zero leave the decay alone."""
    tx = optimizer(name=name, weight_decay=0.5, decay_biases_and_norms=all_decay)
    (found,) = moved(tx, parameters(), [jax.tree.map(np.zeros_like, parameters())])
    for leaf, p in parameters().items():
        decays = all_decay or leaf in ("kernel", "conv")
        np.testing.assert_allclose(found[leaf], p * (1 - RATE * 0.5) if decays else p, rtol=1e-6)


def test_biases_of_many_dimensions_are_told_by_name():
    attention = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)
    params = jax.eval_shape(attention.init, jax.random.key(0), jnp.ones((1, 3, 5)))["params"]
    assert params["query"]["bias"].ndim == 2
    assert no_bias_and_no_norm(params) == {
        part: {"kernel": True, "bias": False} for part in ("query", "key", "value", "out")
    }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_nnx_modules_too(name):
    tx = optimizer(name=name, weight_decay=0.5, decay_biases_and_norms=False)
    module = decoupled.from_nnx(lambda rngs: nnx.Linear(5, 3, rngs=rngs), "layer")
    params = jax.tree.map(jnp.ones_like, module.init(jax.random.key(0), jnp.ones((1, 5))).params)
    (found,) = moved(tx, params, [jax.tree.map(jnp.zeros_like, params)])
    new = nnx.to_pure_dict(found)
    np.testing.assert_array_equal(new["bias"], np.ones(3))
    np.testing.assert_allclose(new["kernel"], np.full((5, 3), 0.95), rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon"])
def test_gradients_are_clipped_first(name):
    params, gradient = parameters(), parameters(1)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
    short = jax.tree.map(lambda g: g * (0.5 / norm), gradient)
    clipped = moved(optimizer(name=name, clip_norm=0.5), params, [gradient] * 2)
    chex.assert_trees_all_close(clipped, moved(optimizer(name=name), params, [short] * 2), rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.name": "lionn"}, r"name is 'lionn': choose one of .* \(did you mean lion\?\)$"),
        ({"optimizer.schedule": "onecycle"}, r"choose one of .* \(did you mean one_cycle\?\)$"),
        ({"optimizer.momentum": 0.9}, r"momentum is 0.9, which adamw does not have: .* choose sgd as"),
        (
            {"estimator_optimizer.nesterov": True},
            r"^config\.estimator_optimizer\.nesterov is True, which adam",
        ),
        (
            {"optimizer.name": "sgd", "optimizer.nesterov": True},
            "but config.optimizer.momentum is 0: set it",
        ),
        (
            {"optimizer.name": "adam", "optimizer.weight_decay": 0.1},
            "adam does not have: .* choose adamw or",
        ),
        (
            {"optimizer.schedule": "step", "optimizer.final_fraction": 0.1},
            "is 0.1, which step does not have: .* cosine or one_cycle or reduce_on_plateau as",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_data_is_looked_for(changes, message):
    with pytest.raises(decoupled.UsageError, match=message):
        build(config(dataset="mnist", data_dir="/nowhere", download=False, **changes))


def plateaus(values, window, patience, factor, least):
    """What the rate is multiplied with in each update, by the definition."""
    scale, best, bad, found = 1.0, np.inf, 0, []
    for t, _ in enumerate(values, 1):
        if t % window == 0:
            mean = np.mean(values[t - window : t])
            improved = mean < (1 - 1e-4) * best
            best, bad = (mean, 0) if improved else (best, bad + 1)
            if bad == patience:
                scale, bad = max(scale * factor, least), 0
        found.append(scale)
    return found


def test_the_rate_falls_where_the_loss_does_not():
    """The first value is infinite, since there is no step before."""
    values = [np.inf, 3.0, 2.0, 2.5, *[2.0] * 5, 1.0, *[1.5] * 12]
    options = {"plateau_steps": 2, "plateau_patience": 2, "step_factor": 0.5, "final_fraction": 0.2}
    tx = optimizer(name="sgd", schedule="reduce_on_plateau", **options)
    params = {"w": np.ones(2, np.float32)}
    state, update, found = tx.init(params), jax.jit(tx.update), []
    for value in values:
        updates, state = update(params, state, params, value=jnp.float32(value))
        found.append(-updates["w"][0] / RATE)
    expected = plateaus(values, 2, 2, 0.5, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(set(expected)) == 4
    assert not jax.tree.leaves(tx.init({}))[0].shape  # of a module without parameters


@pytest.mark.parametrize("step", helpers.gate(("fused", "stacked"), "fused"))
def test_a_learner_gives_each_optimizer_the_loss_it_asks_for(step):
    """At a rate of 0 no loss falls: the first is told in step 2, and from step 3 on none is lower."""
    changes = {"schedule": "reduce_on_plateau", "plateau_steps": 1, "plateau_patience": 1}
    changes |= {"learning_rate": 0.0, "step_factor": 0.5}
    fields = {f"{field}.{name}": v for field in SECTIONS for name, v in changes.items()}
    fields |= {"model.mlp.depth": 3, "model.mlp.width": 4, "model.norm": "none", "estimator.name": "linear"}
    learner = make_learner_of(config(step=step, **fields), helpers.CLASSES, 100)
    state = learner.init(jax.random.key(0), *helpers.batch())
    update = jax.jit(learner.update)
    for _ in range(4):
        state, _ = update(state, *helpers.batch(), jax.random.key(0))
    found = [
        np.ravel(node.scale) for node in jax.tree.leaves(state, is_leaf=is_plateau) if is_plateau(node)
    ]
    # Step 1: infinity is no fall; step 2 is one; steps 3 and 4 are none.
    np.testing.assert_array_equal(np.concatenate(found), [0.125] * 7)


SECTIONS = ("optimizer", "estimator_optimizer")


def is_plateau(node):
    return isinstance(node, optax.contrib.ReduceLROnPlateauState)


@pytest.mark.parametrize("field", SECTIONS)
def test_a_pipeline_knows_no_loss(field):
    changes = {f"{field}.schedule": "reduce_on_plateau", "parallel.mode": "pipeline"}
    message = f"^config.{field}.schedule is 'reduce_on_plateau', which asks for the last step's loss, which"
    with pytest.raises(decoupled.UsageError, match=message):
        build(config(**changes))


def layer(name, out):
    """A module of two functions, which costs little to compile."""
    return decoupled.from_functions(
        lambda key, h: {"kernel": jax.random.normal(key, (h.shape[-1], out)), "bias": jnp.zeros(out)},
        lambda params, h: jnp.tanh(h @ params["kernel"] + params["bias"][None]),
        name,
    )


def chain(tx, stacked=False, num_blocks=2, **options):
    """Equal modules between two others; nothing between them learns or waits."""
    block = layer("block", 5)
    blocks = [block._replace(name=f"block_{i}") for i in range(num_blocks)]
    modules = [layer("lowest", 5), *blocks, layer("output", helpers.CLASSES)]
    links = stack_equal(modules) if stacked else modules
    estimator = helpers.every_method()["direct_random_target_projection"]
    loss = losses.softmax_cross_entropy
    return decoupled.make_learner(
        links, [estimator] * (len(links) - 1), loss, tx, optax.sgd(0.1), **options
    )


def trained(learner, steps=3):
    """The state at the start, and after each step."""
    states = [learner.init(jax.random.key(0), *helpers.batch())]
    update = jax.jit(learner.update)
    for step in range(steps):
        states.append(update(states[-1], *helpers.batch(step), jax.random.key(step))[0])
    return jax.device_get(states)


def mean_of(trees, decay):
    weights = [decay**age for age in reversed(range(len(trees)))]
    return jax.tree.map(lambda *p: sum(map(np.multiply, weights, p)) / sum(weights), *trees)


def check_averages(states, decay):
    """That those of the last state are of what each module was after every update of its own."""
    for i, module in enumerate(evaluated(states[-1]).modules):
        params = [state.modules[i].params for state in states]
        changes = [(p["kernel"] != before["kernel"]).any() for before, p in itertools.pairwise(params)]
        taken = [p for p, changed in zip(params[1:], changes, strict=True) if changed]
        assert taken
        chex.assert_trees_all_close(module.params, mean_of(taken, decay), rtol=1e-5, atol=1e-6)


def test_the_average():
    tx = optimizer(name="adamw", clip_norm=0.5)
    states, plain = trained(chain(watched(averaged(tx, 0.7)))), trained(chain(watched(tx)))
    check_averages(states, 0.7)
    # Training knows nothing of it.
    for module, other in zip(states[-1].modules, plain[-1].modules, strict=True):
        chex.assert_trees_all_close(module.params, other.params, rtol=1e-6)
    chex.assert_trees_all_equal(evaluated(states[0]), states[0])
    chex.assert_trees_all_equal(evaluated(plain[-1]), plain[-1])


def test_a_module_that_sits_out_counts_no_update():
    states = trained(chain(averaged(optimizer(name="sgd"), 0.7), update_probability=0.5), 6)
    assert {int(module.opt_state.count) for module in states[-1].modules} < set(range(1, 6))
    check_averages(states, 0.7)


def over_data():
    return [parallel.data_mesh(2, batch_size=8)]


MODES = {
    "fused": (None, parallel.one_device, list),
    "dispatched": (None, staged.by_dispatch, list),
    "mesh": (None, parallel.on_mesh, over_data),
    "shard_map": (parallel.AXIS, parallel.by_shard_map, over_data),
    "pmap": (parallel.AXIS, parallel.by_pmap, over_data),
    "pipeline": (None, staged.by_pipeline, lambda: [parallel.stage_mesh(2, stages=2, batch_size=8)]),
}


@pytest.mark.parametrize("mode", MODES)
def test_averages_and_muon_in_every_mode(mode):
    axis_name, make, meshes = MODES[mode]
    as_it_is = data.Preprocess(lambda key, x: x, lambda x: x, np.zeros(1), np.ones(1))
    tx = watched(averaged(optimizer(name="muon", clip_norm=1.0), 0.7))
    learner = chain(tx, num_blocks=0, axis_name=axis_name)
    execution = make(learner, as_it_is, objectives.ACCURACY, *meshes())
    x, y = helpers.batch()
    state = execution.place_state(learner.init(jax.random.key(0), x, y))
    totals = execution.place_state(no_totals(learner))
    key = execution.place_state(jax.random.key(1))
    batch = execution.place_batch((np.asarray(x), np.asarray(y)))
    step = execution.compile_step(state, totals, *batch, key)
    states = [jax.device_get(execution.whole_state(state))]
    for _ in range(4):
        state, totals = step(state, totals, *batch, key)
        states.append(jax.device_get(execution.whole_state(state)))
    check_averages(states, 0.7)


def test_a_slow_average_of_many_updates():
    tx, params = averaged(optax.sgd(1.0), 0.9999), {"p": jnp.zeros(())}
    state, update, values = tx.init(params), jax.jit(tx.update), []
    for _ in range(200):
        updates, state = update({"p": jnp.float32(-1.0)}, state, params)
        params = optax.apply_updates(params, updates)
        values.append(dict(params))
    expected = mean_of(jax.device_get(values), 0.9999)
    chex.assert_trees_all_close(state.average, expected, rtol=1e-5)


def test_an_average_of_bfloat16_is_kept_in_float32():
    tx, params = averaged(optax.sgd(1.0), 0.9), {"p": jnp.ones((), jnp.bfloat16)}
    _, state = tx.update({"p": jnp.zeros((), jnp.bfloat16)}, tx.init(params), params)
    assert state.average["p"].dtype == jnp.float32
    module = decoupled.ModuleState(params, {}, state)
    learner_state = decoupled.LearnerState(jnp.zeros((), jnp.int32), (module,), ())
    assert evaluated(learner_state).modules[0].params["p"].dtype == jnp.bfloat16


def test_gradients_that_are_skipped_are_in_no_average():
    tx = watched(averaged(optimizer(name="muon", clip_norm=1.0), 0.7), skip=True)
    params, update = parameters(), jax.jit(tx.update)
    _, state = update(GRADIENTS[0], tx.init(params), params)
    updates, after = update({**GRADIENTS[1], "bias": np.full(3, np.nan, np.float32)}, state, params)
    chex.assert_trees_all_equal(updates, jax.tree.map(np.zeros_like, params))
    chex.assert_trees_all_equal(after.inner, state.inner)
    assert (int(after.not_finite), int(after.first)) == (1, 2)


def test_a_stack_of_blocks():
    """Each block of its own, and two in a loop: the same numbers; all are watched."""
    tx = optimizer(name="muon", weight_decay=0.1, decay_biases_and_norms=False, learning_rate=0.01)
    tx = watched(averaged(tx, 0.7))
    stack = chain(tx, stacked=True)
    one, other = trained(chain(tx), 2)[-1], trained(stack, 2)[-1]
    chex.assert_trees_all_close(
        [m.params for m in evaluated(one).modules],
        [m.params for m in stack.unstack(evaluated(other)).modules],
        rtol=1e-4,
        atol=1e-5,
    )
    watches = read_watches(stack.chain, other.modules, other.estimators)
    assert [watch.updates for watch in watches] == [2] * 4


def test_muon_of_a_module_without_matrices():
    tx, params = optimizer(name="muon", weight_decay=0.1), {"scale": jnp.ones(3)}
    gradient = {"scale": jnp.asarray([1.0, -1.0, 1.0])}
    (found,) = moved(tx, params, [gradient])
    assert (np.sign(1 - 0.01 - found["scale"]) == np.sign(gradient["scale"])).all()
    chex.assert_trees_all_equal(moved(tx, {}, [{}]), [{}])


def test_smoothed_labels():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 4)).astype(np.float32), rng.integers(4, size=6).astype(np.int32)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    targets = 0.9 * np.eye(4)[labels] + 0.1 / 4
    expected = -(targets * np.log(probabilities)).sum(-1)
    np.testing.assert_allclose(cross_entropy(0.1)(logits, labels), expected, rtol=1e-5)
    with pytest.raises(decoupled.UsageError, match="takes integer labels"):
        cross_entropy(0.1)(logits, labels.astype(np.float32))
    half = cross_entropy(0.1)(jnp.asarray(logits, jnp.bfloat16), labels)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize("method", ["local_loss", "similarity", "probe"])
def test_heads_learn_from_smoothed_labels_too(method):
    """From zero logits the gradient of their biases is that of uniform predictions."""
    settings = config(label_smoothing=0.3, **{"estimator.name": method, "estimator.similarity.weight": 0.0})
    estimator = make_learner_of(settings, 3, 1).estimators[0]
    h, y = jnp.ones((4, 5)), jnp.asarray([0, 0, 1, 2])
    params = jax.eval_shape(estimator.init, jax.random.key(0), h, y)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    gradient = jax.jit(estimator.training_gradient)(params, h, y, jnp.zeros_like(h))[1]
    (of_biases,) = [leaf for leaf in jax.tree.leaves(gradient) if leaf.ndim == 1]
    targets = 0.7 * np.eye(3)[np.asarray(y)] + 0.3 / 3
    np.testing.assert_allclose(of_biases[-3:], (1 / 3 - targets).mean(0), rtol=1e-5, atol=1e-7)

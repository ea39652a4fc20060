"""What each method that is not a synthetic gradient puts in the place of dL/dh, worked out by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import decoupled
from decoupled import estimators
from tests import helpers

KEY = jax.random.key(1)
CONTEXT = estimators.one_hot(helpers.CLASSES)


def activations(size=8, features=6):
    rng = np.random.default_rng(2)
    h = jnp.asarray(rng.normal(size=(size, features)), jnp.float32)
    return h, jnp.asarray(rng.integers(helpers.CLASSES, size=size), jnp.int32)


def output_error(size=8):
    return np.random.default_rng(3).normal(size=(size, helpers.CLASSES)).astype(np.float32)


def random_like(tree):
    rng = np.random.default_rng(4)
    return jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), tree)


def step(estimator, depth=3):
    """One step of a chain, from a state in which no estimate is trivial."""
    x, y = helpers.batch()
    learner = helpers.make_learner(helpers.mlp_modules(depth=depth), estimator)
    state = helpers.noisy(learner.init(jax.random.key(0), x, y))
    return learner, state, jax.jit(learner.update)(state, x, y, KEY)[0]


@pytest.mark.parametrize("lam", [0.0, 0.25, 1.0])
def test_bp_lambda_mixes_with_what_was_mixed_above(lam):
    check_mixed(
        estimators.bp_lambda(estimators.linear(CONTEXT), lam),
        lambda own, incoming, A: (1 - lam) * own + lam * incoming,
    )


def test_sg_prop_adds_the_gradient_of_the_sg_loss():
    check_mixed(
        estimators.sg_prop(estimators.linear(CONTEXT), 0.5),
        lambda own, incoming, A: own + 0.5 * 2 * (own - incoming) @ A.T,
    )
    assert estimators.sg_prop(estimators.linear(CONTEXT), 0.0).name == "linear"


def check_mixed(estimator, mix):
    """Oracle: a step by hand, in which a boundary hands down `mix` of linear estimate and what comes in."""
    linear = estimators.linear(CONTEXT)
    learner, state, new = step(estimator)
    x, y = helpers.batch()
    h, pullbacks, activations = x, [], []
    for module, own in zip(learner.modules, state.modules, strict=True):

        def run(params, h, module=module):
            return module.apply(params, {}, h, KEY, True)[0]

        h, pullback = jax.vjp(run, own.params, h)
        pullbacks.append(pullback)
        activations.append(h)
    grad_h = jax.nn.softmax(h) - jax.nn.one_hot(y, helpers.CLASSES)
    for i in reversed(range(4)):
        grad_params, grad_h = pullbacks[i](grad_h)
        expected = jax.tree.map(lambda g: g / len(y), grad_params)
        chex.assert_trees_all_close(helpers.steps_taken(state, new)[i], expected, atol=1e-5)
        if i > 0:
            est_params = state.estimators[i - 1].params
            synthetic = linear.estimate(est_params, activations[i - 1], y, None)
            grad_h = mix(synthetic, grad_h, est_params["A"])


@pytest.mark.parametrize(
    ("lam", "same_as"), [(1.0, estimators.backprop()), (0.0, estimators.linear(CONTEXT))]
)
def test_bp_lambda_ends_at_backprop_and_at_dni(lam, same_as):
    mixed = step(estimators.bp_lambda(estimators.linear(CONTEXT), lam))[2]
    chex.assert_trees_all_close(mixed.modules, step(same_as)[2].modules, atol=1e-6)


def test_a_sigmoid_is_exact_in_logistic_regression():
    rng = np.random.default_rng(0)
    h, y = rng.normal(size=(20, 1)).astype(np.float32), rng.integers(2, size=(20, 1)).astype(np.float32)
    estimator = estimators.sigmoid(estimators.as_given)
    params = estimator.init(KEY, h, y)
    assert not np.any(estimator.estimate(params, jnp.asarray(h), y))
    one = jnp.ones((1, 1))
    params = {"A": one, "d": one[0], "B": -one, "c": 0 * one[0]}
    expected = jax.grad(lambda h: optax.sigmoid_binary_cross_entropy(h, y).sum())(jnp.asarray(h))
    found = estimator.estimate(params, jnp.asarray(h), y)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_direct_feedback_alignment_sends_the_error_through_its_matrix():
    h, y = activations()
    estimator = estimators.direct_feedback_alignment(helpers.CLASSES)
    est_params = estimator.init(KEY, h, y)
    estimate = estimator.estimate(est_params, h, None, output_error())
    np.testing.assert_allclose(estimate, output_error() @ np.asarray(est_params["B"]), rtol=1e-5)
    wide = estimator.init(KEY, jnp.zeros((1, 10_000)), y)["B"]
    assert np.square(wide).sum() == pytest.approx(helpers.CLASSES, rel=0.05)


def test_direct_random_target_projection_sends_the_label_as_an_error_would_be():
    h, y = activations()
    estimator = estimators.direct_random_target_projection(CONTEXT)
    est_params = estimator.init(KEY, h, y)
    expected = -np.asarray(est_params["B"])[np.asarray(y)]  # of prediction - y, without the prediction
    np.testing.assert_allclose(estimator.estimate(est_params, h, y, None), expected)


def test_kickback_tells_every_unit_its_outputs_error():
    h, y = activations(features=7)
    estimate = estimators.kickback().estimate({}, h, y, output_error())
    for unit in range(7):
        np.testing.assert_allclose(estimate[:, unit], output_error()[:, unit % 3] / np.sqrt(7), rtol=1e-6)
    one_output = estimators.kickback().estimate({}, h, y, output_error()[:, :1])
    np.testing.assert_allclose(one_output, np.tile(output_error()[:, :1] / np.sqrt(7), 7), rtol=1e-6)


def test_kickback_tells_every_position_of_a_channel_the_same():
    _, y = activations()
    h = jnp.zeros((8, 3, 3, 5))
    estimate = np.asarray(estimators.kickback().estimate({}, h, y, output_error()))
    for channel in range(5):
        expected = np.broadcast_to(output_error()[:, None, None, channel % 3] / np.sqrt(45), (8, 3, 3))
        np.testing.assert_allclose(estimate[..., channel], expected, rtol=1e-6)


def test_similarity_needs_something_to_compare():
    h, y = activations()
    estimator = estimators.similarity(helpers.CLASSES, CONTEXT)
    with pytest.raises(decoupled.UsageError, match="the batch holds only one"):
        estimator.estimate(estimator.init(KEY, h[:1], y[:1]), h[:1], y[:1], None)


def test_noise_is_normal_and_new_for_every_activation_and_boundary():
    h, y = activations(size=500, features=100)
    estimator = estimators.noise(scale=3.0)
    est_params = estimator.init(KEY, h, y)
    draw = np.asarray(estimator.estimate(est_params, h, y, None))
    assert np.square(draw).sum(1).mean() == pytest.approx(9.0, rel=0.02)
    assert abs(draw.mean()) < 0.005
    assert np.abs(np.corrcoef(draw)[np.triu_indices(500, 1)]).max() < 0.6  # no two examples alike
    np.testing.assert_array_equal(draw, estimator.estimate(est_params, h, y, None))
    elsewhere = estimator.estimate(estimator.init(jax.random.key(5), h, y), h, y, None)
    later = estimator.estimate(est_params, h * 1.001, y, None)
    for other in (elsewhere, later):
        assert abs(np.corrcoef(draw.ravel(), np.ravel(other))[0, 1]) < 0.02


@pytest.mark.parametrize(("hidden", "linear"), [((), True), ((5,), False), ((5,), True), ((5, 4), True)])
def test_local_loss_gives_the_gradient_of_its_head(hidden, linear):
    h, y = activations()
    estimator = estimators.probe(helpers.CLASSES)
    if hidden:
        estimator = estimators.local_loss(helpers.CLASSES, hidden, linear)
    est_params = random_like(estimator.init(KEY, h, y))

    def mean_loss(est_params, h):
        beside = 0
        for i, width in enumerate(hidden):
            h = h @ est_params[f"Dense_{i}"]["kernel"] + est_params[f"Dense_{i}"]["bias"][None]
            if linear and i == 0:  # the last columns are those of the linear layer
                h, beside = h[:, :width], h[:, width:]
            h = jax.nn.relu(h)
        last = est_params[f"Dense_{len(hidden)}"]
        bias = last["bias"][None] if "bias" in last else 0
        log_p = jax.nn.log_softmax(h @ last["kernel"] + bias + beside)
        return -jnp.take_along_axis(log_p, y[:, None], 1).mean()

    loss, (grad_params, grad_h) = jax.value_and_grad(mean_loss, (0, 1))(est_params, h)
    np.testing.assert_allclose(estimator.estimate(est_params, h, y, None), grad_h * 8, atol=1e-5)
    fit_loss, est_gradient = estimator.training_gradient(est_params, h, y, None)
    assert fit_loss == pytest.approx(float(loss), rel=1e-5)
    chex.assert_trees_all_close(est_gradient, grad_params, atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_a_head_starts_at_zero_and_its_hidden_layers_do_not(hidden):
    h, y = activations()
    est_params = estimators.local_loss(helpers.CLASSES, hidden).init(KEY, h, y)
    kernels = [est_params[f"Dense_{i}"]["kernel"] for i in range(len(hidden) + 1)]
    assert not kernels[-1].any()
    if hidden:
        assert kernels[0].shape == (6, 5 + helpers.CLASSES)
        assert not kernels[0][:, 5:].any()
        assert np.var(kernels[0][:, :5]) == pytest.approx(1 / 6, rel=0.5)


@pytest.mark.parametrize("linear", [True, False])
def test_on_maps_the_head_of_a_local_loss_is_convolutional(linear):
    """By shifted products and means over windows, of maps of 14x14 which are first averaged to 7x7."""
    rng = np.random.default_rng(5)
    h, y = jnp.asarray(rng.normal(size=(4, 14, 14, 2)), jnp.float32), jnp.asarray([0, 2, 1, 0])
    estimator = estimators.local_loss(helpers.CLASSES, linear=linear, filters=(3,), kernel_size=3)
    est_params = random_like(estimator.init(KEY, h, y))

    def log_losses(h):
        h = h.reshape(4, 7, 2, 7, 2, 2).mean((2, 4))
        padded, kernel = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0))), est_params["Conv_0"]["kernel"]
        z = est_params["Conv_0"]["bias"][None, None, None] + sum(
            jnp.einsum("bijc,cf->bijf", padded[:, i : i + 7, j : j + 7], kernel[i, j])
            for i in range(3)
            for j in range(3)
        )
        z = jax.nn.relu(z)[:, :6, :6].reshape(4, 3, 2, 3, 2, 3).mean((2, 4))
        last = est_params["Dense_0"]
        out = z.reshape(4, -1) @ last["kernel"] + last["bias"][None]
        if linear:
            out += h.reshape(4, -1) @ est_params["Dense_1"]["kernel"]
        return -jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1).sum()

    loss, grad_h = jax.value_and_grad(log_losses)(h)
    np.testing.assert_allclose(estimator.estimate(est_params, h, y, None), grad_h, atol=1e-5)
    assert estimator.training_gradient(est_params, h, y, None)[0] == pytest.approx(
        float(loss) / 4, rel=1e-5
    )
    first = estimator.init(KEY, h, y)
    assert not estimator.estimate(first, h, y, None).any()
    assert first["Conv_0"]["kernel"].any()


def test_a_probe_of_maps_is_linear():
    h = jnp.zeros((2, 4, 4, 3))
    est_params = estimators.probe(helpers.CLASSES).init(KEY, h, None)
    assert est_params["Dense_0"]["kernel"].shape == (48, helpers.CLASSES)
    assert len(est_params) == 1


def teachers_logits(part, h):
    """Of a teacher with one hidden layer of 5 units, whose linear part lies beside it."""
    both = h @ part["Dense_0"]["kernel"] + part["Dense_0"]["bias"][None]
    return jax.nn.relu(both[:, :5]) @ part["Dense_1"]["kernel"] + both[:, 5:]


def test_mean_teacher_gives_the_expected_gradient_of_what_it_teaches():
    """The mean, over labels that the averaged teacher believes, of the linear prediction's gradients."""
    h, y = activations()
    estimator = estimators.mean_teacher(helpers.CLASSES, (5,))
    est_params = random_like(estimator.init(KEY, h, y))
    belief = jax.nn.softmax(teachers_logits(est_params["average"], h))

    def log_loss(h, label):
        log_p = jax.nn.log_softmax(h @ est_params["taught"]["W"] + est_params["taught"]["b"][None])
        return -log_p[:, label].sum()

    expected = sum(belief[:, k, None] * jax.grad(log_loss)(h, k) for k in range(helpers.CLASSES))
    np.testing.assert_allclose(estimator.estimate(est_params, h, None, None), expected, atol=1e-5)


def test_mean_teacher_learns_from_labels_and_teaches_from_its_average():
    h, y = activations()
    estimator = estimators.mean_teacher(helpers.CLASSES, (5,), decay=0.75)
    est_params = random_like(estimator.init(KEY, h, y))
    loss, gradient = estimator.training_gradient(est_params, h, y, None)
    belief = jax.nn.softmax(teachers_logits(est_params["average"], h))

    def teachers_loss(part):
        log_p = jax.nn.log_softmax(teachers_logits(part, h))
        return -jnp.take_along_axis(log_p, y[:, None], 1).mean()

    def taught_loss(part):
        return -(belief * jax.nn.log_softmax(h @ part["W"] + part["b"][None])).sum(1).mean()

    losses = {"teacher": teachers_loss, "taught": taught_loss}
    for name, of in losses.items():
        chex.assert_trees_all_close(gradient[name], jax.grad(of)(est_params[name]), atol=1e-5)
    assert loss == pytest.approx(float(sum(of(est_params[n]) for n, of in losses.items())), rel=1e-5)

    tx = estimator.optimizer(optax.sgd(0.0))
    updates, _ = tx.update(gradient, tx.init(est_params), est_params)
    after = optax.apply_updates(est_params, updates)
    average = jax.tree.map(lambda a, t: 0.75 * a + 0.25 * t, est_params["average"], est_params["teacher"])
    chex.assert_trees_all_close(after["average"], average, atol=1e-6)
    chex.assert_trees_all_equal(after["taught"], est_params["taught"])


def test_similarity_loss_by_hand():
    h, y = activations()
    estimator = estimators.similarity(helpers.CLASSES, CONTEXT, weight=0.7, width=4)
    est_params = estimator.init(KEY, h, y)
    labels = np.asarray(y)
    z = np.asarray(h, np.float64) @ np.asarray(est_params["M"], np.float64)

    def cosine(a, b):
        a, b = a - a.mean(), b - b.mean()
        return a @ b / np.sqrt((a @ a) * (b @ b))

    of_z = np.array([[cosine(a, b) for b in z] for a in z])
    of_y = np.where(labels[:, None] == labels[None], 1.0, -0.5)  # of centred one-hots of 3 classes
    expected = 0.7 * np.square(of_z - of_y).mean() + 0.3 * np.log(3)  # the head starts at zero
    loss, _ = estimator.training_gradient(est_params, h, y, None)
    assert loss == pytest.approx(expected, rel=1e-5)
    numeric = []
    for sign in (1, -1):
        moved = h.at[2, 1].add(sign * 1e-2)
        numeric.append(float(estimator.training_gradient(est_params, moved, y, None)[0]))
    estimate = estimator.estimate(est_params, h, y, None)
    assert float(estimate[2, 1]) / 8 == pytest.approx((numeric[0] - numeric[1]) / 2e-2, rel=2e-2)


def test_similarity_is_safe_where_an_activation_is_constant():
    h, y = activations()
    h = h.at[0].set(0.0)
    estimator = estimators.similarity(helpers.CLASSES, CONTEXT)
    assert np.isfinite(estimator.estimate(estimator.init(KEY, h, y), h, y, None)).all()


def maps(size=6, rows=5, columns=4, channels=4):
    rng = np.random.default_rng(2)
    y = jnp.asarray(rng.integers(helpers.CLASSES, size=size), jnp.int32)
    return jnp.asarray(rng.normal(size=(size, rows, columns, channels))), y


def convolutional_similarity(h, labels, m, kernel, bias, weight, counts):
    """The loss on maps in plain NumPy: the mean over examples, of which each counts so often."""
    size, rows, columns, channels = h.shape
    padded = np.zeros((size, rows + 2, columns + 2, channels))
    padded[:, 1:-1, 1:-1] = h
    z = np.zeros((size, rows, columns, m.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            z[:, i, j] = np.einsum("bklc,klcd->bd", padded[:, i : i + 3, j : j + 3], m)
    of_z = np.corrcoef(z.reshape(size, -1, z.shape[-1]).std(axis=1))
    of_y = np.where(labels[:, None] == labels[None], 1.0, -0.5)  # of centred one-hots of 3 classes
    shares = counts / counts.sum()
    logits = h.reshape(size, -1) @ kernel + bias
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    prediction = -log_p[np.arange(size), labels]
    each = weight * np.square(of_z - of_y) @ shares + (1 - weight) * prediction
    return each @ shares


def test_on_maps_similarities_are_those_of_deviations_after_a_convolution(x64):
    h, y = maps()
    estimator = estimators.similarity(helpers.CLASSES, CONTEXT, weight=0.7)
    est_params = estimator.init(KEY, h, y)
    assert est_params["M"].shape == (3, 3, 4, 4)
    rng = np.random.default_rng(4)
    est_params = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape)), est_params)
    head = est_params["head"]["Dense_0"]
    counts = np.array([1.0, 2.0, 0.0, 1.0, 0.5, 1.0])

    m = np.asarray(est_params["M"])

    def reference(h, m=m, counts=counts):
        arrays = (np.asarray(a) for a in (h, y, m, head["kernel"], head["bias"]))
        return convolutional_similarity(*arrays, 0.7, counts)

    loss, gradient = estimator.training_gradient(est_params, h, y, None, jnp.asarray(counts))
    np.testing.assert_allclose(loss, reference(h), rtol=1e-9)
    unweighted = estimator.training_gradient(est_params, h, y, None)[0]
    np.testing.assert_allclose(unweighted, reference(h, counts=np.ones(6)), rtol=1e-9)

    def slope(function, at, place, step=1e-6):
        change = np.zeros_like(at)
        change[place] = step
        return (function(at + change) - function(at - change)) / (2 * step)

    estimate = estimator.estimate(est_params, h, y, None, jnp.asarray(counts))
    for place in [(1, 2, 3, 0), (4, 0, 0, 2), (2, 1, 1, 1)]:
        found = estimate[place] * counts[place[0]] / counts.sum()
        np.testing.assert_allclose(found, slope(reference, np.asarray(h), place), rtol=1e-5, atol=1e-10)
    place = (0, 2, 1, 3)
    expected = slope(lambda m: reference(h, m), m, place)
    np.testing.assert_allclose(gradient["M"][place], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "features"),
    [
        ((8, 6, 5), (3, 3, 5, 5), 240),
        ((16, 16, 32), (3, 3, 32, 32), 2048),  # averaged over 2x2
        ((1, 1, 5), (5, 128), 5),  # no deviation
        ((2, 2, 3), (12, 128), 12),  # no angle
    ],
)
def test_similarity_on_maps_of_all_sizes(shape, kernel, features):
    h = jnp.ones((2, *shape))
    est_params = estimators.similarity(helpers.CLASSES, CONTEXT).init(KEY, h, jnp.asarray([0, 1]))
    assert est_params["M"].shape == kernel
    assert est_params["head"]["Dense_0"]["kernel"].shape == (features, helpers.CLASSES)


def test_similarity_is_safe_where_maps_are_constant_and_deaf_to_what_does_not_count():
    h, y = maps()
    h = h.astype(jnp.float32).at[0].set(0.0).at[1, ..., 2].set(1.0)
    estimator = estimators.similarity(helpers.CLASSES, CONTEXT)
    est_params = estimator.init(KEY, h, y)
    est_params["M"] = est_params["M"].at[..., 3].set(0.0)  # a channel without any deviation

    def loss(est_params, h, y, weight=None):
        return (decoupled.boundary(estimator, est_params, h, y, weight=weight) ** 2).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    without, estimate = gradients(est_params, h, y)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((without, estimate)))
    more = jnp.concatenate([h, jnp.full_like(h[:2], jnp.nan)]), jnp.concatenate([y, y[:2]])
    padded, longer = gradients(est_params, *more, jnp.asarray([1.0] * 6 + [0.0] * 2))
    chex.assert_trees_all_close(padded, without, rtol=1e-5)
    np.testing.assert_allclose(longer[:6], estimate, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(longer[6:], 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: estimators.bp_lambda(estimators.linear(), 1.5), "λ from 0 to 1, not 1.5"),
        (lambda: estimators.bp_lambda(estimators.backprop(), 0.5), "backprop is none"),
        (lambda: estimators.sg_prop(estimators.probe(3)), "such as linear or mlp: probe has none"),
        (lambda: estimators.mean_teacher(3, ()), "a teacher needs hidden layers"),
        (lambda: estimators.mean_teacher(3, decay=1.0), r"a decay in \[0, 1\)"),
        (lambda: estimators.similarity(3, None), "needs a context"),
        (lambda: estimators.direct_random_target_projection(None), "needs a context"),
        (lambda: estimators.similarity(3, CONTEXT, weight=2.0), "a weight from 0 to 1"),
    ],
)
def test_impossible_estimators_are_refused(make, message):
    with pytest.raises(decoupled.UsageError, match=message):
        make()


def test_the_learner_says_at_which_boundary_something_is_wrong():
    x, y = helpers.batch()
    modules = helpers.mlp_modules()

    def learner_with(estimator):
        return helpers.make_learner(modules, estimator)

    too_wide = learner_with(estimators.direct_feedback_alignment(7))
    state = too_wide.init(KEY, x, y)
    with pytest.raises(decoupled.UsageError, match=r"boundary 1 \(after hidden_1\): .*made for 7 outputs"):
        too_wide.update(state, x, y, KEY)
    with pytest.raises(decoupled.UsageError, match=r"boundary 0 \(after hidden_0\): .*none has reached it"):
        too_wide.update_module[0](state.modules[0], state.estimators[0].params, x, y, KEY)
    linear = learner_with(estimators.linear(CONTEXT))
    state = linear.init(KEY, x, y)
    with pytest.raises(decoupled.UsageError, match=r"boundary 0 .*sees the labels, but was given none"):
        linear.update_module[0](state.modules[0], state.estimators[0].params, x, None, KEY)
    with pytest.raises(decoupled.UsageError, match=r"boundary 0 .*y has shape \(1,\), but h"):
        linear.update_module[0](state.modules[0], state.estimators[0].params, x, y[:1], KEY)
    wider = linear.init(KEY, x, y).estimators[0]._replace(params={"A": jnp.zeros((5, 5))})
    message = r"boundary 0 .*they are A \(5, 5\) where A \(4, 4\), B \(3, 4\), c \(4,\) is needed"
    with pytest.raises(decoupled.UsageError, match=message):
        linear.update_module[0](state.modules[0], wider.params, x, y, KEY)
    too_narrow = learner_with(linear.estimators[0]._replace(estimate=lambda p, h, y, signal: h[:, :1]))
    with pytest.raises(decoupled.UsageError, match=r"boundary 0 .*estimate of linear has shape \(8, 1\)"):
        too_narrow.update(too_narrow.init(KEY, x, y), x, y, KEY)

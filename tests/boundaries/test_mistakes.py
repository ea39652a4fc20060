"""What stands wrongly at a boundary is told in one line: where, what, and the way out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import decoupled
from decoupled import Boundary, NNXBoundary, UsageError, estimators, losses
from tests import helpers

KEY = jax.random.key(0)
CONTEXT = estimators.one_hot(helpers.CLASSES)
H, Y = helpers.batch(features=4)
# Estimators with a context, of a width of ten where they say one.
CONDITIONED = {
    "linear": estimators.linear,
    "loss_shaped": partial(estimators.loss_shaped, 10),
    "mlp": partial(estimators.mlp, (5,)),
    "recursive_least_squares": estimators.recursive_least_squares,
    "similarity": partial(estimators.similarity, helpers.CLASSES),
    "direct_random_target_projection": estimators.direct_random_target_projection,
    "convolutional": partial(estimators.convolutional, (2,), 3),
}


def activations(name):
    return H.reshape(8, 2, 2, 1) if name == "convolutional" else H


def hand_down(estimator, est_params, h, y=None, error=None, **options):
    loss = lambda h: decoupled.boundary(estimator, est_params, h, y, error, name="mine", **options).sum()  # noqa: E731
    return jax.eval_shape(jax.grad(loss), h)


def shapes(estimator, h, y):
    """Parameters of which none matters: whatever is wrong is found while tracing."""
    like = jax.eval_shape(lambda: estimator.init(KEY, h, y))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize("name", CONDITIONED)
@pytest.mark.parametrize(
    ("context", "y", "message"),
    [
        (estimators.as_given, Y[:, None], "context is int32, but must be real numbers: .*one_hot"),
        (lambda y: y.astype(jnp.float32), Y, r"context has shape \(8,\), but .* must be \(8, "),
        (lambda y: jnp.ones((1, 10)), Y, r"context has shape \(1, 10\), but .* must be \(8, "),
        (lambda y: jnp.ones((8, 1, 10)), Y, r"context has shape \(8, 1, 10\), but .* must be \(8, "),
        (lambda y: {"label": y}, Y, "context takes one array, but was given a dict"),
    ],
    ids=["labels as numbers", "no features", "one for all", "an axis too many", "a dict"],
)
def test_a_context_is_a_vector_an_example(name, context, y, message):
    estimator = CONDITIONED[name](context)
    with pytest.raises(UsageError, match=message if name != "loss_shaped" else "context"):
        shapes(estimator, activations(name), y)
    # And where the parameters are those of a context that is one.
    est_params = shapes(CONDITIONED[name](lambda y: jnp.ones((len(y), 10))), activations(name), Y)
    with pytest.raises(UsageError, match=r"^mine: .*context") as error:
        hand_down(estimator, est_params, activations(name), y)
    assert one_line(error)


def test_integers_are_not_taken_for_ten_classes():
    """By which the label's part was label - softmax, for all ten classes alike."""
    estimator = estimators.loss_shaped(10, context=estimators.as_given)
    with pytest.raises(UsageError, match=r"context has shape \(8, 1\), but .* must be \(8, 10\)"):
        estimator.init(KEY, H, Y[:, None])
    for wrong in (CONTEXT, estimators.one_hot(11)):
        with pytest.raises(UsageError, match=r"must be \(8, 10\)"):
            estimators.loss_shaped(10, context=wrong).init(KEY, H, Y)


def test_similarity_needs_an_angle_between_labels():
    estimator = estimators.similarity(helpers.CLASSES, estimators.as_given)
    with pytest.raises(UsageError, match="a context of two features or more"):
        estimator.init(KEY, H, jnp.ones((8, 1)))


def test_contexts_as_they_should_be():
    """Encoded labels, given: as `one_hot` makes them of integers."""
    given = np.eye(10, dtype=np.float32)[np.asarray(Y)]
    for name, make in CONDITIONED.items():
        encoding, as_given = make(estimators.one_hot(10)), make(estimators.as_given)
        h = activations(name)
        est_params = jax.tree.map(lambda leaf: leaf + 0.1, shapes(encoding, h, Y))
        if name == "similarity":
            continue  # whose other part takes labels
        both = jax.jit(
            lambda p, h=h, a=encoding, b=as_given: (a.estimate(p, h, Y), b.estimate(p, h, given))
        )
        np.testing.assert_array_equal(*both(est_params))


class Head(nn.Module):
    estimator: decoupled.Estimator
    batch_axes: int = 1

    @nn.compact
    def __call__(self, x, y=None):
        return nn.Dense(3)(Boundary(self.estimator, self.batch_axes, name="cut")(nn.Dense(4)(x), y))


@pytest.mark.parametrize("method", ["linear", "noise", "mean_teacher"])
def test_units_are_not_taken_for_examples(method):
    """A model under `jax.vmap` has an activation of one example, (features,)."""
    estimator = {**helpers.every_method(), "linear": estimators.linear()}[method]
    message = r"^boundary cut: h has shape \(4,\) and no axis of features.* jax.vmap .*batch_axes=0"
    with pytest.raises(UsageError, match=message) as error:
        Head(estimator).init(KEY, H[0])
    assert one_line(error)
    variables = jax.jit(Head(estimator).init)(KEY, H)
    with pytest.raises(UsageError, match=message):
        jax.vmap(lambda x: Head(estimator).apply(variables, x))(H)
    with pytest.raises(UsageError, match=r"^mine: h has shape \(4,\)"):
        decoupled.boundary(estimator, {}, H[0], name="mine")
    one = NNXBoundary(estimator, 4, rngs=nnx.Rngs(0), name="cut")
    with pytest.raises(UsageError, match=message):
        one(H[0])
    out = jax.jit(jax.vmap(lambda x: Head(estimator, batch_axes=0).apply(variables, x)))(H)
    np.testing.assert_allclose(out, jax.jit(Head(estimator).apply)(variables, H), rtol=1e-5, atol=1e-6)


def test_a_chain_needs_an_axis_of_features_too():
    first = decoupled.from_functions(lambda key, x: jnp.ones(5), lambda w, x: x @ w, "first")
    last = decoupled.from_functions(lambda key, h: {}, lambda _, h: h[:, None] * jnp.ones((1, 3)), "last")
    learner = helpers.make_learner([first, last], estimators.noise())
    message = r"^boundary 0 \(after first\): h has shape \(8,\) .* pass h\[..., None\]"
    with pytest.raises(UsageError, match=message):
        learner.init(KEY, *helpers.batch())


def test_several_arrays_need_an_estimator_that_tells_them_apart():
    linear, several = estimators.linear(), {"a": H, "b": H}
    message = r"h has 2 arrays of real numbers, and linear is an estimator of one: give estimators\.joined"
    with pytest.raises(UsageError, match=r"^mine: " + message):
        decoupled.boundary(linear, {}, (H, H), name="mine")
    with pytest.raises(UsageError, match=r"^boundary Boundary: " + message):
        Boundary(linear).init(KEY, several)
    with pytest.raises(UsageError, match=r"^boundary cut: " + message):
        NNXBoundary(linear, several, rngs=nnx.Rngs(0), name="cut")
    two = decoupled.from_functions(lambda key, h: {}, lambda params, h: (h, h), "two")
    with pytest.raises(UsageError, match=r"^boundary 0 \(after two\): " + message):
        helpers.make_learner([two, two], linear).init(KEY, H, Y)
    with pytest.raises(UsageError, match="each was given 3 estimators for 2 arrays"):
        Boundary(estimators.each(linear, linear, linear)).init(KEY, several)
    with pytest.raises(UsageError, match="read the same and are fitted alike, not linear, backprop"):
        estimators.each(linear, estimators.backprop())


def test_where_nothing_is_there_is_nothing_to_estimate():
    linear, empty = estimators.linear(), H[:, :0]
    with pytest.raises(UsageError, match=r"^mine: h is empty, which has no gradient"):
        decoupled.boundary(linear, {}, (empty, jnp.zeros((8, 3, 0))), name="mine")
    with pytest.raises(UsageError, match=r"^boundary Boundary: h is empty and int32, which"):
        Boundary(linear).init(KEY, {"memory": empty, "mask": Y})
    with pytest.raises(UsageError, match=r"^mine: h has shape \(0,\), without a number"):
        jax.vmap(lambda h: decoupled.boundary(linear, {}, h, batch_axes=0, name="mine"))(empty)


@pytest.mark.parametrize("weight", [jnp.ones(7), jnp.ones((8, 4))])
def test_weights_are_one_an_example(weight):
    with pytest.raises(UsageError, match=r"^mine: weight has shape .* has the examples \(8,\)"):
        decoupled.boundary(estimators.backprop(), {}, H, weight=weight, name="mine")
    learner = helpers.make_learner(helpers.mlp_modules(1), estimators.linear())
    x, y = helpers.batch()
    state = learner.init(KEY, x, y)
    with pytest.raises(UsageError, match=r"^the learner: weight has shape .* has the examples \(8,\)"):
        learner.update(state, x, y, KEY, weight)


@pytest.mark.parametrize("number", [0, -3, 0.0, np.int64(0), np.inf, np.ones(2), "a"])
def test_the_number_of_examples_is_one_above_zero(number):
    with pytest.raises(UsageError, match=r"^mine: num_examples is .* one number above zero"):
        decoupled.boundary(estimators.backprop(), {}, H, num_examples=number, name="mine")


def joined(y):
    return jnp.concatenate([jax.nn.one_hot(y["label"], 3), y["place"]], axis=1)


def test_labels_in_a_dict_of_another_width():
    estimator = estimators.linear(joined)
    est_params = shapes(estimator, H, {"label": Y, "place": jnp.ones((8, 2))})
    y = {"label": Y, "place": jnp.ones((8, 5))}
    message = r"labels \{label: \(8,\), place: \(8, 5\)\}: they are B \(5, 4\) where B \(8, 4\) is needed"
    with pytest.raises(UsageError, match=message):
        hand_down(estimator, est_params, H, y)
    with pytest.raises(UsageError, match="one_hot takes one array, but was given a dict"):
        estimators.linear(CONTEXT).init(KEY, H, y)
    with pytest.raises(UsageError, match="as_given takes one array, but was given a dict"):
        estimators.linear(estimators.as_given).init(KEY, H, y)


def test_soft_labels_are_given():
    with pytest.raises(UsageError, match=r"y is float32 of shape \(8, 3\) \(for what .* use as_given\)"):
        CONTEXT(jnp.ones((8, 3)))
    with pytest.raises(UsageError, match="soft labels give another loss"):
        estimators.probe(3).estimate(shapes(estimators.probe(3), H, Y), H, jnp.ones((8, 3)), None)
    with pytest.raises(UsageError, match="takes integer labels, not float32"):
        losses.softmax_cross_entropy(jnp.ones((8, 3)), jnp.ones(8))


def test_a_loss_gives_one_number_an_example():
    tokens, y = jnp.ones((2, 4, 3)), jnp.zeros((2, 4), jnp.int32)
    optaxs = optax.softmax_cross_entropy_with_integer_labels
    message = (
        r"output \(2, 4, 3\) has shape \(2, 4\), but .* an example, \(2,\).*reshape to \(batch \* time"
    )
    with pytest.raises(UsageError, match=message):
        losses.output_error(optaxs, tokens, y)
    with pytest.raises(UsageError, match=r"has shape \(\), but .* neither their mean"):
        losses.output_error(lambda out, y: optaxs(out, y).mean(), H[:, :3], Y)
    with pytest.raises(UsageError, match=r"else reshape both to lead with batch \* time"):
        losses.output_error(losses.softmax_cross_entropy, tokens, y)
    # Its way out.
    _, error = losses.output_error(losses.softmax_cross_entropy, tokens.reshape(8, 3), y.reshape(8))
    np.testing.assert_allclose(error, np.full((8, 3), 1 / 3) - np.eye(3)[np.zeros(8, int)], rtol=1e-5)
    with pytest.raises(UsageError, match=r"of one shape, not \(8, 1\) and \(8,\)"):
        losses.squared_error(H[:, :1], H[:, 0])
    # A local loss that is a mean would hand down gradients of a mean.
    head = estimators.probe(3, loss=lambda out, y: losses.softmax_cross_entropy(out, y).mean())
    with pytest.raises(UsageError, match=r"has shape \(\), but must be one number an example"):
        head.estimate(shapes(head, H, Y), H, Y, None)
    alike = estimators.similarity(3, CONTEXT, loss=head_loss)
    with pytest.raises(UsageError, match=r"has shape \(\), but must be one number an example"):
        alike.estimate(shapes(alike, H, Y), H, Y, None)


def head_loss(out, y):
    return losses.softmax_cross_entropy(out, y).mean()


@pytest.mark.parametrize("name", ["direct_feedback_alignment", "kickback"])
def test_the_error_of_two_outputs(name):
    estimator = helpers.every_method()[name]
    est_params = estimator.init(KEY, H, Y)
    error = (jnp.ones((8, 3)), jnp.ones((8, 2)))
    joined_error = jnp.concatenate(error, axis=1)
    if name == "direct_feedback_alignment":
        message = "made for 3 outputs, but the error has 5"
        with pytest.raises(UsageError, match=message) as raised:
            hand_down(estimator, est_params, H, Y, error)
        assert one_line(raised)
        return
    np.testing.assert_array_equal(
        hand_down(estimator, est_params, H, Y, error), hand_down(estimator, est_params, H, Y, joined_error)
    )


def test_an_output_without_real_numbers_has_no_error():
    with pytest.raises(UsageError, match="holds no real numbers"):
        losses.output_error(losses.softmax_cross_entropy, Y, Y)


@pytest.mark.parametrize("axes", [-1, 1.5])
def test_batch_axes_are_a_number_of_axes(axes):
    with pytest.raises(UsageError, match=f"^mine: batch_axes is {axes}, but must be a number of axes"):
        decoupled.boundary(estimators.backprop(), {}, H, batch_axes=axes, name="mine")


def test_a_function_is_not_yet_an_estimator():
    message = r"backprop is no estimator but makes one: call it, backprop\(\)"
    with pytest.raises(UsageError, match="^mine: " + message) as error:
        decoupled.boundary(estimators.backprop, {}, H, name="mine")
    assert one_line(error)
    with pytest.raises(UsageError, match="^boundary cut: " + message):
        Head(estimators.backprop).init(KEY, H)
    with pytest.raises(UsageError, match="^boundary cut: " + message):
        NNXBoundary(estimators.backprop, 4, rngs=nnx.Rngs(0), name="cut")
    several = [estimators.backprop()]
    with pytest.raises(UsageError, match=r"^mine: an estimator is needed, .* not a list"):
        decoupled.boundary(several, {}, H, name="mine")


def lifted(lift, body, axes, rngs):
    if lift == "scan":
        return nn.scan(body, variable_axes=axes, split_rngs=rngs, in_axes=nn.broadcast, length=2)()
    return nn.vmap(body, variable_axes=axes, split_rngs=rngs, in_axes=None, axis_size=2)()


@pytest.mark.parametrize("lift", ["scan", "vmap"])
@pytest.mark.parametrize(
    ("estimator", "axes", "rngs", "message"),
    [
        ("direct_feedback_alignment", {"params": 0}, {"params": True}, "no place: .*{'feedback': 0}"),
        ("linear", {"feedback": 0}, {"params": True}, "no place: .*{'params': 0}"),
        ("direct_feedback_alignment", {"feedback": 0}, {}, "stream 'params': say split_rngs="),
        ("linear", {"params": 0}, {}, "stream 'params': say split_rngs="),
    ],
)
def test_collections_that_a_lifted_transformation_leaves_out(lift, estimator, axes, rngs, message):
    estimator = helpers.every_method()[estimator]

    class Body(nn.Module):
        @nn.compact
        def __call__(self, h, y):
            h = Boundary(estimator, name="cut")(h, y)
            return (h, None) if lift == "scan" else h

    class Network(nn.Module):
        complete: bool

        @nn.compact
        def __call__(self, h, y):
            all_axes, all_rngs = {"params": 0, "feedback": 0}, {"params": True}
            given = (all_axes, all_rngs) if self.complete else (axes, rngs)
            return lifted(lift, Body, *given)(h, y)

    with pytest.raises(UsageError, match=f"^boundary .*cut: the .*{estimator.name} .*{message}") as error:
        Network(complete=False).init(KEY, H, Y)
    assert one_line(error)
    leaves = jax.tree.leaves(jax.eval_shape(Network(complete=True).init, KEY, H, Y))
    assert all(leaf.shape[0] == 2 for leaf in leaves)
    with pytest.raises(
        UsageError, match=rf"cut: the .*{estimator.name} are missing: pass .* variable_axes"
    ):
        Network(complete=True).apply({}, H, Y)

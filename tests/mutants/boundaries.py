"""Defects in the boundary form, the optimizer that goes with it, and the declared locks."""

from tests.mutants.mutant import Mutant

_PRIMITIVE = "decoupled/boundaries/primitive.py"
_OF_PRIMITIVE = "tests/boundaries/test_primitive.py::"
_AS_CHAIN = (_OF_PRIMITIVE + "test_boundary_form_equals_chain_form[linear]",)
_ESTIMATED = "estimated = scaled(like(as_cotangent(grad_h_hat, weight), real), jnp.divide)"

MUTANTS = (
    Mutant(
        "the true gradient leaks across a boundary",
        _PRIMITIVE,
        "handed_down = jax.tree.map(partial(jnp.where, use_estimate), estimated, cotangent)",
        "handed_down = jax.tree.map(lambda e, c: jnp.where(use_estimate, e + c, c), estimated, cotangent)",
        _AS_CHAIN,
    ),
    Mutant(
        "the estimate is handed down where the true gradient was asked for",
        _PRIMITIVE,
        "handed_down = jax.tree.map(partial(jnp.where, use_estimate), estimated, cotangent)",
        "handed_down = estimated",
        (_OF_PRIMITIVE + "test_the_true_gradient_can_be_let_through_while_the_estimator_learns[False]",),
    ),
    Mutant(
        "estimate handed down without the batch",
        _PRIMITIVE,
        _ESTIMATED,
        "estimated = like(as_cotangent(grad_h_hat, weight), real)",
        _AS_CHAIN,
    ),
    Mutant(
        "estimate divided by the batch twice",
        _PRIMITIVE,
        _ESTIMATED,
        _ESTIMATED.replace("scaled(like", "scaled(scaled(like").replace(
            "jnp.divide)", "jnp.divide), jnp.divide)"
        ),
        _AS_CHAIN,
    ),
    Mutant(
        "estimate handed down with the wrong sign",
        _PRIMITIVE,
        _ESTIMATED,
        _ESTIMATED.replace("(grad", "(-grad"),
        _AS_CHAIN,
    ),
    Mutant(
        "target left divided by the batch",
        _PRIMITIVE,
        "incoming = per_example(scaled(cotangent, jnp.multiply), batch_axes)",
        "incoming = per_example(cotangent, batch_axes)",
        _AS_CHAIN,
    ),
    Mutant(
        "the number of examples has no say in the estimator's gradient",
        _PRIMITIVE,
        "(g * n / total)",
        "(g * 1)",
        (_OF_PRIMITIVE + "test_the_number_of_examples_is_explicit[sum-linear]",),
    ),
    Mutant(
        "averages multiplied by what the loss is summed by",
        "decoupled/estimators/averages.py",
        "summed / jnp.where(weight != 0, weight, 1.0)",
        "summed",
        ("tests/boundaries/test_averages.py::test_averages_are_those_of_the_chain_form[mean_teacher-sum]",),
    ),
    Mutant(
        "a tap's means in the place of sums",
        "decoupled/boundaries/metrics.py",
        "descended = error if fit_loss is None else examples * fit_loss",
        "descended = error if fit_loss is None else fit_loss",
        ("tests/boundaries/test_metrics.py::test_fits_are_those_of_the_chain[linear]",),
    ),
    Mutant(
        "a tied loss that reaches nothing",
        _PRIMITIVE,
        "return cotangent, jax.tree.map(jnp.zeros_like, activations)",
        "return cotangent, None",
        ("tests/boundaries/test_reached.py",),
    ),
    Mutant(
        "a context of another width is broadcast",
        "decoupled/estimators/synthetic_gradient.py",
        "width not in (None, encoding.shape[1])",
        "width == 0",
        ("tests/boundaries/test_mistakes.py::test_integers_are_not_taken_for_ten_classes",),
    ),
    Mutant(
        "boundary's estimator fitted to its own estimate",
        _PRIMITIVE,
        "estimator.training_gradient(est_params, rows, y, incoming, *weights_too)",
        "estimator.training_gradient(est_params, rows, y, grad_h_hat, *weights_too)",
        _AS_CHAIN,
    ),
    Mutant(
        "boundary's estimator fitted with another example's label",
        _PRIMITIVE,
        "estimator.training_gradient(est_params, rows, y, incoming, *weights_too)",
        "estimator.training_gradient(est_params, rows, jnp.roll(y, 1, 0), incoming, *weights_too)",
        _AS_CHAIN,
    ),
    Mutant(
        "the output error is differentiated through",
        "decoupled/losses.py",
        "error = jax.lax.stop_gradient(pullback(jnp.ones_like(losses))[0])",
        "error = pullback(jnp.ones_like(losses))[0]",
        ("tests/learning/test_carried.py",),
    ),
    Mutant(
        "optimizer state of a boundary's estimator not carried",
        "decoupled/boundaries/optimizer.py",
        "boundaries[path], states[path] = tx.update(subtree, state.estimators[path], own, **extra)",
        "boundaries[path], _ = tx.update(subtree, state.estimators[path], own, **extra)\n"
        "            states[path] = state.estimators[path]",
        ("tests/learning/test_carried.py",),
    ),
    Mutant(
        "optimizer state of a boundary's layers not carried",
        "decoupled/boundaries/optimizer.py",
        "_like(updates, new), SplitState(layers_state, states)",
        "_like(updates, new), SplitState(state.layers, states)",
        ("tests/learning/test_carried.py",),
    ),
    Mutant(
        "a layer called feedback is never trained",
        "decoupled/boundaries/optimizer.py",
        "has_collections and len(path) == 1 and ",
        "bool(path) and ",
        ("tests/boundaries/test_optimizer.py",),
    ),
    Mutant(
        "boundaries are told apart by a part of their path",
        "decoupled/boundaries/optimizer.py",
        "names = _names([path[:-1] for path, _ in found if _is_est_params(path)])",
        "names = {path[:-1]: path[0].key for path, _ in found if _is_est_params(path)}",
        ("tests/boundaries/test_optimizer.py",),
    ),
    Mutant(
        "a lock on the backward pass goes untold",
        "decoupled/types.py",
        "backward=self is Reads.INCOMING",
        "backward=False",
        ("tests/learning/test_locks.py::test_locks_are_those_of_the_data_flow[backprop]",),
    ),
    Mutant(
        "a lock on the forward pass goes untold",
        "decoupled/types.py",
        "update=self is not Reads.NOTHING",
        "update=self is Reads.INCOMING",
        ("tests/learning/test_locks.py::test_locks_are_those_of_the_data_flow[kickback]",),
    ),
    Mutant(
        "a rule that acts on no layer is plain backprop, and says nothing",
        "decoupled/modules/backward_rules.py",
        "if _in_the_way(exact) and not ruled:",
        "if False:",
        ("tests/modules/test_backward_rules.py::test_a_rule_that_acts_on_no_layer_is_refused",),
    ),
    Mutant(
        "feedback through the true weight",
        "decoupled/modules/backward_rules.py",
        "return _intercepted(lambda kernel, feedback: feedback, ",
        "return _intercepted(lambda kernel, feedback: kernel, ",
        ("tests/modules/test_backward_rules.py::test_two_dense_layers_by_hand",),
    ),
    Mutant(
        "sign-symmetric feedback without the symmetry",
        "decoupled/modules/backward_rules.py",
        "jnp.sign(kernel) * jnp.abs(feedback)",
        "jnp.abs(kernel) * jnp.sign(feedback)",
        ("tests/modules/test_backward_rules.py::test_two_dense_layers_by_hand",),
    ),
)

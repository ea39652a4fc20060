"""Defects in what counts as an example: padding that counts, weights that are left out."""

from tests.mutants.mutant import Mutant

_UPDATE = "decoupled/learning/module_update.py"
_NETWORKS = "tests/test_networks.py::"
_BACKPROP = (_NETWORKS + "test_true_gradients_give_backprop[two_towers]",)
_OFTEN = _NETWORKS + "test_a_weight_is_how_often_an_example_is_there"

MUTANTS = (
    Mutant(
        "padding counts in a module's gradient",
        _UPDATE,
        "cotangent = by_rows(rules, as_cotangent, grad_h_out, weight)",
        "cotangent = grad_h_out",
        _BACKPROP,
    ),
    Mutant(
        "padding counts in the number of examples",
        _UPDATE,
        "grad_params, at_least_float32(weight).sum())",
        "grad_params, at_least_float32(jnp.ones_like(weight)).sum())",
        _BACKPROP,
    ),
    Mutant(
        "padding counts in an estimator's fit",
        _UPDATE,
        "weights_too = () if weight is None else (weight,)",
        "weights_too = ()",
        (_OFTEN + "[mean_teacher]",),
    ),
    Mutant(
        "padding has an error",
        "decoupled/losses.py",
        "return losses, weights.zeroed(error, weight)",
        "return losses, error",
        _BACKPROP,
    ),
    Mutant(
        "a target is multiplied by its weight",
        _UPDATE,
        "by_rows(rules, as_gradient, grad_h_in[0], weight)",
        "grad_h_in[0]",
        (_OFTEN + "[bp_lambda]",),
    ),
    Mutant(
        "padding is read",
        "decoupled/weights.py",
        "return chosen(weight, tree, jax.tree.map(copied, tree))",
        "return tree",
        (_OFTEN + "[bp_lambda]",),
    ),
    Mutant(
        "padding counts at a boundary",
        "decoupled/boundaries/primitive.py",
        "count = weight.sum()",
        "count = weight.size",
        (_NETWORKS + "test_boundary_form_equals_chain_form[padded_tokens-bp_lambda-alone]",),
    ),
)

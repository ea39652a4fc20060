"""That the test run checks signatures, and which; the checks themselves are everywhere else."""

import jax
import jax.numpy as jnp
import pytest
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation

import decoupled
from decoupled import estimators, losses, weights
from decoupled.shapes import Array, Float
from tests.signatures import checked_with_shapes


def test_an_argument_of_the_wrong_rank_is_an_error():
    with pytest.raises(BeartypeCallHintParamViolation, match="batch m"):
        weights.mean_product(jnp.ones((3, 2)), jnp.ones(3), None)


def test_so_is_one_of_another_kind_to_a_function_inside_another():
    sg, whole_numbers = estimators.linear(), jnp.ones((3, 2), int)
    est_params = sg.init(jax.random.key(0), jnp.ones((3, 2)), None)
    with pytest.raises(BeartypeCallHintParamViolation, match="int32"):
        sg.estimate(est_params, whole_numbers, None)


def test_and_a_result_that_has_another_shape_than_was_promised():
    def total(rows: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        return rows.sum()

    with pytest.raises(BeartypeCallHintReturnViolation):
        checked_with_shapes(total)(jnp.ones((3, 2)))


def test_what_a_function_refuses_it_tells_in_its_own_words():
    with pytest.raises(decoupled.UsageError, match="logits"):
        losses.softmax_cross_entropy(jnp.ones((3, 2)), jnp.ones((3, 2), int))

"""Defects in the methods, one file each."""

from tests.mutants.mutant import Mutant

_METHODS = "tests/estimators/test_methods.py::"
_NORMALISED = "tests/estimators/test_normalised_networks.py::"
_AUXILIARY = "decoupled/estimators/auxiliary_network.py"
_STRUCTURE = "tests/learning/test_structure.py::"
_SYNTHETIC = "tests/estimators/test_synthetic_gradients.py::"
_BY_HAND = ("tests/learning/test_learner.py::test_estimate_and_fit_by_hand",)
_WEIGHTED = (_SYNTHETIC + "test_recursive_least_squares_solves_the_weighted_problem[1]",)

MUTANTS = (
    Mutant(
        "SG loss summed over the batch",
        "decoupled/estimators/synthetic_gradient.py",
        "weights.mean(squared_lengths(gradient), weight)",
        "squared_lengths(gradient).sum()",
        _BY_HAND,
    ),
    Mutant(
        "SG loss divided by the batch twice",
        "decoupled/estimators/synthetic_gradient.py",
        "weights.mean(squared_lengths(gradient), weight)",
        "weights.mean(squared_lengths(gradient), weight) / len(gradient)",
        _BY_HAND,
    ),
    Mutant(
        "an SG's loss is not backpropagated into the module",
        "decoupled/estimators/sg_prop.py",
        "sg + scale * prop",
        "sg + 0 * prop",
        (_METHODS + "test_sg_prop_adds_the_gradient_of_the_sg_loss",),
    ),
    Mutant(
        "padding counts in the statistics of an SG",
        "decoupled/estimators/network.py",
        "1 / len(h)) if weight is None else shares(weight)",
        "1 / len(h)) if weight is None else jnp.full((len(h),), 1 / len(h))",
        (_NORMALISED + "test_a_weight_is_how_often_an_example_is_there[mlp]",),
    ),
    Mutant(
        "SG fitted to the negative gradient",
        "decoupled/estimators/synthetic_gradient.py",
        "sg_loss(estimate(est_params, h, y, None, *given), target, weight)",
        "sg_loss(estimate(est_params, h, y, None, *given), -target, weight)",
        _BY_HAND,
    ),
    Mutant(
        "label's part of a linear SG with the wrong sign",
        "decoupled/estimators/linear.py",
        'out += encoded(context, y, h) @ est_params["B"]',
        'out -= encoded(context, y, h) @ est_params["B"]',
        _BY_HAND,
    ),
    Mutant(
        "label's part of a loss-shaped SG with the wrong sign",
        "decoupled/estimators/loss_shaped.py",
        "(prediction - encoded(context, y, h, num_classes))",
        "(prediction + encoded(context, y, h, num_classes))",
        (_SYNTHETIC + "test_loss_shaped_is_exact_below_a_linear_layer_with_log_loss",),
    ),
    Mutant(
        "BP(λ) with 1 - λ",
        "decoupled/estimators/bp_lambda.py",
        "(1 - lam) * own + lam * incoming, ",
        "lam * own + (1 - lam) * incoming, ",
        (_METHODS + "test_bp_lambda_mixes_with_what_was_mixed_above[0.25]",),
    ),
    Mutant(
        "direct feedback of the error's negative",
        "decoupled/estimators/direct_feedback_alignment.py",
        'return (error @ est_params["B"])',
        'return (-error @ est_params["B"])',
        (_METHODS + "test_direct_feedback_alignment_sends_the_error_through_its_matrix",),
    ),
    Mutant(
        "random target projection with the wrong sign",
        "decoupled/estimators/direct_random_target_projection.py",
        'return -(encoded(context, y, h) @ est_params["B"])',
        'return (encoded(context, y, h) @ est_params["B"])',
        (_METHODS + "test_direct_random_target_projection_sends_the_label_as_an_error_would_be",),
    ),
    Mutant(
        "kickback of the error's negative",
        "decoupled/estimators/kickback.py",
        "told = error[:, output_of_unit]",
        "told = -error[:, output_of_unit]",
        (_METHODS + "test_kickback_tells_every_unit_its_outputs_error",),
    ),
    Mutant(
        "kickback said to wait for the module above",
        "decoupled/estimators/kickback.py",
        "None, Reads.ERROR, sees_y",
        "None, Reads.INCOMING, sees_y",
        ("tests/estimators/test_reads.py",),
    ),
    Mutant(
        "one noise for all activations",
        "decoupled/estimators/noise.py",
        'key = jax.random.fold_in(jax.random.wrap_key_data(est_params["key"]), bits)',
        'key = jax.random.wrap_key_data(est_params["key"])',
        (_METHODS + "test_noise_is_normal_and_new_for_every_activation_and_boundary",),
    ),
    Mutant(
        "least squares forgets what it should keep",
        "decoupled/estimators/least_squares.py",
        "((1 - decay) * (mean[n] - params[n])",
        "(decay * (mean[n] - params[n])",
        _WEIGHTED,
    ),
    Mutant(
        "least squares' moments summed over the batch",
        "decoupled/estimators/least_squares.py",
        '"cross": weights.mean_product(x, target, weight)',
        '"cross": x.T @ target',
        _WEIGHTED,
    ),
    Mutant(
        "least squares never solved",
        "decoupled/estimators/least_squares.py",
        'solved = {"K": K - params["K"],',
        'solved = {"K": 0 * K,',
        _WEIGHTED,
    ),
    Mutant(
        "a local loss's gradient divided by the batch",
        "decoupled/estimators/local_loss.py",
        "jax.grad(lambda h: losses(est_params, h, y, None).sum())(h)",
        "jax.grad(lambda h: losses(est_params, h, y, None).mean())(h)",
        (_METHODS + "test_local_loss_gives_the_gradient_of_its_head",),
    ),
    Mutant(
        "a head that sees maps at full size",
        "decoupled/estimators/auxiliary_head.py",
        "h.shape[1] // _ROWS",
        "h.shape[1] // h.shape[1]",
        (_METHODS + "test_on_maps_the_head_of_a_local_loss_is_convolutional",),
    ),
    Mutant(
        "an SG without labels taught by what is fitted in place of its average",
        "decoupled/estimators/mean_teacher.py",
        'head.predict(est_params["average"], h)',
        'head.predict(est_params["teacher"], h)',
        (_METHODS + "test_mean_teacher_gives_the_expected_gradient_of_what_it_teaches",),
    ),
    Mutant(
        "a teacher's average that keeps what it should forget",
        "decoupled/estimators/mean_teacher.py",
        "optax.sgd(1 - decay)",
        "optax.sgd(decay)",
        (_METHODS + "test_mean_teacher_learns_from_labels_and_teaches_from_its_average",),
    ),
    Mutant(
        "a teacher's belief with the wrong sign",
        "decoupled/estimators/mean_teacher.py",
        "((p - belief(est_params, h))",
        "((p + belief(est_params, h))",
        (_METHODS + "test_mean_teacher_gives_the_expected_gradient_of_what_it_teaches",),
    ),
    Mutant(
        "the mean over positions in the place of the deviation",
        "decoupled/estimators/similarity.py",
        "jnp.sqrt(at_least_float32(h).var((1, 2)) + 1e-12)",
        "at_least_float32(h).mean((1, 2))",
        (_METHODS + "test_on_maps_similarities_are_those_of_deviations_after_a_convolution",),
    ),
    Mutant(
        "an infinite gradient where a map is constant",
        "decoupled/estimators/similarity.py",
        ".var((1, 2)) + 1e-12)",
        ".var((1, 2)))",
        (_METHODS + "test_similarity_is_safe_where_maps_are_constant_and_deaf_to_what_does_not_count",),
    ),
    Mutant(
        "an auxiliary network in evaluation mode",
        _AUXILIARY,
        "jax.random.fold_in(key, i), True)",
        "jax.random.fold_in(key, i), False)",
        (_STRUCTURE + "test_loss_and_gradients_are_those_of_the_network_written_out",),
    ),
    Mutant(
        "batch statistics of an auxiliary network that see what does not count",
        _AUXILIARY,
        "h = stand_in(h, weight)",
        "h = stand_in(h, None)",
        (_STRUCTURE + "test_rows_of_no_weight_are_a_copy_of_one_that_counts_to_batch_statistics_too",),
    ),
    Mutant(
        "the same dropout in every step",
        _AUXILIARY,
        "return jax.random.key(bits)",
        "return jax.random.key(bits * 0)",
        (_STRUCTURE + "test_dropout_is_drawn_anew_whenever_h_is_new_and_alike_in_estimate_and_fit",),
    ),
    Mutant(
        "maps of another size than the network's own",
        "decoupled/estimators/fitting.py",
        "_window(h, fed[place]) if on_maps else (1, 1)",
        "(1, 1)",
        (_STRUCTURE + "test_loss_and_gradients_are_those_of_the_network_written_out",),
    ),
    Mutant(
        "the lowest layers in the place of the evenly spaced",
        _AUXILIARY,
        "round(among * i / number) - 1",
        "i - 1",
        (_STRUCTURE + "test_layers_are_evenly_spaced_with_the_highest_among_them",),
    ),
    Mutant(
        "heads of a stack's blocks built of other layers",
        "decoupled/learning/structure.py",
        "if any(functions != chosen[0] for functions in chosen):",
        "if False:",
        (_STRUCTURE + "test_blocks_of_a_stack_have_heads_alike_and_learn_as_one_by_one",),
    ),
    Mutant(
        "weights of similarity and prediction swapped",
        "decoupled/estimators/similarity.py",
        "return weight * to_others + (1 - weight) * prediction",
        "return (1 - weight) * to_others + weight * prediction",
        (_METHODS + "test_similarity_loss_by_hand",),
    ),
)

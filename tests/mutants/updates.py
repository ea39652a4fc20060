"""Defects in the chain form: one module's update, the walk, what is carried from step to step."""

from tests.mutants.mutant import Mutant

_UPDATE = "decoupled/learning/module_update.py"
_WALK = "decoupled/learning/walk.py"
_STACK = "decoupled/learning/stack_loops.py"
_WAITS = (
    "tests/learning/test_stack.py::test_a_stack_that_waits_is_its_modules_one_by_one[bp_lambda-bp_lambda-2]",
)
_LEARNER = "tests/learning/test_learner.py::"
_BY_HAND = (_LEARNER + "test_estimate_and_fit_by_hand",)
_BACKPROP = (_LEARNER + "test_one_module_alone_is_backprop",)
_SITS_OUT = (_LEARNER + "test_a_module_that_sits_out_stays_bit_for_bit",)
_CARRIED = ("tests/learning/test_carried.py",)
_ON_DEVICES = ("tests/parallel/test_parallel.py::test_shard_map[linear]",)

_BORROWING = "decoupled/learning/borrowing.py"
_COPIES = (
    "tests/learning/test_borrowing.py::"
    "test_steps_are_those_of_the_loss_behind_copies_of_known_age[all_above-2-0.75]",
)

MUTANTS = (
    Mutant(
        "copies never renewed",
        _BORROWING,
        "            steps % borrows.every == 0,\n",
        "            steps < 0,\n",
        _COPIES,
    ),
    Mutant(
        "copies renewed a step late",
        _BORROWING,
        "            steps % borrows.every == 0,\n",
        "            steps % borrows.every == 1,\n",
        _COPIES,
    ),
    Mutant(
        "average of copies the wrong way round",
        _BORROWING,
        "(before + (1 - decay) * (now - before))",
        "(before + decay * (now - before))",
        _COPIES,
    ),
    Mutant(
        "gradient through copies halved",
        "decoupled/estimators/borrowed_next.py",
        "(gradient,) = pullback(cotangent)",
        "(gradient,) = jax.tree.map(lambda g: 0.5 * g, pullback(cotangent))",
        _COPIES,
    ),
    Mutant(
        "module gradient not divided by the batch",
        _UPDATE,
        "jax.tree.map(lambda g: g / batch, grad_params)",
        "jax.tree.map(lambda g: g, grad_params)",
        _BACKPROP,
    ),
    Mutant(
        "module gradient divided by the batch twice",
        _UPDATE,
        "jax.tree.map(lambda g: g / batch, grad_params)",
        "jax.tree.map(lambda g: g / batch / batch, grad_params)",
        _BACKPROP,
    ),
    Mutant(
        "module update never applied",
        _UPDATE,
        "new = moved(rules.optimizer_for(module), state, grad_params)",
        "new = moved(rules.optimizer_for(module), state, grad_params)._replace(params=state.params)",
        _BACKPROP,
    ),
    Mutant(
        "module optimizer state not carried",
        _UPDATE,
        "new = moved(rules.optimizer_for(module), state, grad_params)",
        "new = moved(rules.optimizer_for(module), state, grad_params)._replace(opt_state=state.opt_state)",
        _CARRIED,
    ),
    Mutant(
        "batch statistics not carried",
        _UPDATE,
        "new = new._replace(state=_mutable_over(rules, passed.state, state.state, weight))",
        "pass",
        _CARRIED,
    ),
    Mutant(
        "estimator update never applied",
        _UPDATE,
        "fitted = moved(rules.optimizer_of(spec), estimator, gradient)",
        "fitted = moved(rules.optimizer_of(spec), estimator, gradient)._replace(params=estimator.params)",
        _BY_HAND,
    ),
    Mutant(
        "estimator optimizer state not carried",
        _UPDATE,
        "fitted = moved(rules.optimizer_of(spec), estimator, gradient)",
        "kept, fitted = estimator.opt_state, moved(rules.optimizer_of(spec), estimator, gradient)\n"
        "    fitted = fitted._replace(opt_state=kept)",
        _CARRIED,
    ),
    Mutant(
        "module gradient not averaged over devices",
        _UPDATE,
        "grad_params = mean_over(rules.axis_name, jax.tree.map(",
        "grad_params = mean_over(None, jax.tree.map(",
        ("tests/parallel/test_parallel.py::test_pmap[linear]",),
    ),
    Mutant(
        "module gradient summed over devices before it is averaged",
        _UPDATE,
        "    return jax.tree.map(vary, tree)",
        "    return tree",
        _ON_DEVICES,
    ),
    Mutant(
        "estimator gradient not averaged over devices",
        _UPDATE,
        "fit_loss, gradient = mean_of(rules.axis_name, ",
        "fit_loss, gradient = mean_of(None, ",
        ("tests/parallel/test_parallel.py::test_pmap[linear]",),
    ),
    Mutant(
        "batch statistics not averaged over devices",
        _UPDATE,
        "state=_mutable_over(rules, passed.state, state.state, weight)",
        "state=passed.state",
        ("tests/parallel/test_parallel.py::test_batch_statistics_are_averaged_and_dropout_is_not_shared",),
    ),
    Mutant(
        "dropout shared by all devices",
        _UPDATE,
        "key = jax.random.fold_in(key, jax.lax.axis_index(rules.axis_name))",
        "pass",
        ("tests/parallel/test_parallel.py::test_batch_statistics_are_averaged_and_dropout_is_not_shared",),
    ),
    Mutant(
        "the SG loss leaks into the module below it",
        _WALK,
        "update_link(k, estimate(k, h, None))",
        "update_link(k, estimate(k, h, None) + jax.grad(lambda h: specs[k].training_gradient("
        "state.estimators[k].params, h, y, jnp.zeros_like(h))[0])(h))",
        _BY_HAND,
    ),
    Mutant(
        "estimate made from another example's label",
        _WALK,
        "specs[k], est_params, h, examples, signal)",
        "specs[k], est_params, h, jax.tree.map(lambda y: jnp.roll(y, 1, 0), examples), signal)",
        _BY_HAND,
    ),
    Mutant(
        "estimator fitted with another example's label",
        _WALK,
        "fit(rules, specs[k - 1], old, h_ins[k], examples, grad)",
        "fit(rules, specs[k - 1], old, h_ins[k], Examples(jnp.roll(examples.y, 1, 0)), grad)",
        _BY_HAND,
    ),
    Mutant(
        "estimator fitted to the target after the update",
        _WALK,
        "            modules[k] = chosen(taking_part, new, modules[k])\n",
        "            modules[k] = chosen(taking_part, new, modules[k])\n"
        "            if k > 0:\n"
        "                late = forward(rules, links[k], new, h_ins[k], key, False)\n"
        "                grad = late.pullback(grad_h_out)[1]\n",
        _BY_HAND,
    ),
    Mutant(
        "estimator fitted to its own estimate",
        _WALK,
        "fit(rules, specs[k - 1], old, h_ins[k], examples, grad)",
        "fit(rules, specs[k - 1], old, h_ins[k], examples, estimate(k - 1, h_ins[k], grad))",
        _BY_HAND,
    ),
    Mutant(
        "estimate made after the fit",
        _WALK,
        "highest(links[k], state.estimators[k]).est_params  # as they were before the step",
        "highest(links[k], estimators[k]).est_params",
        ("tests/boundaries/test_primitive.py::test_boundary_form_equals_chain_form[bp_lambda]",),
    ),
    Mutant(
        "one key for all modules",
        _WALK,
        "modules[k], h, jax.random.fold_in(key, offsets[k]), lowest_of_all)",
        "modules[k], h, key, lowest_of_all)",
        (_LEARNER + "test_true_gradients_give_backprop[0.5-none]",),
    ),
    Mutant(
        "optimizer state of a module that is not updated moves",
        _WALK,
        "    return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, old)",
        "    chosen = jax.tree.map(lambda n, o: jnp.where(active, n, o), new, old)\n"
        "    return chosen._replace(opt_state=new.opt_state)",
        _SITS_OUT,
    ),
    Mutant(
        "estimator below a module that is not updated is fitted",
        _WALK,
        "            fitted = chosen(taking_part, fitted, old)\n",
        "",
        _SITS_OUT,
    ),
    Mutant(
        "one coin for all modules",
        "decoupled/learning/learner.py",
        "else coins[index]",
        "else coins[0]",
        _SITS_OUT,
    ),
    Mutant(
        "the same coins in every step",
        "decoupled/learning/learner.py",
        "coin_key = jax.random.fold_in(key, len(flat_modules))",
        "coin_key = jax.random.key(0)",
        (_LEARNER + "test_modules_update_independently_and_as_often_as_asked",),
    ),
    Mutant(
        "modules drawn alike",
        "decoupled/learning/chain.py",
        "variables = module.init(jax.random.fold_in(module_key, index), h)",
        "variables = module.init(module_key, h)",
        _CARRIED,
    ),
    Mutant(
        "fixed matrices drawn alike at all boundaries",
        "decoupled/learning/chain.py",
        "est_params = spec.init(jax.random.fold_in(estimator_key, index), given, y)",
        "est_params = spec.init(estimator_key, given, y)",
        _CARRIED,
    ),
    Mutant(
        "training in evaluation mode, where the argument says deterministic",
        "decoupled/modules/modes.py",
        "return bool(train) == _MEANING[name]",
        "return bool(train)",
        ("tests/modules/test_modes.py::test_linen_modules_are_told_what_flax_is_told_by_hand",),
    ),
    Mutant(
        "evaluation in training mode",
        "decoupled/learning/chain.py",
        "return module.apply(state.params, state.state, h, key, False)[0]",
        "return module.apply(state.params, state.state, h, key, True)[0]",
        (_LEARNER + "test_evaluation_uses_batch_statistics_and_changes_nothing",),
    ),
    Mutant(
        "one key for all blocks of a stack",
        _STACK,
        "piece = Chain((block,), (spec,), chain.first + i, spec)",
        "piece = Chain((block,), (spec,), chain.first + 1, spec)",
        ("tests/learning/test_stack.py::test_a_stack_is_its_modules_one_by_one[linear]",),
    ),
    Mutant(
        "one key for all blocks of a stack that waits",
        _STACK,
        "jax.random.fold_in(key, first + i), lowest=False)",
        "jax.random.fold_in(key, first), lowest=False)",
        _WAITS,
    ),
    Mutant(
        "what another block kept",
        _STACK,
        "passed.block(i, old, h, take(slots, i)), grad)",
        "passed.block(i, old, h, take(slots, i - 1)), grad)",
        _WAITS,
    ),
    Mutant(
        "an input computed again from what is not below it",
        _STACK,
        "return run(take(modules, i - 1), kept(i - 1), i - 1).h_out",
        "return run(take(modules, i), kept(i - 1), i - 1).h_out",
        _WAITS,
    ),
    Mutant(
        "estimators in a stack that waits are fitted a block too low",
        _STACK,
        "update_below(i, take(estimators, i - 1), h, grad)",
        "update_below(i, take(estimators, i), h, grad)",
        _WAITS,
    ),
    Mutant(
        "estimators between pieces never fitted",
        "decoupled/learning/fused.py",
        "estimators[start - 1] = with_highest(lower, estimators[start - 1], result.state.below)",
        "pass",
        ("tests/learning/test_stack.py::test_a_dispatched_update_is_the_fused_one[loss_shaped]",),
    ),
    Mutant(
        "target of another minibatch in a pipeline",
        "decoupled/parallel/pipeline.py",
        "(fitted_to,) = (b for b in sent if b.number == number)",
        "fitted_to = sent[-1]",
        ("tests/parallel/test_pipeline.py::test_two_stages_do_what_queues_by_hand_do[loss_shaped]",),
    ),
    Mutant(
        "label of another example in a pipeline's upper stage",
        "decoupled/parallel/pipeline.py",
        "jax.device_put((batch.h, batch.examples), split[s])",
        "jax.device_put((batch.h, jax.tree.map(lambda y: jnp.roll(y, s), batch.examples)), split[s])",
        ("tests/parallel/test_pipeline.py::test_two_stages_do_what_queues_by_hand_do[loss_shaped]",),
    ),
    Mutant(
        "target of another minibatch between processes",
        "decoupled/asynchronous/worker.py",
        "seen = remembered.pop(message.number, None)",
        "seen = remembered.pop(min(remembered, default=None), None)",
        (
            "tests/asynchronous/test_worker.py::"
            "test_a_target_is_fitted_with_the_output_and_labels_of_its_minibatch",
        ),
    ),
)

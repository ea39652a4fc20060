"""Defects around the learner: which examples are seen, in which order, and what accuracy is of."""

from tests.mutants.mutant import Mutant

_DATASET = "decoupled/data/dataset.py"
_OF_DATASET = "tests/data/test_dataset.py::"
_BATCHES = (_OF_DATASET + "test_batches_cover_an_epoch_and_follow_seed_and_epoch",)
_EXAMPLES = ("tests/training/test_examples_apart.py",)
_STEP = "decoupled/training/step.py"
_FIT = "decoupled/training/fit.py"
_OF_FIT = "tests/training/test_fit.py::"
_OF_FEEDS = "tests/training/test_feeds.py::"
_WEIGHTED = (_OF_FIT + "test_means_are_weighted_and_evaluation_leaves_nothing_out",)

MUTANTS = (
    Mutant(
        "the same order of examples in every epoch",
        _DATASET,
        "order = np.random.default_rng((seed, epoch)).permutation(count)",
        "order = np.random.default_rng(seed).permutation(count)",
        _BATCHES,
    ),
    Mutant(
        "the same order of examples for every seed",
        _DATASET,
        "order = np.random.default_rng((seed, epoch)).permutation(count)",
        "order = np.random.default_rng(epoch).permutation(count)",
        _EXAMPLES,
    ),
    Mutant(
        "labels of the first examples with every batch",
        _DATASET,
        "isinstance(split, Stream) else take(tuple(split), chosen)",
        "isinstance(split, Stream) else (take(split.images, chosen), split.labels[: len(chosen)])",
        _BATCHES,
    ),
    Mutant(
        "examples held out stay in the training set",
        _DATASET,
        "kept, held = np.sort(order[count:]), np.sort(order[:count])",
        "kept, held = np.sort(order), np.sort(order[:count])",
        (_OF_DATASET + "test_held_out_examples_are_the_same_every_time_and_disjoint",),
    ),
    Mutant(
        "test examples in the training set of digits",
        "decoupled/data/digits.py",
        "train, test = hold_out(Split(images, bunch.target.astype(np.int32)), _TEST_EXAMPLES)",
        "train = Split(images, bunch.target.astype(np.int32))\n"
        "    _, test = hold_out(train, _TEST_EXAMPLES)",
        _EXAMPLES,
    ),
    Mutant(
        "a run trains on its validation examples",
        "decoupled/training/builder.py",
        "train, validation = data.hold_out(dataset.train, config.validation_examples)",
        "train = dataset.train\n    _, validation = data.hold_out(train, config.validation_examples)",
        _EXAMPLES,
    ),
    Mutant(
        "test accuracy measured on training examples",
        "decoupled/training/loop.py",
        "test = evaluate(trained, job.dataset.test)",
        "test = evaluate(trained, train)",
        _EXAMPLES,
    ),
    Mutant(
        "validation accuracy measured on test examples",
        "decoupled/training/loop.py",
        "evaluate(execution.whole_state(state), job.validation)",
        "evaluate(execution.whole_state(state), job.dataset.test)",
        _EXAMPLES,
    ),
    Mutant(
        "examples that fill up the last batch are counted",
        _STEP,
        "batch = (images, labels, rows < count, *weight)",
        "batch = (images, labels, rows >= 0, *weight)",
        _EXAMPLES,
    ),
    Mutant(
        "one key for all steps of a run",
        _STEP,
        "jax.random.split(jax.random.fold_in(key, step))",
        "jax.random.split(jax.random.fold_in(key, 0))",
        ("tests/training/test_run.py::test_augmentation_and_coins_change_from_step_to_step",),
    ),
    Mutant(
        "the latest network is kept as the best",
        "decoupled/training/monitor.py",
        'if kind != "validation" or (self._best and not self._metric.is_better(score, self._best[name])):',
        'if kind != "validation":',
        ("tests/training/test_numerics.py",),
    ),
    Mutant(
        "predictions without the normalisation of training",
        "decoupled/training/predict.py",
        "learner.predict(state, inputs(images))",
        "learner.predict(state, images.astype(jnp.float32))",
        ("tests/training/test_going_on.py",),
    ),
    Mutant(
        "a run ends without a checkpoint of its end",
        "decoupled/training/inner_loop.py",
        "keep = stop or done == pace.last or _is_due",
        "keep = stop or _is_due",
        ("tests/training/test_going_on.py",),
    ),
    Mutant(
        "every step of an epoch counts alike, whatever its weights",
        _STEP,
        "new = jax.tree.map(lambda value: value * count, new)",
        "pass",
        _WEIGHTED,
    ),
    Mutant(
        "an evaluation without weights",
        _STEP,
        "counts = counts if weight is None else jnp.where(counts, weight, 0)",
        "",
        _WEIGHTED,
    ),
    Mutant(
        "callbacks are given the state that the next step destroys",
        _FIT,
        "jax.tree.map(jnp.copy, state)",
        "state",
        (_OF_FIT + "test_a_callback_sees_each_epoch_and_may_end_training",),
    ),
    Mutant(
        "an interrupted epoch's steps so far are forgotten",
        _FIT,
        "folder.save(done, (state, totals), ",
        "folder.save(done, (state, no_totals(learner)), ",
        (_OF_FIT + "test_interrupted_and_gone_on_further_is_as_never_interrupted",),
    ),
    Mutant(
        "training that a callback has ended goes on when it is called again",
        _FIT,
        '"ended": epochs if ended else 0',
        '"ended": 0',
        (_OF_FIT + "test_a_callback_sees_each_epoch_and_may_end_training",),
    ),
    Mutant(
        "a loop has the first example in every batch",
        "decoupled/training/step.py",
        'batch = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), data)',
        'batch = jax.tree.map(lambda leaf: leaf.at[0 * rows].get(mode="promise_in_bounds"), data)',
        (
            _OF_FIT + "test_it_takes_the_steps_that_are_meant",
            _OF_FEEDS + "test_a_loop_takes_the_same_steps",
        ),
    ),
    Mutant(
        "a loop begins with the first batch of the epoch",
        "decoupled/training/step.py",
        "dynamic_index_in_dim(order, first + i, keepdims=False)",
        "dynamic_index_in_dim(order, i, keepdims=False)",
        (_OF_FEEDS + "test_numbers_do_not_depend_on_how_steps_are_cut_into_calls",),
    ),
    Mutant(
        "a loop stays in the first epoch",
        "decoupled/training/feeds.py",
        "return loop(state, totals, data, orders(epoch + 1), np.int32(first), np.int32(count))",
        "return loop(state, totals, data, orders(1), np.int32(first), np.int32(count))",
        (_OF_FEEDS + "test_a_loop_takes_the_same_steps",),
    ),
    Mutant(
        "an interruption is not told",
        "decoupled/training/inner_loop.py",
        "return Position(state, totals, done, stop)",
        "return Position(state, totals, done)",
        (_OF_FIT + "test_what_there_is_when_interrupted_is_returned_and_told",),
    ),
)

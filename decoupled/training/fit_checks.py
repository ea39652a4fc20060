"""What `fit` is given beside arrays, what its arrays must be for one network, and what comes of them."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoupled import losses
from decoupled.data.dataset import take
from decoupled.errors import TrainingError, UsageError
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.leaves import per_example
from decoupled.training import objectives
from decoupled.training.arrays import Arrays, not_finite, shapes_of
from decoupled.training.objectives import Metric
from decoupled.types import PyTree


def whole_number(name: str, value: Any, least: int) -> int:
    """The value as Python's own, which JSON can hold.

    Raises:
      UsageError: it is no whole number, or less than `least`, or of more than 63 bits.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value < 2**63:
        raise UsageError(f"{name} is {value!r}, but must be a whole number of {least} or more")
    return int(value)


def callbacks_of(given: Any) -> tuple[Callable[[Any], Any], ...]:
    """One callback, or each of a list.

    Raises:
      UsageError: something else was given.
    """
    each = (given,) if callable(given) or not isinstance(given, Iterable) else tuple(given)
    for callback in each:
        if not callable(callback):
            raise UsageError(
                f"callbacks: a function of an Epoch is needed, or a list of such, not {callback!r}"
            )
    return each


def is_true(answer: Any) -> bool:
    """Whether a callback has said True, by whatever library; anything else is no answer."""
    if isinstance(answer, (np.ndarray, jax.Array)) and answer.ndim == 0 and answer.dtype == np.bool_:
        return bool(answer)
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


def check_evaluated(
    learner: Learner, metric: Metric, state: LearnerState, data: Arrays, held: Arrays, batch_size: int
) -> None:
    """That the network can be evaluated on what is held out, which happens only when an epoch has passed.

    Raises:
      UsageError: its arrays have other shapes than those of data, and the network does not take them; or
        what the loss and the metric say of them.
    """
    batch = take(held, np.minimum(np.arange(batch_size), held.examples - 1))

    def evaluate(state: LearnerState, x: PyTree, y: PyTree) -> Any:
        output, y = per_example((learner.predict(state, x), y), learner.rules.batch_axes)
        return learner.loss(output, y), metric.function(output, y)

    try:
        jax.eval_shape(evaluate, state, batch.x, batch.y)
    except UsageError:
        raise
    except Exception as error:
        own, others = shapes_of(data), shapes_of(held)
        for name, shape in own.items():
            if shape[1:] != others[name][1:]:
                raise UsageError(
                    f"{name} of validation has shape {others[name]}, but that of data {shape}, and the"
                    " network does not take both"
                ) from error
        raise


def check_labels(what: str, arrays: Arrays, learner: Learner, state: LearnerState, x: PyTree) -> None:
    """That labels are classes that the network has outputs for, where its loss is that of classes.

    Args:
      what: how the caller's argument is called.
      x: a batch that the network takes.

    Raises:
      UsageError: one that counts is not: its loss would be no number, or another class's.
    """
    if learner.loss not in (losses.softmax_cross_entropy, objectives.softmax_cross_entropy):
        return
    if len(found := jax.tree.leaves(arrays.y)) != 1 or not jnp.issubdtype(found[0].dtype, jnp.integer):
        return
    output = jax.eval_shape(learner.predict, state, x)
    classes, labels = jax.tree.leaves(output)[0].shape[-1], np.asarray(found[0])
    wrong = (labels < 0) | (labels >= classes)
    if arrays.weight is not None and wrong.any():
        counts = np.asarray(arrays.weight) != 0
        wrong &= counts.reshape(*counts.shape, *[1] * (wrong.ndim - counts.ndim))
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0].tolist())
        raise UsageError(
            f"{what}: label {labels[place]} of example {place[0]} is outside 0..{classes - 1}, of which the"
            " network has outputs: give such that do not count weight 0"
        )


def check_finite(learner: Learner, entry: dict[str, Any], folder: Any, arrays: Arrays) -> None:
    """That an epoch's numbers are numbers.

    Args:
      entry: of the history.
      folder: where checkpoints are, or None.
      arrays: of which they are.

    Raises:
      TrainingError: one is not.
    """
    told = {name: value for name, value in entry.items() if isinstance(value, float)}
    names = [module.name for module in learner.modules]
    told |= {
        f"the estimator after {name}": value
        for name, value in zip(names, entry["estimator_loss"], strict=False)
        if value is not None
    }
    if bad := [name for name, value in told.items() if not math.isfinite(value)]:
        kept = "" if folder is None else f"; the checkpoint before is in {folder.path}"
        odd = " and ".join(not_finite(arrays))
        cause = f" (and {odd} of what was given is not finite either)" if odd else ""
        raise TrainingError(
            f"not finite: {', '.join(bad)} (seen after epoch {entry['epoch']}{kept}): lower the learning"
            f" rates, clip gradients (optax.clip_by_global_norm), or normalise{cause}"
        )

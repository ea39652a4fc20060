"""Names of schedules, as a config has them, become learning rates by the number of the update."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from decoupled.extras import extra
from decoupled.shapes import Float
from decoupled.types import Array

with extra("train"):
    import ml_collections

PLATEAU = "reduce_on_plateau"
_ONE_CYCLE_STARTS_AT = 1 / 25  # of the highest rate


class _Span(NamedTuple):
    """How long a schedule is.

    Attributes:
      warmup: updates in which the rate rises.
      rest: updates after them, at least 1.
    """

    warmup: int
    rest: int


class _Shape(NamedTuple):
    """What a schedule is made of.

    Attributes:
      after: (section, span) -> rate by the number of updates since the end of the warm-up.
      rise: (highest rate, updates) -> rate by the number of updates since the start.
      warmup_fraction: where the config has none.
    """

    after: Callable[[ml_collections.ConfigDict, _Span], float | optax.Schedule]
    rise: Callable[[float, int], optax.Schedule]
    warmup_fraction: float = 0.0


def learning_rate(section: ml_collections.ConfigDict, steps: float) -> float | optax.Schedule:
    """The rate of a section `optimizer` or `estimator_optimizer`, as configs/base.py describes it.

    Args:
      steps: updates of one module in a run, over which the schedule is drawn out.

    Returns:
      A number, where it is always the same; else a function of the number of updates before.
    """
    shape, length = SCHEDULES[section.schedule], max(round(steps), 1)
    warmup = round((section.warmup_fraction or shape.warmup_fraction) * length)
    after = shape.after(section, _Span(warmup, max(length - warmup, 1)))
    if not warmup:
        return after
    constant_or_not = after if callable(after) else optax.constant_schedule(after)
    return optax.join_schedules([shape.rise(section.learning_rate, warmup), constant_or_not], [warmup])


def _constant(section: ml_collections.ConfigDict, span: _Span) -> float:
    return section.learning_rate


def _cosine(section: ml_collections.ConfigDict, span: _Span) -> optax.Schedule:
    return optax.cosine_decay_schedule(section.learning_rate, span.rest, section.final_fraction)


def _step(section: ml_collections.ConfigDict, span: _Span) -> optax.Schedule:
    """Falls at fractions of the run, warm-up included."""
    length = span.warmup + span.rest
    falls = [round(fraction * length) - span.warmup for fraction in section.step_boundaries]

    def rate(count: ArrayLike) -> Float[Array, ""]:
        fallen = sum(jnp.where(count >= fall, 1, 0) for fall in falls)
        return section.learning_rate * jnp.power(jnp.float32(section.step_factor), fallen)

    return rate


def _straight(peak: float, warmup: int) -> optax.Schedule:
    return optax.linear_schedule(0.0, peak, warmup)


def _half_wave(peak: float, warmup: int) -> optax.Schedule:
    def rate(count: ArrayLike) -> Float[Array, ""]:
        risen = (1 - jnp.cos(math.pi * count / warmup)) / 2
        return peak * (_ONE_CYCLE_STARTS_AT + (1 - _ONE_CYCLE_STARTS_AT) * risen)

    return rate


SCHEDULES: dict[str, _Shape] = {
    "constant": _Shape(_constant, _straight),
    "cosine": _Shape(_cosine, _straight),
    "step": _Shape(_step, _straight),
    PLATEAU: _Shape(_constant, _straight),  # and what follows the optimizer
    # Smith & Topin 2017 (arXiv 1708.07120), in cosines, as in PyTorch and optax; momentum stays as it is.
    "one_cycle": _Shape(_cosine, _half_wave, warmup_fraction=0.3),
}

"""What each worker is to do: checked, and in a form that can be sent to another process."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from decoupled.asynchronous.messages import Input, to_host
from decoupled.asynchronous.program import check_importable
from decoupled.asynchronous.report import AsyncOptions, check_options
from decoupled.asynchronous.worker import Job
from decoupled.errors import UsageError
from decoupled.learning.chain import Chain, ChainState, evaluate_chain
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.parallel.stages import cut_into_stages, split_state
from decoupled.types import Key, PyTree


class StagePlan(NamedTuple):
    """One stage.

    Attributes:
      job: of its workers.
      modules: their names.
      state: to start from, from `to_host`.
    """

    job: Job
    modules: tuple[str, ...]
    state: ChainState


def make_plan(
    make_learner: Callable[[], Learner],
    state: LearnerState,
    example: tuple[PyTree, PyTree],
    key: Key,
    num_stages: int,
    options: AsyncOptions,
) -> tuple[StagePlan, ...]:
    """Cuts a chain into the stages of an asynchronous run; arguments as for `run_asynchronously`.

    Raises:
      UsageError: the chain cannot be cut so, workers cannot import make_learner, or an option is out of
        range.
    """
    check_importable(make_learner)
    learner = make_learner()
    learner.must_update_every_step("asynchronous stages")
    learner.must_not_ask_for_value("asynchronous stages")
    learner.must_not_borrow("asynchronous stages")
    if learner.rules.axis_name is not None:
        raise UsageError("an asynchronous stage has no mapped axis: make the learner without axis_name")
    chains = cut_into_stages(learner.chain, num_stages)
    check_options(options, num_stages)
    states = split_state(chains, state)
    key_data = (np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key)))
    examples = _examples(chains, states, *example)
    all_names = iter(learner.chain.names)
    plans = []
    for i, chain in enumerate(chains):
        job = Job(
            make_learner=make_learner,
            num_stages=num_stages,
            stage=i,
            example=examples[i],
            key=key_data,
            x64=jax.config.read("jax_enable_x64"),
            gpu=options.gpus[i % len(options.gpus)] if options.gpus else None,
            delay=options.delays.get(i, 0.0),
            snapshot_every=options.snapshot_every,
            max_staleness=options.max_staleness,
        )
        names = tuple(itertools.islice(all_names, len(chain.modules)))
        plans.append(StagePlan(job, names, to_host(states[i])))
    return tuple(plans)


def _examples(chains: Sequence[Chain], states: Sequence[ChainState], x: PyTree, y: PyTree) -> list[Input]:
    """Zeros like the input of each stage."""
    h, y = np.zeros_like(x), np.zeros_like(y)
    examples = []
    for chain, state in zip(chains, states, strict=True):
        examples.append(Input(0, h, y))
        # The key's value cannot matter: only shapes are traced.
        out: Any = jax.eval_shape(
            lambda h, chain=chain, state=state: evaluate_chain(chain, state.modules, h, jax.random.key(0)),
            h,
        )
        h = np.zeros(out.shape, out.dtype)
    return examples

"""Stages on devices of their own, all at work all the time: a pipeline without bubbles.

In one tick every stage runs forward, backward and update on its *own* minibatch; then activations and
labels move one stage on, and targets for the estimator between two stages move one stage back. No stage
ever waits for an error from the end, so nothing is filled or drained between batches: S stages train on S
minibatches at once. A target is two ticks old when it arrives; it is fitted with the activation and label
of its own minibatch.

Each stage is a program of its own on its own devices, and runs as soon as its input is there. Stages may
differ in every way (an embedding below, a head on top), and nothing is padded to make them equal, as one
program for all devices (`shard_map` and `ppermute`) would need.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from decoupled.errors import UsageError
from decoupled.learning.borrowing import lent, moved
from decoupled.learning.chain import Chain, ChainState
from decoupled.learning.examples import Examples, examples_of, examples_outside
from decoupled.learning.fused import update_chain
from decoupled.learning.learner import Learner
from decoupled.learning.module_update import no_metrics
from decoupled.learning.state import BoundaryMetrics, LearnerState
from decoupled.parallel.stages import cut_into_stages, fit_top, join_states, split_state
from decoupled.shapes import AnyArray, Float, Integer, Shaped
from decoupled.types import Array, Key, PyTree
from decoupled.weights import mean


class Batch(NamedTuple):
    """A minibatch on its way up, at one stage.

    Attributes:
      number: counted from 0 as it was fed.
      h: what the stage is fed, or has made of it; (batch, ...).
      examples: what is told of its examples.
      key: of its step, as `Learner.update` takes it.
    """

    number: int
    h: PyTree
    examples: Examples
    key: Key


class StageState(NamedTuple):
    """One stage between two ticks.

    Attributes:
      chain: its modules and estimators.
      totals: what it has measured so far, summed on its devices.
      inbox: the minibatch it will run on next; None where none has come.
      sent: minibatches whose targets are yet to come, with the h that went up.
      target: a minibatch's number and grad_h of that h, from the stage above; None where none has come.
    """

    chain: ChainState
    totals: "StageTotals"
    inbox: Batch | None
    sent: tuple[Batch, ...]
    target: tuple[int, PyTree] | None


class StageTotals(NamedTuple):
    """Sums over minibatches.

    Attributes:
      measured: by `measure`, in the highest stage; None in the others.
      boundaries: of the metrics of each estimator of the stage; None where it is not trained.
    """

    measured: PyTree
    boundaries: tuple[BoundaryMetrics | None, ...]


class PipelineState(NamedTuple):
    """All stages, and the number of minibatches fed so far."""

    stages: tuple[StageState, ...]
    fed: int


class Pipeline(NamedTuple):
    """A learner's chain, trained stage by stage on a mesh. Not to be jitted: its parts are.

    Attributes:
      start: (LearnerState, x, y) -> PipelineState: puts every stage on its devices, from one example batch.
      tick: (state, x, y, key, weight=None) -> state: feeds a minibatch, and runs every stage that has one.
      drain: state -> state: ticks without feeding, until every minibatch has gone all the way.
      join: state -> LearnerState, on the devices of the lowest stage.
      take_totals: state -> (totals of each stage, state with totals of zero).
      stages: the pieces of the chain.
    """

    start: Callable[[LearnerState, PyTree, PyTree], PipelineState]
    tick: Callable[..., PipelineState]
    drain: Callable[[PipelineState], PipelineState]
    join: Callable[[PipelineState], LearnerState]
    take_totals: Callable[[PipelineState], tuple[tuple[StageTotals, ...], PipelineState]]
    stages: tuple[Chain, ...]


def make_mesh(num_stages: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, stage) mesh of all devices, or those given.

    Raises:
      UsageError: their number is not a multiple of `num_stages`.
    """
    devices = list(jax.devices() if devices is None else devices)
    if len(devices) % num_stages or not devices:
        raise UsageError(
            f"{num_stages} stages cannot share {len(devices)} devices equally: choose a number of stages"
            f" that divides {len(devices)}, or another number of devices (on CPUs: JAX_NUM_CPU_DEVICES)"
        )
    grid = np.asarray(devices).reshape(num_stages, -1).T
    return Mesh(grid, ("data", "stage"), axis_types=(AxisType.Auto, AxisType.Auto))


def mean_loss(losses: Float[Array, " batch"], output: PyTree, examples: Examples) -> Float[Array, ""]:
    """The default of `measure`."""
    del output
    return mean(losses, examples.weight)


def make_pipeline(
    learner: Learner, mesh: Mesh, measure: Callable[[Array, PyTree, Examples], PyTree] = mean_loss
) -> Pipeline:
    """Cuts a learner's chain into as many stages as the mesh has.

    Within a stage everything is as in `Learner.update`.

    Args:
      learner: made without `axis_name`. Between stages its estimators must read nothing.
      mesh: with axes "data" (over which every batch is split) and "stage".
      measure: (losses, output, examples) -> numbers to be summed, in the highest stage.

    Raises:
      UsageError: there are fewer modules than stages, an estimator between stages would have to wait, or
        an update probability is below 1.
    """
    learner.must_update_every_step("a pipeline")
    learner.must_not_ask_for_value("a pipeline")
    stages = cut_into_stages(learner.chain, mesh.shape["stage"])
    top = len(stages) - 1
    wants_targets = [any(e.training_gradient for e in stage.estimators[-1:]) for stage in stages]
    meshes = [Mesh(mesh.devices[:, s], ("data",), axis_types=(AxisType.Auto,)) for s in range(len(stages))]
    whole = [NamedSharding(part, PartitionSpec()) for part in meshes]
    split = [NamedSharding(part, PartitionSpec("data")) for part in meshes]
    update = [
        _stage_update(learner, stage, measure if s == top else None) for s, stage in enumerate(stages)
    ]
    fit = [_stage_fit(learner, stage) for stage in stages]

    def send(batch: Batch, s: int) -> Batch:
        """Moves a minibatch to the devices of stage s."""
        h, examples = jax.device_put((batch.h, batch.examples), split[s])
        return Batch(batch.number, h, examples, jax.device_put(batch.key, whole[s]))

    def start(state: LearnerState, x: PyTree, y: PyTree) -> PipelineState:
        placed, h, key = [], x, jax.random.key(0)
        examples = examples_of(x, y, None, learner.rules.batch_axes)[1]
        for s, chain in enumerate(split_state(stages, state)):
            arguments = (chain, _zero_totals(stages[s], None), h, examples, key, np.int32(0))
            _, totals, h, _ = jax.eval_shape(update[s], *arguments)
            zeros = _zero_totals(stages[s], totals.measured)
            # Copied, since stages donate what they are given, and the caller may still need it.
            chain, zeros = jax.tree.map(jnp.copy, (chain, zeros))
            chain, zeros = jax.device_put((chain, zeros), whole[s])
            placed.append(StageState(chain, zeros, None, (), None))
        return PipelineState(tuple(placed), 0)

    def run(stage: StageState, s: int) -> tuple[StageState, Batch | None, tuple[int, PyTree] | None]:
        """One stage's part of a tick; returns what moves on and what moves back."""
        chain, totals, batch, sent, target = stage
        if target is not None:
            number, grad_h = target
            (fitted_to,) = (b for b in sent if b.number == number)
            chain, totals = fit[s](chain, totals, fitted_to.h, fitted_to.examples, grad_h)
            sent = tuple(b for b in sent if b.number > number)
        if batch is None:
            return StageState(chain, totals, None, sent, None), None, None
        number = np.int32(batch.number)
        arguments = (chain, totals, batch.h, batch.examples, batch.key, number)
        chain, totals, h_out, grad_h_in = update[s](*arguments)
        if s == top:
            return StageState(chain, totals, None, (), None), None, (batch.number, grad_h_in)
        up = batch._replace(h=h_out)
        sent = (*sent, up) if wants_targets[s] else ()
        return StageState(chain, totals, None, sent, None), up, (batch.number, grad_h_in)

    def renew(ran: list[StageState], batches: list[Batch | None]) -> list[StageState]:
        """Copies of modules travel down to the stages that borrow them, every so many of their minibatches.

        They are of modules as this tick has left them, which in higher stages have seen fewer minibatches.
        """
        modules = tuple(module for stage in ran for module in stage.chain.modules)
        new, first = [], 0
        for s, (stage, batch) in enumerate(zip(ran, batches, strict=True)):
            estimators = list(stage.chain.estimators)
            for k, estimator in enumerate(estimators):
                borrows = stages[s].estimators[k].borrows
                if borrows is None or batch is None or (batch.number + 1) % borrows.every:
                    continue
                now = jax.device_put(lent(learner.chain, first + k, modules), whole[s])
                estimators[k] = estimator._replace(borrowed=_moved(borrows.decay)(estimator.borrowed, now))
            new.append(stage._replace(chain=stage.chain._replace(estimators=tuple(estimators))))
            first += len(stages[s].links)
        return new

    def move(state: PipelineState) -> PipelineState:
        """Every stage runs; then everything moves."""
        results = [run(stage, s) for s, stage in enumerate(state.stages)]
        moved = renew([stage for stage, _, _ in results], [stage.inbox for stage in state.stages])
        for s, (_, up, down) in enumerate(results):
            if s < top and up is not None:
                moved[s + 1] = moved[s + 1]._replace(inbox=send(up, s + 1))
            if s > 0 and down is not None and wants_targets[s - 1]:
                target = down[0], jax.device_put(down[1], split[s - 1])
                moved[s - 1] = moved[s - 1]._replace(target=target)
        return state._replace(stages=tuple(moved))

    def tick(
        state: PipelineState,
        x: PyTree,
        y: PyTree,
        key: Key,
        weight: Shaped[AnyArray, "*examples"] | None = None,
    ) -> PipelineState:
        x, examples = examples_outside(x, y, weight, learner.rules.batch_axes)
        lowest = state.stages[0]._replace(inbox=send(Batch(state.fed, x, examples, key), 0))
        return move(PipelineState((lowest, *state.stages[1:]), state.fed + 1))

    def drain(state: PipelineState) -> PipelineState:
        while any(s.inbox is not None or s.target is not None for s in state.stages):
            state = move(state)
        return state

    def join(state: PipelineState) -> LearnerState:
        parts = jax.device_put([stage.chain for stage in state.stages], whole[0])
        # Copied: what was in place already would be donated by the next tick.
        return join_states(jnp.asarray(state.fed, jnp.int32), jax.tree.map(jnp.copy, parts))

    def take_totals(state: PipelineState) -> tuple[tuple[StageTotals, ...], PipelineState]:
        totals = tuple(stage.totals for stage in state.stages)
        fresh = [
            stage._replace(totals=jax.device_put(jax.tree.map(jnp.zeros_like, stage.totals), whole[s]))
            for s, stage in enumerate(state.stages)
        ]
        return totals, state._replace(stages=tuple(fresh))

    return Pipeline(start, tick, drain, join, take_totals, stages)


def _stage_update(learner: Learner, stage: Chain, measure: Callable | None) -> Callable:
    """(chain, totals, h, examples, key, number) -> (chain, totals, h_out, grad_h_in), jitted, in place."""

    def update(
        chain: ChainState,
        totals: StageTotals,
        h: PyTree,
        examples: Examples,
        key: Key,
        number: Integer[Array, ""],
    ) -> tuple[ChainState, StageTotals, PyTree, PyTree]:
        result = update_chain(learner.rules, stage, chain, h, examples, key, opaque_true=number >= 0)
        new = StageTotals(measure and measure(result.losses, result.h_out, examples), result.boundaries)
        return result.state, _add(totals, new), result.h_out, result.grad_h_in

    return jax.jit(update, donate_argnums=(0, 1))


@cache
def _moved(decay: float) -> Callable[[PyTree, PyTree], PyTree]:
    """(copies, modules as they are) -> new copies, jitted, in place; in arrays of their own."""
    return jax.jit(lambda old, now: jax.tree.map(jnp.copy, moved(decay, old, now)), donate_argnums=0)


def _stage_fit(learner: Learner, stage: Chain) -> Callable:
    """(chain, totals, h, examples, target) -> (chain, totals): fits the top estimator, jitted, in place."""

    def fit(
        chain: ChainState, totals: StageTotals, h: PyTree, examples: Examples, target: PyTree
    ) -> tuple[ChainState, StageTotals]:
        chain, metrics = fit_top(learner.rules, stage, chain, h, examples, target)
        others = (None,) * (len(stage.estimators) - 1)
        return chain, _add(totals, StageTotals(None, (*others, metrics)))

    return jax.jit(fit, donate_argnums=(0, 1))


def _zero_totals(stage: Chain, measured: PyTree) -> StageTotals:
    boundaries = tuple(map(no_metrics, stage.estimators))
    return StageTotals(jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), measured), boundaries)


def _add(totals: StageTotals, new: StageTotals) -> StageTotals:
    """Sums of what is there on both sides; what is on one side only stays as it is."""

    def add(a: PyTree, b: PyTree) -> PyTree:
        if a is None or b is None:
            return b if a is None else a
        return jax.tree.map(jnp.add, a, b)

    boundaries = tuple(add(a, b) for a, b in zip(totals.boundaries, new.boundaries, strict=True))
    return StageTotals(add(totals.measured, new.measured), boundaries)

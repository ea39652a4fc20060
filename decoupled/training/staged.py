"""Ways to run a training step as more than one program: dispatched module by module, or pipelined."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from decoupled.data import Preprocess
from decoupled.learning.dispatch import dispatched
from decoupled.learning.examples import Examples
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.leaves import per_example
from decoupled.parallel.pipeline import PipelineState, make_pipeline
from decoupled.training.execution import Execution
from decoupled.training.objectives import Metric
from decoupled.training.step import Totals, add_step, prepare
from decoupled.types import Array, Key, PyTree


def by_dispatch(learner: Learner, preprocess: Preprocess, metric: Metric) -> Execution:
    """On one device, one program a module; equal modules share theirs."""
    update = dispatched(learner)
    make_ready = jax.jit(lambda step, images, key: prepare(preprocess, step, images, key))

    batch_axes = learner.rules.batch_axes
    add = jax.jit(partial(add_step, metric=metric, batch_axes=batch_axes), donate_argnums=0)

    def step(
        state: LearnerState,
        totals: Totals,
        images: PyTree,
        labels: PyTree,
        key: Key,
        weight: Array | None = None,
    ) -> tuple[LearnerState, Totals]:
        inputs, update_key = make_ready(state.step, images, key)
        weight = None if weight is None else jnp.asarray(weight)
        state, metrics = update(state, inputs, labels, update_key, weight)
        return state, add(totals, metrics, labels, weight=weight)

    return _on_whole_batches(1, step)


def by_pipeline(learner: Learner, preprocess: Preprocess, metric: Metric, mesh: Mesh) -> Execution:
    """Stage by stage on a (data, stage) mesh; see `decoupled.parallel.pipeline`.

    A step feeds one minibatch. The loss and score that come with it are of an earlier one, as many steps
    before as there are stages above the lowest.
    """

    def loss_and_score(losses: Array, output: PyTree, examples: Examples) -> tuple[Array, Array, Array]:
        output = per_example(output, learner.rules.batch_axes)
        return jnp.ones(()), jnp.mean(losses), jnp.mean(metric.function(output, examples.y))

    pipeline = make_pipeline(learner, mesh, loss_and_score)
    make_ready = jax.jit(lambda step, images, key: prepare(preprocess, step, images, key))

    def step(
        state: LearnerState | PipelineState, totals: Totals, images: PyTree, labels: PyTree, key: Key
    ) -> tuple[PipelineState, Totals]:
        fed = state.fed if isinstance(state, PipelineState) else 0
        inputs, update_key = make_ready(fed, images, key)
        if isinstance(state, LearnerState):
            state = pipeline.start(state, inputs, labels)
        state = pipeline.tick(with_totals(state, totals), inputs, labels, update_key)
        return state, _totals_of(state)

    def with_totals(state: PipelineState, totals: Totals) -> PipelineState:
        """Totals live in the state: starts them anew where the loop has read them and holds others."""
        return state if totals.loss is _totals_of(state).loss else pipeline.take_totals(state)[1]

    def whole_state(state: LearnerState | PipelineState) -> LearnerState:
        return pipeline.join(state) if isinstance(state, PipelineState) else state

    def warm_up(
        steps: int, step: Callable, state: PyTree, totals: Totals, *arguments: PyTree
    ) -> tuple[PyTree, Totals]:
        # What waits between stages has come to its full number once a target has come all the way down.
        for _ in range(min(steps, 2 * mesh.shape["stage"])):
            state, totals = step(state, totals, *arguments)
        return state, totals

    def place_snapshot(like: PipelineState, restored: PipelineState) -> tuple[PipelineState, Totals]:
        def place(leaf: ArrayLike, value: ArrayLike) -> ArrayLike:
            return jax.device_put(value, leaf.sharding) if isinstance(leaf, jax.Array) else value

        state = jax.tree.map(place, like, restored)
        return state, _totals_of(state)

    def of_each_link(state: LearnerState | PipelineState) -> tuple[PyTree, PyTree]:
        if isinstance(state, LearnerState):
            return state.modules, state.estimators
        chains = [stage.chain for stage in state.stages]
        return tuple(m for c in chains for m in c.modules), tuple(e for c in chains for e in c.estimators)

    return _on_whole_batches(mesh.size, step)._replace(
        whole_state=whole_state,
        finish=pipeline.drain,
        snapshot=with_totals,
        warm_up=warm_up,
        place_snapshot=place_snapshot,
        of_each_link=of_each_link,
    )


def _on_whole_batches(devices: int, step: Callable) -> Execution:
    """One process, which hands whole batches to `step`; its programs are compiled when first run."""
    return Execution(
        devices=devices,
        rows=lambda batch_size: slice(batch_size),
        place_state=lambda tree: tree,
        place_batch=lambda batch: batch,
        compile_step=lambda *args: step,
        measure=jax.jit,
    )


def _totals_of(state: PipelineState) -> Totals:
    """The sums that the stages keep, as the training loop reads them."""
    steps, loss, score = state.stages[-1].totals.measured
    boundaries = tuple(metrics for stage in state.stages for metrics in stage.totals.boundaries)
    return Totals(steps, loss, score, boundaries)

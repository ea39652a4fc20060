"""What would a pipeline of many devices gain? A model, from times measured on one device.

python -m benchmarks.cost_model

All stages of the pipeline work in every tick, so it trains a batch in the time of its slowest stage and of
handing an activation on. GPipe cuts a batch into M microbatches, and of M + S - 1 ticks each of S stages
works in M.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from matplotlib.figure import Figure

import decoupled
from benchmarks.baselines import Network, adam, plain_backprop
from benchmarks.depth import CLASSES, example, network
from benchmarks.devices import confined, device_flags, stage_mesh
from benchmarks.one_core import on_one_core
from benchmarks.part import Measured, Part, Row, main
from benchmarks.pipeline import (
    BACKPROP,
    THROUGHPUT,
    backprop_runner,
    pipeline_runner,
    throughput_rows,
)
from benchmarks.timing import interleaved_seconds
from decoupled import estimators
from decoupled.learning.chain import Chain
from decoupled.learning.examples import Examples
from decoupled.learning.fused import update_chain
from decoupled.learning.learner import Learner
from decoupled.parallel.stages import cut_into_stages, fit_top, split_state


class Costs(NamedTuple):
    """What was measured on one device, in seconds.

    Attributes:
      backprop: of a step on a whole batch.
      stages: number of stages -> of each kind of stage (lowest, inner, highest), the fused step.
      microbatch: number of microbatches -> loss and gradient of the whole network on one of them.
      transfer: of handing the activations of a batch to the next device.
    """

    backprop: float
    stages: Mapping[int, tuple[float, ...]]
    microbatch: Mapping[int, float]
    transfer: float


class Prediction(NamedTuple):
    """Throughput relative to one device that runs backprop.

    Attributes:
      stages: number of devices.
      pipeline: without bubbles.
      gpipe: number of microbatches -> of GPipe.
    """

    stages: int
    pipeline: float
    gpipe: Mapping[int, float]

    @property
    def efficiency(self) -> float:
        """Of the pipeline: gain for each device."""
        return self.pipeline / self.stages


def predict(stages: int, costs: Costs, cores: float = math.inf) -> Prediction:
    """What a pipeline of so many stages gains.

    Args:
      stages: one of `costs.stages`.
      costs: measured on one device.
      cores: that the devices share, where they have not one each.
    """
    lowest, *inner, highest = costs.stages[stages]
    work = lowest + highest + (stages - 2) * sum(inner)
    tick = max(*costs.stages[stages], work / cores) + costs.transfer
    gpipe = {count: costs.backprop / _gpipe_seconds(stages, count, costs) for count in costs.microbatch}
    return Prediction(stages, costs.backprop / tick, gpipe)


def _gpipe_seconds(stages: int, count: int, costs: Costs) -> float:
    """Ticks of a stage's share of a microbatch, and then a stage's share of the update."""
    update = max(0.0, costs.backprop - costs.microbatch[1]) if 1 in costs.microbatch else 0.0
    # Activations of a microbatch go up between ticks, and gradients down.
    transfer = 2 * costs.transfer / count if stages > 1 else 0.0
    return (count + stages - 1) * (costs.microbatch[count] / stages + transfer) + update / stages


def comparison(costs: Costs, measured: Mapping[int, float], settings: Mapping[str, Any]) -> list[Row]:
    """Prediction beside measurement.

    Args:
      measured: number of stages -> throughput of the pipeline relative to backprop on one device.
      settings: of the rows.
    """
    rows = []
    for stages, gain in measured.items():
        predicted = predict(stages, costs, cores=2).pipeline
        own = {**settings, "devices": stages}
        rows.append(Row("predicted / measured", "pipeline", own, predicted / gain, "times", gain, BACKPROP))
    return rows


def measure_costs(
    depth: int,
    width: int,
    batch: int,
    stage_counts: Sequence[int],
    microbatches: Sequence[int],
    turns: int,
    transfer: float,
) -> Costs:
    """Times steps on the one device of this process, in turns.

    Args:
      depth, width: of the network.
      transfer: measured before, as `Costs` has it.
    """
    net, (x, y, key) = network(depth, width), example(batch)
    init, update = plain_backprop(net.layers)
    steps: dict[Any, Callable] = {"backprop": jax.jit(update, donate_argnums=0)}
    states: dict[Any, Any] = {"backprop": jax.jit(init)(key, x, y)}
    arguments: dict[Any, tuple[Any, ...]] = {"backprop": (x, y, key)}

    def gradient_only(params: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        def mean_loss(params: Any) -> jax.Array:
            logits, _ = decoupled.compose(net.layers).apply(params, states_of_layers, x, key, True)
            return decoupled.losses.softmax_cross_entropy(logits, y).mean()

        return params, jax.grad(mean_loss)(params)

    params, states_of_layers, _ = jax.jit(init)(key, x, y)
    for count in microbatches:
        name = ("microbatch", count)
        steps[name], states[name] = jax.jit(gradient_only), params
        arguments[name] = (x[: batch // count], y[: batch // count])

    sg = estimators.loss_shaped(CLASSES, estimators.one_hot(CLASSES))
    loss = decoupled.losses.softmax_cross_entropy
    learner = decoupled.make_learner(net.layers, [sg] * (len(net.layers) - 1), loss, adam(), adam())
    whole = jax.jit(learner.init)(key, x, y)
    h = jax.jit(lambda params: net.lower.apply(params, {}, x, key, True)[0])(whole.modules[0].params)
    for count in stage_counts:
        stages = cut_into_stages(learner.chain, count)
        stage_states = split_state(stages, whole)
        for kind in dict.fromkeys((0, count // 2, count - 1)):
            name = ("stage", count, kind)
            steps[name] = jax.jit(stage_step(learner, stages[kind]), donate_argnums=0)
            states[name] = jax.tree.map(jnp.copy, stage_states[kind])
            arguments[name] = (h if kind else x, y, key, h)

    seconds = interleaved_seconds(steps, states, arguments, turns, None)
    medians: dict[Any, float] = {name: statistics.median(values) for name, values in seconds.items()}
    return Costs(
        medians["backprop"],
        {
            count: tuple(s for name, s in medians.items() if name[0] == "stage" and name[1] == count)
            for count in stage_counts
        },
        {count: medians["microbatch", count] for count in microbatches},
        transfer,
    )


def stage_step(learner: Learner, stage: Chain) -> Callable:
    """What a stage computes in a tick: its fused step, and the fit of the estimator above it."""

    def step(
        state: Any, h_in: jax.Array, y: jax.Array, key: jax.Array, target: jax.Array
    ) -> tuple[Any, Any]:
        opaque_true = jnp.sum(y) >= 0
        result = update_chain(learner.rules, stage, state, h_in, Examples(y), key, opaque_true=opaque_true)
        state = result.state
        if len(stage.estimators) == len(stage.links):
            state, _ = fit_top(learner.rules, stage, state, target, Examples(y), target)
        return state, (result.h_out, result.grad_h_in)

    return step


def transfer_seconds(h: jax.Array, hops: int = 50) -> float:
    """Of handing `h` to the next of two devices."""
    mesh = stage_mesh(2)

    def run(h: jax.Array) -> jax.Array:
        def hop(_: Any, h: jax.Array) -> jax.Array:
            return jax.lax.ppermute(h, "stage", [(0, 1), (1, 0)])

        return jax.lax.fori_loop(0, hops, hop, h)

    moved = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P("stage"), out_specs=P("stage")))
    step = confined(lambda h: (moved(h),), 2)
    seconds = interleaved_seconds({"hops": step}, {"hops": jnp.concatenate([h, h])}, {"hops": ()}, 5, 2)
    return statistics.median(seconds["hops"]) / hops


def measure(quick: bool) -> Measured:
    depth, width, batch, turns = (2, 16, 16, 1) if quick else (62, 256, 512, 11)
    stage_counts, microbatches = ((2,), (1, 2)) if quick else ((2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16))
    transfer = transfer_seconds(jnp.zeros((batch, width)))
    costs = on_one_core(measure_costs, depth, width, batch, stage_counts, microbatches, turns, transfer)
    settings = {"layers": depth + 2, "width": width, "batch": batch}
    rows = [
        Row("measured on one device", BACKPROP, settings, 1e3 * costs.backprop, "ms a step"),
        Row("measured on one device", "transfer", settings, 1e3 * costs.transfer, "ms"),
    ]
    for count, seconds in costs.stages.items():
        own = {**settings, "devices": count}
        rows.append(Row("measured on one device", "slowest stage", own, 1e3 * max(seconds), "ms a step"))
    for count in stage_counts:
        predicted, own = predict(count, costs), {**settings, "devices": count}
        gain = predicted.pipeline
        rows.append(Row("predicted throughput", "pipeline", own, gain, "times", gain, BACKPROP))
        rows.append(Row("predicted efficiency", "pipeline", own, predicted.efficiency, "a device"))
        for parts, gain in predicted.gpipe.items():
            method, own = f"GPipe, {parts} microbatch{'es' * (parts > 1)}", {**settings, "devices": count}
            rows.append(Row("predicted throughput", method, own, gain, "times", gain, BACKPROP))
    if not quick:
        rows += comparison(costs, measured_pipelines(network(depth, width), width, batch, turns), settings)
    return Measured(rows, [])


def measured_pipelines(net: Network, width: int, batch: int, turns: int) -> dict[int, float]:
    """Throughput relative to backprop on one device: of 2 devices, and of 4 that share two cores."""
    x, y, key = example(batch)
    runners = {BACKPROP: backprop_runner("unrolled", net.depth, width, batch)}
    boundaries = range(len(net.layers) - 1)
    for stages in (2, 4):
        runners[str(stages)] = pipeline_runner(net, boundaries, stages, x, y, key)._replace(cores=2)
    rows = throughput_rows(runners, (x, y, key), {"batch": batch}, turns)
    gains = {row.method: row.ratio or 0.0 for row in rows if row.question == THROUGHPUT}
    return {stages: gains[str(stages)] for stages in (2, 4)}


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Predicted gain against the number of devices."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    own = [row for row in rows if row.question == "predicted throughput"]
    styles = zip(("#d55e00", "#000000", "#0072b2", "#009e73", "#cc79a7", "#56b4e9"), "os^Dvx", strict=True)
    for method, (colour, marker) in zip(dict.fromkeys(row.method for row in own), styles, strict=False):
        points = [(row.settings["devices"], row.value) for row in own if row.method == method]
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=method)
    for row in rows:
        if row.question == "predicted / measured":
            axes.plot(
                row.settings["devices"], row.ratio or 0.0, "k*", markersize=14, label="pipeline, measured"
            )
    devices = sorted({row.settings["devices"] for row in own})
    axes.plot(devices, devices, color="grey", linestyle=":", label="a gain of one for each device")
    axes.set(xscale="log", yscale="log", xlabel="devices")
    axes.set_ylabel("examples/s, relative to backprop on one device")
    axes.set_xticks(devices, [str(count) for count in devices])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return [figure]


PART = Part(
    "What would a pipeline of 2 to 64 devices gain?",
    "benchmarks.cost_model",
    "A model. Pipeline: a batch takes as long as the slowest stage's fused step and one transfer. GPipe"
    " with M microbatches on S stages: M + S - 1 ticks of a stage's share of a microbatch's gradient and"
    " of two transfers, and a share of the update. The steps of the lowest, an inner and the highest"
    " stage, the gradients of microbatches, and backprop were timed in turns on one device with one"
    " core; the transfer between two. Predicted / measured: against pipelines that share the two cores, and"
    " the memory, of this machine, which the model knows nothing of.",
    measure,
    figures,
    device_flags(4),
)

if __name__ == "__main__":
    main(PART)

"""How many examples a second do two one-core devices train, compared with one that runs backprop?

python -m benchmarks.pipeline
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure

import decoupled
from benchmarks.baselines import Network, adam, plain_backprop, scanned_backprop
from benchmarks.depth import CLASSES, example, network
from benchmarks.devices import cores_in_use, device_flags, stage_mesh
from benchmarks.gpipe import gpipe, place
from benchmarks.one_core import OneCore
from benchmarks.part import Measured, Part, Row, Verdict, main
from benchmarks.timing import interleaved_seconds, median_ratio
from decoupled import estimators
from decoupled.parallel.pipeline import make_mesh
from decoupled.types import PyTree

BACKPROP, PIPELINE = "backprop, one device", "pipeline"
STAGES, MICROBATCHES = 2, (1, 2, 4, 8, 16)
THROUGHPUT = "throughput"


class Runner(NamedTuple):
    """A training step and what it runs on.

    Attributes:
      step: compiled, (state, x, y, key) -> (state, ...); trains on one batch.
      state: donated to its first step.
      cores: it may use so many.
    """

    step: Callable
    state: PyTree
    cores: int


def pipelined(net: Network, stages: int, x: jax.Array, y: jax.Array, key: jax.Array) -> dict[str, Runner]:
    """The pipelines without bubbles, by name, with as few SGs as that takes, and with all."""
    edges = [len(net.layers) * s // stages - 1 for s in range(1, stages)]
    return {
        f"{PIPELINE}, SG between stages": pipeline_runner(net, edges, stages, x, y, key),
        f"{PIPELINE}, SG at every boundary": pipeline_runner(
            net, range(len(net.layers) - 1), stages, x, y, key
        ),
    }


def pipeline_runner(
    net: Network, boundaries: Sequence[int], stages: int, x: jax.Array, y: jax.Array, key: jax.Array
) -> Runner:
    """This package's pipeline on the first `stages` devices, its network cut after the layers named."""
    sg = estimators.loss_shaped(CLASSES, estimators.one_hot(CLASSES))
    modules = decoupled.cut(net.layers, boundaries)
    loss = decoupled.losses.softmax_cross_entropy
    learner = decoupled.make_learner(modules, [sg] * len(boundaries), loss, adam(), adam())
    made = decoupled.make_pipeline(learner, make_mesh(stages, jax.devices()[:stages]))
    state = made.start(jax.jit(learner.init)(key, x, y), x, y)
    for _ in range(stages + 2):  # until every program has been compiled, the fits too
        state = made.tick(state, x, y, key)
    return Runner(lambda state, x, y, key: (made.tick(state, x, y, key),), state, stages)


def backprop_runner(kind: str, depth: int, width: int, batch: int) -> Runner:
    """Backprop on a device of one core; `kind` is "unrolled" or "scan"."""
    return Runner(OneCore(partial(_backprop, kind, depth, width, batch)), None, 1)


def _backprop(kind: str, depth: int, width: int, batch: int) -> tuple[Any, ...]:
    """(update, state, x, y, key), in the process that runs it."""
    net = network(depth, width)
    init, update = scanned_backprop(net) if kind == "scan" else plain_backprop(net.layers)
    x, y, key = example(batch)
    return update, jax.jit(init)(key, x, y), x, y, key


def gpipe_runner(
    net: Network, stages: int, num_microbatches: int, x: jax.Array, y: jax.Array, key: jax.Array
) -> Runner:
    """GPipe on the first `stages` devices."""
    mesh = stage_mesh(stages)
    init, update = gpipe(net, mesh, num_microbatches, adam())
    state = place(mesh, jax.jit(init)(key, x, y))
    return Runner(jax.jit(update, donate_argnums=0).lower(state, x, y, key).compile(), state, stages)


def measure(quick: bool) -> Measured:
    depth, width, batch, turns = (2, 16, 16, 1) if quick else (62, 256, 512, 11)
    net = network(depth, width)
    x, y, key = example(batch)
    runners = {
        BACKPROP: backprop_runner("unrolled", depth, width, batch),
        "backprop (scan), one device": backprop_runner("scan", depth, width, batch),
        **{
            f"GPipe, {count} microbatch{'es' * (count > 1)}": gpipe_runner(net, STAGES, count, x, y, key)
            for count in (MICROBATCHES[1:2] if quick else MICROBATCHES)
        },
        **pipelined(net, STAGES, x, y, key),
    }
    settings = {"blocks": depth, "width": width, "batch": batch}
    rows = throughput_rows(runners, (x, y, key), settings, turns)
    return Measured(rows, [] if quick else verdicts(rows))


def throughput_rows(
    runners: dict[str, Runner], arguments: tuple[Any, ...], settings: dict[str, Any], turns: int
) -> list[Row]:
    """Examples a second of each, relative to `BACKPROP`, and the cores each used."""
    steps = {name: runner.step for name, runner in runners.items()}
    states, used = {}, {}
    for name, runner in runners.items():
        used[name], states[name] = cores_in_use(steps[name], runner.state, arguments)
        used[name] = getattr(runner.step, "cores", used[name])  # where it is another process that computes
    seconds = interleaved_seconds(steps, states, dict.fromkeys(steps, arguments), turns, None)
    rows = []
    for name, runner in runners.items():
        own = {**settings, "devices": runner.cores}
        rate = settings["batch"] / statistics.median(seconds[name])
        ratio = 1 / median_ratio(seconds, name, BACKPROP)
        rows.append(Row(THROUGHPUT, name, own, rate, "examples/s", ratio, BACKPROP))
        rows.append(Row("cores in use", name, own, used[name], "processor s / s"))
    return rows


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """The figures that were to be reached; not measured as long as there is no pipeline."""
    ratios = {row.method: row.ratio for row in rows if row.question == THROUGHPUT and row.ratio is not None}
    pipelines = {name: ratio for name, ratio in ratios.items() if name.startswith(PIPELINE)}
    rivals = {name: ratio for name, ratio in ratios.items() if name.startswith("GPipe")}
    name = max(pipelines, key=lambda name: pipelines[name], default="")
    best = max(rivals, key=lambda rival: rivals[rival])
    claims = (
        "two one-core devices: at least 1.6 times the examples/s of one running backprop",
        "ahead of GPipe at every microbatch count",
    )
    if not name:
        return [Verdict(claim, "no pipeline was run", None) for claim in claims]
    ratio = pipelines[name]
    return [
        Verdict(claims[0], f"{name}: {ratio:.2f} times", ratio >= 1.6),
        Verdict(claims[1], f"{ratio:.2f} against {rivals[best]:.2f} ({best})", ratio > rivals[best]),
    ]


def figures(rows: Sequence[Row]) -> list[Figure]:
    """One bar a method."""
    own = [row for row in rows if row.question == THROUGHPUT]
    figure = Figure(figsize=(9, 1 + 0.35 * len(own)), layout="constrained")
    axes = figure.subplots()
    colours = ["#d55e00" if row.method.startswith(PIPELINE) else "#0072b2" for row in own]
    bars = axes.barh([row.method for row in own], [row.ratio or 0.0 for row in own], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1.6, color="black", linestyle="--", label="1.6: to be reached by the pipeline")
    axes.set_xlabel("examples/s, relative to backprop on one device (higher is better)")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    return [figure]


PART = Part(
    "How many examples a second do two one-core devices train?",
    "benchmarks.pipeline",
    "The same network of equal blocks, the same batch a step, Adam. Backprop runs on one device, in a"
    " process of its own whose XLA has one thread; GPipe and the pipeline run on two devices, whose XLA has"
    " two. (A device that waits lends its thread to the other, which favours GPipe.) Methods take turns;"
    " medians; ratios within a turn. The processor seconds that each used in a second show that the cores"
    " are as said.",
    measure,
    figures,
    device_flags(STAGES),
)

if __name__ == "__main__":
    main(PART)

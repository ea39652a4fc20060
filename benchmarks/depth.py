"""What do memory, compile time and step time cost as a network gets deeper?

python -m benchmarks.depth

Stacks of equal 256-wide blocks, batches of 512, Adam, a boundary after every layer but the last; exact
backprop in a stack of 1024-wide blocks, batches of 256; and unequal layers one by one. Bytes and FLOPs are
the compiler's and so repeat exactly.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import decoupled
from benchmarks.baselines import Network, adam, plain_backprop, scanned_backprop
from benchmarks.compiled import Compiled, compile_step
from benchmarks.part import Measured, Part, Row, Verdict, main
from benchmarks.timing import interleaved_seconds, median_ratio
from decoupled import estimators
from decoupled.learning.stack import Stack
from decoupled.models.mlp import HiddenLayer
from decoupled.modules import from_linen

FEATURES, CLASSES, BACKPROP, SG = 256, 10, "backprop", "loss-shaped SG"
EXACT = "backprop in a stack"
EQUAL, NORMED, UNEQUAL = "equal blocks", "equal blocks with batch norm", "unequal layers"
WIDE = "equal blocks, 1024 wide"
MIB = 2**20

Methods = dict[str, tuple[Callable, Callable]]


def network(depth: int, width: int, norm: str = "none") -> Network:
    """Input layer, `depth` equal blocks, output layer."""
    lower, block, upper = decoupled.models.mlp(2, width, CLASSES, norm=norm)
    return Network(lower, block._replace(name="block"), depth, upper)


def example(batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A random batch (x, y), and a key."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, FEATURES)), jnp.float32)
    return x, jnp.asarray(rng.integers(CLASSES, size=batch), jnp.int32), jax.random.key(0)


def synthetic_gradients() -> dict[str, decoupled.Estimator]:
    labels = estimators.one_hot(CLASSES)
    return {SG: estimators.loss_shaped(CLASSES, labels), "linear SG": estimators.linear(labels)}


def decoupled_chain(links: Sequence[Any], estimator: decoupled.Estimator) -> tuple[Callable, Callable]:
    """The fused step of this package."""
    loss = decoupled.losses.softmax_cross_entropy
    learner = decoupled.make_learner(links, [estimator] * (len(links) - 1), loss, adam(), adam())

    def update(state, x, y, key):
        state, metrics = learner.update(state, x, y, key)
        return state, metrics.loss

    return learner.init, update


def equal_methods(depth: int, width: int, norm: str) -> Methods:
    net = network(depth, width, norm)
    names = tuple(f"block_{i}" for i in range(depth))
    links = [net.lower, Stack(net.block, names), net.upper]
    return {
        BACKPROP: scanned_backprop(net),
        "backprop + remat": scanned_backprop(net, remat=True),
        **{name: decoupled_chain(links, e) for name, e in synthetic_gradients().items()},
    }


def exact_methods(depth: int, width: int) -> Methods:
    """Backprop, as a scan and as a stack whose blocks are updated on the way down."""
    net = network(depth, width)
    # A quarter of the inputs is computed again, for less memory at little time.
    stack = Stack(net.block, tuple(f"block_{i}" for i in range(depth)), recompute_every=4)
    return {
        BACKPROP: scanned_backprop(net),
        "backprop + remat": scanned_backprop(net, remat=True),
        EXACT: decoupled_chain([net.lower, stack, net.upper], estimators.backprop()),
    }


def unequal_methods(depth: int, width: int) -> Methods:
    """No two neighbours are equal, so that nothing can be stacked."""
    widths = [width - width // 8 * (i % 2) for i in range(depth)]
    layers = [from_linen(HiddenLayer(w), f"hidden_{i}") for i, w in enumerate(widths)]
    layers.append(network(1, width).upper)
    return {
        BACKPROP: plain_backprop(layers),
        **{name: decoupled_chain(layers, e) for name, e in synthetic_gradients().items()},
    }


def measure(quick: bool) -> Measured:
    width, batch, turns = (16, 8, 1) if quick else (256, 512, 11)
    wide, half = 4 * width, batch // 2
    tables = [
        (
            EQUAL,
            (3,) if quick else (4, 16, 64, 256, 1024),
            width,
            batch,
            partial(equal_methods, norm="none"),
        ),
        (NORMED, () if quick else (4, 64), width, batch, partial(equal_methods, norm="batch")),
        (WIDE, (3,) if quick else (64,), wide, half, exact_methods),
        (UNEQUAL, (2,) if quick else (4, 8, 16, 32), width, batch, unequal_methods),
    ]
    rows = []
    for layers, depths, width, batch, methods_at in tables:
        for depth in depths:
            settings = {"layers": layers, "depth": depth, "width": width, "batch": batch}
            # Seconds a step at depth 1024: three turns of four methods then take most of a minute.
            rows += _rows(methods_at(depth, width), settings, 3 if depth > 256 else turns)
    return Measured(rows, [] if quick else verdicts(rows))


def _rows(methods: Methods, settings: dict[str, Any], turns: int) -> list[Row]:
    """Every figure of every method at one depth; the states of all methods are alive together."""
    x, y, key = example(settings["batch"])
    states = {name: jax.jit(init)(key, x, y) for name, (init, _) in methods.items()}
    made = {name: compile_step(methods[name][1], states[name], x, y, key) for name in methods}
    steps = {name: compiled.step for name, compiled in made.items()}
    seconds = interleaved_seconds(steps, states, dict.fromkeys(methods, (x, y, key)), turns, None)
    figures: dict[str, tuple[str, Callable[[Compiled], float]]] = {
        "temporary memory": ("MiB", lambda c: c.temporary_bytes / MIB),
        "peak memory": ("MiB", lambda c: c.peak_bytes / MIB),
        "compile time": ("s", lambda c: c.compile_seconds),
        "matrix products": ("GFLOP a step", lambda c: c.flops / 1e9),
    }
    rows = []
    for name in methods:
        for question, (unit, of) in figures.items():
            value = of(made[name])
            rows.append(Row(question, name, settings, value, unit, value / of(made[BACKPROP]), BACKPROP))
        milliseconds = 1e3 * statistics.median(seconds[name])
        ratio = median_ratio(seconds, name, BACKPROP)
        rows.append(Row("step time", name, settings, milliseconds, "ms", ratio, BACKPROP))
    return rows


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """The figures that were to be reached."""

    def row(question: str, method: str, depth: int, layers: str = EQUAL) -> Row:
        (found,) = (
            r
            for r in rows
            if (r.question, r.method) == (question, method)
            and (r.settings["layers"], r.settings["depth"]) == (layers, depth)
        )
        return found

    def growth(method: str) -> float:
        memory = [row("temporary memory", method, depth).value for depth in (4, 1024)]
        return memory[1] / memory[0]

    backprop_growth = growth(BACKPROP)
    found = []
    for name in synthetic_gradients():
        times = growth(name)
        claim = f"{name}: temporary memory at depth 1024 at most 1.5 times that at depth 4"
        found.append(Verdict(claim, f"{times:.2f} times (backprop {backprop_growth:.0f})", times <= 1.5))
        slowest = max(row("compile time", name, depth).value for depth in (4, 16, 64, 256, 1024))
        claim = f"{name}: compiled in less than 5 s at every depth"
        found.append(Verdict(claim, f"at most {slowest:.2f} s", slowest < 5))
    for depth, bound in ((64, 1.15), (1024, 1.0)):
        ratio = row("step time", SG, depth).ratio or math.nan
        claim = f"{SG}: step time at depth {depth} at most {bound:g} times backprop's"
        found.append(Verdict(claim, f"{ratio:.2f} times", ratio <= bound))
    for question, bound in (("peak memory", 0.75), ("step time", 1.1)):
        ratio = row(question, EXACT, 64, WIDE).ratio or math.nan
        claim = f"{EXACT}: {question} at depth 64, 1024 wide, at most {bound:g} times backprop's"
        found.append(Verdict(claim, f"{ratio:.3f} times", ratio <= bound))
    return found


_MARKERS = {BACKPROP: "o", "backprop + remat": "s", SG: "^", "linear SG": "D"}
_COLOURS = {BACKPROP: "#000000", "backprop + remat": "#0072b2", SG: "#d55e00", "linear SG": "#009e73"}


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Memory, compile time and step time against depth, one figure a kind of layers."""
    return [
        _figure([row for row in rows if row.settings["layers"] == kind], kind) for kind in (EQUAL, UNEQUAL)
    ]


def _figure(rows: Sequence[Row], title: str) -> Figure:
    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(f"{title}: lower is better")
    labels = {
        "temporary memory": "temporary memory, MiB",
        "peak memory": "arguments + outputs + temporaries, MiB",
        "compile time": "compile time, s",
        "step time": "step time, relative to backprop's",
    }
    for axes, (question, label) in zip(figure.subplots(2, 2).flat, labels.items(), strict=True):
        for method, marker in _MARKERS.items():
            own = [row for row in rows if (row.question, row.method) == (question, method)]
            values = [row.ratio if question == "step time" else row.value for row in own]
            depths = [row.settings["depth"] for row in own]
            if own:
                axes.plot(depths, values, marker=marker, color=_COLOURS[method], label=method)
        ticks = sorted({row.settings["depth"] for row in rows})
        axes.set(xscale="log", xlabel="depth, layers", ylabel=label)
        axes.set_xticks(ticks, [str(depth) for depth in ticks], minor=False)
        axes.minorticks_off()
        if question == "step time":
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


PART = Part(
    "What do depth's memory, compile time and step time cost?",
    "benchmarks.depth",
    "Dense + ReLU layers 256 wide, batches of 512, Adam, a synthetic gradient at every boundary; and exact"
    " backprop in a Stack, with every third input computed again, 1024 wide in batches of 256. Equal"
    " blocks: backprop is a lax.scan over stacked parameters, remat keeps the input of a block alone,"
    " the SGs train a Stack. Unequal layers, of alternating width, are unrolled in the program for every"
    " method. Bytes are the compiler's (temporaries; peak is arguments + outputs + temporaries -"
    " aliased), the state is donated, matrix products are counted in the traced program. Step times are"
    " medians over turns taken by the methods in one process; ratios are medians of ratios within a"
    " turn.",
    measure,
    figures,
)

if __name__ == "__main__":
    main(PART)

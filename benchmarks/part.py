"""A part of `make bench`, and how it is run: in a process of its own, with its own devices."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.process import json_of
from decoupled.training.workdir import write_whole


class Row(NamedTuple):
    """One number.

    Attributes:
      question: what was asked.
      method: what it is the answer for.
      settings: depth, batch size and so on.
      value: in `unit`.
      unit: of the value.
      ratio: to the method that the row is compared with, measured beside it in one run; None without one.
      ratio_to: that method.
    """

    question: str
    method: str
    settings: dict[str, Any]
    value: float
    unit: str
    ratio: float | None = None
    ratio_to: str = ""


class Verdict(NamedTuple):
    """A figure that was to be reached.

    Attributes:
      claim: in words, with its bound.
      measured: in words or numbers.
      met: None where this run did not measure it.
    """

    claim: str
    measured: str
    met: bool | None


class Measured(NamedTuple):
    """What a part found."""

    rows: list[Row]
    verdicts: list[Verdict]


class Part(NamedTuple):
    """A question.

    Attributes:
      title: heading on the page.
      module: of `measure`, as python -m names it; it calls `main` with this part.
      how: what was measured and how, in a few sentences.
      measure: quick -> what was found; a quick run uses tiny settings and shows only that all works.
      figures: the rows -> plots.
      xla_flags: added to XLA_FLAGS in the part's process.
    """

    title: str
    module: str
    how: str
    measure: Callable[[bool], Measured]
    figures: Callable[[Sequence[Row]], list[Figure]] = lambda rows: []
    xla_flags: str = ""


def command_of(part: Part, quick: bool) -> list[str]:
    """What a person types to run one part."""
    return ["python", "-m", part.module, *(["--quick"] if quick else [])]


def run_part(part: Part, quick: bool, timeout_seconds: float = 3600) -> dict[str, Any]:
    """Runs a part in a process of its own.

    Returns:
      "title", "how", "command", and either "error" (its last lines of output) or what `main` wrote: "rows",
      "verdicts", "device", "versions".
    """
    command = command_of(part, quick)
    told = {"title": part.title, "how": part.how, "command": " ".join(command)}
    flags = os.environ.get("XLA_FLAGS", "")
    # A quick run spends most of its time in the compiler, optimising programs that run once.
    extra = (part.xla_flags, "--xla_backend_optimization_level=0" if quick else "")
    told["xla_flags"] = " ".join((flags, *extra)).strip()
    return {**told, **json_of([*command, "--json"], told["xla_flags"], timeout_seconds)}


def rows_of(told: dict[str, Any]) -> list[Row]:
    """The rows in what `run_part` returned."""
    return [Row(**row) for row in told.get("rows", [])]


def main(part: Part, keep: Path | None = None) -> None:
    """Measures a part, in this process if it has the devices, and prints a table or one line of JSON.

    Args:
      keep: a file for what is found.
    """
    parser = argparse.ArgumentParser(description=part.title)
    parser.add_argument("--quick", action="store_true", help="tiny settings: shows only that it works")
    parser.add_argument("--json", action="store_true", help="print one line of JSON in place of a table")
    arguments = parser.parse_args()
    if missing := [flag for flag in part.xla_flags.split() if flag not in os.environ.get("XLA_FLAGS", "")]:
        # Flags are read when the first device is asked for; so begin again, with them.
        os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *missing)).strip()
        os.execv(sys.executable, [sys.executable, "-m", part.module, *sys.argv[1:]])
    rows, verdicts = part.measure(arguments.quick)
    found = {
        "command": " ".join(command_of(part, arguments.quick)),
        "rows": [row._asdict() for row in rows],
        "verdicts": [verdict._asdict() for verdict in verdicts],
    }
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        write_whole(keep, json.dumps({**found, **environment()}, indent=1))
    if arguments.json:
        print(json.dumps({**found, **environment()}))
        return
    print("| question | method | settings | value | unit | ratio | to |\n|" + " --- |" * 7)
    for row in rows:
        settings = " ".join(f"{name}={value}" for name, value in row.settings.items())
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        print(
            f"| {row.question} | {row.method} | {settings} | {row.value:.4g} | {row.unit} | {ratio}"
            f" | {row.ratio_to} |"
        )
    for verdict in verdicts:
        met = {True: "met", False: "NOT met", None: "not measured"}[verdict.met]
        print(f"{met}: {verdict.claim} (measured: {verdict.measured})")


def environment() -> dict[str, Any]:
    """What rows were measured on, and with."""
    import jax  # Not before: who only draws the page needs no device.

    device = jax.devices()[0]
    return {
        "device": {
            "kind": device.device_kind,
            "devices": jax.device_count(),
            "cores": os.cpu_count(),
            "processor": _processor(),
        },
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("jax", "jaxlib", "flax", "optax", "numpy")
            },
        },
    }


def _processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")

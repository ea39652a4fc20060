"""A claim of the paper: what it says, how it is measured, what was found.

Each claim is one file here, that can be run alone:

python -m experiments.NAME             about a minute
python -m experiments.NAME --size=full   more seeds, larger data
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from matplotlib.figure import Figure

from benchmarks.part import environment
from decoupled.training.html import svg
from decoupled.training.workdir import write_whole
from experiments.paper_page import render

# trial: seconds, to show that all works; no verdict counts. quick: for `make paper`. full: the real thing.
Size: TypeAlias = Literal["trial", "quick", "full"]
SIZES: tuple[Size, ...] = ("trial", "quick", "full")
# How sure it is that a paper says so: seen in its text, told by notes on it, recalled from memory; or it is
# this project's own claim.
Certainty: TypeAlias = Literal["seen", "told", "memory", "ours"]


class Check(NamedTuple):
    """One number that the claim stands or falls with.

    Attributes:
      what: was measured, in words, with its unit.
      measured: the number; where seeds were pooled `what` says how (mean, worst, ...).
      expected: in words or as a bound, as in "< 1e-8".
      holds: whether it is as expected.
    """

    what: str
    measured: float
    expected: str
    holds: bool


class Drawing(NamedTuple):
    """A figure, and what to see in it."""

    figure: Figure
    caption: str


class Finding(NamedTuple):
    """What measuring a claim found.

    Attributes:
      checks: the claim holds if all of them do.
      drawings: at least one.
      seeds: that were run.
      remarks: a few sentences for a student on what was seen, with what was not expected; "" for none.
    """

    checks: list[Check]
    drawings: list[Drawing]
    seeds: list[int]
    remarks: str = ""


class Claim(NamedTuple):
    """A claim.

    Attributes:
      id: short, as in "critical-points".
      module: of this claim, as python -m names it.
      title: heading on the page.
      claim: what the paper says, in one or two sentences.
      source: where it says so, as in "U17, proposition 2".
      certainty: how sure that is.
      how: it was measured, in a few sentences for a student; sizes are told by the remarks.
      measure: size -> what was found.
    """

    id: str
    module: str
    title: str
    claim: str
    source: str
    certainty: Certainty
    how: str
    measure: Callable[[Size], Finding]


def at_most(what: str, measured: float, bound: float) -> Check:
    return Check(what, measured, f"at most {bound:g}", bool(measured <= bound))


def at_least(what: str, measured: float, bound: float) -> Check:
    return Check(what, measured, f"at least {bound:g}", bool(measured >= bound))


def told(claim: Claim, size: Size) -> dict[str, Any]:
    """Measures a claim; returns what claims.json and the page hold of it."""
    finding = claim.measure(size)
    return {
        **{name: getattr(claim, name) for name in ("id", "title", "claim", "source", "certainty", "how")},
        "measured": [check._asdict() | {"measured": _finite(check.measured)} for check in finding.checks],
        "expected": "; ".join(f"{check.what}: {check.expected}" for check in finding.checks),
        "seeds": finding.seeds,
        "holds": all(check.holds for check in finding.checks),
        "verdict": _verdict(finding.checks),
        "remarks": finding.remarks,
        "command": " ".join(command_of(claim, size)),
        "drawings": [{"svg": svg(d.figure), "caption": d.caption} for d in finding.drawings],
        **environment(),
    }


def command_of(claim: Claim, size: Size) -> list[str]:
    """What a person types to measure one claim."""
    return ["python", "-m", claim.module, *([f"--size={size}"] if size != "quick" else [])]


def main(claim: Claim) -> None:
    """Measures a claim, prints what was found and draws its page; or prints one line of JSON."""
    parser = argparse.ArgumentParser(description=claim.title)
    parser.add_argument("--size", choices=SIZES, default="quick", help="how much to measure")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder for the page")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, draw no page")
    arguments = parser.parse_args()
    if arguments.size != "full":
        # Small programs: to compile them takes longer than to run them.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1"
    found = told(claim, arguments.size)
    if arguments.json:
        print(json.dumps(found, allow_nan=False))
        return
    print("\n".join(lines_of(found)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{claim.module.rpartition('.')[2]}.html"
    write_whole(path, render([found], arguments.size))
    print(f"written: {path}")


def lines_of(found: dict[str, Any]) -> Sequence[str]:
    """What was found, for a terminal."""
    checks = [
        f"  {'as expected' if c['holds'] else 'NOT AS EXPECTED'}: {c['what']}:"
        f" {_number(c['measured'])} (expected: {c['expected']})"
        for c in found["measured"]
    ]
    verdict = found["verdict"].replace("not", "NOT")
    head = f"{found['title']} ({found['source']})\n  claim: {found['claim']}"
    return [head, *checks, f"  {verdict}; {len(found['seeds'])} seeds"]


def _verdict(checks: Sequence[Check]) -> str:
    found = sum(check.holds for check in checks)
    if found == len(checks):
        return "holds"
    return f"holds in part: {found} of {len(checks)} checks" if found else "does not hold"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _finite(value: float) -> float | None:
    """JSON has no infinities."""
    return float(value) if math.isfinite(value) else None

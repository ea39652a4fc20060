"""What U17 claims, and J16 of feed-forward networks, measured: a page to read, and runs/paper/claims.json.

python -m experiments.paper
python -m experiments.paper --size=full

Claims are measured two at a time, each in a process of its own: no time counts here, and most of it goes
into compiling small programs, which keeps one core busy. One that fails is told on the page as failed, the
others are still measured, and the program ends with exit code 1. A claim that is found not to hold is no
failure: the page says so.
"""

import argparse
import concurrent.futures
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.process import json_of
from decoupled.training.workdir import write_whole
from experiments import (
    bounded_error,
    convergence_deep_linear,
    convergence_linear,
    critical_points,
    deep_networks,
    feed_forward,
    insufficient_estimator,
    loss_surfaces,
    mechanism,
    one_language,
    representations,
    toy_table,
)
from experiments.claim import SIZES, Claim, Size, command_of, lines_of
from experiments.paper_page import render

CLAIMS: tuple[Claim, ...] = (
    critical_points.CLAIM,
    insufficient_estimator.CLAIM,
    convergence_linear.CLAIM,
    bounded_error.CLAIM,
    convergence_deep_linear.CLAIM,
    toy_table.CLAIM,
    mechanism.CLAIM,
    loss_surfaces.CLAIM,
    deep_networks.CLAIM,
    representations.CLAIM,
    feed_forward.CLAIM,
    one_language.CLAIM,
)
_TIMEOUT_SECONDS = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--size", choices=SIZES, default="quick", help="how much to measure")
    arguments = parser.parse_args()
    if not run(CLAIMS, arguments.out, arguments.size):
        sys.exit(1)


def run(claims: Sequence[Claim], out: Path, size: Size) -> bool:
    """Measures the claims and writes what was found after each: an interrupted run keeps it.

    Returns:
      Whether all could be measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    told: dict[int, dict[str, Any]] = {}
    flags = os.environ.get("XLA_FLAGS", "")

    def measured(claim: Claim) -> dict[str, Any]:
        started = time.monotonic()
        found = json_of([*command_of(claim, size), "--json"], flags, _TIMEOUT_SECONDS)
        return {"title": claim.title, **found, "seconds": round(time.monotonic() - started, 1)}

    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        # The last ones take longest, and started last they would keep one core waiting.
        places = {pool.submit(measured, claims[i]): i for i in reversed(range(len(claims)))}
        for done in concurrent.futures.as_completed(places):
            told[places[done]] = done.result()
            _print(done.result())
            in_order = [told[i] for i in sorted(told)]
            listed = [_without_drawings(entry) for entry in in_order]
            write_whole(out / "claims.json", json.dumps(listed, indent=2) + "\n")
            write_whole(out / "index.html", render(in_order, size))
    print(f"written: {out / 'index.html'} and {out / 'claims.json'}")
    return not any("error" in found for found in told.values())


def _without_drawings(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "drawings"}


def _print(found: dict[str, Any]) -> None:
    if "error" in found:
        print(f"{found['title']}: could not be measured\n{found['error']}", file=sys.stderr, flush=True)
    else:
        print(*lines_of(found), f"  {found['seconds']:g} s", sep="\n", flush=True)


if __name__ == "__main__":
    main()

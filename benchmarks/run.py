"""Everything that `make bench` measures: runs/bench/bench.json, and bench.html with plots.

python -m benchmarks.run
python -m benchmarks.run --out runs/quick --quick

Parts run one after another, each in a process of its own. One that fails is told on the page as failed,
the others still run, and the program ends with exit code 1.
"""

import argparse
import concurrent.futures
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import asynchronous, cost_model, depth, pipeline, step_time, throughput
from benchmarks.page import render
from benchmarks.part import Part, run_part
from decoupled.training.workdir import write_whole

PARTS: tuple[Part, ...] = (
    depth.PART,
    pipeline.PART,
    cost_model.PART,
    asynchronous.PART,
    step_time.PART,
    throughput.PART,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--quick", action="store_true", help="tiny settings: shows only that it works")
    arguments = parser.parse_args()
    if not run(PARTS, arguments.out, arguments.quick):
        sys.exit(1)


def run(parts: Sequence[Part], out: Path, quick: bool) -> bool:
    """Runs all parts and writes the results after each, so that an interrupted run keeps what it has.

    Returns:
      Whether no part failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    told: list[dict[str, Any]] = []
    # Only where no time counts may parts run side by side.
    pool = concurrent.futures.ThreadPoolExecutor(len(parts) if quick else 1)
    for found in pool.map(lambda part: run_part(part, quick), parts):
        told.append(found)
        _print(found)
        write_whole(out / "bench.json", json.dumps({"quick": quick, "rows": _rows(told), "parts": told}))
        write_whole(out / "bench.html", render(told, parts[: len(told)], quick))
    print(f"written: {out / 'bench.html'} and {out / 'bench.json'}")
    return not any("error" in found for found in told)


def _rows(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row with what it was measured by, on and with."""
    shared = ("command", "xla_flags", "versions", "device")
    return [
        {**row, **{name: found[name] for name in shared}} for found in told for row in found.get("rows", [])
    ]


def _print(found: dict[str, Any]) -> None:
    print(f"{found['title']} ({found['command']})", flush=True)
    if "error" in found:
        print(f"  failed:\n{found['error']}", file=sys.stderr, flush=True)
    for verdict in found.get("verdicts", []):
        met = {True: "met", False: "NOT met", None: "not measured"}[verdict["met"]]
        print(f"  {met}: {verdict['claim']} (measured: {verdict['measured']})", flush=True)


if __name__ == "__main__":
    main()

"""Plants each defect in a copy of the repository and runs the tests named for it (`make mutants`).

One line a defect; exit code 1 if a defect survives, or could not be tried: its text is no longer there
exactly once, its tests are not green without it, or they break where they should fail.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.mutants import ALL
from tests.mutants.planting import run_tests, verdict

# Imported once, by the server that all runs are forked from. Nothing of the package: that is mutated.
_SHARED_IMPORTS = ["pytest", "chex", "flax.linen", "flax.nnx", "optax", "sklearn.datasets"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="*", help="words of which a defect's name or file must contain one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    options = parser.parse_args(argv)
    chosen = [m for m in ALL if not options.only or any(w in f"{m.name} {m.file}" for w in options.only)]
    started = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SHARED_IMPORTS)
    with ProcessPoolExecutor(options.jobs, context, max_tasks_per_child=1) as pool:
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        plain = pool.submit(run_tests, tests, None, stop_at_first=False)
        bad = 0
        for mutant, (caught, told) in zip(chosen, pool.map(verdict, chosen), strict=True):
            bad += not caught
            print(f"{mutant.name}: {told}", flush=True)
        code, _, said = plain.result()
        if code:
            print(f"without any defect, tests are not green:\n{said}")
    print(f"{len(chosen) - bad} of {len(chosen)} defects caught in {time.monotonic() - started:.0f} s")
    return 1 if bad or code else 0


if __name__ == "__main__":
    sys.exit(main())

"""Figures of a finished run: what its layers hold, and how good its gradients are.

python -m decoupled.analysis runs/digits/20260101-120000

Writes analysis.html into the run's folder. Exit codes are those of train.py.
"""

import argparse
import signal
import sys
from pathlib import Path

from decoupled.errors import DataError, MissingPackage, TrainingError, UsageError
from decoupled.extras import extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, help="folder that train.py has written")
    parser.add_argument("--examples", type=int, default=1000, help="of the test set, to look at")
    arguments = parser.parse_args()
    try:
        with extra("analysis"):
            from decoupled.analysis.page import analyse
        print(f"written: {analyse(arguments.workdir, arguments.examples)}")
    except (UsageError, DataError, MissingPackage, TrainingError) as error:
        print(f"analysis: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to lose: no exception, no traceback
    main()

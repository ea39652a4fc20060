"""Figures of a finished run: what its layers hold, and how good its gradients are.

python -m decoupled.analysis runs/digits/20260101-120000

Writes analysis.html into the run's folder. Exit codes are those of train.py.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from decoupled.analysis.figures import all_figures
from decoupled.builder import build
from decoupled.errors import DataError, TrainingError, UsageError
from decoupled.training import load_trained
from decoupled.training.html import page, svg
from decoupled.training.workdir import write_whole

_EXAMPLES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, help="folder that train.py has written")
    parser.add_argument("--examples", type=int, default=_EXAMPLES, help="of the test set, to look at")
    arguments = parser.parse_args()
    try:
        print(f"written: {analyse(arguments.workdir, arguments.examples)}")
    except (UsageError, DataError, TrainingError) as error:
        print(f"analysis: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def analyse(workdir: Path, examples: int = _EXAMPLES) -> Path:
    """Draws the figures of a run; returns the page.

    Args:
      examples: of the test set; the first so many.

    Raises:
      UsageError: the folder holds no run, or `examples` is too small.
      DataError: the trained network, or the data it was trained on, is missing or damaged.
      TrainingError: the page cannot be written.
    """
    try:
        config = ml_collections.ConfigDict(
            _tuples(json.loads((workdir / "config.json").read_text(encoding="utf-8")))
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{workdir} holds no run of train.py: no config.json can be read there") from error
    config.parallel.mode = "none"  # However it was trained, one device is enough to look at it.
    job = build(config)
    if examples < 2 * job.dataset.num_classes:
        raise UsageError(f"--examples is {examples}: ask for at least {2 * job.dataset.num_classes}")
    images, labels = (jnp.asarray(part[:examples]) for part in job.dataset.test)
    x = job.preprocess.evaluate(images)
    like = jax.eval_shape(job.learner.init, jax.random.key(0), x[:1], labels[:1])
    state = load_trained(workdir, like)
    figures = all_figures(job.learner, state, x, labels, jax.random.key(config.seed))
    path = workdir / "analysis.html"
    sections = "".join(f"<h2>{title}</h2>{svg(figure)}" for title, figure in figures.items())
    text = f"<p>{workdir.name}: {job.dataset.name}, the first {len(labels)} test examples.</p>{sections}"
    try:
        write_whole(path, page(f"{job.description['method']} on {job.dataset.name}", text))
    except OSError as error:
        raise TrainingError(f"cannot write to {workdir}: {error.strerror}") from error
    return path


def _tuples(value: Any) -> Any:
    """JSON knows lists alone; configs have tuples."""
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to lose: no exception, no traceback
    main()

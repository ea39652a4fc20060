"""One page of figures for a finished run."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.analysis.figures import all_figures
from decoupled.data.dataset import rows_of
from decoupled.errors import TrainingError, UsageError
from decoupled.training import load_trained
from decoupled.training.builder import build
from decoupled.training.html import page, svg
from decoupled.training.saved_config import config_of_run
from decoupled.training.workdir import write_whole


def analyse(workdir: str | os.PathLike[str], examples: int) -> Path:
    """Draws the figures of a run; returns the page.

    Args:
      examples: of the test set; the first so many.

    Raises:
      UsageError: the folder holds no run, or `examples` is too small.
      DataError: the trained network, or the data it was trained on, is missing or damaged.
      TrainingError: the page cannot be written.
    """
    workdir = Path(workdir).expanduser()
    config = config_of_run(workdir)
    # However it was trained, one device is enough to look at it.
    with config.ignore_type():
        config.parallel = {"mode": "none", "stages": 1, "devices": 0}
    job = build(config)
    if examples < 2 * job.dataset.num_classes:
        raise UsageError(f"--examples is {examples}: ask for at least {2 * job.dataset.num_classes}")
    parts = rows_of(job.dataset.test, np.arange(min(examples, len(job.dataset.test))))
    if len(parts) > 2 or config.batch_axes > 1 or not all(isinstance(part, np.ndarray) for part in parts):
        raise UsageError(
            f"{workdir} is of a run with tokens as examples, weights, or examples of several arrays: the"
            " figures are of networks from one array to one, whose examples all count"
        )
    images, labels = map(jnp.asarray, parts)
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

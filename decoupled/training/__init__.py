"""The training loop around a learner: steps, evaluation, progress, and the results on disk."""

from decoupled.training.loop import Job, train_and_evaluate
from decoupled.training.trained import load_trained
from decoupled.training.workdir import NoWorkdir, Workdir, read_metrics

__all__ = ["Job", "NoWorkdir", "Workdir", "load_trained", "read_metrics", "train_and_evaluate"]

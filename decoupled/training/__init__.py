"""The training loop around a learner: steps, evaluation, checkpoints, progress, and the results on disk.

Its names are imported when they are asked for: `decoupled.fit` needs few of them, and nothing but the core.
"""

from typing import TYPE_CHECKING

from decoupled.extras import on_demand

if TYPE_CHECKING:
    from decoupled.training.average import evaluated
    from decoupled.training.loop import Job, train_and_evaluate
    from decoupled.training.parts import (
        flax_variables,
        load_estimator,
        load_module,
        save_estimator,
        save_module,
    )
    from decoupled.training.trained import load_trained
    from decoupled.training.workdir import NoWorkdir, Workdir, new_workdir, read_metrics

__all__ = [
    "Job",
    "NoWorkdir",
    "Workdir",
    "evaluated",
    "flax_variables",
    "load_estimator",
    "load_module",
    "load_trained",
    "new_workdir",
    "read_metrics",
    "save_estimator",
    "save_module",
    "train_and_evaluate",
]

__getattr__ = on_demand(
    __name__,
    {
        "evaluated": "average",
        "load_trained": "trained",
        **dict.fromkeys(("Job", "train_and_evaluate"), "loop"),
        **dict.fromkeys(("NoWorkdir", "Workdir", "new_workdir", "read_metrics"), "workdir"),
        **dict.fromkeys(
            ("flax_variables", "load_estimator", "load_module", "save_estimator", "save_module"), "parts"
        ),
    },
)

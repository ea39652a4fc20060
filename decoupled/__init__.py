"""Train the modules of a network independently, each from its own synthetic gradient.

See `decoupled.types` for the notation and the two seams, `Module` and `Estimator`.
"""

from decoupled import estimators, losses, models
from decoupled.boundaries import (
    Boundary,
    BoundaryReport,
    NNXBoundary,
    Tap,
    boundary,
    new_tap,
    read_taps,
    split_optimizer,
    tie,
)
from decoupled.errors import DataError, Interrupted, MissingPackage, TrainingError, UsageError
from decoupled.learning.dispatch import dispatched
from decoupled.learning.learner import Learner, make_learner
from decoupled.learning.stack import Stack, stack_equal
from decoupled.learning.state import (
    BoundaryMetrics,
    EstimatorState,
    LearnerState,
    Metrics,
    ModuleState,
    ModuleStep,
)
from decoupled.modules import compose, cut, from_functions, from_linen, from_nnx
from decoupled.modules.backward_rules import feedback_alignment, sign_symmetric, with_backward_rule
from decoupled.parallel.pipeline import make_pipeline
from decoupled.training.fit import fit
from decoupled.types import Estimator, Module, ModuleVariables, Reads

__version__ = "0.1.0"

__all__ = [
    "Boundary",
    "BoundaryMetrics",
    "BoundaryReport",
    "DataError",
    "Estimator",
    "EstimatorState",
    "Interrupted",
    "Learner",
    "LearnerState",
    "Metrics",
    "MissingPackage",
    "Module",
    "ModuleState",
    "ModuleStep",
    "ModuleVariables",
    "NNXBoundary",
    "Reads",
    "Stack",
    "Tap",
    "TrainingError",
    "UsageError",
    "boundary",
    "compose",
    "cut",
    "dispatched",
    "estimators",
    "feedback_alignment",
    "fit",
    "from_functions",
    "from_linen",
    "from_nnx",
    "losses",
    "make_learner",
    "make_pipeline",
    "models",
    "new_tap",
    "read_taps",
    "sign_symmetric",
    "split_optimizer",
    "stack_equal",
    "tie",
    "with_backward_rule",
]

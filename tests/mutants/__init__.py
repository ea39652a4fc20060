"""`make mutants`: plants the field's classic defects, one at a time, and demands that a test goes red."""

from tests.mutants import boundaries, estimators, examples, runs, updates
from tests.mutants.mutant import Mutant

ALL: tuple[Mutant, ...] = (
    *updates.MUTANTS,
    *examples.MUTANTS,
    *boundaries.MUTANTS,
    *estimators.MUTANTS,
    *runs.MUTANTS,
)

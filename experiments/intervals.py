"""Means over seeds, and how sure they are."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.claim import Check


class Interval(NamedTuple):
    """A mean over seeds, and Student's 95 % confidence interval for it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: np.ndarray) -> Interval:
    """Of one value a seed; without spread it is a point."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def positive(what: str, found: Interval) -> Check:
    """That a mean is above 0 with 97.5 % confidence."""
    return Check(
        f"{what}: mean over seeds, lower end of its 95 % interval", found.low, "above 0", found.low > 0
    )

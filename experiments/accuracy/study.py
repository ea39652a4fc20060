"""Learning rates chosen on held-out examples, then several seeds with those on the test set."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.accuracy.costs import Costs, costs
from experiments.accuracy.runs import Run, run_all
from experiments.accuracy.settings import Chosen, Fields, config_of, trials


class Finding(NamedTuple):
    """Of one method.

    Attributes:
      method: its name.
      rates: chosen among `tried`.
      tried: the held-out accuracy of each trial, in the order of `trials`.
      runs: one a seed, with those rates.
      costs: of a step.
    """

    method: str
    rates: Fields
    tried: list[float]
    runs: list[Run]
    costs: Costs

    @property
    def accuracies(self) -> list[float]:
        """On the test set, in %, one a seed."""
        return [100 * run.test_accuracy for run in self.runs]

    def epochs_to(self, accuracy: float) -> float:
        """Until held-out accuracy first reaches that fraction: median of seeds, infinite for never."""
        first = [
            next((epoch for epoch, value in enumerate(run.validation, 1) if value >= accuracy), math.inf)
            for run in self.runs
        ]
        return statistics.median(first)

    def told(self) -> dict[str, Any]:
        """What accuracy.json has of it."""
        runs = [run._asdict() for run in self.runs]
        return {**self._asdict(), "runs": runs, "costs": self.costs._asdict()}


def study(
    chosen: Chosen, methods: Sequence[str], seeds: int, turns: int, folder: Path, processes: int = 0
) -> list[Finding]:
    """Measures methods on a network; what is finished in `folder` is not run again.

    Args:
      chosen: what all runs have in common.
      seeds: of runs; trials are made with seed 0.
      turns: of the timing, which comes last, when nothing else runs.
      folder: of all runs.
      processes: that run at a time; 0: one a core.
    """
    attempts = [(method, rates) for method in methods for rates in trials(chosen.network, method)]
    tried = run_all(folder, [config_of(chosen, method, 0, rates) for method, rates in attempts], processes)
    scores: dict[str, list[float]] = {method: [] for method in methods}
    for (method, _), run in zip(attempts, tried, strict=True):
        scores[method].append(run.validation[-1])
    best = {method: trials(chosen.network, method)[_best(scores[method])] for method in methods}
    final = [(method, seed) for method in methods for seed in range(seeds)]
    runs = run_all(
        folder, [config_of(chosen, method, seed, best[method]) for method, seed in final], processes
    )
    cost = costs({method: config_of(chosen, method, 0, best[method]) for method in methods}, turns)
    return [
        Finding(
            method,
            best[method],
            scores[method],
            [run for (name, _), run in zip(final, runs, strict=True) if name == method],
            cost[method],
        )
        for method in methods
    ]


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)

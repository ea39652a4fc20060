"""Learning rates chosen on held-out examples, then several seeds with those on the test set."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.accuracy.costs import Costs, costs
from experiments.accuracy.runs import Run, run_all
from experiments.accuracy.settings import Fields, fields, trials


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
    network: str, methods: Sequence[str], epochs: int, seeds: int, turns: int, folder: Path
) -> list[Finding]:
    """Measures methods on a network; what is finished in `folder` is not run again.

    Args:
      epochs: of trials and of runs.
      seeds: of runs; trials are made with seed 0.
      turns: of the timing, which comes last, when nothing else runs.
      folder: of all runs.
    """
    attempts = [(method, rates) for method in methods for rates in trials(network, method)]
    tried = run_all(folder, [fields(network, method, epochs, 0, rates) for method, rates in attempts])
    scores: dict[str, list[float]] = {method: [] for method in methods}
    for (method, _), run in zip(attempts, tried, strict=True):
        scores[method].append(run.validation[-1])
    chosen = {method: trials(network, method)[_best(scores[method])] for method in methods}
    final = [(method, seed) for method in methods for seed in range(seeds)]
    runs = run_all(
        folder, [fields(network, method, epochs, seed, chosen[method]) for method, seed in final]
    )
    cost = costs({method: fields(network, method, epochs, 0, chosen[method]) for method in methods}, turns)
    return [
        Finding(
            method,
            chosen[method],
            scores[method],
            [run for (name, _), run in zip(final, runs, strict=True) if name == method],
            cost[method],
        )
        for method in methods
    ]


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)

"""Turns what a run measures into lines of metrics, a progress display, and a halt when numbers run away."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat

from decoupled.errors import TrainingError
from decoupled.learning.watch import Watch
from decoupled.training.objectives import ACCURACY, Metric
from decoupled.training.progress import Progress
from decoupled.training.step import Totals, means
from decoupled.training.workdir import NoWorkdir, Workdir

_DIVERGES = -10.0  # R2 of an estimate that is far worse than none
_MOST_LISTED = 12  # numbers in a line


class Monitor:
    """Logs a run to its workdir and shows it to whoever watches.

    Every report raises TrainingError where a loss, an estimator's loss or a cosine in it is not finite.

    Args:
      boundaries: the name of the module below each boundary.
      skips: updates with numbers that are not finite are left out, and need not stop the run.
      metric: that the run is judged by.
    """

    def __init__(
        self,
        workdir: Workdir | NoWorkdir,
        progress: Progress,
        boundaries: Sequence[str],
        skips: bool = False,
        metric: Metric = ACCURACY,
    ):
        self._workdir = workdir
        self._progress = progress
        self._boundaries = boundaries
        self._skips = skips
        self._metric = metric
        self._latest: dict[str, list[float | None]] = {"estimator loss": [], "R2": [], "cosine": []}
        self._best: dict[str, float] | None = None
        self._skipped: dict[str, Watch] = {}
        self._diverging: set[str] = set()

    @property
    def best(self) -> dict[str, float] | None:
        """The metric on held-out examples where it was best, and the step; None without such examples."""
        return self._best

    def notes(self) -> dict[str, Any]:
        """What `go_on` needs in a later process; plain JSON."""
        return {"latest": self._latest, "best": self._best}

    def go_on(self, notes: dict[str, Any]) -> None:
        """Continues where another left off."""
        self._latest, self._best = notes["latest"], notes["best"]
        if self._best and self._metric.name not in self._best:
            self._best = None  # of another metric, before the config was changed

    def check(self, step: int, watches: Sequence[Watch]) -> None:
        """Reports gradients that were not finite.

        Raises:
          TrainingError: there were some, or where they are skipped: most updates since the last time.
        """
        bad = [watch for watch in watches if watch.not_finite]
        if bad and not self._skips:
            first = min(watch.first for watch in bad)
            names = ", ".join(watch.name for watch in bad if watch.first == first)
            raise TrainingError(f"not finite: {names}, first in update {first}{self._what_to_do(step)}")
        for watch in bad:
            before = self._skipped.get(watch.name, Watch(watch.name, 0, 0, 0))
            new, updates = watch.not_finite - before.not_finite, watch.updates - before.updates
            if new:
                self._progress.say(f"{watch.name} was not finite: skipped {new} of {updates} updates")
            if 2 * new > updates:
                raise TrainingError(
                    f"{watch.name} was not finite in {new} of the last {updates} updates"
                    f"{self._what_to_do(step)}"
                )
        self._skipped = {watch.name: watch for watch in watches}

    def training(self, step: int, epoch: float, totals: Totals, examples_per_second: float) -> None:
        """Reports the steps in `totals`."""
        record = means(totals, self._metric.name)
        if self._skips:
            record = {name: _finite_only(value) for name, value in record.items()}
        self._check_finite(step, record["loss"], record["estimator_loss"], record[self._metric.name])
        self._warn_of_divergence(step, record["r2"])
        record["examples_per_second"] = examples_per_second
        self._workdir.log("train", step, {"epoch": epoch, **record})
        self._latest |= {"estimator loss": record["estimator_loss"], "R2": record["r2"]}
        self._progress.show(step, _headline(record, self._metric.name))

    def alignment(self, step: int, cosines: Iterable[SupportsFloat]) -> None:
        """Reports the cosine of estimated and true gradient at every boundary."""
        values: list[float | None] = [round(float(cosine), 6) for cosine in cosines]
        self._check_finite(step, 0.0, values)
        self._workdir.log("alignment", step, {"cosine": values})
        self._latest["cosine"] = values

    def evaluation(self, kind: str, step: int, epoch: int, result: dict[str, float]) -> bool:
        """Reports metric and loss on the "validation" or "test" split.

        Returns:
          Whether the network has never been so good on held-out examples.
        """
        name, score = self._metric.name, result[self._metric.name]
        self._check_finite(step, result["loss"], [None] * len(self._boundaries), score)
        self._workdir.log(kind, step, {"epoch": epoch, **result})
        self._progress.say(f"epoch {epoch}  {kind} {name} {score:.4f}  loss {result['loss']:.4f}")
        if kind != "validation" or (self._best and not self._metric.is_better(score, self._best[name])):
            return False
        self._best = {name: score, "step": step}
        return True

    def boundaries(self) -> None:
        """Shows the latest numbers of the boundaries: all, first to last, or of many their range."""
        known = {
            name: [value for value in values if value is not None] for name, values in self._latest.items()
        }
        told = [f"{name} {_in_short(values)}" for name, values in known.items() if values]
        if told:
            many = len(self._boundaries) > _MOST_LISTED
            which = f"{len(self._boundaries)} boundaries" if many else "boundaries first to last"
            self._progress.say(f"{which}: {'; '.join(told)}")

    def _warn_of_divergence(self, step: int, r2s: Sequence[float | None]) -> None:
        """Tells of estimates that are far worse than none, once each time they become so."""
        for name, r2 in zip(self._boundaries, r2s, strict=True):
            if r2 is None or r2 > _DIVERGES:
                self._diverging.discard(name)
            elif name not in self._diverging:
                self._diverging.add(name)
                self._progress.say(
                    f"step {step}: the estimator after {name} diverges (R2 {r2:.3g}): lower"
                    " config.estimator_optimizer.learning_rate"
                )

    def _check_finite(
        self,
        step: int,
        loss: float | None,
        per_boundary: Sequence[float | None],
        score: float | None = None,
    ) -> None:
        told = {"the loss": loss, f"the metric {self._metric.name}": score}
        bad = [name for name, value in told.items() if value is not None and not math.isfinite(value)]
        bad += [
            f"the estimator after {name}"
            for name, value in zip(self._boundaries, per_boundary, strict=True)
            if value is not None and not math.isfinite(value)
        ]
        if bad:
            raise TrainingError(f"not finite: {', '.join(bad)}{self._what_to_do(step)}")

    def _what_to_do(self, step: int) -> str:
        checkpoint = self._workdir.last_checkpoint
        kept = "no checkpoint was made" if checkpoint is None else f"last checkpoint: step {checkpoint}"
        return (
            f" (seen at step {step}; {kept}): lower config.optimizer.learning_rate or"
            " config.estimator_optimizer.learning_rate, set their clip_norm, or normalise"
            " (config.model.norm=batch)"
        )


def _in_short(values: Sequence[float]) -> str:
    if len(values) <= _MOST_LISTED:
        return " ".join(f"{value:.3g}" for value in values)
    return f"{min(values):.3g} to {max(values):.3g}, median {statistics.median(values):.3g}"


def _finite_only(value: Any) -> Any:
    """None in place of a number that is not finite."""
    if isinstance(value, list):
        return [_finite_only(member) for member in value]
    return value if value is None or math.isfinite(value) else None


def _headline(record: dict[str, Any], metric: str) -> dict[str, float]:
    known = [r2 for r2 in record["r2"] if r2 is not None]
    return {
        **{name: record[name] for name in ("loss", metric) if record[name] is not None},
        "examples/s": record["examples_per_second"],
        **({"worst R2": min(known)} if known else {}),
    }

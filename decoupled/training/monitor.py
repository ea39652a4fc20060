"""Turns what a run measures into lines of metrics, a progress display, and a halt when numbers run away."""

import math
from collections.abc import Sequence
from typing import Any

from decoupled.errors import TrainingError
from decoupled.training.progress import Progress
from decoupled.training.step import Totals
from decoupled.training.workdir import NoWorkdir, Workdir


class Monitor:
    """Logs a run to its workdir and shows it to whoever watches.

    Every report raises TrainingError where a loss, an estimator's loss or a cosine in it is not finite.

    Args:
      boundaries: the name of the module below each boundary.
    """

    def __init__(self, workdir: Workdir | NoWorkdir, progress: Progress, boundaries: Sequence[str]):
        self._workdir = workdir
        self._progress = progress
        self._boundaries = boundaries
        self._latest: dict[str, list[float | None]] = {"estimator loss": [], "R2": [], "cosine": []}

    def training(self, step: int, epoch: float, totals: Totals, examples_per_second: float) -> None:
        """Reports the steps in `totals`."""
        record = _means(totals)
        self._check_finite(step, record["loss"], record["estimator_loss"])
        record["examples_per_second"] = examples_per_second
        self._workdir.log("train", step, {"epoch": epoch, **record})
        self._latest |= {"estimator loss": record["estimator_loss"], "R2": record["r2"]}
        self._progress.show(step, _headline(record))

    def alignment(self, step: int, cosines: Sequence[float]) -> None:
        """Reports the cosine of estimated and true gradient at every boundary."""
        values: list[float | None] = [round(float(cosine), 6) for cosine in cosines]
        self._check_finite(step, 0.0, values)
        self._workdir.log("alignment", step, {"cosine": values})
        self._latest["cosine"] = values

    def evaluation(self, kind: str, step: int, epoch: int, result: dict[str, float]) -> None:
        """Reports accuracy and loss on the "validation" or "test" split."""
        self._check_finite(step, result["loss"], [None] * len(self._boundaries))
        self._workdir.log(kind, step, {"epoch": epoch, **result})
        scores = f"accuracy {result['accuracy']:.4f}  loss {result['loss']:.4f}"
        self._progress.say(f"epoch {epoch}  {kind} {scores}")

    def boundaries(self) -> None:
        """Shows the latest numbers of every boundary, first to last."""
        lists = [
            f"{name} {' '.join(f'{value:.3g}' for value in values if value is not None)}"
            for name, values in self._latest.items()
            if any(value is not None for value in values)
        ]
        if lists:
            self._progress.say(f"boundaries first to last: {'; '.join(lists)}")

    def _check_finite(self, step: int, loss: float, per_boundary: Sequence[float | None]) -> None:
        bad = [] if math.isfinite(loss) else ["the loss"]
        bad += [
            f"the estimator after {name}"
            for name, value in zip(self._boundaries, per_boundary, strict=True)
            if value is not None and not math.isfinite(value)
        ]
        if bad:
            raise TrainingError(
                f"not finite at step {step}: {', '.join(bad)}: lower config.optimizer.learning_rate or"
                " config.estimator_optimizer.learning_rate, or normalise (config.model.norm=batch)"
            )


def _means(totals: Totals) -> dict[str, Any]:
    """Averages, ready for JSON."""
    boundaries, steps = totals.boundaries, max(1, int(totals.steps))
    return {
        "loss": float(totals.loss) / steps,
        "accuracy": float(totals.accuracy) / steps,
        "estimator_loss": [None if b is None else float(b.loss) / steps for b in boundaries],
        # None where there is no target, or none but zeros.
        "r2": [
            1 - float(b.loss) / float(b.target_power) if b is not None and b.target_power else None
            for b in boundaries
        ],
    }


def _headline(record: dict[str, Any]) -> dict[str, float]:
    known = [r2 for r2 in record["r2"] if r2 is not None]
    return {
        "loss": record["loss"],
        "accuracy": record["accuracy"],
        "examples/s": record["examples_per_second"],
        **({"worst R2": min(known)} if known else {}),
    }

"""Shows a run as it goes: a bar on a terminal or in a notebook, log lines elsewhere."""

import sys
import time
from typing import Any, Self

from decoupled.telling import tell

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts steps, and says now and then how they are going; a context manager."""

    def __init__(self, total_steps: int):
        self._total = total_steps
        self._bar = _bar(total_steps) if _is_watched() else None
        self._started = time.monotonic()
        self._last_line = -_SECONDS_BETWEEN_LINES

    def show(self, step: int, values: dict[str, float]) -> None:
        """Reports the numbers of the last few steps."""
        if self._bar is not None:
            self.move(step)
            self._bar.set_postfix({name: _short(value) for name, value in values.items()})
            return
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES and step < self._total:
            return
        self._last_line = now
        left = (now - self._started) / step * (self._total - step)
        numbers = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        tell(f"step {step}/{self._total}  {numbers}  ETA {left:.0f} s")

    def move(self, step: int) -> None:
        """Moves the bar on, if there is one."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            tell(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


class SilentProgress(Progress):
    """Says nothing: for all processes but the first."""

    def __init__(self, total_steps: int):
        del total_steps
        self._bar = None

    def show(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


def _is_watched() -> bool:
    """Whether there is a terminal, or a notebook, for a bar to move on."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", ())


def _bar(total_steps: int) -> Any:
    """None where tqdm is not installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=total_steps, unit="step")


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"

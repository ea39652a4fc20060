"""Runs tests in copies of the repository, each with a defect planted."""

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
_LEFT_OUT = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")


def stale(mutant: Mutant, root: Path = ROOT) -> str:
    """Why a mutant cannot be planted; empty if it can."""
    count = (root / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    return "" if count == 1 else f"{mutant.file} has its text {count} times, not once"


def run_tests(
    tests: Sequence[str], mutant: Mutant | None, stop_at_first: bool = True
) -> tuple[int, list[str], str]:
    """Runs tests in a copy of the repository, in which the mutant is planted. For a process of its own.

    Returns:
      pytest's exit code, the tests that failed, and what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(ROOT, copy, ignore=_LEFT_OUT)
        if mutant is not None:
            path = copy / mutant.file
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        os.chdir(copy)
        _forget_this_repository()
        watch = _Watch()
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "--assert=plain",
            "-o",
            "addopts=",
            *["-x"] * stop_at_first,
        ]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = pytest.main([*options, "--rootdir", str(copy), *tests], plugins=[watch])
        os.chdir(ROOT)
        return int(code), watch.failed, said.getvalue()


def _forget_this_repository() -> None:
    """Makes imports find the copy, which is the current folder."""
    sys.dont_write_bytecode = True
    sys.path[:] = [str(Path.cwd())] + [
        p for p in sys.path if Path(p or ".").resolve() not in (ROOT, Path.cwd())
    ]
    own = {path.stem for path in ROOT.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]


class _Watch:
    """A pytest plugin that notes which tests fail."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def verdict(mutant: Mutant) -> tuple[bool, str]:
    """Whether a mutant was caught, and what is to be told."""
    why = stale(mutant)
    if why:
        return False, f"STALE: {why}"
    code, failed, said = run_tests(mutant.tests, mutant)
    if code == pytest.ExitCode.TESTS_FAILED and failed:
        return True, f"caught by {failed[0]}"
    if code == pytest.ExitCode.OK:
        return False, f"SURVIVED {' '.join(mutant.tests)}"
    return False, f"BROKEN (pytest's exit code {code}):\n{said}"

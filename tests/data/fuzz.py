"""Attacks every parser of data sets with malformed files, guided by the lines that they reach.

python -m tests.data.fuzz --files=10000

Files are made by changing (`tests/data/malformed.py`) valid ones, and those that took a step in
`decoupled/data` which none had taken before. Goes on until so many files of each parser were refused, and
prints a line for each; saves the first file that does what no file may (`tests/data/parsers.py`) and exits
with code 1. Runs with the same seed try the same files.

A loop of our own around `sys.settrace`, and not a fuzzer from a package: those for Python come as binaries
for Linux on one kind of processor, and what they add, coverage inside C, is not what is searched here.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import decoupled.data
from tests.data.malformed import mutated, unpacked_size
from tests.data.parsers import Outcome, Parser, all_parsers, attack

_LARGE = 1 << 16
_PACKAGE = str(Path(decoupled.data.__file__).parent)


class Report(NamedTuple):
    """What attacking a parser came to.

    Attributes:
      tried, accepted: numbers of files.
      lines: of the package that were reached.
      kept: files that reached something new, which others were made of.
      seconds, times: the largest of any file; see `Outcome`.
      problem: of the last file, or "".
      content: of the last file.
    """

    tried: int
    accepted: int
    lines: int
    kept: int
    seconds: float
    times: float
    problem: str
    content: bytes


class Steps:
    """A context manager that collects (file, line before, line) as code of the package runs."""

    def __init__(self):
        self.taken = set()

    def __enter__(self):
        self._before = sys.gettrace()  # of whoever measures the tests
        sys.settrace(self._call)

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _call(self, frame, event, argument):
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE):
            return None
        before = 0

        def line(frame, event, argument):
            nonlocal before
            self.taken.add((file, before, frame.f_lineno))
            before = frame.f_lineno
            return line

        return line


def fuzz(parser: Parser, files: int, seed: int, folder: Path) -> Report:
    """Attacks until `files` were refused, or one did what none may; 20 times as many are tried at most."""
    rng = random.Random(f"{seed} {parser.name}")
    corpus, seen, accepted, slowest, largest = list(parser.files), set(), 0, 0.0, 0.0
    content, outcome, tried = b"", Outcome(False, 0, 0, ""), 0
    while tried - accepted < files and tried < 20 * files and not outcome.problem:
        content = (
            parser.files[tried] if tried < len(parser.files) else mutated(rng, rng.choice(corpus), corpus)
        )
        steps = Steps()
        outcome = attack(parser, content, folder, steps)
        if tried < len(parser.files) and not outcome.accepted:
            outcome = outcome._replace(problem=f"a valid file is refused {outcome.problem}")
        # Files that only grow would take over.
        if steps.taken - seen and max(len(content), unpacked_size(content, _LARGE)) < _LARGE:
            corpus.append(content)
        seen |= steps.taken
        tried, accepted = tried + 1, accepted + outcome.accepted
        slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.times)
    lines = len({(file, line) for file, _, line in seen})
    kept = len(corpus) - len(parser.files)
    return Report(tried, accepted, lines, kept, slowest, largest, outcome.problem, content)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--files", type=int, default=10_000, help="malformed files for each parser")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="parsers with this in their name")
    options.add_argument("--save", type=Path, default=Path("runs/fuzz"), help="folder for what is found")
    given = options.parse_args()
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        for parser in all_parsers(Path(folder)):
            if given.only not in parser.name:
                continue
            report = fuzz(parser, given.files, given.seed, Path(folder))
            print(
                f"{parser.name}: {report.tried} files tried, {report.tried - report.accepted} refused,"
                f" {report.accepted} read; {report.lines} lines reached, {report.kept} files kept;"
                f" slowest {report.seconds:.3f} s, most memory {report.times:.1f} times the content",
                flush=True,
            )
            if report.problem:
                given.save.mkdir(parents=True, exist_ok=True)
                saved = given.save / Path(parser.file_name).name
                saved.write_bytes(report.content)
                print(f"  {report.problem}; the file is {saved}", flush=True)
                found = 1
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Studies that are kept, in results/, and the tables that docs have of them.

python -m experiments.accuracy.recorded

writes the tables anew. In a document a table stands between two comments, of which the first names a file
in results/ and one of its studies:

<!-- results/cifar10.json: small_cnn, 4 epochs -->
<!-- end of results -->
"""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import command_line
from decoupled.errors import UsageError
from decoupled.training.workdir import write_whole
from experiments.accuracy.costs import Costs
from experiments.accuracy.page import markdown
from experiments.accuracy.runs import Run
from experiments.accuracy.study import Finding

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "docs" / "results.md",)
_TABLE = re.compile(
    r"(?P<start><!-- (?P<file>results/[\w.-]+): (?P<network>\w+), (?P<epochs>\d+) epochs -->\n)"
    r".*?(?P<end><!-- end of results -->)",
    re.DOTALL,
)


def keep(told: dict[str, Any], path: Path) -> None:
    """Puts a study beside those in a file, in the place of one of the same network and length."""

    def name(study: dict[str, Any]) -> tuple[Any, ...]:
        return study["network"], study["epochs"]

    others = [study for study in _studies(path) if name(study) != name(told)] if path.exists() else []
    studies = sorted([*others, {**told, "commit": commit()}], key=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"studies": studies}, indent=2) + "\n")


def with_tables(text: str, root: Path = ROOT) -> str:
    """A document with every table as it is recorded.

    Raises:
      UsageError: it names what is not recorded.
    """

    def table(found: re.Match[str]) -> str:
        file, network, epochs = found["file"], found["network"], int(found["epochs"])
        for study in _studies(root / file):
            if (study["network"], study["epochs"]) == (network, epochs):
                return f"{found['start']}\n{table_of(study)}\n\n{found['end']}"
        raise UsageError(f"{file} has no study of {network}, {epochs} epochs: record one")

    return _TABLE.sub(table, text)


def table_of(study: dict[str, Any]) -> str:
    """The table, and below it how it came about."""
    device, versions = study["device"], study["versions"]
    on = (
        f"{device['devices']} {device['kind']}"
        if device["kind"] != "cpu"
        else f"{device['cores']} CPU cores"
    )
    return (
        f"{markdown([_finding(method) for method in study['methods']])}\n\n"
        f"`{study['command']}` on {on}, jax {versions['jax']}, commit {study['commit']};"
        f" {study['seeds']} seeds."
    )


def commit() -> str:
    """Of the code that runs, with a + where files differ from it; "unknown" outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _studies(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["studies"]
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: record a study there") from None


def _finding(told: dict[str, Any]) -> Finding:
    """The inverse of `Finding.told`."""
    runs = [Run(**run) for run in told["runs"]]
    return Finding(told["method"], told["rates"], told["tried"], runs, Costs(**told["costs"]))


def main(documents: Sequence[Path] = DOCUMENTS) -> None:
    for path in documents:
        write_whole(path, with_tables(path.read_text(encoding="utf-8")))
        print(f"written: {path}")


if __name__ == "__main__":
    command_line.run("recorded", main)

"""Runs a command as a person would, from the repository's root, and reads what it left."""

import re
import subprocess
from pathlib import Path

import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent


# Warnings of this repository's files. Elsewhere pytest makes errors of them; a process only prints them.
_WARNING = re.compile(rf"{re.escape(str(ROOT))}/(?!\.venv).*Warning: .*")


def run(command, **options):
    """The finished process, with what it printed as text; a failure is not raised, a warning is."""
    command = [str(word) for word in command]
    options = {"cwd": ROOT, **options}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, **options)
    assert not _WARNING.findall(done.stderr)
    return done


def weights(workdir):
    """Those that a finished run left, as orbax stores them."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((workdir / "trained").absolute())

"""Runs a command as a person would, from the repository's root."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(command, **options):
    """The finished process, with what it printed as text; a failure is not raised."""
    command = [str(word) for word in command]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)

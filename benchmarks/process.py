"""A measurement in a process of its own, which ends with one line of JSON on its standard output."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def json_of(command: Sequence[str], xla_flags: str, timeout_seconds: float) -> dict[str, Any]:
    """Runs a module of this project.

    Args:
      command: ("python", "-m", ...); run by the interpreter that runs this, in the project's folder.
      xla_flags: the whole value of XLA_FLAGS.

    Returns:
      What its last line of output says, or "error": the last lines of what it complained.
    """
    try:
        done = subprocess.run(
            [sys.executable, *command[1:]],
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # it may complain in the words, and letters, of its system
            env={**os.environ, "XLA_FLAGS": xla_flags},
            cwd=Path(__file__).parent.parent,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {timeout_seconds:g} s"}
    if done.returncode:
        return {"error": "\n".join(done.stderr.strip().splitlines()[-12:])}
    return json.loads(done.stdout.splitlines()[-1])

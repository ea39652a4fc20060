"""The config that a run has left in its folder, as config.json."""

import json
from pathlib import Path

from decoupled.errors import UsageError
from decoupled.extras import extra

with extra("train"):
    from ml_collections import ConfigDict, FrozenConfigDict

CONFIG_FILE = "config.json"


def config_of_run(workdir: Path) -> ConfigDict:
    """The config of the run in a folder; its fields are not checked.

    Raises:
      UsageError: the folder holds no run.
    """
    try:
        return read_config(workdir / CONFIG_FILE)
    except UsageError as error:
        raise UsageError(f"{workdir} holds no run of train.py: {error}") from error


def read_config(path: Path) -> ConfigDict:
    """A config as the run had it; its fields are not checked.

    Raises:
      UsageError: the file cannot be read, or is not what a run writes.
    """
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path} is not the config.json of a run: it holds a {type(fields).__name__}")
    try:
        # JSON knows lists alone, configs have tuples; a frozen config makes tuples of lists.
        return ConfigDict(FrozenConfigDict(fields).to_dict())
    except (AttributeError, RecursionError, ValueError) as error:
        raise UsageError(f"{path} is not the config.json of a run: {error}") from error

"""Whether a run can go on with a config, given the one that it has left in its folder."""

import json
from pathlib import Path
from typing import Any

from decoupled.errors import UsageError
from decoupled.training.saved_config import CONFIG_FILE, read_config

# They say where data are found, not what is in them.
_HARMLESS = ("data_dir", "download")


def changes_to_go_on_with(
    path: Path, config: dict[str, Any], finished: bool, accept_changes: bool
) -> list[str]:
    """How a config differs from that of the run in a folder, which can go on so.

    Args:
      path: of the folder.
      finished: whether the run is.
      accept_changes: go on even if its config was another.

    Raises:
      UsageError: it cannot.
    """
    old = _config_before(path)
    more_epochs = config.get("epochs", 0) > old.get("epochs", 0)
    if finished and not more_epochs:
        raise UsageError(
            f"{path} already holds a finished run: choose another --workdir, or train it further with"
            f" --config.epochs above {old.get('epochs')}"
        )
    changes = changed_fields(old, config)
    refused, why = changes, ""
    if more_epochs and _drawn_out_over_epochs(config):
        why = (
            "; a schedule is drawn out over all epochs, and so is a warm-up; runs of constant rates"
            " (config.optimizer.schedule=constant) need no flag"
        )
    elif more_epochs:
        refused = [change for change in changes if not change.startswith("config.epochs ")]
    if refused and not accept_changes:
        raise UsageError(
            f"{path} holds {'a finished' if finished else 'an unfinished'} run with another config"
            f" ({'; '.join(refused)}{why}): choose another --workdir, or go on with --accept_config_changes"
        )
    return changes


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """How two configs differ, field by field, but for where the data are found."""
    flat_old, flat_new = (_flat(json.loads(json.dumps(config))) for config in (old, new))
    return [
        f"config.{field} was {flat_old.get(field, 'absent')!r}, is {flat_new.get(field, 'absent')!r}"
        for field in sorted(flat_old.keys() | flat_new.keys())
        if field not in _HARMLESS and flat_old.get(field) != flat_new.get(field)
    ]


def _config_before(path: Path) -> dict[str, Any]:
    """The config of the run in a folder.

    Raises:
      UsageError: there is none, or a damaged one.
    """
    try:
        config = read_config(path / CONFIG_FILE).to_dict()
        if not isinstance(epochs := config.get("epochs", 0), int):
            raise UsageError(f"{path / CONFIG_FILE} is damaged: epochs is {epochs!r}")
    except UsageError as error:
        raise UsageError(
            f"{path} already holds a run, but not its config ({error}): choose another --workdir"
        ) from error
    return config


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        fields |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return fields


def _drawn_out_over_epochs(config: dict[str, Any]) -> bool:
    """Whether the number of epochs tells on every step, by its learning rate, and not on the end alone."""
    as_if_constant = {"schedule": "constant", "warmup_fraction": 0}
    return any(
        value != as_if_constant.get(field.rpartition(".")[2], value)
        for field, value in _flat(config).items()
    )

"""What --config may name: a Python file with `get_config`, or the config.json that a run has left."""

import inspect
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

try:
    from ml_collections import ConfigDict, config_flags
except ModuleNotFoundError as error:
    sys.exit(f"{Path(sys.argv[0]).name}: {error.name} is missing: pip install 'decoupled[train]'")

flags.disclaim_key_flags()  # --help lists the flag with the program that has it.


class BadConfigFile(flags.Error):
    """A config file that gives no config; the message names it, in one line."""


def define_flag(help_string: str) -> flags.FlagHolder:
    """The flag --config, whose fields --config.FIELD=VALUE may override."""
    holder = config_flags.DEFINE_config_file("config", None, help_string)
    flags.FLAGS["config"].parser = _Parser()
    return holder


def name_of(config: flags.FlagHolder) -> str:
    """What to call a run of this config: by its file, or by its data if that is another run's."""
    path = Path(config_flags.get_config_filename(flags.FLAGS[config.name]).partition(":")[0])
    return config.value.dataset.replace(":", ".") if path.suffix == ".json" else path.stem


class _Parser(flags.ArgumentParser):
    """That of `ml_collections` passes on what goes wrong in a file, or hides it until the end."""

    def parse(self, argument: str) -> ConfigDict:
        if not argument:
            raise BadConfigFile("--config is empty: name a file, like configs/digits.py")
        file, *variant = argument.split(":", 1)
        try:
            Path(file).read_bytes()
        except OSError as error:
            saved = Path(file) / "config.json"
            hint = f": choose {saved}" if saved.exists() else ""
            raise BadConfigFile(f"cannot read {file!r}: {error.strerror}{hint}") from error
        config = _saved(file, variant) if file.endswith(".json") else _returned(file, variant)
        config.lock()
        return config


def _saved(file: str, variant: list[str]) -> ConfigDict:
    from decoupled.errors import UsageError
    from decoupled.training.saved_config import read_config

    if variant:
        raise BadConfigFile(f"{file} has no variants: leave out {':' + variant[0]!r}")
    try:
        return read_config(Path(file))
    except UsageError as error:
        raise BadConfigFile(str(error)) from error


def _returned(file: str, variant: list[str]) -> ConfigDict:
    try:
        get_config = getattr(_executed(file), "get_config", None)
        if not callable(get_config):
            raise BadConfigFile(f"{file} has no get_config(): write one, as configs/digits.py does")
        _check_variant(file, get_config, variant)
        config = get_config(*variant)
    except BadConfigFile:
        raise
    except Exception as error:  # Whatever a person's file may raise.
        raise BadConfigFile(f"{_place(file, error)}: {_said(error)}") from error
    if type(config) is not ConfigDict:
        raise BadConfigFile(
            f"get_config() in {file} returns a {type(config).__name__}: let it return a"
            " ml_collections.ConfigDict, as configs/digits.py does"
        )
    return config


def _executed(file: str) -> Any:
    loader = SourceFileLoader("config_file_given", file)
    module = ModuleType(loader.name)
    module.__file__ = file
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


def _check_variant(file: str, get_config: Any, variant: list[str]) -> None:
    try:
        inspect.signature(get_config).bind(*variant)
    except TypeError as error:
        if variant:
            problem = f"takes no variant: leave out {':' + variant[0]!r}"
        else:
            problem = f"takes a variant: add one, --config={file}:VARIANT"
        raise BadConfigFile(f"get_config() in {file} {problem}") from error


def _place(file: str, error: Exception) -> str:
    """The line of the file that the error comes from, where there is one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}, line {lines[-1]}" if lines else file


def _said(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"

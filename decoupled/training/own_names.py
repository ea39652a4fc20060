"""Names of one's own in a config, `module:function`: what they name, called with what it asks for.

A module is imported as `python -m` would: the folder that the command is run in comes first.
"""

import contextlib
import difflib
import importlib
import inspect
import os
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from decoupled.errors import DataError, Interrupted, MissingPackage, TrainingError, UsageError

_ALIKE = 0.6
# Whose lines are not the mistake of whoever wrote a function: this package's, Python's, installed ones.
_PACKAGE = os.path.realpath(Path(__file__).parent.parent)
_PYTHON = os.path.realpath(sysconfig.get_path("stdlib"))
_INSTALLED = ("site-packages", "dist-packages")


def is_own(name: object) -> bool:
    """Whether a name is one's own, as against one that a config knows."""
    return isinstance(name, str) and ":" in name


def find(field: str, name: str) -> Any:
    """What `module:function` names.

    Args:
      field: of the config that has the name, as in "model.name".

    Raises:
      UsageError: there is no such module, or nothing of that name in it; or importing it fails.
    """
    module_name, _, function_name = name.partition(":")
    wrong = f"config.{field} is {name!r}"
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise UsageError(f"{wrong}: write module:function, as in an import, like network:make")
    if module_name.endswith(".py"):
        raise UsageError(f"{wrong}: leave out .py, as in an import: {module_name[:-3]}:{function_name}")
    module = _imported(wrong, module_name)
    try:
        return getattr(module, function_name)
    except AttributeError as error:
        names = [key for key, value in vars(module).items() if callable(value)]
        likely = _suggested(function_name, names)
        raise UsageError(
            f"{wrong}, but there is no {function_name} in {module.__file__}{likely}"
        ) from error


def find_function(field: str, name: str) -> Callable:
    """As `find`, of a function.

    Raises:
      UsageError: it is none, too.
    """
    function = find(field, name)
    if not callable(function):
        raise UsageError(
            f"config.{field} is {name!r}, which is a {type(function).__name__}: name a function"
        )
    return function


def call(field: str, name: str, given: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """What a function of one's own returns, called with those of `given` and `options` that it asks for.

    Args:
      options: the section `options` beside the field, where there is one: each of them must be asked for,
        by name or as `**options`.

    Raises:
      UsageError: there is no such function, it asks for something else, or it fails.
    """
    function = find_function(field, name)
    section = "" if options is None else f"config.{field.rpartition('.')[0]}.options"
    arguments = _asked_for(f"config.{field} is {name!r}", section, function, given, options or {})
    with theirs(field, name):
        return function(**arguments)


@contextmanager
def theirs(field: str, name: str) -> Iterator[None]:
    """Tells whatever goes wrong within as a mistake in what a config names, with its traceback in a file.

    Raises:
      UsageError: in the place of any other error; one line.
    """
    with _theirs(f"config.{field} is {name!r}"):
        yield


@contextmanager
def theirs_if_so(names: Mapping[str, str], folder: Path | None = None) -> Iterator[None]:
    """As `theirs`, where it is not known beforehand whose code fails: theirs, if some of it was running.

    Args:
      names: those of one's own in a config, by field; where there are none, errors stay as they are.
      folder: for the file with the traceback; without one, where the system has such files.
    """
    try:
        yield
    except (DataError, Interrupted, MissingPackage, TrainingError, UsageError):
        raise
    except Exception as error:
        if not names or _place(error) is None:
            raise
        wrong = "; ".join(f"config.{field} is {name!r}" for field, name in names.items())
        raise _told(f"{wrong}, and code of one's own fails", error, folder) from error


@contextmanager
def _theirs(wrong: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:  # Whatever someone's function may raise.
        if isinstance(error, Interrupted):
            raise
        raise _told(f"{wrong}, which fails", error) from error


def _told(what: str, error: BaseException, folder: Path | None = None) -> UsageError:
    place = _place(error)
    where = f"{place}: " if place else ""
    return UsageError(f"{what}: {where}{_said(error)} (traceback in {_logged(error, folder)})")


def _imported(wrong: str, name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    with _theirs(wrong):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # What it imports itself may be missing too, which is a mistake in it.
            if not f"{name}.".startswith(f"{error.name}."):
                raise
            missing = error.name
    likely = _suggested(name, [path.stem for path in Path(here).glob("*.py")])
    raise UsageError(f"{wrong}, but no module {missing} can be imported from {here}{likely}")


def _asked_for(
    wrong: str, section: str, function: Callable, given: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a function: those of `given` that it names, and all `options`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{wrong}, which does not tell what it asks for: name a Python function"
        ) from error
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option in given:
            raise UsageError(f"{section}.{option} has the name of what is given already: choose another")
        if option not in named and not takes_any:
            raise UsageError(
                f"nothing reads {section}.{option}: {wrong}, which asks for"
                f" {', '.join(named) or 'nothing'}{_suggested(option, named)}"
            )
    known = {**given, **options}
    for p in parameters:
        variadic = p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if p.default is p.empty and not variadic and (p.name not in named or p.name not in known):
            what = "asks for" if p.name in named else "takes by position alone"
            raise UsageError(
                f"{wrong}, which {what} {p.name}, but what is given by name is {', '.join(known)}"
                f"{_suggested(p.name, known)}{f' (more in {section})' if section else ''}"
            )
    return {name: value for name, value in known.items() if name in named or name in options}


def _suggested(name: str, names: Collection[str]) -> str:
    likely = difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)
    return f": did you mean {likely[0]}?" if likely else ""


def _place(error: BaseException) -> str | None:
    """The last line, on the way to the error, that neither this package nor an installed one has."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = os.path.realpath(frame.filename)
        others = any(file.startswith(f"{folder}{os.sep}") for folder in (_PACKAGE, _PYTHON))
        if os.path.isfile(file) and not others and not any(part in _INSTALLED for part in Path(file).parts):
            return f"{frame.filename}, line {frame.lineno}"
    return None


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    first = next((line for line in text.splitlines() if line.strip()), "")
    return ": ".join(part for part in (type(error).__name__, " ".join(first.split())) if part)


def _logged(error: BaseException, folder: Path | None) -> str:
    """Writes a traceback to a new file; returns where, or why not."""
    lines = traceback.format_exception(error)
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="decoupled-", suffix=".log", dir=folder)
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
        return path
    return "no file, for none can be written"

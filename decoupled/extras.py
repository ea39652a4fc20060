"""Packages that not every use needs: which extra of this package installs them."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from decoupled.errors import MissingPackage


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of what `pip install 'decoupled[name]'` installs.

    Raises:
      MissingPackage: one of them is not there; the message has that command.
    """
    try:
        yield
    except MissingPackage:  # Told already, further down, by a smaller extra.
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        if package == __package__:
            raise
        message = f"{package} is missing: pip install '{__package__}[{name}]'"
        raise MissingPackage(message, name=package) from error


def on_demand(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports names when they are asked for, since some need an extra.

    Args:
      package: its `__name__`.
      homes: of each name, the module in it that has it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get

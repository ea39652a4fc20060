"""Packages that not every use needs: which extra of this package installs them."""

from collections.abc import Iterator
from contextlib import contextmanager

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

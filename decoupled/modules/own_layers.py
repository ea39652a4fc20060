"""Keeps backward rules away from the Linen layers that estimators are made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_WITHIN = ContextVar("within an estimator's own layers", default=False)


@contextmanager
def own_layers() -> Iterator[None]:
    """What is applied in here is an estimator's affair, not the model's."""
    token = _WITHIN.set(True)
    try:
        yield
    finally:
        _WITHIN.reset(token)


def within_own_layers() -> bool:
    """Whether an estimator's layers are being applied."""
    return _WITHIN.get()

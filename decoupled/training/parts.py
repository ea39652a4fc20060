"""Parts of a trained network: a module or estimator in its own file; all of it as plain Flax variables."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from decoupled.errors import DataError, TrainingError, UsageError
from decoupled.learner import Learner
from decoupled.stack import Stack, modules_of, put, take
from decoupled.state import EstimatorState, LearnerState, ModuleState
from decoupled.training.checkpoints import from_host, to_host
from decoupled.types import PyTree


def save_module(path: str | os.PathLike[str], learner: Learner, state: LearnerState, name: str) -> None:
    """Writes a module's parameters and mutable state, without its optimizer's, to a NumPy .npz file.

    Args:
      name: of the module, as tables of a run have it.

    Raises:
      UsageError: no module, or more than one, is called so.
      TrainingError: the file cannot be written.
    """
    module = _get(learner, state.modules, name)
    _save(path, (module.params, module.state))


def load_module(
    path: str | os.PathLike[str], learner: Learner, state: LearnerState, name: str
) -> LearnerState:
    """A state whose module `name` is the one in a file, with an optimizer state that starts anew.

    Args:
      learner: of the network to put it in, whose module has the same parameters, whatever its name.

    Raises:
      UsageError: no module, or more than one, is called so.
      DataError: there is no such file, or it holds another kind of module.
    """
    module = _get(learner, state.modules, name)
    params, mutable = _load(path, (module.params, module.state))
    new = ModuleState(params, mutable, learner.rules.optimizer.init(params))
    return state._replace(modules=_set(learner, state.modules, name, new))


def save_estimator(path: str | os.PathLike[str], learner: Learner, state: LearnerState, name: str) -> None:
    """As `save_module`, of the estimator above the module `name`."""
    _save(path, _get(learner, state.estimators, name).params)


def load_estimator(
    path: str | os.PathLike[str], learner: Learner, state: LearnerState, name: str
) -> LearnerState:
    """As `load_module`, of the estimator above the module `name`."""
    params = _load(path, _get(learner, state.estimators, name).params)
    k, _ = _place(learner, name, len(state.estimators))
    optimizer = learner.rules.optimizer_of(learner.chain.estimators[k])
    new = EstimatorState(params, optimizer.init(params))
    return state._replace(estimators=_set(learner, state.estimators, name, new))


def flax_variables(learner: Learner, state: LearnerState) -> dict[str, Any]:
    """All modules' variables as Flax has them: {collection: {module's name: arrays}}.

    A Linen model whose submodules have the names of the modules can be applied to it, without this package;
    `flax.serialization.msgpack_serialize` makes bytes of it. Where several layers make one module, each has
    its own entry.
    """
    variables: dict[str, Any] = {}
    whole = learner.unstack(state)
    for module, own in zip(learner.modules, whole.modules, strict=True):
        composed = isinstance(own.params, tuple)
        names = module.name.split("+") if composed else [module.name]
        parts = zip(own.params, own.state, strict=True) if composed else [(own.params, own.state)]
        for name, (params, mutable) in zip(names, parts, strict=True):
            for collection, values in {"params": params, **mutable}.items():
                variables.setdefault(collection, {})[name] = _plain(values)
    return variables


def _plain(values: PyTree) -> PyTree:
    values = nnx.to_pure_dict(values) if isinstance(values, nnx.State) else values
    return jax.tree.map(np.asarray, values)


def _place(learner: Learner, name: str, links: int) -> tuple[int, int | None]:
    """The link a module belongs to, and its slot in it if that is a stack."""
    places: list[tuple[int, int | None]] = []
    names: list[str] = []
    for k, link in enumerate(learner.chain.links[:links]):
        for i, module in enumerate(modules_of(link)):
            names.append(module.name)
            if module.name == name:
                places.append((k, i if isinstance(link, Stack) else None))
    if len(places) != 1:
        found = f"{len(places)} modules are" if places else "no module is"
        raise UsageError(f"{found} called {name!r}: choose one of {', '.join(names)}")
    return places[0]


def _get(learner: Learner, states: Sequence[Any], name: str) -> Any:
    k, slot = _place(learner, name, len(states))
    return states[k] if slot is None else take(states[k], slot)


def _set(learner: Learner, states: Sequence[Any], name: str, new: Any) -> tuple[Any, ...]:
    k, slot = _place(learner, name, len(states))
    new = new if slot is None else put(states[k], new, slot)
    return (*states[:k], new, *states[k + 1 :])


def _save(where: str | os.PathLike[str], tree: PyTree) -> None:
    path = Path(where).expanduser()
    leaves: dict[str, Any] = dict(zip(_names(tree), to_host(tree), strict=True))
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **leaves)
        os.replace(partial, path)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror}") from error


def _load(where: str | os.PathLike[str], like: PyTree) -> PyTree:
    path = Path(where).expanduser()
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            held = sorted(found.files) if isinstance(found, np.lib.npyio.NpzFile) else "one array"
            if held != sorted(_names(like)):
                raise DataError(f"{path} holds {held}, which is not what this part has")
            leaves = [found[name] for name in _names(like)]
        return jax.tree.map(jax.numpy.asarray, from_host(like, leaves))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read, or is of another kind: {error}") from error


def _names(tree: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]

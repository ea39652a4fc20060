"""Parts of a trained network: a module or estimator in its own file; all of it as plain Flax variables."""

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx, serialization

from decoupled.errors import DataError, TrainingError, UsageError
from decoupled.learning.learner import Learner
from decoupled.learning.stack import Stack, modules_of, put, take
from decoupled.learning.state import LearnerState, ModuleState
from decoupled.modules.chains import joined_name, told_apart
from decoupled.training.checkpoints import from_host, to_host
from decoupled.types import Module, PyTree


def save_module(path: str | os.PathLike[str], learner: Learner, state: LearnerState, name: str) -> None:
    """Writes a module's parameters and mutable state, without its optimizer's, to a NumPy .npz file.

    Args:
      name: of the module, as tables of a run have it; numbered, where several are called alike: Dense_0.

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
    k, _ = _place(learner, name, len(state.modules))
    optimizer = learner.rules.optimizer_for(modules_of(learner.chain.links[k])[0])
    new = ModuleState(params, mutable, optimizer.init(params))
    return state._replace(modules=_set(learner, state.modules, name, new))


def save_estimator(path: str | os.PathLike[str], learner: Learner, state: LearnerState, name: str) -> None:
    """As `save_module`, of the estimator above the module `name`."""
    _save(path, _get(learner, state.estimators, name).params)


def load_estimator(
    path: str | os.PathLike[str], learner: Learner, state: LearnerState, name: str
) -> LearnerState:
    """As `load_module`, of the estimator above the module `name`."""
    old = _get(learner, state.estimators, name)
    params = _load(path, old.params)
    k, _ = _place(learner, name, len(state.estimators))
    optimizer = learner.rules.optimizer_of(learner.chain.estimators[k])
    new = old._replace(params=params, opt_state=optimizer.init(params))
    return state._replace(estimators=_set(learner, state.estimators, name, new))


def flax_variables(learner: Learner, state: LearnerState) -> dict[str, Any]:
    """All modules' variables as Flax has them: {collection: {module's name: arrays}}.

    A Linen model whose submodules have the names of the modules can be applied to it, without this package;
    `flax.serialization.msgpack_serialize` makes bytes of it. Where several layers make one module, each has
    its own entry, or one within the module's, if `compose` was given a name for it. Names that occur more
    than once are numbered from 0, as in Linen: of three `from_linen(nn.Dense(4))` the entries are Dense_0,
    Dense_1 and Dense_2. Tuples and the like are dicts, as `flax.serialization.to_state_dict` makes them.

    Raises:
      UsageError: the state of a module of one's own is not a dict of collections.
    """
    whole = learner.unstack(state)
    return _variables(learner.modules, [m.params for m in whole.modules], [m.state for m in whole.modules])


def _variables(
    modules: Sequence[Module], params: Sequence[PyTree], states: Sequence[PyTree]
) -> dict[str, Any]:
    layers = list(_layers(modules, params, states))
    variables: dict[str, Any] = {}
    names = told_apart([layer.name for layer, _, _ in layers])
    for name, (layer, own_params, own_state) in zip(names, layers, strict=True):
        if layer.parts:
            collections = _variables(layer.parts, own_params, own_state)
        elif isinstance(own_state, Mapping):
            collections = {k: _plain(values) for k, values in {"params": own_params, **own_state}.items()}
        else:
            raise UsageError(
                f"module {layer.name}: its state is a {type(own_state).__name__}, but Flax's variables come"
                " in collections: make it a dict of them, as in {'batch_stats': ...}"
            )
        for collection, values in collections.items():
            variables.setdefault(collection, {})[name] = values
    return variables


def _layers(
    modules: Sequence[Module], params: Sequence[PyTree], states: Sequence[PyTree]
) -> Iterator[tuple[Module, PyTree, PyTree]]:
    """Each module with what it owns, or its parts where it has no name but theirs."""
    for module, own_params, own_state in zip(modules, params, states, strict=True):
        if module.parts and module.name == joined_name(module.parts):
            yield from _layers(module.parts, own_params, own_state)
        else:
            yield module, own_params, own_state


def _plain(values: PyTree) -> PyTree:
    if isinstance(values, nnx.State):
        values = nnx.to_pure_dict(values)
    else:
        values = serialization.to_state_dict(nn.meta.unbox(values))
    leaves, structure = jax.tree.flatten(values)
    return jax.tree.unflatten(structure, to_host(leaves))


def _place(learner: Learner, name: str, links: int) -> tuple[int, int | None]:
    """The link a module belongs to, and its slot in it if that is a stack."""
    places: list[tuple[int, int | None]] = []
    plain: list[str] = []
    for k, link in enumerate(learner.chain.links[:links]):
        for i, module in enumerate(modules_of(link)):
            plain.append(module.name)
            places.append((k, i if isinstance(link, Stack) else None))
    names = learner.chain.names[: len(places)]
    if name in names:
        return places[names.index(name)]
    found = f"{plain.count(name)} modules are" if name in plain else "no module is"
    raise UsageError(f"{found} called {name!r}: choose one of {', '.join(names)}")


def _get(learner: Learner, states: Sequence[PyTree], name: str) -> PyTree:
    k, slot = _place(learner, name, len(states))
    return states[k] if slot is None else take(states[k], slot)


def _set(learner: Learner, states: Sequence[PyTree], name: str, new: PyTree) -> tuple[PyTree, ...]:
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
            # NumPy writes bfloat16 as two bytes of no type.
            leaves = [
                leaf.view(jax.numpy.bfloat16) if leaf.dtype == "V2" else leaf
                for leaf in (found[name] for name in _names(like))
            ]
        return jax.tree.map(jax.numpy.asarray, from_host(like, leaves))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read, or is of another kind: {error}") from error


def _names(tree: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]

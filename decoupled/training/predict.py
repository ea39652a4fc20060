"""Predictions of a trained run, from its workdir alone.

predict = load_predictor("runs/digits/20260101-120000")
classes = predict(images).argmax(-1)
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoupled.data.augment import standardise
from decoupled.errors import DataError, UsageError
from decoupled.learning.state import LearnerState
from decoupled.leaves import is_real
from decoupled.training import evaluated, load_trained
from decoupled.training.builder import make_learner_of
from decoupled.training.config_checks import own_names
from decoupled.training.own_names import theirs_if_so
from decoupled.training.saved_config import CONFIG_FILE, config_of_run
from decoupled.training.saved_shapes import from_json
from decoupled.types import PyTree

_KINDS = (jnp.floating, jnp.integer, jnp.bool_)


def load_predictor(workdir: str | os.PathLike[str], which: str = "trained") -> Callable[[PyTree], PyTree]:
    """The network of a run, with the normalisation of what comes in that it was trained with.

    Args:
      workdir: folder that `train.py` has written. The data set is not needed.
      which: "trained", as it was when the run ended; or "best", where its accuracy on held-out examples
        was highest (`best_validation` in summary.json), of a run that has not ended too.

    Returns:
      A function from images as the data set has them here, (examples, height, width, channels) in uint8
      from 0 to 255 (scikit-learn's digits, which are from 0 to 16, times 255 / 16), to logits,
      (examples, classes) in float32; of a network trained on other inputs, from (examples, ...) of their
      kind and structure. It raises UsageError for inputs of another kind.

    Raises:
      UsageError: the folder holds no run, or its config is none of this version; or `which` is neither.
      DataError: it holds no such network, or a damaged one.
    """
    workdir = Path(workdir).expanduser()
    config = config_of_run(workdir)
    try:
        data = json.loads((workdir / "data.json").read_bytes())
        num_classes, (wanted, y) = data["num_classes"], _examples(data)
        statistics = [None if (s := data[name]) is None else np.array(s) for name in ("mean", "deviation")]
        inputs = standardise(*statistics)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{workdir / 'data.json'} is missing or damaged ({error}): train anew") from error
    try:
        learner = make_learner_of(config, num_classes, all_steps=1)
    except UsageError as error:
        raise UsageError(f"{workdir / CONFIG_FILE}: {error}") from error
    x = jax.eval_shape(inputs, wanted)
    with theirs_if_so(own_names(config)):
        like = jax.eval_shape(learner.init, jax.random.key(0), x, y)
    state = evaluated(load_trained(workdir, like, which))

    @jax.jit
    def network(state: LearnerState, images: PyTree) -> PyTree:
        output = learner.predict(state, inputs(images))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if is_real(leaf) else leaf, output)

    def predict(images: PyTree) -> PyTree:
        if jax.tree.structure(images) != jax.tree.structure(wanted):
            raise UsageError(f"images are {_told(images)}, but this network takes {_told(wanted)}")
        for (path, given), (_, one) in zip(
            *(jax.tree_util.tree_leaves_with_path(tree) for tree in (images, wanted)), strict=True
        ):
            shape, dtype = one.shape[1:], one.dtype
            if given.shape[1:] != shape or not _serves(given.dtype, dtype, statistics[0] is not None):
                raise UsageError(
                    f"images{jax.tree_util.keystr(path)} are {given.dtype} of shape {given.shape}, but this"
                    f" network takes {dtype} of shape (examples, {', '.join(map(str, shape))})"
                )
        return network(state, images)

    return predict


def _examples(data: dict[str, Any]) -> tuple[PyTree, PyTree]:
    """Shapes of inputs and targets of one example, as data.json has them."""
    if "inputs" in data:
        return from_json(data["inputs"]), from_json(data["targets"])
    # Of a run before they could be several arrays, or anything but images.
    old = {"target_shape": (), "target_dtype": "int32", "dtype": "uint8", **data}
    targets = {"shape": old["target_shape"], "dtype": old["target_dtype"]}
    return from_json({"shape": old["image_shape"], "dtype": old["dtype"]}), from_json(targets)


def _told(tree: PyTree) -> str:
    structure = str(jax.tree.structure(tree))
    return structure.removeprefix("PyTreeDef(").removesuffix(")").replace("*", "array")


def _serves(given: Any, wanted: np.dtype, standardised: bool) -> bool:
    """Whether inputs of one type mean what those of another do: numbers of a kind, in any width."""
    if standardised:
        return given == wanted
    return any(jnp.issubdtype(given, kind) and jnp.issubdtype(wanted, kind) for kind in _KINDS)

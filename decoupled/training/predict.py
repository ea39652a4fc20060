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
from decoupled.shapes import AnyArray, Shaped
from decoupled.training import evaluated, load_trained
from decoupled.training.builder import make_learner_of
from decoupled.training.config_checks import own_names
from decoupled.training.own_names import theirs_if_so
from decoupled.training.saved_config import CONFIG_FILE, config_of_run
from decoupled.types import Array

_KINDS = (jnp.floating, jnp.integer, jnp.bool_)


def load_predictor(workdir: str | os.PathLike[str], which: str = "trained") -> Callable[[AnyArray], Array]:
    """The network of a run, with the normalisation of what comes in that it was trained with.

    Args:
      workdir: folder that `train.py` has written. The data set is not needed.
      which: "trained", as it was when the run ended; or "best", where its accuracy on held-out examples
        was highest (`best_validation` in summary.json), of a run that has not ended too.

    Returns:
      A function from images as the data set has them here, (examples, height, width, channels) in uint8
      from 0 to 255 (scikit-learn's digits, which are from 0 to 16, times 255 / 16), to logits,
      (examples, classes) in float32; of a network trained on other inputs, from (examples, ...) of their
      kind. It raises UsageError for inputs of another kind.

    Raises:
      UsageError: the folder holds no run, or its config is none of this version; or `which` is neither.
      DataError: it holds no such network, or a damaged one.
    """
    workdir = Path(workdir).expanduser()
    config = config_of_run(workdir)
    try:
        data = json.loads((workdir / "data.json").read_bytes())
        shape, num_classes = tuple(data["image_shape"]), data["num_classes"]
        statistics = [None if (s := data[name]) is None else np.array(s) for name in ("mean", "deviation")]
        inputs = standardise(*statistics)
        # Of a run before inputs could be anything else, nothing is told of them.
        dtype = np.dtype(data.get("dtype", "uint8"))
        y = jax.ShapeDtypeStruct((1, *data.get("target_shape", ())), data.get("target_dtype", "int32"))
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{workdir / 'data.json'} is missing or damaged ({error}): train anew") from error
    try:
        learner = make_learner_of(config, num_classes, all_steps=1)
    except UsageError as error:
        raise UsageError(f"{workdir / CONFIG_FILE}: {error}") from error
    x = jax.eval_shape(inputs, jax.ShapeDtypeStruct((1, *shape), dtype))
    with theirs_if_so(own_names(config)):
        like = jax.eval_shape(learner.init, jax.random.key(0), x, y)
    state = evaluated(load_trained(workdir, like, which))
    network = jax.jit(lambda state, images: learner.predict(state, inputs(images)).astype(jnp.float32))

    def predict(images: Shaped[AnyArray, "batch *shape"]) -> Shaped[Array, "batch *outputs"]:
        if images.shape[1:] != shape or not _serves(images.dtype, dtype, statistics[0] is not None):
            raise UsageError(
                f"images are {images.dtype} of shape {images.shape}, but this network takes {dtype} of"
                f" shape (examples, {', '.join(map(str, shape))})"
            )
        return network(state, images)

    return predict


def _serves(given: Any, wanted: np.dtype, standardised: bool) -> bool:
    """Whether inputs of one type mean what those of another do: numbers of a kind, in any width."""
    if standardised:
        return given == wanted
    return any(jnp.issubdtype(given, kind) and jnp.issubdtype(wanted, kind) for kind in _KINDS)

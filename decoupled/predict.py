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
import ml_collections
import numpy as np

from decoupled.builder import make_learner_of
from decoupled.data.augment import standardise
from decoupled.errors import DataError, UsageError
from decoupled.training import load_trained
from decoupled.types import Array


def load_predictor(
    workdir: str | os.PathLike[str], which: str = "trained"
) -> Callable[[np.ndarray | Array], Array]:
    """The network of a run, with the normalisation of what comes in that it was trained with.

    Args:
      workdir: folder that `train.py` has written. The data set is not needed.
      which: "trained", as it was when the run ended; or "best", where its accuracy on held-out examples
        was highest (`best_validation` in summary.json), of a run that has not ended too.

    Returns:
      A function from images as the data set has them, (examples, height, width, channels) in uint8, to
      logits, (examples, classes) in float32. It raises UsageError for images of another kind.

    Raises:
      UsageError: the folder holds no run.
      DataError: it holds no such network, or a damaged one.
    """
    workdir = Path(workdir).expanduser()
    config, data = saved_config(workdir), _saved_json(workdir, "data.json")
    try:
        shape, num_classes = tuple(data["image_shape"]), data["num_classes"]
        inputs = standardise(np.array(data["mean"]), np.array(data["deviation"]))
    except KeyError as error:
        raise DataError(f"{workdir}: data.json does not say {error}") from error
    learner = make_learner_of(config, num_classes, all_steps=1)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    like = jax.eval_shape(learner.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.int32))
    state = load_trained(workdir, like, which)
    network = jax.jit(lambda state, images: learner.predict(state, inputs(images)).astype(jnp.float32))

    def predict(images: np.ndarray | Array) -> Array:
        if images.shape[1:] != shape or images.dtype != np.uint8:
            raise UsageError(
                f"images are {images.dtype} of shape {images.shape}, but this network takes uint8 of shape"
                f" (examples, {', '.join(map(str, shape))})"
            )
        return network(state, images)

    return predict


def saved_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of a run, from its workdir.

    Raises:
      UsageError: the folder holds no run.
    """
    return ml_collections.ConfigDict(_tuples(_saved_json(workdir, "config.json")))


def _saved_json(workdir: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((workdir / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{workdir} holds no run of train.py: no {name} can be read there") from error


def _tuples(value: Any) -> Any:
    """JSON knows lists alone; configs have tuples."""
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value

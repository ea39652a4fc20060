"""Names of optimizers, as a config has them, become optax transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from decoupled.errors import UsageError
from decoupled.extras import extra
from decoupled.shapes import AnyArray
from decoupled.training.schedules import PLATEAU, learning_rate
from decoupled.types import PyTree

with extra("train"):
    import ml_collections

_MUON_RMS = 0.2  # of an update of rate 1; Adam's are 1 at first, and about this later (Liu et al.)


def optimizer_of(
    config: ml_collections.ConfigDict, field: str, steps: float
) -> optax.GradientTransformation:
    """The optimizer that a section of a config describes; see configs/base.py.

    Args:
      field: "optimizer" or "estimator_optimizer".
      steps: updates of one module in a run, over which schedules are drawn out.

    Raises:
      UsageError: a field is set that the chosen optimizer or schedule does not have.
    """
    section = config[field]
    _check_read(section, field)
    mask = None if section.get("decay_biases_and_norms", True) else no_bias_and_no_norm
    decay = {"weight_decay": section.get("weight_decay", 0.0), "mask": mask}
    optimizer = OPTIMIZERS[section.name](section, learning_rate(section, steps), decay)
    if section.schedule == PLATEAU:
        optimizer = optax.chain(optimizer, _on_plateau(section))
    # Gradients are shortened before anything else is done with them.
    clip = section.clip_norm
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer


def no_bias_and_no_norm(params: PyTree) -> PyTree:
    """For each parameter, whether weight decay is for it: not for vectors and scalars, nor for biases.

    Scales and biases of normalisation are vectors. A bias of several dimensions, as the heads of attention
    have them, is told by its name.
    """

    def decays(path: tuple, leaf: AnyArray) -> bool:
        names = [jax.tree_util.keystr((part,), simple=True) for part in path]
        return jnp.ndim(leaf) > 1 and "bias" not in names

    return jax.tree_util.tree_map_with_path(decays, params)


def _on_plateau(section: ml_collections.ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Updates that shrink where the `value` that each update is given falls no more."""
    plateau = optax.contrib.reduce_on_plateau(
        section.step_factor,
        section.plateau_patience,
        cooldown=0,
        accumulation_size=section.plateau_steps,
        min_scale=section.final_fraction,
    )

    def init(params: PyTree) -> optax.OptState:
        # It makes its state of the parameters' type, and some modules have none.
        return plateau.init(params if jax.tree.leaves(params) else jnp.zeros(()))

    return optax.GradientTransformationExtraArgs(init, plateau.update)


def _sgd(
    section: ml_collections.ConfigDict, rate: float | optax.Schedule, decay: dict[str, Any]
) -> optax.GradientTransformation:
    """With decay as a part of the gradient (L2), as published rates and decays for SGD mean it."""
    sgd = optax.sgd(rate, section.momentum or None, section.nesterov)
    return optax.chain(optax.add_decayed_weights(**decay), sgd)


def _muon(
    section: ml_collections.ConfigDict, rate: float | optax.Schedule, decay: dict[str, Any]
) -> optax.GradientTransformation:
    """Muon for matrices, scaled as in Liu et al. 2025 (arXiv 2502.16982), equation 4; Adam for all else."""

    def matrices(params: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.ndim(leaf) == 2, params)

    def as_large(update: PyTree) -> PyTree:
        # optax's has a root mean square of 1 / sqrt(rows).
        return jax.tree.map(lambda u: u * _MUON_RMS * u.shape[0] ** 0.5, update)

    return optax.chain(
        optax.contrib.muon(learning_rate=-1.0),  # no descent yet: decay and the rate are to come
        optax.masked(optax.stateless(lambda update, _: as_large(update)), matrices),
        optax.add_decayed_weights(**decay),
        optax.scale_by_learning_rate(rate),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": lambda section, rate, decay: optax.adam(rate),
    "adamw": lambda section, rate, decay: optax.adamw(rate, **decay),
    "sgd": _sgd,
    "lion": lambda section, rate, decay: optax.lion(rate, **decay),
    "muon": _muon,
}
# Which choices read a field that is not 0, and what chooses.
_READ_BY = {
    "momentum": ("name", ("sgd",)),
    "nesterov": ("name", ("sgd",)),
    "weight_decay": ("name", ("adamw", "lion", "muon", "sgd")),
    "final_fraction": ("schedule", ("cosine", "one_cycle", PLATEAU)),
}


def _check_read(section: ml_collections.ConfigDict, field: str) -> None:
    """Refuses what would change nothing."""
    for option, (choice, readers) in _READ_BY.items():
        if section.get(option) and section[choice] not in readers:
            raise UsageError(
                f"config.{field}.{option} is {section[option]}, which {section[choice]} does not have:"
                f" leave it out, or choose {' or '.join(readers)} as config.{field}.{choice}"
            )
    if section.nesterov and not section.momentum:
        raise UsageError(
            f"config.{field}.nesterov is True, but config.{field}.momentum is 0: set it, to 0.9 say"
        )

"""Turns a config into objects: the one place where names become code.

Every field is described, with its default, in configs/base.py.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import ml_collections
import optax

from decoupled import data, estimators, losses, models
from decoupled.data.dataset import Dataset
from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import Context
from decoupled.learner import make_learner
from decoupled.models.norm import NORMS
from decoupled.modules import cut
from decoupled.training.loop import Job
from decoupled.types import Estimator, Module

_T = TypeVar("_T")
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config: ml_collections.ConfigDict) -> Job:
    """All that a run needs, from its config.

    Raises:
      UsageError: a field has a value that cannot be; the message names it.
      DataError: the data set is missing or damaged.
    """
    _check(config)
    _network(config, num_classes=2)  # A rehearsal: mistakes are told before any data is fetched.
    dataset = _dataset(config)
    train, validation = data.hold_out(dataset.train, config.validation_examples)
    modules, estimator = _network(config, dataset.num_classes)
    steps = config.epochs * data.batches_per_epoch(train, config.batch_size)
    return Job(
        dataset=dataset._replace(train=train),
        validation=validation,
        preprocess=data.preprocess(train.images, config.crop_padding, config.flip),
        learner=make_learner(
            modules,
            [estimator] * (len(modules) - 1),
            losses.softmax_cross_entropy,
            optax.adamw(
                _learning_rate(config.optimizer, steps), weight_decay=config.optimizer.weight_decay
            ),
            optax.adam(_learning_rate(config.estimator_optimizer, steps)),
            update_probability=config.update_probability,
        ),
        description={
            "method": estimator.name if len(modules) > 1 else "backprop",
            "conditioned": config.estimator.conditioned and estimator.name != "backprop",
            "model": config.model.name,
            "update_probability": config.update_probability,
            "validation_examples": config.validation_examples,
        },
        seed=config.seed,
        epochs=config.epochs,
        batch_size=config.batch_size,
        log_every=config.log_every,
        alignment_every=config.alignment_every,
        show_test=config.show_test,
    )


def parse_boundaries(text: str, num_layers: int) -> list[int]:
    """Layer indices from "all", "none" or a list like "0,2,5"."""
    if text == "all":
        return list(range(num_layers - 1))
    if text == "none":
        return []
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UsageError(f"config.boundaries is {text!r}: say all, none, or layer indices like 0,2,5")
    return [int(index) for index in text.split(",")]


def _choose(field: str, name: str, choices: Mapping[str, _T]) -> _T:
    if name not in choices:
        raise UsageError(f"config.{field} is {name!r}: choose one of {', '.join(sorted(choices))}")
    return choices[name]


def _check(config: ml_collections.ConfigDict) -> None:
    """Checks the numbers that nothing further down would explain better."""
    at_least_one = ("epochs", "batch_size", "log_every", "alignment_every", "model.mlp.width")
    not_negative = (
        "seed",
        "crop_padding",
        "validation_examples",
        "model.mlp.depth",
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "estimator_optimizer.learning_rate",
    )
    for least, fields in ((1, at_least_one), (0, not_negative)):
        for field in fields:
            value: Any = config
            for part in field.split("."):
                value = value[part]
            if not value >= least:
                raise UsageError(f"config.{field} is {value}: it must be at least {least}")
    if not 0 <= config.update_probability <= 1:
        raise UsageError(f"config.update_probability is {config.update_probability}: choose 0 to 1")


def _dataset(config: ml_collections.ConfigDict) -> Dataset:
    where = (config.data_dir, config.download)
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": data.digits,
        "procedural": data.procedural,
        "mnist": lambda: data.idx_dataset(data.MNIST, *where),
        "fashion_mnist": lambda: data.idx_dataset(data.FASHION_MNIST, *where),
        "cifar10": lambda: data.cifar10(*where),
        "cifar100": lambda: data.cifar100(*where),
    }
    return _choose("dataset", config.dataset, loaders)()


def _network(config: ml_collections.ConfigDict, num_classes: int) -> tuple[list[Module], Estimator]:
    layers = _layers(config.model, num_classes)
    boundaries = parse_boundaries(config.boundaries, len(layers))
    return cut(layers, boundaries), _estimator(config.estimator, num_classes)


def _layers(config: ml_collections.ConfigDict, num_classes: int) -> list[Module]:
    _choose("model.norm", config.norm, dict.fromkeys(NORMS))
    dtype = _choose("model.dtype", config.dtype, _DTYPES)
    makers: dict[str, Callable[[], list[Module]]] = {
        "mlp": lambda: models.mlp(
            config.mlp.depth,
            config.mlp.width,
            num_classes,
            norm=config.norm,
            dropout=config.mlp.dropout,
            dtype=dtype,
        ),
        "cnn": lambda: models.cnn(
            config.cnn.features,
            num_classes,
            kernel_size=config.cnn.kernel_size,
            norm=config.norm,
            dtype=dtype,
        ),
    }
    return _choose("model.name", config.name, makers)()


def _estimator(config: ml_collections.ConfigDict, num_classes: int) -> Estimator:
    context: Context = estimators.one_hot(num_classes) if config.conditioned else None
    makers: dict[str, Callable[[], Estimator]] = {
        "backprop": estimators.backprop,
        "linear": lambda: estimators.linear(context),
        "loss_shaped": lambda: estimators.loss_shaped(num_classes, context),
        "mlp": lambda: estimators.mlp(config.mlp.hidden, context),
        "convolutional": lambda: estimators.convolutional(
            config.convolutional.features, config.convolutional.kernel_size, context
        ),
        "recursive_least_squares": lambda: estimators.recursive_least_squares(
            context, **config.recursive_least_squares
        ),
    }
    return _choose("estimator.name", config.name, makers)()


def _learning_rate(config: ml_collections.ConfigDict, steps: int) -> Any:
    schedules = {
        "constant": lambda: config.learning_rate,
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, steps),
    }
    return _choose("optimizer.schedule", config.schedule, schedules)()

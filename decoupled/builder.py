"""Turns a config into objects: the one place where names become code.

Every field is described, with its default, in configs/base.py.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import optax

from decoupled import data, estimators, losses, models
from decoupled.backward_rules import (
    BackwardRule,
    feedback_alignment,
    sign_symmetric,
    with_backward_rule,
)
from decoupled.data.dataset import Dataset
from decoupled.errors import UsageError
from decoupled.estimators.synthetic_gradient import Context
from decoupled.learner import Learner, make_learner
from decoupled.models.norm import NORMS
from decoupled.modules import cut
from decoupled.stack import stack_equal
from decoupled.training import parallel, staged
from decoupled.training.execution import Execution
from decoupled.training.loop import Job
from decoupled.types import Estimator, Module
from decoupled.watch import watched, watched_estimator

_T = TypeVar("_T")
_BACKWARD_RULES: dict[str, BackwardRule | None] = {
    "exact": None,
    "feedback_alignment": feedback_alignment,
    "sign_symmetric": sign_symmetric,
}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config: ml_collections.ConfigDict) -> Job:
    """All that a run needs, from its config.

    Raises:
      UsageError: a field has a value that cannot be; the message names it.
      DataError: the data set is missing or damaged.
    """
    _check(config)
    # A rehearsal: mistakes are told before any data is fetched.
    _network(config, num_classes=2)
    for field in ("optimizer", "estimator_optimizer"):
        _learning_rate(config, field, steps=1)
    make_execution = _execution(config)
    dataset = _dataset(config)
    train, validation = data.hold_out(dataset.train, config.validation_examples)
    # A module that sits out does not count the step, so its schedule must be as much shorter.
    steps = config.epochs * data.batches_per_epoch(train, config.batch_size) * config.update_probability

    decay, skip = config.optimizer.weight_decay, config.skip_not_finite
    adamw = optax.adamw(_learning_rate(config, "optimizer", steps), weight_decay=decay)
    adam = optax.adam(_learning_rate(config, "estimator_optimizer", steps))

    def learner_on(axis_name: str | None) -> Learner:
        modules, estimator = _network(config, dataset.num_classes, axis_name)
        links = stack_equal(modules) if config.step == "stacked" else modules
        if estimator.training_gradient is not None:
            estimator = watched_estimator(estimator, skip)
        return make_learner(
            links,
            [estimator] * (len(links) - 1),
            losses.softmax_cross_entropy,
            watched(_clipped(adamw, config.optimizer.clip_norm), skip),
            _clipped(adam, config.estimator_optimizer.clip_norm),
            update_probability=config.update_probability,
            axis_name=axis_name,
        )

    learner = learner_on(None)
    preprocess = data.preprocess(train.images, config.crop_padding, config.flip)
    # A second one, now with the data: what does not fit it says so before the workdir is made.
    x = jax.eval_shape(preprocess.evaluate, train.images[:1])
    jax.eval_shape(learner.init, jax.random.key(0), x, train.labels[:1])
    # One kind of estimator serves the whole chain.
    estimator = learner.estimators[0] if learner.estimators else estimators.backprop()
    synthetic = estimator.name != "backprop"
    return Job(
        dataset=dataset._replace(train=train),
        validation=validation,
        preprocess=preprocess,
        learner=learner,
        execution=make_execution(learner_on, preprocess),
        description={
            "method": estimator.name if synthetic else "backprop",
            "conditioned": synthetic and estimator.sees_y,
            "model": config.model.name,
            "backward_rule": config.model.backward_rule,
            "update_probability": config.update_probability,
            "validation_examples": config.validation_examples,
            "parallel": config.parallel.mode,
        },
        seed=config.seed,
        epochs=config.epochs,
        batch_size=config.batch_size,
        log_every=config.log_every,
        alignment_every=config.alignment_every,
        checkpoint_every=config.checkpoint_every,
        skip_not_finite=skip,
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
    counts = (
        "epochs",
        "batch_size",
        "log_every",
        "alignment_every",
        "model.mlp.width",
        "model.cnn.features",
        "model.cnn.kernel_size",
        "estimator.mlp.hidden",
        "estimator.convolutional.features",
        "estimator.convolutional.kernel_size",
        "estimator.local_loss.hidden",
        "estimator.similarity.width",
    )
    not_negative = (
        "crop_padding",
        "validation_examples",
        "model.mlp.depth",
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "estimator_optimizer.clip_norm",
        "estimator_optimizer.learning_rate",
        "estimator.noise.scale",
    )
    for field in counts:
        check_range(config, field, 1, math.inf, whole=True)
    check_range(config, "parallel.devices", 0, math.inf, whole=True)
    check_range(config, "checkpoint_every", 0, math.inf, whole=True)
    check_range(config, "parallel.stages", 1, math.inf, whole=True)
    for field in not_negative:
        check_range(config, field, 0, math.inf)
    check_range(config, "seed", 0, 2**32 - 1)
    check_range(config, "update_probability", 0, 1)
    check_range(config, "model.mlp.dropout", 0, 0.999)


def value_of(config: ml_collections.ConfigDict, field: str) -> Any:
    """A field by its dotted path, like "model.mlp.width"."""
    value: Any = config
    for part in field.split("."):
        value = value[part]
    return value


def check_range(
    config: ml_collections.ConfigDict, field: str, least: float, most: float, whole: bool = False
) -> None:
    """Refuses a field, or a member of a tuple, that is not a number from `least` to `most`."""
    value = value_of(config, field)
    for member in value if isinstance(value, tuple) else (value,):
        if not isinstance(member, int if whole else int | float) or not least <= member <= most:
            limit = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UsageError(f"config.{field} is {value!r}: choose {'whole numbers ' * whole}{limit}")


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


def _network(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> tuple[list[Module], Estimator]:
    layers = _layers(config.model, num_classes, axis_name)
    modules = cut(layers, parse_boundaries(config.boundaries, len(layers)))
    rule = _choose("model.backward_rule", config.model.backward_rule, _BACKWARD_RULES)
    if rule is not None:
        modules = [with_backward_rule(module, rule) for module in modules]
    return modules, _estimator(config.estimator, num_classes, config.estimator.name)


def _layers(config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None) -> list[Module]:
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
            axis_name=axis_name,
        ),
        "cnn": lambda: models.cnn(
            config.cnn.features,
            num_classes,
            kernel_size=config.cnn.kernel_size,
            norm=config.norm,
            dtype=dtype,
            axis_name=axis_name,
        ),
    }
    return _choose("model.name", config.name, makers)()


def _execution(
    config: ml_collections.ConfigDict,
) -> Callable[[Callable[[str | None], Learner], data.Preprocess], Execution]:
    """How steps are compiled and run.

    Returns:
      (name of a mapped axis, or None -> a learner for it), preprocess -> Execution.
    """
    mode, devices, processes = config.parallel.mode, config.parallel.devices, jax.process_count()
    ways: dict[str, tuple[str | None, Callable[..., Execution]]] = {
        "none": (None, parallel.one_device),
        "mesh": (None, parallel.on_mesh),
        "shard_map": (parallel.AXIS, parallel.by_shard_map),
        "pmap": (parallel.AXIS, parallel.by_pmap),
        "pipeline": (None, staged.by_pipeline),
    }
    axis_name, make = _choose("parallel.mode", mode, ways)
    step = _choose("step", config.step, {name: name for name in ("fused", "stacked", "dispatched")})
    if step == "dispatched":
        if mode != "none":
            raise UsageError(
                "config.step is 'dispatched', which uses one device, but config.parallel.mode is"
                f" {mode!r}: choose fused or stacked, or parallel.mode none"
            )
        make = staged.by_dispatch
    if mode == "none" and devices > 1:
        raise UsageError(
            f"config.parallel.devices is {devices}, but config.parallel.mode is none, which uses one:"
            " choose mesh, shard_map or pmap"
        )
    if processes > 1 and mode in ("none", "pmap", "pipeline"):
        raise UsageError(
            f"config.parallel.mode is {mode!r}, which {processes} processes cannot share: choose mesh or"
            " shard_map"
        )
    placed = ()
    if mode == "pipeline":
        placed = (parallel.stage_mesh(devices, config.parallel.stages, config.batch_size),)
    elif mode != "none":
        placed = (parallel.data_mesh(devices, config.batch_size),)
    return lambda learner_on, preprocess: make(learner_on(axis_name), preprocess, *placed)


def methods() -> dict[str, Callable[..., Estimator]]:
    """Every estimator of the package that a config can name: those whose arguments it can fill in."""
    makers = {name: maker for name, maker in vars(estimators).items() if callable(maker)}
    return {name: maker for name, maker in makers.items() if _is_method(maker)}


def _is_method(maker: Callable) -> bool:
    signature = inspect.signature(maker)
    known = {"num_outputs", "num_classes", "context", "estimator"}
    required = {p.name for p in signature.parameters.values() if p.default is p.empty}
    return signature.return_annotation is Estimator and required <= known


def make_estimator(name: str, num_classes: int, context: Context, **options: Any) -> Estimator:
    """The estimator called `name`, told of the classes and the context if it asks for them."""
    maker = _choose("estimator.name", name, methods())
    given = {"num_outputs": num_classes, "num_classes": num_classes, "context": context}
    asked = inspect.signature(maker).parameters
    return maker(**{field: value for field, value in given.items() if field in asked}, **options)


def _estimator(config: ml_collections.ConfigDict, num_classes: int, name: str) -> Estimator:
    """An estimator with the options of the config's section of its name."""
    context: Context = estimators.one_hot(num_classes) if config.conditioned else None
    options = dict(config[name]) if name in config else {}
    if "estimator" in options:
        options["estimator"] = _estimator(config, num_classes, options["estimator"])
    return make_estimator(name, num_classes, context, **options)


def _clipped(adam: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
    """For gradients that are first shortened to a length of `clip_norm`, unless that is 0."""
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam) if clip_norm else adam


def _learning_rate(config: ml_collections.ConfigDict, field: str, steps: float) -> Any:
    rate = config[field].learning_rate
    schedules = {
        "constant": lambda: rate,
        "cosine": lambda: optax.cosine_decay_schedule(rate, max(round(steps), 1)),
    }
    return _choose(f"{field}.schedule", config[field].schedule, schedules)()

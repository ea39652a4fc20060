"""Turns a config into objects: the one place where names become code.

Every field is described, with its default, in configs/base.py.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from decoupled import data, estimators
from decoupled.data.dataset import Dataset, Stream, rows_of
from decoupled.errors import UsageError
from decoupled.extras import extra
from decoupled.learning.learner import Learner, make_learner
from decoupled.learning.stack import stack_equal
from decoupled.learning.watch import watched, watched_estimator
from decoupled.leaves import per_example
from decoupled.models.norm import NORMS
from decoupled.training import parallel, staged
from decoupled.training.average import averaged
from decoupled.training.config_checks import check, own_names
from decoupled.training.execution import Execution
from decoupled.training.label_smoothing import cross_entropy
from decoupled.training.loop import Job
from decoupled.training.methods import METHODS, estimator_of
from decoupled.training.models_by_name import BACKWARD_RULES, CELLS, DTYPES, MODELS, network_of
from decoupled.training.objectives import LOSSES, METRICS, Metric, checked_scores, own_metric
from decoupled.training.optimizers import OPTIMIZERS, optimizer_of
from decoupled.training.own_names import call, find, find_function, is_own, theirs_if_so
from decoupled.training.schedules import PLATEAU, SCHEDULES
from decoupled.types import Array, Estimator, Key, Loss, Module, PyTree

with extra("train"):
    import ml_collections

# Of those that need no files, and of those that do.
_MAKERS: dict[str, Callable[[], Dataset]] = {"digits": data.digits, "procedural": data.procedural}
_LOADERS: dict[str, Callable[[str, bool], Dataset]] = {
    "mnist": lambda data_dir, download: data.idx_dataset(data.MNIST, data_dir, download),
    "fashion_mnist": lambda data_dir, download: data.idx_dataset(data.FASHION_MNIST, data_dir, download),
    "cifar10": data.cifar10,
    "cifar100": data.cifar100,
}
# How devices share the work: the name of a mapped axis, or None, and what makes the Execution.
_MODES: dict[str, tuple[str | None, Callable[..., Execution]]] = {
    "none": (None, parallel.one_device),
    "mesh": (None, parallel.on_mesh),
    "shard_map": (parallel.AXIS, parallel.by_shard_map),
    "pmap": (parallel.AXIS, parallel.by_pmap),
    "pipeline": (None, staged.by_pipeline),
}
_STEPS = ("fused", "stacked", "dispatched")
_MOST_STEPS = 2**31 - 1  # counted in int32


def build(config: ml_collections.ConfigDict) -> Job:
    """All that a run needs, from its config.

    Raises:
      UsageError: a field has a value that cannot be; the message names it.
      DataError: the data set is missing or damaged.
    """
    check(config, _choices())
    # A rehearsal: mistakes are told before any data is fetched.
    own = own_names(config)
    for field, name in own.items():
        (find if field == "metric" else find_function)(field, name)
    if not own:
        _network(config, num_classes=2)
    for field in ("optimizer", "estimator_optimizer"):
        optimizer_of(config, field, steps=1)
        if config[field].schedule == PLATEAU and config.parallel.mode == "pipeline":
            raise UsageError(
                f"config.{field}.schedule is {PLATEAU!r}, which asks for the last step's loss, which is not"
                " known in a pipeline: choose another"
            )
    make_execution = _execution(config)
    metric = _metric(config)
    dataset = _dataset(config)
    _check_examples(config, dataset)
    train, validation = data.hold_out(dataset.train, config.validation_examples)
    all_steps = config.epochs * data.batches_per_epoch(train, config.batch_size)
    if all_steps > _MOST_STEPS:
        raise UsageError(
            f"config.epochs is {config.epochs}, which makes {all_steps} steps: choose so few that there are"
            f" at most {_MOST_STEPS}"
        )

    def learner_on(axis_name: str | None) -> Learner:
        return make_learner_of(config, dataset.num_classes, all_steps, axis_name)

    learner = learner_on(None)
    preprocess = data.preprocess(train.images, config.crop_padding, config.flip, config.cutout)
    # A second one, now with the data: what does not fit it says so before the workdir is made.
    images, labels, *weight = rows_of(train, np.arange(config.batch_size))
    x = jax.eval_shape(preprocess.evaluate, images)
    plain = config.loss == "softmax_cross_entropy" and not own
    of_one_array = [f"config.{name} is {config[name]!r}" for name in ("loss", "metric") if name not in own]
    with theirs_if_so(own):
        _rehearse(learner, metric, x, labels, *weight, whole=not plain, of_one_array=of_one_array)
    # One kind of estimator serves the whole chain.
    estimator = learner.estimators[0] if learner.estimators else estimators.backprop()
    return Job(
        dataset=dataset._replace(train=train),
        fingerprint=dataset.fingerprint(),
        validation=validation,
        preprocess=preprocess,
        learner=learner,
        metric=metric,
        execution=make_execution(learner_on, preprocess, metric),
        description={
            "method": estimator.name,
            "estimate_sees": ", ".join(estimator.estimate_sees),
            "fit_sees": ", ".join(estimator.fit_sees) or "nothing",
            "model": config.model.name,
            "backward_rule": config.model.backward_rule,
            "update_probability": config.update_probability,
            "validation_examples": config.validation_examples,
            "parallel": config.parallel.mode,
            **_told_of_objectives(config, metric),
        },
        seed=config.seed,
        epochs=config.epochs,
        batch_size=config.batch_size,
        log_every=config.log_every,
        alignment_every=config.alignment_every,
        checkpoint_every=config.checkpoint_every,
        skip_not_finite=config.skip_not_finite,
        show_test=config.show_test,
        own_names=own,
    )


def make_learner_of(
    config: ml_collections.ConfigDict, num_classes: int, all_steps: int, axis_name: str | None = None
) -> Learner:
    """The network of a config, and how it learns.

    Args:
      num_classes: of the data.
      all_steps: of the run, over which schedules are drawn out.
      axis_name: of a mapped axis over which batches are split.

    Raises:
      UsageError: a field has a value that cannot be; the message names it.
    """
    check(config, _choices())
    # A module that is not updated does not count the step, so its schedule must be as much shorter.
    steps = all_steps * config.update_probability
    skip = config.skip_not_finite
    optimizer = optimizer_of(config, "optimizer", steps)
    if config.average_decay:
        optimizer = averaged(optimizer, config.average_decay)
    modules, estimator = _network(config, num_classes, axis_name)
    links = stack_equal(modules) if config.step == "stacked" else modules
    if estimator.training_gradient is not None:
        estimator = watched_estimator(estimator, skip)
    return make_learner(
        links,
        [estimator] * (len(links) - 1),
        _loss(config),
        watched(optimizer, skip),
        optimizer_of(config, "estimator_optimizer", steps),
        update_probability=config.update_probability,
        axis_name=axis_name,
        batch_axes=config.batch_axes,
    )


def _choices() -> dict[str, Collection[str]]:
    """The names that each field may have which becomes code here."""
    plain = {
        name for name, maker in METHODS.items() if "estimator" not in inspect.signature(maker).parameters
    }
    return {
        "dataset": [*_MAKERS, *_LOADERS],
        "model.name": MODELS,
        "model.norm": NORMS,
        "model.rnn.cell": CELLS,
        "model.backward_rule": BACKWARD_RULES,
        "loss": LOSSES,
        "metric": METRICS,
        "model.dtype": DTYPES,
        "estimator.name": METHODS,
        "estimator.mlp.norm": NORMS,
        "estimator.convolutional.norm": NORMS,
        "estimator.bp_lambda.estimator": plain,
        "estimator.sg_prop.estimator": plain,
        "estimator.borrowed_next.estimator": plain,
        "optimizer.name": OPTIMIZERS,
        "optimizer.schedule": SCHEDULES,
        "estimator_optimizer.name": OPTIMIZERS,
        "estimator_optimizer.schedule": SCHEDULES,
        "parallel.mode": _MODES,
        "step": _STEPS,
    }


def _dataset(config: ml_collections.ConfigDict) -> Dataset:
    if is_own(name := config.dataset):
        made = call("dataset", name, {"data_dir": config.data_dir, "download": config.download})
        with theirs_if_so({"dataset": name}):  # reading the examples is
            several = config.loss == "sigmoid_cross_entropy"
            reading = data.Reading(config.stream, config.read_workers)
            dataset = data.own_dataset(made, name, several, config.batch_axes, reading)
        if config.stream and not isinstance(dataset.train, Stream):
            raise UsageError(
                f"config.stream is True, but {name} gives its training examples as arrays: leave it False,"
                " or return an object with __len__ and __getitem__"
            )
        return dataset
    for field in ("stream", "read_workers"):
        if config[field]:
            raise UsageError(
                f"config.{field} is {config[field]}, but {config.dataset} is read at once: leave it out"
            )
    if config.dataset in _LOADERS:
        return _LOADERS[config.dataset](config.data_dir, config.download)
    if config.data_dir:
        raise UsageError(
            f"config.data_dir is {config.data_dir!r}, but {config.dataset} is in no folder: leave it out"
        )
    return _MAKERS[config.dataset]()


def _check_examples(config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    """That the data have the examples, or tokens, that the config says, and what takes their weights."""
    for leaf in jax.tree.leaves(dataset.train.labels):
        if leaf.ndim < config.batch_axes:
            raise UsageError(
                f"config.batch_axes is {config.batch_axes}, but targets of {dataset.name} have shape"
                f" {leaf.shape}: choose {leaf.ndim}, or give a target a token, (examples, time)"
            )
    weighted = len(rows_of(dataset.train, np.arange(1))) > 2
    if weighted and config.parallel.mode == "pipeline":
        raise UsageError(
            f"config.parallel.mode is 'pipeline', which counts all examples alike, but {dataset.name} has"
            " weights: choose none, mesh, shard_map or pmap"
        )


def _loss(config: ml_collections.ConfigDict) -> Loss:
    if config.label_smoothing:
        if config.loss != "softmax_cross_entropy":
            raise UsageError(
                f"config.label_smoothing is {config.label_smoothing}, which the log loss alone has:"
                f" leave it 0 with config.loss {config.loss!r}, or choose softmax_cross_entropy"
            )
        return cross_entropy(config.label_smoothing)
    return find_function("loss", config.loss) if is_own(config.loss) else LOSSES[config.loss]


def _metric(config: ml_collections.ConfigDict) -> Metric:
    if not is_own(name := config.metric):
        return METRICS[name]
    return own_metric(f"config.metric is {name!r}", name.partition(":")[2], find("metric", name))


def _told_of_objectives(config: ml_collections.ConfigDict, metric: Metric) -> dict[str, Any]:
    """Of loss and metric, where they are not what a classifier has."""
    told: dict[str, Any] = {}
    if config.loss != "softmax_cross_entropy":
        told["loss"] = config.loss
    if config.metric != "accuracy":
        told |= {"metric": metric.name, "larger_is_better": metric.larger_is_better}
    return told


def _rehearse(
    learner: Learner,
    metric: Metric,
    x: PyTree,
    y: PyTree,
    weight: PyTree = None,
    *,
    whole: bool,
    of_one_array: Sequence[str] = (),
) -> None:
    """Shapes alone, of the start and of a forward pass in training: what does not fit says so.

    Args:
      x, y, weight: a whole batch, or its shapes.
      whole: of all else that a run does with the network too, which takes longer.
      of_one_array: fields whose functions compare an output of one array with targets of one.
    """

    def forward(key: Key, x: PyTree, y: PyTree) -> Array:
        state = learner.unstack(learner.init(key, x, y))
        for module, own in zip(learner.modules, state.modules, strict=True):
            x, _ = module.apply(own.params, own.state, x, key, True)
        for what, tree in (("a target", y), ("the network's output", x)):
            if of_one_array and not jax.tree_util.treedef_is_leaf(jax.tree.structure(tree)):
                raise UsageError(
                    f"{of_one_array[0]}, which is for one array, but {what} has several: name a function of"
                    " your own, module:function"
                )
        output, y = per_example((x, y), learner.rules.batch_axes)
        return checked_scores(metric.function(output, y), len(jax.tree.leaves(y)[0]))

    jax.eval_shape(forward, jax.random.key(0), x, y)
    if whole:
        state = jax.eval_shape(learner.init, jax.random.key(0), x, y)
        jax.eval_shape(learner.update, state, x, y, jax.random.key(0), weight)
        jax.eval_shape(learner.predict, state, x)


def _network(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> tuple[list[Module], Estimator]:
    estimator = estimator_of(config.estimator, num_classes, config.estimator.name, _loss(config))
    return network_of(config, num_classes, axis_name), estimator


def _execution(
    config: ml_collections.ConfigDict,
) -> Callable[[Callable[[str | None], Learner], data.Preprocess, Metric], Execution]:
    """How steps are compiled and run.

    Returns:
      (name of a mapped axis, or None -> a learner for it), preprocess, metric -> Execution.
    """
    mode, devices, processes = config.parallel.mode, config.parallel.devices, jax.process_count()
    axis_name, make = _MODES[mode]
    if config.step == "dispatched":
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
    return lambda learner_on, preprocess, metric: make(learner_on(axis_name), preprocess, metric, *placed)

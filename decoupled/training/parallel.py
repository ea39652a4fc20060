"""Ways to run a training step: on one device, or with each batch split over many.

The batch is split over the axis "data", and the state is the same on every device. Whichever way is chosen,
the numbers agree to rounding: the learner averages gradients and fitting statistics, batch normalisation
sees the whole batch, and augmentation is drawn for the whole batch before it is split. Three things are a
device's own under a mapped axis (`shard_map`, `pmap`), and so differ between ways: dropout masks, the noise
estimator, and the similarity loss, which compares the examples of one device.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from decoupled.data import Preprocess
from decoupled.errors import UsageError
from decoupled.learning.learner import Learner
from decoupled.parallel.pipeline import make_mesh
from decoupled.shapes import Integer, Shaped
from decoupled.training.execution import Execution
from decoupled.training.objectives import Metric
from decoupled.training.step import advance, prepare, train_loop, train_step
from decoupled.types import Array, PyTree

AXIS = "data"


def one_device(learner: Learner, preprocess: Preprocess, metric: Metric) -> Execution:
    """Everything on the first device."""
    step = train_step(learner, preprocess, metric=metric)
    one, many = (jax.jit(f, donate_argnums=(0, 1)) for f in (step, train_loop(step)))
    return Execution(
        devices=1,
        rows=lambda batch_size: slice(batch_size),
        place_state=lambda state: state,
        place_batch=jax.device_put,
        compile_step=lambda *args: one.lower(*args).compile(),
        measure=jax.jit,
        compile_loop=lambda *args: _compiled_loop(many, None, *args),
    )


def on_mesh(learner: Learner, preprocess: Preprocess, metric: Metric, mesh: Mesh) -> Execution:
    """The compiler splits the step: `jit` with a batch that lies in rows on the devices of `mesh`."""
    return _whole_step(train_step(learner, preprocess, metric=metric), mesh)


def by_shard_map(learner: Learner, preprocess: Preprocess, metric: Metric, mesh: Mesh) -> Execution:
    """`shard_map` splits the update: each device runs it on its own rows, and the learner averages.

    Args:
      learner: made with `axis_name=AXIS`.
    """
    split_advance = jax.shard_map(
        advance(learner, metric),
        mesh=mesh,
        in_specs=(P(), P(), P(AXIS), P(AXIS), P(), P(AXIS)),
        out_specs=(P(), P()),
    )
    return _whole_step(train_step(learner, preprocess, split_advance), mesh)


def by_pmap(learner: Learner, preprocess: Preprocess, metric: Metric, mesh: Mesh) -> Execution:
    """`pmap` splits the update: each device runs it on its own rows, and the learner averages.

    Args:
      learner: made with `axis_name=AXIS`.
    """
    devices = mesh.devices.ravel().tolist()
    replicated, in_rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

    def split(rows: Shaped[Array, "batch *shape"]) -> Shaped[Array, "devices rows *shape"]:
        return rows.reshape(len(devices), -1, *rows.shape[1:])

    def split_inputs(
        step: Array, images: PyTree, labels: PyTree, key: Array, weight: Array | None
    ) -> tuple[PyTree, PyTree, Array, Array | None]:
        inputs, update_key = prepare(preprocess, step, images, key)
        inputs, labels, weight = jax.tree.map(split, (inputs, labels, weight))
        return inputs, labels, update_key, weight

    split_inputs = jax.jit(split_inputs, out_shardings=(in_rows, in_rows, replicated, in_rows))
    update = jax.pmap(
        advance(learner, metric),
        AXIS,
        in_axes=(None, None, 0, 0, None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=(0, 1),
    )

    def compile_step(
        state: PyTree,
        totals: PyTree,
        images: PyTree,
        labels: PyTree,
        key: Array,
        weight: Array | None = None,
    ) -> Callable:
        first = split_inputs.lower(state.step, images, labels, key, weight).compile()
        second = update.lower(state, totals, *first(state.step, images, labels, key, weight)).compile()

        def step(
            state: PyTree,
            totals: PyTree,
            images: PyTree,
            labels: PyTree,
            key: Array,
            weight: Array | None = None,
        ) -> tuple[PyTree, PyTree]:
            return second(state, totals, *first(state.step, images, labels, key, weight))

        return step

    return _over(mesh, compile_step)


def data_mesh(devices: int, batch_size: int) -> Mesh:
    """A mesh with the one axis `AXIS`, over devices of all processes, those of a process side by side.

    Args:
      devices: how many; 0 for all there are.
      batch_size: of the whole batch, which they share.

    Raises:
      UsageError: there are not so many, or they cannot share alike.
    """
    chosen = _chosen(devices)
    if batch_size % len(chosen):
        raise UsageError(
            f"config.batch_size is {batch_size}, which {len(chosen)} devices (config.parallel.devices)"
            f" cannot share alike: choose a multiple of {len(chosen)}"
        )
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def stage_mesh(devices: int, stages: int, batch_size: int) -> Mesh:
    """A (data, stage) mesh for a pipeline.

    Args:
      devices: how many in all; 0 for all there are.
      stages: of the pipeline, which share the devices.
      batch_size: which the devices of a stage share.

    Raises:
      UsageError: there are not so many, or they cannot share alike.
    """
    mesh = make_mesh(stages, _chosen(devices))
    if batch_size % mesh.shape["data"]:
        raise UsageError(
            f"config.batch_size is {batch_size}, which the {mesh.shape['data']} devices of a stage cannot"
            f" share alike: choose a multiple of {mesh.shape['data']}"
        )
    return mesh


def _chosen(devices: int) -> list[jax.Device]:
    """So many devices, or all for 0; those of a process side by side."""
    found, processes = jax.devices(), jax.process_count()
    devices = devices or len(found)
    if devices > len(found):
        raise UsageError(
            f"config.parallel.devices is {devices}, but there are {len(found)} (kind:"
            f" {found[0].device_kind}): choose at most {len(found)}, or 0 for all"
        )
    if devices % processes:
        raise UsageError(
            f"config.parallel.devices is {devices}, which {processes} processes cannot share alike:"
            f" choose a multiple of {processes}, or 0 for all"
        )
    by_process = [[d for d in found if d.process_index == process] for process in range(processes)]
    chosen = [device for own in by_process for device in own[: devices // processes]]
    if len(chosen) < devices:
        raise UsageError(
            f"config.parallel.devices is {devices}, but some process has fewer than {devices // processes}:"
            " processes must have as many devices each"
        )
    return chosen


def _over(mesh: Mesh, compile_step: Callable) -> Execution:
    """What all ways to split a batch over a mesh have in common, around the one in which they differ."""
    replicated, in_rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    # Under jit, which does not mind that every process starts from a copy of its own.
    place_state = jax.jit(lambda state: state, out_shardings=replicated)

    def rows(batch_size: int) -> Integer[np.ndarray, " rows"]:
        slices = in_rows.addressable_devices_indices_map((batch_size,)).values()
        return np.sort(np.concatenate([np.arange(batch_size)[index] for index in slices if index]))

    def place_batch(batch: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        return jax.tree.map(lambda part: jax.make_array_from_process_local_data(in_rows, part), batch)

    def measure(function: Callable) -> Callable:
        return jax.jit(function, out_shardings=replicated)

    return Execution(mesh.size, rows, place_state, place_batch, compile_step, measure)


def _whole_step(step: Callable, mesh: Mesh) -> Execution:
    """One program for all devices, from whole arrays to whole arrays."""
    replicated, in_rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    loop = train_loop(step, lambda batch: jax.lax.with_sharding_constraint(batch, in_rows))
    one, many = (jax.jit(f, donate_argnums=(0, 1), out_shardings=replicated) for f in (step, loop))
    return _over(mesh, lambda *args: one.lower(*args).compile())._replace(
        compile_loop=lambda *args: _compiled_loop(many, replicated, *args)
    )


def _compiled_loop(
    jitted: Any,
    where: NamedSharding | None,
    state: PyTree,
    totals: PyTree,
    data: PyTree,
    order: Array,
    key: Array,
) -> Callable[..., tuple[PyTree, PyTree]] | None:
    """See `Execution.compile_loop`; None where steps one by one are faster.

    For a CPU, XLA has its fast convolutions outside of loops alone, and in one a step of a CNN takes 15
    times as long (https://github.com/jax-ml/jax/issues/12868).

    Args:
      jitted: a `train_loop`.
      where: the data are to lie; None: on the one device there is.
    """

    def placed(leaf: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, canonicalize_dtype(leaf.dtype), sharding=where)

    number = np.int32(0)
    lowered = jitted.lower(state, totals, jax.tree.map(placed, data), order, number, number, key)
    if jax.default_backend() == "cpu" and "stablehlo.convolution" in lowered.as_text():
        return None
    compiled = lowered.compile()
    return lambda state, totals, data, order, first, count: compiled(
        state, totals, data, order, first, count, key
    )

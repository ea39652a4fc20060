"""The walk over a piece in parts: the update of a whole batch, in the memory of a part of it.

Every part is walked with optimizers that only add up what they are given, so that parameters stay what
they were; the sums, divided by what was counted, then go to the real ones, once. Whatever is a mean
over examples comes out as that of their union: gradients, the moments of least squares, running
averages, metrics. What looks at a whole batch at once sees a part (batch statistics, the similarity
loss), and dropout is drawn part by part.
"""

import math
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from decoupled.errors import UsageError
from decoupled.learning.chain import Chain, ChainState, ChainStep
from decoupled.learning.examples import Examples
from decoupled.learning.module_update import Rules, moved, no_metrics, vary_over
from decoupled.learning.stack import Index, Stack
from decoupled.learning.state import EstimatorState, ModuleState
from decoupled.learning.walk import Active, chosen, walk
from decoupled.precision import at_least_float32
from decoupled.shapes import AnyArray, Bool, Float, Integer, Shaped
from decoupled.types import Array, Estimator, Key, Module, PyTree
from decoupled.weights import divided

_State = TypeVar("_State", ModuleState, EstimatorState)


class _Sums(NamedTuple):
    """What has been added up over parts, each mean times what it was a mean over.

    Attributes:
      number: of examples, or the sum of their weights; over all devices.
      mutable: the modules' mutable state, which goes from part to part.
      modules: of their gradients.
      estimators: of what they are fitted with; () where nothing is.
      below: the same for the estimator under the piece.
      metrics: of the boundaries and the one below.
    """

    number: Float[Array, ""]
    mutable: PyTree
    modules: PyTree
    estimators: PyTree
    below: PyTree
    metrics: PyTree


def walk_in_parts(
    rules: Rules,
    chain: Chain,
    state: ChainState,
    h: PyTree,
    examples: Examples,
    key: Key,
    active: Active,
    opaque_true: Bool[Array, ""] | None = None,
) -> ChainStep:
    """As `walk`, in `rules.microbatches` parts.

    Raises:
      UsageError: the batch cannot be divided into so many.
    """
    count = rules.microbatches
    if count == 1:
        return walk(rules, chain, state, h, examples, key, active, opaque_true)
    batch = jax.tree.leaves(h)[0].shape[0]
    if batch % count:
        raise UsageError(
            f"a batch of {batch} cannot be divided into {count} microbatches: choose a number that does"
        )

    if any(isinstance(link, Stack) for link in chain.links):
        # The sums of gradients would be as many as there are blocks; so each link goes through the parts.
        links = tuple(_link_in_parts(rules, link) for link in chain.links)
        return walk(rules, chain._replace(links=links), state, h, examples, key, active, opaque_true)

    fitted = [k + 1 < len(chain.links) and _is_fitted(spec) for k, spec in enumerate(chain.estimators)]
    below_fitted = state.below is not None and _is_fitted(chain.below)

    def one(sums: _Sums, part: tuple[Integer[Array, ""], PyTree, Examples]) -> tuple[_Sums, PyTree]:
        i, h, examples = part
        number = _number(rules, h, examples)
        modules = zip(state.modules, sums.mutable, sums.modules, strict=True)
        estimators = zip(state.estimators, sums.estimators, strict=True)
        gathering = ChainState(
            tuple(ModuleState(module.params, mutable, total) for module, mutable, total in modules),
            tuple(estimator._replace(opt_state=total) for estimator, total in estimators),
            None if state.below is None else state.below._replace(opt_state=sums.below),
        )
        added = _moved_by(chain, _adding(number))
        step = walk(rules, added, gathering, h, examples, jax.random.fold_in(key, i), lambda index: None)

        def add(total: Float[Array, "*shape"], mean: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
            return total + (number * mean).astype(total.dtype)

        new, metrics = step.state, (step.boundaries, step.below)
        sums = _Sums(
            sums.number + number,
            tuple(module.state for module in new.modules),
            tuple(module.opt_state for module in new.modules),
            tuple(estimator.opt_state for estimator in new.estimators),
            () if new.below is None else new.below.opt_state,
            jax.tree.map(add, sums.metrics, metrics),
        )
        return sums, (step.h_out, step.grad_h_in, step.losses)

    nothing = _Sums(
        jnp.zeros((), jnp.float32),
        tuple(module.state for module in state.modules),
        tuple(_zeros(module.params) for module in state.modules),
        tuple(_zeros(e.params) if fit else () for e, fit in zip(state.estimators, fitted, strict=True)),
        _zeros(state.below.params) if below_fitted and state.below else (),
        (
            tuple(no_metrics(e) if fit else None for e, fit in zip(chain.estimators, fitted, strict=True)),
            no_metrics(chain.below) if below_fitted and chain.below else None,
        ),
    )
    split = jax.tree.map(lambda leaf: _split(leaf, batch, count), (h, examples))
    sums, outputs = jax.lax.scan(one, nothing, (jnp.arange(count), *split))
    h_out, grad_h_in, losses = jax.tree.map(lambda leaf: _join(leaf, batch, count), outputs)

    def by_mean(tx: optax.GradientTransformation, old: _State, total: PyTree, index: Index) -> _State:
        """The state of a module or an estimator, moved by the mean of what was added up."""
        mean = jax.tree.map(lambda t, p: divided(t, sums.number).astype(p.dtype), total, old.params)
        return chosen(active(index), moved(tx, old, mean), old)

    offsets, modules, estimators = chain.offsets, [], []
    for k, (link, old) in enumerate(zip(chain.modules, state.modules, strict=True)):
        new = by_mean(rules.optimizer_for(link), old, sums.modules[k], offsets[k])
        modules.append(new._replace(state=chosen(active(offsets[k]), sums.mutable[k], old.state)))
    for k, (spec, old) in enumerate(zip(chain.estimators, state.estimators, strict=True)):
        tx = rules.optimizer_of(spec)
        estimators.append(by_mean(tx, old, sums.estimators[k], offsets[k + 1]) if fitted[k] else old)
    below = state.below
    if below is not None and chain.below is not None and below_fitted:
        below = by_mean(rules.optimizer_of(chain.below), below, sums.below, offsets[0])
    boundaries, below_metrics = jax.tree.map(lambda total: divided(total, sums.number), sums.metrics)
    new = ChainState(tuple(modules), tuple(estimators), below)
    return ChainStep(new, h_out, grad_h_in, losses, boundaries, below_metrics)


def _link_in_parts(rules: Rules, link: Module | Stack) -> Module | Stack:
    if isinstance(link, Stack):
        return link._replace(block=_in_parts(rules, link.block))
    return _in_parts(rules, link)


def _in_parts(rules: Rules, module: Module) -> Module:
    """The module, run part after part, and again part after part for its gradient: it keeps its input."""
    count = rules.microbatches

    def apply(params: PyTree, state: PyTree, h: PyTree, key: Key, train: bool) -> tuple[PyTree, PyTree]:
        batch = jax.tree.leaves(h)[0].shape[0]

        @partial(jax.checkpoint, prevent_cse=False)
        def run(params: PyTree, state: PyTree, h: PyTree, key: Key) -> tuple[PyTree, PyTree]:
            h_out, state = module.apply(params, state, h, key, train)
            return h_out, vary_over(rules.axis_name, state)

        def one(state: PyTree, part: tuple[Integer[Array, ""], PyTree]) -> tuple[PyTree, PyTree]:
            i, h = part
            h_out, state = run(params, state, h, jax.random.fold_in(key, i))
            return state, h_out

        parts = jax.tree.map(lambda leaf: _split(leaf, batch, count), h)
        state, h_out = jax.lax.scan(one, vary_over(rules.axis_name, state), (jnp.arange(count), parts))
        return jax.tree.map(lambda leaf: _join(leaf, batch, count), h_out), state

    return module._replace(apply=apply)


def _is_fitted(spec: Estimator | None) -> bool:
    return spec is not None and spec.training_gradient is not None


def _number(rules: Rules, h: PyTree, examples: Examples) -> Float[Array, ""]:
    """Of examples in a part, by their weights, on all devices."""
    if examples.weight is None:
        count = math.prod(jax.tree.leaves(h)[0].shape[: rules.batch_axes])
        number = jnp.asarray(count, jnp.float32)
        return number if rules.axis_name is None else number * jax.lax.axis_size(rules.axis_name)
    number = at_least_float32(examples.weight).sum()
    return number if rules.axis_name is None else jax.lax.psum(number, rules.axis_name)


def _adding(number: Float[Array, ""]) -> optax.GradientTransformation:
    """Adds up what it is given, times `number`, in its state; moves nothing."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        total = jax.tree.map(
            lambda t, mean: t + number.astype(t.dtype) * mean.astype(t.dtype), state, updates
        )
        return jax.tree.map(jnp.zeros_like, updates), total

    return optax.GradientTransformation(_zeros, update)


def _zeros(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: jnp.zeros_like(at_least_float32(p)), params)


def _moved_by(chain: Chain, tx: optax.GradientTransformation) -> Chain:
    """The chain, with one optimizer for all its parts."""

    def given(spec: Estimator) -> Estimator:
        return spec._replace(optimizer=lambda other: tx)

    return chain._replace(
        links=tuple(link._replace(optimizer=tx) for link in chain.modules),
        estimators=tuple(map(given, chain.estimators)),
        below=None if chain.below is None else given(chain.below),
    )


def _split(
    leaf: Shaped[AnyArray, "rows *shape"], batch: int, count: int
) -> Shaped[Array, "parts part *shape"]:
    """Parts along a new first axis, dealt out row by row, so that each device has some of every part."""
    parts = leaf.reshape(batch // count, count, leaf.shape[0] // batch, *leaf.shape[1:])
    return jnp.moveaxis(parts, 1, 0).reshape(count, leaf.shape[0] // count, *leaf.shape[1:])


def _join(leaf: Shaped[Array, "parts part *shape"], batch: int, count: int) -> Shaped[Array, "rows *shape"]:
    """The way back."""
    rows = leaf.shape[0] * leaf.shape[1]
    parts = leaf.reshape(count, batch // count, rows // batch, *leaf.shape[2:])
    return jnp.moveaxis(parts, 0, 1).reshape(rows, *leaf.shape[2:])

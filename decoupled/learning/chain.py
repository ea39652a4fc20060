"""A chain of modules with an estimator above each, or a piece of such a chain; and its state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decoupled.errors import UsageError, naming
from decoupled.estimators.checks import check_activation, check_arrays
from decoupled.learning.module_update import Rules
from decoupled.learning.stack import Index, Stack, check_block, is_shared, modules_of, take
from decoupled.learning.state import BoundaryMetrics, EstimatorState, ModuleState
from decoupled.leaves import per_example, real_part
from decoupled.modules.chains import like_output, told_apart
from decoupled.types import Estimator, Key, Module, PyTree


class Chain(NamedTuple):
    """Links, lowest first, and the estimators above them.

    Attributes:
      links: modules and stacks.
      estimators: one a link; above the highest it may be missing, and then the loss stands there.
      first: number of modules below the chain, in the network that it is a piece of.
      below: the estimator under a piece's lowest link, if its fit is part of the piece's update.
    """

    links: tuple[Module | Stack, ...]
    estimators: tuple[Estimator, ...]
    first: Index = 0
    below: Estimator | None = None

    @property
    def offsets(self) -> tuple[Index, ...]:
        """For each link, the number of modules below it in the network."""
        offsets: list[Index] = [self.first]
        for link in self.links:
            offsets.append(offsets[-1] + len(modules_of(link)))
        return tuple(offsets[:-1])

    @property
    def modules(self) -> tuple[Module, ...]:
        """Every module, those of stacks one by one."""
        return tuple(module for link in self.links for module in modules_of(link))

    @property
    def names(self) -> list[str]:
        """Of `modules`, numbered where they are called alike."""
        return told_apart([module.name for module in self.modules])

    @property
    def estimator_of_each(self) -> tuple[Estimator, ...]:
        """The estimators above `modules`, one by one."""
        pairs = zip(self.links, self.estimators, strict=False)
        return tuple(estimator for link, estimator in pairs for _ in modules_of(link))

    def piece(self, start: int, stop: int) -> "Chain":
        """Links start to stop - 1, with the fit of the estimator below them."""
        below = self.estimators[start - 1] if start > 0 else self.below
        return Chain(self.links[start:stop], self.estimators[start:stop], self.offsets[start], below)

    def where(self, k: int) -> str:
        """How to call the boundary above link k."""
        link = self.links[k]
        if isinstance(link, Stack):
            return f"the boundaries after {link.name}"
        place = self.offsets[k]
        # In a program that serves many modules the number is not known.
        return f"boundary {place} (after {link.name})" if isinstance(place, int) else f"after {link.name}"


class ChainState(NamedTuple):
    """One entry a link; that of a stack has the states of its blocks along a leading axis.

    Attributes:
      modules: one a link.
      estimators: one for each of `Chain.estimators`.
      below: of `Chain.below`.
    """

    modules: tuple[ModuleState, ...]
    estimators: tuple[EstimatorState, ...]
    below: EstimatorState | None = None


class ChainStep(NamedTuple):
    """What a walk returns.

    Attributes:
      state: new states.
      h_out: output of the highest link, (batch, ...).
      grad_h_in: target for the estimator below the chain; None where nothing is below.
      losses: one an example, in one axis; None where an estimator stands above the highest link.
      boundaries: one entry for each of `Chain.estimators`: the metrics of its fit, if there was one.
      below: the same for `Chain.below`.
    """

    state: ChainState
    h_out: PyTree
    grad_h_in: PyTree
    losses: Any
    boundaries: tuple[BoundaryMetrics | None, ...]
    below: BoundaryMetrics | None


def init_chain_state(rules: Rules, chain: Chain, key: Key, x: PyTree, y: PyTree) -> ChainState:
    """States of all modules and estimators, from one example batch."""
    module_key, estimator_key = jax.random.split(key)

    y = per_example(y, rules.batch_axes)

    def start_module(module: Module, index: Index, h: PyTree) -> ModuleState:
        variables = module.init(jax.random.fold_in(module_key, index), h)
        _check_params(module, variables.params)
        opt_state = rules.optimizer_for(module).init(variables.params)
        return ModuleState(variables.params, variables.state, opt_state)

    def start_estimator(spec: Estimator, index: Index, h: PyTree) -> EstimatorState:
        given = h if spec.sees_whole_h else per_example(real_part(h), rules.batch_axes)
        given = jax.tree.map(jnp.asarray, given)
        est_params = spec.init(jax.random.fold_in(estimator_key, index), given, y)
        return EstimatorState(est_params, rules.optimizer_of(spec).init(est_params))

    modules, estimators, h = [], [], x
    for k, link in enumerate(chain.links):
        index = chain.offsets[k]
        if isinstance(link, Stack):
            indices = index + jnp.arange(len(link.names))
            modules.append(jax.vmap(lambda i, m=link.block, h=h: start_module(m, i, h))(indices))
            check_block(link, take(modules[-1], 0), h)
        else:
            modules.append(start_module(link, index, h))
            h = like_output(link, modules[-1], h)
        if k < len(chain.estimators):
            spec = chain.estimators[k]
            check_activation(chain.where(k), h, rules.batch_axes)
            check_arrays(chain.where(k), spec, real_part(h))
            with naming(chain.where(k)):
                if isinstance(link, Stack):
                    start = jax.vmap(lambda i, spec=spec, h=h: start_estimator(spec, i, h))
                    estimators.append(start(indices))
                else:
                    estimators.append(start_estimator(spec, index, h))
    return ChainState(tuple(modules), tuple(estimators))


def _check_params(module: Module, params: PyTree) -> None:
    """That a module's parameters have gradients."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.inexact):
            place = jax.tree_util.keystr(path)
            raise UsageError(
                f"{module.name}: params{place} is of type {dtype}, which cannot be trained: keep it in the"
                " module's state"
            )


def evaluate_chain(chain: Chain, modules: tuple[ModuleState, ...], h: PyTree, key: Key) -> PyTree:
    """Output of the highest link in evaluation mode; `modules` as in `ChainState`."""

    def run(module: Module, state: ModuleState, h: PyTree) -> PyTree:
        return module.apply(state.params, state.state, h, key, False)[0]

    for link, state in zip(chain.links, modules, strict=True):
        if isinstance(link, Stack):
            depth = len(link.names)  # blocks may have no state at all
            h, _ = jax.lax.scan(lambda h, block, m=link.block: (run(m, block, h), None), h, state, depth)
        else:
            h = run(link, state, h)
    return h


def unstack(chain: Chain, state: ChainState) -> ChainState:
    """The same state with one entry a module and one a boundary."""

    def split(entries: tuple[Any, ...]) -> tuple[Any, ...]:
        pairs = zip(chain.links, entries, strict=False)
        return tuple(
            part
            for link, entry in pairs
            for part in (
                [own(take(entry, i)) for i in range(len(link.names))]
                if isinstance(link, Stack)
                else [entry]
            )
        )

    def own(slot: PyTree) -> PyTree:
        """What is shared becomes each one's own, in the same arrays."""
        return jax.tree.map(lambda node: node.tree if is_shared(node) else node, slot, is_leaf=is_shared)

    return ChainState(split(state.modules), split(state.estimators))

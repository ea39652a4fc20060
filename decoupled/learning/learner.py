"""Trains a chain of modules, each from the gradient its boundary's estimator supplies."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from decoupled.argument_checks import check_estimator, check_loss, check_optimizer, listed
from decoupled.errors import UsageError
from decoupled.learning.borrowing import bound, first_copies, renewed
from decoupled.learning.chain import Chain, ChainState, evaluate_chain, init_chain_state, unstack
from decoupled.learning.examples import examples_of
from decoupled.learning.fused import pieces_of, update_chain
from decoupled.learning.loss_value import ValueGiven, remember, with_value
from decoupled.learning.module_update import Rules, backward, error_of, estimate_at, fit, forward, mean_of
from decoupled.learning.stack import Index, Stack, check_link, modules_of
from decoupled.learning.state import (
    BoundaryMetrics,
    EstimatorState,
    LearnerState,
    Metrics,
    ModuleState,
    ModuleStep,
)
from decoupled.learning.structure import structured
from decoupled.shapes import AnyArray, Bool, Shaped
from decoupled.types import Array, Estimator, Key, Loss, Module, PyTree
from decoupled.weights import mean


class Learner(NamedTuple):
    """Pure functions that train a chain of modules.

    Attributes:
      init: (key, x, y) -> LearnerState, from one example batch.
      update: (state, x, y, key, weight=None) -> (state, Metrics): every module, in one step. `weight` is
        each example's, (batch,), with which every mean over examples is taken; one of weight 0 changes
        nothing, whatever is in it (but batch statistics see that there is a row).
      predict: (state, x) -> output of the last module, in evaluation mode.
      update_module: one function a module, (module_state, est_params, h_in, y, key, signal=None,
        weight=None) -> ModuleStep. `est_params` is `EstimatorState.est_params` of the boundary above it
        (None for the last module); `signal` is what that boundary's estimator reads beyond (h, y). It
        always updates: when to call it is the caller's choice, whatever `update_probability` says of the
        fused step.
      update_estimator: one function a boundary, (estimator_state, h, y, target, weight=None)
        -> (estimator_state, BoundaryMetrics | None). One with a loss of its own ignores `target`.
      chain: the modules and the estimators between them, as given.
      rules: how they learn.
      update_probability: of each module.
    """

    init: Callable[[Key, Any, Any], LearnerState]
    update: Callable[..., tuple[LearnerState, Metrics]]
    predict: Callable[[LearnerState, Any], Any]
    update_module: tuple[Callable[..., ModuleStep], ...]
    update_estimator: tuple[Callable[..., tuple[EstimatorState, BoundaryMetrics | None]], ...]
    chain: Chain
    rules: Rules
    update_probability: tuple[float, ...]

    @property
    def modules(self) -> tuple[Module, ...]:
        """Every module, those of stacks one by one."""
        return self.chain.modules

    @property
    def estimators(self) -> tuple[Estimator, ...]:
        """The estimator of every boundary, one by one."""
        return self.chain.estimator_of_each

    @property
    def loss(self) -> Loss:
        """Of the last module's output, (output, y) -> (batch,)."""
        return self.rules.loss

    def each_boundary(
        self, boundaries: tuple[BoundaryMetrics | None, ...]
    ) -> tuple[BoundaryMetrics | None, ...]:
        """Metrics with one entry a boundary, where those of a stack lie in one array."""
        each: list[BoundaryMetrics | None] = []
        for link, metrics in zip(self.chain.links, boundaries, strict=False):
            if isinstance(link, Stack) and metrics is not None:
                each += [jax.tree.map(lambda leaf, i=i: leaf[i], metrics) for i in range(len(link.names))]
            else:
                each += [metrics] * len(modules_of(link))
        return tuple(each)

    def must_update_every_step(self, what: str) -> None:
        """Refuses an update probability below 1 where `what` has no notion of it."""
        if min(self.update_probability) < 1:
            raise UsageError(
                f"update_probability is below 1, but in {what} every module updates: set it to 1"
            )

    def must_not_ask_for_value(self, what: str) -> None:
        """Refuses an optimizer that asks for the last step's loss where `what` has none to tell."""
        links = (link.block if isinstance(link, Stack) else link for link in self.chain.links)
        chosen = [self.rules.optimizer_for(module) for module in links]
        fitted = [spec for spec in self.chain.estimators if spec.training_gradient is not None]
        # What an estimator makes of the one for all may hide it.
        chosen += [*map(self.rules.optimizer_of, fitted), *[self.rules.estimator_optimizer] * len(fitted)]
        if any(isinstance(optimizer, ValueGiven) for optimizer in chosen):
            raise UsageError(
                f"an optimizer asks for the value of the loss, which is not known in {what}:"
                " choose one that does not"
            )

    def must_not_borrow(self, what: str) -> None:
        """Refuses estimators that borrow where `what` has no way to hand parameters down."""
        for estimator in self.chain.estimators:
            if estimator.borrows is not None:
                raise UsageError(
                    f"{estimator.name} borrows parameters from above, which do not travel in {what}:"
                    " choose an estimator that borrows nothing"
                )

    def unstack(self, state: LearnerState) -> LearnerState:
        """The same state with one entry a module and one a boundary, where some are stacked."""
        parts = unstack(self.chain, ChainState(state.modules, state.estimators))
        return LearnerState(state.step, parts.modules, parts.estimators)


def make_learner(
    modules: Iterable[Module | Stack],
    estimators: Iterable[Estimator],
    loss: Loss,
    optimizer: optax.GradientTransformation | Sequence[optax.GradientTransformation],
    estimator_optimizer: optax.GradientTransformation | Sequence[optax.GradientTransformation],
    *,
    update_probability: float | Sequence[float] = 1.0,
    axis_name: str | None = None,
    batch_axes: int = 1,
    microbatches: int = 1,
) -> Learner:
    """Builds the pure functions that train `modules`, decoupled by `estimators`.

    Args:
      modules: the chain, first to last; a `Stack` is many, trained in one loop.
      estimators: one a boundary, so one fewer than modules; a stack's stands above each block.
      loss: (output, y) -> (batch,), applied to the last module's output.
      optimizer: for modules, one for all or a list of one each; every module has its own state of it. One
        that asks for a `value` (`optax.contrib.reduce_on_plateau`) is given the loss of the step before.
      estimator_optimizer: the same for estimators; what some solve for themselves they go on to solve.
      update_probability: of each module in each step, one number for all or one a module (J16, section
        3.3). One that is not updated runs forward but stays bit for bit as it is: parameters, optimizer
        state and batch statistics. The estimator below it, whose target it supplies, is not fitted
        (nor is one with a loss of its own).
      axis_name: of a `pmap` or `shard_map` axis over which the batch is split; gradients, fitting
        statistics, mutable state and metrics are averaged over it.
      batch_axes: leading axes that count examples: 1 for (batch, ...); 2 for (batch, time, ...), where
        every token counts as one. Estimators and the loss then see tokens in one leading axis,
        (batch * time, ...), modules what they are fed; `weight` is (batch, time).
      microbatches: in so many parts a batch is gone through: the update of their union, in the memory of
        one. Batch statistics, and similarities, are of each part.

    Raises:
      UsageError: the numbers of modules, estimators and probabilities do not go together, or one of them
        is not what it should be: a function that makes an estimator, or one estimator in place of a list.
    """
    chain = Chain(listed("module", modules, check_link), listed("estimator", estimators, check_estimator))
    check_loss("loss", loss)
    probabilities = _check_chain(chain, update_probability)
    chain, optimizer, estimator_optimizer = _with_optimizers(
        structured(bound(chain, batch_axes), batch_axes), optimizer, estimator_optimizer
    )
    for what, number in (("batch_axes", batch_axes), ("microbatches", microbatches)):
        if not isinstance(number, int) or number < 1:
            raise UsageError(f"{what} is {number!r}, but must be a number of 1 or more")
    rules = Rules(loss, optimizer, estimator_optimizer, axis_name, batch_axes, microbatches)
    flat_modules, flat_estimators = chain.modules, chain.estimator_of_each
    names = tuple(f"boundary {i} (after {module.name})" for i, module in enumerate(flat_modules))

    def init(key: Key, x: PyTree, y: PyTree) -> LearnerState:
        parts = init_chain_state(rules, chain, key, x, y)
        estimators = first_copies(chain, parts.modules, parts.estimators)
        return LearnerState(jnp.zeros((), jnp.int32), parts.modules, estimators)

    def update(
        state: LearnerState,
        x: PyTree,
        y: PyTree,
        key: Key,
        weight: Shaped[AnyArray, "*examples"] | None = None,
    ) -> tuple[LearnerState, Metrics]:
        x, examples = examples_of(x, y, weight, batch_axes)
        # Modules fold their own index into the key; the next number is free for the coins.
        coin_key = jax.random.fold_in(key, len(flat_modules))
        coins = jax.random.bernoulli(coin_key, jnp.asarray(probabilities), (len(probabilities),))

        def active(index: Index) -> Bool[Array, ""] | None:
            return None if min(probabilities) == 1.0 else coins[index]

        parts = ChainState(state.modules, state.estimators)
        opaque_true = state.step >= 0
        result = update_chain(rules, chain, parts, x, examples, key, opaque_true=opaque_true, active=active)
        loss_now = mean_of(axis_name, mean(result.losses, examples.weight), examples.weight)
        metrics = Metrics(loss_now, result.h_out, result.boundaries)
        modules, estimators = remember(
            result.state.modules, result.state.estimators, loss_now, result.boundaries
        )
        estimators = renewed(chain, modules, estimators, state.step + 1)
        return LearnerState(state.step + 1, modules, estimators), metrics

    def predict(state: LearnerState, x: PyTree) -> PyTree:
        # The key's value cannot matter: nothing is drawn in evaluation mode.
        return evaluate_chain(chain, state.modules, x, jax.random.key(0))

    def module_update(i: int):
        last = i == len(flat_modules) - 1

        def update_module(
            module: ModuleState,
            est_params: PyTree,
            h_in: PyTree,
            y: PyTree,
            key: Key,
            signal: PyTree = None,
            weight: Shaped[AnyArray, "*examples"] | None = None,
        ) -> ModuleStep:
            h_in, examples = examples_of(h_in, y, weight, batch_axes)
            passed = forward(
                rules, flat_modules[i], module, h_in, jax.random.fold_in(key, i), lowest=i == 0
            )
            losses = None
            if last:
                losses, grad_h_out = error_of(rules, passed.h_out, examples)
            else:
                grad_h_out = estimate_at(
                    rules, names[i], flat_estimators[i], est_params, passed.h_out, examples, signal
                )
            new, grad_h_in = backward(rules, flat_modules[i], module, passed, grad_h_out, examples.weight)
            return ModuleStep(new, passed.h_out, grad_h_in, losses)

        return update_module

    def estimator_update(i: int):
        def update_estimator(
            estimator: EstimatorState,
            h: PyTree,
            y: PyTree,
            target: PyTree,
            weight: Shaped[AnyArray, "*examples"] | None = None,
        ) -> tuple[EstimatorState, BoundaryMetrics | None]:
            (h, target), examples = examples_of((h, target), y, weight, batch_axes)
            return fit(rules, flat_estimators[i], estimator, h, examples, target)

        return update_estimator

    return Learner(
        init,
        update,
        predict,
        tuple(module_update(i) for i in range(len(flat_modules))),
        tuple(estimator_update(i) for i in range(len(flat_estimators))),
        chain,
        rules,
        probabilities,
    )


def _with_optimizers(
    chain: Chain, optimizer: Any, estimator_optimizer: Any
) -> tuple[Chain, optax.GradientTransformation, optax.GradientTransformation]:
    """The chain with what was given for each of its parts, and what is left for all."""
    links, estimators = chain.links, chain.estimators
    if _is_list(optimizer):
        each = _one_each("optimizer", optimizer, len(links), "modules")
        links = tuple(_moved_by(link, tx) for link, tx in zip(links, each, strict=True))
        optimizer = optax.identity()
    if _is_list(estimator_optimizer):
        each = _one_each("estimator_optimizer", estimator_optimizer, len(estimators), "estimators")
        estimators = tuple(
            spec._replace(optimizer=partial(_given, spec.optimizer, with_value(tx)))
            for spec, tx in zip(estimators, each, strict=True)
        )
        estimator_optimizer = optax.identity()
    check_optimizer("optimizer", optimizer)
    check_optimizer("estimator_optimizer", estimator_optimizer)
    links = tuple(map(_with_value, links))
    chain = chain._replace(links=links, estimators=estimators)
    return chain, with_value(optimizer), with_value(estimator_optimizer)


def _is_list(optimizer: Any) -> bool:
    return isinstance(optimizer, Sequence) and not hasattr(optimizer, "_fields")


def _one_each(what: str, given: Any, number: int, of: str) -> tuple[optax.GradientTransformation, ...]:
    each = listed(what, given, check_optimizer)
    if len(each) != number:
        raise UsageError(f"{what}: {len(each)} were given for {number} {of}: give one for all, or one each")
    return each


def _moved_by(link: Module | Stack, tx: optax.GradientTransformation) -> Module | Stack:
    if isinstance(link, Stack):
        return link._replace(block=link.block._replace(optimizer=tx))
    return link._replace(optimizer=tx)


def _with_value(link: Module | Stack) -> Module | Stack:
    tx = (link.block if isinstance(link, Stack) else link).optimizer
    return link if tx is None else _moved_by(link, with_value(tx))


def _given(
    own: Callable | None, tx: optax.GradientTransformation, other: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimizer of an estimator that was given one, in the place of the `other` that all have."""
    del other
    return tx if own is None else own(tx)


def _check_chain(chain: Chain, update_probability: float | Sequence[float]) -> tuple[float, ...]:
    """Returns one update probability a module."""
    links, estimators = chain.links, chain.estimators
    if not links:
        raise UsageError("a learner needs at least one module")
    if isinstance(links[-1], Stack):
        raise UsageError(
            "the last module has the true loss and no estimator above it: keep it out of stacks"
        )
    if len(estimators) != len(links) - 1:
        raise UsageError(
            f"{len(links)} modules have {len(links) - 1} boundaries between them,"
            f" but {len(estimators)} estimators were given: give one a boundary"
        )
    pieces_of(chain, size=1)  # says which stacks cannot be
    if isinstance(update_probability, Sequence):
        probabilities = tuple(float(p) for p in update_probability)
    else:
        probabilities = (float(update_probability),) * len(links)
    if len(probabilities) != len(links):
        raise UsageError(
            f"{len(probabilities)} update probabilities for {len(links)} modules: give one for all"
            " or one a module"
        )
    for p in probabilities:
        if not 0.0 <= p <= 1.0:
            raise UsageError(f"update_probability is {p}: a probability lies between 0 and 1")
    return tuple(p for p, link in zip(probabilities, links, strict=True) for _ in modules_of(link))

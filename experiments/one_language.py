"""Claim: methods that look unrelated are one scheme: each puts something else in the place of dL/dh.

python -m experiments.one_language

The methods of U17's table (in its last section) and their relatives, each an estimator or a backward
rule of this package behind the same two seams, on one task; and the special cases in which one must
become another.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure

import decoupled
from configs import compare as compare_config
from decoupled import estimators
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.types import Array, Estimator, Module
from experiments.claim import Check, Claim, Drawing, Finding, Size, at_most, main
from experiments.compare import chosen_rows, declared, job_of, sized, train
from experiments.compare_page import cosines_figure, mean_and_spread
from experiments.linear_networks import with_params


class _Size(NamedTuple):
    dataset: str
    epochs: int
    seeds: int
    methods: str  # as configs/compare.py takes them; all where empty


_OF_THE_TABLE = "noise,linear,sg_prop,bp_lambda,feedback_alignment,direct_feedback_alignment,kickback,probe"
# No part has more seeds than 3, since every method is trained: full takes half an hour.
_SIZES = {
    "trial": _Size("digits", 1, 2, "noise"),
    "quick": _Size("digits", 10, 3, _OF_THE_TABLE),
    "full": _Size("fashion_mnist", 3, 3, ""),
}
_BASELINE, _CLASSES, _WIDTH = "noise", 10, 16


def measure(size: Size) -> Finding:
    chosen = _SIZES[size]
    config = compare_config.get_config()
    config.dataset, config.methods = chosen.dataset, chosen.methods
    config.epochs, config.seeds, config.alignment_every = chosen.epochs, chosen.seeds, 10**9
    config = sized(config)
    rows = []
    for name, options in chosen_rows(config.methods).items():
        job = job_of(config, options)
        told = declared(config, options, job.learner)
        rows.append({"name": name, **told, **train(job, config.seeds, vectorised=True)})
    boundaries = job.learner.chain.names[:-1]
    return Finding(
        [*_special_cases(), *_teaching(rows)],
        [
            Drawing(
                _accuracies(rows),
                "Test accuracy by what is put in the place of dL/dh, one point a seed. Marker and colour"
                " tell what a module must wait for before it can be updated. Below noise nothing is"
                " learnt but the output layer: what a method adds to that, its signal has taught the"
                " layers below.",
            ),
            Drawing(
                cosines_figure(rows, boundaries),
                "How well what a module is given agrees with the true gradient there, mean over epochs"
                " and seeds. 1: the true direction; 0: unrelated. Methods can learn well from signals"
                " that agree little, where the layers above adapt to what the layers below do.",
            ),
        ],
        list(range(chosen.seeds)),
        f"{chosen.dataset}: an MLP of {config.model.mlp.depth} hidden layers of {config.model.mlp.width}"
        f" units with batch norm, a boundary after each, {chosen.epochs} epochs; learning rates as in"
        " experiments/compare.py. The special cases are one update of a small network, relative to its"
        f" size.{'' if chosen.methods == '' else ' --size=full has all methods of this project.'}",
    )


def _teaching(rows: Sequence[dict[str, Any]]) -> list[Check]:
    """Each method against noise: what its signal has taught the layers below the output layer."""
    means = {row["name"]: mean_and_spread(row["test_accuracy"])[0] for row in rows}
    others = {name: mean for name, mean in means.items() if name != _BASELINE}
    worst = min(others, key=lambda name: others[name])
    better = sum(mean > means[_BASELINE] for mean in others.values())
    behind = means["backprop"] - others[worst]
    return [
        Check(
            f"methods (of {len(others)}) that teach the layers below more than noise does ({worst} is the"
            f" least accurate, {behind:.1f} points behind backprop)",
            better,
            f"all {len(others)}",
            better == len(others),
        )
    ]


def _special_cases() -> list[Check]:
    """Where one method must become another; each pair starts from the same parameters."""
    linear = estimators.linear(estimators.one_hot(_CLASSES))
    plain = decoupled.cut(decoupled.models.mlp(3, _WIDTH, _CLASSES), range(3))
    ruled = [decoupled.with_backward_rule(module, decoupled.feedback_alignment) for module in plain]
    shallow = decoupled.models.mlp(1, _WIDTH, _CLASSES)
    aligned = [decoupled.with_backward_rule(module, decoupled.feedback_alignment) for module in shallow]
    direct = estimators.direct_feedback_alignment(_CLASSES)
    pairs = {
        "BP(1) and backprop": (
            _learner(plain, estimators.bp_lambda(linear, 1.0)),
            _learner(plain, estimators.backprop()),
            _same_weights,
        ),
        "BP(0) and its synthetic gradient": (
            _learner(plain, estimators.bp_lambda(linear, 0.0)),
            _learner(plain, linear),
            _same_weights,
        ),
        "Feedback Alignment with B = W and backprop": (
            _learner(ruled, estimators.backprop()),
            _learner(plain, estimators.backprop()),
            _feedback_is_forward,
        ),
        "Direct and ordinary Feedback Alignment, one hidden layer": (
            _learner(shallow, direct),
            _learner(aligned, estimators.backprop()),
            _one_matrix,
        ),
    }
    return [
        at_most(f"{what}: relative difference of their updates", _difference(*pair), 1e-5)
        for what, pair in pairs.items()
    ] + [
        at_most(f"{what}: relative difference to the gradient of -<hA, t>, A fixed", difference, 1e-6)
        for what, difference in _fixed_matrices().items()
    ]


def _fixed_matrices() -> dict[str, float]:
    """What each hands down, beside what a module would be taught that is to have hA near to t."""
    keys = jax.random.split(jax.random.key(0), 3)
    h, error = jax.random.normal(keys[0], (32, _WIDTH)), jax.random.normal(keys[1], (32, _CLASSES))
    direct, kickback = estimators.direct_feedback_alignment(_CLASSES), estimators.kickback()
    params = direct.init(keys[2], h, None)
    # Units are dealt out to the outputs in turn.
    dealt = jnp.arange(_WIDTH)[:, None] % _CLASSES == jnp.arange(_CLASSES)[None]
    layer = decoupled.with_backward_rule(
        decoupled.from_linen(nn.Dense(_CLASSES), "dense"), decoupled.feedback_alignment
    )
    own, state = layer.init(keys[2], h)
    (aligned,) = jax.vjp(lambda h: layer.apply(own, state, h, keys[2], True)[0], h)[1](error)
    found = {
        "Direct Feedback Alignment": (direct.estimate(params, h, None, error), params["B"].T),
        "Kickback": (kickback.estimate({}, h, None, error), dealt / _WIDTH**0.5),
        "Feedback Alignment": (aligned, jax.tree.leaves(state["feedback"])[0]),
    }

    def gradient(A: Array) -> Array:
        return jax.grad(lambda h: -jnp.sum((h @ A) * -error))(h)

    return {
        name: float(jnp.abs(sent - gradient(A)).max() / jnp.abs(sent).max())
        for name, (sent, A) in found.items()
    }


def _learner(modules: Sequence[Module], estimator: Estimator) -> Learner:
    loss, sgd = decoupled.losses.softmax_cross_entropy, optax.sgd(1.0)
    return decoupled.make_learner(modules, [estimator] * (len(modules) - 1), loss, sgd, sgd)


def _difference(one: Learner, other: Learner, match: Any) -> float:
    """Of the steps that two learners take from matched states, largest, as a part of the largest step."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)
    y = jnp.asarray(rng.integers(_CLASSES, size=32), jnp.int32)
    key = jax.random.key(1)
    states = match(*(jax.jit(learner.init)(jax.random.key(0), x, y) for learner in (one, other)))
    steps = [_step(learner, state, x, y, key) for learner, state in zip((one, other), states, strict=True)]
    largest = max(float(jnp.abs(b).max()) for b in steps[1])
    return max(float(jnp.abs(a - b).max()) for a, b in zip(*steps, strict=True)) / largest


def _step(learner: Learner, state: LearnerState, x: Array, y: Array, key: Array) -> list[Array]:
    new, _ = jax.jit(learner.update)(state, x, y, key)
    moved = [(old.params, now.params) for old, now in zip(state.modules, new.modules, strict=True)]
    return [step for old, now in moved for step in jax.tree.leaves(jax.tree.map(jnp.subtract, now, old))]


def _same_weights(one: LearnerState, other: LearnerState) -> tuple[LearnerState, LearnerState]:
    """The same modules, and estimators moved off zero so that no estimate is trivial."""
    moved = [
        own._replace(params=jax.tree.map(lambda leaf: leaf + 0.1, own.params)) for own in other.estimators
    ]
    other = other._replace(estimators=tuple(moved))
    if jax.tree.structure(one.estimators[0].params) == jax.tree.structure(moved[0].params):
        one = one._replace(estimators=other.estimators)
    return with_params(one, [module.params for module in other.modules]), other


def _feedback_is_forward(ruled: LearnerState, plain: LearnerState) -> tuple[LearnerState, LearnerState]:
    modules = []
    for module in ruled.modules:
        feedback = {name: {"kernel": layer["kernel"]} for name, layer in module.params.items()}
        modules.append(module._replace(state={**module.state, "feedback": feedback}))
    ruled = ruled._replace(modules=tuple(modules))
    return ruled, with_params(plain, [module.params for module in ruled.modules])


def _one_matrix(direct: LearnerState, aligned: LearnerState) -> tuple[LearnerState, LearnerState]:
    (layer,) = aligned.modules[1].state["feedback"].values()
    matrix = direct.estimators[0]._replace(params={"B": layer["kernel"].T})
    direct = direct._replace(estimators=(matrix,))
    return with_params(direct, [module.params for module in aligned.modules]), aligned


_WAITS = {
    "nothing": ("#0072b2", "o"),
    "the output error": ("#009e73", "s"),
    "the module above": ("#d55e00", "^"),
}


def _waits_for(row: dict[str, Any]) -> str:
    locks = row["locks"]
    if not locks["update"]:
        return "nothing"
    return "the module above" if locks["backward"] else "the output error"


def _accuracies(rows: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(10, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(rows, key=lambda row: mean_and_spread(row["test_accuracy"])[0])
    for i, row in enumerate(ordered):
        colour, marker = _WAITS[_waits_for(row)]
        accuracies = [100 * value for value in row["test_accuracy"]]
        axes.plot(accuracies, [i] * len(accuracies), marker, color=colour, alpha=0.8)
    labels = [f"{row['name']}:  {row['form']}" for row in ordered]
    axes.set(xlabel="test accuracy, %", yticks=range(len(ordered)), yticklabels=labels)
    handles = [
        axes.plot([], [], marker, color=colour, label=f"waits for {what}")[0]
        for what, (colour, marker) in _WAITS.items()
    ]
    axes.legend(handles=handles, loc="upper left")
    axes.grid(alpha=0.3)
    return figure


CLAIM = Claim(
    "one-language",
    "experiments.one_language",
    "One language for methods that replace the backpropagated error",
    "Backprop, synthetic gradients, SG + prop, BP(λ), Feedback Alignment, Direct Feedback Alignment,"
    " Kickback, probes and noise are one scheme: each puts another quantity in the place of dL/dh, and"
    " they differ in what that reads, whether it is trained, on what, and which locks remain.",
    "U17, its last section and table of methods; BP(λ): J16, supplement",
    "told",
    "Every method is an estimator, or a rule by which layers send their signal back, behind one"
    " interface; the same training loop runs all, and locks follow from what an estimator declares to"
    " read. (1) Where one method has another as a special case, both take one step from the same"
    " parameters: the steps must be equal; what methods with a fixed matrix hand down must be the"
    " gradient of -<hA, t>. (2) All train the same network on the same task. Noise in the place of the"
    " gradient is the floor: there only the output layer learns.",
    measure,
)

if __name__ == "__main__":
    main(CLAIM)

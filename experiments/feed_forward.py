"""J16, section 3.3: feed-forward networks whose layers are trained by synthetic gradients (SGs), by depth.

python -m experiments.feed_forward
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import decoupled
from decoupled import data, estimators
from decoupled.analysis.drawing import COLOURS
from decoupled.data import Dataset
from decoupled.learning.learner import Learner
from decoupled.losses import softmax_cross_entropy
from decoupled.types import Array, Estimator
from experiments.claim import Check, Claim, Drawing, Finding, Size, at_most, main
from experiments.deep_classifiers import Training, train
from experiments.intervals import interval, positive
from experiments.mnist import mnist


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
      dataset: loads it.
      depths: numbers of hidden layers.
      examples: of the training set, at most.
      width, epochs, batch_size: of all networks.
      rare_epochs: of layers updated in every step, where they are compared with rarer updates.
      hidden: widths of the SG that sees no label.
      seeds: networks of each method.
    """

    dataset: Callable[[], Dataset]
    depths: tuple[int, ...]
    examples: int
    width: int
    epochs: int
    rare_epochs: int
    batch_size: int
    hidden: tuple[int, ...]
    seeds: int


SCALES: dict[Size, Scale] = {
    "trial": Scale(data.digits, (2,), 2000, 8, 2, 1, 256, (8,), 2),
    "quick": Scale(data.digits, (3, 6), 2000, 64, 40, 12, 64, (128, 128), 3),
    "full": Scale(mnist, (3, 4, 5, 6, 21), 10_000, 256, 15, 5, 128, (256, 256), 3),
}
_RATE = 1e-3
PROBABILITIES = (1.0, 0.2, 0.05)
EQUAL_STEPS, EQUAL_UPDATES = LENGTHS = ("equal steps", "equal updates of a layer")
BACKPROP, NONE, DNI, CDNI, LOCAL = METHODS = ("backprop", "no backprop", "DNI", "cDNI", "local loss")


def estimator_of(method: str, classes: int, hidden: tuple[int, ...]) -> Estimator:
    """What stands at each boundary."""
    labels = estimators.one_hot(classes)
    return {
        BACKPROP: estimators.backprop(),
        NONE: estimators.noise(0.0),
        DNI: estimators.mlp(hidden, norm="batch"),
        CDNI: estimators.linear(labels),
        LOCAL: estimators.local_loss(classes),
    }[method]


def make(training: Training, estimator: Estimator, update_probability: float) -> Learner:
    """A network with an SG after every hidden layer; layers and SGs are moved by Adam."""
    layers = decoupled.models.mlp(training.depth, training.width, training.classes, norm="batch")
    steps = training.epochs * training.steps_per_epoch
    # A layer that is not updated does not count the step.
    layers_adam = optax.adam(
        optax.cosine_decay_schedule(training.rate, max(1, round(steps * update_probability)))
    )
    sg_adam = optax.adam(optax.cosine_decay_schedule(training.rate, steps))
    return decoupled.make_learner(
        layers,
        [estimator] * training.depth,
        softmax_cross_entropy,
        layers_adam,
        sg_adam,
        update_probability=update_probability,
    )


def measure(size: Size) -> Finding:
    scale = SCALES[size]
    dataset = scale.dataset()
    prepare = data.preprocess(dataset.train.images).evaluate
    (x, y), (test_x, test_y) = (
        (prepare(jnp.asarray(part.images)).reshape(len(part), -1), jnp.asarray(part.labels, jnp.int32))
        for part in (dataset.train, dataset.test)
    )
    x, y = x[: scale.examples], y[: scale.examples]

    @functools.cache  # Equal steps and equal updates begin with one run.
    def accuracies(depth: int, method: str, epochs: int, probability: float = 1.0) -> np.ndarray:
        """On the test set, one a seed."""
        sizes = (len(x), scale.batch_size, epochs, _RATE)
        training = Training(depth, scale.width, dataset.num_classes, *sizes)
        estimator = estimator_of(method, dataset.num_classes, scale.hidden)
        learner = make(training, estimator, probability)
        states, _ = train(learner, training, scale.seeds, x, y)
        predict: Callable[..., Array] = jax.jit(jax.vmap(learner.predict, in_axes=(0, None)))
        return np.asarray((predict(states, test_x).argmax(-1) == test_y[None]).mean(1))

    by_depth = {
        depth: {method: accuracies(depth, method, scale.epochs) for method in METHODS}
        for depth in scale.depths
    }

    def rarely_updated(length: str, probability: float) -> np.ndarray:
        longer = 1 if length == EQUAL_STEPS else round(1 / probability)
        return accuracies(scale.depths[0], CDNI, scale.rare_epochs * longer, probability)

    by_probability = {length: {p: rarely_updated(length, p) for p in PROBABILITIES} for length in LENGTHS}
    return _finding(by_depth, by_probability, scale, dataset.name)


def _finding(
    by_depth: dict[int, dict[str, np.ndarray]],
    by_probability: dict[str, dict[float, np.ndarray]],
    scale: Scale,
    dataset: str,
) -> Finding:
    checks: list[Check] = []
    for depth, found in by_depth.items():
        at = f"{depth} hidden layers: test accuracy"
        checks += [
            positive(f"{at} of DNI above no backprop", interval(found[DNI] - found[NONE])),
            at_most(
                f"{at} of cDNI below backprop's, mean (fraction)",
                float((found[BACKPROP] - found[CDNI]).mean()),
                0.01,
            ),
            at_most(
                f"{at} with local losses below backprop's, mean (fraction)",
                float((found[BACKPROP] - found[LOCAL]).mean()),
                0.01,
            ),
        ]
    updated = by_probability[EQUAL_UPDATES]
    checks.append(
        at_most(
            f"cDNI, {scale.depths[0]} hidden layers, a layer updated in one step of 20, after as many"
            " updates of it: test accuracy below that of updates in every step, mean (fraction)",
            float((updated[PROBABILITIES[0]] - updated[PROBABILITIES[-1]]).mean()),
            0.01,
        )
    )
    lost = by_probability[EQUAL_STEPS]
    behind = 100 * float((lost[PROBABILITIES[0]] - lost[PROBABILITIES[-1]]).mean())
    remarks = (
        f"{dataset}, {scale.examples} training examples at most, {scale.width} units with batch"
        f" normalisation and ReLU, batches of {scale.batch_size}, {scale.epochs} epochs of Adam at"
        f" {_RATE:g} (to 0 by a cosine), {scale.seeds} seeds. DNI's SG has ReLU layers of"
        f" {' and '.join(map(str, scale.hidden))} units with batch normalisation, and sees no label;"
        " cDNI's is linear in h and the label. Updates in some steps alone start from"
        f" {scale.rare_epochs} epochs with one in every step; a run of as many steps with one in 20, a"
        f" twentieth of the updates, ends {behind:.1f} points lower. Under no backprop only the output"
        " layer learns. As recalled, J16 has 256 units, batches of 256, SGs of 1,024 and 1,024 units,"
        " batch normalisation, ReLU and Adam at 3e-5; the rest is this project's, as is the local loss."
    )
    return Finding(checks, [_drawing(by_depth, by_probability)], list(range(scale.seeds)), remarks)


def _drawing(
    by_depth: dict[int, dict[str, np.ndarray]], by_probability: dict[str, dict[float, np.ndarray]]
) -> Drawing:
    figure = Figure(figsize=(10, 4), layout="constrained")
    depths, probabilities = figure.subplots(1, 2, width_ratios=(1.6, 1))
    for k, method in enumerate(METHODS):
        for i, found in enumerate(by_depth.values()):
            errors = 100 * (1 - found[method])
            place = i + 0.14 * (k - (len(METHODS) - 1) / 2)
            depths.bar(place, errors.mean(), 0.12, color=COLOURS[k], label=method if i == 0 else None)
            depths.plot([place] * len(errors), errors, "k.", markersize=3)
    depths.set(yscale="log", ylabel="test error, %", xlabel="hidden layers")
    depths.set_xticks(range(len(by_depth)), [str(depth) for depth in by_depth])
    depths.legend(fontsize=8)
    for k, (length, by_chance) in enumerate(by_probability.items()):
        for i, found in enumerate(by_chance.values()):
            places, label = [i + 0.2 * k - 0.1] * len(found), length if i == 0 else None
            probabilities.plot(places, 100 * (1 - found), "o", color=COLOURS[k], label=label)
    probabilities.legend(fontsize=8)
    probabilities.set_xticks(range(len(PROBABILITIES)), [f"{p:g}" for p in PROBABILITIES])
    probabilities.set(
        xlabel="probability that a layer is updated in a step", ylabel="test error of cDNI, %"
    )
    return Drawing(
        figure,
        "Left: test error by depth, means (bars) and seeds (points), on a logarithmic axis. Right: cDNI"
        " with the fewest layers, where each layer is updated in some of the steps alone, at random,"
        " independently of the others; one point a seed.",
    )


CLAIM = Claim(
    id="feed-forward",
    module="experiments.feed_forward",
    title="Feed-forward networks with an SG after every layer",
    claim="Networks of 3 to 6 layers and more can be trained with an SG after every hidden layer: far"
    " better than without any gradient below the output layer, and where SGs see the label (cDNI) nearly"
    " as well as by backprop; and layers may be updated at random times, down to one step in 20.",
    source="J16, section 3.3: its table of feed-forward networks, and its figure of update probabilities",
    certainty="memory",
    how="A network is trained by backprop, with a fixed gradient of zero at every boundary, with SGs that"
    " see h alone, with linear SGs that see the label too, and with this project's local losses, from"
    " the same initial parameters on the same batches, for as many steps.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

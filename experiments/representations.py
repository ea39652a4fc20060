"""Claim: with synthetic gradients a network does as well, by other representations.

Classes separate later in the layers below a synthetic gradient (SG) than in those layers of a network
trained by backprop.

python -m experiments.representations
python -m experiments.representations --size=full
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from decoupled import data
from decoupled.analysis import (
    activations,
    class_contrast,
    dissimilarity_matrix,
    label_order,
    linear_cka,
)
from decoupled.analysis.drawing import Panel, draw_by_layer, draw_matrices
from decoupled.analysis.probes import probe_accuracies
from decoupled.data import Dataset
from decoupled.types import Array
from experiments.claim import Check, Claim, Drawing, Finding, Size, at_most, main
from experiments.deep_classifiers import METHODS, Training, make, trainer

BACKPROP, ONE, EVERYWHERE, UNTRAINED = METHODS


class Settings(NamedTuple):
    """How much is measured.

    Attributes:
      dataset: loads it.
      depths: numbers of hidden layers; the figure of RDMs is drawn of the first.
      width, epochs, batch_size: of all networks.
      examples: trained on.
      probed: of these, and of the test set, those that probes are fitted to and judged on.
      seeds: networks of each method.
    """

    dataset: Callable[[], Dataset]
    depths: tuple[int, ...]
    width: int
    epochs: int
    batch_size: int
    examples: int
    probed: int
    seeds: int


def _fashion_mnist() -> Dataset:
    return data.idx_dataset(data.FASHION_MNIST, "", False)


SETTINGS: dict[Size, Settings] = {
    "trial": Settings(data.digits, (4,), 20, 2, 64, 256, 100, 2),
    "quick": Settings(data.digits, (20,), 50, 60, 64, 1437, 1437, 3),
    "full": Settings(_fashion_mnist, (20, 50), 50, 10, 256, 60000, 2000, 5),
}
EXAMPLES_OF_A_CLASS = 10  # in RDMs that are drawn


class Examples(NamedTuple):
    """Inputs, (n, features), and labels, (n,)."""

    x: Array
    y: Array


class Layers(NamedTuple):
    """What was found in the networks of one method; the last layer is the output layer.

    Attributes:
      accuracy: of the networks on the test set, (seeds,).
      fitted_accuracy: on the examples that probes are fitted to, all of them trained on.
      hidden: activations of the hidden layers on test examples, (seeds, depth, n, width).
      probes: accuracy of a linear probe of each hidden layer, (seeds, depth).
      contrast: of the classes, in the RDM of each hidden layer, (seeds, depth).
    """

    accuracy: np.ndarray
    fitted_accuracy: np.ndarray
    hidden: np.ndarray
    probes: np.ndarray
    contrast: np.ndarray


class Interval(NamedTuple):
    """A mean over seeds, and Student's 95 % confidence interval for it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: np.ndarray) -> Interval:
    """Of one value a seed; without spread it is a point."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def half_rise(curves: np.ndarray) -> np.ndarray:
    """First layer, counted from 1, that reaches half of the largest value: (seeds, depth) -> (seeds,)."""
    return 1 + np.argmax(curves >= curves.max(axis=1, keepdims=True) / 2, axis=1)


def measure(size: Size) -> Finding:
    settings = SETTINGS[size]
    dataset = settings.dataset()
    prepare = data.preprocess(dataset.train.images).evaluate
    train, test = (
        Examples(
            prepare(jnp.asarray(part.images)).reshape(len(part), -1), jnp.asarray(part.labels, jnp.int32)
        )
        for part in (dataset.train, dataset.test)
    )
    train = Examples(*(part[: settings.examples] for part in train))
    test = Examples(*(part[: settings.probed] for part in test))
    seeds = list(range(settings.seeds))
    checks, drawings, remarks = [], [], []
    for depth in settings.depths:
        training = Training(
            depth,
            settings.width,
            dataset.num_classes,
            settings.examples,
            settings.batch_size,
            settings.epochs,
        )
        found = {
            method: look_at(training, method, train, test, settings.probed, settings.seeds)
            for method in METHODS
        }
        alike = similarities(found)
        checks += judge(found, alike, training)
        if depth == settings.depths[0]:
            drawings.append(dissimilarities_drawn(found, test, training))
        drawings += [layers_drawn(found, training), similarities_drawn(alike, training)]
        remarks.append(told(found, alike, dataset.name, training))
    return Finding(checks, drawings, seeds, " ".join(remarks))


def look_at(
    training: Training, method: str, train: Examples, test: Examples, probed: int, seeds: int
) -> Layers:
    """Trains networks by a method, all seeds at once, and looks into them."""
    learner = make(training, method)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    states = jax.jit(jax.vmap(trainer(learner, training), in_axes=(0, None, None)))(keys, *train)
    fitted = Examples(*(part[:probed] for part in train))
    look = jax.jit(jax.vmap(lambda state, x: activations(learner, state, x), in_axes=(0, None)))
    (*of_fitted, fitted_output), (*of_test, output) = (
        jax.device_get(look(states, part.x)) for part in (fitted, test)
    )
    probes = [
        probe_accuracies([h[s] for h in of_fitted], fitted.y, [h[s] for h in of_test], test.y)
        for s in range(seeds)
    ]
    contrast = jax.jit(lambda h: class_contrast(dissimilarity_matrix(h), test.y))
    hidden = np.stack(of_test, axis=1)
    return Layers(
        accuracy=np.mean(output.argmax(-1) == test.y[None, :], axis=1),
        fitted_accuracy=np.mean(fitted_output.argmax(-1) == fitted.y[None, :], axis=1),
        hidden=hidden,
        probes=np.asarray(probes),
        contrast=np.asarray([[contrast(h) for h in layers] for layers in hidden]),
    )


def similarities(found: dict[str, Layers]) -> dict[str, np.ndarray]:
    """CKA of the same hidden layer in two networks, (seeds, depth), by what is compared with backprop.

    The reference is another network trained by backprop: for each seed, the mean over the other seeds.
    All others start from the same parameters as the network they are compared with.
    """
    cka = jax.jit(jax.vmap(linear_cka))
    backprop = found[BACKPROP].hidden
    seeds = range(len(backprop))
    others = [[cka(backprop[s], backprop[t]) for t in seeds if t != s] for s in seeds]
    return {"backprop, other seed": np.asarray(others).mean(1)} | {
        method: np.asarray([cka(backprop[s], found[method].hidden[s]) for s in seeds])
        for method in (ONE, EVERYWHERE, UNTRAINED)
    }


def differences(
    found: dict[str, Layers], alike: dict[str, np.ndarray], training: Training
) -> dict[str, Interval]:
    """Mean differences over seeds, networks of the same initial parameters paired.

    Chosen before any was measured: what a probe loses in layers below the SG; how many layers later
    classes have separated; how much less a layer is like backprop's than another seed's is.
    """
    backprop, one, everywhere = (found[method] for method in (BACKPROP, ONE, EVERYWHERE))
    below = slice(0, training.middle)
    reference = alike["backprop, other seed"]
    return {
        "probe": interval((backprop.probes - one.probes)[:, below].mean(1)),
        "later": interval(half_rise(one.contrast) - half_rise(backprop.contrast)),
        "later everywhere": interval(half_rise(everywhere.contrast) - half_rise(backprop.contrast)),
        "less alike": interval((reference - alike[ONE]).mean(1)),
        "less alike everywhere": interval((reference - alike[EVERYWHERE]).mean(1)),
    }


def judge(found: dict[str, Layers], alike: dict[str, np.ndarray], training: Training) -> list[Check]:
    """What the claim stands or falls with."""
    at = f"depth {training.depth}"
    lost = {m: float(np.mean(found[BACKPROP].accuracy - found[m].accuracy)) for m in (ONE, EVERYWHERE)}
    low = {name: value.low for name, value in differences(found, alike, training).items()}
    mean = "lower end of the 95 % interval of the mean over seeds"
    return [
        at_most(f"{at}, one SG: test accuracy lost against backprop, mean (fraction)", lost[ONE], 0.03),
        at_most(f"{at}, SGs everywhere: the same", lost[EVERYWHERE], 0.03),
        _positive(
            f"{at}: probe accuracy that one SG costs the layers below it, {mean} (fraction)", low["probe"]
        ),
        _positive(
            f"{at}: layers by which one SG puts off half of the class contrast, {mean}", low["later"]
        ),
        _positive(
            f"{at}: CKA of two backprop networks of different seeds minus that of backprop and one SG from"
            f" the same initial parameters, {mean} and hidden layers",
            low["less alike"],
        ),
        _positive(f"{at}, SGs everywhere: the same", low["less alike everywhere"]),
    ]


def _positive(what: str, measured: float) -> Check:
    return Check(what, measured, "above 0", measured > 0)


def told(found: dict[str, Layers], alike: dict[str, np.ndarray], dataset: str, training: Training) -> str:
    """What was seen, in numbers."""
    accuracies = "; ".join(
        f"{method} {100 * layers.accuracy.mean():.1f} % ({100 * layers.fitted_accuracy.mean():.1f} %)"
        for method, layers in found.items()
        if method != UNTRAINED
    )
    below = slice(0, training.middle)
    probes = ", ".join(
        f"{method} {layers.probes[:, below].mean():.3f} below and"
        f" {layers.probes[:, training.middle :].mean():.3f} above"
        for method, layers in found.items()
    )
    rises = ", ".join(f"{method} {half_rise(found[method].contrast).mean():.1f}" for method in METHODS)
    intervals = differences(found, alike, training)
    return (
        f"{dataset}, {training.depth} hidden layers of {training.width} units, {training.epochs} epochs of"
        f" Adam; the one SG stands after layer {training.middle}. Test accuracy (on examples trained on):"
        f" {accuracies}. Probes of the layers below and above the middle, mean: {probes}; one SG costs"
        f" those below {intervals['probe']} (mean and 95 % interval). First layer with half of the largest"
        f" class contrast, mean: {rises}; that is {intervals['later']} layers later with one SG and"
        f" {intervals['later everywhere']} with SGs everywhere. CKA falls short of that of two backprop"
        f" networks by {intervals['less alike']} with one SG and by {intervals['less alike everywhere']}"
        " with SGs everywhere."
    )


def dissimilarities_drawn(found: dict[str, Layers], test: Examples, training: Training) -> Drawing:
    """RDMs of a few layers of the first seed's networks; some examples of every class, in their order."""
    order = np.asarray(label_order(test.y))
    labels = np.asarray(test.y)[order]
    chosen = np.concatenate([order[labels == c][:EXAMPLES_OF_A_CLASS] for c in np.unique(labels)])
    middle, depth = training.middle, training.depth
    shown = sorted({1, middle // 2, middle, middle + 1, (middle + depth + 1) // 2, depth} - {0})
    rows = {
        method: [dissimilarity_matrix(jnp.asarray(layers.hidden[0, i - 1, chosen])) for i in shown]
        for method, layers in found.items()
    }
    figure = draw_matrices(
        rows,
        [f"layer {i}" for i in shown],
        "dissimilarity (1 - correlation)",
        across="test examples, ordered by class",
        limits=(0.0, 1.2),
    )
    return Drawing(
        figure,
        f"Representational dissimilarity matrices of {EXAMPLES_OF_A_CLASS} test examples a class, of one"
        " seed's networks: dark where two examples have like activations. Where classes have separated"
        " there are dark blocks along the diagonal and nowhere else. The one SG stands between layers"
        f" {middle} and {middle + 1}.",
    )


def layers_drawn(found: dict[str, Layers], training: Training) -> Drawing:
    panels = [
        Panel("accuracy of a linear probe", {m: layers.probes for m, layers in found.items()}),
        Panel(
            "class contrast (dissimilarity\nbetween minus within classes)",
            {m: layers.contrast for m, layers in found.items()},
        ),
    ]
    return Drawing(
        draw_by_layer(panels, range(1, training.depth + 1), "hidden layer", [training.middle + 0.5]),
        "What each layer knows of the classes: accuracy on test examples of a linear classifier fitted to"
        " its activations, and how much more alike the activations of one class are than those of two."
        " Means over seeds, with bands from the least to the largest. The dotted line is where the one SG"
        " stands.",
    )


def similarities_drawn(alike: dict[str, np.ndarray], training: Training) -> Drawing:
    panel = Panel("linear CKA with the backprop network", alike, (0.0, 1.02))
    return Drawing(
        draw_by_layer([panel], range(1, training.depth + 1), "hidden layer", [training.middle + 0.5]),
        "How like the same layer of the network trained by backprop each layer is. Another seed's backprop"
        " network is the reference: what lies below it differs by more than chance. The other networks"
        " started from the same parameters as the one they are compared with.",
    )


CLAIM = Claim(
    id="representations",
    module="experiments.representations",
    title="Representations differ though performance does not",
    claim="Deep networks trained with SGs do as well as those trained by backprop, but their layers hold"
    " other things: with one SG in the middle, classes separate later, in the layers above it.",
    source="U17, section 5",
    how="The same deep ReLU network with batch normalisation is trained by backprop, with one SG in the"
    " middle and with an SG after every hidden layer, from the same initial parameters and on the same"
    " batches. In each hidden layer three things are measured on test examples: how well a linear classifier tells the"
    " classes apart (a probe), how much less alike the activations of two classes are than those of one"
    " (the class contrast of the dissimilarity matrix), and how like backprop's layer it is (linear CKA,"
    " 1 for layers that differ by a rotation alone). The untrained network is shown beside them. Accuracy"
    " may be 3 points below backprop's; every other number must be positive with 95 % confidence.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

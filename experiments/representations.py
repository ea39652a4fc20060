"""Where classes separate in deep networks that are trained with synthetic gradients (SGs).

A claim of this project's own: they do later in the layers below an SG than in those layers of a network
trained by backprop.

python -m experiments.representations
python -m experiments.representations --size=full
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
from experiments.deep_classifiers import METHODS, Training, make
from experiments.deep_classifiers import train as trained
from experiments.intervals import Interval, interval, positive

BACKPROP, ONE, EVERYWHERE, UNSEEN, UNTRAINED = METHODS


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


# The epochs were chosen by accuracy alone, at depth 20: with a quarter of the steps backprop and SGs
# everywhere were still gaining, by two points and by eight.
SETTINGS: dict[Size, Settings] = {
    "trial": Settings(data.digits, (2,), 8, 2, 64, 128, 60, 2),
    "quick": Settings(data.digits, (10,), 50, 100, 64, 1437, 1437, 3),
    "full": Settings(_fashion_mnist, (20, 50), 50, 12, 128, 60000, 2000, 5),
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


# Of every layer of one network; compiled once for all methods.
_contrasts = jax.jit(
    lambda hidden, y: jax.lax.map(lambda h: class_contrast(dissimilarity_matrix(h), y), hidden)
)
_cka = jax.jit(jax.vmap(linear_cka))


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
        alike = {m: likeness(layers.hidden, found[BACKPROP].hidden) for m, layers in found.items()}
        checks += judge(found, alike, training)
        if depth == settings.depths[0]:
            drawings.append(dissimilarities_drawn(found, test, training))
        drawings += [layers_drawn(found, training), likeness_drawn(alike, training)]
        remarks.append(told(found, alike, dataset.name, training))
    return Finding(checks, drawings, seeds, " ".join(remarks))


def look_at(
    training: Training, method: str, train: Examples, test: Examples, probed: int, seeds: int
) -> Layers:
    """Trains networks by a method, all seeds at once, and looks into them."""
    learner = make(training, method)
    states, _ = trained(learner, training, seeds, *train)
    fitted = Examples(*(part[:probed] for part in train))
    look = jax.jit(jax.vmap(lambda state, x: activations(learner, state, x), in_axes=(0, None)))
    (*of_fitted, fitted_output), (*of_test, output) = (
        jax.device_get(look(states, part.x)) for part in (fitted, test)
    )
    probes = [
        probe_accuracies([h[s] for h in of_fitted], fitted.y, [h[s] for h in of_test], test.y)
        for s in range(seeds)
    ]
    hidden = np.stack(of_test, axis=1)
    return Layers(
        accuracy=np.mean(output.argmax(-1) == test.y[None, :], axis=1),
        fitted_accuracy=np.mean(fitted_output.argmax(-1) == fitted.y[None, :], axis=1),
        hidden=hidden,
        probes=np.asarray(probes),
        contrast=np.asarray([_contrasts(layers, test.y) for layers in hidden]),
    )


class Likeness(NamedTuple):
    """Linear CKA of each hidden layer with that of networks of other seeds, (seeds, depth).

    Other seeds, since what is alike only because two networks started from the same parameters would hide
    what they have learnt.

    Attributes:
      with_backprop: with networks trained by backprop.
      with_own: with networks of the same method.
    """

    with_backprop: np.ndarray
    with_own: np.ndarray


def likeness(hidden: np.ndarray, backprop: np.ndarray) -> Likeness:
    """Of one method's layers, (seeds, depth, n, width), means over the other seeds."""
    seeds = range(len(hidden))

    def mean_with(others: np.ndarray) -> np.ndarray:
        pairs = [[_cka(hidden[s], others[t]) for t in seeds if t != s] for s in seeds]
        return np.asarray(pairs).mean(1)

    return Likeness(mean_with(backprop), mean_with(hidden))


class Differences(NamedTuple):
    """From backprop's networks of the same initial parameters, means over layers.

    Attributes:
      probe: accuracy of probes that a network lacks in the layers below the middle.
      contrast: class contrast that it lacks there.
      cka: mean CKA of two networks of one method (averaged over the two methods) minus that of
        networks of different methods: 0 where methods differ by no more than seeds do.
      cka_with_backprop: CKA with backprop that a network lacks against backprop of another seed:
        negative, though the two differ, where the method varies less from seed to seed.
    """

    probe: Interval
    contrast: Interval
    cka: Interval
    cka_with_backprop: Interval


def differences(
    found: dict[str, Layers], alike: dict[str, Likeness], method: str, middle: int
) -> Differences:
    """Of the networks of one method."""
    backprop, other = found[BACKPROP], found[method]
    own = (alike[BACKPROP].with_own + alike[method].with_own) / 2
    return Differences(
        interval((backprop.probes - other.probes)[:, :middle].mean(1)),
        interval((backprop.contrast - other.contrast)[:, :middle].mean(1)),
        interval((own - alike[method].with_backprop).mean(1)),
        interval((alike[BACKPROP].with_own - alike[method].with_backprop).mean(1)),
    )


def judge(found: dict[str, Layers], alike: dict[str, Likeness], training: Training) -> list[Check]:
    """What the claim stands or falls with."""
    at = f"depth {training.depth}"
    lost = {m: float(np.mean(found[BACKPROP].accuracy - found[m].accuracy)) for m in (ONE, EVERYWHERE)}
    one, everywhere = (differences(found, alike, m, training.middle) for m in (ONE, EVERYWHERE))
    mean = "mean over layers"
    return [
        at_most(f"{at}, one SG: test accuracy lost against backprop, mean (fraction)", lost[ONE], 0.03),
        at_most(f"{at}, SGs everywhere: the same", lost[EVERYWHERE], 0.03),
        positive(f"{at}, one SG: probe accuracy lacking in the layers below it, {mean}", one.probe),
        positive(f"{at}, one SG: class contrast lacking in the layers below it, {mean}", one.contrast),
        positive(f"{at}, one SG: CKA within a method minus CKA of one SG with backprop, {mean}", one.cka),
        positive(f"{at}, SGs everywhere: the same", everywhere.cka),
    ]


def told(found: dict[str, Layers], alike: dict[str, Likeness], dataset: str, training: Training) -> str:
    """What was seen, in numbers, and why."""
    middle = training.middle
    one, everywhere, unseen = (differences(found, alike, m, middle) for m in (ONE, EVERYWHERE, UNSEEN))
    accuracies = "; ".join(
        f"{method} {100 * layers.accuracy.mean():.1f} ({100 * layers.fitted_accuracy.mean():.1f})"
        for method, layers in found.items()
        if method != UNTRAINED
    )
    contrasts = "; ".join(
        f"{method} {layers.contrast[:, :middle].mean():.2f} and {layers.contrast[:, middle:].mean():.2f}"
        for method, layers in found.items()
    )
    text = (
        f"{dataset}, {training.depth} hidden layers of {training.width} units, {training.epochs} epochs of"
        f" Adam; the one SG stands after layer {middle}. Accuracy in % on test examples (on those trained"
        f" on): {accuracies}. Class contrast below and above the middle, mean: {contrasts}. Against"
        f" backprop, in the layers below the middle, one SG lacks {one.probe} of probe accuracy (mean and"
        f" 95 % interval) and {one.contrast} of class contrast; SGs everywhere {everywhere.probe} and"
        f" {everywhere.contrast}; one SG that does not see the labels {unseen.probe} and {unseen.contrast}."
        f" CKA across methods is lower than within one by {one.cka} with one SG and by {everywhere.cka}"
        f" with SGs everywhere; against two backprop networks alone, by {one.cka_with_backprop} and"
        f" {everywhere.cka_with_backprop} (below 0 where SGs make networks of different seeds more alike)."
    )
    if one.contrast.high < 0:
        text += (
            " So classes separate earlier below an SG, not later: an SG that sees the label is a teacher of"
            " its own. To estimate the gradient it forms a prediction from h and sends the error of that"
            " prediction down, as a classifier on top of h would, and the layers below it make h easy to"
            " tell apart."
        )
        if unseen.contrast.low > 0:
            text += " Without the labels it cannot, and there the layers below it do separate classes less."
    return text


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
        if method != UNTRAINED
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


def likeness_drawn(alike: dict[str, Likeness], training: Training) -> Drawing:
    limits = (0.0, 1.02)
    panels = [
        Panel(
            "CKA with backprop of other seeds", {m: like.with_backprop for m, like in alike.items()}, limits
        ),
        Panel(
            "CKA with the same method, other seeds", {m: like.with_own for m, like in alike.items()}, limits
        ),
    ]
    return Drawing(
        draw_by_layer(panels, range(1, training.depth + 1), "hidden layer", [training.middle + 0.5]),
        "How like the same layer of another network each layer is (linear CKA), always of different seeds:"
        " on the left with backprop, on the right with networks trained in the same way. Methods differ by"
        " more than seeds where a curve on the left lies below the mean of its own and backprop's on the"
        " right.",
    )


CLAIM = Claim(
    id="representations",
    module="experiments.representations",
    title="Representations differ though performance does not",
    claim="Deep networks trained with SGs do as well as those trained by backprop, but their layers hold"
    " other things: with one SG in the middle, classes separate later, in the layers above it.",
    source="the first half: U17, on representations",
    certainty="ours",
    how="The same deep ReLU network with batch normalisation is trained by backprop, with one SG in the"
    " middle and with an SG after every hidden layer, from the same initial parameters and on the same"
    " batches. How well they fit their examples is told below. In each hidden layer three things are"
    " measured on test examples: how well a linear classifier tells the classes apart (a probe), how"
    " much less alike the activations of two classes are than those of one (the class contrast of the"
    " dissimilarity matrix), and how like the same layer of networks of other seeds it is, trained by"
    " backprop or in the same way (linear CKA, 1 for layers that differ by a rotation alone). Two"
    " controls are shown beside them: one SG that does not see the labels, and the untrained network."
    " Accuracy may be 3 points below backprop's; what an SG is said to take away must be positive with"
    " 95 % confidence.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

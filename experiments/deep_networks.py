"""U17: how deep networks with synthetic gradients (SGs) learn, and what their layers hold.

python -m experiments.deep_networks
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure

from decoupled import data
from decoupled.analysis import activations, dissimilarity_matrix, label_order
from decoupled.analysis.drawing import COLOURS, Panel, draw_by_layer
from decoupled.analysis.probes import probe_accuracies
from decoupled.data import Dataset
from decoupled.types import Array
from experiments.claim import Check, Claim, Drawing, Finding, Size, at_least, main
from experiments.deep_classifiers import Training, make, train
from experiments.intervals import interval, positive
from experiments.mnist import mnist

BACKPROP, ONE, EVERYWHERE = METHODS = ("backprop", "one SG", "SGs everywhere")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"ReLU": nn.relu, "sigmoid": nn.sigmoid}


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
      dataset: loads it.
      activations: some of ACTIVATIONS.
      depths: numbers of hidden layers; the layers of the last are looked into.
      width, epochs, batch_size, examples: of all networks.
      seeds: networks of each method.
    """

    dataset: Callable[[], Dataset]
    activations: tuple[str, ...]
    depths: tuple[int, ...]
    width: int
    epochs: int
    batch_size: int
    examples: int
    seeds: int


SCALES: dict[Size, Scale] = {
    "trial": Scale(data.digits, ("ReLU",), (2,), 8, 2, 64, 128, 2),
    "quick": Scale(data.digits, ("ReLU",), (20,), 50, 150, 64, 1437, 3),
    "full": Scale(mnist, tuple(ACTIVATIONS), (3, 10, 20, 50), 100, 20, 128, 10_000, 3),
}
_RATE = 1e-3
_IN_RDM = 400  # examples


class Layers(NamedTuple):
    """What was found in the networks of one method, hidden layers alone.

    Attributes:
      losses: of training, mean of each epoch, (seeds, epochs).
      accuracy: on the training set, at the end, (seeds,).
      distance: of the diagonal blocks of each layer's RDM from those of the last, as a part of the first
        layer's, (seeds, depth).
      probes: accuracy on training examples of a linear probe, (seeds, depth).
      norms: of the kernel of each layer but the lowest, (seeds, depth - 1).
    """

    losses: np.ndarray
    accuracy: np.ndarray
    distance: np.ndarray
    probes: np.ndarray
    norms: np.ndarray


def look_at(training: Training, method: str, x: Array, y: Array, seeds: int) -> Layers:
    """Trains networks by a method, all seeds at once, and looks into them."""
    learner = make(training, method)
    states, losses = train(learner, training, seeds, x, y)
    look = jax.jit(jax.vmap(lambda state, x: activations(learner, state, x), in_axes=(0, None)))
    *hidden, output = jax.device_get(look(states, x))
    labels = np.asarray(y)
    kernels = [state.params["Dense_0"]["kernel"] for state in states.modules[1:-1]]
    chosen = np.asarray(label_order(labels[:_IN_RDM]))
    distances = [block_distances([h[s][chosen] for h in hidden], labels[chosen]) for s in range(seeds)]
    some = slice(2000)
    probes = [
        probe_accuracies(
            [h[s][some] for h in hidden], labels[some], [h[s][some] for h in hidden], labels[some]
        )
        for s in range(seeds)
    ]
    return Layers(
        np.asarray(losses).reshape(seeds, training.epochs, -1).mean(-1),
        np.mean(output.argmax(-1) == labels[None], axis=1),
        np.asarray(distances),
        np.asarray(probes),
        np.stack([np.linalg.norm(kernel, axis=(1, 2)) for kernel in kernels], axis=1),
    )


def block_distances(hidden: Sequence[np.ndarray], y: np.ndarray) -> np.ndarray:
    """Of the dissimilarities within classes from those in the last layer: root mean square, first layer 1.

    Args:
      hidden: activations of each layer, (examples, units).
      y: labels, (examples,).
    """
    within = (y[:, None] == y[None]) & ~np.eye(len(y), dtype=bool)
    matrices = [np.asarray(_rdm(h))[within] for h in hidden]
    found = np.array([np.sqrt(np.mean((rdm - matrices[-1]) ** 2)) for rdm in matrices])
    return found / max(found[0], 1e-12)


_rdm = jax.jit(dissimilarity_matrix)


def measure(size: Size) -> Finding:
    scale = SCALES[size]
    dataset = scale.dataset()
    images = data.preprocess(dataset.train.images).evaluate(
        jnp.asarray(dataset.train.images[: scale.examples])
    )
    x, y = images.reshape(len(images), -1), jnp.asarray(dataset.train.labels[: scale.examples], jnp.int32)
    found = {
        (activation, depth): {
            method: look_at(
                Training(
                    depth,
                    scale.width,
                    dataset.num_classes,
                    scale.examples,
                    scale.batch_size,
                    scale.epochs,
                    _RATE,
                    ACTIVATIONS[activation],
                    linear=True,
                ),
                method,
                x,
                y,
                scale.seeds,
            )
            for method in METHODS
        }
        for activation in scale.activations
        for depth in scale.depths
    }
    deepest = scale.depths[-1]
    checks = [
        check for name in scale.activations for check in _curves_judged(found[name, deepest], name, deepest)
    ]
    layers = found["ReLU", deepest]
    checks += _layers_judged(layers, deepest)
    drawings = [_curves_drawn(found), _layers_drawn(layers, deepest)]
    return Finding(checks, drawings, list(range(scale.seeds)), _remarks(found, scale, dataset.name))


def slope(values: np.ndarray) -> np.ndarray:
    """Of one line a seed over the layers, as a part of its mean: (seeds, layers) -> (seeds,)."""
    places = np.linspace(-0.5, 0.5, values.shape[1])
    return (values @ places) / (places @ places) / values.mean(1)


def _curves_judged(layers: dict[str, Layers], activation: str, depth: int) -> list[Check]:
    at = f"{activation}, depth {depth}"
    faster = interval((layers[BACKPROP].losses - layers[ONE].losses).mean(1))
    return [
        at_least(
            f"{at}, one SG: accuracy on the training set at the end, mean",
            float(layers[ONE].accuracy.mean()),
            0.98,
        ),
        positive(f"{at}: training loss of backprop above that with one SG, mean over the run", faster),
    ]


def _layers_judged(layers: dict[str, Layers], depth: int) -> list[Check]:
    late = {method: found.distance[:, :-1].mean(1) for method, found in layers.items()}
    at = f"ReLU, depth {depth}"
    return [
        positive(
            f"{at}: mean distance of RDMs from the last layer's, one SG above backprop",
            interval(late[ONE] - late[BACKPROP]),
        ),
        positive(f"{at}: the same, SGs everywhere above one SG", interval(late[EVERYWHERE] - late[ONE])),
        at_least(
            f"{at}: training accuracy of a linear probe of the second layer, the lower of backprop's and"
            " one SG's mean",
            min(float(layers[m].probes[:, 1].mean()) for m in (BACKPROP, ONE)),
            0.99,
        ),
        positive(
            f"{at}, backprop: rise of weight norms with depth", interval(slope(layers[BACKPROP].norms))
        ),
        positive(
            f"{at}, SGs everywhere: fall of weight norms with depth",
            interval(-slope(layers[EVERYWHERE].norms)),
        ),
    ]


def _remarks(found: dict[tuple[str, int], dict[str, Layers]], scale: Scale, dataset: str) -> str:
    accuracies = "; ".join(
        f"{activation}, {depth}: "
        + ", ".join(f"{100 * layers.accuracy.mean():.1f}" for layers in methods.values())
        for (activation, depth), methods in found.items()
    )
    return (
        f"{dataset}, {scale.examples} examples, {scale.epochs} epochs of Adam at {_RATE:g} (to 0 by a"
        f" cosine), {scale.width} units a layer, batch normalisation, linear SGs that see the label."
        f" Accuracy on the training set at the end, %, of {', '.join(METHODS)}: {accuracies}. The widths,"
        " the rate and the number of epochs are this project's."
    )


def _curves_drawn(found: dict[tuple[str, int], dict[str, Layers]]) -> Drawing:
    depths, names = sorted({depth for _, depth in found}), list(dict.fromkeys(name for name, _ in found))
    figure = Figure(figsize=(10, 0.6 + 2.6 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(depths), sharex=True, sharey="row", squeeze=False)
    for row, activation in zip(grid, names, strict=True):
        row[0].set_ylabel(f"{activation}: training loss, nats")
        for axes, depth in zip(row, depths, strict=True):
            for colour, (method, layers) in zip(COLOURS, found[activation, depth].items(), strict=False):
                epochs = range(1, layers.losses.shape[1] + 1)
                axes.semilogy(epochs, np.maximum(layers.losses.mean(0), 1e-5), color=colour, label=method)
            axes.set_title(f"{depth} hidden layers", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    grid[0][0].legend(fontsize=8)
    return Drawing(
        figure, "Training loss, mean over seeds, by depth and activation (below 1e-5 drawn there)."
    )


def _layers_drawn(layers: dict[str, Layers], depth: int) -> Drawing:
    panels = [
        Panel(
            "RDM: distance from the last layer's\n(first layer: 1)",
            {m: f.distance for m, f in layers.items()},
        ),
        Panel("training accuracy of a linear probe", {m: f.probes for m, f in layers.items()}),
        Panel(
            "norm of the kernel",
            {
                m: np.concatenate([np.full((len(f.norms), 1), np.nan), f.norms], 1)
                for m, f in layers.items()
            },
        ),
    ]
    figure = draw_by_layer(panels, range(1, depth + 1), "hidden layer", [depth // 2 + 0.5])
    return Drawing(
        figure,
        "ReLU networks. RDM: dissimilarities, 1 - correlation, of examples of one class; how far those"
        " of each layer are from those of the last. The dotted line is where the one SG stands. The"
        " kernel of the first layer, of another size, is left out.",
    )


CLAIM = Claim(
    id="deep-networks",
    module="experiments.deep_networks",
    title="Deep networks learn well with SGs, and differently",
    claim="Networks of up to 50 hidden layers train well with an SG in their middle, and deep ones faster"
    " than by backprop. Backprop's representation is nearly that of the last layer early on; with one SG"
    " it is more scattered; with SGs everywhere each layer adds a little. Linear probes reach 100 % on"
    " the training set after two layers either way. Weight norms rise with depth under backprop, and"
    " are high and then fall with SGs everywhere.",
    source="U17, its figures of representations; probes, and distances to the last layer, are from memory",
    certainty="told",
    how="The same network with batch normalisation, ReLU or sigmoid, is trained by backprop, with one"
    " linear SG in the middle and with a linear SG after every hidden layer, from the same initial"
    " parameters on the same batches. The layers of the deepest ReLU network are looked into:"
    f" dissimilarities within classes among {_IN_RDM} training examples, linear probes fitted to training"
    " examples and judged on them, and norms.",
    measure=measure,
)

if __name__ == "__main__":
    main(CLAIM)

"""The figures of any trained network: what its layers hold, and how good its gradients are."""

import jax
import jax.numpy as jnp

from decoupled.analysis.activations import activations
from decoupled.analysis.alignment import boundary_gradients, cosine, norm_ratio, r_squared, sign_agreement
from decoupled.analysis.cka import cka_of_layers
from decoupled.analysis.dissimilarity import dissimilarity_matrix, label_order
from decoupled.analysis.drawing import Panel, draw_by_layer, draw_matrices, evenly, shortened
from decoupled.analysis.probes import probe_accuracies
from decoupled.errors import UsageError
from decoupled.extras import extra
from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.shapes import AnyArray, Shaped
from decoupled.types import Array, Key

with extra("analysis"):
    from matplotlib.figure import Figure

_MOST_COLUMNS = 6  # more matrices side by side are too small to be read
_MOST_EXAMPLES = 100  # of an RDM, where each is a row of pixels


def all_figures(
    learner: Learner,
    state: LearnerState,
    x: Shaped[AnyArray, "n *shape"],
    y: Shaped[AnyArray, "n ..."],
    key: Key,
) -> dict[str, Figure]:
    """Every figure below, by its title; without those that show classes, where y is none.

    Args:
      learner, state: a trained network; layers inside one module are not seen one by one.
      x: examples that it was not trained on: about a thousand.
      y: their integer labels; or what else the network was trained to tell of them.
      key: chooses examples, and is given to modules in training mode.
    """
    found = {}
    if y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
        found["Representational dissimilarity"] = dissimilarity_figure(learner, state, x, y, key)
        found["Linear probes"] = probe_figure(learner, state, x, y, key)
    found["CKA of all pairs of layers"] = cka_figure(learner, state, x)
    if learner.estimators:
        found["Alignment of estimated and true gradients"] = alignment_figure(learner, state, x, y, key)
    return found


def dissimilarity_figure(
    learner: Learner,
    state: LearnerState,
    x: Shaped[AnyArray, "n *shape"],
    y: Shaped[AnyArray, "n ..."],
    key: Key,
) -> Figure:
    """RDMs of up to six modules, of up to 100 examples drawn with `key` and ordered by label."""
    chosen = jax.random.permutation(key, x.shape[0])[:_MOST_EXAMPLES]
    chosen = chosen[label_order(y[chosen])]
    layers = _activations(learner, state, x[chosen])
    shown = evenly(len(layers), _MOST_COLUMNS)
    matrices = [jax.jit(dissimilarity_matrix)(layers[i]) for i in shown]
    names = [shortened(learner.chain.names[i], 14) for i in shown]
    across = "examples, ordered by class"
    return draw_matrices({"": matrices}, names, "1 - correlation", across=across, limits=(0.0, 1.2))


def probe_figure(
    learner: Learner,
    state: LearnerState,
    x: Shaped[AnyArray, "n *shape"],
    y: Shaped[AnyArray, "n ..."],
    key: Key,
) -> Figure:
    """Probe accuracy of the input and of every module: fitted on one half of x, measured on the other."""
    fitted, held_out = jnp.array_split(jax.random.permutation(key, x.shape[0]), 2)
    layers = [x, *_activations(learner, state, x)]
    parts = ([h[rows] for h in layers] for rows in (fitted, held_out))
    found = probe_accuracies(next(parts), y[fitted], next(parts), y[held_out])
    panel = Panel("accuracy of a linear probe", {"probe": found})
    return draw_by_layer([panel], range(len(layers)), "module (0: the input)")


def cka_figure(
    learner: Learner,
    state: LearnerState,
    x: Shaped[AnyArray, "n *shape"],
    other: LearnerState | None = None,
) -> Figure:
    """CKA of every module with every one of the same network, or of another in the state `other`."""
    own = _activations(learner, state, x)
    matrix = cka_of_layers(own, own if other is None else _activations(learner, other, x))
    across = f"modules, 1 to {len(own)} from the top left" + (
        "" if other is None else " (across: of the other network)"
    )
    return draw_matrices({"": [matrix]}, [""], "linear CKA", across=across)


def alignment_figure(
    learner: Learner,
    state: LearnerState,
    x: Shaped[AnyArray, "n *shape"],
    y: Shaped[AnyArray, "n ..."],
    key: Key,
) -> Figure:
    """How the gradient that each boundary hands down compares with the true one, over the batch x.

    Raises:
      UsageError: the network has no boundary.
    """
    if not learner.estimators:
        raise UsageError("a network without boundaries has no estimates to compare: cut it into modules")
    gradients = jax.jit(lambda s: boundary_gradients(learner, s, x, y, key))(state)
    measures = {
        "cosine with the true gradient": (cosine, (-1.05, 1.05), 0.0),
        "entries with the right sign": (sign_agreement, (-0.02, 1.02), 0.5),
        "length relative to the true gradient": (norm_ratio, (0.0, None), 1.0),
        "R² against zero": (r_squared, (-1.0, 1.05), 0.0),
    }
    panels = []
    for label, (measure, limits, level) in measures.items():
        values = [float(jax.jit(measure)(e, t)) for t, e in zip(*gradients, strict=True)]
        panels.append(Panel(label, {"": values}, limits, level))
    positions = range(1, len(learner.estimators) + 1)
    return draw_by_layer(panels, positions, "boundary (after module)")


def _activations(
    learner: Learner, state: LearnerState, x: Shaped[AnyArray, "n *shape"]
) -> tuple[Array, ...]:
    return jax.jit(lambda state, x: activations(learner, state, x))(state, x)

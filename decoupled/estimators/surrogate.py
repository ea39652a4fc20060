"""A synthetic gradient that is the gradient of a small network in the place of the layers above."""

from typing import cast

import jax

from decoupled import weights
from decoupled.estimators.auxiliary_network import like_layers_above
from decoupled.estimators.synthetic_gradient import squared_errors
from decoupled.leaves import per_example
from decoupled.losses import softmax_cross_entropy
from decoupled.shapes import AnyArray, Float, Shaped
from decoupled.types import Array, Estimator, Loss, Module, PyTree, Structure


def surrogate(depth: int = 1, min_depth: int = 1, loss: Loss = softmax_cross_entropy) -> Estimator:
    """dl/dh of the loss l of a network built like layers above, fitted to the gradient from above.

    What a synthetic gradient has to learn has a form: it is the gradient of a loss of h through layers. A
    network of h and y without that form has to find it, and on maps does not. This one has the form from
    the start, and with all layers above (a large `depth`) it could be the gradient itself. It is fitted by
    the SG loss alone, as every synthetic gradient is: by the gradient of a squared error of gradients
    (double backpropagation). Labels enter l, as they enter the true loss, and no loss of labels is ever
    descended.

    Its layers are those of `auxiliary_network`, chosen, run and cut down alike.

    Args:
      depth, min_depth: layers at the lowest and at the highest boundary, without the last.
      loss: that of the network which is trained: (output, y) -> (batch,).

    Raises:
      UsageError: as `auxiliary_network`.

    References:
      The form: U17. Fitting a network by its derivatives: Czarnecki et al. 2017, "Sobolev
      training for neural networks" (arXiv 1706.04859). The layers: `auxiliary_network`.
    """
    base = like_layers_above("surrogate", depth, min_depth, loss)
    structure = cast(Structure, base.structure)

    def bind(layers: tuple[Module, ...], places: tuple[int, ...], batch_axes: int) -> Estimator:
        own = structure.bind(layers, places, batch_axes)

        def training_gradient(
            est_params: PyTree,
            h: PyTree,
            y: PyTree,
            target: PyTree,
            weight: Shaped[AnyArray, " batch"] | None = None,
        ) -> tuple[Float[Array, ""], PyTree]:
            def sg_loss(est_params: PyTree) -> Float[Array, ""]:
                given = () if weight is None else (weight,)
                pair = own.estimate(est_params, h, y, None, *given), target
                return weights.mean(squared_errors(*per_example(pair, batch_axes)), weight)

            return jax.value_and_grad(sg_loss)(est_params)

        return own._replace(training_gradient=training_gradient)

    return base._replace(own_loss=False, structure=Structure(structure.choose, bind))

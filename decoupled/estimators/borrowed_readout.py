"""A local loss whose head ends in the network's own last module, as it was some steps ago."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from decoupled.argument_checks import check_loss, check_module, listed
from decoupled.errors import UsageError
from decoupled.estimators.borrowing import apply_borrowed, borrower, descended, rows_of
from decoupled.losses import checked_losses, softmax_cross_entropy
from decoupled.modules.chains import init_chain, joined_name
from decoupled.shapes import AnyArray, Float
from decoupled.types import Array, Borrows, Estimator, Key, Loss, Module, ModuleVariables, PyTree


def borrowed_readout(
    loss: Loss = softmax_cross_entropy,
    private: Sequence[Module] = (),
    every: int = 1,
    decay: float = 0.0,
) -> Estimator:
    """The gradient of  loss(readout(private(h)), y),  with a copy of the network's last module as readout.

    The copy is read, never written: it is renewed every so many steps, and in between nothing from above
    reaches the module below. What is fitted, by the same loss, are the private modules alone, which stand
    in for what lies between the boundary and the readout; without them h goes to the readout as it is. So
    all heads of a network speak of its outputs in one language, and a large readout (of a vocabulary) is
    trained once.

    The readout must look at each example on its own, as in evaluation mode modules do; where tokens are the
    examples, private modules may look at those of the whole sequence.

    Args:
      loss: (output of the readout, y) -> (batch,).
      private: modules without mutable state, run in evaluation mode; the last makes what the network's last
        module is fed.
      every: steps from one renewal to the next.
      decay: of the copy, where it is a running average over renewals, in [0, 1); 0: none.

    Raises:
      UsageError: an argument is out of its range; (from init) a private module has mutable state.

    References:
      SOLO (arXiv 2609.35440), whose heads for language models are two private blocks and the network's own
      readout, read-only and slightly old.
    """
    private = listed("borrowed_readout: private module", private, check_module)
    check_loss("borrowed_readout: loss", loss)

    def bind(modules: tuple[Module, ...], batch_axes: int) -> Estimator:
        (readout,) = modules

        def init(key: Key, h: PyTree, y: PyTree) -> PyTree:
            del y
            made = init_chain(private, key, h)
            if jax.tree.leaves([variables.state for variables in made]):
                raise UsageError(
                    f"borrowed_readout: {joined_name(private)} has mutable state, such as batch statistics,"
                    " which nothing would update: take layers without"
                )
            return tuple(made)

        def losses(
            own: PyTree, borrowed: PyTree, h: PyTree, y: PyTree, weight: AnyArray | None
        ) -> Float[Array, " batch"]:
            for module, variables in zip(private, own, strict=True):
                h = apply_borrowed(module, variables, h)
            rows = rows_of(_read(readout, borrowed[0], h), batch_axes, weight)
            return checked_losses(loss(rows, y), rows)

        return descended(init, losses, batch_axes, is_trained=bool(private))

    return borrower("borrowed_readout", Borrows(bind, None, every, decay), is_trained=bool(private))


def _read(readout: Module, variables: ModuleVariables, h: PyTree) -> PyTree:
    """The readout's output.

    Raises:
      UsageError: it cannot be fed with this.
    """
    try:
        return apply_borrowed(readout, variables, h)
    except Exception as error:
        shapes = " and ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(h))
        raise UsageError(
            f"borrowed_readout: the network's last module cannot be fed with {shapes}: let private modules"
            f" make what it is fed in the network ({' '.join(str(error).split())})"
        ) from error

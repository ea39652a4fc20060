"""The two seams of the package: `Module` and `Estimator`. Read this file first.

Notation, here and everywhere (U17 = Czarnecki et al. 2017, arXiv 1703.00522; J16 = Jaderberg et al.
2017, arXiv 1608.05343):

  h           activation at a boundary: a pytree whose leaves lead with the examples, usually one array
              (batch, ...); `h_in`, `h_out` of a module
  y           context an estimator may see: labels by default, U17's SG(h, y); a pytree, (batch, ...)
  weight      of each example, (batch,): 1 where not given, 0 for padding; means over examples are weighted
  grad_h      dL/dh per example, shape of h: L is one example's loss, so nothing depends on batch size,
              devices or padding; of an h of several leaves that of its real part (`leaves`)
  grad_h_hat  an estimate of grad_h
  target      what an estimator is fitted to: the input gradient of the module above its boundary
  boundary i  stands after module i; the last module has the true loss instead
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
PyTree: TypeAlias = Any

# (output, y) -> one loss per example, (batch,); of any pytrees.
Loss: TypeAlias = Callable[[Any, Any], Array]


class ModuleVariables(NamedTuple):
    """What a module owns.

    Attributes:
      params: trained by the module's optimizer.
      state: mutable collections (batch statistics), carried from step to step, not trained.
    """

    params: PyTree
    state: PyTree


class Module(NamedTuple):
    """A part of a network that is trained on its own: a pair of pure functions.

    Attributes:
      name: how metrics and tables call it.
      init: (key, h) -> ModuleVariables.
      apply: (params, state, h, key, train) -> (h_out, new_state). h and h_out are pytrees whose leaves
        lead with the examples; `key` feeds dropout and the like; `train` is a Python bool.
      exact: the same module with its true gradient, where a backward rule has changed that of `apply`.
      parts: the modules that it runs in order, where `compose` made it of several; its params and state
        are then tuples of theirs.
      optimizer: what moves its parameters, where that is not the learner's choice for all.
    """

    name: str
    init: Callable[[Key, Any], ModuleVariables]
    apply: Callable[[PyTree, PyTree, Any, Key, bool], tuple[Any, PyTree]]
    exact: "Module | None" = None
    parts: tuple["Module", ...] = ()
    optimizer: optax.GradientTransformation | None = None


class Locks(NamedTuple):
    """What a module must wait for before it can be updated (J16's three locks), as derived from `Reads`.

    Attributes:
      forward: its input, from the modules below it.
      update: the forward pass of the modules above it.
      backward: their backward pass too.
    """

    forward: bool
    update: bool
    backward: bool


class Reads(enum.Enum):
    """What an estimator reads beyond (h, y); a module's locks follow from it."""

    NOTHING = "nothing"  # the module updates as soon as it has run forward
    ERROR = "error"  # the network's output error, dL/d(output): waits for the forward pass to end
    INCOMING = "incoming"  # the gradient from the module above: waits for the backward pass

    def choose(self, error: Any, incoming: Any) -> Any:
        """The signal an estimator with these needs is given."""
        return {Reads.NOTHING: None, Reads.ERROR: error, Reads.INCOMING: incoming}[self]

    @property
    def locks(self) -> Locks:
        """Of a module below a boundary whose estimator reads this."""
        return Locks(forward=True, update=self is not Reads.NOTHING, backward=self is Reads.INCOMING)

    @property
    def direct_error(self) -> bool:
        """Whether the output error comes straight to the boundary."""
        return self is Reads.ERROR


class Borrows(NamedTuple):
    """Of which modules above its boundary an estimator has copies, and how old these get.

    The learner makes the copies before the first step, and again after every so many; in between they stay
    as they are, whatever becomes of the modules, so what is below the boundary waits for nothing above.

    Attributes:
      bind: (modules, batch_axes) -> Estimator: the functions, once it is known of what the copies are,
        lowest first, and how many axes count examples (see `make_learner`). They alone are taken of it:
        whatever else there is to say of an estimator, the one that borrows says. `init` makes what is
        trained; estimates and fits are given it together with the copies, as `WithBorrowed`, and
        `est_gradient` has the structure of what is trained.
      next_modules: so many above the boundary are copied, fewer where there are no more; None: the last
        of the network is.
      every: steps from one renewal to the next, at least 1.
      decay: what is left of a copy at a renewal, in [0, 1), where copies are running averages; 0: nothing.
    """

    bind: Callable[[tuple[Module, ...], int], Any]
    next_modules: int | None
    every: int = 1
    decay: float = 0.0


class Structure(NamedTuple):
    """Of which layers above its boundary an estimator has the structure, with parameters of its own.

    It is told of their functions, and never of their parameters: what is below the boundary waits for
    nothing above. Layers are modules, or the parts that a module was composed of.

    Attributes:
      choose: (below, between) -> their places among the `between` layers that lie between the boundary and
        the network's last, from 0 for the lowest; `below` are under the boundary.
      bind: (layers, places, batch_axes) -> Estimator: the functions, taken of it as with `Borrows.bind`.
        `layers` are all above the boundary, lowest first, the network's last among them.
    """

    choose: Callable[[int, int], tuple[int, ...]]
    bind: Callable[[tuple[Module, ...], tuple[int, ...], int], Any]


class WithBorrowed(NamedTuple):
    """The est_params of an estimator that borrows.

    Attributes:
      own: what its `init` made.
      borrowed: copies of parameters and mutable state, of one module each, lowest first.
    """

    own: PyTree
    borrowed: tuple[ModuleVariables, ...]


class Estimator(NamedTuple):
    """Where a boundary's gradient comes from: a tuple of pure functions.

    They are written for an h of one array, (batch, ...); `estimators.joined` and `estimators.each` make of
    them what serves several arrays.

    Attributes:
      name: how metrics and tables call it.
      init: (key, h, y) -> est_params.
      estimate: (est_params, h, y, signal) -> grad_h_hat, shape of h. `signal` is what `reads` names:
        None, the output error (batch, ...) or the incoming gradient (shape of h).
      training_gradient: (est_params, h, y, target) -> (loss, est_gradient), or None where nothing is
        trained. Where examples have weights, (batch,), they come as a fifth argument, and means are
        weighted (`decoupled.weights`). `loss` is a scalar, the mean over examples of what is descended;
        `est_gradient` has the structure of est_params and holds only means over examples, so that it may
        be averaged over devices whatever it means to the optimizer. In boundary form the optimizer finds
        these multiplied, all alike, by what the loss is scaled and summed by: for a mean that is no
        gradient, `estimators.averages` has the way back.
      reads: what `estimate` needs beyond (h, y).
      optimizer: from the user's choice, which moves what is descended, makes what turns est_gradient
        into an update; None: the user's choice does.
      sees_y: False where neither estimating nor training looks at y, which may then be None.
      own_loss: True where `training_gradient` descends a loss of its own and ignores `target`;
        False where it descends the SG loss.
      y_in_fit_alone: True where `training_gradient` looks at y, but `estimate` does not.
      estimate_sees_weight: True where the estimate of an example depends on the others of its batch, so
        that `estimate` too is given the weights as a fifth argument where there are some.
      many_arrays: True where h may be a tuple of arrays, as gradients, signals and estimates then are.
      sees_whole_h: True where h comes as a module is given it: with the leaves that are no real numbers,
        and (batch, time, ...) where tokens are the examples, while y and weights have one leading axis.
        Gradients are then in these axes too, of its real part. For chains alone.
      borrows: what it needs of the modules above its boundary; None: nothing.
      structure: of which layers above its boundary it has the structure; None: of none.
    """

    name: str
    init: Callable[[Key, Any, Any], PyTree]
    estimate: Callable[..., Any]
    training_gradient: Callable[..., tuple[Array, PyTree]] | None
    reads: Reads = Reads.NOTHING
    optimizer: Callable[[optax.GradientTransformation], optax.GradientTransformation] | None = None
    sees_y: bool = True
    own_loss: bool = False
    y_in_fit_alone: bool = False
    estimate_sees_weight: bool = False
    many_arrays: bool = False
    sees_whole_h: bool = False
    borrows: Borrows | None = None
    structure: Structure | None = None

    @property
    def estimate_sees(self) -> tuple[str, ...]:
        """What `estimate` looks at."""
        y = ("y",) if self.sees_y and not self.y_in_fit_alone else ()
        signal = {Reads.NOTHING: (), Reads.ERROR: ("error",), Reads.INCOMING: ("incoming",)}[self.reads]
        return ("h", *y, *signal)

    @property
    def fit_sees(self) -> tuple[str, ...]:
        """What `training_gradient` looks at; nothing where nothing is trained."""
        if self.training_gradient is None:
            return ()
        return ("h", *(("y",) if self.sees_y else ()), *(() if self.own_loss else ("target",)))

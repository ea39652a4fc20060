"""The seam between the training loop and whatever runs its steps."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from decoupled.learning.state import LearnerState
from decoupled.shapes import Integer
from decoupled.types import PyTree


class Execution(NamedTuple):
    """How a training step is compiled, and where its state and batches live.

    Attributes:
      devices: that work on a batch, in all processes together.
      rows: batch size -> indices of the rows of a batch that this process supplies.
      place_state: what all devices need (a learner's state, totals, a key) -> the same, where steps want
        it. Steps may then destroy it.
      place_batch: this process's rows of some arrays, one row an example -> the whole arrays, where steps
        want them.
      compile_step: (state, totals, images, labels, key, weight=None), all placed -> a compiled function
        of the same -> (state, totals), which destroys the first two.
      compile_loop: (state, totals, data, order, key), all placed but for the data, which are on the host ->
        a compiled (state, totals, data, order, first, count) -> (state, totals), which destroys the first
        two, of data that are placed as `place_state` does it; see `train_loop`. None, by itself or where
        it would be made: steps are taken one by one.
      measure: function of whole state and placed batches -> the same, compiled; every process can read
        its results.
      whole_state: state as steps leave it -> as the learner knows it, for `measure`.
      finish: state after the last step -> state in which all that was fed has been learnt from.
      snapshot: (state, totals) as steps leave them -> a tree that holds all of both, for a checkpoint.
      warm_up: (number of steps, step, state, totals, and what else a step is given) -> (state, totals)
        with a snapshot built like one after so many steps. It may run steps, which destroys both.
      place_snapshot: (such a snapshot, the same with leaves on the host) -> (state, totals) for a next
        step; None: each goes where `place_state` puts it.
      of_each_link: state as steps leave it -> (states of modules, states of estimators), one a link.
    """

    devices: int
    rows: Callable[[int], slice | Integer[np.ndarray, " rows"]]
    place_state: Callable[[PyTree], PyTree]
    place_batch: Callable[[tuple[PyTree, ...]], tuple[PyTree, ...]]
    compile_step: Callable[..., Callable[..., tuple[PyTree, PyTree]]]
    measure: Callable[[Callable[..., PyTree]], Callable[..., PyTree]]
    compile_loop: Callable[..., Callable[..., tuple[PyTree, PyTree]] | None] | None = None
    whole_state: Callable[[PyTree], LearnerState] = lambda state: state
    finish: Callable[[PyTree], PyTree] = lambda state: state
    snapshot: Callable[[PyTree, PyTree], PyTree] = lambda state, totals: (state, totals)
    warm_up: Callable[..., tuple[PyTree, PyTree]] = lambda steps, step, state, totals, *arguments: (
        state,
        totals,
    )
    place_snapshot: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] | None = None
    of_each_link: Callable[[PyTree], tuple[PyTree, PyTree]] = lambda state: (
        state.modules,
        state.estimators,
    )

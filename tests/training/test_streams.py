"""A run on a data set that is read while it trains: the run on the same data in memory, and resumed."""

import chex
import pytest

import decoupled
from configs import digits
from decoupled.training import NoWorkdir, Workdir, train_and_evaluate
from decoupled.training.builder import build
from tests.helpers import folder_with

pytestmark = pytest.mark.usefixtures("undrawn")

MINE = """
import numpy as np

x = np.random.default_rng(0).normal(size=(61, 4)).astype(np.float32)


class Examples:
    def __len__(self):
        return 61

    def __getitem__(self, i):
        return x[i], int(x[i].sum() > 0)


def examples():
    return {"train": Examples(), "test": Examples(), "num_outputs": 2}


def arrays():
    return {"train": (x, (x.sum(1) > 0).astype(int)), "test": Examples(), "num_outputs": 2}


class Ends(Examples):
    def __getitem__(self, i):
        if i == 60:
            raise FileNotFoundError("no more")
        return super().__getitem__(i)


def ends():
    return {"train": Ends(), "test": Examples(), "num_outputs": 2}
"""


here = folder_with("flow", MINE)


def config(**changes):
    result = digits.get_config()
    settings = {"dataset": "flow:examples", "stream": True, "batch_size": 8, "validation_examples": 5}
    settings |= {"model.mlp.depth": 1, "model.mlp.width": 4, "model.norm": "none", "epochs": 2}
    settings |= {"optimizer.schedule": "constant", "estimator_optimizer.schedule": "constant"}
    result.update_from_flattened_dict({**settings, "alignment_every": 10**6, **changes})
    return result


class Kept(NoWorkdir):
    def save(self, state):
        self.state = state


@pytest.mark.slow
def test_a_run_is_that_of_the_data_in_memory_and_goes_on_to_the_bit(here):
    in_memory, whole = Kept(), Kept()
    expected = train_and_evaluate(build(config(stream=False)), in_memory)
    found = train_and_evaluate(build(config()), whole)
    chex.assert_trees_all_equal(whole.state, in_memory.state)
    assert (found["test_loss"], found["test_accuracy"]) == (
        expected["test_loss"],
        expected["test_accuracy"],
    )
    for epochs in (1, 2):
        settings = config(epochs=epochs)
        with Workdir(here / "run", settings.to_dict()) as workdir:
            summary = train_and_evaluate(build(settings), workdir)
    assert summary["resumed_at"] == 7
    assert summary["test_loss"] == expected["test_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "flow:arrays"},
            "^config.stream is True, but flow:arrays gives its training ex",
        ),
        ({"dataset": "procedural"}, "^config.stream is True, but procedural is read at once: leave it out"),
        (
            {"dataset": "procedural", "stream": False, "read_workers": 2},
            "^config.read_workers is 2, but procedural is read at once",
        ),
        (
            {"dataset": "flow:ends"},
            r"code of one's own fails: .*flow.py, line \d+: FileNotFoundError: no more",
        ),
    ],
)
def test_mistakes(changes, message, here):
    with pytest.raises(decoupled.UsageError, match=message) as told:
        build(config(**changes))
    assert "\n" not in str(told.value)

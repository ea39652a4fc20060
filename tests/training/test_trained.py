"""The trained network that a run leaves in its workdir."""

import chex
import jax
import pytest

import decoupled
from decoupled.training import load_trained
from decoupled.training.trained import save_trained
from tests import helpers


def learner_of(width):
    estimator = helpers.every_method()["loss_shaped"]
    return helpers.make_learner(helpers.mlp_modules(width=width, norm="batch"), estimator)


def states(width=4):
    x, y = helpers.batch()
    learner = learner_of(width)
    state = learner.init(jax.random.key(0), x, y)
    return state, jax.eval_shape(learner.init, jax.random.key(0), x, y)


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    state, like = states()
    save_trained(tmp_path, state)
    chex.assert_trees_all_equal(load_trained(tmp_path, like), state)


def test_a_run_that_saved_nothing(tmp_path):
    with pytest.raises(decoupled.DataError, match="holds no trained network: train"):
        load_trained(tmp_path, states()[1])


def test_another_network_is_refused(tmp_path):
    save_trained(tmp_path, states()[0])
    with pytest.raises(decoupled.DataError, match="is damaged, or of another network: "):
        load_trained(tmp_path, states(width=5)[1])


def test_a_damaged_one_is_refused(tmp_path):
    save_trained(tmp_path, states()[0])
    for path in (tmp_path / "trained").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(decoupled.DataError, match="is damaged, or of another network: "):
        load_trained(tmp_path, states()[1])


def test_a_disk_that_takes_nothing(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(decoupled.TrainingError, match="cannot write the trained network to"):
        save_trained(tmp_path / "file", states()[0])

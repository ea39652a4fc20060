"""Networks that a config names: built with their options, and trained for a step."""

import jax
import numpy as np
import pytest

from configs import cifar
from decoupled import models
from decoupled.modules import compose
from decoupled.training.builder import build, make_learner_of
from decoupled.training.step import no_totals, train_step
from tests.models.tiny import filled

X = np.zeros((4, 8, 8, 1), np.float32)
# Options in a config, and the same network by hand.
NETWORKS = {
    "vgg": (
        {"layers": "3,pool,4,pool,pool", "width": 2.0, "dense": (5,), "dropout": 0.5},
        models.vgg(10, (6, "pool", 8, "pool", "pool"), dense=(5,)),
    ),
    "resnet": ({"depth": 8, "width": 2}, models.resnet(8, 10, width=2)),
    "resnet_large": ({"depth": 18, "width": 2}, models.resnet_large(18, 10, width=2)),
    "vit": (
        {"depth": 1, "width": 4, "heads": 2, "patch_size": 4, "class_token": False, "dropout": 0.5},
        models.vit(1, 4, 10, heads=2, patch_size=4, class_token=False),
    ),
}


def config_of(name, boundaries):
    config = cifar.get_config("quick")
    options = {f"model.{name}.{field}": value for field, value in NETWORKS[name][0].items()}
    changes = {"model.name": name, "dataset": "digits", "crop_padding": 0, "batch_size": 4, **options}
    config.update_from_flattened_dict({"boundaries": boundaries, **changes})
    return config


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_by_name_is_the_one_by_hand(name):
    (network,), layers = make_learner_of(config_of(name, "none"), 10, 1).modules, NETWORKS[name][1]
    assert [part.name for part in network.parts] == [layer.name for layer in layers]
    by_name, by_hand = (
        jax.eval_shape(each.init, jax.random.key(0), X) for each in (network, compose(layers))
    )
    assert by_name == by_hand
    if "dropout" not in NETWORKS[name][0]:
        return
    params, state = filled(by_name)

    def drawn(key):
        return network.apply(params, state, X, key, True)[0]

    text = str(jax.make_jaxpr(drawn)(jax.random.key(0)))
    assert "random_bits" in text  # dropout is nothing that parameters show


def test_a_step_of_a_network_by_name():
    run = build(config_of("vgg", "none"))
    images, labels = (part[:4] for part in run.dataset.train)
    shapes = jax.eval_shape(run.learner.init, jax.random.key(0), run.preprocess.evaluate(images), labels)
    step = jax.jit(train_step(run.learner, run.preprocess))
    # Adam's second moments cannot be negative.
    state = jax.tree.map(np.abs, filled(shapes, scale=0.1))
    after, totals = step(state, no_totals(run.learner), images, labels, jax.random.key(0))
    assert np.isfinite(totals.loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves([m.params for m in after.modules]))

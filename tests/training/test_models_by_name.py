"""Networks that a config names: built with their options, and trained for a step."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs import cifar
from decoupled import UsageError, models
from decoupled.modules import compose
from decoupled.training.builder import build, make_learner_of
from decoupled.training.models_by_name import network_of, parse_boundaries
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
    "resnet_large": (
        {"depth": 18, "width": 2, "small_images": True},
        models.resnet_large(18, 10, width=2, small_images=True),
    ),
    "vit": (
        {"depth": 1, "width": 4, "heads": 2, "patch_size": 4, "class_token": False, "dropout": 0.5},
        models.vit(1, 4, 10, heads=2, patch_size=4, class_token=False),
    ),
    "gpt": (
        {"depth": 2, "width": 4, "heads": 2, "context": 7, "dropout": 0.5},
        models.gpt(2, 4, 10, heads=2, context=7),
    ),
    "rnn": (
        {"depth": 2, "width": 4, "cell": "gru", "vocabulary": 6, "last_step": True, "dropout": 0.5},
        models.rnn(2, 4, 10, cell=nn.GRUCell, vocabulary=6, last_step=True),
    ),
}
INPUTS = {"gpt": np.zeros((4, 7), np.int32), "rnn": np.zeros((4, 5), np.int32)}


def config_of(name, boundaries):
    config = cifar.get_config("quick")
    options = {f"model.{name}.{field}": value for field, value in NETWORKS[name][0].items()}
    changes = {"model.name": name, "dataset": "digits", "crop_padding": 0, "batch_size": 4, **options}
    config.update_from_flattened_dict({"boundaries": boundaries, **changes})
    return config


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_by_name_is_the_one_by_hand(name):
    x = INPUTS.get(name, X)
    (network,), layers = make_learner_of(config_of(name, "none"), 10, 1).modules, NETWORKS[name][1]
    assert [part.name for part in network.parts] == [layer.name for layer in layers]
    by_name, by_hand = (
        jax.eval_shape(each.init, jax.random.key(0), x) for each in (network, compose(layers))
    )
    assert by_name == by_hand
    if "dropout" not in NETWORKS[name][0]:
        return
    params, state = filled(by_name)

    def drawn(key):
        return network.apply(params, state, x, key, True)[0]

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


@pytest.mark.parametrize(
    ("layers", "modules", "sizes"),
    [
        (17, 1, [17]),
        (17, 5, [3, 3, 3, 4, 4]),
        (17, 17, [1] * 17),
        (16, 4, [4] * 4),
        (1, 1, [1]),
        (56, 55, [1] * 54 + [2]),
    ],
)
def test_modules_of_equally_many_layers(layers, modules, sizes):
    found = parse_boundaries(f"even:{modules}", layers)
    assert np.diff([-1, *found, layers - 1]).tolist() == sizes


# The layers after which Wang et al. 2021 (InfoPro, arXiv 2101.10832) cut ResNet-32 into K modules, as their
# code lists them: (stage, block) from (0, 0), the stem.
RESNET_32 = {
    2: [(2, 1)],
    4: [(1, 2), (2, 1), (3, 0)],
    8: [(1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)],
    16: [(0, 0), *((stage, block) for stage in (1, 2, 3) for block in range(5))][:-1],
}


@pytest.mark.parametrize("modules", RESNET_32)
def test_as_many_modules_as_papers_mean(modules):
    names = [layer.name for layer in models.resnet(32, 10)]
    found = [names[index] for index in parse_boundaries(f"even:{modules}", len(names))]
    own = {(0, 0): "stem"}
    assert found == [own.get(at, f"stage_{at[0] - 1}_block_{at[1]}") for at in RESNET_32[modules]]


def test_a_module_for_each_block_of_resnet_110():
    config = cifar.get_config()
    config.update_from_flattened_dict(
        {"model.name": "resnet", "model.resnet.depth": 110, "boundaries": "even:55"}
    )
    names = [module.name for module in network_of(config, 10)]
    assert (len(names), names[0], names[-1]) == (55, "stem", "stage_2_block_17+output")
    assert not any("+" in name for name in names[:-1])


@pytest.mark.parametrize(
    "text", ["even:0", "even:6", "even:", "even:-1", "even:2,3", "even:1.5", "5 modules"]
)
def test_modules_that_cannot_be(text):
    with pytest.raises(
        UsageError, match=f"^config.boundaries is '{text}'(, but the network has 5 layers)?: say "
    ):
        parse_boundaries(text, 5)

"""A whole published recipe by config: the same training written down in optax, for a network cut in two."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import cifar
from decoupled import data
from decoupled.data.published import CIFAR100_LAYOUT
from decoupled.training import builder, evaluated
from decoupled.training.builder import build
from decoupled.training.step import prepare
from tests.data.formats import cifar_bytes, random_split, write_tar
from tests.helpers import gate
from tests.models.tiny import filled

STEPS, WARMUP, RATE, DECAY, SMOOTHING, AVERAGE = 6, 2, 0.05, 0.03, 0.1, 0.6
RECIPE = {
    "dataset": "procedural",
    "download": False,
    "validation_examples": 0,
    "epochs": 1,
    "batch_size": 4000 // STEPS,  # which makes the schedules so long
    "crop_padding": 4,
    "flip": True,
    "cutout": 16,
    "estimator.name": "backprop",
    "boundaries": "even:2",
    "optimizer.name": "sgd",
    "optimizer.learning_rate": RATE,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_fraction": WARMUP / STEPS,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": DECAY,
    "optimizer.decay_biases_and_norms": False,
    "label_smoothing": SMOOTHING,
    "average_decay": AVERAGE,
    "model.norm": "batch",
}
MODELS = {
    "vgg": {"model.vgg.layers": "4,pool,6,pool,pool,pool", "model.vgg.dense": ()},
    "resnet": {"model.resnet.depth": 8, "model.resnet.width": 2},
}


def begun(learner, x, y):
    """A state before the first update, without the time to draw it: momentum and counts are zero."""
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(learner.init, jax.random.key(0), x, y),
    )
    modules = [module._replace(params=filled(module.params, scale=0.3)) for module in zeros.modules]
    return zeros._replace(modules=tuple(modules))


def by_hand(modules, state, batches):
    """The network's parameters after each step, with one gradient of the whole and one optimizer."""
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, WARMUP, STEPS)
    params, mutable = ([part[i] for part in state.modules] for i in (0, 1))
    kernels = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    sgd = optax.sgd(rate, momentum=0.9, nesterov=True)
    tx = optax.chain(optax.add_decayed_weights(DECAY, kernels), sgd)

    @jax.jit
    def step(params, mutable, opt_state, x, y):
        def loss(params):
            h, new = x, []
            for module, own, own_state in zip(modules, params, mutable, strict=True):
                h, own_state = module.apply(own, own_state, h, jax.random.key(0), True)
                new.append(own_state)
            soft = optax.smooth_labels(jax.nn.one_hot(y, 10), SMOOTHING)
            return optax.softmax_cross_entropy(h, soft).mean(), new

        gradient, mutable = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), mutable, opt_state

    opt_state, found = tx.init(params), []
    for x, y in batches:
        params, mutable, opt_state = step(params, mutable, opt_state, x, y)
        found.append(params)
    return found


@pytest.mark.parametrize("model", gate(MODELS, "vgg"))
def test_a_recipe_is_what_it_is_in_optax(model):
    config = cifar.get_config()
    config.update_from_flattened_dict({**RECIPE, "model.name": model, **MODELS[model]})
    job = build(config)
    assert len(job.learner.modules) == 2
    images, labels = (part[:16] for part in job.dataset.train)
    inputs = jax.jit(lambda step: prepare(job.preprocess, step, images, jax.random.key(1)))
    batches = [(inputs(jnp.int32(number))[0], labels) for number in range(STEPS)]
    state = start = begun(job.learner, *batches[0])
    update, losses = jax.jit(job.learner.update), []
    for x, y in batches:
        state, metrics = update(state, x, y, jax.random.key(0))
        losses.append(float(metrics.loss))
    expected = by_hand(job.learner.modules, start, batches)
    close(state, expected[-1])
    weights = AVERAGE ** np.arange(STEPS)[::-1]
    average = jax.tree.map(lambda *each: np.average(each, axis=0, weights=weights), *expected)
    close(evaluated(state), average)
    assert np.mean(losses[-2:]) < np.mean(losses[:2])


def close(state, params):
    for module, own in zip(state.modules, params, strict=True):
        for found, expected in zip(*map(jax.tree.leaves, (module.params, own)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["local_loss", "loss_shaped"])
def test_cifar_100_by_one_field(method, tmp_path, monkeypatch):
    """On files as they were published, but for their number of records."""
    layout = CIFAR100_LAYOUT._replace(train={"train.bin": 30}, test={"test.bin": 10})
    members = {}
    for name, count in {**layout.train, **layout.test}.items():
        images, fine = random_split(0, count, (32, 32, 3), classes=100)
        members[f"cifar-100-binary/{name}"] = cifar_bytes(images, fine // 5, fine)
    write_tar(tmp_path / "cifar-100-binary.tar.gz", members)
    monkeypatch.setitem(
        builder._LOADERS, "cifar100", lambda folder, download: data.cifar100(folder, download, layout)
    )
    config = cifar.get_config()
    config.dataset = "cifar100"
    small = {"data_dir": str(tmp_path), "download": False, "validation_examples": 10, "batch_size": 4}
    config.update_from_flattened_dict({**small, "estimator.name": method})
    job = build(config)
    assert (job.dataset.num_classes, len(job.dataset.train), len(job.validation)) == (100, 20, 10)
    images, labels = (part[:4] for part in job.dataset.train)
    x = job.preprocess.evaluate(images)
    state = jax.eval_shape(job.learner.init, jax.random.key(0), x, labels)
    assert jax.eval_shape(job.learner.predict, state, x).shape == (4, 100)
    for estimator in state.estimators:
        assert any(100 in leaf.shape for leaf in jax.tree.leaves(estimator.params))
    after, metrics = jax.eval_shape(job.learner.update, state, x, labels, jax.random.key(0))
    assert metrics.output.shape == (4, 100)
    assert jax.tree.map(jnp.shape, after.modules) == jax.tree.map(jnp.shape, state.modules)

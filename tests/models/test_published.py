"""Parameters of each family, counted by shapes alone, against the numbers in print."""

import functools

import jax
import jax.numpy as jnp
import pytest

from decoupled import models

# Whole numbers are those of torchvision and of GPT-2's release; millions those of the papers' tables.
PUBLISHED = {
    # Nøkland & Eidnes 2019, tables of MNIST and CIFAR-10; "2x" and "3x" widen convolutions alone.
    "VGG8B, MNIST": (models.vgg(10), (28, 28, 1), "7.3M"),
    "VGG8B 2x, MNIST": (models.vgg(10, width=2.0), (28, 28, 1), "28.2M"),
    "VGG8B, CIFAR-10": (models.vgg(10), (32, 32, 3), "8.9M"),
    "VGG11B, CIFAR-10": (models.vgg(10, models.VGG11B), (32, 32, 3), "11.6M"),
    "VGG11B 3x, CIFAR-10": (models.vgg(10, models.VGG11B, width=3.0), (32, 32, 3), "91.3M"),
    # He et al. 2016, table 6.
    "ResNet-20": (models.resnet(20, 10), (32, 32, 3), "0.27M"),
    "ResNet-110": (models.resnet(110, 10), (32, 32, 3), "1.7M"),
    "ResNet-18": (models.resnet_large(18, 1000), (224, 224, 3), 11_689_512),
    "ResNet-50": (models.resnet_large(50, 1000), (224, 224, 3), 25_557_032),
    "ViT-B/16": (models.vit(12, 768, 1000, heads=12, patch_size=16), (224, 224, 3), 86_567_656),
    # GPT-2's readout is its embedding; here it has weights of its own.
    "GPT-2 small": (
        models.gpt(12, 768, 50257, heads=12, context=1024),
        (1024,),
        124_439_808 + 50257 * 768,
    ),
    # A cell of 4 gates sees 7 inputs, or 5 units, beside 5 units of its own.
    "LSTM": (models.rnn(2, 5, 3), (2, 7), 4 * (5 * (7 + 5) + 5) + 4 * (5 * (5 + 5) + 5) + 3 * (5 + 1)),
}


@functools.cache
def traced(layer, h):
    """How many parameters it has on inputs like h, and what comes out; equal layers are traced once."""
    key = jax.random.key(0)
    variables = jax.eval_shape(layer.init, key, h)
    out, _ = jax.eval_shape(lambda own, h: layer.apply(own.params, own.state, h, key, False), variables, h)
    return sum(leaf.size for leaf in jax.tree.leaves(variables.params)), out


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    layers, shape, published = PUBLISHED[name]
    h = jax.ShapeDtypeStruct((1, *shape), jnp.int32 if name.startswith("GPT") else jnp.float32)
    count = 0
    for layer in layers:
        parameters, h = traced(layer._replace(name=""), h)
        count += parameters
    if isinstance(published, str):
        digits = len(published.partition(".")[2]) - 1
        assert f"{count / 1e6:.{digits}f}M" == published
    else:
        assert count == published


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        (models.vgg(10), 8),
        *((models.resnet(depth, 10), (depth - 2) // 2 + 2) for depth in (20, 32, 44, 56, 110)),
        (models.resnet_large(18, 10), 8 + 2),
        (models.resnet_large(34, 10), 16 + 2),
        (models.resnet_large(101, 10), 33 + 2),
        (models.resnet_large(152, 10), 50 + 2),
        (models.gpt(3, 8, 4, heads=2, context=4), 3 + 2),
    ],
)
def test_layers_to_cut_between(layers, count):
    assert len(layers) == count

"""Parameters of each family, counted by shapes alone, against the numbers in print."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from decoupled import models
from tests.commands import ROOT

# Whole numbers are those of torchvision, of GPT-2's release and, for CIFAR, of the PyTorch code that most
# papers build on (kuangliu/pytorch-cifar, akamaster/pytorch_resnet_cifar10); millions those of the papers.
PUBLISHED = {
    # Nøkland & Eidnes 2019, tables of MNIST and CIFAR-10; "2x" and "3x" widen convolutions alone.
    # VGG8B has 8.9M on CIFAR-10 there.
    "VGG8B, MNIST": (models.vgg(10), (28, 28, 1), "7.3M"),
    "VGG8B 2x, MNIST": (models.vgg(10, width=2.0), (28, 28, 1), "28.2M"),
    "VGG8B, CIFAR-10": (models.vgg(10), (32, 32, 3), 8_903_434),
    "VGG11B, CIFAR-10": (models.vgg(10, models.VGG11B), (32, 32, 3), "11.6M"),
    "VGG11B 3x, CIFAR-10": (models.vgg(10, models.VGG11B, width=3.0), (32, 32, 3), "91.3M"),
    # He et al. 2016, table 6; ResNet-32 and ResNet-110 have 0.46M and 1.7M there.
    "ResNet-20": (models.resnet(20, 10), (32, 32, 3), "0.27M"),
    "ResNet-32": (models.resnet(32, 10), (32, 32, 3), 464_154),
    "ResNet-110": (models.resnet(110, 10), (32, 32, 3), 1_727_962),
    "ResNet-18, CIFAR-10": (models.resnet_large(18, 10, small_images=True), (32, 32, 3), 11_173_962),
    "ResNet-18, CIFAR-100": (models.resnet_large(18, 100, small_images=True), (32, 32, 3), 11_220_132),
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


def normed(*channels, kernel=3, bias=0):
    """Parameters of convolutions one above the other, each with a scale and a shift a channel."""
    return sum(kernel**2 * a * b + (2 + bias) * b for a, b in itertools.pairwise(channels))


def of_resnet(blocks, *widths, projections=False, classes=10):
    """A 3x3 stem, stages of so many blocks of two convolutions, and the output layer."""
    count = normed(3, widths[0]) + (widths[-1] + 1) * classes
    for below, width in itertools.pairwise((widths[0], *widths)):
        count += normed(below, *[width] * 2 * blocks)
        if projections and below != width:
            count += normed(below, width, kernel=1)
    return count


# The same from the descriptions of these networks, layer by layer. Convolutions of VGG8B have biases.
BY_HAND = {
    "VGG8B, CIFAR-10": normed(3, 128, 256, 256, 512, 512, 512, bias=1)
    + normed(2 * 2 * 512, 1024, kernel=1, bias=1)
    + 1025 * 10,
    "ResNet-20": of_resnet(3, 16, 32, 64),
    "ResNet-32": of_resnet(5, 16, 32, 64),
    "ResNet-110": of_resnet(18, 16, 32, 64),
    "ResNet-18, CIFAR-10": of_resnet(2, 64, 128, 256, 512, projections=True),
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
    assert BY_HAND.get(name, count) == count


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


def test_a_resnet_18_for_small_images_halves_them_thrice():
    h, sizes = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), []
    for layer in models.resnet_large(18, 10, small_images=True)[:-1]:
        _, h = traced(layer._replace(name=""), h)
        sizes.append(h.shape[1:])
    assert sizes[0] == (32, 32, 64)
    assert sizes[1:] == [(32 // 2**i, 32 // 2**i, 64 * 2**i) for i in range(4) for _ in range(2)]


@pytest.mark.parametrize("name", ["VGG8B, CIFAR-10", "ResNet-32", "ResNet-110", "ResNet-18, CIFAR-10"])
def test_the_docs_have_these_numbers(name):
    layers, _, count = PUBLISHED[name]
    network = name.partition(",")[0]
    rows = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").splitlines()
    (row,) = [row for row in rows if row.startswith(f"| {network} |")]
    assert row.endswith(f"| {count:,} | {len(layers)} |")

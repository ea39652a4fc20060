"""Networks of each family, as small as they get, and parameters for them without the time to draw any."""

import jax
import jax.numpy as jnp
import numpy as np

from decoupled import models
from decoupled.modules import compose

CLASSES = 3
VOCABULARY = 5


def images(side=4, size=4):
    """x (size, side, side, 2), y (size,)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, side, side, 2)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.integers(CLASSES, size=size), jnp.int32)


def tokens(time=4, size=4):
    """x, y (size, time)."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(VOCABULARY, size=(2, size, time))
    return jnp.asarray(x, jnp.int32), jnp.asarray(y, jnp.int32)


def each_token(logits, labels):
    """The mean over time of the log loss: (batch, time, vocabulary), (batch, time) -> (batch,)."""
    chosen = jax.nn.one_hot(labels, logits.shape[-1])
    return -(jax.nn.log_softmax(logits.astype(jnp.float32)) * chosen).sum(-1).mean(-1)


def networks(dtype=jnp.float32):
    """One of each family: name -> layers."""
    channels = (2, "pool", 3, 3, 3, "pool", 3, "pool", 3, 4, 4)
    large = models.resnet_large(50, CLASSES, width=1, dtype=dtype)
    return {
        "vgg": models.vgg(CLASSES, channels, dense=(4,), dropout=0.2, dtype=dtype),
        "resnet": models.resnet(14, CLASSES, width=2, dtype=dtype),
        "resnet_large": [*large[:5], large[-1]],  # without the upper stages
        "vit": models.vit(2, 4, CLASSES, heads=2, patch_size=2, dropout=0.2, dtype=dtype),
        "gpt": models.gpt(2, 4, VOCABULARY, heads=2, context=6, dropout=0.2, dtype=dtype),
        "rnn": models.rnn(2, 4, VOCABULARY, vocabulary=VOCABULARY, dropout=0.2, dtype=dtype),
    }


def all_kinds_of_layers(dtype=jnp.float32):
    """Two chains, one for images and one for tokens: every kind of layer compiled once.

    A block of the GPT stands for those of the ViT.
    Neighbours are of different families: each maps one array to one.
    """
    of = networks(dtype)
    # Without blocks that mix tokens, a class token would see nothing of the image.
    patches, output = models.vit(0, 4, CLASSES, heads=1, patch_size=2, class_token=False, dtype=dtype)
    for_images = [
        *of["vgg"][:2],
        of["resnet"][0],
        of["resnet"][3],  # halves the image
        of["resnet_large"][2],
        patches,
        output,
    ]
    return {"images": for_images, "tokens": [*of["gpt"][:2], of["rnn"][1], of["gpt"][-1]]}


def filled(shapes, seed=0, scale=0.5):
    """Arrays of these shapes: normal numbers, and zeros for integers."""
    rng = np.random.default_rng(seed)

    def fill(like):
        if jnp.issubdtype(like.dtype, jnp.floating):
            return jnp.asarray(scale * rng.normal(size=like.shape), like.dtype)
        return jnp.zeros(like.shape, like.dtype)

    return jax.tree.map(fill, shapes)


def variables_of(layers, x):
    """A network made of the layers, and its (params, state)."""
    network = compose(layers, "network")
    params, state = jax.eval_shape(network.init, jax.random.key(0), x)
    # Running means and variances as they are at first, since a variance cannot be negative.
    return network, (filled(params), jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), state))


def output_of(layers, x, key=0, train=False):
    """What the network makes of x; with the same parameters for the same layers."""
    network, (params, state) = variables_of(layers, x)
    run = jax.jit(network.apply, static_argnums=4)
    return np.asarray(run(params, state, x, jax.random.key(key), train)[0])

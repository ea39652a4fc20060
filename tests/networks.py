"""Networks as people have them, small: several arrays, skips, masks, tokens, a carry; each with a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decoupled import Module, from_functions
from decoupled.losses import softmax_cross_entropy, squared_error
from decoupled.types import Loss

CLASSES = 3


class Network(NamedTuple):
    """A chain of modules, and what it is trained on.

    Attributes:
      modules: lowest first.
      loss: (output, y) -> (batch,).
      x, y: a batch.
      batch_axes: how many axes count examples.
      context: y of the examples -> (batch, CLASSES), for estimators.
      labels: y -> integer labels, for heads.
    """

    modules: list[Module]
    loss: Loss
    x: Any
    y: Any
    batch_axes: int = 1
    labels: Callable = lambda y: y

    def y_rows(self):
        """How many examples there are."""
        return int(np.prod(jax.tree.leaves(self.y)[0].shape[: self.batch_axes]))


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _labels(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(CLASSES, size=shape), jnp.int32)


def _layer(name, widths, apply):
    """A module whose parameters are matrices, one for each (inputs, outputs)."""

    def init(key, h):
        del h
        keys = jax.random.split(key, len(widths))
        return [jax.random.normal(k, w) / w[-2] ** 0.5 for k, w in zip(keys, widths, strict=True)]

    return from_functions(init, apply, name)


def two_towers():
    """Two inputs, a tower each, joined at the top; the boundary between has two arrays."""

    def towers(ws, x):
        return {"left": jnp.tanh(x["left"] @ ws[0]), "right": jnp.tanh(x["right"] @ ws[1])}

    def top(ws, h):
        return (h["left"] @ ws[0]) + (h["left"] * 0.5 @ ws[0]) * (h["right"] @ ws[1])

    modules = [
        _layer("towers", [(4, 5), (3, 2)], towers),
        _layer("more", [(5, 5), (2, 2)], towers),
        _layer("top", [(5, CLASSES), (2, CLASSES)], top),
    ]
    x = {"left": _normal(0, 6, 4), "right": _normal(1, 6, 3)}
    return Network(modules, softmax_cross_entropy, x, _labels(2, 6))


def two_heads():
    """One trunk, a class and a number: output and labels are trees."""

    def heads(ws, h):
        return {"class": h @ ws[0], "value": jnp.sin(h @ ws[1])}

    def loss(output, y):
        apart = softmax_cross_entropy(output["class"], y["class"])
        return apart + squared_error(output["value"], y["value"])

    modules = [
        _layer("trunk_0", [(4, 5)], lambda ws, x: jnp.tanh(x @ ws[0])),
        _layer("trunk_1", [(5, 5)], lambda ws, x: jnp.tanh(x @ ws[0])),
        _layer("heads", [(5, CLASSES), (5, 1)], heads),
    ]
    y = {"class": _labels(2, 6), "value": _normal(3, 6, 1)}
    return Network(modules, loss, _normal(0, 6, 4), y, labels=lambda y: y["class"])


def unet():
    """Down and up again with a skip: what crosses the upper boundary is the bottom and the skip."""

    def down(ws, x):
        h = jnp.tanh(jnp.einsum("bhwc,cd->bhwd", x, ws[0]))
        return h, h.reshape(h.shape[0], 2, 2, 2, 2, -1).mean((2, 4))

    def bottom(ws, h):
        skip, low = h
        return skip, jnp.tanh(jnp.einsum("bhwc,cd->bhwd", low, ws[0]))

    def up(ws, h):
        skip, low = h
        wide = jnp.repeat(jnp.repeat(low, 2, 1), 2, 2)
        return jnp.einsum("bhwc,cd->bhwd", jnp.concatenate([skip, wide], -1), ws[0])

    modules = [
        _layer("down", [(2, 3)], down),
        _layer("bottom", [(3, 4)], bottom),
        _layer("up", [(7, CLASSES)], up),
    ]

    def loss(output, y):  # one class an image, by the mean over its pixels
        return softmax_cross_entropy(output.mean((1, 2)), y)

    return Network(modules, loss, _normal(0, 6, 4, 4, 2), _labels(2, 6))


def padded_tokens():
    """Tokens of sequences of unequal length; a mask that attention uses goes along, without a gradient."""

    def embed(ws, x):
        return {"h": ws[0][x["tokens"]], "mask": x["mask"]}

    def attend(ws, x):
        h, mask = x["h"], x["mask"]
        scores = jnp.einsum("btc,cd,bsd->bts", h, ws[0], h)
        seen = jax.nn.softmax(jnp.where(mask[:, None, :], scores, -1e9))
        return {"h": h + jnp.tanh(jnp.einsum("bts,bsc,cd->btd", seen, h, ws[1])), "mask": mask}

    modules = [
        _layer("embed", [(7, 4)], embed),
        _layer("attend", [(4, 4), (4, 4)], attend),
        _layer("readout", [(4, CLASSES)], lambda ws, x: x["h"] @ ws[0]),
    ]
    mask = jnp.arange(5)[None, :] < jnp.asarray([5, 3, 4, 1])[:, None]
    tokens = jnp.asarray(np.random.default_rng(0).integers(7, size=(4, 5)), jnp.int32)
    x = {"tokens": tokens, "mask": mask}
    return Network(modules, softmax_cross_entropy, x, _labels(2, 4, 5), batch_axes=2)


def lstm():
    """One step a module: what crosses a boundary is the carry, and the inputs of the steps to come."""

    def step(ws, x):
        (c, h), rest = x
        gates = jnp.concatenate([rest[:, 0], h], axis=1) @ ws[0]
        i, f, g, o = jnp.split(gates, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (c, jax.nn.sigmoid(o) * jnp.tanh(c)), rest[:, 1:]

    def first(ws, x):
        zeros = jnp.zeros((x.shape[0], 3))
        return step(ws, ((zeros, zeros), x))

    modules = [
        _layer("first", [(5, 12)], first),
        _layer("second", [(5, 12)], step),
        _layer("readout", [(3, CLASSES)], lambda ws, x: x[0][1] @ ws[0]),
    ]
    return Network(modules, softmax_cross_entropy, _normal(0, 6, 3, 2), _labels(2, 6))


NETWORKS = {f.__name__: f for f in (two_towers, two_heads, unet, padded_tokens, lstm)}

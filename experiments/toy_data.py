"""Small problems with two classes, in any number of dimensions: U17's, and two of this project's.

Coordinates have a mean square of about 1, whatever the dimension.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from decoupled.types import Array, Key

# Of noisy_linear's labels.
FLIPPED = 0.1


def linear(key: Key, n: int, dim: int) -> tuple[Array, Array]:
    """Gaussian points, labelled by their side of a random plane through the origin: separable.

    Args:
      key: of the points and the plane.
      n: number of points.
      dim: of each.

    Returns:
      x, (n, dim), and y, (n,), integers 0 and 1. The other sets return the same.
    """
    x_key, normal_key = jax.random.split(key)
    x = jax.random.normal(x_key, (n, dim))
    normal = jax.random.normal(normal_key, (dim,))
    return x, (x @ normal > 0).astype(jnp.int32)


def noisy_linear(key: Key, n: int, dim: int) -> tuple[Array, Array]:
    """`linear`, with each label flipped with probability `FLIPPED`."""
    key, flip_key = jax.random.split(key)
    x, y = linear(key, n, dim)
    return x, jnp.where(jax.random.bernoulli(flip_key, FLIPPED, (n,)), 1 - y, y)


def random_labels(key: Key, n: int, dim: int) -> tuple[Array, Array]:
    """Gaussian points; labels have nothing to do with them."""
    x_key, y_key = jax.random.split(key)
    return jax.random.normal(x_key, (n, dim)), jax.random.bernoulli(y_key, 0.5, (n,)).astype(jnp.int32)


def xor(key: Key, n: int, dim: int) -> tuple[Array, Array]:
    """Gaussian points; class 1 where the first two coordinates differ in sign. The others mean nothing."""
    x = jax.random.normal(key, (n, dim))
    return x, (x[:, 0] * x[:, 1] < 0).astype(jnp.int32)


def ring(key: Key, n: int, dim: int) -> tuple[Array, Array]:
    """A ball, class 0, and a shell around it, class 1: radii 0 to 0.6 and 0.9 to 1.5, times sqrt(dim)."""
    direction_key, radius_key, class_key = jax.random.split(key, 3)
    direction = jax.random.normal(direction_key, (n, dim))
    direction /= jnp.linalg.norm(direction, axis=1, keepdims=True)
    y = jax.random.bernoulli(class_key, 0.5, (n,)).astype(jnp.int32)
    radius = 0.6 * jax.random.uniform(radius_key, (n,)) + jnp.where(y == 1, 0.9, 0.0)
    return dim**0.5 * radius[:, None] * direction, y


def binary_log_loss(output: Array, y: Array) -> Array:
    """Of logits and labels of 0.0 to 1.0: (n, 1) each -> (n,)."""
    return optax.sigmoid_binary_cross_entropy(output, y).sum(axis=1)


def signed(y: Array) -> Array:
    """Targets of a squared error, from labels: (n,) of 0 and 1 -> (n, 1) of -1.0 and 1.0."""
    return (2.0 * y - 1.0)[:, None]


# U17's, by memory; it has one more.
TABLE: dict[str, Callable[[Key, int, int], tuple[Array, Array]]] = {
    "linearly separable": linear,
    "noisy labels": noisy_linear,
    "random labels": random_labels,
}
# What no linear network tells apart, beside what it does.
SETS: dict[str, Callable[[Key, int, int], tuple[Array, Array]]] = {
    "linearly separable": linear,
    "noisy labels": noisy_linear,
    "XOR": xor,
    "ring": ring,
}

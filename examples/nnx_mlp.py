"""An NNX MLP whose hidden layers learn apart, from linear synthetic gradients solved for by least squares.

python -m examples.nnx_mlp
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from decoupled import NNXBoundary, estimators, split_optimizer

SG = estimators.recursive_least_squares(context=estimators.one_hot(10))


class Layer(nnx.Module):
    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.dense = nnx.Linear(inputs, outputs, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.boundary = NNXBoundary(SG, outputs, rngs=rngs)

    def __call__(self, h, y=None):
        return self.boundary(nnx.relu(self.norm(self.dense(h))), y)


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, depth: int = 3, width: int = 64):
        self.layers = nnx.List([Layer(width if i else 64, width, rngs) for i in range(depth)])
        self.output = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x, y=None):
        h = x
        for layer in self.layers:
            h = layer(h, y)
        return self.output(h)


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x, y), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def main(steps: int = 400, batch_size: int = 64) -> float:
    """Trains on digits; returns the accuracy on those held back."""
    x, y = load_digits(return_X_y=True)
    x = jnp.asarray(x / 16, jnp.float32)
    model = MLP(nnx.Rngs(0))
    # Least squares solves for all parameters of this SG: nothing is left to descend.
    tx = split_optimizer(optax.adam(2e-3), SG.optimizer(optax.identity()))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.integers(1400, size=batch_size)
        step(model, optimizer, x[batch], y[batch])
    model.eval()
    accuracy = float((model(x[1400:]).argmax(-1) == y[1400:]).mean())
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()

"""A chain of plain functions, without Flax: each module is `init` and `apply`, and learns on its own.

python -m examples.plain_functions
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import decoupled
from decoupled import estimators, losses


def layer(outputs: int, name: str, last: bool = False) -> decoupled.Module:
    """A dense layer; the hidden ones standardise each example, so that their estimators stay in range."""

    def init(key, h):
        inputs = h.shape[1]
        weights = jax.random.normal(key, (inputs, outputs)) * jnp.sqrt(2 / inputs)
        return {"W": weights, "b": jnp.zeros((1, outputs))}

    def apply(params, h):
        out = h @ params["W"] + params["b"]
        return out if last else jax.nn.relu(jax.nn.standardize(out))

    return decoupled.from_functions(init, apply, name)


def main(steps: int = 400, batch_size: int = 64) -> float:
    """Trains on digits; returns the accuracy on those held back."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    modules = [layer(64, "first"), layer(64, "second"), layer(10, "output", last=True)]
    labels = estimators.one_hot(10)
    boundaries = [estimators.loss_shaped(10, labels), estimators.linear(labels)]  # any mixture will do
    adam = optax.adam(2e-3)
    learner = decoupled.make_learner(modules, boundaries, losses.softmax_cross_entropy, adam, adam)
    epochs = -(-steps // (1400 // batch_size))
    training, held_back = (x[:1400], y[:1400]), (x[1400:], y[1400:])
    result = decoupled.fit(learner, training, epochs=epochs, batch_size=batch_size, validation=held_back)
    accuracy = result.history[-1]["validation_accuracy"]
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()

"""Networks, methods, and the learning rates tried for each: equally many for all."""

from typing import Any, TypeAlias

from ml_collections import ConfigDict

from configs import fashion_mnist

# Flat fields of a config, beyond those of configs/fashion_mnist.py.
Fields: TypeAlias = dict[str, Any]

# Each is cut after every layer but the last.
NETWORKS: dict[str, Fields] = {
    "mlp": {},
    "deep": {"model.mlp.depth": 20, "model.mlp.width": 50},
    # J16's has 128 filters of 5x5 in each layer; this is what 2 cores can train.
    "cnn": {"model.name": "cnn", "model.cnn.features": (16, 16, 16), "model.cnn.kernel_size": 5},
}

METHODS: dict[str, Fields] = {
    "backprop": {"estimator.name": "backprop"},
    "local_loss": {"estimator.name": "local_loss"},
    # As Belilovsky et al. have it: a hidden layer and no linear part beside it.
    "local_loss_hidden_128": {
        "estimator.name": "local_loss",
        "estimator.local_loss.hidden": (128,),
        "estimator.local_loss.linear": False,
    },
    # A head that flattens maps, as it does vectors.
    "local_loss_flat": {"estimator.name": "local_loss", "estimator.local_loss.filters": ()},
    "probe": {"estimator.name": "probe"},
    "similarity": {"estimator.name": "similarity"},
    "recursive_least_squares": {
        "estimator.name": "recursive_least_squares",
        "estimator.recursive_least_squares.decay": 0.9,
    },
    "loss_shaped": {"estimator.name": "loss_shaped"},
    "linear": {"estimator.name": "linear"},
    # Estimates of these two are functions of h: labels enter only their fits.
    "mean_teacher": {"estimator.name": "mean_teacher"},
    "loss_shaped_no_labels": {"estimator.name": "loss_shaped", "estimator.conditioned": False},
}

_RATE, _EST_RATE = "optimizer.learning_rate", "estimator_optimizer.learning_rate"
# Backprop has no second rate, so it is given more values of the first. A CNN wants them higher (for both).
_BACKPROP_RATES = {"mlp": (5e-4, 1e-3, 2e-3, 4e-3), "cnn": (2e-3, 4e-3, 8e-3, 1.6e-2)}
_RATES = {
    "mlp": ((1e-3, 1e-3), (1e-3, 3e-3), (2e-3, 5e-3), (4e-3, 1e-2)),
    "cnn": ((2e-3, 5e-3), (4e-3, 1e-2), (8e-3, 1e-2), (8e-3, 2e-2)),
}
# Modules must move more slowly than their teachers learn.
_TAUGHT_RATES = ((3e-4, 3e-3), (5e-4, 5e-3), (1e-3, 5e-3), (1e-3, 1e-2))


def trials(network: str, method: str) -> tuple[Fields, ...]:
    """The learning rates tried for a method."""
    kind = "cnn" if network == "cnn" else "mlp"
    if method == "backprop":
        return tuple({_RATE: rate} for rate in _BACKPROP_RATES[kind])
    pairs = _TAUGHT_RATES if method == "mean_teacher" else _RATES[kind]
    return tuple({_RATE: rate, _EST_RATE: est_rate} for rate, est_rate in pairs)


def fields(network: str, method: str, epochs: int, seed: int, rates: Fields) -> Fields:
    """All that a run changes in configs/fashion_mnist.py."""
    # Looked at often enough for a mean, and seldom enough not to count.
    common = {"epochs": epochs, "seed": seed, "alignment_every": 1000}
    return {**NETWORKS[network], **METHODS[method], **common, **rates}


def config_of(fields: Fields) -> ConfigDict:
    """configs/fashion_mnist.py with these fields."""
    config = fashion_mnist.get_config()
    config.update_from_flattened_dict(fields)
    return config


def flags(chosen: Fields) -> str:
    """The fields as a person types them."""
    return " ".join(f"--config.{field}={value}" for field, value in chosen.items())

"""Networks, methods, and the learning rates tried for each: equally many for all."""

from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from ml_collections import ConfigDict

from configs import cifar, fashion_mnist

# Flat fields of a config.
Fields: TypeAlias = dict[str, Any]


class Network(NamedTuple):
    """What is trained, and on what; cut after every layer but the last.

    Attributes:
      base: the file in configs/ that all else is taken of.
      fields: that are other than there.
      kind: whose learning rates are tried: "mlp" or "cnn".
    """

    base: ModuleType
    fields: Fields
    kind: str


_CNN = {"model.name": "cnn", "model.cnn.kernel_size": 5}
NETWORKS: dict[str, Network] = {
    "mlp": Network(fashion_mnist, {}, "mlp"),
    "deep": Network(fashion_mnist, {"model.mlp.depth": 20, "model.mlp.width": 50}, "mlp"),
    # J16's has 128 filters of 5x5 in each layer; this is what 2 cores can train.
    "cnn": Network(fashion_mnist, {**_CNN, "model.cnn.features": (16, 16, 16)}, "cnn"),
    # On CIFAR-10: one for 2 cores, and for an accelerator J16's, and those of papers on local losses.
    "small_cnn": Network(cifar, {"model.cnn.features": (8, 16, 32)}, "cnn"),
    "j16_cnn": Network(cifar, {**_CNN, "model.cnn.features": (128, 128, 128)}, "cnn"),
    "vgg8b": Network(cifar, {"model.name": "vgg"}, "cnn"),
    "resnet_32": Network(
        cifar, {"model.name": "resnet", "model.resnet.depth": 32, "boundaries": "even:16"}, "cnn"
    ),
    "resnet_110": Network(
        cifar, {"model.name": "resnet", "model.resnet.depth": 110, "boundaries": "even:55"}, "cnn"
    ),
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
    "auxiliary_network": {"estimator.name": "auxiliary_network"},
    # The same, fitted to the gradient from above alone.
    "surrogate": {"estimator.name": "surrogate"},
    # Heads that are, or end in, copies of modules above, some steps old.
    "borrowed_next": {"estimator.name": "borrowed_next"},
    "borrowed_readout": {"estimator.name": "borrowed_readout"},
    "recursive_least_squares": {
        "estimator.name": "recursive_least_squares",
        "estimator.recursive_least_squares.decay": 0.9,
    },
    "loss_shaped": {"estimator.name": "loss_shaped"},
    "linear": {"estimator.name": "linear"},
    # On maps alone: as J16 has it, with labels as planes.
    "convolutional": {"estimator.name": "convolutional", "estimator.convolutional.features": (64,)},
    # Estimates of these two are functions of h: labels enter only their fits.
    "mean_teacher": {"estimator.name": "mean_teacher"},
    "loss_shaped_no_labels": {"estimator.name": "loss_shaped", "estimator.conditioned": False},
    "linear_no_labels": {"estimator.name": "linear", "estimator.conditioned": False},
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
    kind = NETWORKS[network].kind
    if method == "backprop":
        return tuple({_RATE: rate} for rate in _BACKPROP_RATES[kind])
    pairs = _TAUGHT_RATES if method == "mean_teacher" else _RATES[kind]
    return tuple({_RATE: rate, _EST_RATE: est_rate} for rate, est_rate in pairs)


class Chosen(NamedTuple):
    """What all runs of a study have in common.

    Attributes:
      network: its name.
      epochs: of a run.
      data_dir: holds the data set; empty: looked for where systems put it.
    """

    network: str
    epochs: int
    data_dir: str = ""


def config_of(chosen: Chosen, method: str, seed: int, rates: Fields) -> ConfigDict:
    """That of a run."""
    base, fields, _ = NETWORKS[chosen.network]
    config = base.get_config()
    # Looked at often enough for a mean, and seldom enough not to count.
    common = {"epochs": chosen.epochs, "seed": seed, "alignment_every": 1000, "data_dir": chosen.data_dir}
    config.update_from_flattened_dict({**fields, **METHODS[method], **common, **rates})
    return config


def flags(chosen: Fields) -> str:
    """The fields as a person types them."""
    return " ".join(f"--config.{field}={value}" for field, value in chosen.items())

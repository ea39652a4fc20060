"""Names of models, and what each takes of a config; every field is described in configs/base.py."""

import itertools
import re
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from decoupled import models
from decoupled.argument_checks import check_module, listed
from decoupled.errors import UsageError, naming
from decoupled.extras import extra
from decoupled.modules import cut
from decoupled.modules.backward_rules import (
    BackwardRule,
    feedback_alignment,
    sign_symmetric,
    with_backward_rule,
)
from decoupled.training.config_checks import options_of
from decoupled.training.own_names import call, is_own
from decoupled.types import Module

with extra("train"):
    import ml_collections

BACKWARD_RULES: dict[str, BackwardRule | None] = {
    "exact": None,
    "feedback_alignment": feedback_alignment,
    "sign_symmetric": sign_symmetric,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
CELLS = {"simple": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
MODELS: dict[str, Callable[..., list[Module]]] = {
    "mlp": lambda config, classes, **options: models.mlp(
        config.depth, config.width, classes, dropout=config.dropout, **options
    ),
    "cnn": lambda config, classes, **options: models.cnn(
        config.features, classes, kernel_size=config.kernel_size, **options
    ),
    "vgg": lambda config, classes, **options: models.vgg(
        classes,
        parse_vgg(config.layers),
        width=config.width,
        dense=config.dense,
        dropout=config.dropout,
        **options,
    ),
    "resnet": lambda config, classes, **options: models.resnet(
        config.depth, classes, width=config.width, **options
    ),
    "resnet_large": lambda config, classes, **options: models.resnet_large(
        config.depth, classes, width=config.width, small_images=config.small_images, **options
    ),
    # Of transformers layer norms are a part, whatever config.model.norm says; recurrent layers have none.
    "vit": lambda config, classes, norm, axis_name, **options: models.vit(
        config.depth,
        config.width,
        classes,
        heads=config.heads,
        patch_size=config.patch_size,
        class_token=config.class_token,
        dropout=config.dropout,
        **options,
    ),
    "gpt": lambda config, classes, norm, axis_name, **options: models.gpt(
        config.depth,
        config.width,
        classes,
        heads=config.heads,
        context=config.context,
        dropout=config.dropout,
        **options,
    ),
    "rnn": lambda config, classes, norm, axis_name, **options: models.rnn(
        config.depth,
        config.width,
        classes,
        cell=CELLS[config.cell],
        vocabulary=config.vocabulary or None,
        last_step=config.last_step,
        dropout=config.dropout,
        **options,
    ),
}


def network_of(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> list[Module]:
    """The network of a config, cut at its boundaries.

    Args:
      config: a whole one, checked.
      num_classes: of the data.
      axis_name: of a mapped axis over which batches are split.

    Raises:
      UsageError: a field has a value that cannot be; the message names it.
    """
    layers = _layers(config.model, num_classes, axis_name)
    modules = cut(layers, parse_boundaries(config.boundaries, len(layers)))
    rule = BACKWARD_RULES[config.model.backward_rule]
    return modules if rule is None else [with_backward_rule(module, rule) for module in modules]


def parse_boundaries(text: str, num_layers: int) -> list[int]:
    """The indices of layers after which to cut, from "all", "none", a list like "0,2,5", or "even:4".

    The last cuts the layers into 4 modules, as many in each; where they cannot be shared out, the highest
    modules have one more than the others.

    Raises:
      UsageError: it is none of these, or there are fewer layers than modules.
    """
    if text == "all":
        return list(range(num_layers - 1))
    if text == "none":
        return []
    if even := re.fullmatch(r"even:(\d{1,9})", text):
        modules = int(even[1])
        if not 1 <= modules <= num_layers:
            raise UsageError(
                f"config.boundaries is {text!r}, but the network has {num_layers} layers: say even:1 to"
                f" even:{num_layers}"
            )
        size, larger = divmod(num_layers, modules)
        sizes = [size] * (modules - larger) + [size + 1] * larger
        return [end - 1 for end in itertools.accumulate(sizes[:-1])]
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UsageError(
            f"config.boundaries is {text!r}: say all, none, layer indices like 0,2,5, or even:4 for"
            " 4 modules"
        )
    return [int(index) for index in text.split(",")]


def parse_vgg(text: str) -> list[int | str]:
    """Channels of convolution layers and "pool", from a list like "128,256,pool"."""
    entries = text.split(",")
    if not all(re.fullmatch(r"[1-9]\d{0,8}|pool", entry) for entry in entries):
        raise UsageError(
            f"config.model.vgg.layers is {text!r}: say numbers of channels, and pool where the image is"
            " to be halved, like 128,256,pool,512"
        )
    return [entry if entry == "pool" else int(entry) for entry in entries]


def _layers(config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None) -> list[Module]:
    given = {"norm": config.norm, "dtype": DTYPES[config.dtype], "axis_name": axis_name}
    if is_own(config.name):
        made = call("model.name", config.name, {"num_outputs": num_classes, **given}, options_of(config))
        with naming(f"config.model.name is {config.name!r}, which returns something else"):
            return list(listed("module", made, check_module))
    return MODELS[config.name](config[config.name], num_classes, **given)

"""Flax models as chains of layers, to cut into modules where one likes."""

from decoupled.models.cnn import cnn
from decoupled.models.gpt import gpt
from decoupled.models.mlp import mlp
from decoupled.models.resnet import resnet, resnet_large
from decoupled.models.rnn import rnn
from decoupled.models.vgg import VGG8B, VGG11B, vgg
from decoupled.models.vit import vit

__all__ = ["VGG8B", "VGG11B", "cnn", "gpt", "mlp", "resnet", "resnet_large", "rnn", "vgg", "vit"]

"""Data sets in host memory: one format a file, bytes in, checked labelled images out."""

from typing import TYPE_CHECKING

from decoupled.data.augment import Preprocess, preprocess
from decoupled.data.dataset import (
    AnySplit,
    Dataset,
    Split,
    WeightedSplit,
    batches_from,
    batches_per_epoch,
    hold_out,
    shuffled_batches,
)
from decoupled.data.digits import digits
from decoupled.data.own import Reading, own_dataset
from decoupled.data.procedural import procedural
from decoupled.data.stream import Stream
from decoupled.extras import on_demand

if TYPE_CHECKING:
    from decoupled.data.published import FASHION_MNIST, MNIST, cifar10, cifar100, idx_dataset

__all__ = [
    "FASHION_MNIST",
    "MNIST",
    "AnySplit",
    "Dataset",
    "Preprocess",
    "Reading",
    "Split",
    "Stream",
    "WeightedSplit",
    "batches_from",
    "batches_per_epoch",
    "cifar10",
    "cifar100",
    "digits",
    "hold_out",
    "idx_dataset",
    "own_dataset",
    "preprocess",
    "procedural",
    "shuffled_batches",
]

__getattr__ = on_demand(
    __name__,
    dict.fromkeys(("FASHION_MNIST", "MNIST", "cifar10", "cifar100", "idx_dataset"), "published"),
)

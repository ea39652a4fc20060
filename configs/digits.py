"""Digits (real, embedded): a small MLP with a synthetic gradient at every boundary.

python train.py --config=configs/digits.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.dataset = "digits"
    config.validation_examples = 200
    config.model.mlp.depth = 3
    config.model.mlp.width = 128
    config.epochs = 40
    config.batch_size = 64
    config.alignment_every = 50
    return config

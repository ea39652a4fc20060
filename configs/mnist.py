"""MNIST: a 6x256 MLP with a synthetic gradient after every layer but the last.

python train.py --config=configs/mnist.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.dataset = "mnist"
    config.validation_examples = 5000
    return config

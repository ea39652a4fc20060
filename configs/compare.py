"""Every method on one network and data set: see experiments/compare.py.

make compare
make compare ARGS=--config.dataset=fashion_mnist

Fields that are None are chosen for the data set, in SIZES below. Each row of the comparison sets
estimator.name, estimator.conditioned, model.backward_rule and, where it needs them, learning rates.
"""

from ml_collections import config_dict

from configs import base

# The network and the length of training for each data set.
SIZES = {
    "digits": {
        "validation_examples": 200,
        "model.mlp.depth": 3,
        "model.mlp.width": 128,
        "epochs": 20,
        "batch_size": 64,
    },
    "fashion_mnist": {
        "validation_examples": 5000,
        "model.mlp.depth": 6,
        "model.mlp.width": 256,
        "epochs": 10,
        "batch_size": 256,
    },
}
SIZES["mnist"] = SIZES["fashion_mnist"]


def get_config():
    config = base.get_config()
    del config.seed
    config.seeds = 3  # runs of each method, with seeds 0, 1, ...
    config.methods = ""  # rows to run, like probe,noise; all where empty
    config.timing_turns = 10  # of the measurement of step times; 0 for none
    for field in SIZES["digits"]:
        *path, name = field.split(".")
        section = config
        for part in path:
            section = section[part]
        section[name] = config_dict.placeholder(int)
    return config

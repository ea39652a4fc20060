"""One's own network and data, from a folder anywhere: copy this one, and from inside it run

python PATH/TO/train.py --config=config.py
"""

from configs import base


def get_config():
    config = base.get_config()
    config.dataset = "rings:data"
    config.validation_examples = 200
    config.loss = "rings:huber"
    config.metric = "rings:worst_error"
    config.model.name = "rings:network"
    config.model.options.width = 32
    config.estimator.name = "rings:estimator"
    config.estimator.options.hidden = 16
    config.optimizer.learning_rate = 1e-2
    config.estimator_optimizer.learning_rate = 1e-2
    config.batch_size = 50
    config.epochs = 10
    return config

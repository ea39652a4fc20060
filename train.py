"""Trains a network whose modules are decoupled by synthetic gradients.

  python train.py --config=configs/digits.py
  python train.py --config=configs/fashion_mnist.py --config.estimator.name=backprop
  python train.py --config=configs/cifar.py:quick --workdir=runs/first

Every field of the config can be set on the command line; configs/base.py describes them all.
Exit codes: 0 done, 1 failed (data, numbers, disk), 2 a mistake in the command, 130 interrupted.
"""

import time
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to train: a file in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the results; by default runs/CONFIG/TIME.")


def main() -> None:
    from decoupled.builder import build
    from decoupled.errors import UsageError
    from decoupled.training import Workdir, train_and_evaluate

    if _CONFIG.value is None:
        raise UsageError("say what to train: --config=configs/digits.py; see --help")
    job = build(_CONFIG.value)
    path = Path(_WORKDIR.value or _default_workdir())
    with Workdir(path, _CONFIG.value.to_dict()) as workdir:
        train_and_evaluate(job, workdir)
    logging.info("results in %s", workdir.path)


def _default_workdir() -> str:
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    return f"runs/{Path(config_file).stem}/{time.strftime('%Y%m%d-%H%M%S')}"


if __name__ == "__main__":
    command_line.run("train.py", _CONFIG, main)

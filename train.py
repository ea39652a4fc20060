r"""Trains a network whose modules are decoupled by synthetic gradients.

  python train.py --config=configs/digits.py
  python train.py --config=configs/fashion_mnist.py --config.estimator.name=backprop
  python train.py --config=configs/cifar.py:quick --workdir=runs/first
  python train.py --config=runs/digits/TIME/config.json --config.seed=1

Several processes, here or on many hosts, train as one (the same command in each, but for its id):

  python train.py --config=configs/digits.py --config.parallel.mode=mesh \
    --coordinator_address=10.0.0.1:1234 --num_processes=2 --process_id=0
  srun python train.py --config=configs/cifar.py --config.parallel.mode=mesh --distributed

Every field of the config can be set on the command line; configs/base.py describes them all.
A run that was stopped, or killed, goes on from its last checkpoint: the same command, with its --workdir.
One that has ended does so too, with a larger --config.epochs.
SIGINT (^C) or SIGTERM stops it after the steps it is at, half a second of them or one, with a checkpoint;
before the first step, or when it comes a second time, at once.
Exit codes: 0 done, 1 failed (data, numbers, disk), 2 a mistake in the command, 130 or 143 stopped by
SIGINT or SIGTERM.
"""

# Before anything else is imported: from here on, ^C ends the program, and never with a crash.
import interrupts

if __name__ == "__main__":
    interrupts.heed("train.py")

import time
from pathlib import Path

from absl import flags, logging

import command_line
import config_file

_CONFIG = config_file.define_flag("What to train: a file in configs/, or the config.json of a run.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for the results, by default a new runs/CONFIG/TIME; of an unfinished run: go on with it; of a"
    " finished one: train it further, to a larger --config.epochs.",
)
_ACCEPT_CHANGES = flags.DEFINE_bool(
    "accept_config_changes", False, "Go on with a run whose config was another."
)

_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port where processes meet: a free port of the one with id 0."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train as one.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0; 0 writes the results."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Find the other processes by SLURM, GKE, Open MPI, ..."
)
_TIMEOUT = flags.DEFINE_integer("coordinator_timeout", 300, "Seconds to wait for the other processes.", 1)


def main() -> None:
    from decoupled.errors import UsageError
    from decoupled.parallel.distributed import joined

    if _CONFIG.value is None:
        raise UsageError("say what to train: --config=configs/digits.py; see --help")
    address = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    with joined(*address, detect=_DISTRIBUTED.value, timeout=_TIMEOUT.value):
        _train()


def _train() -> None:
    import jax

    from decoupled.training import NoWorkdir, Workdir, train_and_evaluate
    from decoupled.training.builder import build

    job = build(_CONFIG.value)
    if jax.process_index() > 0:
        train_and_evaluate(job, NoWorkdir())
        return
    with Workdir(
        _WORKDIR.value or _default_workdir(), _CONFIG.value.to_dict(), _ACCEPT_CHANGES.value
    ) as workdir:
        train_and_evaluate(job, workdir)
    logging.info("results in %s", workdir.path)


def _default_workdir() -> Path:
    from decoupled.training import new_workdir

    return new_workdir(f"runs/{config_file.name_of(_CONFIG)}", time.strftime("%Y%m%d-%H%M%S"))


if __name__ == "__main__":
    command_line.run("train.py", main)

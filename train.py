"""Trains a network whose modules are decoupled by synthetic gradients.

  python train.py --config=configs/digits.py
  python train.py --config=configs/fashion_mnist.py --config.estimator.name=backprop
  python train.py --config=configs/cifar.py:quick --workdir=runs/first

Every field of the config can be set on the command line; configs/base.py describes them all.
Exit codes: 0 done, 1 failed (data, numbers, disk), 2 a mistake in the command, 130 interrupted.
"""

import sys
import time
from logging import getLogger
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to train: a file in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the results; by default runs/CONFIG/TIME.")


def main(argv: list[str]) -> None:
    # Imported late, so that a mistyped command is answered at once.
    from decoupled.builder import build
    from decoupled.errors import DataError, TrainingError, UsageError
    from decoupled.training import Workdir, train_and_evaluate

    logging.set_verbosity(logging.INFO)
    getLogger("jax").setLevel("WARNING")  # it reports every absent kind of device
    try:
        if argv[1:]:
            raise UsageError(f"cannot make sense of {' '.join(argv[1:])!r}; see --help")
        if _CONFIG.value is None:
            raise UsageError("say what to train: --config=configs/digits.py; see --help")
        job = build(_CONFIG.value)
        path = Path(_WORKDIR.value or _default_workdir())
        with Workdir(path, _CONFIG.value.to_dict()) as workdir:
            train_and_evaluate(job, workdir)
        logging.info("results in %s", workdir.path)
    except UsageError as error:
        _fail(str(error), 2)
    except (DataError, TrainingError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _default_workdir() -> str:
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    return f"runs/{Path(config_file).stem}/{time.strftime('%Y%m%d-%H%M%S')}"


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()  # A file that could not be read says so only when it is used.
        return rest
    except (AttributeError, KeyError) as error:
        # Nested lookups quote their messages: undo that.
        text = str(error).replace("\\n", ". ").replace("\\'", "").strip("\"'")
        _fail(f"no such config field: {text} (see --help)", 2)
    except (flags.Error, ImportError, OSError, SyntaxError, TypeError, ValueError) as error:
        # The last line says what is wrong; those above it are how it was found out.
        _fail(f"{str(error).strip().splitlines()[-1].strip()} (see --help)", 2)
    except SystemExit:  # absl ends so after --help, and counts that as a failure.
        sys.exit(0 if any(word.startswith(("--help", "-help", "-?")) for word in argv) else 1)


def _fail(message: str, code: int) -> NoReturn:
    print(f"train.py: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)

"""What the programs here have in common: config flags, one-line errors and exit codes.

Nothing of the package is imported before the flags are in order: a mistyped command is answered at once.
"""

import io
import os
import sys
from collections.abc import Callable
from logging import getLogger, shutdown
from typing import NoReturn

from absl import app, flags, logging

import config_file
import interrupts

# Before NumPy or SciPy is imported: LAPACK, which solves for small matrices here, must not start threads of
# its own beside XLA's. On 2 cores that halves the time of a step with recursive least squares.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def print_whatever_the_terminal() -> None:
    """A terminal that lacks a letter (±, λ) is shown its code: that is no reason to fail."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


print_whatever_the_terminal()


def run(program: str, main: Callable[[], None]) -> None:
    """Runs `main` with parsed flags; exit code: 0, 1 (failed), 2 (usage) or 128 + the number of a signal.

    Signals are heeded from here on: a program whose imports take long, or register something with `atexit`,
    calls `interrupts.heed` before them.

    Args:
      program: how error messages call it.
      main: the program; it may raise the errors of `decoupled.errors`.
    """

    def guarded(argv: list[str]) -> None:
        from decoupled.errors import DataError, Interrupted, MissingPackage, TrainingError, UsageError

        logging.set_verbosity(logging.INFO)
        getLogger("jax").setLevel("WARNING")  # it reports every absent kind of device
        getLogger("matplotlib").setLevel("WARNING")  # it reports that it lists the fonts
        try:
            if argv[1:]:
                raise UsageError(f"cannot make sense of {' '.join(argv[1:])!r}; see --help")
            main()
        except UsageError as error:
            _fail(program, str(error), 2)
        except (DataError, MissingPackage, TrainingError) as error:
            _fail(program, str(error), 1)
        except Interrupted as stopped:
            _fail(program, str(stopped), 128 + stopped.signal)
        interrupts.will_succeed()

    interrupts.heed(program)
    app.run(guarded, flags_parser=lambda argv: _parse_flags(program, argv))


def _parse_flags(program: str, argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except config_file.BadConfigFile as error:
        _fail(program, str(error), 2)
    except (AttributeError, LookupError) as error:
        # Nested lookups quote their messages: undo that.
        text = str(error).replace("\\n", ". ").replace("\\'", "").strip("\"'")
        _fail(program, f"no such config field: {text} (see --help)", 2)
    except flags.Error as error:
        _fail(program, f"{' '.join(str(error).split())} (see --help)", 2)
    except (TypeError, ValueError) as error:
        _fail(program, f"cannot set a field of --config: {' '.join(str(error).split())} (see --help)", 2)
    except SystemExit:  # absl ends so after --help, and counts that as a failure.
        sys.exit(0 if any(word.startswith(("--help", "-help", "-?")) for word in argv) else 1)


def _fail(program: str, message: str, code: int) -> NoReturn:
    print(f"{program}: {message}", file=sys.stderr)
    shutdown()  # what others log to files
    interrupts.leave(code)

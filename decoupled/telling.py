"""Lines about a run, for whoever started it."""

import logging as standard_logging
import sys

from absl import logging


@logging.skip_log_prefix
def tell(line: str) -> None:
    """Logs a line; where nobody has set logging up, as in a notebook or a script, it goes to stderr.

    By the verbosity alone, as absl has it from the start (WARNING) or as it was chosen: importing orbax
    adds a handler.
    """
    logger = logging.get_absl_logger()
    if logger.isEnabledFor(standard_logging.INFO):
        logging.info("%s", line)
    elif logger.isEnabledFor(standard_logging.WARNING):
        print(line, file=sys.stderr, flush=True)

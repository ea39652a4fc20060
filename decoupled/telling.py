"""Lines about a run, for whoever started it."""

import logging as standard_logging
import sys

from absl import logging


@logging.skip_log_prefix
def tell(line: str) -> None:
    """Logs a line; where nobody has set logging up, as in a notebook or a script, it goes to stderr."""
    logger = logging.get_absl_logger()
    if logger.isEnabledFor(standard_logging.INFO) and logger.hasHandlers():
        logging.info("%s", line)
    else:
        print(line, file=sys.stderr, flush=True)

"""Progress bars that write few lines into logs that are not a terminal."""

import sys
from typing import Any

from tqdm.auto import tqdm

# Seconds between two updates on a terminal and in a file or pipe, where each update writes a separate line.
_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 30.0


def progress_bar(**kwargs: Any) -> tqdm:
    """Returns a progress bar of tqdm that is removed at its end. `kwargs` are arguments of tqdm."""
    seconds = _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
    return tqdm(**{"mininterval": seconds, "leave": False, "dynamic_ncols": True, **kwargs})

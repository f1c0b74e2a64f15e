"""Chooses the number of threads for a command."""

import os

# Variables with which a caller sets the number of threads.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def choose_threads() -> int | None:
    """Limits torch to the processors that this process may use and that other work leaves free.

    Threads that wait for a busy processor make a fit many times slower. Nothing is changed if the caller set one of the
    variables `OMP_NUM_THREADS` and `MKL_NUM_THREADS`, or if torch runs on several processes.

    Returns:
        the number of threads; None if nothing was changed.
    """
    if any(os.environ.get(name) for name in VARIABLES) or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    number = max(1, min(torch.get_num_threads(), allowed - round(load)))
    torch.set_num_threads(number)
    return number

"""Keeps global state unchanged: random generators and progress bars."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import set_seed
from transformers.utils import logging


@contextlib.contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Seeds the global random generators, as the Trainer does, and restores their states afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextlib.contextmanager
def progress_bars(verbose: bool) -> Iterator[None]:
    """Hides the progress bars of `datasets` and `transformers` unless `verbose` is set."""
    hides_datasets = not verbose and not are_progress_bars_disabled()
    hides_transformers = not verbose and logging.is_progress_bar_enabled()
    if hides_datasets:
        disable_progress_bars()
    if hides_transformers:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hides_datasets:
            enable_progress_bars()
        if hides_transformers:
            logging.enable_progress_bar()

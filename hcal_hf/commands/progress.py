"""Progress of a run on the terminal: one line per evaluation, and no warnings that a user cannot act on."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging as transformers_logging

from ..progress_bar import progress_bar

# Metrics that a line shows, with their names.
_SHOWN = {"loss": "loss", "micro_f1": "micro-F1", "macro_f1": "macro-F1", "exact_match": "exact match"}
_NOISY_LOGGERS = (
    "transformers.trainer_utils",
    "transformers.modeling_utils",
    "transformers.distributed.tensor_parallel",
    "torch.distributed.elastic",
)


class OneLineProgress(ProgressCallback):
    """Shows the progress bar of the Trainer, and each log as one line with a few formatted numbers."""

    prediction_bar: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = progress_bar(total=state.max_steps, desc="Training")
        self.current_step = 0

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not sys.stderr.isatty():  # bars inside another one become unreadable in a file
            return
        if state.is_world_process_zero and self.prediction_bar is None and has_length(eval_dataloader):
            self.prediction_bar = progress_bar(total=len(eval_dataloader), desc="Evaluating")
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        line = format_log(logs or {})
        if state.is_world_process_zero and self.training_bar is not None and line:
            if sys.stderr.isatty():
                self.training_bar.write(line)
            else:
                print(line, flush=True)


def format_log(logs: dict[str, Any]) -> str:
    """Formats a log of the Trainer: the epoch, and the loss and a few scores in percent. Returns "" if it has none."""
    numbers = []
    prefix = "eval_" if "eval_loss" in logs else ""
    for name, shown in _SHOWN.items():
        value = logs.get(prefix + name)
        if isinstance(value, int | float):
            numbers.append(f"{shown} {value:.3f}" if name == "loss" else f"{shown} {100 * value:.1f}")
    if not numbers:
        return ""
    what = "validation" if prefix else "training"
    return f"epoch {float(logs.get('epoch', 0)):.1f}, {what}: {', '.join(numbers)}"


def show_one_line(trainer: Any) -> None:
    """Replaces the callbacks that print whole logs."""
    if trainer.args.disable_tqdm:
        return
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(OneLineProgress)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hides warnings and progress bars of other libraries that a user of the command cannot act on."""
    levels = {name: logging.getLogger(name).level for name in _NOISY_LOGGERS}
    bars_of_transformers = transformers_logging.is_progress_bar_enabled()
    bars_of_datasets = not datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        try:
            for name in _NOISY_LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            transformers_logging.disable_progress_bar()  # of loading and writing files, which takes moments
            if not sys.stderr.isatty():
                datasets.disable_progress_bars()
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if bars_of_transformers:
                transformers_logging.enable_progress_bar()
            if bars_of_datasets:
                datasets.enable_progress_bars()

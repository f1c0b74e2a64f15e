"""Progress of a run on the terminal: one line per evaluation, and no warnings that a user cannot act on."""

import logging
import warnings
from typing import Any

from transformers import PrinterCallback, ProgressCallback

# Metrics that a line shows, with their names.
_SHOWN = {"loss": "loss", "micro_f1": "micro-F1", "macro_f1": "macro-F1", "exact_match": "exact match"}
_NOISY_LOGGERS = ("transformers.trainer_utils", "transformers.modeling_utils", "torch.distributed.elastic")


class OneLineProgress(ProgressCallback):
    """Shows the progress bar of the Trainer, and each log as one line with a few formatted numbers."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        line = format_log(logs or {})
        if state.is_world_process_zero and self.training_bar is not None and line:
            self.training_bar.write(line)


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


def hide_library_warnings() -> None:
    """Hides warnings of other libraries that a user of the command cannot act on."""
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)

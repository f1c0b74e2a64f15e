"""Collects the losses and weights of the tasks between two logs, and finds values that are not finite."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class TaskLog:
    """Accumulates the losses and weights of T tasks on the device, without device synchronisation.

    Args:
        task_names: the names of the tasks.
        device: holds the sums.
    """

    def __init__(self, task_names: Sequence[str], device: torch.device):
        self.task_names = task_names
        # Rows: sum of losses times counts, sum of counts, sum of weights, number of optimiser steps with the task.
        self.sums = torch.zeros(4, len(task_names), dtype=sum_dtype(device), device=device)

    def clear(self) -> None:
        self.sums.zero_()

    def add(
        self,
        losses: torch.Tensor,
        counts: torch.Tensor,
        weights: torch.Tensor,
        present: torch.Tensor,
        accumulation_steps: int,
    ) -> None:
        """Adds a micro-batch.

        Args:
            losses, counts, weights, present (`torch.Tensor` of shape `[T]`): mean losses, the numbers of terms that they
                are means of, weights, and whether each task occurs.
            accumulation_steps: the number of micro-batches per optimiser step. Each optimiser step counts once in the
                mean of a weight.
        """
        losses, counts, weights = losses.to(self.sums), counts.to(self.sums), weights.to(self.sums)
        steps = present.to(self.sums) / accumulation_steps
        self.sums += torch.stack([losses * counts, counts, weights * steps, steps])

    @property
    def is_empty(self) -> bool:
        return not self.sums[3].any()

    def report(
        self, reduce: Callable[[torch.Tensor], torch.Tensor], history: Sequence[dict[str, Any]]
    ) -> dict[str, float]:
        """Returns the mean loss and weight of each task since the last report, and clears the sums.

        Args:
            reduce: sums a tensor over all processes.
            history: the earlier logs. The share of the first logged loss that remains is computed from them, so that it
                survives a checkpoint.
        """
        losses, counts, weights, steps = reduce(self.sums).cpu()
        self.clear()
        logs: dict[str, float] = {}
        for k, name in enumerate(self.task_names):
            if steps[k]:
                loss = logs[f"loss_{name}"] = (losses[k] / counts[k]).item()
                logs[f"weight_{name}"] = (weights[k] / steps[k]).item()
                first = next((entry[f"loss_{name}"] for entry in history if f"loss_{name}" in entry), loss)
                logs[f"remaining_{name}"] = loss / first if first else 1.0
        return logs


class FiniteCheck:
    """Remembers the first step in which the loss or the weight of a task was NaN or infinite.

    `watch` does not wait for the device; `raise_if_any` does.

    Args:
        task_names: the names of the T tasks.
        device: holds the step numbers.
    """

    def __init__(self, task_names: Sequence[str], device: torch.device):
        self.task_names = task_names
        # Rows: losses, weights. 0 means that all values were finite.
        self.first_bad_step = torch.zeros(2, len(task_names), dtype=torch.int64, device=device)

    def clear(self) -> None:
        self.first_bad_step.zero_()

    def watch(self, losses: torch.Tensor, weights: torch.Tensor, step: int) -> None:
        """Checks losses and weights `[T]` of an optimiser step, counted from 1."""
        is_bad = ~torch.isfinite(torch.stack([losses, weights])) & (self.first_bad_step == 0)
        self.first_bad_step.masked_fill_(is_bad, step)

    def raise_if_any(self) -> None:
        """Raises a FloatingPointError that names the first step with bad values and their tasks."""
        for quantity, steps in zip(("loss", "weight"), self.first_bad_step.tolist()):
            if any(steps):
                first = min(step for step in steps if step)
                names = ", ".join(name for step, name in zip(steps, self.task_names) if step == first)
                raise FloatingPointError(
                    f"The {quantity} of {names} was NaN or infinite at step {first}. Lower the learning rate or "
                    "max_grad_norm, look for documents with extreme inputs, and resume from a checkpoint before that step."
                )


def sum_dtype(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 on Apple's devices, which lack float64."""
    return torch.float32 if device.type == "mps" else torch.float64

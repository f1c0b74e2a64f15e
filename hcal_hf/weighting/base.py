"""The interface of a loss weighter."""

import torch
from torch import nn


class LossWeighter(nn.Module):
    """Turns the losses of T tasks into weights.

    `forward` reads the state and never moves it; `after_step` moves it, once per optimiser step, never in evaluation.
    Buffers and parameters are saved with each checkpoint and restored on resuming; parameters join the optimiser, at
    `learning_rate` and without weight decay.

    Args:
        num_tasks (`int`): T.

    Attributes:
        per_batch (`bool`): whether the weights follow the losses of the very batch they are applied to. Such weights
            differ between the micro-batches of one accumulation window; all others stand still within it.
    """

    per_batch = False

    def __init__(self, num_tasks: int):
        super().__init__()
        self.num_tasks = num_tasks

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            losses (`torch.Tensor` of shape `[T]`): detached task losses.
            present (`torch.Tensor` of shape `[T]`, bool, *optional*): the tasks that occur in the batch; all by default.

        Returns:
            `torch.Tensor` of shape `[T]`: non-negative weights that sum to 1 over the present tasks, 0 elsewhere.
        """
        raise NotImplementedError

    def after_step(self, losses: torch.Tensor, present: torch.Tensor) -> None:
        """Moves the state, once per optimiser step, when the losses of all its micro-batches are known.

        Args:
            losses (`torch.Tensor` of shape `[T]`): the step's mean task losses over all its micro-batches and processes.
            present (`torch.Tensor` of shape `[T]`, bool): the tasks that occurred in the step.
        """

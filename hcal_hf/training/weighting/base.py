"""The interface of a loss weighter."""

import torch
from torch import nn


class LossWeighter(nn.Module):
    """Turns the losses of T tasks into weights.

    `forward` reads the state and never changes it. `after_step` updates it once per optimiser step, never in evaluation.
    Buffers and parameters are saved with each checkpoint and restored on resuming; parameters join the optimiser, without
    weight decay. A task that is absent from a batch has no weight there, and its part of the state is not updated.

    Args:
        num_tasks (`int`): T.

    Attributes:
        per_batch (`bool`): whether the weights follow the losses of the very batch they are applied to. Such weights
            differ between the micro-batches of one accumulation window; all others stand still within it, and must not
            read the `losses` that `forward` is given.
        needs_counts (`bool`): whether `forward` takes the numbers of terms that the losses are means of, int `[T]`, as a
            third argument: of the whole accumulation window and all processes.
        needs_gradient_norms (`bool`): whether `after_step` takes the norms of the tasks' gradients as a third argument.
        learning_rate (`float`, *optional*): of the parameters; the head's by default.
    """

    per_batch = False
    needs_counts = False
    needs_gradient_norms = False
    learning_rate: float | None = None

    def __init__(self, num_tasks: int):
        super().__init__()
        self.num_tasks = num_tasks

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            losses (`torch.Tensor` of shape `[T]`): detached task losses; of a micro-batch, the same on every process, for
                weighters with `per_batch`.
            present (`torch.Tensor` of shape `[T]`, bool, *optional*): the tasks that occur in the batch; all by default.

        Returns:
            `torch.Tensor` of shape `[T]`: non-negative weights that sum to 1 over the present tasks, 0 elsewhere.
        """
        raise NotImplementedError

    def penalty(self, present: torch.Tensor) -> torch.Tensor | None:
        """A scalar that joins the loss once per optimiser step, with gradient to the weighter's own parameters; None
        where there is none.

        Args:
            present (`torch.Tensor` of shape `[T]`, bool): as for `forward`.
        """
        return None

    def after_step(self, losses: torch.Tensor, present: torch.Tensor) -> None:
        """Moves the state, once per optimiser step, when the losses of all its micro-batches are known.

        Args:
            losses (`torch.Tensor` of shape `[T]`): the step's mean task losses over all its micro-batches and processes.
            present (`torch.Tensor` of shape `[T]`, bool): the tasks that occurred in the step.
        """

    def report(self) -> dict[str, torch.Tensor]:
        """Returns further values `[T]` for the training log, by name, one for each task."""
        return {}


def all_present(losses: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """`present`, or every task where it is None."""
    return torch.ones_like(losses, dtype=torch.bool) if present is None else present


def masked_softmax(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Softmax [T] over the present tasks, 0 elsewhere, also where no task is present (a plain softmax would be NaN)."""
    return torch.where(present.any(), scores.masked_fill(~present, float("-inf")).softmax(dim=0), 0.0)


def masked_mean(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean [] over the present tasks, 0 where there is none."""
    return torch.where(present, values, 0.0).sum() / present.sum().clamp(min=1)


def normalized(weights: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Non-negative weights [T] scaled to sum to 1 over the present tasks, 0 elsewhere."""
    weights = torch.where(present, weights, 0.0)
    return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

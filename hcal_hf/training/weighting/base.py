"""Defines the interface of a loss weighter."""

import torch
from torch import nn


class LossWeighter(nn.Module):
    """Turns the losses of T tasks into weights.

    `forward` reads the state and never changes it. `after_step` updates it once per optimiser step, never in evaluation.
    Buffers and parameters are saved with each checkpoint and restored on resuming. Parameters are trained by the model's
    optimiser, without weight decay. A task that is absent from a batch has no weight there, and its part of the state is
    not updated.

    Args:
        num_tasks (`int`): T.

    Attributes:
        per_batch (`bool`): whether the weights depend on the losses of the batch that they are applied to. Such weights
            differ between the micro-batches of one accumulation window. All other weights are constant within it, and
            their `forward` must not read `losses`.
        needs_counts (`bool`): whether `forward` takes the counts, int `[T]`, as a third argument. A count is the number of
            terms that a loss is the mean of, over the whole accumulation window and all processes.
        needs_gradient_norms (`bool`): whether `after_step` takes the norms of the tasks' gradients as a third argument.
        learning_rate (`float`, *optional*): the learning rate of the parameters; the head's by default.
    """

    per_batch = False
    needs_counts = False
    needs_gradient_norms = False
    learning_rate: float | None = None

    def __init__(self, num_tasks: int):
        super().__init__()
        self.num_tasks = num_tasks

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """Computes the weights.

        Args:
            losses (`torch.Tensor` of shape `[T]`): detached task losses. For weighters with `per_batch` they are those of a
                micro-batch, the same on every process.
            present (`torch.Tensor` of shape `[T]`, bool, *optional*): the tasks that occur in the batch; all by default.

        Returns:
            `torch.Tensor` of shape `[T]`: non-negative weights that sum to 1 over the present tasks, 0 elsewhere.
        """
        raise NotImplementedError

    def penalty(self, present: torch.Tensor) -> torch.Tensor | None:
        """Computes a scalar that is added to the loss once per optimiser step. Returns None if there is no penalty.

        Its gradient trains the weighter's own parameters.

        Args:
            present (`torch.Tensor` of shape `[T]`, bool): as for `forward`.
        """
        return None

    def after_step(self, losses: torch.Tensor, present: torch.Tensor) -> None:
        """Updates the state once per optimiser step, after all its micro-batches.

        Args:
            losses (`torch.Tensor` of shape `[T]`): the step's mean task losses over all its micro-batches and processes.
            present (`torch.Tensor` of shape `[T]`, bool): the tasks that occurred in the step.
        """

    def report(self) -> dict[str, torch.Tensor]:
        """Returns further values `[T]` for the training log, by name, one for each task."""
        return {}


def all_present(losses: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """Returns `present`, or all tasks if it is None."""
    return torch.ones_like(losses, dtype=torch.bool) if present is None else present


def masked_softmax(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Computes the softmax [T] over the present tasks, 0 elsewhere. Without any present task all values are 0."""
    return torch.where(present.any(), scores.masked_fill(~present, float("-inf")).softmax(dim=0), 0.0)


def masked_mean(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Computes the mean [] over the present tasks, or 0 if there are none."""
    return torch.where(present, values, 0.0).sum() / present.sum().clamp(min=1)


def normalized(weights: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Scales non-negative weights [T] to sum to 1 over the present tasks, 0 elsewhere."""
    weights = torch.where(present, weights, 0.0)
    return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

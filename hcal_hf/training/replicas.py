"""Joins the losses that the replicas of torch.nn.DataParallel return, one group of T tasks after the other."""

import torch


def join_losses(losses: torch.Tensor, counts: torch.Tensor, num_tasks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins losses and counts [replicas * T] into [T]. A single group is returned as it is."""
    if len(losses) == num_tasks:
        return losses, counts
    losses, counts = losses.view(-1, num_tasks), counts.view(-1, num_tasks)
    total = counts.sum(dim=0)
    return (losses * counts).sum(dim=0) / total.clamp(min=1), total


def join_gradient_norms(norms: torch.Tensor, counts: torch.Tensor, num_levels: int, num_tasks: int) -> torch.Tensor:
    """Joins gradient norms [replicas * D] into the norms [D] of the gradients of the joined losses.

    Args:
        norms (`torch.Tensor` of shape `[replicas * D]`): the gradient norms of the D levels of each replica.
        counts (`torch.Tensor` of shape `[replicas * T]`): the counts of the T tasks of each replica.
        num_levels, num_tasks (`int`): D and T.
    """
    if len(norms) == num_levels:
        return norms
    counts = counts.view(-1, num_tasks)[:, :num_levels]
    return torch.linalg.vector_norm(norms.view(-1, num_levels) * counts / counts.sum(dim=0).clamp(min=1), dim=0)

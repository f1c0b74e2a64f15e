"""Dynamic weight average."""

import torch

from .base import LossWeighter, all_present, masked_softmax


class DwaWeighter(LossWeighter):
    """w = softmax(r / temperature) over the present tasks, with r_k = L_k(t - 1) / L_k(t - 2).

    L_k(t) is task k's mean loss over the t-th period of `period` optimiser steps, an epoch in the paper. r_k is 1 until
    two periods have passed, and where L_k(t - 2) is 0. A task's mean is over the steps in which it occurred; a period
    without any leaves its r_k as it is. The paper's weights sum to T, these to 1.

    Args:
        num_tasks (`int`): T.
        temperature (`float`, defaults to 2.0): the paper's.
        period (`int`, defaults to 100): optimiser steps in a period; the number of steps of an epoch for the paper's rule.

    Raises:
        ValueError: for an argument out of range.

    Source: Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019 (arXiv 1803.10704), section
    3.3.
    """

    sums: torch.Tensor
    counts: torch.Tensor
    last: torch.Tensor
    before: torch.Tensor
    steps: torch.Tensor

    def __init__(self, num_tasks: int, temperature: float = 2.0, period: int = 100):
        super().__init__(num_tasks)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        if not period >= 1:
            raise ValueError(f"period must be at least 1, got {period}.")
        self.temperature, self.period = temperature, period
        for name in ("sums", "counts", "last", "before"):
            self.register_buffer(name, torch.zeros(num_tasks))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def rates(self) -> torch.Tensor:
        """r of shape [T]."""
        known = self.before > 0
        return torch.where(known, self.last / torch.where(known, self.before, 1.0), 1.0)

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        return masked_softmax(self.rates().to(losses) / self.temperature, all_present(losses, present))

    def after_step(self, losses: torch.Tensor, present: torch.Tensor) -> None:
        self.sums += torch.where(present, losses.to(self.sums), 0.0)
        self.counts += present
        self.steps += 1
        ends = self.steps % self.period == 0
        known = ends & (self.counts > 0)
        self.before.copy_(torch.where(known, self.last, self.before))
        self.last.copy_(torch.where(known, self.sums / self.counts.clamp(min=1), self.last))
        self.sums.masked_fill_(ends, 0.0)
        self.counts.masked_fill_(ends, 0.0)

    def report(self) -> dict[str, torch.Tensor]:
        return {"rate": self.rates()}

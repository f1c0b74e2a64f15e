"""Weights tasks by dynamic weight average."""

import math

import torch

from .base import LossWeighter, all_present, masked_softmax


class DwaWeighter(LossWeighter):
    """Dynamic weight average: gives more weight to tasks with a loss that decreases more slowly.

    w = softmax(r / temperature) over the present tasks, with r_k = L_k(t - 1) / L_k(t - 2). L_k(t) is the mean loss of task
    k over the t-th period of `period` optimiser steps, which is an epoch in the paper. r_k is 1 during the first two
    periods, and if L_k(t - 2) is 0. The mean is taken over the steps in which the task occurs. A period in which it never
    occurs leaves r_k unchanged. The paper's weights sum to T, these sum to 1.

    Args:
        num_tasks (`int`): T.
        temperature (`float`, defaults to 2.0): the temperature of the softmax, as in the paper.
        period (`int`, defaults to 100): the optimiser steps per period. The paper's rule has as many as an epoch.

    Raises:
        ValueError: if an argument is out of range.

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
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a finite number above 0, got {temperature}.")
        if not isinstance(period, int) or period < 1:
            raise ValueError(f"period must be a whole number of at least 1, got {period}.")
        self.temperature, self.period = temperature, period
        for name in ("sums", "counts", "last", "before"):
            self.register_buffer(name, torch.zeros(num_tasks))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def rates(self) -> torch.Tensor:
        """Returns r of shape [T]."""
        is_defined = self.before > 0
        return torch.where(is_defined, self.last / torch.where(is_defined, self.before, 1.0), 1.0)

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        return masked_softmax(self.rates().to(losses) / self.temperature, all_present(losses, present))

    def after_step(self, losses: torch.Tensor, present: torch.Tensor) -> None:
        self.sums += torch.where(present, losses.to(self.sums), 0.0)
        self.counts += present
        self.steps += 1
        ends = self.steps % self.period == 0
        is_updated = ends & (self.counts > 0)
        self.before.copy_(torch.where(is_updated, self.last, self.before))
        self.last.copy_(torch.where(is_updated, self.sums / self.counts.clamp(min=1), self.last))
        self.sums.masked_fill_(ends, 0.0)
        self.counts.masked_fill_(ends, 0.0)

    def report(self) -> dict[str, torch.Tensor]:
        return {"rate": self.rates()}

"""Weights tasks by their rates of convergence."""

import math

import torch

from .base import LossWeighter, all_present, masked_mean, masked_softmax


class HcalRateWeighter(LossWeighter):
    """Weights that follow convergence rates, as HCAL's abstract describes, independent of units and with a floor.

        r_k = EMA(L_k) / (mean of L_k over its first steps)
        w = (1 - rho) * softmax(r / (gamma * mean r)) + rho / T

    over the T present tasks. r_k is the share of its initial loss that task k still has, so the slowest task gets the most
    weight, whatever the scales of the losses. Only steps in which a task occurs count as its steps. The EMA starts from the
    mean that it is divided by, so that r_k is 1 during the first steps of the task. (If it started from the first loss, it
    would lag behind that mean, and decrease most slowly where the loss decreases fastest.) Without a floor, one level can
    take all the weight, and the others stop training.

    Args:
        num_tasks (`int`): T.
        gamma (`float`, defaults to 0.5): the temperature, in units of the mean rate.
        rho (`float`, 0 to 1, defaults to 0.2): the share of the weight that is distributed equally.
        decay (`float`, below 1, defaults to 0.99): the decay of the EMA.
        first_steps (`int`, defaults to 10): the number of first steps over which a task's initial loss is averaged.

    Raises:
        ValueError: if an argument is out of range.

    Source: hcal_hf, after the abstract of Jiang et al., HCAL, CIKM 2025 (arXiv 2508.13452). The authors' release has no
    rates.
    """

    average: torch.Tensor
    start: torch.Tensor
    seen: torch.Tensor

    def __init__(
        self, num_tasks: int, gamma: float = 0.5, rho: float = 0.2, decay: float = 0.99, first_steps: int = 10
    ):
        super().__init__(num_tasks)
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be a finite number above 0, got {gamma}.")
        if not 0 <= rho <= 1:
            raise ValueError(f"rho must be from 0 to 1, got {rho}.")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}.")
        if not first_steps >= 1:
            raise ValueError(f"first_steps must be at least 1, got {first_steps}.")
        self.gamma, self.rho, self.decay, self.first_steps = gamma, rho, decay, first_steps
        self.register_buffer("average", torch.zeros(num_tasks))
        self.register_buffer("start", torch.zeros(num_tasks))
        self.register_buffer("seen", torch.zeros(num_tasks, dtype=torch.int64))

    def rates(self) -> torch.Tensor:
        """Returns r of shape [T]."""
        # The bound is for levels with one label, which have a loss of 0 from the start.
        return torch.where(self.seen > 0, self.average / self.start.clamp(min=1e-6), 1.0)

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        present = all_present(losses, present)
        rates = self.rates().to(losses)
        weights = masked_softmax(rates / (self.gamma * masked_mean(rates, present).clamp(min=1e-6)), present)
        floor = present.to(losses) / present.sum().clamp(min=1)
        return (1 - self.rho) * weights + self.rho * floor

    def after_step(self, losses: torch.Tensor, present: torch.Tensor) -> None:
        losses = losses.to(self.average)
        starts = self.seen < self.first_steps
        start = torch.where(starts, self.start + (losses - self.start) / (self.seen + 1), self.start)
        average = torch.where(starts, start, self.decay * self.average + (1 - self.decay) * losses)
        self.average.copy_(torch.where(present, average, self.average))
        self.start.copy_(torch.where(present, start, self.start))
        self.seen += present

    def report(self) -> dict[str, torch.Tensor]:
        return {"rate": self.rates()}

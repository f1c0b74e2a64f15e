"""Weights that follow the levels' rates of convergence."""

import torch

from .base import LossWeighter, all_present, masked_mean, masked_softmax


class HcalRateWeighter(LossWeighter):
    """What HCAL's abstract describes, weights that follow convergence rates, without units and with a floor.

        r_k = EMA(L_k) / (mean of L_k over its first steps)
        w = (1 - rho) * softmax(r / (gamma * mean r)) + rho / T

    over the T present tasks: r_k is the share of its starting loss that task k still has, so that the slowest task weighs
    most, whatever the losses' scales. A task's steps are those in which it occurred. The EMA starts from the mean that it
    is divided by, so that r_k is 1 during the task's first steps (from its first loss it would lag behind that mean, and
    fall most slowly where the loss falls fastest). Without a floor one level can take all weight and the others come to a
    halt.

    Args:
        num_tasks (`int`): T.
        gamma (`float`, defaults to 0.5): temperature, in units of the mean rate.
        rho (`float`, 0 to 1, defaults to 0.2): share of the weight that is spread evenly.
        decay (`float`, below 1, defaults to 0.99): of the EMA.
        first_steps (`int`, defaults to 10): how many of its steps make a task's starting loss.

    Raises:
        ValueError: for an argument out of range.

    Source: hcal_hf's own, after the abstract of Jiang et al., HCAL, CIKM 2025 (arXiv 2508.13452), whose released code
    has no rates.
    """

    average: torch.Tensor
    start: torch.Tensor
    seen: torch.Tensor

    def __init__(
        self, num_tasks: int, gamma: float = 0.5, rho: float = 0.2, decay: float = 0.99, first_steps: int = 10
    ):
        super().__init__(num_tasks)
        if not gamma > 0:
            raise ValueError(f"gamma must be above 0, got {gamma}.")
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
        """r of shape [T]."""
        # A level of one label has a loss of 0 from the start: it has nothing left to converge.
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

"""Weights tasks equally."""

import torch

from .base import LossWeighter, all_present


class UniformWeighter(LossWeighter):
    """Equal weights: 1 / (number of present tasks) for each present task."""

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        present = all_present(losses, present)
        return present.to(losses) / present.sum().clamp(min=1)

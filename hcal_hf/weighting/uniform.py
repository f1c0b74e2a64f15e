"""Equal weights."""

import torch

from .base import LossWeighter


class UniformWeighter(LossWeighter):
    """1 / (number of present tasks) for each present task."""

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        present = torch.ones_like(losses, dtype=torch.bool) if present is None else present
        return present.to(losses) / present.sum().clamp(min=1)

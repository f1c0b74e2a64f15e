"""Weights tasks by HCAL's adaptive weights."""

import math

import torch

from .base import LossWeighter, all_present, masked_softmax


class HcalWeighter(LossWeighter):
    """HCAL's weights: lambda = softmax(L / gamma) over the present tasks, from the losses of the current batch.

    The gradient of sum_k lambda_k L_k with constant lambda equals that of gamma * logsumexp(L / gamma), an
    entropy-regularised minimax over the levels. The weighter has no state and does not use earlier batches.

    Args:
        num_tasks (`int`): T.
        gamma (`float`, defaults to 0.5): the temperature, in units of the losses.

    Raises:
        ValueError: if gamma is out of range.

    Source: Jiang et al., HCAL, CIKM 2025 (arXiv 2508.13452), as in the authors' release.
    """

    per_batch = True

    def __init__(self, num_tasks: int, gamma: float = 0.5):
        super().__init__(num_tasks)
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be a finite number above 0, got {gamma}.")
        self.gamma = gamma

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        return masked_softmax(losses.detach() / self.gamma, all_present(losses, present))

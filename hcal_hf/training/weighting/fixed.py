"""Weights tasks by constants."""

from collections.abc import Sequence

import torch

from .base import LossWeighter, all_present, normalized


class FixedWeighter(LossWeighter):
    """Constant weights: w_k = v_k / (sum of v over the present tasks).

    Args:
        num_tasks (`int`): T.
        weights (`list[float]`): v, one per task from the top level downwards. Only their ratios matter.

    Raises:
        ValueError: if there are not T weights, if one is negative or not finite, or if none is above 0.
    """

    weights: torch.Tensor

    def __init__(self, num_tasks: int, weights: Sequence[float]):
        super().__init__(num_tasks)
        values = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
        if len(values) != num_tasks:
            raise ValueError(
                f"weights must be {num_tasks} numbers, one for each level from the top, got {len(values)}."
            )
        if not (values.isfinite().all() and (values >= 0).all() and (values > 0).any()):
            raise ValueError(f"weights must be 0 or above, finite, and not all 0, got {values.tolist()}.")
        # Not part of the state, so that a checkpoint does not restore the weights of an earlier run.
        self.register_buffer("weights", (values / values.sum()).to(torch.get_default_dtype()), persistent=False)

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        return normalized(self.weights.to(losses), all_present(losses, present))

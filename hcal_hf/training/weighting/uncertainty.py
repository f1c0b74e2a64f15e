"""Weights tasks by learned homoscedastic uncertainties."""

import torch
from torch import nn

from .base import LossWeighter, all_present


class UncertaintyWeighter(LossWeighter):
    """Uncertainty weights: the loss is the mean over the present tasks of exp(-s_k) L_k + s_k / 2, with learned s_k.

    s_k is a log-variance. The weights are exp(-s_k) / T over the T present tasks. They sum to 1 only at the start, where
    s = 0. The penalty is sum_k s_k / (2 T). (The paper sums over the tasks. With the mean, training starts like `uniform`
    at the same learning rate.) At the optimum s_k = log(2 L_k), so the weight of a task is 1 / (2 L_k T). s is bounded by
    -10 from below, because it would decrease without end for a task with loss 0.

    Args:
        num_tasks (`int`): T.
        learning_rate (`float`, *optional*): the learning rate of s; the head's by default. The learning rate of a
            pretrained encoder would hardly change s.

    Raises:
        ValueError: if learning_rate is out of range.

    Source: Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018 (arXiv 1705.07115), eq. 10, for classification.
    """

    def __init__(self, num_tasks: int, learning_rate: float | None = None):
        super().__init__(num_tasks)
        if learning_rate is not None and not learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}.")
        self.learning_rate = learning_rate
        self.log_variances = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        present = all_present(losses, present)
        weights = torch.where(present, torch.exp(-self.log_variances), 0.0) / present.sum().clamp(min=1)
        return weights.to(losses)

    def penalty(self, present: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.where(present, self.log_variances, 0.0).sum() / present.sum().clamp(min=1)

    @torch.no_grad()
    def after_step(self, losses: torch.Tensor, present: torch.Tensor) -> None:
        self.log_variances.clamp_(min=-10.0)

"""Weights tasks by gradient normalisation."""

import torch

from .base import LossWeighter, all_present, masked_mean, normalized


class GradNormWeighter(LossWeighter):
    """GradNorm: makes the tasks' gradients equally long, and longer for tasks that train more slowly.

    With n_k = |grad of L_k|, G_k = w_k n_k and r_k = (L_k / L_k(0)) / (mean of L / L(0) over the tasks), w descends

        sum_k |G_k - mean(G) * r_k^alpha|

    with the second term held constant. After each step w is scaled back to the same sum.

    The gradients are taken with respect to the document features of the whole step, which are the last values that all
    tasks share. (The paper uses the weights of the last shared layer.) They need no second pass through the encoder, and
    their squared norms add up over micro-batches and processes. They cost one more backward pass through prototypes and
    head for each task. Steps on w are plain gradient steps. They divide n by its mean, so that they do not depend on the
    batch size. L_k(0) is the loss of the first step in which task k occurs. An absent task keeps its weight.

    Args:
        num_tasks (`int`): T.
        alpha (`float`, defaults to 1.5): how strongly slow tasks are favoured. 0 makes all gradients equally long.
        learning_rate (`float`, defaults to 0.025): the learning rate of w, which has mean 1.

    Raises:
        ValueError: if an argument is out of range.

    Source: Chen, Badrinarayanan, Lee, Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks", ICML 2018 (arXiv 1711.02257), algorithm 1.
    """

    needs_gradient_norms = True

    weights: torch.Tensor
    start: torch.Tensor
    seen: torch.Tensor

    def __init__(self, num_tasks: int, alpha: float = 1.5, learning_rate: float = 0.025):
        super().__init__(num_tasks)
        if not alpha >= 0:
            raise ValueError(f"alpha must be 0 or above, got {alpha}.")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}.")
        self.alpha, self.rate = alpha, learning_rate
        self.register_buffer("weights", torch.ones(num_tasks))
        self.register_buffer("start", torch.zeros(num_tasks))
        self.register_buffer("seen", torch.zeros(num_tasks, dtype=torch.bool))

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        return normalized(self.weights.to(losses), all_present(losses, present))

    def after_step(
        self, losses: torch.Tensor, present: torch.Tensor, gradient_norms: torch.Tensor | None = None
    ) -> None:
        """Updates the weights.

        Args:
            losses, present: as in [`LossWeighter`].
            gradient_norms (`torch.Tensor` of shape `[T]`): n.
        """
        assert gradient_norms is not None
        losses, norms = losses.to(self.weights), gradient_norms.to(self.weights)
        self.start.copy_(torch.where(present & ~self.seen, losses, self.start))
        self.seen |= present
        ratios = losses / self.start.clamp(min=1e-6)
        ratios = ratios / masked_mean(ratios, present).clamp(min=1e-6)
        lengths = self.weights * norms
        gaps = lengths - masked_mean(lengths, present) * ratios**self.alpha
        tiny = torch.finfo(norms.dtype).tiny
        moved = self.weights - self.rate * gaps.sign() * norms / masked_mean(norms, present).clamp(min=tiny)
        # With a weight of 0 a task is not trained, and with a negative one its loss increases.
        moved = moved.clamp(min=0.01)
        moved = moved * (masked_mean(self.weights, present) / masked_mean(moved, present).clamp(min=0.01))
        self.weights.copy_(torch.where(present, moved, self.weights))

"""Fast adaptive multitask optimisation."""

import torch

from .base import LossWeighter, all_present, masked_mean, masked_softmax, normalized


class FamoWeighter(LossWeighter):
    """FAMO: weights that let all log-losses fall at the same rate, from losses alone.

    With logits xi and z = softmax(xi), step t descends sum_k w_k L_k with

        w_k = c z_k / L_k,  c = 1 / sum_k (z_k / L_k)

    (the direction of sum_k z_k log L_k), and then xi goes down the gradient J^T delta + decay * xi, where
    delta_k = log L_k(t) - log L_k(t + 1) is the gain of the step and J the Jacobian of the softmax: a task that gains less
    than the others gets more weight. The step on xi is Adam's, as in the authors' release.

    What differs from the paper, whose delta evaluates the batch of step t again after the step (a second forward pass):

    - delta_k compares the mean losses of successive optimiser steps, each on its own documents. The noise of the batches
      does not pile up, since these differences telescope: a step's loss enters once with each sign.
    - So the gain of step t is known after the forward passes of step t + 1 and counts from step t + 2 on, with the
      Jacobian of step t + 1.
    - L_k in w_k is the task's last known loss, not the current one: weights stand still within an accumulation window.
      A task without any takes the mean of the others', so that the first step weighs all alike.

    A task absent from a step keeps its logit, its moments and its last loss; its next delta spans the gap. A loss below
    1e-6 leaves its task without weight, where the formula would give it all.

    Args:
        num_tasks (`int`): T.
        learning_rate (`float`, defaults to 0.025): of xi, by Adam with betas 0.9 and 0.999.
        decay (`float`, defaults to 0.001): gamma in the paper, pulls xi to 0, added to the gradient.

    Raises:
        ValueError: for an argument out of range.

    Source: Liu, Feng, Stone, Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023 (arXiv 2306.03792),
    algorithm 1.
    """

    logits: torch.Tensor
    moment: torch.Tensor
    square: torch.Tensor
    moves: torch.Tensor
    last: torch.Tensor
    seen: torch.Tensor

    def __init__(self, num_tasks: int, learning_rate: float = 0.025, decay: float = 0.001):
        super().__init__(num_tasks)
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}.")
        if not decay >= 0:
            raise ValueError(f"decay must be 0 or above, got {decay}.")
        self.rate, self.decay = learning_rate, decay
        for name in ("logits", "moment", "square", "moves", "last"):
            self.register_buffer(name, torch.zeros(num_tasks))
        self.register_buffer("seen", torch.zeros(num_tasks, dtype=torch.bool))

    def forward(self, losses: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        present = all_present(losses, present)
        known = present & self.seen
        stand_in = torch.where(known.any(), masked_mean(self.last, known), 1.0)
        last = torch.where(self.seen, self.last, stand_in)
        open_ = present & (last >= 1e-6)
        open_ = torch.where(open_.any(), open_, present)  # with nothing left to gain, by z alone
        weights = masked_softmax(self.logits, open_) / last.clamp(min=1e-6)
        return normalized(weights, open_).to(losses)

    def after_step(self, losses: torch.Tensor, present: torch.Tensor) -> None:
        losses = losses.to(self.last)
        moving = present & self.seen
        gains = torch.where(moving, (self.last + 1e-8).log() - (losses + 1e-8).log(), 0.0)
        z = masked_softmax(self.logits, moving)
        gradient = z * (gains - (z * gains).sum()) + self.decay * self.logits
        moves = self.moves + moving
        moment = 0.9 * self.moment + 0.1 * gradient
        square = 0.999 * self.square + 0.001 * gradient.square()
        # The bias corrections of Adam; `moves` counts for each task, and is 0 only where nothing moves.
        corrected = (square / (1 - 0.999 ** moves.clamp(min=1))).sqrt() + 1e-8
        logits = self.logits - self.rate * moment / (1 - 0.9 ** moves.clamp(min=1)) / corrected
        self.logits.copy_(torch.where(moving, logits, self.logits))
        self.moment.copy_(torch.where(moving, moment, self.moment))
        self.square.copy_(torch.where(moving, square, self.square))
        self.moves.copy_(moves)
        self.last.copy_(torch.where(present, losses, self.last))
        self.seen |= present

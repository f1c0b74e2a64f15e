"""Weights tasks by fast adaptive multitask optimisation."""

import torch

from .base import LossWeighter, all_present, masked_mean, masked_softmax, normalized


class FamoWeighter(LossWeighter):
    """FAMO: makes all log-losses decrease at the same rate, using the losses alone.

    With logits xi and z = softmax(xi), step t descends sum_k w_k L_k with

        w_k = c z_k / L_k,  c = 1 / sum_k (z_k / L_k)

    (the direction of sum_k z_k log L_k). Then xi descends the gradient J^T delta + decay * xi. Here delta_k = log L_k(t) -
    log L_k(t + 1) is the gain of the step, and J is the Jacobian of the softmax. A task that gains less than the others
    gets more weight. The step on xi is an Adam step, as in the authors' release.

    The paper computes delta with a second forward pass on the batch of step t after the step. This implementation avoids
    that pass, with these differences:

    - delta_k compares the mean losses of successive optimiser steps, each on its own documents. The noise of the batches
      does not accumulate, because the differences telescope: the loss of a step enters once with each sign.
    - The gain of step t is therefore known after the forward passes of step t + 1. It takes effect from step t + 2 on, with
      the Jacobian of step t + 1.
    - L_k in w_k is the last recorded loss of the task, not the current one, so that weights are constant within an
      accumulation window. A task without a recorded loss uses the mean of the others. The first step weights all equally.

    A task absent from a step keeps its logit, its moments and its last loss, and its next delta spans the gap. A task with
    a loss below 1e-6 gets no weight. The formula would give it all the weight.

    Args:
        num_tasks (`int`): T.
        learning_rate (`float`, defaults to 0.025): the learning rate of xi, for Adam with betas 0.9 and 0.999.
        decay (`float`, defaults to 0.001): gamma in the paper. Its term in the gradient regularises xi towards 0.

    Raises:
        ValueError: if an argument is out of range.

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
        has_loss = present & self.seen
        default = torch.where(has_loss.any(), masked_mean(self.last, has_loss), 1.0)
        last = torch.where(self.seen, self.last, default)
        is_weighted = present & (last >= 1e-6)
        is_weighted = torch.where(is_weighted.any(), is_weighted, present)  # if all losses are 0, z alone decides
        weights = masked_softmax(self.logits, is_weighted) / last.clamp(min=1e-6)
        return normalized(weights, is_weighted).to(losses)

    def after_step(self, losses: torch.Tensor, present: torch.Tensor) -> None:
        losses = losses.to(self.last)
        moving = present & self.seen
        gains = torch.where(moving, (self.last + 1e-8).log() - (losses + 1e-8).log(), 0.0)
        z = masked_softmax(self.logits, moving)
        gradient = z * (gains - (z * gains).sum()) + self.decay * self.logits
        moves = self.moves + moving
        moment = 0.9 * self.moment + 0.1 * gradient
        square = 0.999 * self.square + 0.001 * gradient.square()
        # Adam's bias corrections. `moves` counts the updates of each task.
        corrected = (square / (1 - 0.999 ** moves.clamp(min=1))).sqrt() + 1e-8
        logits = self.logits - self.rate * moment / (1 - 0.9 ** moves.clamp(min=1)) / corrected
        self.logits.copy_(torch.where(moving, logits, self.logits))
        self.moment.copy_(torch.where(moving, moment, self.moment))
        self.square.copy_(torch.where(moving, square, self.square))
        self.moves.copy_(moves)
        self.last.copy_(torch.where(present, losses, self.last))
        self.seen |= present

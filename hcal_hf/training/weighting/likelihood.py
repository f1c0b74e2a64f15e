"""Weights tasks so that the loss is the likelihood of the documents' labels."""

import torch

from .base import LossWeighter, all_present, normalized


class LikelihoodWeighter(LossWeighter):
    """Likelihood weights: w_k = n_k / (sum of n over the present tasks), where the loss of level k is a mean of n_k terms.

    The weighted sum is the mean over the terms of all levels, which `head_solver="lbfgs"` also fits. With
    `conditional_sigmoid`, `lookahead_sigmoid` and `conditional_softmax` on a forest it is proportional to
    -log P(labels of the documents), so training is maximum likelihood. With `lookahead_softmax` and `path_softmax` it is
    not: the loss of each level is that of the whole path down to this level, so the upper levels count again in all levels
    below. Equal weights, in contrast, give a level with few terms as much weight as a level with many. A level has few
    terms if the parents of most of its labels do not occur.

    Under single_path the terms of a level are the documents that reach it. Under multi_path they are the (document, label)
    pairs that the head decides on that level. For `conditional_sigmoid` and `lookahead_sigmoid` these are the pairs in
    which all parents of the label are true.
    """

    needs_counts = True

    def forward(
        self, losses: torch.Tensor, present: torch.Tensor | None = None, counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes the weights from `counts` (`torch.Tensor` of shape `[T]`), which are n; all equal by default."""
        counts = torch.ones_like(losses) if counts is None else counts.to(losses)
        return normalized(counts, all_present(losses, present))

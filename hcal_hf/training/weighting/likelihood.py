"""Weights under which the loss is the likelihood of the documents' labels."""

import torch

from .base import LossWeighter, all_present, normalized


class LikelihoodWeighter(LossWeighter):
    """w_k = n_k / (sum of n over the present tasks), with n_k the number of terms that the loss of level k is the mean of.

    The weighted sum is then the mean over all terms, of whatever level, which `head_solver="lbfgs"` fits too. With
    `conditional_sigmoid`, `lookahead_sigmoid` and `conditional_softmax` on a forest it is -log P(labels of the documents)
    but for a factor: maximum likelihood. With `lookahead_softmax` and `path_softmax` it is not: the loss of each of their
    levels is that of a whole path down to there, so that the upper levels count again in all below. Under equal weights a
    level of few terms, as one where most labels' parents do not occur, has as much weight as one of many.

    The terms are the documents that reach a level (single_path), or the pairs of a document and a label that the head
    decides there (multi_path: for `conditional_sigmoid` and `lookahead_sigmoid` those whose parents are all true).
    """

    needs_counts = True

    def forward(
        self, losses: torch.Tensor, present: torch.Tensor | None = None, counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`counts` (`torch.Tensor` of shape `[T]`, *optional*): n; all alike by default."""
        counts = torch.ones_like(losses) if counts is None else counts.to(losses)
        return normalized(counts, all_present(losses, present))

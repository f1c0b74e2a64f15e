"""Calibrates probabilities by temperature scaling: one number, fitted on held-out documents.

Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017, arXiv 1706.04599).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..decoding import PAIRS_PER_CHUNK, Decision, end_probabilities
from ..heads import HierarchicalHead
from ..log_space import log_probs_to_logits
from ..metrics import brier_score, calibration_scores, expected_calibration_error
from ..targets import Targets
from ..taxonomy import Taxonomy

logger = logging.get_logger(__name__)

LOWEST, HIGHEST = 0.01, 100.0
# Of log T: far finer than what any number of documents can tell.
TOLERANCE = 1e-6


def fit_temperature(head: HierarchicalHead, scores: torch.Tensor, targets: Any) -> float:
    """The T > 0 whose scores / T have the smallest negative log-likelihood on held-out documents.

    The likelihood is the head's own ([`HierarchicalHead.negative_log_likelihood`]) and all that the head calls a score is
    divided, biases and stop scores too. One T for all labels keeps P(child) <= P(parent) under every coherent head, and
    under `independent` the order of the labels. The negative log-likelihood is convex in 1 / T, so it has one
    minimum, which golden-section search over log T finds (T to a millionth); that of `lookahead_sigmoid` need not be
    convex, but no second minimum was met in 60,000 random ones.

    Args:
        head: the model's head.
        scores (`torch.Tensor` of shape `[N, L]`): of N documents that trained nothing ([`document_scores`]).
        targets (bool array or tensor, same shape): the true labels, with all ancestors.

    Returns:
        T; 1.0 (and a warning) where no T from 0.01 to 100 is best, as when every document is right, so that more certainty
        is always better, or when the scores tell nothing.

    Raises:
        ValueError: without documents, or for different shapes.
    """
    if not len(scores):
        raise ValueError("fit_temperature needs held-out documents with labels, got none.")

    def loss(log_t: float) -> float:
        return negative_log_likelihood(head, scores, targets, math.exp(log_t))

    limits = math.log(LOWEST), math.log(HIGHEST)
    log_t = _golden_section(loss, *limits)
    least = loss(log_t)
    for limit in limits:
        if not least < loss(limit):
            logger.warning(
                f"{len(scores)} documents do not determine a temperature: none from {LOWEST} to {HIGHEST} is better than "
                f"{math.exp(limit):.3g}, {'the labels are all right' if limit < 0 else 'the scores tell nothing'}. It "
                "stays at 1: give more held-out documents."
            )
            return 1.0
    return math.exp(log_t)


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum has it, between `low` and `high` (Kiefer, "Sequential minimax search for a
    maximum", 1953)."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2


@torch.no_grad()
def negative_log_likelihood(
    head: HierarchicalHead, scores: torch.Tensor, targets: Any, score_temperature: float = 1.0
) -> float:
    """-log P(labels) under scores / T, the mean over the documents; arguments as in [`fit_temperature`]."""
    positive = torch.as_tensor(np.asarray(targets), dtype=torch.bool)
    if positive.shape != scores.shape:
        raise ValueError(
            f"targets must have the shape of the scores, {list(scores.shape)}, got {list(positive.shape)}."
        )
    total = 0.0
    for rows, part in _batches(head, scores):
        labels = Targets(positive[rows].to(part.device), scores.shape[1])
        total += head.negative_log_likelihood(part, labels, score_temperature).item()
    return total / max(len(scores), 1)


@torch.no_grad()
def document_scores(model: Any, features: Any) -> torch.Tensor:
    """The head's scores [N, L] of documents, before any temperature, from their features [N, d] (the output of
    [`HcalForSequenceClassification`]), at least float32, on the CPU."""
    given = torch.as_tensor(features)
    step = max(1, PAIRS_PER_CHUNK // model.taxonomy.num_labels)
    parts = [
        model.head.scores(model.prototypes.products(part.to(model.device), model.projection)).cpu()
        for part in given.split(step)
    ]
    return torch.cat(parts)


@torch.no_grad()
def tempered_logits(head: HierarchicalHead, scores: torch.Tensor, score_temperature: float) -> torch.Tensor:
    """The model's logits [N, L] under a temperature, from scores [N, L]; in their dtype."""
    parts = [log_probs_to_logits(head.log_probs(part, score_temperature)).cpu() for _, part in _batches(head, scores)]
    return torch.cat(parts).to(scores) if parts else scores


def _batches(head: HierarchicalHead, scores: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of the scores on the head's device, in float64 (which Apple's devices do not have)."""
    device = head.depths.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    step = max(1, PAIRS_PER_CHUNK // scores.shape[1])
    for start in range(0, len(scores), step):
        rows = slice(start, start + step)
        yield rows, scores[rows].to(device=device, dtype=dtype)


def calibration_metrics(
    logits: torch.Tensor,
    targets: Any,
    taxonomy: Taxonomy,
    label_mode: str,
    partial_paths: bool = False,
    head: str = "independent",
) -> dict[str, float]:
    """How far probabilities are from shares, in 15 bins.

    Args:
        logits (`torch.Tensor` of shape `[N, L]`): as the model gives them.
        targets (bool array, same shape): the true labels, with all ancestors.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode, partial_paths, head: as in [`HcalConfig`].

    Returns:
        `ece`, `ece_equal_width` and `brier` over all (document, label) cells
        ([`hcal_hf.metrics.calibration_scores`]). For single_path also `end_ece`, `end_ece_equal_width` and `end_brier` of
        the decision for a path, one a document: its probability is that of ending at the path's last node
        (`independent`: of that node on its own level), and it is right if it is the true path. Label thresholds,
        which may cut the path, play no part.
    """
    log_probs = torch.nn.functional.logsigmoid(logits.double())
    positive = np.asarray(targets, dtype=bool)
    found = calibration_scores(log_probs.exp().numpy(), positive)
    if label_mode != "single_path":
        return found
    decision = Decision(label_mode, partial_paths, head)
    chosen = decision.best_path(log_probs, taxonomy)
    # Nodes are sorted by depth: the last one of a path is its end.
    ends = chosen.shape[1] - 1 - chosen.flip(1).to(torch.uint8).argmax(dim=1, keepdim=True)
    values = end_probabilities(log_probs, taxonomy, partial_paths and decision.is_coherent)
    sure = values.gather(1, ends)[:, 0].clamp(0, 1).numpy()
    right = (chosen.numpy() == positive).all(axis=1)
    return {
        **found,
        "end_ece": expected_calibration_error(sure, right),
        "end_ece_equal_width": expected_calibration_error(sure, right, binning="equal_width"),
        "end_brier": brier_score(sure, right),
    }


__all__ = [
    "calibration_metrics",
    "document_scores",
    "fit_temperature",
    "negative_log_likelihood",
    "tempered_logits",
]

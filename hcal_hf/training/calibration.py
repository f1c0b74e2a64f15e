"""Calibrates probabilities by temperature scaling: one temperature, fitted on held-out documents.

Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017, arXiv 1706.04599).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..decoding import PAIRS_PER_CHUNK, Decision, check_scores, end_probabilities
from ..heads import HierarchicalHead
from ..log_space import log_probs_to_logits
from ..metrics import brier_score, calibration_scores, expected_calibration_error
from ..targets import Targets
from ..taxonomy import Taxonomy

logger = logging.get_logger(__name__)

LOWEST, HIGHEST = 0.01, 100.0
# Precision of log T. It is far below the standard error of any fit.
TOLERANCE = 1e-6


def fit_temperature(head: HierarchicalHead, scores: torch.Tensor, targets: Any) -> float:
    """Finds the temperature T > 0 that minimises the negative log-likelihood of held-out documents.

    All scores of the head are divided by T, including biases and stop scores. The likelihood is that of the head
    ([`HierarchicalHead.negative_log_likelihood`]). With one T for all labels, P(child) <= P(parent) still holds for every
    coherent head, and the order of the labels does not change for `independent`.

    The negative log-likelihood is convex in 1 / T, so it has one minimum. Golden-section search over log T finds T with a
    relative precision of 1e-6. For `lookahead_sigmoid` it is not always convex, but a search for a second minimum in
    60,000 random problems found none.

    Args:
        head: the head of the model.
        scores (`torch.Tensor` of shape `[N, L]`): the scores of N held-out documents ([`document_scores`]).
        targets (bool array or tensor, same shape): the true labels, with all ancestors.

    Returns:
        T. If there is no minimum between 0.01 and 100, returns 1.0 and logs a warning. This happens if all labels are
        predicted correctly, because a smaller T is then always better, or if the scores are not related to the labels.

    Raises:
        ValueError: if there are no documents, the shapes differ, or a score is NaN.
    """
    if not len(scores):
        raise ValueError("fit_temperature needs held-out documents with labels, got none.")

    check_scores(scores, head.taxonomy, "scores")

    def loss(log_t: float) -> float:
        return negative_log_likelihood(head, scores, targets, math.exp(log_t))

    limits = math.log(LOWEST), math.log(HIGHEST)
    log_t = _golden_section(loss, *limits)
    least = loss(log_t)
    for limit in limits:
        if not least < loss(limit):
            logger.warning(
                f"{len(scores)} documents do not determine a temperature: none from {LOWEST} to {HIGHEST} is better than "
                f"{math.exp(limit):.3g}, because "
                f"{'all labels are predicted correctly' if limit < 0 else 'the scores are not related to the labels'}. The "
                "temperature stays 1. Give more held-out documents."
            )
            return 1.0
    return math.exp(log_t)


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Finds the minimum of a function between `low` and `high`. The function must have only one.

    Source: Kiefer, "Sequential minimax search for a maximum" (1953).
    """
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
    """Computes -log P(labels) of scores / T, averaged over documents.

    Args:
        head, scores, targets: see [`fit_temperature`].
        score_temperature (`float`): T.

    Raises:
        ValueError: if the shapes differ.
    """
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
    """Computes the scores of the head [N, L], before temperature scaling.

    Args:
        model ([`HcalForSequenceClassification`]): the model.
        features (array or tensor of shape `[N, d]`): the field `features` of its output for N documents.

    Returns:
        a tensor on the CPU, float32 or float64.
    """
    step = max(1, PAIRS_PER_CHUNK // model.taxonomy.num_labels)
    scores = [
        model.head.scores(model.prototypes.products(chunk.to(model.device), model.projection)).cpu()
        for chunk in torch.as_tensor(features).split(step)
    ]
    return torch.cat(scores)


@torch.no_grad()
def tempered_logits(head: HierarchicalHead, scores: torch.Tensor, score_temperature: float) -> torch.Tensor:
    """Computes the logits of the model [N, L] at a temperature, from scores [N, L]. Keeps their dtype."""
    logits = [log_probs_to_logits(head.log_probs(part, score_temperature)).cpu() for _, part in _batches(head, scores)]
    return torch.cat(logits).to(scores) if logits else scores


def _batches(head: HierarchicalHead, scores: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields slices of rows, and their scores on the device of the head, in float64 (float32 on MPS, which lacks it)."""
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
    """Computes expected calibration errors, with 15 bins, and Brier scores.

    Args:
        logits (`torch.Tensor` of shape `[N, L]`): the logits of the model.
        targets (bool array, same shape): the true labels, with all ancestors.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode, partial_paths, head: see [`HcalConfig`].

    Returns:
        `ece`, `ece_equal_width` and `brier` over all (document, label) pairs ([`hcal_hf.metrics.calibration_scores`]).
        For single_path also `end_ece`, `end_ece_equal_width` and `end_brier` over the predicted paths, one per document.
        The probability of a path is the probability that it ends at its last node (for `independent`, the probability of
        this node on its level). A path is correct if it equals the true path. Label thresholds are ignored here.
    """
    log_probs = torch.nn.functional.logsigmoid(logits.double())
    positive = np.asarray(targets, dtype=bool)
    metrics = calibration_scores(log_probs.exp().numpy(), positive)
    if label_mode != "single_path":
        return metrics
    confidence, is_correct = path_confidence(log_probs, positive, taxonomy, Decision(label_mode, partial_paths, head))
    return {
        **metrics,
        "end_ece": expected_calibration_error(confidence, is_correct),
        "end_ece_equal_width": expected_calibration_error(confidence, is_correct, binning="equal_width"),
        "end_brier": brier_score(confidence, is_correct),
    }


def path_confidence(
    log_probs: torch.Tensor, positive: np.ndarray, taxonomy: Taxonomy, decision: Decision
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the probability of each document's most probable path, and whether it is the true one.

    Args:
        log_probs (`torch.Tensor` of shape `[N, L]`): log-probabilities of the labels.
        positive (bool, same shape): the true labels, with all ancestors.
        taxonomy ([`Taxonomy`]): the hierarchy.
        decision ([`Decision`]): of a single_path model. Its thresholds play no part.

    Returns:
        the probabilities [N] of ending at the last node of the path, and whether the path is right, bool [N].
    """
    paths = decision.best_path(log_probs, taxonomy)
    # Nodes are sorted by depth, so the last node of a path is its end.
    ends = paths.shape[1] - 1 - paths.flip(1).to(torch.uint8).argmax(dim=1, keepdim=True)
    values = end_probabilities(log_probs, taxonomy, decision.partial_paths and decision.is_coherent)
    return values.gather(1, ends)[:, 0].clamp(0, 1).numpy(), (paths.numpy() == positive).all(axis=1)


__all__ = [
    "calibration_metrics",
    "document_scores",
    "fit_temperature",
    "negative_log_likelihood",
    "path_confidence",
    "tempered_logits",
]

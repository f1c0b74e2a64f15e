"""Calibrates the decoder `risk`, which bounds the expected share of wrong labels, by conformal risk control.

Source: Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal Risk Control" (arXiv 2208.02814), theorem 1 with B = 1.
"""

import math
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..decoding import Decision, lower_to_ancestors
from ..taxonomy import Taxonomy
from .thresholds import check_documents

logger = logging.get_logger(__name__)

# A threshold above every probability, so that all label sets are empty. JSON has no inf.
NEVER = 2.0


def calibrate_risk(
    probabilities: Any,
    targets: Any,
    taxonomy: Taxonomy,
    label_mode: str,
    alpha: float = 0.1,
    partial_paths: bool = False,
    head: str = "independent",
) -> float:
    """Finds the smallest `risk_threshold` of `decode="risk"` that keeps the expected share of wrong labels at most alpha.

    For a threshold lambda, the label set of a document contains the labels with a probability of at least lambda, after
    each probability is lowered to the smallest of its ancestors. For single_path, only labels of the decoded path can be
    in it. The loss of a set is |set minus true labels| / |set|, or 0 for an empty set. It is made monotone: the loss at
    lambda is the supremum of the losses at all larger thresholds.

    lambda must satisfy (n * mean loss + 1) / (n + 1) <= alpha. The result is the midpoint, in log space, of the lowest
    probability that can pass and the next lower one, which cannot. Then the expected loss of a new document that is
    exchangeable with these n is at most alpha. This expectation also averages over the random draw of the n documents.

    The guarantee needs documents that were not used for training, early stopping or temperature scaling. It is lost if the
    probabilities or the decoded path change afterwards. It does not depend on label thresholds.

    Args:
        probabilities (array or tensor of shape `[n, L]`): the probabilities of n held-out documents.
        targets (bool, same shape): the true labels, with all ancestors.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode, partial_paths, head: see [`HcalConfig`].
        alpha (`float`, above 0 and below 1): the risk level.

    Returns:
        lambda, from 0 (all candidates pass) to 1, or `NEVER` (2.0) if only empty sets, which have no risk, satisfy alpha.

    Raises:
        ValueError: if alpha or a probability is outside 0 to 1, there are no documents, or shapes are wrong or differ.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1 (0.1: one label in ten may be wrong), got {alpha}.")
    p, positive = check_documents(probabilities, targets, taxonomy)
    number = len(p)
    if not number:
        raise ValueError("calibrate_risk needs held-out documents with labels, got none.")
    budget = alpha * (number + 1) - 1
    if budget < -1e-9:
        needed = math.ceil(1 / alpha - 1 - 1e-9)
        logger.warning(
            f"alpha={alpha} needs at least {needed} documents, got {number}: all predicted label sets will be empty. Give "
            "more documents or a larger alpha."
        )
        return NEVER
    log_p = torch.from_numpy(p).log().clamp(min=-1e4)
    scores = lower_to_ancestors(log_p, taxonomy)
    if label_mode == "single_path":
        scores = scores.masked_fill(~Decision(label_mode, partial_paths, head).best_path(log_p, taxonomy), -math.inf)
    values, increases = _increases(scores, torch.from_numpy(positive))
    order = values.argsort(descending=True)
    # The tolerance lets a mean pass that equals alpha but for rounding.
    exceeding = (increases[order].cumsum(dim=0) > budget + 1e-9).nonzero()
    if not len(exceeding):
        return 0.0
    refused = values[order[exceeding[0, 0]]].item()
    passed = min(scores[scores > refused].min().item() if (scores > refused).any() else 0.0, 0.0)
    midpoint = math.exp((refused + passed) / 2)
    # If rounding lets the midpoint admit the refused label, the upper end is used, which is safe.
    for threshold in (midpoint, math.exp(passed), math.nextafter(math.exp(passed), math.inf)):
        if 0 < threshold <= 1 and math.log(threshold) > refused:
            return threshold
    return NEVER


def _increases(scores: torch.Tensor, positive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists the increases of the monotone losses of all documents as lambda falls.

    Args:
        scores (`torch.Tensor` of shape `[n, L]`): the largest log lambda at which each label is predicted, -inf for never.
        positive (bool, same shape): the true labels.

    Returns:
        the log lambda of each increase, and its size, both of shape `[number of increases]`.
    """
    values, order = scores.sort(dim=1, descending=True)
    wrong = (~positive).gather(1, order).cumsum(dim=1)
    loss = wrong / torch.arange(1, scores.shape[1] + 1, dtype=torch.float64)
    # Labels with equal scores are predicted together, so the set is complete at the last of them.
    below = torch.cat([values[:, 1:], values.new_full((len(values), 1), -math.inf)], dim=1)
    is_complete = (values > below) & (values > -math.inf)
    monotone_loss = loss.where(is_complete, 0.0).cummax(dim=1).values
    increases = monotone_loss.diff(dim=1, prepend=monotone_loss.new_zeros(len(monotone_loss), 1))
    return values[increases > 0], increases[increases > 0]


def describe_answers(answers: Any, targets: Any, taxonomy: Taxonomy) -> dict[str, float]:
    """Describes predicted label sets by their errors, size and depth.

    Args:
        answers, targets (bool, arrays or tensors of shape `[N, L]`): predicted and true label sets, with all ancestors.
        taxonomy ([`Taxonomy`]): the hierarchy.

    Returns:
        means over the documents, all 0 without documents:

        - `risk`: the share of the predicted labels that are wrong (0 for an empty set).
        - `answered`: the number of predicted labels.
        - `levels`: the number of levels that the set reaches (0 for an empty set).
        - `completeness`: the share of the true labels that are predicted (1 if there are no true labels).
        - `empty`: the share of empty sets.
    """
    predicted, true = np.asarray(answers, dtype=bool), np.asarray(targets, dtype=bool)
    size, number = predicted.sum(axis=1), true.sum(axis=1)
    hits = (predicted & true).sum(axis=1)
    columns = {
        "risk": (size - hits) / np.maximum(size, 1),
        "answered": size,
        "levels": (predicted * (taxonomy.depths + 1)).max(axis=1, initial=0),
        "completeness": np.where(number > 0, hits / np.maximum(number, 1), 1.0),
        "empty": size == 0,
    }
    return {name: float(column.mean()) if len(column) else 0.0 for name, column in columns.items()}


__all__ = ["NEVER", "calibrate_risk", "describe_answers"]

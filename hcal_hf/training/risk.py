"""How deep an answer may go for a wanted share of wrong labels: conformal risk control.

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

# Above every probability: all answers are empty. A number and not inf, which JSON does not have.
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
    """The most permissive `risk_threshold` of `decode="risk"` whose expected share of wrong labels is at most alpha.

    A document's answer at lambda holds the labels whose probability, lowered to its ancestors' smallest, is at least
    lambda (single_path: only those of the decoded path). Its loss is |answer minus truth| / |answer|, 0 for an empty
    answer, made monotone by its supremum over all answers at larger lambda. lambda is the smallest with
    (n * mean loss + 1) / (n + 1) <= alpha; it is placed midway, in log space, between the probabilities of the last label
    that it lets pass and of the first that it does not. Then, for a further document exchangeable with these n, the
    expected loss is at most alpha; this averages over the draw of the n documents too.

    It holds only for documents that chose nothing: not for those of training, early stopping or temperature scaling.
    Whatever changes the probabilities or the decoded path afterwards voids it; label thresholds do not, as the answers
    do not depend on them.

    Args:
        probabilities (array or tensor of shape `[n, L]`): of n held-out documents.
        targets (bool, same shape): the true labels, with all ancestors.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode, partial_paths, head: as in [`HcalConfig`].
        alpha (`float`, above 0 and below 1): the risk level.

    Returns:
        lambda, from 0 (every candidate passes) to 1, or `NEVER` (2.0: all answers are empty, risk 0).

    Raises:
        ValueError: for alpha outside 0 to 1, no documents, wrong or different shapes, probabilities outside 0 to 1.
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
            f"alpha={alpha} needs at least {needed} documents, got {number}: all answers will be empty. Give more "
            "documents or a larger alpha."
        )
        return NEVER
    log_p = torch.from_numpy(p).log().clamp(min=-1e4)
    scores = lower_to_ancestors(log_p, taxonomy)
    if label_mode == "single_path":
        scores = scores.masked_fill(~Decision(label_mode, partial_paths, head).best_path(log_p, taxonomy), -math.inf)
    values, increases = _increases(scores, torch.from_numpy(positive))
    order = values.argsort(descending=True)
    # Sums of fractions round: a mean that meets alpha exactly must pass.
    too_much = (increases[order].cumsum(dim=0) > budget + 1e-9).nonzero()
    if not len(too_much):
        return 0.0
    refused = values[order[too_much[0, 0]]].item()
    passed = min(scores[scores > refused].min().item() if (scores > refused).any() else 0.0, 0.0)
    found = math.exp((refused + passed) / 2)
    # Where nothing fits between both, exp and log round: the upper end is as valid, and the safe side.
    for candidate in (found, math.exp(passed), math.nextafter(math.exp(passed), math.inf)):
        if candidate <= 1 and candidate > 0 and math.log(candidate) > refused:
            return candidate
    return NEVER


def _increases(scores: torch.Tensor, positive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the documents' monotone losses rise as lambda falls: log lambda and the rise, of shape `[number of rises]`.

    Args:
        scores (`torch.Tensor` of shape `[n, L]`): the largest log lambda whose answer holds the label, -inf for none.
        positive (bool, same shape).
    """
    values, order = scores.sort(dim=1, descending=True)
    wrong = (~positive).gather(1, order).cumsum(dim=1)
    loss = wrong / torch.arange(1, scores.shape[1] + 1, dtype=torch.float64)
    # Labels of one score enter together: only the last of them closes an answer.
    below = torch.cat([values[:, 1:], values.new_full((len(values), 1), -math.inf)], dim=1)
    is_answer = (values > below) & (values > -math.inf)
    highest = loss.where(is_answer, 0.0).cummax(dim=1).values
    rises = highest.diff(dim=1, prepend=highest.new_zeros(len(highest), 1))
    return values[rises > 0], rises[rises > 0]


def describe_answers(answers: Any, targets: Any, taxonomy: Taxonomy) -> dict[str, float]:
    """What answers give and miss.

    Args:
        answers, targets (bool, arrays or tensors of shape `[N, L]`): ancestor-closed sets.
        taxonomy ([`Taxonomy`]): the hierarchy.

    Returns:
        means over the documents: `risk`, the share of an answer's labels that are wrong (0 if empty); `answered`, its
        number of labels; `levels`, how many levels it reaches down (0 if empty); `completeness`, the share of the true
        labels that it holds (1 if there are none); and `empty`, the share of empty answers. All 0 without documents.
    """
    given, true = np.asarray(answers, dtype=bool), np.asarray(targets, dtype=bool)
    size, number = given.sum(axis=1), true.sum(axis=1)
    hits = (given & true).sum(axis=1)
    columns = {
        "risk": (size - hits) / np.maximum(size, 1),
        "answered": size,
        "levels": (given * (taxonomy.depths + 1)).max(axis=1, initial=0),
        "completeness": np.where(number > 0, hits / np.maximum(number, 1), 1.0),
        "empty": size == 0,
    }
    return {name: float(column.mean()) if len(column) else 0.0 for name, column in columns.items()}


__all__ = ["NEVER", "calibrate_risk", "describe_answers"]

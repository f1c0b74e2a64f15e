"""Tunes thresholds for the largest F1 on held-out documents: one for all labels, one per level, or one per label."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from ..decoding import Decision, check_scores, lower_to_ancestors, raise_to_descendants
from ..taxonomy import Taxonomy

logger = logging.get_logger(__name__)

GRANULARITIES = ("global", "level", "label")
METRICS = ("micro_f1", "macro_f1")
# The smallest value of min_positives.
FEWEST_POSITIVES = 4
# The lowest log p of an allowed label. -inf marks a label that is never predicted.
_LOG_ZERO = -1e4
# Thresholds are clipped to this distance from 0 and 1 before their logits are averaged.
_EXTREME = 1e-9


def tune_thresholds(
    probabilities: Any,
    targets: Any,
    taxonomy: Taxonomy,
    granularity: str = "global",
    metric: str = "micro_f1",
    min_positives: int = 10,
    shrinkage: float = 30.0,
    candidates: Any = None,
    resamples: int = 0,
) -> np.ndarray:
    """Finds the thresholds t that maximise the F1 of the label sets {p >= t}.

    Labels are divided into groups by `granularity`, and each group has one threshold:

    1. The best threshold of each group is found among all distinct ones.
       - `micro_f1`: the thresholds together maximise the pooled F1 = 2 TP / (predicted + true). At the largest value F*,
         the threshold of each group maximises 2 TP - F* predicted. F* is the fixed point of this iteration (Dinkelbach,
         "On nonlinear fractional programming", Management Science 1967; for F1: Ye et al., ICML 2012).
       - `macro_f1`: the threshold of a group maximises the mean F1 of its labels that have a positive.
       - A threshold is the midpoint, in log p, of the lowest p that passes and the next lower p of the group. It is
         at most a factor of 10 below the former.
    2. Thresholds are shrunk towards t_all, the best single threshold. A group with n positives gets
       sigmoid(w logit(t) + (1 - w) logit(t_all)) with w = n / (n + shrinkage). A group with fewer than `min_positives` gets
       t_all.
    3. The thresholds are made to satisfy t(child) >= t(parent), so that coherent probabilities give sets with all
       ancestors. Either children are raised to their parents, or parents are lowered to their children. The one with the
       larger metric on these documents is used.

    Args:
        probabilities (array or tensor of shape `[N, L]`): the probabilities of N held-out documents.
        targets (bool, same shape): the true labels, with all ancestors.
        taxonomy ([`Taxonomy`]): the hierarchy.
        granularity (`"global"`, `"level"` or `"label"`): one group of all labels, one per level, or one per label.
        metric (`"micro_f1"` or `"macro_f1"`): the metric to maximise.
        min_positives (`int`, at least 4): the smallest number of positives for which a group gets its own threshold.
        shrinkage (`float`): the number of positives at which the group's own threshold and t_all have equal weights. 0
            turns shrinkage off.
        candidates (bool, same shape, *optional*): the labels that may be predicted, such as those of the decoded path.
            Others are never predicted, whatever the threshold.
        resamples (`int`): if above 0, tunes on this number of bootstrap samples of the documents and averages the logits of
            the thresholds (Breiman, "Bagging predictors", 1996). This reduces the variance for rare labels. The samples
            are the same in every call.

    Returns:
        float64 `np.ndarray` of shape `[L]`, from 0 to 1. All are 0.5 if no positive can be predicted.

    Raises:
        ValueError: if arrays have wrong or different shapes, probabilities are outside 0 to 1, or another argument is out
            of range.
    """
    _check_choice("granularity", granularity, GRANULARITIES)
    _check_choice("metric", metric, METRICS)
    if min_positives < FEWEST_POSITIVES:
        raise ValueError(
            f"min_positives must be at least {FEWEST_POSITIVES}, got {min_positives}: with fewer positives, the threshold "
            'of a label depends on chance. Use granularity="global" for one threshold, or min_positives=4.'
        )
    if not 0 <= shrinkage < float("inf"):
        raise ValueError(f"shrinkage must be 0 (off) or a positive number, got {shrinkage}.")
    if resamples < 0:
        raise ValueError(f"resamples must be 0 (off) or a positive number, got {resamples}.")
    p, positive = check_documents(probabilities, targets, taxonomy)
    allowed = np.ones_like(positive) if candidates is None else _bool_array("candidates", candidates, p.shape)
    if resamples:
        random, total = np.random.default_rng(0), np.zeros(taxonomy.num_labels)
        for _ in range(resamples):
            rows = random.integers(len(p), size=len(p))
            sample = (p[rows], positive[rows], taxonomy, granularity, metric, min_positives, shrinkage, allowed[rows])
            # A mean of thresholds that grow along every edge grows along every edge too.
            total += _logit(np.log(tune_thresholds(*sample).clip(_EXTREME, 1 - _EXTREME)))
        return np.exp(_log_sigmoid(total / resamples))
    with np.errstate(divide="ignore"):
        values = np.maximum(np.log(p), _LOG_ZERO)
    values[~allowed] = -np.inf
    # One row per label, so that the values of a group are contiguous.
    values, positive = np.ascontiguousarray(values.T), np.ascontiguousarray(positive.T)
    if not (positive & (values > -np.inf)).any():
        logger.warning(
            "No document has a true label that can be predicted, so thresholds are not tuned and stay at 0.5."
        )
        return np.full(taxonomy.num_labels, 0.5)
    num_positive = positive.sum(axis=1)
    all_labels = slice(0, taxonomy.num_labels)
    shared = float(_best_logs(values, positive, [all_labels], metric)[0])
    tuned = np.full(taxonomy.num_labels, shared)
    if granularity != "global":
        groups = taxonomy.levels if granularity == "level" else [slice(i, i + 1) for i in range(taxonomy.num_labels)]
        for group, own in zip(groups, _best_logs(values, positive, groups, metric)):
            count = num_positive[group].sum()
            if count >= min_positives:
                weight = count / (count + shrinkage)
                tuned[group] = _log_sigmoid(weight * _logit(own) + (1 - weight) * _logit(shared))
    options = [_monotone(tuned, taxonomy, upward) for upward in (False, True)]
    scores = [_score(values, positive, logs, metric) for logs in options]
    return np.minimum(np.exp(options[int(scores[1] > scores[0])]), 1.0)


def tune_for_decoding(
    logits: torch.Tensor,
    targets: Any,
    taxonomy: Taxonomy,
    label_mode: str,
    partial_paths: bool = False,
    head: str = "independent",
    **kwargs: Any,
) -> np.ndarray:
    """Tunes thresholds for the predictions of the default decoder, with [`tune_thresholds`].

    - multi_path: the decoder `closure` predicts a label if it or a descendant reaches its threshold. So p is first raised
      to the largest p of the descendants.
    - single_path: the decoder cuts the path before its first label below the threshold. So p is first lowered to the
      smallest p of the ancestors, and only labels of the path are candidates.

    The result is exact for one global threshold. With several thresholds, it is exact for coherent probabilities.

    Args:
        logits (`torch.Tensor` of shape `[N, L]`): the logits of the model.
        targets, taxonomy: see [`tune_thresholds`].
        label_mode, partial_paths, head: see [`HcalConfig`].
        kwargs: other arguments of [`tune_thresholds`].

    Returns:
        float64 `np.ndarray` of shape `[L]`.
    """
    check_scores(logits, taxonomy)
    log_probs = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    if label_mode == "single_path":
        kwargs["candidates"] = Decision(label_mode, partial_paths, head).best_path(log_probs, taxonomy)
        log_probs = lower_to_ancestors(log_probs, taxonomy)
    else:
        log_probs = raise_to_descendants(log_probs, taxonomy)
    return tune_thresholds(log_probs.double().exp(), targets, taxonomy, **kwargs)


def check_documents(probabilities: Any, targets: Any, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
    """Checks probabilities and targets. Returns them as float64 and bool arrays, both `[N, L]`.

    Raises:
        ValueError: if shapes are wrong or differ, or probabilities are outside 0 to 1.
    """
    try:
        p = np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"probabilities must be numbers [documents, labels], got {probabilities!r:.80}.") from None
    if not hasattr(taxonomy, "num_labels"):  # a model repository has a class of its own
        raise ValueError(f"taxonomy must be a Taxonomy, got {type(taxonomy).__name__}.")
    if p.ndim != 2 or p.shape[1] != taxonomy.num_labels:
        raise ValueError(f"probabilities must have shape [documents, {taxonomy.num_labels}], got {list(p.shape)}.")
    check_scores(torch.from_numpy(p), taxonomy, "probabilities")
    outside = (p < 0) | (p > 1)
    if outside.any():
        raise ValueError(
            f"probabilities must lie between 0 and 1, got {p[outside][0]}: give sigmoid(logits), not logits."
        )
    return p, _bool_array("targets", targets, p.shape)


def _bool_array(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != shape:
        raise ValueError(f"{name} must have the shape of the probabilities, {list(shape)}, got {list(values.shape)}.")
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name} must be bool, or 0 and 1, got {values[~np.isin(values, (0, 1))][0]!r}.")
    return values if values.dtype == bool else values > 0


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")


def _best_logs(values: np.ndarray, positive: np.ndarray, groups: Iterable[slice], metric: str) -> np.ndarray:
    """Finds log t of each of the G groups of rows of `values` and `positive` [L, N]. Returns an array [G]."""
    if metric == "macro_f1":
        return np.array([_best_mean_f1(values[rows], positive[rows]) for rows in groups])
    cuts = [_cuts(values[rows].ravel(), positive[rows].ravel()) for rows in groups]
    return _best_pooled_f1(cuts, int(positive.sum()))


class _Cuts(NamedTuple):
    """Candidate thresholds of one group, from high to low.

    Attributes:
        predicted: number of (document, label) pairs at or above each threshold [M].
        hits: number of true positives among them [M].
        logs: log t of each threshold [M].
        nothing: log t of a threshold above all values.
    """

    predicted: np.ndarray
    hits: np.ndarray
    logs: np.ndarray
    nothing: float


def _cuts(values: np.ndarray, positive: np.ndarray) -> _Cuts:
    """Lists the thresholds just below the value of a positive. Others predict more pairs without another hit.

    Args:
        values (float array of shape `[M]`): log p of a group's (document, label) pairs, -inf where not allowed.
        positive (bool, same shape).
    """
    order = np.argsort(-values)
    values, hits = values[order], positive[order].cumsum()
    below = np.append(values[1:], -np.inf)
    last = np.flatnonzero((values > below) & (values > -np.inf))
    last = last[np.diff(hits[last], prepend=0) > 0]
    return _Cuts(last + 1, hits[last], _between(below[last], values[last]), _above_all(values))


def _above_all(values: np.ndarray) -> float:
    """Returns a log t that none of the values reaches."""
    return max(float(values.max(initial=-np.inf)), _LOG_ZERO) / 2


def _between(below: Any, value: Any) -> Any:
    """Returns the midpoint of two log p, at most a factor of 10 below `value`. If `below` is -inf, p / 2 stands for it."""
    return (np.where(np.isfinite(below), np.maximum(below, value - np.log(100)), value - np.log(2)) + value) / 2


def _best_pooled_f1(groups: list[_Cuts], num_positive: int) -> np.ndarray:
    """Finds the log t of all groups [G] that together have the largest pooled F1, by Dinkelbach's iteration."""
    f1 = 0.0
    while True:
        logs, hits, predicted = [], 0, 0
        for cuts in groups:
            gains = 2 * cuts.hits - f1 * cuts.predicted
            best = gains.argmax() if len(gains) else None
            if best is None or gains[best] <= 0:
                logs.append(cuts.nothing)
                continue
            logs.append(cuts.logs[best])
            hits, predicted = hits + cuts.hits[best], predicted + cuts.predicted[best]
        larger = 2 * hits / (predicted + num_positive)
        if larger <= f1:
            return np.array(logs)
        f1 = larger


def _best_mean_f1(values: np.ndarray, positive: np.ndarray) -> float:
    """Finds the one log t of all rows [G, N] with the largest mean F1 over the rows that have a positive.

    As the threshold falls, the F1 of a row changes at each of its values. The sum of these changes over all rows, sorted
    by value, is the summed F1 at each threshold.
    """
    with_positive = positive.any(axis=1)
    values, positive = values[with_positive], positive[with_positive]
    order = np.argsort(-values, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    f1 = 2.0 * np.take_along_axis(positive, order, axis=1).cumsum(axis=1)
    f1 /= np.arange(1, values.shape[1] + 1) + positive.sum(axis=1, keepdims=True)
    if len(values) == 1:  # already sorted
        values, total = values[0], f1[0]
    else:
        changes, values = np.diff(f1, axis=1, prepend=0).ravel(), values.ravel()
        order = np.argsort(-values)
        values, total = values[order], changes[order].cumsum()
    below = np.append(values[1:], -np.inf)
    ends = np.flatnonzero((values > below) & (values > -np.inf))
    if not len(ends) or total[ends].max() <= 0:
        return _above_all(values)
    best = ends[total[ends].argmax()]
    return float(_between(below[best], values[best]))


def _score(values: np.ndarray, positive: np.ndarray, logs: np.ndarray, metric: str) -> float:
    """Computes the metric of the label sets {log p >= log t}, from `values` and `positive` [L, N] and log t [L]."""
    predicted = (values >= logs[:, None]) & (values > -np.inf)
    hits, total = (predicted & positive).sum(axis=1), predicted.sum(axis=1) + positive.sum(axis=1)
    if metric == "micro_f1":
        return float(2 * hits.sum() / max(total.sum(), 1))
    return float((2 * hits / np.maximum(total, 1))[positive.any(axis=1)].mean())


def _monotone(logs: np.ndarray, taxonomy: Taxonomy, upward: bool) -> np.ndarray:
    """Raises the log t [L] of children to those of their parents. With `upward`, lowers parents to their children."""
    if upward:
        return -raise_to_descendants(torch.from_numpy(-logs)[None], taxonomy)[0].numpy()
    return -lower_to_ancestors(torch.from_numpy(-logs)[None], taxonomy)[0].numpy()


def _logit(log_p: Any) -> Any:
    log_p = np.minimum(log_p, -1e-12)
    return log_p - np.log(-np.expm1(log_p))


def _log_sigmoid(logit: Any) -> Any:
    return -np.logaddexp(0.0, -logit)


__all__ = ["GRANULARITIES", "METRICS", "tune_for_decoding", "tune_thresholds"]

"""Thresholds that maximise F1 on held-out documents: one for all labels, one a level, or one a label."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from ..decoding import Decision, lower_to_ancestors, raise_to_descendants
from ..taxonomy import Taxonomy

logger = logging.get_logger(__name__)

GRANULARITIES = ("global", "level", "label")
METRICS = ("micro_f1", "macro_f1")
# Below this many positives no label has a threshold of its own, whatever min_positives says.
FEWEST_POSITIVES = 4
# log p of an allowed label is at least this; -inf stands for a label that no threshold lets pass.
_LOG_ZERO = -1e4
# Thresholds nearer to 0 and 1 count as this far away where their logits are averaged.
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
    """Thresholds t whose sets {p >= t} have the largest F1, over all distinct ones.

    Each group (all labels, a level, a label) has one threshold. For `micro_f1` they maximise the pooled
    F1 = 2 TP / (predicted + true) together: at the best value F* every group's threshold maximises 2 TP - F* predicted
    by itself, and F* is the fixed point of this (Dinkelbach, "On nonlinear fractional programming", Management
    Science 1967; for F1: Ye et al., ICML 2012). For `macro_f1` each maximises the mean F1 of the group's labels that have
    a positive; with `granularity="label"` that is the label's own. A threshold lies midway, in log p, between the
    lowest p it lets pass and the next lower one of the group, but at most a factor of 10 below the former.

    A group with n positives then gets sigmoid(w logit(t) + (1 - w) logit(t_all)), w = n / (n + shrinkage), where t_all is
    the best single threshold; with fewer than `min_positives` it gets t_all itself. Last, t(child) >= t(parent) is made
    true, by raising children to their parents or by lowering parents to their children, as is better for the metric
    on these documents, so that thresholds of coherent probabilities give sets that hold all ancestors.

    Args:
        probabilities (array or tensor of shape `[N, L]`): of N held-out documents.
        targets (bool, same shape): the true labels, with all ancestors.
        taxonomy ([`Taxonomy`]): the hierarchy.
        granularity (`"global"`, `"level"` or `"label"`): the groups.
        metric (`"micro_f1"` or `"macro_f1"`): what is maximised.
        min_positives (`int`, at least 4): fewest positives for a threshold of a group's own.
        shrinkage (`float`): positives at which a group's own threshold and t_all weigh the same; 0: its own alone.
        candidates (bool, same shape, *optional*): labels that may be predicted at all, such as those of the decoded path;
            others are never predicted, whatever the threshold.
        resamples (`int`): with a number above 0, the thresholds are the means, as logits, of those of so many bootstrap
            samples of the documents (Breiman, "Bagging predictors", 1996), always the same ones: a rare label's best
            threshold hangs on a few documents.

    Returns:
        float64 `np.ndarray` of shape `[L]`, from 0 to 1. 0.5 for all labels where no positive can be predicted.

    Raises:
        ValueError: for arrays of wrong or different shapes, probabilities outside 0 to 1, or another argument out of
            range.
    """
    _check_choice("granularity", granularity, GRANULARITIES)
    _check_choice("metric", metric, METRICS)
    if min_positives < FEWEST_POSITIVES:
        raise ValueError(
            f"min_positives must be at least {FEWEST_POSITIVES}, got {min_positives}: with fewer positives a label's own "
            'threshold is chance. Use granularity="global" for one threshold, or min_positives=4.'
        )
    if not 0 <= shrinkage < float("inf"):
        raise ValueError(f"shrinkage must be 0 (off) or a number above, got {shrinkage}.")
    if resamples < 0:
        raise ValueError(f"resamples must be 0 (off) or a number above, got {resamples}.")
    p, positive = check_documents(probabilities, targets, taxonomy)
    allowed = np.ones_like(positive) if candidates is None else _bool_array("candidates", candidates, p.shape)
    if resamples:
        random, total = np.random.default_rng(0), np.zeros(taxonomy.num_labels)
        for _ in range(resamples):
            drawn = random.integers(len(p), size=len(p))
            sample = (
                p[drawn],
                positive[drawn],
                taxonomy,
                granularity,
                metric,
                min_positives,
                shrinkage,
                allowed[drawn],
            )
            # The mean is as monotone along the hierarchy as its parts.
            total += _logit(np.log(tune_thresholds(*sample).clip(_EXTREME, 1 - _EXTREME)))
        return np.exp(_log_sigmoid(total / resamples))
    with np.errstate(divide="ignore"):
        values = np.maximum(np.log(p), _LOG_ZERO)
    values[~allowed] = -np.inf
    # Labels first: each label's values are one run.
    values, positive = np.ascontiguousarray(values.T), np.ascontiguousarray(positive.T)
    if not (positive & (values > -np.inf)).any():
        logger.warning("No label is true where it can be predicted: there is nothing to tune on, thresholds are 0.5.")
        return np.full(taxonomy.num_labels, 0.5)
    num_positive = positive.sum(axis=1)
    everything = slice(0, taxonomy.num_labels)
    shared = float(_best_logs(values, positive, [everything], metric)[0])
    tuned = np.full(taxonomy.num_labels, shared)
    if granularity != "global":
        levels = taxonomy.levels if granularity == "level" else [slice(i, i + 1) for i in range(taxonomy.num_labels)]
        for rows, own in zip(levels, _best_logs(values, positive, levels, metric)):
            count = num_positive[rows].sum()
            if count >= min_positives:
                weight = count / (count + shrinkage)
                tuned[rows] = _log_sigmoid(weight * _logit(own) + (1 - weight) * _logit(shared))
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
    """[`tune_thresholds`] for what the default decoder makes of the thresholds.

    multi_path: `closure` predicts a label where it or a descendant reaches the threshold, so p is first raised to the
    descendants' largest. single_path: the path is cut at its first label below the threshold, so p is lowered to its
    ancestors' smallest and only the path's labels are candidates. Exact for one global threshold; with several it is
    exact for coherent probabilities.

    Args:
        logits (`torch.Tensor` of shape `[N, L]`): as the model gives them.
        targets, taxonomy: as in [`tune_thresholds`].
        label_mode, partial_paths, head: as in [`HcalConfig`].
        kwargs: the other arguments of [`tune_thresholds`].

    Returns:
        float64 `np.ndarray` of shape `[L]`.
    """
    log_probs = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    if label_mode == "single_path":
        kwargs["candidates"] = Decision(label_mode, partial_paths, head).best_path(log_probs, taxonomy)
        log_probs = lower_to_ancestors(log_probs, taxonomy)
    else:
        log_probs = raise_to_descendants(log_probs, taxonomy)
    return tune_thresholds(log_probs.double().exp(), targets, taxonomy, **kwargs)


def check_documents(probabilities: Any, targets: Any, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 and targets as bool, both `[N, L]`.

    Raises:
        ValueError: for wrong or different shapes, or probabilities outside 0 to 1.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != taxonomy.num_labels:
        raise ValueError(f"probabilities must have shape [documents, {taxonomy.num_labels}], got {list(p.shape)}.")
    outside = ~((p >= 0) & (p <= 1))
    if outside.any():
        raise ValueError(
            f"probabilities must lie between 0 and 1, got {p[outside][0]}: give sigmoid(logits), not logits."
        )
    return p, _bool_array("targets", targets, p.shape)


def _bool_array(name: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(given)
    if values.shape != shape:
        raise ValueError(f"{name} must have the shape of the probabilities, {list(shape)}, got {list(values.shape)}.")
    return values if values.dtype == bool else values > 0


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {given!r}.")


def _best_logs(values: np.ndarray, positive: np.ndarray, groups: Any, metric: str) -> np.ndarray:
    """log t of each group of rows of `values` and `positive` [L, N], one array [G]."""
    if metric == "macro_f1" and len(groups) < len(values):
        return np.array([_best_mean_f1(values[rows], positive[rows]) for rows in groups])
    if len(groups) == len(values):
        group, cuts, logs, nothing = _cuts(values, positive)
    else:
        parts = [_cuts(values[rows].reshape(1, -1), positive[rows].reshape(1, -1)) for rows in groups]
        group = np.concatenate([part[0] + i for i, part in enumerate(parts)])
        cuts, logs, nothing = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
    present, starts = np.unique(group, return_index=True)
    if metric == "macro_f1":
        best = _best_in_groups(2 * cuts[:, 0] / (cuts[:, 1] + positive.sum(axis=1)[group]), starts)
    else:
        best = _best_pooled(cuts, starts, positive.sum())
    found = nothing.copy()
    found[present[best >= 0]] = logs[best[best >= 0]]
    return found


def _cuts(values: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The thresholds worth a look in each row [G, M]: just below a value that a positive has (any other threshold
    predicts more without a further hit).

    Returns:
        for each, by row and downwards: its row; [TP, predicted]; log t; and for each row the log t that predicts nothing.
    """
    order = np.argsort(-values, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    hits = np.take_along_axis(positive, order, axis=1).cumsum(axis=1)
    below = np.full_like(values, -np.inf)
    below[:, :-1] = values[:, 1:]
    row, column = np.nonzero((values > below) & (values > -np.inf))
    hits = hits[row, column]
    before = np.where(np.diff(row, prepend=-1) > 0, 0, np.concatenate(([0], hits[:-1])))
    gains = hits > before
    row, column, hits = row[gains], column[gains], hits[gains]
    nothing = np.maximum(values[:, 0] if values.shape[1] else np.zeros(len(values)), _LOG_ZERO) / 2
    return row, np.stack([hits, column + 1], axis=1), _between(below[row, column], values[row, column]), nothing


def _between(below: Any, value: Any) -> Any:
    """Midway in log p, at most a factor of 10 below `value`; where nothing is below, as if half of `value` came next."""
    return (np.where(np.isfinite(below), np.maximum(below, value - np.log(100)), value - np.log(2)) + value) / 2


def _best_in_groups(gains: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """In each run of `gains`, the first index of the largest; -1 where none is above 0."""
    largest = np.maximum.reduceat(gains, starts)
    size = np.diff(starts, append=len(gains))
    at = np.flatnonzero(gains == np.repeat(largest, size))
    first = at[np.searchsorted(at, starts)]
    return np.where(largest > 0, first, -1)


def _best_pooled(cuts: np.ndarray, starts: np.ndarray, num_positive: int) -> np.ndarray:
    """Each group's cut of the largest pooled F1 by Dinkelbach's iteration; -1 where predicting nothing is best."""
    f1 = 0.0
    while True:
        best = _best_in_groups(2 * cuts[:, 0] - f1 * cuts[:, 1], starts)
        true, predicted = cuts[best[best >= 0]].sum(axis=0)
        found = 2 * true / (predicted + num_positive)
        if found <= f1:
            return best
        f1 = found


def _best_mean_f1(values: np.ndarray, positive: np.ndarray) -> float:
    """The log t, one for all rows [G, N], with the largest mean F1 over the rows that have a positive.

    Going down, each row's F1 changes where it has a value: the sum of the changes, over all rows' values in order.
    """
    with_positive = positive.any(axis=1)
    values, positive = values[with_positive], positive[with_positive]
    highest = float(values.max(initial=_LOG_ZERO))
    order = np.argsort(-values, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    f1 = 2.0 * np.take_along_axis(positive, order, axis=1).cumsum(axis=1)
    f1 /= np.arange(1, values.shape[1] + 1) + positive.sum(axis=1, keepdims=True)
    changes, values = np.diff(f1, axis=1, prepend=0).ravel(), values.ravel()
    changes, values = changes[values > -np.inf], values[values > -np.inf]
    order = np.argsort(-values)
    values, total = values[order], changes[order].cumsum()
    below = np.append(values[1:], -np.inf)
    ends = np.flatnonzero(values > below)
    if not len(ends) or total[ends].max() <= 0:
        return highest / 2
    best = ends[total[ends].argmax()]
    return float(_between(below[best], values[best]))


def _score(values: np.ndarray, positive: np.ndarray, logs: np.ndarray, metric: str) -> float:
    """The metric of {log p >= log t} on values and positives [L, N]."""
    chosen = (values >= logs[:, None]) & (values > -np.inf)
    hits, total = (chosen & positive).sum(axis=1), chosen.sum(axis=1) + positive.sum(axis=1)
    if metric == "micro_f1":
        return float(2 * hits.sum() / max(total.sum(), 1))
    return float((2 * hits / np.maximum(total, 1))[positive.any(axis=1)].mean())


def _monotone(logs: np.ndarray, taxonomy: Taxonomy, upward: bool) -> np.ndarray:
    """log t [L] with children raised to their parents, or (`upward`) parents lowered to their children."""
    if upward:
        return -raise_to_descendants(torch.from_numpy(-logs)[None], taxonomy)[0].numpy()
    return -lower_to_ancestors(torch.from_numpy(-logs)[None], taxonomy)[0].numpy()


def _logit(log_p: Any) -> Any:
    log_p = np.minimum(log_p, -1e-12)
    return log_p - np.log(-np.expm1(log_p))


def _log_sigmoid(logit: Any) -> Any:
    return -np.logaddexp(0.0, -logit)


__all__ = ["GRANULARITIES", "METRICS", "tune_for_decoding", "tune_thresholds"]

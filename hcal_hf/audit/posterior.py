"""Computes the probability that an absent label is missing, from the frequency with which a true label is annotated.

Source: Elkan and Noto, "Learning classifiers from only positive and unlabeled data" (KDD 2008).
"""

from typing import Any

import numpy as np

from ..taxonomy import Taxonomy

# Labels with fewer carriers get the mean frequency of their level.
FEWEST_CARRIERS = 20
# The share of the carriers with the largest probabilities that estimate a frequency.
CERTAIN_SHARE = 0.1
FREQUENCIES = ("certain", "mean")


def missing_probability(probability: Any, frequency: Any) -> np.ndarray:
    """Computes P(the label is true | it is absent) = (1 - e) / e * p / (1 - p), at most 1.

    Args:
        probability (array): p, the probability that the label is annotated.
        frequency (array that broadcasts): e, the share of the documents with the true label that have the annotation.

    Raises:
        ValueError: if a probability is outside 0 to 1 or NaN, or a frequency is not above 0 and at most 1.
    """
    p, e = np.asarray(probability, dtype=np.float64), np.asarray(frequency, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"Probabilities must lie between 0 and 1, got {p[~((p >= 0) & (p <= 1))].flat[0]}.")
    if not ((e > 0) & (e <= 1)).all():
        raise ValueError(
            f"Label frequencies must be above 0 and at most 1, got {e[~((e > 0) & (e <= 1))].flat[0]}: 0.9 means that one "
            "true label in ten is missing."
        )
    # Above p = e, the posterior is 1. This also avoids the division by 0 at p = 1.
    odds = (1 - e) * p / np.maximum(e * (1 - p), np.finfo(np.float64).tiny)
    return np.where(p > e, 1.0, np.minimum(odds, 1.0))


def check_method(method: str) -> None:
    """Raises a ValueError for an unknown method of [`label_frequencies`]."""
    if method not in FREQUENCIES:
        raise ValueError(f"The label frequency must be a number, or one of {', '.join(FREQUENCIES)}, got {method!r}.")


def label_frequencies(
    labels: np.ndarray, probabilities: np.ndarray, taxonomy: Taxonomy, method: str = "certain"
) -> np.ndarray:
    """Estimates for each label the share e of its true documents that carry it, float64 [L].

    The probabilities of carriers are on average e times the probability that the label is true, which is 1 only for
    documents without doubt. So their mean ("mean", the estimator of Elkan and Noto) is e if the label can be predicted
    perfectly, and too low if it is hard to predict. "certain" is the mean of the tenth of the carriers with the largest
    probabilities, which only assumes that a tenth of the carriers are certain. Both are lower bounds of e in expectation,
    so P(missing) is an upper bound.

    Labels with fewer than 20 carriers get the mean of their level, or of all labels if the level has none with more.

    Args:
        labels (int64 `np.ndarray` of shape `[P]`): the label of each annotation.
        probabilities (same shape): the out-of-fold probability of each annotation.
        taxonomy ([`Taxonomy`]): the hierarchy.
        method (`"certain"` or `"mean"`).

    Raises:
        ValueError: for another method.
    """
    check_method(method)
    order = np.lexsort((-probabilities, labels))
    labels, values = labels[order], probabilities[order]
    carriers = np.bincount(labels, minlength=taxonomy.num_labels)
    used = carriers if method == "mean" else np.maximum(np.ceil(CERTAIN_SHARE * carriers).astype(np.int64), 1)
    position = np.arange(len(labels)) - np.repeat(np.cumsum(carriers) - carriers, carriers)
    is_used = position < used[labels]
    sums = np.bincount(labels[is_used], values[is_used], minlength=taxonomy.num_labels)
    frequencies = sums / np.maximum(np.minimum(used, carriers), 1)
    is_known = carriers >= FEWEST_CARRIERS
    known = frequencies[is_known] if is_known.any() else values
    overall = float(known.mean()) if len(known) else 1.0
    smoothed = np.full(taxonomy.num_labels, overall)
    for level in taxonomy.levels:
        if is_known[level].any():
            smoothed[level] = frequencies[level][is_known[level]].mean()
    return np.clip(np.where(is_known, frequencies, smoothed), np.finfo(np.float64).tiny, 1.0)

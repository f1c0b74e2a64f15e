"""Draws documents with replacement, and tests differences of scores. Needs only numpy.

Source: the paired bootstrap of Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), as used for comparing
systems on one test set by Koehn, "Statistical Significance Tests for Machine Translation Evaluation" (EMNLP 2004).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw_documents(
    num_documents: int, resamples: int, seed: int = 0, chunk: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Draws documents with replacement, as many as there are, and counts how often each is drawn.

    Args:
        num_documents: the number of documents N.
        resamples: how often N documents are drawn.
        seed: the draws depend only on N and the seed. Compare methods with equal seeds.
        chunk: the number of draws that are returned at a time, all by default. It does not change the draws.

    Yields:
        counts, int64 [draws of the chunk, N]. Each row sums to N.

    Raises:
        ValueError: without documents or resamples.
    """
    if num_documents < 1 or resamples < 1:
        raise ValueError(
            f"The bootstrap needs at least one document and one resample, got {num_documents} and {resamples}."
        )
    random = np.random.default_rng(seed)
    step = resamples if chunk is None else max(chunk, 1)
    for start in range(0, resamples, step):
        number = min(step, resamples - start)
        drawn = random.integers(num_documents, size=(number, num_documents))
        drawn += np.arange(number)[:, None] * num_documents
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(number, num_documents)


def bootstrap_interval(differences: Any) -> dict[str, float]:
    """Computes the 95 % interval and the two-sided p of a difference from its values on resampled documents.

    Args:
        differences: one value per resample.

    Returns:
        `low` and `high`, the 2.5 and 97.5 percentiles, and `p`: twice the share of resamples in which the difference is at
        most 0 or at least 0, whichever is smaller, at most 1 and at least 1 / number of resamples.

    Raises:
        ValueError: without values, for NaN, and for another shape.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ValueError(
            f"differences must be one number per resample, got {values.size} values of the shape {list(values.shape)}, "
            f"{int(np.isnan(values).sum())} of them NaN."
        )
    low, high = np.percentile(values, [2.5, 97.5])
    p = min(2 * min(float((values <= 0).mean()), float((values >= 0).mean())), 1.0)
    return {"low": float(low), "high": float(high), "p": max(p, 1 / len(values))}

"""Metrics on predicted label sets, in numpy; `hvr/` is also an `evaluate` module that can be pushed to the Hub."""

from __future__ import annotations

from typing import Any

from .classification import TaxonomyLike, classification_scores
from .hvr.violations import violation_rates_from_edges

__all__ = ["classification_scores", "violation_rates"]


def violation_rates(predictions: Any, taxonomy: TaxonomyLike, scores: Any = None) -> dict[str, float | list[float]]:
    """`hvr`, `hvr_node`, `hvr_level` and, given scores, `hvr_score`: see `violation_rates_from_edges`.

    Args:
        predictions: bool or 0/1 integer array [N, L], or N sequences of node ids.
        taxonomy: any object with `edges` [E, 2], `depths` [L] and `num_labels`.
        scores: float [N, L] probabilities, or None.

    Raises:
        ValueError: wrong shapes, types, ids or scores.
    """
    return violation_rates_from_edges(predictions, taxonomy.edges, taxonomy.num_labels, taxonomy.depths, scores)

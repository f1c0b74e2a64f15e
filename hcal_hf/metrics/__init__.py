"""Computes metrics of predicted label sets and probabilities. Needs only numpy.

The folders `hvr/` and `hierarchical_f1/` are also `evaluate` modules that can be pushed to the Hub as they are.
"""

from __future__ import annotations

from typing import Any

from .bootstrap import bootstrap_interval, draw_documents
from .calibration import brier_score, calibration_scores, expected_calibration_error
from .classification import classification_scores
from .hierarchical_f1.scores import hierarchical_scores_from_edges
from .hvr.violations import violation_rates_from_edges
from .named_sets import TaxonomyLike, node_sets

__all__ = [
    "bootstrap_interval",
    "brier_score",
    "calibration_scores",
    "classification_scores",
    "draw_documents",
    "expected_calibration_error",
    "hierarchical_scores",
    "node_sets",
    "violation_rates",
]


def violation_rates(predictions: Any, taxonomy: TaxonomyLike, scores: Any = None) -> dict[str, float | list[float]]:
    """Computes `hvr`, `hvr_node`, `hvr_level`, `inconsistent_labels` and, with scores, `hvr_score`.

    `violation_rates_from_edges` defines them.

    Args:
        predictions: bool or 0/1 integer array [N, L], or N sequences of node ids, label names or paths ([`node_sets`]).
        taxonomy: any object with `edges` [E, 2], `depths` [L] and `num_labels`; for names and paths a [`Taxonomy`].
        scores: float [N, L] probabilities, or None.

    Raises:
        ValueError: if a shape, a type, an id, a name or a score is invalid.
    """
    predictions = node_sets(predictions, taxonomy)
    return violation_rates_from_edges(predictions, taxonomy.edges, taxonomy.num_labels, taxonomy.depths, scores)


def hierarchical_scores(
    predictions: Any, references: Any, taxonomy: TaxonomyLike, lca: bool | None = None
) -> dict[str, float]:
    """Computes `hierarchical_*`, `hierarchical_*_documents`, `lca_*`, `c_*` and `inconsistent_paths`.

    `hierarchical_scores_from_edges` defines them.

    Args:
        predictions: bool or 0/1 integer array [N, L], or N sequences of node ids, label names or paths ([`node_sets`]).
        references: the same documents, in any of these forms.
        taxonomy: any object with `edges` [E, 2], `depths` [L] and `num_labels`; for names and paths a [`Taxonomy`].
        lca: whether to compute the `lca_` scores, which are defined only on forests. None computes them if no label has
            two parents.

    Raises:
        ValueError: if the numbers of documents differ, a shape, a type, an id or a name is invalid, or `lca=True` on a DAG.
    """
    predictions, references = node_sets(predictions, taxonomy), node_sets(references, taxonomy, "references")
    return hierarchical_scores_from_edges(
        predictions, references, taxonomy.edges, taxonomy.num_labels, taxonomy.depths, lca
    )

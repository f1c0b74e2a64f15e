"""Computes hierarchy violation rates of predicted label sets. Needs only numpy.

A predicted set of nodes of a forest or DAG violates the hierarchy if it contains a node but not all parents of that node.
The name "hierarchical violation rate" (HVR) is from HCAL (Jiang et al., CIKM 2025, arXiv 2508.13452). It is used for
several quantities, so each one has its own name and denominator here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .label_sets import Hierarchy, LabelSets, PackedSets, count_bits, ratio

SCORE_TOLERANCE = 1e-6


def violation_rates_from_edges(
    predictions: Any,
    edges: ArrayLike,
    num_labels: int,
    depths: ArrayLike | None = None,
    scores: ArrayLike | None = None,
) -> dict[str, float | list[float]]:
    """Computes rates of contradictions to the hierarchy, in [0, 1]. Lower is better. A rate with denominator 0 is 0.0.

    On single-path predictions of full depth `hvr` is the HVR of HCAL (Jiang et al., CIKM 2025, arXiv 2508.13452).

    Args:
        predictions: bool or 0/1 integer array [N, L], or N sequences of node ids.
        edges: int [E, 2], rows (parent, child).
        num_labels: L.
        depths: int [L], 0 = top level; None computes the longest path from a root.
        scores: float [N, L], the probabilities P. Adds `hvr_score`.

    Returns:
        `hvr`: share of documents with at least one predicted node that lacks a parent.
        `hvr_node`: predicted non-root nodes that lack a parent / predicted non-root nodes.
        `hvr_level`: one value per depth, the share of documents with a violating node at that depth (depth 0: 0.0).
        `inconsistent_labels`: predicted nodes that lack at least one ancestor / predicted nodes, roots included. On trees
            this is `inconsistency_score` in the released code of HJCL (Yu et al., Findings of EMNLP 2023, arXiv
            2310.05128).
        `hvr_score`: share of (document, edge) pairs with P(child) > P(parent) + 1e-6.

    Raises:
        ValueError: as for `Hierarchy` and `LabelSets`, or if scores have a wrong shape, are outside [0, 1] or are NaN.
    """
    hierarchy = Hierarchy(edges, num_labels, depths)
    sets = LabelSets(predictions, hierarchy.num_labels)
    packed = PackedSets(hierarchy, sets)
    words = packed.words(sets)
    violations = packed.violations(words)
    by_depth = packed.documents_by_depth(violations)
    rates: dict[str, float | list[float]] = {
        "hvr": ratio(count_bits(np.bitwise_or.reduce(by_depth, axis=0)), sets.num_documents),
        "hvr_node": ratio(count_bits(violations), count_bits(words[hierarchy.num_parents[packed.label] > 0])),
        "hvr_level": [ratio(count_bits(level), sets.num_documents) for level in by_depth],
        "inconsistent_labels": ratio(count_bits(words & ~packed.rooted(words)), count_bits(words)),
    }
    if scores is not None:
        rates["hvr_score"] = _score_violation_rate(np.asarray(scores), hierarchy, sets.num_documents)
    return rates


def _score_violation_rate(scores: NDArray[Any], hierarchy: Hierarchy, num_documents: int) -> float:
    if scores.shape != (num_documents, hierarchy.num_labels) or scores.dtype.kind not in "fiu":
        raise ValueError(
            f"scores has shape {scores.shape} and type {scores.dtype}; allowed: probabilities of shape "
            f"[{num_documents}, {hierarchy.num_labels}], one row per document and one column per label."
        )
    parent, child = hierarchy.edges.T
    # The negation also catches NaN, and the margin allows rounding errors.
    if scores.size and not (scores.min() >= -1e-3 and scores.max() <= 1 + 1e-3):
        row, column = np.argwhere(~((scores >= -1e-3) & (scores <= 1 + 1e-3)))[0]
        raise ValueError(f"scores[{row}, {column}] is {scores[row, column]}; allowed: probabilities in [0, 1].")
    dtype = np.promote_types(scores.dtype, np.float32)
    num_violations = 0
    step = max(1, 2**19 // max(len(child), 1))  # two slices of this size fit into the cache of a CPU
    for start in range(0, num_documents, step):
        rows = scores[start : start + step].astype(dtype, copy=False)
        num_violations += int(np.count_nonzero(rows[:, child] > rows[:, parent] + SCORE_TOLERANCE))
    return ratio(num_violations, num_documents * len(child))

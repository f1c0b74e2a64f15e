"""F1 and accuracy scores for hierarchical classification, in numpy alone.

Conventions, the same for every score: a ratio whose denominator is 0 is 0.0 (scikit-learn's `zero_division=0`), so a
label that is neither predicted nor referenced has F1 = 0.0, and no documents at all give 0.0 everywhere.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .hvr.violations import Cells, Hierarchy, LabelSets, Words, count_bits, share

FloatArray = NDArray[np.float64]


class TaxonomyLike(Protocol):
    """What the metrics need of a taxonomy."""

    @property
    def edges(self) -> Any:
        """int [E, 2], rows (parent, child)."""

    @property
    def depths(self) -> Any:
        """int [L], 0 = top level."""

    @property
    def num_labels(self) -> int:
        """L."""


def classification_scores(predictions: Any, references: Any, taxonomy: TaxonomyLike) -> dict[str, float]:
    """Scores of predicted label sets against reference sets, in [0, 1], higher is better.

    Args:
        predictions: bool or 0/1 integer array [N, L], or N sequences of node ids (an id given twice counts once).
        references: the same documents in either form; the two forms may differ.
        taxonomy: any object with `edges` [E, 2], `depths` [L] and `num_labels`.

    Returns:
        `micro_precision`, `micro_recall`, `micro_f1`: pooled over all (document, label) decisions.
        `macro_f1`: mean F1 over the labels that occur in the references.
        `macro_f1_all`: mean F1 over all L labels, absent ones counting 0.
        `hierarchical_precision`, `hierarchical_recall`, `hierarchical_f1`: pooled over documents, on the sets
            completed with all ancestors (Kiritchenko et al., "Learning and Evaluation in the Presence of Class
            Hierarchies", 2006). Top-level labels count: there is no artificial root to leave out.
        `exact_match`: share of documents whose two sets are equal.
        `leaf_accuracy`: share of documents whose end nodes (members without a child in the set) are equal; an empty
            set equals an empty set.
        for each depth k: `accuracy_level_{k}`, among the documents with a reference label at depth k the share whose
            predicted labels at depth k are exactly these (0.0 if there is no such document);
            `micro_f1_level_{k}` and `macro_f1_level_{k}`: as above, over the labels of depth k.

    Raises:
        ValueError: different numbers of documents; wrong shapes, types or ids (see `LabelSets`, `Hierarchy`).
    """
    hierarchy = Hierarchy(taxonomy.edges, taxonomy.num_labels, taxonomy.depths)
    predicted = LabelSets(predictions, hierarchy.num_labels, "predictions")
    expected = LabelSets(references, hierarchy.num_labels, "references")
    num_documents = expected.num_documents
    if predicted.num_documents != num_documents:
        raise ValueError(
            f"predictions holds {predicted.num_documents} documents and references {num_documents}; give both for the "
            "same documents in the same order."
        )
    cells = Cells(hierarchy, predicted, expected)
    prediction, reference = cells.words(predicted), cells.words(expected)

    hits = _per_label(cells, prediction & reference)
    num_predicted = _per_label(cells, prediction)
    num_expected = _per_label(cells, reference)
    label_f1 = _f1(hits, num_predicted, num_expected)

    complete_prediction = _with_ancestors(cells, prediction)
    complete_reference = _with_ancestors(cells, reference)
    complete_hits = count_bits(complete_prediction & complete_reference)
    num_complete_predicted = count_bits(complete_prediction)
    num_complete_expected = count_bits(complete_reference)

    differing = cells.documents_by_depth(prediction ^ reference)
    differing_ends = cells.documents_by_depth(_end_nodes(cells, prediction) ^ _end_nodes(cells, reference))
    scores = {
        "micro_precision": share(hits.sum(), num_predicted.sum()),
        "micro_recall": share(hits.sum(), num_expected.sum()),
        "micro_f1": share(2 * hits.sum(), num_predicted.sum() + num_expected.sum()),
        "macro_f1": _mean(label_f1[num_expected > 0]),
        "macro_f1_all": _mean(label_f1),
        "hierarchical_precision": share(complete_hits, num_complete_predicted),
        "hierarchical_recall": share(complete_hits, num_complete_expected),
        "hierarchical_f1": share(2 * complete_hits, num_complete_predicted + num_complete_expected),
        "exact_match": _share_without(differing, num_documents),
        "leaf_accuracy": _share_without(differing_ends, num_documents),
    }
    labelled = cells.documents_by_depth(reference)
    for depth in range(hierarchy.num_levels):
        at = np.flatnonzero(hierarchy.depths == depth)
        totals = num_predicted[at].sum() + num_expected[at].sum()
        correct = count_bits(labelled[depth] & ~differing[depth])
        scores[f"accuracy_level_{depth}"] = share(correct, count_bits(labelled[depth]))
        scores[f"micro_f1_level_{depth}"] = share(2 * hits[at].sum(), totals)
        scores[f"macro_f1_level_{depth}"] = _mean(label_f1[at[num_expected[at] > 0]])
    return scores


def _with_ancestors(cells: Cells, words: Words) -> Words:
    """The sets completed with all ancestors of their members."""
    words = words.copy()
    depth = cells.depth[cells.child]
    for level in range(cells.hierarchy.num_levels - 1, 0, -1):  # deepest first, so that each edge is walked once
        edges = np.flatnonzero(depth == level)
        np.bitwise_or.at(words, cells.parent[edges], words[cells.child[edges]])
    return words


def _end_nodes(cells: Cells, words: Words) -> Words:
    """The members without a child in the set."""
    inner = np.zeros_like(words)
    np.bitwise_or.at(inner, cells.parent, words[cells.child])
    return words & ~inner


def _share_without(by_depth: Words, num_documents: int) -> float:
    """Share of the documents that are marked at no depth in `by_depth` [levels, blocks]."""
    return share(num_documents - count_bits(np.bitwise_or.reduce(by_depth, axis=0)), num_documents)


def _per_label(cells: Cells, words: Words) -> FloatArray:
    """Number of documents per label [L]."""
    counts = np.bincount(cells.label, weights=np.bitwise_count(words), minlength=cells.hierarchy.num_labels)
    return counts.astype(np.float64, copy=False)


def _f1(hits: FloatArray, num_predicted: FloatArray, num_expected: FloatArray) -> FloatArray:
    """F1 = 2 TP / (predicted + referenced) per label [L]; 0.0 where both are 0."""
    return 2 * hits / np.maximum(num_predicted + num_expected, 1)


def _mean(values: FloatArray) -> float:
    return share(values.sum(), values.size)

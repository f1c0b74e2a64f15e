"""F1 and accuracy scores for hierarchical classification, in numpy alone.

Conventions, the same for every score: a ratio whose denominator is 0 is 0.0 (scikit-learn's `zero_division=0`), so a
label that is neither predicted nor referenced has F1 = 0.0, and no documents at all give 0.0 everywhere.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .hierarchical_f1.label_sets import Cells, Hierarchy, Words, count_bits, share
from .hierarchical_f1.scores import f1, mean, named_scores, paired_sets, pooled_scores


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
    predicted, expected = paired_sets(predictions, references, hierarchy)
    num_documents = expected.num_documents
    cells = Cells(hierarchy, predicted, expected)
    prediction, reference = cells.words(predicted), cells.words(expected)

    hits = cells.count_by_label(prediction & reference)
    num_predicted = cells.count_by_label(prediction)
    num_expected = cells.count_by_label(reference)
    label_f1 = f1(hits, num_predicted, num_expected)

    complete = cells.with_ancestors(prediction), cells.with_ancestors(reference)
    differing = cells.documents_by_depth(prediction ^ reference)
    differing_ends = cells.documents_by_depth(cells.end_nodes(prediction) ^ cells.end_nodes(reference))
    scores = {
        "micro_precision": share(hits.sum(), num_predicted.sum()),
        "micro_recall": share(hits.sum(), num_expected.sum()),
        "micro_f1": share(2 * hits.sum(), num_predicted.sum() + num_expected.sum()),
        "macro_f1": mean(label_f1[num_expected > 0]),
        "macro_f1_all": mean(label_f1),
        **named_scores("hierarchical_{}", *pooled_scores(*complete)),
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
        scores[f"macro_f1_level_{depth}"] = mean(label_f1[at[num_expected[at] > 0]])
    return scores


def _share_without(by_depth: Words, num_documents: int) -> float:
    """Share of the documents that are marked at no depth in `by_depth` [levels, blocks]."""
    return share(num_documents - count_bits(np.bitwise_or.reduce(by_depth, axis=0)), num_documents)

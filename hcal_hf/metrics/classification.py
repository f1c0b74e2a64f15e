"""Computes F1 and accuracy for hierarchical classification. Needs only numpy.

The same conventions hold for every score. A ratio with denominator 0 is 0.0 (scikit-learn's `zero_division=0`), so a label
that is neither predicted nor referenced has F1 = 0.0, and without documents every score is 0.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .hierarchical_f1.label_sets import Hierarchy, PackedSets, Words, count_bits, ratio
from .hierarchical_f1.scores import f1, mean, named_scores, paired_sets, pooled_scores
from .named_sets import TaxonomyLike, node_sets


def classification_scores(predictions: Any, references: Any, taxonomy: TaxonomyLike) -> dict[str, float]:
    """Compares predicted label sets with reference sets. Scores are in [0, 1], and higher is better.

    Args:
        predictions: bool or 0/1 integer array [N, L], or N sequences of node ids, label names or paths ([`node_sets`]).
            A repeated label counts once.
        references: the same documents, in any of these forms.
        taxonomy: any object with `edges` [E, 2], `depths` [L] and `num_labels`; for names and paths a [`Taxonomy`].

    Returns:
        `micro_precision`, `micro_recall`, `micro_f1`: pooled over all (document, label) pairs.
        `macro_f1`: mean F1 over the labels that occur in the references.
        `macro_f1_all`: mean F1 over all L labels. Labels that are neither predicted nor referenced count 0.
        `hierarchical_precision`, `hierarchical_recall`, `hierarchical_f1`: pooled over documents, on the sets
            completed with all ancestors (Kiritchenko et al., "Learning and Evaluation in the Presence of Class
            Hierarchies", 2006). Top-level labels count: there is no artificial root to leave out.
        `exact_match`: share of documents with equal sets.
        `leaf_accuracy`: share of documents with equal end nodes (members without a child in the set). Two empty sets
            are equal.
        `accuracy_level_{k}` for each depth k: among the documents with a reference label at depth k, the share with
            exactly these predicted labels at depth k. 0.0 if there is no such document.
        `micro_f1_level_{k}`, `macro_f1_level_{k}` for each depth k: micro-F1 and macro-F1 over the labels of depth k.

    Raises:
        ValueError: if the numbers of documents differ, or a shape, a type or an id is invalid (see `LabelSets`,
            `Hierarchy`).
    """
    hierarchy = Hierarchy(taxonomy.edges, taxonomy.num_labels, taxonomy.depths)
    predictions, references = node_sets(predictions, taxonomy), node_sets(references, taxonomy, "references")
    predicted, expected = paired_sets(predictions, references, hierarchy)
    num_documents = expected.num_documents
    packed = PackedSets(hierarchy, predicted, expected)
    prediction, reference = packed.words(predicted), packed.words(expected)

    hits = packed.count_by_label(prediction & reference)
    num_predicted = packed.count_by_label(prediction)
    num_expected = packed.count_by_label(reference)
    label_f1 = f1(hits, num_predicted, num_expected)

    complete = packed.with_ancestors(prediction), packed.with_ancestors(reference)
    differing = packed.documents_by_depth(prediction ^ reference)
    differing_ends = packed.documents_by_depth(packed.end_nodes(prediction) ^ packed.end_nodes(reference))
    scores = {
        "micro_precision": ratio(hits.sum(), num_predicted.sum()),
        "micro_recall": ratio(hits.sum(), num_expected.sum()),
        "micro_f1": ratio(2 * hits.sum(), num_predicted.sum() + num_expected.sum()),
        "macro_f1": mean(label_f1[num_expected > 0]),
        "macro_f1_all": mean(label_f1),
        **named_scores("hierarchical_{}", *pooled_scores(*complete)),
        "exact_match": _share_without(differing, num_documents),
        "leaf_accuracy": _share_without(differing_ends, num_documents),
    }
    labelled = packed.documents_by_depth(reference)
    for depth in range(hierarchy.num_levels):
        at = np.flatnonzero(hierarchy.depths == depth)
        totals = num_predicted[at].sum() + num_expected[at].sum()
        correct = count_bits(labelled[depth] & ~differing[depth])
        scores[f"accuracy_level_{depth}"] = ratio(correct, count_bits(labelled[depth]))
        scores[f"micro_f1_level_{depth}"] = ratio(2 * hits[at].sum(), totals)
        scores[f"macro_f1_level_{depth}"] = mean(label_f1[at[num_expected[at] > 0]])
    return scores


def _share_without(by_depth: Words, num_documents: int) -> float:
    """Computes the share of documents that are marked at no depth in `by_depth` [levels, blocks]."""
    return ratio(num_documents - count_bits(np.bitwise_or.reduce(by_depth, axis=0)), num_documents)

"""Computes hierarchical precision, recall and F1 of predicted label sets. Needs only numpy.

The same conventions hold for every score. A ratio with denominator 0 is 0.0 (scikit-learn's `zero_division=0`), so two
empty sets have F1 = 0.0, and without documents every score is 0.0. The F1 of counts is 2 TP / (predicted + referenced),
which is the harmonic mean of their precision and recall.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .label_sets import (
    DOCUMENTS_PER_WORD,
    FloatArray,
    Hierarchy,
    IntArray,
    LabelSets,
    PackedSets,
    Words,
    count_bits,
    ratio,
)

BoolArray: TypeAlias = NDArray[np.bool_]

FAR = 2**40  # larger than any distance or depth; adding 1 does not overflow
WORDS_PER_CHUNK = 2**20


def hierarchical_scores_from_edges(
    predictions: Any,
    references: Any,
    edges: ArrayLike,
    num_labels: int,
    depths: ArrayLike | None = None,
    lca: bool | None = None,
) -> dict[str, float]:
    """Compares predicted label sets with reference sets. Scores are in [0, 1], and higher is better.

    Only of `inconsistent_paths`, lower is better. Y is the reference set of a document, Z its predicted set, and A(S) is S
    completed with all ancestors of its members. Top-level labels count as ancestors; there is no artificial root to leave
    out.

    Args:
        predictions: bool or 0/1 integer array [N, L], or N sequences of node ids. A repeated id counts once.
        references: the same documents, in either form.
        edges: int [E, 2], rows (parent, child), of a forest or DAG.
        num_labels: L.
        depths: int [L], smaller for a parent than for its child; None computes them. The scores do not depend on them.
        lca: whether to compute the `lca_` scores, which are defined only on forests. None computes them if no label has
            two parents.

    Returns:
        `hierarchical_precision`, `hierarchical_recall`, `hierarchical_f1`: sum |A(Y) & A(Z)| / sum |A(Z)|,
            sum |A(Y) & A(Z)| / sum |A(Y)|, and their F1, with sums over documents (Kiritchenko, Matwin, Nock and Famili,
            "Learning and Evaluation in the Presence of Class Hierarchies: Application to Text Categorization", 2006).
        `hierarchical_precision_documents`, `hierarchical_recall_documents`, `hierarchical_f1_documents`: the same
            three ratios for each document, each averaged over all documents (so the last one is a mean of F1 scores).
        `c_micro_precision`, `c_micro_recall`, `c_micro_f1`: constrained scores, pooled over all (document, label)
            pairs. A predicted label is correct only if it and all its ancestors are in both Y and Z. The denominators
            are sum |Z| and sum |Y|. The sets are not completed, so a label that lacks an ancestor in its own set is never
            correct. This is C-MicroF1 in Yu et al., "Constrained Sequence-to-Tree Generation for Hierarchical Text
            Classification", SIGIR 2022, and in Ji et al., "Hierarchical Verbalizer for Few-Shot Hierarchical Text
            Classification", ACL 2023.
        `c_macro_f1`: mean of the constrained F1 per label over the labels that occur in the references.
        `c_macro_f1_all`: the same over all L labels. Labels that are neither predicted nor referenced count 0. This is
            C-MacroF1 in the published code of Ji et al.
        `inconsistent_paths`: mean over the documents with reference labels of the share of their reference paths that the
            prediction breaks. A document has one path for each most specific member of Y: the member with all its
            ancestors. Z breaks a path if it contains a node of the path, but not all ancestors of this node. A path without
            predicted nodes is not broken. On trees this is `inconsistency_path_score` in the released code of HJCL (Yu et
            al., Findings of EMNLP 2023, arXiv 2310.05128), which is undefined if a document has no reference labels.
        `lca_precision`, `lca_recall`, `lca_f1`: |Y* & Z*| / |Z*|, |Y* & Z*| / |Y*| and F1 for each document, each
            averaged over all documents. Y* and Z* extend the sets only up to lowest common ancestors. They follow
            Kosmopoulos et al., "Evaluation measures for hierarchical classification: a unified view and novel
            approaches", DMKD 29, 2015. `lca_counts` defines them exactly.

    Raises:
        ValueError: if the numbers of documents differ, a shape, a type or an id is invalid (see `LabelSets`, `Hierarchy`),
            or `lca=True` and a label has two parents.
    """
    hierarchy = Hierarchy(edges, num_labels, depths)
    with_several_parents = np.flatnonzero(hierarchy.num_parents > 1)
    if lca and len(with_several_parents):
        raise ValueError(
            f"lca=True, but label {with_several_parents[0]} has {hierarchy.num_parents[with_several_parents[0]]} parents; "
            "allowed: a forest, in which each label has at most one. Leave lca out to get the other scores."
        )
    predicted, expected = paired_sets(predictions, references, hierarchy)
    packed = PackedSets(hierarchy, predicted, expected)
    prediction, reference = packed.words(predicted), packed.words(expected)
    complete = packed.with_ancestors(prediction), packed.with_ancestors(reference)
    scores = named_scores("hierarchical_{}", *pooled_scores(*complete))

    num_documents = expected.num_documents
    hits, in_prediction, in_reference = (
        packed.count_by_document(words)[:num_documents] for words in (complete[0] & complete[1], *complete)
    )
    scores |= named_scores("hierarchical_{}_documents", *mean_scores(hits, in_prediction, in_reference))

    ends = packed.end_nodes(complete[1])
    broken = ends & packed.with_descendants(prediction & ~packed.rooted(prediction))
    num_broken, num_paths = (packed.count_by_document(words)[:num_documents] for words in (broken, ends))
    scores["inconsistent_paths"] = mean(num_broken[num_paths > 0] / num_paths[num_paths > 0])

    correct = packed.rooted(prediction & reference)
    num_expected = packed.count_by_label(reference)
    label_f1 = f1(packed.count_by_label(correct), packed.count_by_label(prediction), num_expected)
    num_correct, num_predicted = count_bits(correct), count_bits(prediction)
    scores |= {
        "c_micro_precision": ratio(num_correct, num_predicted),
        "c_micro_recall": ratio(num_correct, num_expected.sum()),
        "c_micro_f1": ratio(2 * num_correct, num_predicted + num_expected.sum()),
        "c_macro_f1": mean(label_f1[num_expected > 0]),
        "c_macro_f1_all": mean(label_f1),
    }
    if lca or (lca is None and not len(with_several_parents)):
        scores |= named_scores("lca_{}", *mean_scores(*lca_counts(packed, prediction, reference, num_documents)))
    return scores


def paired_sets(predictions: Any, references: Any, hierarchy: Hierarchy) -> tuple[LabelSets, LabelSets]:
    """Checks both arguments, and that they have the same number of documents."""
    predicted = LabelSets(predictions, hierarchy.num_labels, "predictions")
    expected = LabelSets(references, hierarchy.num_labels, "references")
    if predicted.num_documents != expected.num_documents:
        raise ValueError(
            f"predictions holds {predicted.num_documents} documents and references {expected.num_documents}; give both "
            "for the same documents in the same order."
        )
    return predicted, expected


def pooled_scores(prediction: Words, reference: Words) -> tuple[float, float, float]:
    """Computes precision, recall and F1 over all members of two collections of sets."""
    hits, num_predicted, num_expected = map(count_bits, (prediction & reference, prediction, reference))
    return ratio(hits, num_predicted), ratio(hits, num_expected), ratio(2 * hits, num_predicted + num_expected)


def mean_scores(hits: IntArray, num_predicted: IntArray, num_expected: IntArray) -> tuple[float, float, float]:
    """Averages precision, recall and F1 over documents, from their counts [N]."""
    precision, recall = hits / np.maximum(num_predicted, 1), hits / np.maximum(num_expected, 1)
    return mean(precision), mean(recall), mean(f1(hits, num_predicted, num_expected))


def named_scores(pattern: str, precision: float, recall: float, f1: float) -> dict[str, float]:
    """Names the three scores by `pattern`."""
    return {pattern.format("precision"): precision, pattern.format("recall"): recall, pattern.format("f1"): f1}


def f1(
    hits: IntArray | FloatArray, num_predicted: IntArray | FloatArray, num_expected: IntArray | FloatArray
) -> FloatArray:
    """Computes F1 = 2 TP / (predicted + referenced) per element, or 0.0 if both are 0."""
    return 2 * hits / np.maximum(num_predicted + num_expected, 1)


def mean(values: FloatArray) -> float:
    """Computes the mean, or 0.0 without values."""
    return ratio(values.sum(), values.size)


def lca_counts(
    packed: PackedSets, prediction: Words, reference: Words, num_documents: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Computes the sizes of Y* & Z*, Z* and Y* for each document [N], on a forest.

    An artificial root joins the trees, so that any two labels have a lowest common ancestor (LCA). A node counts as
    its own ancestor. The distance of two nodes is the number of edges between them. For each document:

    1. Reduce Y and Z to their most specific members, those without a descendant in the set.
    2. For each y in Y, let m(y) be the LCA of y and the nearest member of Z. If several members are nearest, use the one
       with the lowest LCA. For each z in Z, define m(z) with the roles exchanged.
    3. Y* holds all nodes from each y up to m(y), both included. Z* is defined likewise. The artificial root counts like
       any other node.
    4. If Y or Z is empty, no LCA is defined and all three counts are 0.

    For one reference label and one predicted label, this is the measure of Kosmopoulos et al. (2015): both sets reach up
    to the LCA of the two. For sets, the paper defines the LCAs of a node and a set by the nearest members as in step 2,
    extends both sets by all of these, and then takes a smallest pair of graphs that keeps the nodes linked to LCAs. That
    reduction has several solutions if nearest members tie. It is replaced here by the rule of step 2, and each side is
    extended only to its own LCAs. So other implementations may give other values for several labels. Because of step 1,
    the result does not depend on whether ancestors are listed. DAGs are not supported, because two nodes may have several
    LCAs and shortest paths.
    """
    sides = packed.end_nodes(packed.with_ancestors(reference)), packed.end_nodes(packed.with_ancestors(prediction))
    tree = _DocumentTrees(packed, packed.with_ancestors(sides[0] | sides[1]), num_documents)
    ends = [tree.holds(words) for words in sides]
    below = [tree.distance_below(end) for end in ends]
    matches = [tree.nearest_common_ancestor(end, other) for end, other in zip(ends, reversed(below))]
    first, second = map(tree.paths, matches)
    in_both, in_prediction, in_reference = (
        np.bincount(tree.document[nodes], minlength=num_documents).astype(np.int64)
        for nodes in (first & second, second, first)
    )
    return in_both, in_prediction, in_reference


class _DocumentTrees:
    """Builds one tree per document from the nodes of its completed set and the artificial root.

    Attributes:
        size: the number n of nodes of all trees.
        document, parent, height: the document, the parent and the number of edges to the root of each node [n]. A root is
            its own parent.
        levels: the nodes below the roots by depth, top first.
    """

    def __init__(self, packed: PackedSets, words: Words, num_documents: int) -> None:
        self.entry, self.bit = _members(words)
        num_members = len(self.entry)
        self.size = num_members + num_documents
        document = packed.block[self.entry] * DOCUMENTS_PER_WORD + self.bit
        self.document: IntArray = np.concatenate([document, np.arange(num_documents)])
        self.parent = num_members + self.document

        # The index of a node is the number of members in earlier entries and of earlier documents in its own entry.
        parent_entry = np.full(len(words), -1)
        parent_entry[packed.child] = packed.parent
        node = np.flatnonzero(parent_entry[self.entry] >= 0)
        above = parent_entry[self.entry[node]]
        counts = np.bitwise_count(words).astype(np.int64)
        earlier = words[above] & ((np.uint64(1) << self.bit[node].astype(np.uint64)) - np.uint64(1))
        self.parent[node] = (np.cumsum(counts) - counts)[above] + np.bitwise_count(earlier)

        depth = packed.depth[self.entry]
        order = np.argsort(depth, kind="stable")
        self.levels = np.split(order, np.cumsum(np.bincount(depth))[:-1])
        self.height: IntArray = np.zeros(self.size, dtype=np.int64)
        for nodes in self.levels:
            self.height[nodes] = self.height[self.parent[nodes]] + 1

    def holds(self, words: Words) -> BoolArray:
        """Marks the nodes that are in the sets `words`, as bool [n]."""
        is_member = np.zeros(self.size, dtype=bool)
        is_member[: len(self.entry)] = words[self.entry] >> self.bit.astype(np.uint64) & np.uint64(1)
        return is_member

    def distance_below(self, ends: BoolArray) -> IntArray:
        """Counts the edges from each node down to the nearest of `ends` at or below it [n]. Without one, `FAR` or more."""
        distance = np.where(ends, 0, FAR)
        for nodes in reversed(self.levels):
            np.minimum.at(distance, self.parent[nodes], distance[nodes] + 1)
        return distance

    def nearest_common_ancestor(self, ends: BoolArray, below: IntArray) -> IntArray:
        """Finds m [n] of each of `ends`, from the `distance_below` of the other side. Other nodes have -1."""
        # A path through an ancestor above the LCA is longer, so the shortest path turns at the LCA.
        distance, turn = below.copy(), np.arange(self.size)
        for nodes in self.levels:
            parent = self.parent[nodes]
            by_parent = distance[parent] + 1
            further = by_parent < distance[nodes]
            distance[nodes[further]] = by_parent[further]
            turn[nodes[further]] = turn[parent[further]]
        return np.where(ends & (distance < FAR), turn, -1)

    def paths(self, match: IntArray) -> BoolArray:
        """Marks the nodes from each node with a match (>= 0) up to the match, as bool [n]."""
        until = np.where(match >= 0, self.height[match], FAR)
        for nodes in reversed(self.levels):
            going = nodes[until[nodes] < self.height[nodes]]
            np.minimum.at(until, self.parent[going], until[going])
        return until < FAR


def _members(words: Words) -> tuple[IntArray, IntArray]:
    """Returns the entry [n] and the bit [n] of all members, sorted by entry and then by bit."""
    positions = []
    for start in range(0, len(words), WORDS_PER_CHUNK):
        chunk = words[start : start + WORDS_PER_CHUNK].astype("<u8")
        positions.append(
            np.flatnonzero(np.unpackbits(chunk.view(np.uint8), bitorder="little")) + start * DOCUMENTS_PER_WORD
        )
    entry, bit = np.divmod(np.concatenate(positions) if positions else np.zeros(0, dtype=np.int64), DOCUMENTS_PER_WORD)
    return entry, bit

"""Precision, recall and F1 of predicted label sets that take the label hierarchy into account, in numpy alone.

Conventions, the same for every score: a ratio whose denominator is 0 is 0.0 (scikit-learn's `zero_division=0`), so two
empty sets have F1 = 0.0, and no documents at all give 0.0 everywhere. The F1 of counts is 2 TP / (predicted +
referenced), which is the harmonic mean of their precision and recall.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .label_sets import (
    DOCUMENTS_PER_WORD,
    Cells,
    FloatArray,
    Hierarchy,
    IntArray,
    LabelSets,
    Words,
    count_bits,
    share,
)

BoolArray: TypeAlias = NDArray[np.bool_]

FAR = 2**40  # a distance or depth beyond any in a hierarchy, to which 1 can be added
WORDS_PER_CHUNK = 2**20


def hierarchical_scores_from_edges(
    predictions: Any,
    references: Any,
    edges: ArrayLike,
    num_labels: int,
    depths: ArrayLike | None = None,
    lca: bool | None = None,
) -> dict[str, float]:
    """Scores of predicted label sets against reference sets, in [0, 1], higher is better.

    Y is the reference set of a document, Z its predicted set, and A(S) is S completed with all ancestors of its
    members. Top-level labels count as ancestors; there is no artificial root to leave out.

    Args:
        predictions: bool or 0/1 integer array [N, L], or N sequences of node ids (an id given twice counts once).
        references: the same documents in either form; the two forms may differ.
        edges: int [E, 2], rows (parent, child), of a forest or DAG.
        num_labels: L.
        depths: int [L], smaller for a parent than for its child; None computes them. The scores do not depend on them.
        lca: whether to compute the `lca_` scores, which are defined on forests only. None: where no label has two
            parents.

    Returns:
        `hierarchical_precision`, `hierarchical_recall`, `hierarchical_f1`: sum |A(Y) & A(Z)| over sum |A(Z)|, over
            sum |A(Y)|, and F1, with sums over documents (Kiritchenko, Matwin, Nock and Famili, "Learning and
            Evaluation in the Presence of Class Hierarchies: Application to Text Categorization", 2006).
        `hierarchical_precision_documents`, `hierarchical_recall_documents`, `hierarchical_f1_documents`: the same
            three ratios for each document, each averaged over all documents (so the last one is a mean of F1 scores).
        `c_micro_precision`, `c_micro_recall`, `c_micro_f1`: constrained scores, pooled over all (document, label)
            decisions. A predicted label is correct only if it and all its ancestors are in both Y and Z; the
            denominators are the plain sum |Z| and sum |Y|. Nothing is completed, so a predicted or referenced label
            that lacks an ancestor in its own set can never be correct. As C-MicroF1 in Yu et al., "Constrained
            Sequence-to-Tree Generation for Hierarchical Text Classification", SIGIR 2022, and in Ji et al.,
            "Hierarchical Verbalizer for Few-Shot Hierarchical Text Classification", ACL 2023.
        `c_macro_f1`: mean of the constrained F1 per label over the labels that occur in the references.
        `c_macro_f1_all`: the same over all L labels, absent ones counting 0: C-MacroF1 in the published code of Ji
            et al.
        `lca_precision`, `lca_recall`, `lca_f1`: |Y* & Z*| / |Z*|, |Y* & Z*| / |Y*| and F1 for each document, each
            averaged over all documents, where Y* and Z* extend the sets only up to lowest common ancestors. After
            Kosmopoulos et al., "Evaluation measures for hierarchical classification: a unified view and novel
            approaches", DMKD 29, 2015; see `lca_counts` for what exactly is computed.

    Raises:
        ValueError: different numbers of documents; wrong shapes, types or ids (see `LabelSets`, `Hierarchy`);
            `lca=True` where a label has two parents.
    """
    hierarchy = Hierarchy(edges, num_labels, depths)
    several = np.flatnonzero(hierarchy.num_parents > 1)
    if lca and len(several):
        raise ValueError(
            f"lca=True, but label {several[0]} has {hierarchy.num_parents[several[0]]} parents; allowed: a forest, in "
            "which each label has at most one. Leave lca out to get the other scores."
        )
    predicted, expected = paired_sets(predictions, references, hierarchy)
    cells = Cells(hierarchy, predicted, expected)
    prediction, reference = cells.words(predicted), cells.words(expected)
    complete = cells.with_ancestors(prediction), cells.with_ancestors(reference)
    scores = named_scores("hierarchical_{}", *pooled_scores(*complete))

    num_documents = expected.num_documents
    hits, in_prediction, in_reference = (
        cells.count_by_document(words)[:num_documents] for words in (complete[0] & complete[1], *complete)
    )
    scores |= named_scores("hierarchical_{}_documents", *mean_scores(hits, in_prediction, in_reference))

    correct = cells.rooted(prediction & reference)
    num_expected = cells.count_by_label(reference)
    label_f1 = f1(cells.count_by_label(correct), cells.count_by_label(prediction), num_expected)
    num_correct, num_predicted = count_bits(correct), count_bits(prediction)
    scores |= {
        "c_micro_precision": share(num_correct, num_predicted),
        "c_micro_recall": share(num_correct, num_expected.sum()),
        "c_micro_f1": share(2 * num_correct, num_predicted + num_expected.sum()),
        "c_macro_f1": mean(label_f1[num_expected > 0]),
        "c_macro_f1_all": mean(label_f1),
    }
    if lca or (lca is None and not len(several)):
        scores |= named_scores("lca_{}", *mean_scores(*lca_counts(cells, prediction, reference, num_documents)))
    return scores


def paired_sets(predictions: Any, references: Any, hierarchy: Hierarchy) -> tuple[LabelSets, LabelSets]:
    """Both arguments checked, and checked to hold the same number of documents."""
    predicted = LabelSets(predictions, hierarchy.num_labels, "predictions")
    expected = LabelSets(references, hierarchy.num_labels, "references")
    if predicted.num_documents != expected.num_documents:
        raise ValueError(
            f"predictions holds {predicted.num_documents} documents and references {expected.num_documents}; give both "
            "for the same documents in the same order."
        )
    return predicted, expected


def pooled_scores(prediction: Words, reference: Words) -> tuple[float, float, float]:
    """Precision, recall and F1 over all members of two collections of sets."""
    hits, num_predicted, num_expected = map(count_bits, (prediction & reference, prediction, reference))
    return share(hits, num_predicted), share(hits, num_expected), share(2 * hits, num_predicted + num_expected)


def mean_scores(hits: IntArray, num_predicted: IntArray, num_expected: IntArray) -> tuple[float, float, float]:
    """Means over documents of the precision, recall and F1 of their counts [N]."""
    precision, recall = hits / np.maximum(num_predicted, 1), hits / np.maximum(num_expected, 1)
    return mean(precision), mean(recall), mean(f1(hits, num_predicted, num_expected))


def named_scores(pattern: str, precision: float, recall: float, f1: float) -> dict[str, float]:
    """The three scores under `pattern` with the name of each."""
    return {pattern.format("precision"): precision, pattern.format("recall"): recall, pattern.format("f1"): f1}


def f1(
    hits: IntArray | FloatArray, num_predicted: IntArray | FloatArray, num_expected: IntArray | FloatArray
) -> FloatArray:
    """F1 = 2 TP / (predicted + referenced), element by element; 0.0 where both are 0."""
    return 2 * hits / np.maximum(num_predicted + num_expected, 1)


def mean(values: FloatArray) -> float:
    """The mean, and 0.0 of nothing."""
    return share(values.sum(), values.size)


def lca_counts(
    cells: Cells, prediction: Words, reference: Words, num_documents: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Sizes of Y* & Z*, Z* and Y* for each document [N], on a forest.

    An artificial root joins the trees, so that any two labels have a lowest common ancestor (their LCA; an ancestor of
    a node may be the node itself). The distance of two nodes is the number of edges between them. For each document:

    1. Y and Z are reduced to their most specific members, those without a descendant in the set.
    2. Each y in Y gets the node m(y): the LCA of y and the member of Z nearest to y; of several nearest members, the
       one with the lowest LCA. Each z in Z gets m(z) with the roles exchanged.
    3. Y* holds all nodes from each y up to m(y), both included; Z* likewise. The artificial root counts like any other
       node where it is in them.
    4. If Y or Z is empty, no LCA is defined and all three counts are 0.

    For one reference and one predicted label this is the measure of Kosmopoulos et al. (2015): both sets reach up to
    the LCA of the two. For sets they define the LCAs of a node and a set by the nearest members as in step 2, extend
    both sets by all of these, and then take a smallest pair of graphs that keeps the nodes linked to LCAs. That
    reduction has several solutions where nearest members tie, so it is replaced here by the rule of step 2, and each
    side is extended to its own LCAs alone: on several labels, other implementations may give other values. Step 1
    makes the result independent of whether ancestors are spelled out. On DAGs (several LCAs of two nodes, several
    shortest paths) nothing is defined here.
    """
    sides = cells.end_nodes(cells.with_ancestors(reference)), cells.end_nodes(cells.with_ancestors(prediction))
    tree = _DocumentTrees(cells, cells.with_ancestors(sides[0] | sides[1]), num_documents)
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
    """One tree per document, of the nodes in its completed set and the artificial root; the n nodes of all together.

    Attributes: `size` n; `document`, `parent` and `height` (edges up to the root) of each node [n], where a root is
    its own parent; `levels`, the nodes below the roots by depth, top first.
    """

    def __init__(self, cells: Cells, words: Words, num_documents: int) -> None:
        self.cell, self.bit = _members(words)
        num_members = len(self.cell)
        self.size = num_members + num_documents
        document = cells.block[self.cell] * DOCUMENTS_PER_WORD + self.bit
        self.document: IntArray = np.concatenate([document, np.arange(num_documents)])
        self.parent = num_members + self.document

        # A node stands behind all members of earlier cells and of earlier documents in its own cell.
        parent_cell = np.full(len(words), -1)
        parent_cell[cells.child] = cells.parent
        node = np.flatnonzero(parent_cell[self.cell] >= 0)
        above = parent_cell[self.cell[node]]
        counts = np.bitwise_count(words).astype(np.int64)
        earlier = words[above] & ((np.uint64(1) << self.bit[node].astype(np.uint64)) - np.uint64(1))
        self.parent[node] = (np.cumsum(counts) - counts)[above] + np.bitwise_count(earlier)

        depth = cells.depth[self.cell]
        order = np.argsort(depth, kind="stable")
        self.levels = np.split(order, np.cumsum(np.bincount(depth))[:-1])
        self.height: IntArray = np.zeros(self.size, dtype=np.int64)
        for nodes in self.levels:
            self.height[nodes] = self.height[self.parent[nodes]] + 1

    def holds(self, words: Words) -> BoolArray:
        """bool [n]: the nodes that are in the sets `words`."""
        found = np.zeros(self.size, dtype=bool)
        found[: len(self.cell)] = words[self.cell] >> self.bit.astype(np.uint64) & np.uint64(1)
        return found

    def distance_below(self, ends: BoolArray) -> IntArray:
        """Edges from each node down to the nearest of `ends` at or below it [n], `FAR` or more without one."""
        distance = np.where(ends, 0, FAR)
        for nodes in reversed(self.levels):
            np.minimum.at(distance, self.parent[nodes], distance[nodes] + 1)
        return distance

    def nearest_common_ancestor(self, ends: BoolArray, below: IntArray) -> IntArray:
        """m [n] of each of `ends`, given the `distance_below` of the other side; -1 for other nodes or without one."""
        # Through an ancestor above the LCA the way is longer, so the shortest way turns at the LCA.
        distance, turn = below.copy(), np.arange(self.size)
        for nodes in self.levels:
            parent = self.parent[nodes]
            by_parent = distance[parent] + 1
            further = by_parent < distance[nodes]
            distance[nodes[further]] = by_parent[further]
            turn[nodes[further]] = turn[parent[further]]
        return np.where(ends & (distance < FAR), turn, -1)

    def paths(self, match: IntArray) -> BoolArray:
        """bool [n]: the nodes from each node with a match (>= 0) up to it."""
        until = np.where(match >= 0, self.height[match], FAR)
        for nodes in reversed(self.levels):
            going = nodes[until[nodes] < self.height[nodes]]
            np.minimum.at(until, self.parent[going], until[going])
        return until < FAR


def _members(words: Words) -> tuple[IntArray, IntArray]:
    """Cell [n] and bit [n] of all members, sorted by cell and then by bit."""
    found = []
    for start in range(0, len(words), WORDS_PER_CHUNK):
        chunk = words[start : start + WORDS_PER_CHUNK].astype("<u8")
        found.append(
            np.flatnonzero(np.unpackbits(chunk.view(np.uint8), bitorder="little")) + start * DOCUMENTS_PER_WORD
        )
    cell, bit = np.divmod(np.concatenate(found) if found else np.zeros(0, dtype=np.int64), DOCUMENTS_PER_WORD)
    return cell, bit

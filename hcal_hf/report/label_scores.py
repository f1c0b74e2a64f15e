"""Counts the decisions on each label, and places every label in one tree."""

from dataclasses import dataclass

import numpy as np

from ..taxonomy import Taxonomy
from .predictions import LabelPairs, Predictions


@dataclass(frozen=True)
class LabelScores:
    """The decisions on each of the L labels.

    Attributes:
        parents (int `np.ndarray` of shape `[L]`): one parent on the level above, or -1.
        documents, predicted, hits (int `np.ndarray` of shape `[L]`): the numbers of documents that have the label, that it
            is predicted for, and of both.
        ends (int `np.ndarray` of shape `[L]`): the number of documents that have the label and none of its children in the
            tree of `parents`. The sum over a branch is its area in the tree.
    """

    parents: np.ndarray
    documents: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray
    ends: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """F1 of each label [L]; NaN for labels that no document has."""
        f1 = 2 * self.hits / np.maximum(self.documents + self.predicted, 1)
        return np.where(self.documents > 0, f1, np.nan)


def score_labels(predictions: Predictions, taxonomy: Taxonomy) -> LabelScores:
    """Counts documents, predictions and hits of each label."""
    true, predicted, number = predictions.true, predictions.predicted, taxonomy.num_labels
    parents = tree_parents(taxonomy)
    return LabelScores(
        parents=parents,
        documents=np.bincount(true.labels, minlength=number),
        predicted=np.bincount(predicted.labels, minlength=number),
        hits=np.bincount(predicted.labels[predicted.is_in(true)], minlength=number),
        ends=np.bincount(true.labels[is_end(true, parents)], minlength=number),
    )


def tree_parents(taxonomy: Taxonomy) -> np.ndarray:
    """Returns one parent of each label [L], on the level just above it; -1 for the top level."""
    above, below = taxonomy.edges[:, 0], taxonomy.edges[:, 1]
    is_next = taxonomy.depths[above] == taxonomy.depths[below] - 1
    children, first = np.unique(below[is_next], return_index=True)
    parents = np.full(taxonomy.num_labels, -1)
    parents[children] = above[is_next][first]
    return parents


def is_end(pairs: LabelPairs, parents: np.ndarray | Taxonomy) -> np.ndarray:
    """Returns for each pair whether its document has none of the label's children, bool [n].

    Args:
        pairs: the label sets.
        parents: the hierarchy, or one parent of each label (-1 for none).
    """
    if isinstance(parents, Taxonomy):
        position, above = parents.parents_of(pairs.labels)
    else:
        position = np.flatnonzero(parents[pairs.labels] >= 0)
        above = parents[pairs.labels[position]]
    keys, inner = pairs.keys, pairs.documents[position] * pairs.num_labels + above
    ends = np.ones(len(keys), dtype=bool)
    if len(keys):
        found = np.minimum(np.searchsorted(keys, inner), len(keys) - 1)
        ends[found[keys[found] == inner]] = False
    return ends

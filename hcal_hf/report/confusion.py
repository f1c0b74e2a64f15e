"""Finds the pairs of sibling labels that are confused most often."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..taxonomy import Taxonomy
from .predictions import LabelPairs, Predictions, contains

# Confused pairs that are counted at a time.
_PAIRS_PER_CHUNK = 2_000_000
# With so many pairs of several documents, pairs of a single document are left out.
_FEWEST = 5


@dataclass(frozen=True)
class Confusion:
    """A label that was predicted in place of a true one.

    Attributes:
        true, predicted (`int`): the labels.
        documents (`int`): the number of documents.
        examples (`list[int]`): a few of them.
    """

    true: int
    predicted: int
    documents: int
    examples: list[int]


def find_confusions(
    predictions: Predictions, taxonomy: Taxonomy, most: int = 20, examples: int = 3
) -> list[Confusion]:
    """Finds the pairs that are confused most often.

    A document confuses A with B if it has A and not B, if B is predicted and A is not, and if both are top-level labels or
    have a parent in common that is predicted correctly. So a document counts where its predicted path leaves the true one.
    Pairs of a single document are left out if there are enough others.

    Args:
        predictions: the predictions.
        taxonomy: the hierarchy.
        most: the largest number of pairs.
        examples: the largest number of example documents per pair.
    """
    true, predicted, number = predictions.true, predictions.predicted, taxonomy.num_labels
    hits = true.keys[true.is_in(predicted)]
    missed = _below_hits(true, ~true.is_in(predicted), hits, taxonomy)
    added = _below_hits(predicted, ~predicted.is_in(true), hits, taxonomy)
    pairs, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for _, keys in _occurrences(missed, added, number):
        pairs, owners = np.unique(np.concatenate([pairs, keys]), return_inverse=True)
        weights = np.concatenate([counts, np.ones(len(keys), dtype=np.int64)])
        counts = np.bincount(owners, weights, len(pairs)).astype(np.int64)
    best = np.argsort(-counts, kind="stable")[:most]
    if (counts[best] > 1).sum() >= _FEWEST:
        best = best[counts[best] > 1]
    found: dict[int, list[int]] = {int(key): [] for key in pairs[best]}
    for documents, keys in _occurrences(missed, added, number) if examples else ():
        is_best = contains(np.sort(pairs[best]), keys)
        documents, keys = documents[is_best], keys[is_best]
        order = np.argsort(keys, kind="stable")
        rank = np.arange(len(order)) - np.searchsorted(keys[order], keys[order])
        for i in order[rank < examples].tolist():
            found[int(keys[i])].append(int(documents[i]))
    found = {key: rows[:examples] for key, rows in found.items()}
    return [Confusion(*divmod(int(pairs[i]), number), int(counts[i]), found[int(pairs[i])]) for i in best]


def _below_hits(pairs: LabelPairs, wrong: np.ndarray, hits: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Finds the wrong labels at the top level or below a hit: rows (document * (L + 1) + parent + 1, label), sorted."""
    documents, labels = pairs.documents[wrong], pairs.labels[wrong]
    position, parents = taxonomy.parents_of(labels)
    is_below = contains(hits, documents[position] * pairs.num_labels + parents)
    position, parents = position[is_below], parents[is_below]
    top = taxonomy.depths[labels] == 0
    groups = np.concatenate(
        [documents[top] * (pairs.num_labels + 1), documents[position] * (pairs.num_labels + 1) + parents + 1]
    )
    rows = np.stack([groups, np.concatenate([labels[top], labels[position]])], axis=1)
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


def _occurrences(missed: np.ndarray, added: np.ndarray, num_labels: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (document, missed label * L + added label) of each confusion, each once, whole documents at a time."""
    groups = np.intersect1d(missed[:, 0], added[:, 0])
    left, right = _Ranges.find(missed, groups), _Ranges.find(added, groups)
    sizes, documents = left.sizes * right.sizes, groups // (num_labels + 1)
    first = 0
    while first < len(groups):
        last = first + max(int(np.searchsorted(np.cumsum(sizes[first:]), _PAIRS_PER_CHUNK, "right")), 1)
        last = int(np.searchsorted(documents, documents[last - 1], "right"))
        part = sizes[first:last]
        owners = np.repeat(np.arange(first, last), part)
        position = np.arange(len(owners)) - np.repeat(np.cumsum(part) - part, part)
        i, j = np.divmod(position, right.sizes[owners])
        keys = missed[left.starts[owners] + i, 1] * num_labels + added[right.starts[owners] + j, 1]
        # In a DAG, two labels can have several parents in common.
        found = np.unique(np.stack([documents[owners], keys], axis=1), axis=0)
        yield found[:, 0], found[:, 1]
        first = last


class _Ranges(NamedTuple):
    """The rows of each group in a table that is sorted by group."""

    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def find(cls, rows: np.ndarray, groups: np.ndarray) -> "_Ranges":
        starts = np.searchsorted(rows[:, 0], groups, "left")
        return cls(starts, np.searchsorted(rows[:, 0], groups, "right") - starts)

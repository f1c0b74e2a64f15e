"""Holds the labels of many documents, and hides single annotations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..taxonomy import Taxonomy


@dataclass
class Annotations:
    """The label sets of N documents, with all ancestors, as flat arrays.

    Attributes:
        taxonomy ([`Taxonomy`]): the hierarchy.
        offsets (int64 `np.ndarray` of shape `[N + 1]`): the nodes of document i are `nodes[offsets[i]:offsets[i + 1]]`.
        nodes (int64 `np.ndarray`): the node indices, ascending within each document.
    """

    taxonomy: Taxonomy
    offsets: np.ndarray
    nodes: np.ndarray

    @classmethod
    def from_pairs(cls, taxonomy: Taxonomy, number: int, documents: np.ndarray, nodes: np.ndarray) -> "Annotations":
        """Builds the label sets of `number` documents from (document, node) pairs, and adds all ancestors."""
        documents, nodes = taxonomy.complete_rows(np.asarray(documents), np.asarray(nodes))
        return cls(taxonomy, np.searchsorted(documents, np.arange(number + 1)), nodes)

    @classmethod
    def from_rows(cls, taxonomy: Taxonomy, rows: Sequence[Iterable[int]]) -> "Annotations":
        """Builds the label sets from one list of node indices per document, and adds all ancestors.

        Raises:
            ValueError: for an index outside 0 to L - 1.
        """
        lists = [np.asarray(list(row), dtype=np.int64) for row in rows]
        nodes = np.concatenate([*lists, np.zeros(0, dtype=np.int64)])
        documents = np.repeat(np.arange(len(lists)), [len(row) for row in lists])
        if len(nodes) and (nodes.min() < 0 or nodes.max() >= taxonomy.num_labels):
            row = int(documents[(nodes < 0) | (nodes >= taxonomy.num_labels)][0])
            raise ValueError(
                f"Document {row} has the node {max(lists[row].max(), -lists[row].min())}, outside the "
                f"{taxonomy.num_labels} labels (0 to {taxonomy.num_labels - 1}): encode it with the same taxonomy."
            )
        return cls.from_pairs(taxonomy, len(lists), documents, nodes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def documents(self) -> np.ndarray:
        """The document of each entry of `nodes`, int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def row(self, document: int) -> np.ndarray:
        """Returns the nodes of one document, ascending."""
        return self.nodes[self.offsets[document] : self.offsets[document + 1]]

    def select(self, documents: np.ndarray) -> "Annotations":
        """Returns the label sets of some documents, in the given order."""
        first, sizes = self.offsets[documents], np.diff(self.offsets)[documents]
        ends = np.cumsum(sizes)
        positions = np.repeat(first - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)
        return Annotations(self.taxonomy, np.concatenate([[0], ends]).astype(np.int64), self.nodes[positions])

    def multi_hot(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the label sets of the documents from `start` to `stop` (exclusive), bool [stop - start, L]."""
        stop = len(self) if stop is None else min(stop, len(self))
        first, last = self.offsets[start], self.offsets[stop]
        dense = np.zeros((stop - start, self.taxonomy.num_labels), dtype=bool)
        dense[np.repeat(np.arange(stop - start), np.diff(self.offsets[start : stop + 1])), self.nodes[first:last]] = (
            True
        )
        return dense

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the (document, node) pairs without a child of the node in the document, as two int64 arrays."""
        return self._ends

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        documents, number = self.documents, max(self.taxonomy.num_labels, 1)
        owners, parents = self.taxonomy.parents_of(self.nodes)
        inner = np.unique(documents[owners] * number + parents)
        is_end = ~np.isin(documents * number + self.nodes, inner, assume_unique=True)
        return documents[is_end], self.nodes[is_end]

    def without(self, documents: np.ndarray, nodes: np.ndarray) -> "Annotations":
        """Hides end nodes, together with the ancestors that no other end node of the document supports.

        Args:
            documents, nodes: pairs of [`ends`].
        """
        number = max(self.taxonomy.num_labels, 1)
        own_documents, own_nodes = self.ends()
        is_kept = ~np.isin(own_documents * number + own_nodes, np.asarray(documents) * number + np.asarray(nodes))
        return Annotations.from_pairs(self.taxonomy, len(self), own_documents[is_kept], own_nodes[is_kept])

    def each_without_one(
        self, documents: np.ndarray, nodes: np.ndarray, keep_ancestors: bool = False
    ) -> "Annotations":
        """Returns one label set per pair of [`ends`]: that of the document with only this end node hidden.

        Args:
            documents, nodes: pairs of [`ends`].
            keep_ancestors: hide only the end node itself, and not the ancestors that no other end node supports.
        """
        own_documents, own_nodes = (self.documents, self.nodes) if keep_ancestors else self.ends()
        first = np.searchsorted(own_documents, documents)
        sizes = np.searchsorted(own_documents, documents, side="right") - first
        rows = np.repeat(np.arange(len(documents)), sizes)
        kept = own_nodes[np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(len(rows))]
        is_kept = kept != np.asarray(nodes)[rows]
        return Annotations.from_pairs(self.taxonomy, len(documents), rows[is_kept], kept[is_kept])

"""Label hierarchies and sets of labels, checked and in a form for fast set algebra, in numpy alone.

Sets are kept as bits, 64 documents to a machine word (see `Cells`), so that a dense [N, L] matrix and id lists over a
million labels run through the same few lines of set algebra, and nothing of size L x L is ever built.

The folders of several `evaluate` modules hold this file, byte for byte the same, since each is published by itself.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Words = NDArray[np.uint64]

DOCUMENTS_PER_WORD = 64


def _sorted_unique(values: IntArray) -> IntArray:
    # np.unique without return_inverse hashes since numpy 2.3, about 30 times slower than this sort at 500,000 keys.
    values = np.sort(values)
    return values[np.diff(values, prepend=values[:1] - 1) != 0]


def count_bits(words: Words) -> int:
    """Number of set bits in all of `words`."""
    return int(np.bitwise_count(words).sum(dtype=np.int64))


def share(count: float, total: float) -> float:
    """`count / total`, and 0.0 where nothing was counted."""
    return float(count / total) if total else 0.0


class Hierarchy:
    """A forest or DAG over the labels 0..L-1, checked, with its parents in sparse form.

    Args:
        edges: int [E, 2], rows (parent, child), without duplicates.
        num_labels: L.
        depths: int [L], smaller for a parent than for its child. None computes the longest path from a root.

    Raises:
        ValueError: wrong shapes or types, ids outside 0..L-1, an edge given twice, a cycle (its nodes are named), or
            `depths` that do not grow along every edge.
    """

    def __init__(self, edges: ArrayLike, num_labels: int, depths: ArrayLike | None = None) -> None:
        self.num_labels = operator.index(num_labels)
        if self.num_labels < 0:
            raise ValueError(f"num_labels is {num_labels}; allowed: 0 or more.")
        pairs = np.asarray(edges)
        if pairs.size == 0:
            pairs = np.zeros((0, 2), dtype=np.int64)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise ValueError(
                f"edges has shape {pairs.shape} and type {pairs.dtype}; allowed: integers of shape [E, 2], "
                "one row (parent, child) per edge."
            )
        outside = ((pairs < 0) | (pairs >= self.num_labels)).any(axis=1)
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"edges[{row}] is {pairs[row].tolist()}; allowed node ids: 0 to {self.num_labels - 1} "
                f"(num_labels={self.num_labels})."
            )
        self.edges: IntArray = pairs.astype(np.int64)
        parent, child = self.edges.T
        order = np.lexsort((parent, child))
        repeated = (np.diff(self.edges[order], axis=0) == 0).all(axis=1)
        if repeated.any():
            edge = self.edges[order][repeated.argmax()].tolist()
            raise ValueError(f"edges holds {edge} twice; give each edge once.")

        given = self._longest_paths() if depths is None else np.asarray(depths)
        if given.shape != (self.num_labels,) or (given.size and (given.dtype.kind not in "iu" or given.min() < 0)):
            raise ValueError(
                f"depths has shape {given.shape} and type {given.dtype}; allowed: integers >= 0 of shape "
                f"[{self.num_labels}], one per label."
            )
        self.depths: IntArray = given.astype(np.int64)
        shallow = self.depths[child] <= self.depths[parent]
        if shallow.any():
            p, c = self.edges[shallow.argmax()].tolist()
            raise ValueError(
                f"depths[{c}] is {self.depths[c]}, not larger than depths[{p}] = {self.depths[p]} of its parent; pass "
                "depths=None to have them computed."
            )
        self.num_levels = int(self.depths.max()) + 1 if self.num_labels else 0
        self.num_parents: IntArray = np.bincount(child, minlength=self.num_labels).astype(np.int64)
        self._parents = parent[order]
        self._first = np.concatenate([[0], np.cumsum(self.num_parents)])

    def _longest_paths(self) -> IntArray:
        depths = np.zeros(self.num_labels, dtype=np.int64)
        remaining = self.edges
        while len(remaining):
            # A node has one more level above it for each round in which it still hangs below a remaining edge.
            below = np.zeros(self.num_labels, dtype=bool)
            below[remaining[:, 1]] = True
            depths[below] += 1
            keep = below[remaining[:, 0]]
            if keep.all():
                raise ValueError(f"edges holds a cycle: {_describe_cycle(remaining)}; a hierarchy must have none.")
            remaining = remaining[keep]
        return depths

    def parents_of(self, labels: IntArray) -> tuple[IntArray, IntArray]:
        """All parents of `labels` [n]: positions in `labels` [k] and the parent of each [k], by position."""
        counts = self.num_parents[labels]
        position = np.repeat(np.arange(len(labels)), counts)
        rank = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
        return position, self._parents[self._first[labels][position] + rank]


def _describe_cycle(edges: IntArray) -> str:
    """One cycle among `edges` as "0 -> 2 -> 0", given that every parent in them is also a child."""
    parent_of = {child: parent for parent, child in edges.tolist()}
    node = int(edges[0, 1])
    position: dict[int, int] = {}
    while node not in position:
        position[node] = len(position)
        node = parent_of[node]
    cycle = [node, *reversed(list(position)[position[node] :])]
    return " -> ".join(map(str, cycle if len(cycle) <= 12 else [*cycle[:10], "...", cycle[-1]]))


def flatten_ids(rows: Iterable[Any], name: str = "predictions") -> tuple[IntArray, IntArray]:
    """N sequences of node ids as one array.

    Args:
        rows: N sequences (lists, tuples, sets, 1-D arrays) of integer node ids.
        name: what to call the argument in errors.

    Returns:
        ids int64 [n] of all documents in order, and sizes int64 [N].

    Raises:
        ValueError: a row that is no sequence, or ids that are not integers (bools, floats, strings): the row is named.
    """
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise ValueError(
            f"{name} is {reprlib.repr(rows)}; allowed: a sequence of integer node ids for each of N documents."
        )
    rows = list(rows)
    try:
        sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        values = list(chain.from_iterable(rows))
        if _all_integers(values):
            return np.fromiter(values, dtype=np.int64, count=len(values)), sizes
    except (TypeError, OverflowError):
        pass  # not sequences, or not within 64 bits: the row is looked for below
    for index, row in enumerate(rows):
        if not hasattr(row, "__len__") or getattr(row, "ndim", 1) != 1 or not _all_integers(row):
            raise ValueError(
                f"{name}[{index}] is {reprlib.repr(row)}; allowed: a sequence of integer node ids. Of a row of bools "
                "or probabilities pass np.flatnonzero(row >= 0.5)."
            )
    raise ValueError(f"{name} holds a node id outside the 64-bit integers.")


def _all_integers(values: Iterable[Any]) -> bool:
    # By type, since numpy would turn bools among integers into the ids 0 and 1, and floats into truncated ids.
    return all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in set(map(type, values)))


class LabelSets:
    """One set of node ids per document, checked: a bool matrix [N, L], or (document, label) pairs.

    Args:
        sets: bool or 0/1 integer array [N, L], or N sequences of node ids; an id given twice counts once.
        num_labels: L.
        name: what to call the argument in errors.

    Raises:
        ValueError: floats, a wrong shape, integers other than 0 and 1 in a matrix, ids outside 0..L-1.
    """

    def __init__(self, sets: Any, num_labels: int, name: str = "predictions") -> None:
        self.matrix: NDArray[np.bool_] | None = None
        if not isinstance(sets, (list, tuple)) and hasattr(sets, "__array__"):
            sets = np.asarray(sets)
            if sets.ndim != 1 or sets.dtype != object:  # a 1-D object array holds one id list per document
                self.matrix = _checked_matrix(sets, num_labels, name)
                self.num_documents = len(self.matrix)
                return
        self.labels, sizes = flatten_ids(sets, name)
        self.num_documents = len(sizes)
        self.documents: IntArray = np.repeat(np.arange(self.num_documents), sizes)
        outside = (self.labels < 0) | (self.labels >= num_labels)
        if outside.any():
            at = int(outside.argmax())
            raise ValueError(
                f"{name}[{self.documents[at]}] holds node id {self.labels[at]}; allowed: 0 to {num_labels - 1} "
                f"(num_labels={num_labels})."
            )


def _checked_matrix(sets: NDArray[Any], num_labels: int, name: str) -> NDArray[np.bool_]:
    if sets.dtype.kind not in "biu":
        raise ValueError(
            f"{name} is an array of {sets.dtype}; allowed: label sets as bool (or 0/1 integers). For probabilities "
            f"decide first, e.g. {name}=probabilities >= 0.5."
        )
    if sets.ndim != 2 or sets.shape[1] != num_labels:
        raise ValueError(
            f"{name} has shape {sets.shape}; allowed: [N, {num_labels}], one column per label. For an array of node "
            f"ids pass {name}=array.tolist()."
        )
    if sets.dtype.kind != "b" and sets.size and (sets.min() < 0 or sets.max() > 1):
        raise ValueError(
            f"{name} is an integer matrix with values {sets.min()} to {sets.max()}; allowed: 0 and 1. For an array of "
            f"node ids pass {name}=array.tolist()."
        )
    return sets.astype(bool, copy=False)


class Cells:
    """Set algebra on label sets as bits.

    A cell is one label in one block of 64 consecutive documents. A collection of label sets is one uint64 word per
    cell, `words` [C]: bit d says whether document 64 * block + d holds the label. Cells exist for each label that
    occurs in a block and for all its ancestors (O(positives x depth)), or for every (block, label) where that is about
    as many. The words of two collections given to one `Cells` can be combined with &, | and ^.

    Attributes: `block`, `label` and `depth` of each cell [C]; `child` and `parent` [K], the positions of the two cells
    of each edge within a block.
    """

    def __init__(self, hierarchy: Hierarchy, *collections: LabelSets) -> None:
        self.hierarchy = hierarchy
        num_labels = max(hierarchy.num_labels, 1)
        num_documents = max(sets.num_documents for sets in collections)
        self.num_blocks = -(-num_documents // DOCUMENTS_PER_WORD)
        num_cells = self.num_blocks * hierarchy.num_labels
        positives = sum(len(sets.documents) for sets in collections if sets.matrix is None)
        self.full = num_cells <= 4 * positives or any(sets.matrix is not None for sets in collections)
        if self.full:
            self.keys = np.arange(num_cells)
        else:
            self.keys = self._close(_sorted_unique(np.concatenate([self._keys_of(sets) for sets in collections])))
        self.block, self.label = np.divmod(self.keys, num_labels)
        self.depth = hierarchy.depths[self.label]
        self.child, parent = hierarchy.parents_of(self.label)
        self.parent = self._find((self.keys - self.label)[self.child] + parent)
        self._levels: list[tuple[IntArray, IntArray]] | None = None

    def _keys_of(self, sets: LabelSets) -> IntArray:
        return sets.documents // DOCUMENTS_PER_WORD * self.hierarchy.num_labels + sets.labels

    def _close(self, keys: IntArray) -> IntArray:
        """`keys` together with the cells of all ancestors."""
        new = keys
        while len(new):
            label = new % self.hierarchy.num_labels
            position, parent = self.hierarchy.parents_of(label)
            above = _sorted_unique((new - label)[position] + parent)
            at = np.minimum(np.searchsorted(keys, above), len(keys) - 1)
            new = above[keys[at] != above]
            keys = _sorted_unique(np.concatenate([keys, new]))
        return keys

    def _find(self, keys: IntArray) -> IntArray:
        return keys if self.full else np.searchsorted(self.keys, keys).astype(np.int64)

    def words(self, sets: LabelSets) -> Words:
        """The words [C] of a collection that was given to the constructor."""
        if sets.matrix is not None:
            return _pack(sets.matrix)
        words = np.zeros(len(self.keys), dtype=np.uint64)
        bit = np.uint64(1) << (sets.documents % DOCUMENTS_PER_WORD).astype(np.uint64)
        np.bitwise_or.at(words, self._find(self._keys_of(sets)), bit)
        return words

    def with_ancestors(self, words: Words) -> Words:
        """The sets completed with all ancestors of their members."""
        words = words.copy()
        for child, parent in reversed(self._edges_by_level()):  # deepest first, so that each edge is walked once
            np.bitwise_or.at(words, parent, words[child])
        return words

    def rooted(self, words: Words) -> Words:
        """The members whose ancestors are all members too."""
        words = words.copy()
        for child, parent in self._edges_by_level():  # top first
            np.bitwise_and.at(words, child, words[parent])
        return words

    def _edges_by_level(self) -> list[tuple[IntArray, IntArray]]:
        """`child` and `parent` of the edges into each depth, from 1 on."""
        if self._levels is None:
            depth = self.depth[self.child]
            levels = [np.flatnonzero(depth == level) for level in range(1, self.hierarchy.num_levels)]
            self._levels = [(self.child[edges], self.parent[edges]) for edges in levels]
        return self._levels

    def end_nodes(self, words: Words) -> Words:
        """The members without a child in the set."""
        inner = np.zeros_like(words)
        np.bitwise_or.at(inner, self.parent, words[self.child])
        return words & ~inner

    def violations(self, words: Words) -> Words:
        """The members with at least one parent that is not in the set."""
        violations = np.zeros_like(words)
        np.bitwise_or.at(violations, self.child, words[self.child] & ~words[self.parent])
        return violations

    def documents_by_depth(self, words: Words) -> Words:
        """Words [levels, blocks]: the documents with a member at each depth."""
        found = np.zeros((self.hierarchy.num_levels, self.num_blocks), dtype=np.uint64)
        np.bitwise_or.at(found.reshape(-1), self.depth * self.num_blocks + self.block, words)
        return found

    def count_by_label(self, words: Words) -> FloatArray:
        """Number of documents per label [L]."""
        counts = np.bincount(self.label, weights=np.bitwise_count(words), minlength=self.hierarchy.num_labels)
        return counts.astype(np.float64, copy=False)

    def count_by_document(self, words: Words) -> IntArray:
        """Number of members per document [64 * blocks]; documents after the last one have none."""
        counts = np.zeros((self.num_blocks, DOCUMENTS_PER_WORD), dtype=np.int64)
        first = np.flatnonzero(np.diff(self.block, prepend=-1))
        rank = np.arange(len(words)) - np.repeat(first, np.diff(first, append=len(words)))
        start = np.flatnonzero(rank % 255 == 0)  # runs of at most 255 cells of one block: their sums fit a byte
        for bit in range(8 if len(start) else 0):
            # Eight counters in one word: byte k counts document 8 * k + bit of the block.
            sums = np.add.reduceat((words >> np.uint64(bit)) & np.uint64(0x0101010101010101), start)
            for byte in range(8):
                found = (sums >> np.uint64(8 * byte)) & np.uint64(255)
                np.add.at(counts[:, 8 * byte + bit], self.block[start], found.astype(np.int64))
        return counts.reshape(-1)


def _pack(matrix: NDArray[np.bool_]) -> Words:
    """bool [N, L] as words [blocks * L]."""
    num_documents, num_labels = matrix.shape
    num_blocks = -(-num_documents // DOCUMENTS_PER_WORD)
    packed = np.zeros((num_blocks * 8, num_labels), dtype=np.uint8)
    for bit in range(8):  # np.packbits along the first axis takes about six times as long
        rows = matrix[bit::8].view(np.uint8)
        packed[: len(rows)] |= rows << np.uint8(bit)
    by_label = np.ascontiguousarray(packed.reshape(num_blocks, 8, num_labels).transpose(0, 2, 1))
    words: Words = by_label.reshape(-1).view("<u8").astype(np.uint64, copy=False)
    return words

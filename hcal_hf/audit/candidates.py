"""Scores end nodes that documents do not have: conditional probabilities and aggregates over the missing path.

All arrays are [L, B]: one row per node, one column per document, so that each level is a block of rows. The missing path of
an absent node is the node with all its absent ancestors, through all parents.
"""

from functools import cached_property

import numpy as np

from ..taxonomy import Taxonomy

AGGREGATES = ("mean", "sum", "min")


class PathCandidates:
    """Knows the paths of a hierarchy, and which nodes can be missing.

    Args:
        taxonomy ([`Taxonomy`]): a forest or a DAG.
        partial_paths (`bool`): whether a path may end at an inner node. Candidates are then all absent nodes, and else
            absent leaves.
        single_path (`bool`): whether a document has one path. Candidates then only continue the path of the document.
    """

    def __init__(self, taxonomy: Taxonomy, partial_paths: bool = False, single_path: bool = False):
        self.taxonomy, self.single_path = taxonomy, single_path
        self.is_end = taxonomy.is_leaf | partial_paths
        self._levels: list[tuple[slice, np.ndarray, np.ndarray | None]] = []
        for level, edges in zip(taxonomy.levels[1:], taxonomy.edge_slices[1:]):
            parents, children = taxonomy.edges[edges].T
            starts = (
                None if len(parents) == level.stop - level.start else np.flatnonzero(np.diff(children, prepend=-1))
            )
            self._levels.append((level, parents, starts))

    def _over_parents(self, reduce: np.ufunc, values: np.ndarray, starts: np.ndarray | None) -> np.ndarray:
        """Reduces values of edges [E, B], sorted by child, to one value per child [n, B]."""
        return values if starts is None else reduce.reduceat(values, starts, axis=0)

    def absent(self, present: np.ndarray) -> np.ndarray:
        """Returns which (node, document) pairs are candidates, bool [L, B].

        Args:
            present (bool `np.ndarray` of shape `[L, B]`): the nodes of the documents, with all ancestors.
        """
        candidates = ~present & self.is_end[:, None]
        if not self.single_path:
            return candidates
        # A node continues the path if its lowest present ancestor is the end of the path.
        is_last = present & (self.present_children(present) == 0)
        continues = np.empty_like(present)
        roots = self._roots
        continues[roots] = ~present[roots].any(axis=0)
        for level, parents, starts in self._levels:
            above = np.where(present[parents], is_last[parents], continues[parents])
            continues[level] = self._over_parents(np.logical_or, above, starts)
        return candidates & continues

    def conditional(self, probabilities: np.ndarray, present: np.ndarray, by_steps: bool = True) -> np.ndarray:
        """Computes P(node | the nodes that the document has), [L, B]. It is 1 for the nodes that it has.

        Args:
            probabilities (`np.ndarray` of shape `[L, B]`): the probability of each node.
            present (bool, same shape): the nodes of the documents, with all ancestors.
            by_steps (`bool`): multiply the conditional probabilities of the missing steps, where a step with several
                parents follows the least probable one: the model of `conditional_sigmoid`. False divides P(node) by the
                smallest P of the present ancestors, at most 1. On a forest, both are equal for a coherent head.
        """
        given = np.empty_like(probabilities)
        roots = self._roots
        given[roots] = np.where(present[roots], 1.0, probabilities[roots])
        # The smallest probability of the present ancestors, or of the parents.
        lowest = np.ones_like(probabilities) if not by_steps else None
        if lowest is not None:
            lowest[roots] = np.where(present[roots], probabilities[roots], 1.0)
        for level, parents, starts in self._levels:
            own, has = probabilities[level], present[level]
            if lowest is None:
                above = self._over_parents(np.minimum, probabilities[parents], starts)
                step = _ratio(own, above) * self._over_parents(np.minimum, given[parents], starts)
            else:
                below = self._over_parents(np.minimum, lowest[parents], starts)
                step = _ratio(own, below)
                lowest[level] = np.where(has, np.minimum(below, own), below)
            given[level] = np.where(has, 1.0, step)
        return given

    def aggregate(self, name: str, probabilities: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Computes the mean, the sum or the minimum of the probabilities on the missing path of each node, [L, B].

        The value of a node without a missing path, which the document has, is 0.

        Args:
            name (`"mean"`, `"sum"` or `"min"`).
            probabilities, present: as in [`conditional`].

        Raises:
            ValueError: for another name.

        Source: the three scores of REASSIGN (Romero et al., arXiv 2207.06237).
        """
        if name not in AGGREGATES:
            raise ValueError(f"The aggregate must be one of {', '.join(AGGREGATES)}, got {name!r}.")
        path, starts = self._closure
        missing = ~present[path]
        if name == "min":
            lowest = np.minimum.reduceat(np.where(missing, probabilities[path], 1.0), starts, axis=0)
            return np.where(present, 0.0, lowest)
        total = np.add.reduceat(np.where(missing, probabilities[path], 0.0), starts, axis=0)
        if name == "sum":
            return total
        return total / np.maximum(np.add.reduceat(missing, starts, axis=0, dtype=np.int64), 1)

    def present_children(self, present: np.ndarray) -> np.ndarray:
        """Counts the present children of each node, int64 [L, B]."""
        counts = np.zeros(present.shape, dtype=np.int64)
        parents, children, starts = self._children
        if len(parents):
            counts[parents] = np.add.reduceat(present[children], starts, axis=0, dtype=np.int64)
        return counts

    def missing_length(self, present: np.ndarray) -> np.ndarray:
        """Counts the nodes on the longest missing path to each node, int64 [L, B]. It is 0 for present nodes."""
        lengths = np.empty(present.shape, dtype=np.int64)
        lengths[self._roots] = ~present[self._roots]
        for level, parents, starts in self._levels:
            above = self._over_parents(np.maximum, lengths[parents], starts)
            lengths[level] = np.where(present[level], 0, above + 1)
        return lengths

    def siblings(self, present: np.ndarray) -> np.ndarray:
        """Counts the present siblings of the topmost missing node on each missing path, int64 [L, B].

        They are the present children of the present parents, or the present roots. With several parents, it is the
        largest count.
        """
        children, counts = self.present_children(present), np.empty(present.shape, dtype=np.int64)
        counts[self._roots] = present[self._roots].sum(axis=0)
        for level, parents, starts in self._levels:
            above = np.where(present[parents], children[parents], counts[parents])
            counts[level] = self._over_parents(np.maximum, above, starts)
        return counts

    def topmost(self, present: np.ndarray) -> np.ndarray:
        """Returns which absent nodes have only present parents, or are roots, bool [L, B]."""
        top = ~present
        for level, parents, starts in self._levels:
            top[level] &= self._over_parents(np.logical_and, present[parents], starts)
        return top

    def best_of_subtrees(self, values: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Carries the largest value of each missing subtree to its topmost node, [L, B]. All other values are 0.

        A topmost node is absent and has no absent parent. A node with several absent parents counts for the first one.

        Args:
            values (`np.ndarray` of shape `[L, B]`): a value of at least 0 for each candidate, and 0 elsewhere.
            present (bool, same shape): the nodes of the documents, with all ancestors.
        """
        best = np.where(present, 0.0, values)
        for level, parents, starts in reversed(self._levels):
            size = level.stop - level.start
            owners = (
                np.arange(size) if starts is None else np.repeat(np.arange(size), np.diff([*starts, len(parents)]))
            )
            first = ~present[parents]
            if starts is not None:  # only the first absent parent of each node
                before = np.cumsum(first, axis=0) - first
                first &= before == before[starts][owners]
            moved = np.where(first, best[level][owners], 0.0)
            order = np.argsort(parents, kind="stable")
            unique, begins = np.unique(parents[order], return_index=True)
            best[unique] = np.maximum(best[unique], np.maximum.reduceat(moved[order], begins, axis=0))
            best[level] = np.where(self._over_parents(np.logical_or, first, starts), 0.0, best[level])
        return best

    def missing_path(self, node: int, present_nodes: np.ndarray) -> np.ndarray:
        """Returns the node and its absent ancestors, top down, as node indices."""
        return np.setdiff1d(self.taxonomy.complete([node]), present_nodes, assume_unique=True)

    @property
    def _roots(self) -> slice:
        return self.taxonomy.levels[0]

    @cached_property
    def _closure(self) -> tuple[np.ndarray, np.ndarray]:
        """The nodes on all paths to each node, one node after the other, and where each begins."""
        nodes = np.arange(self.taxonomy.num_labels)
        owners, path = self.taxonomy.complete_rows(nodes, nodes)
        return path, np.searchsorted(owners, nodes)

    @cached_property
    def _children(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The inner nodes, the children of all of them, and where the children of each begin."""
        order = np.argsort(self.taxonomy.edges[:, 0], kind="stable")
        parents, starts = np.unique(self.taxonomy.edges[order, 0], return_index=True)
        return parents, self.taxonomy.edges[order, 1], starts


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divides probabilities, at most 1. It is 0 if both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(part >= whole, (part > 0).astype(part.dtype), part / whole)

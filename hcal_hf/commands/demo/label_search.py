"""Lists the labels of a hierarchy in parts of bounded size: below a label, or by a search."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ...taxonomy import Taxonomy

# Labels in one answer.
MAX_CHILDREN = 100
MAX_HITS = 30
MAX_QUERY = 200

Item = dict[str, Any]


class LabelSearch:
    """Lists labels with their probabilities for one document. No answer holds more than 100 labels.

    Args:
        taxonomy ([`Taxonomy`]): the hierarchy.
        names: the shown name of each label.
        partial_paths: whether a path may end at an inner label, so that inner labels can be chosen.
    """

    def __init__(self, taxonomy: Taxonomy, names: Sequence[str] | None, partial_paths: bool):
        self.taxonomy = taxonomy
        self.names = taxonomy.names if names is None else names
        self.can_be_chosen = np.ones(taxonomy.num_labels, dtype=bool) if partial_paths else taxonomy.is_leaf
        self._num_children = np.bincount(taxonomy.edges[:, 0], minlength=taxonomy.num_labels)

    def check_node(self, node: Any) -> int:
        """Returns a label that a page has sent, if it exists.

        Raises:
            ValueError: if it does not.
        """
        number = self.taxonomy.num_labels
        if not isinstance(node, int) or isinstance(node, bool) or not 0 <= node < number:
            raise ValueError(
                f"There is no label {node!r:.50}: the model has the labels 0 to {number - 1}. Reload the page."
            )
        return node

    def path(self, node: int) -> list[str]:
        """Returns the shown names from a root to a label, in a DAG along the first parents."""
        steps = [self.names[node]]
        while len(parents := self.taxonomy.parents(node)):
            node = int(parents[0])
            steps.append(self.names[node])
        return steps[::-1]

    def item(self, node: int, probabilities: np.ndarray) -> Item:
        """Returns a label as the page shows it."""
        return {
            "node": node,
            "name": self.names[node],
            "path": self.path(node),
            "probability": float(probabilities[node]),
            "children": int(self._num_children[node]),
            "choosable": bool(self.can_be_chosen[node]),
        }

    def children(self, parent: int | None, offset: int, probabilities: np.ndarray) -> dict[str, Any]:
        """Lists the labels below a label, or the roots, with the most probable first.

        Args:
            parent: the label, or None for the roots.
            offset: how many of them the page already has.
            probabilities (`np.ndarray` of shape `[L]`): the probabilities for the document.

        Returns:
            `items`, at most 100, and `total`.
        """
        edges, levels = self.taxonomy.edges, self.taxonomy.levels
        roots = np.arange(levels[0].start, levels[0].stop)
        nodes = roots if parent is None else edges[edges[:, 0] == parent, 1]
        nodes = nodes[np.argsort(-probabilities[nodes], kind="stable")]
        page = nodes[offset : offset + MAX_CHILDREN].tolist()
        return {"items": [self.item(node, probabilities) for node in page], "total": len(nodes)}

    def search(self, query: str, probabilities: np.ndarray) -> dict[str, Any]:
        """Finds labels that can be chosen, by words of their names or of the names above them.

        Labels that are named like the query come first, then those with all words at the beginning of words of their own
        name, of their path, and then anywhere. Within each group, the most probable come first. Without a query, all labels
        are one group.

        Returns:
            `items`, at most 30, and the `total` of labels that match.

        Raises:
            ValueError: if the query is longer than 200 characters.
        """
        if len(query) > MAX_QUERY:
            raise ValueError(
                f"The search has {len(query):,} characters, but at most {MAX_QUERY} are allowed: shorten it."
            )
        text = " ".join(query.casefold().split())
        words = text.split()
        nodes = np.flatnonzero(self.can_be_chosen)
        if words:
            paths = self._folded_paths
            nodes = np.array([n for n in nodes.tolist() if all(word in paths[n] for word in words)], dtype=np.int64)
        ranks = np.array([self._rank(node, text, words) for node in nodes.tolist()], dtype=np.int64)
        best = nodes[np.lexsort((-probabilities[nodes], ranks))][:MAX_HITS].tolist()
        return {"items": [self.item(node, probabilities) for node in best], "total": len(nodes)}

    def _rank(self, node: int, text: str, words: list[str]) -> int:
        if not words:
            return 0
        name = self._folded_names[node]
        if name.startswith(text):
            return 0 if name == text else 1
        for rank, names in ((2, name), (3, self._folded_paths[node])):
            if all(f" {word}" in f" {names}" for word in words):
                return rank
        return 4 if all(word in name for word in words) else 5

    @cached_property
    def _folded_names(self) -> list[str]:
        return [" ".join(name.casefold().split()) for name in self.names]

    @cached_property
    def _folded_paths(self) -> list[str]:
        """The names on the way to each label. In a DAG, those of one path."""
        paths: list[str] = []
        for node, name in enumerate(self._folded_names):  # parents come before their children
            parents = self.taxonomy.parents(node)
            paths.append(f"{paths[int(parents[0])]} {name}" if len(parents) else name)
        return paths

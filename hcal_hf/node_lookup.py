"""Finds taxonomy nodes by label, name or path, and reads the labels of a document."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .node_names import SEPARATOR, quote_first, split_path


class NodeLookup:
    """Finds nodes of one hierarchy by text. Each table is built when it is first needed.

    Args:
        taxonomy ([`Taxonomy`]): the hierarchy to search.
    """

    def __init__(self, taxonomy: Any):
        self.taxonomy = taxonomy
        self.label_index: Mapping[str, int] = taxonomy.label_index
        self._suggestions: dict[str, str] = {}

    def index(self, label: str) -> int:
        """Implements [`Taxonomy.index`]."""
        if not isinstance(label, str):
            raise ValueError(f"A label must be a string, got {label!r} of type {type(label).__name__}.")
        node = self.label_index.get(label)
        if node is not None:
            return node
        same_name = self.nodes_of_name.get(label, ())
        if len(same_name) == 1:
            return same_name[0]
        if same_name:
            labels = [self.taxonomy.labels[i] for i in same_name]
            raise ValueError(
                f"{label!r} is the name of {len(same_name)} nodes ({quote_first(labels)}): give the whole path."
            )
        if SEPARATOR.strip() in label:
            return self.nodes_on_path(split_path(label))[-1]
        raise ValueError(f"Unknown label {label!r}. {self._closest(label, self.taxonomy.labels)}")

    def nodes_on_path(self, path: Sequence[str]) -> list[int]:
        """Returns the node of each step of a path that starts at a root.

        Raises:
            ValueError: for an empty path, an unknown first step, or a step that is not an edge of the taxonomy.
        """
        if isinstance(path, str) or not len(path):
            raise ValueError(f"A path must be a non-empty sequence of names from a root down, got {path!r}.")
        nodes: list[int] = []
        for step in path:
            if not isinstance(step, str):
                raise ValueError(f"A step of a path must be a string, got {step!r} in {list(path)!r}.")
            parent = nodes[-1] if nodes else -1
            node = self._children_by_text.get((parent, step))
            if node is None:
                siblings = [text for above, text in self._children_by_text if above == parent]
                where = f"below {self.taxonomy.labels[parent]!r}" if nodes else "among the roots"
                if step in self.label_index or step in self.nodes_of_name:
                    raise ValueError(
                        f"{list(path)!r} is not a path of the taxonomy: {step!r} exists, but not {where}. "
                        f"{self._closest(step, siblings)}"
                    )
                raise ValueError(f"Unknown label {step!r} {where} in {list(path)!r}. {self._closest(step, siblings)}")
            nodes.append(node)
        return nodes

    def nodes_of_labels(self, labels: Any) -> set[int]:
        """Implements [`Taxonomy.given_nodes`]."""
        if isinstance(labels, str):
            return self._nodes_of_text(labels)
        if isinstance(labels, dict) or not isinstance(labels, Iterable):
            raise ValueError(
                f"Labels must be a string, a list of strings or a list of paths, got {labels!r} of type "
                f"{type(labels).__name__}."
            )
        labels = list(labels)
        if len(labels) > 1 and all(isinstance(label, str) for label in labels):
            if self.ambiguous_names.isdisjoint(labels):
                return set().union(*map(self._nodes_of_text, labels))
            return self._nodes_of_ambiguous_list(labels)
        nodes: set[int] = set()
        for label in labels:
            if not isinstance(label, str | Sequence | np.ndarray):
                raise ValueError(
                    f"A label must be a string or a path (a list of strings), got {label!r} in {labels!r}."
                )
            nodes.update(self._nodes_of_text(label) if isinstance(label, str) else self.nodes_on_path(list(label)))
        return nodes

    def _nodes_of_text(self, label: str) -> set[int]:
        """Returns all nodes on a path string, or the one node of a label or name."""
        if label not in self.label_index and label not in self.nodes_of_name and SEPARATOR.strip() in label:
            return set(self.nodes_on_path(split_path(label)))
        return {self.index(label)}

    def _nodes_of_ambiguous_list(self, labels: list[str]) -> set[int]:
        """Reads a flat list that contains a shared name, as separate labels or as the steps of one path."""
        node_sets: list[set[int]] = []
        error: ValueError | None = None
        for read in (
            lambda: set().union(*map(self._nodes_of_text, labels)),
            lambda: set(self.nodes_on_path(labels)),
        ):
            try:
                node_sets.append(read())
            except ValueError as problem:
                error = error or problem
        if not node_sets:
            assert error is not None
            raise error
        complete = self.taxonomy.complete
        if len(node_sets) == 2 and not np.array_equal(complete(node_sets[0]), complete(node_sets[1])):
            raise ValueError(
                f"{labels!r} can be read as {len(labels)} labels or as one path, with different nodes: give a list of "
                f"paths, [{labels!r}] for one path."
            )
        return node_sets[-1]

    # ---- Tables ----

    @cached_property
    def nodes_of_name(self) -> dict[str, tuple[int, ...]]:
        """The nodes of each name. Empty if every name equals its label."""
        if self.taxonomy.names is self.taxonomy.labels:
            return {}
        nodes: dict[str, tuple[int, ...]] = {}
        for node, name in enumerate(self.taxonomy.names):
            nodes[name] = (*nodes.get(name, ()), node)
        return nodes

    @cached_property
    def ambiguous_names(self) -> set[str]:
        """The names that several nodes share."""
        return {name for name, nodes in self.nodes_of_name.items() if len(nodes) > 1}

    @cached_property
    def _children_by_text(self) -> dict[tuple[int, str], int]:
        """Maps (parent index, or -1 for roots; name or label) to a node."""
        parents = self.taxonomy.parent_lists
        children: dict[tuple[int, str], int] = {}
        for texts in (self.taxonomy.labels, self.taxonomy.names):  # names overwrite labels: paths are written in names
            for node, text in enumerate(texts):
                for parent in parents[node] or (-1,):
                    children[parent, text] = node
        return children

    # ---- Suggestions ----

    def _closest(self, label: str, known: Sequence[str]) -> str:
        """Returns a sentence with the three known names that are closest to an unknown label."""
        if not known:
            return "Nothing stands there."
        among_all = known is self.taxonomy.labels
        if among_all and label in self._suggestions:  # the same wrong label often repeats in many rows
            return self._suggestions[label]
        shortlist = known
        if len(known) > 100:
            table = self._letter_pairs if among_all else _names_by_letter_pair(known)
            shortlist = [known[i] for i in _sharing_most_pairs(label, table, len(known))]
        close = difflib.get_close_matches(label, shortlist, n=3, cutoff=0.0)
        text = f"Closest known: {', '.join(map(repr, close))}."
        if among_all:
            self._suggestions[label] = text
        return text

    @cached_property
    def _letter_pairs(self) -> dict[str, np.ndarray]:
        return _names_by_letter_pair(self.taxonomy.labels)


def _names_by_letter_pair(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Maps each pair of neighbouring letters to the indices of the names that contain it."""
    holders: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        lower = name.lower()
        for pair in set(map("".join, zip(lower, lower[1:]))):
            holders[pair].append(i)
    return {pair: np.array(indices) for pair, indices in holders.items()}


def _sharing_most_pairs(label: str, table: dict[str, np.ndarray], number: int) -> list[int]:
    """Returns the indices of the 50 names that share the most letter pairs with a label.

    These are few enough for a full comparison.
    """
    lower = label.lower()
    holders = [table[pair] for pair in set(map("".join, zip(lower, lower[1:]))) if pair in table]
    shared = np.bincount(np.concatenate(holders), minlength=number) if holders else np.zeros(number, dtype=np.int64)
    return np.argsort(-shared, kind="stable")[:50].tolist()

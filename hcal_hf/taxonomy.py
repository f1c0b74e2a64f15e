"""The label hierarchy: a forest or a directed acyclic graph over named nodes.

All structure is stored in flat numpy arrays over edges. No [num_labels, num_labels] matrix is ever built.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers.utils import logging

from .json_file import read_json
from .node_depths import node_depths
from .node_lookup import NodeLookup
from .node_names import (
    SEPARATOR,
    check_names,
    check_sequence,
    list_of_pairs,
    names_in_paths,
    quote_duplicates,
    quote_first,
    unique_paths,
)
from .node_paths import MAX_PATHS, check_node, check_nodes, edge_array, index_paths

logger = logging.get_logger(__name__)


class Taxonomy:
    """A label hierarchy with nodes ordered by depth, so each level is a slice of the node indices.

    The depth of a node is the length of its longest path from a root. Roots have depth 0, and parents always
    come before their children. Nodes of one depth keep the order in which they first appeared.

    Every node has a unique *label* and a *name*, which stands for the node inside a path. If a label had to be
    made unique by its path ("Books > Other"), the name is the last step ("Other"). Otherwise label and name are
    equal.

    Build a taxonomy with [`Taxonomy.from_paths`], [`Taxonomy.from_edges`] or [`Taxonomy.from_json`]. The
    constructor expects labels that are already sorted, as [`HcalConfig`] stores them.

    Args:
        labels (`Sequence[str]`):
            The unique node labels, L of them, parents before children and sorted by depth.
        edges (`Sequence[tuple[int, int]]` or `np.ndarray` of shape `[E, 2]`):
            (parent, child) as indices into `labels`.

    Raises:
        ValueError: for empty or duplicate labels, self-loops, cycles (the message prints the cycle), edges out of
            range, or labels that are not sorted by depth.
    """

    def __init__(self, labels: Sequence[str], edges: Sequence[Sequence[int]] | np.ndarray = ()):
        check_sequence(labels, "labels")
        labels = tuple(labels)
        check_names(labels, "label")
        edges = edge_array(edges)
        if edges.size and (edges.min() < 0 or edges.max() >= len(labels)):
            bad = edges[((edges < 0) | (edges >= len(labels))).any(axis=1)][0].tolist()
            raise ValueError(f"Edge {bad} points outside the {len(labels)} labels (0 to {len(labels) - 1}).")
        depths = node_depths(edges, labels)
        if (np.diff(depths) < 0).any():
            raise ValueError(
                "Labels must be sorted by depth, roots first, because each level is a slice of them. Build the "
                "taxonomy with Taxonomy.from_edges or Taxonomy.from_paths, which sort the labels."
            )
        self._fill(labels, edges, depths)

    def _fill(
        self, labels: tuple[str, ...], edges: np.ndarray, depths: np.ndarray, index: dict[str, int] | None = None
    ) -> None:
        self.labels: tuple[str, ...] = labels
        self._index: dict[str, int] = dict(zip(labels, count())) if index is None else index
        if len(self._index) != len(labels):
            raise ValueError(
                f"Labels must be unique, but {quote_duplicates(labels)} occur more than once. Give paths to "
                'Taxonomy.from_paths(paths, identity="path") to tell nodes of one name apart by their parents.'
            )
        # Sorting by child, then parent, makes each node's parents one run and each level's edges one slice.
        key = np.sort(edges[:, 1] * max(len(labels), 1) + edges[:, 0])
        first = np.diff(key, prepend=-1) > 0
        if not first.all():
            logger.warning(f"{(~first).sum()} edge(s) are given more than once; each counts once.")
            key = key[first]
        self.edges: np.ndarray = np.stack([key % max(len(labels), 1), key // max(len(labels), 1)], axis=1)
        self.edges.setflags(write=False)
        self.depths: np.ndarray = depths
        self.depths.setflags(write=False)

    # ---- Construction ----

    @classmethod
    def from_edges(cls, edges: Iterable[tuple[str, str]], roots: Iterable[str] = ()) -> "Taxonomy":
        """Builds a forest or DAG from (parent label, child label) pairs.

        Args:
            edges: (parent, child) pairs of labels. A repeated edge counts once, and a warning reports the
                number of repeated edges.
            roots: labels without a parent. Only roots without children must be listed.

        Raises:
            ValueError: for empty or duplicate names, self-loops, cycles (the message prints the cycle), or a root
                with a parent.
        """
        edges = list_of_pairs(edges)
        check_sequence(roots, "roots")
        roots = list(roots)
        if len(set(roots)) != len(roots):
            raise ValueError(f"Roots must be unique, but {quote_duplicates(roots)} are given more than once.")
        flat = list(chain.from_iterable(edges))
        index: dict[str, int] = defaultdict(count().__next__)  # numbers the labels as they appear, in one pass
        nodes = np.array(list(map(index.__getitem__, chain(roots, flat))), dtype=np.int64)
        pairs = nodes[len(roots) :].reshape(-1, 2)
        labels = tuple(index)
        check_names(labels, "label")
        return cls._from_unsorted(labels, pairs, num_roots=len(roots), index=index)

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[str]], identity: Literal["path", "name"] = "path") -> "Taxonomy":
        """Builds a taxonomy from root-to-node paths, such as the rows of a spreadsheet.

        Args:
            paths: sequences of names from a root downwards. They may have any length and order, repeat, and end at
                inner nodes.
            identity: decides when two steps are the same node. With `"path"` (default), the paths to them must be
                equal: "Other" under "Books" and "Other" under "Toys" become two nodes, "Books > Other" and
                "Toys > Other", and the taxonomy is a forest. With `"name"`, equal names are enough: both become one
                node with two parents, and the taxonomy is a DAG. A warning lists the merged nodes.

        Raises:
            ValueError: for empty names or paths, or (`identity="name"`) a cycle.
        """
        if identity not in ("path", "name"):
            raise ValueError(f'identity must be "path" or "name", got {identity!r}.')
        unique = unique_paths(paths)
        if identity == "name":
            edges = dict.fromkeys(chain.from_iterable(zip(path, path[1:]) for path in unique))
            # The first node of a path is a root only if no other path gives it a parent.
            children = {child for _, child in edges}
            firsts = dict.fromkeys(path[0] for path in unique)
            nested = [name for name in firsts if name in children]
            if nested:
                logger.warning(
                    f"{len(nested)} node(s) start one path and stand below a parent in another ({quote_first(nested)}). "
                    "They are placed below that parent."
                )
            taxonomy = cls.from_edges(edges, roots=[name for name in firsts if name not in children])
            merged = np.flatnonzero(np.bincount(taxonomy.edges[:, 1], minlength=taxonomy.num_labels) > 1)
            if len(merged):
                logger.warning(
                    f'identity="name" merged {len(merged)} node(s) that stand below several parents '
                    f"({quote_first([taxonomy.labels[i] for i in merged])}): the taxonomy is a DAG."
                )
            return taxonomy
        return cls._from_unique_paths(unique)

    @classmethod
    def _from_unique_paths(cls, unique: list[tuple[str, ...]]) -> "Taxonomy":
        # Looking up (parent index, name) takes time linear in the number of steps.
        nodes: dict[tuple[int, str], int] = {}
        for path in unique:
            parent = -1
            for name in path:
                parent = nodes.setdefault((parent, name), len(nodes))
        parents = np.fromiter((parent for parent, _ in nodes), dtype=np.int64, count=len(nodes))
        names = [name for _, name in nodes]
        times: dict[str, int] = {}
        for name in names:
            times[name] = times.get(name, 0) + 1
        labels = list(names)
        for node, name in enumerate(names if len(times) < len(names) else ()):
            if times[name] > 1:
                steps, step = [name], int(parents[node])
                while step != -1:
                    steps.append(names[step])
                    step = int(parents[step])
                labels[node] = SEPARATOR.join(reversed(steps))
        child = np.flatnonzero(parents >= 0)
        pairs = np.stack([parents[child], child], axis=1)
        return cls._from_unsorted(tuple(labels), pairs)

    @classmethod
    def _from_unsorted(
        cls, labels: tuple[str, ...], pairs: np.ndarray, num_roots: int = 0, index: dict[str, int] | None = None
    ) -> "Taxonomy":
        """Builds a taxonomy from labels in any order by sorting them by depth, then first appearance.

        Args:
            labels: the L labels.
            pairs (`np.ndarray` of shape `[E, 2]`): (parent, child) as indices into `labels`.
            num_roots: number of labels at the beginning that must not have a parent.
            index: position of each label, if already computed.
        """
        nested = pairs[pairs[:, 1] < num_roots]
        if len(nested):
            parent, root = (labels[i] for i in nested[0])
            raise ValueError(
                f"{root!r} is given as a root but is also a child of {parent!r}: remove the root or the edge."
            )
        depths = node_depths(pairs, labels)
        order = np.argsort(depths, kind="stable")
        taxonomy = cls.__new__(cls)
        if index is not None and (np.diff(depths) >= 0).all():  # already sorted
            taxonomy._fill(labels, pairs, depths, dict(index))
            return taxonomy
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        taxonomy._fill(tuple(map(labels.__getitem__, order.tolist())), rank[pairs], depths[order])
        return taxonomy

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "Taxonomy":
        """Reads a taxonomy from a JSON file.

        The file holds one object in one of three forms: `labels` with `edges` as index pairs (written by
        [`Taxonomy.to_json`]), `edges` as label pairs with optional `roots`, or `paths` with optional `identity`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not JSON ([`read_json`]), has none of the three forms or several of them, or does not
                describe a valid taxonomy.
        """
        data = read_json(path)
        if isinstance(data, dict) and len(forms := [name for name in ("labels", "paths") if name in data]) > 1:
            raise ValueError(f"{path} has {' and '.join(map(repr, forms))}, which are different forms: keep one.")
        if isinstance(data, dict) and "labels" in data:
            return cls(data["labels"], data.get("edges", ()))
        if isinstance(data, dict) and "paths" in data:
            return cls.from_paths(data["paths"], identity=data.get("identity", "path"))
        if isinstance(data, dict) and ("edges" in data or "roots" in data):
            return cls.from_edges(data.get("edges", ()), roots=data.get("roots", ()))
        keys = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f'{path} must hold an object with "labels" and "edges" (indices), "edges" (label pairs) and "roots", or '
            f'"paths"; found {keys}.'
        )

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes {"labels": [L strings], "edges": [[parent index, child index], ...]} for [`Taxonomy.from_json`]."""
        data = {"labels": list(self.labels), "edges": self.edges.tolist()}
        Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")

    # ---- Structure ----

    @property
    def num_labels(self) -> int:
        """Number of nodes L."""
        return len(self.labels)

    @cached_property
    def levels(self) -> tuple[slice, ...]:
        """One slice of node indices per depth, starting with the roots (depth 0)."""
        if not self.num_labels:
            return ()
        bounds = np.searchsorted(self.depths, np.arange(self.depths[-1] + 2)).tolist()
        return tuple(slice(low, high) for low, high in zip(bounds, bounds[1:]))

    @cached_property
    def edge_slices(self) -> tuple[slice, ...]:
        """One slice of `edges` per level: the edges that end in the level. Empty for the roots."""
        bounds = np.searchsorted(self.edges[:, 1], [level.start for level in self.levels] + [self.num_labels]).tolist()
        return tuple(slice(low, high) for low, high in zip(bounds, bounds[1:]))

    @cached_property
    def is_forest(self) -> bool:
        """True if no node has more than one parent."""
        return bool((np.diff(self.edges[:, 1]) > 0).all())

    @cached_property
    def is_leaf(self) -> np.ndarray:
        """Bool array [L], True for nodes without children."""
        leaf = np.ones(self.num_labels, dtype=bool)
        leaf[self.edges[:, 0]] = False
        return leaf

    @cached_property
    def _parent_offsets(self) -> np.ndarray:
        return np.searchsorted(self.edges[:, 1], np.arange(self.num_labels + 1))

    def parents(self, node: int) -> np.ndarray:
        """Returns the sorted indices of a node's parents. Empty for a root."""
        return self.edges[self._parent_offsets[node] : self._parent_offsets[node + 1], 0]

    def parents_of(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the parents of many nodes in one call.

        Args:
            nodes (`np.ndarray` of shape `[N]`): node indices in any order. Indices may repeat.

        Returns:
            Two arrays of equal length: ascending positions in `nodes`, and one parent of the node at each position.
        """
        first, last = self._parent_offsets[nodes], self._parent_offsets[nodes + 1]
        counts = last - first
        owners = np.repeat(np.arange(len(nodes)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return owners, self.edges[first[owners] + within, 0]

    def check_single_path(self) -> None:
        """Checks that the taxonomy is a forest, which single_path needs.

        Raises:
            ValueError: naming the first node with two parents, because its path is not unique.
        """
        if self.is_forest:
            return
        node = int(self.edges[1:, 1][np.diff(self.edges[:, 1]) == 0][0])
        names = " and ".join(repr(self.labels[p]) for p in self.parents(node)[:2])
        raise ValueError(
            f"single_path needs a forest, but {self.labels[node]!r} has {len(self.parents(node))} parents, {names}: "
            'use label_mode="multi_path", or Taxonomy.from_paths(paths, identity="path") to make it one node per parent.'
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Each node's name inside a path: its label without the parent's path, if the label starts with that path."""
        return names_in_paths(self.labels, self.parent_lists)

    def texts(self, names: Sequence[str] | None = None) -> list[str]:
        """Returns the text of each label, by its own or other names: "parent names: name", with spaces for underscores."""
        words = [name.replace("_", " ") for name in names or self.names]
        return [
            ": ".join(
                [", ".join(words[parent] for parent in self.parent_lists[node]), word]
                if self.parent_lists[node]
                else [word]
            )
            for node, word in enumerate(words)
        ]

    def paths(self, node: int, limit: int | None = None) -> list[list[str]]:
        """Returns the paths of names from a root to a node, at most `limit` of them.

        A forest has exactly one path per node, a DAG may have very many.

        Raises:
            ValueError: as for [`Taxonomy.complete`].
        """
        paths = index_paths(self.parent_lists, check_node(node, self.num_labels))
        return [[self.names[i] for i in path] for path in islice(paths, limit)]

    # ---- Labels of documents ----

    def index(self, label: str) -> int:
        """Returns the index of the node with a label, a name that only one node has, or a path string ("A > B > C").

        Raises:
            ValueError: for an unknown label (the message lists the three closest labels), or a name that several nodes
                share.
        """
        return self._lookup.index(label)

    def index_path(self, path: Sequence[str]) -> int:
        """Returns the index of the last node on a path of names or labels that starts at a root.

        Raises:
            ValueError: for an empty path, an unknown first step, or a step that is not an edge of the taxonomy.
        """
        return self._lookup.nodes_on_path(path)[-1]

    def complete(self, nodes: Iterable[int]) -> np.ndarray:
        """Returns the sorted indices of the nodes and all their ancestors.

        Raises:
            ValueError: for an index outside 0 to L - 1, or one that is not a whole number.
        """
        complete = check_nodes(nodes, self.num_labels)
        open_nodes = list(complete)
        while open_nodes:
            for parent in self.parent_lists[open_nodes.pop()]:
                if parent not in complete:
                    complete.add(parent)
                    open_nodes.append(parent)
        return np.fromiter(sorted(complete), dtype=np.int64, count=len(complete))

    def complete_rows(self, rows: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adds all ancestors to the label sets of many documents.

        Args:
            rows, nodes (`np.ndarray` of shape `[P]`): (document, node) pairs in any order.

        Returns:
            Two int64 arrays, documents and nodes: the given pairs and those of all ancestors, each once, sorted by
            document and then by node.
        """
        number = max(self.num_labels, 1)
        newest = rows * number + nodes
        keys = [newest]
        while len(newest):
            owners, parents = self.parents_of(newest % number)
            newest = newest[owners] // number * number + parents
            if not self.is_forest:  # several paths may lead to one ancestor
                newest = np.unique(newest)
            keys.append(newest)
        pairs = np.unique(np.concatenate(keys))
        return pairs // number, pairs % number

    def encode(self, labels: str | Sequence[str] | Sequence[Sequence[str]]) -> np.ndarray:
        """Returns the sorted indices of a document's labels and all their ancestors.

        Args:
            labels: a label or path string ("A > B > C"), a list of such strings, or a list of paths (lists of names
                from a root down). An empty list is an empty set. A flat list of strings is read as labels. If it is
                valid only as the steps of one path, it is read as that path. If both readings are valid and give
                different nodes, it is an error.

        Raises:
            ValueError: for an unknown label (the message lists the three closest labels), a step that is not an edge,
                or an ambiguous list.
        """
        return self.complete(self.given_nodes(labels))

    def given_nodes(self, labels: Any) -> set[int]:
        """Returns the indices of the nodes that a document's labels name, without the other ancestors.

        Accepts the same input and raises the same errors as [`Taxonomy.encode`]. A path names each of its steps.
        """
        return self._lookup.nodes_of_labels(labels)

    def decode(self, nodes: Iterable[int], limit: int | None = MAX_PATHS) -> list[list[str]]:
        """Returns the paths of names that end at those nodes of a set that have no child in the set.

        This inverts [`Taxonomy.encode`] for ancestor-complete sets of a forest. In a DAG, a node gives at most `limit`
        of its paths. A warning is logged if it has more.

        Raises:
            ValueError: for an index outside 0 to L - 1, or one that is not a whole number.
        """
        members = sorted({check_node(node, self.num_labels) for node in nodes})
        inner = {parent for node in members for parent in self.parent_lists[node]}
        found: list[list[str]] = []
        for node in members:
            if node in inner:
                continue
            paths = self.paths(node, None if limit is None else limit + 1)
            if limit is not None and len(paths) > limit:
                logger.warning(
                    f"{self.labels[node]!r} has more than {limit:,} paths from a root: only these are returned."
                )
            found += paths[:limit]
        return found

    # ---- Look-up tables, built when first needed ----

    @property
    def label_index(self) -> Mapping[str, int]:
        """The index of each label."""
        return self._index

    @cached_property
    def parent_lists(self) -> list[list[int]]:
        """The parents of each node as lists, which are faster than arrays for single nodes."""
        parents: list[list[int]] = [[] for _ in range(self.num_labels)]
        for parent, child in self.edges.tolist():
            parents[child].append(parent)
        return parents

    @cached_property
    def _lookup(self) -> NodeLookup:
        return NodeLookup(self)

    @property
    def ambiguous_names(self) -> set[str]:
        """The names that several nodes share."""
        return self._lookup.ambiguous_names

    # ---- Python ----

    def __len__(self) -> int:
        return self.num_labels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Taxonomy) and self.labels == other.labels and np.array_equal(self.edges, other.edges)

    def __hash__(self) -> int:
        return hash((self.labels, self.edges.tobytes()))

    def __repr__(self) -> str:
        sizes = " + ".join(str(level.stop - level.start) for level in self.levels)
        kind = "forest" if self.is_forest else "DAG"
        return f"Taxonomy({kind}, {self.num_labels} labels on {len(self.levels)} levels: {sizes or 0})"

    def __getstate__(self) -> dict[str, Any]:
        # Leaves the tables out, so that a fingerprint of `datasets` depends on the hierarchy alone.
        # One long string is pickled many times faster than a million short ones.
        ends = np.cumsum(list(map(len, self.labels)), dtype=np.int64)
        return {"labels": "".join(self.labels), "ends": ends, "edges": self.edges}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ends = state["ends"].tolist()
        labels = [state["labels"][start:end] for start, end in zip([0, *ends], ends)]
        self.__init__(labels, state["edges"])  # type: ignore[misc]

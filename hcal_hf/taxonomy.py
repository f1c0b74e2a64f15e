"""The label hierarchy: a forest or a directed acyclic graph over named nodes.

Everything is held as flat numpy arrays over edges; no [num_labels, num_labels] matrix is ever made.
"""

import difflib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers.utils import logging

logger = logging.get_logger(__name__)

SEPARATOR = " > "


class Taxonomy:
    """A label hierarchy whose nodes are ordered by depth, so that each level is a slice.

    The depth of a node is the length of its longest path from a root (roots have depth 0): parents always
    come before their children. Nodes of one depth keep the order in which they first appeared.

    A node has a unique *label*. Inside a path it is written with its *name*: where labels had to be made
    unique by their path ("Books > Other"), the name is the last step ("Other"); elsewhere label and name are
    the same.

    Build one with [`Taxonomy.from_paths`], [`Taxonomy.from_edges`] or [`Taxonomy.from_json`]; the constructor
    takes labels that are already in order, as [`HcalConfig`] stores them.

    Args:
        labels (`Sequence[str]`):
            The unique node labels, L of them, parents before children and sorted by depth.
        edges (`Sequence[tuple[int, int]]` or `np.ndarray` of shape `[E, 2]`):
            (parent, child) as indices into `labels`.

    Raises:
        ValueError: for empty or duplicate labels, self-loops, cycles (the cycle is printed), edges out of range,
            or labels that are not sorted by depth.
    """

    def __init__(self, labels: Sequence[str], edges: Sequence[Sequence[int]] | np.ndarray = ()):
        labels = tuple(labels)
        _check_names(labels, "label")
        edges = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
        if edges.size and (edges.min() < 0 or edges.max() >= len(labels)):
            bad = edges[((edges < 0) | (edges >= len(labels))).any(axis=1)][0].tolist()
            raise ValueError(f"Edge {bad} points outside the {len(labels)} labels (0 to {len(labels) - 1}).")
        depths = _depths(edges, labels)
        if (np.diff(depths) < 0).any():
            raise ValueError(
                "Labels must be sorted by depth (roots first), since each level is a slice of them: build the "
                "taxonomy with Taxonomy.from_edges or Taxonomy.from_paths, which sort."
            )
        self._fill(labels, edges, depths)

    def _fill(
        self, labels: tuple[str, ...], edges: np.ndarray, depths: np.ndarray, index: dict[str, int] | None = None
    ) -> None:
        self.labels: tuple[str, ...] = labels
        self._index: dict[str, int] = dict(zip(labels, count())) if index is None else index
        if len(self._index) != len(labels):
            raise ValueError(
                f"Labels must be unique, but {_duplicates(labels)} occur more than once. Give paths to "
                'Taxonomy.from_paths(paths, identity="path") to tell nodes of one name apart by their parents.'
            )
        # Edges sorted by child, then parent: each node's parents are one run, each level's edges are one slice.
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
            edges: (parent, child) pairs of labels. An edge given twice counts once, and the number is told.
            roots: labels without a parent; needed only for roots that have no children.

        Raises:
            ValueError: for empty or duplicate names, self-loops, cycles (the cycle is printed), a root with a parent.
        """
        edges = list(edges)
        _check_pairs(edges)
        roots = list(roots)
        if len(set(roots)) != len(roots):
            raise ValueError(f"Roots must be unique, but {_duplicates(roots)} are given more than once.")
        flat = list(chain.from_iterable(edges))
        index: dict[str, int] = defaultdict(count().__next__)  # numbers the labels as they appear, in one pass
        nodes = np.array(list(map(index.__getitem__, chain(roots, flat))), dtype=np.int64)
        pairs = nodes[len(roots) :].reshape(-1, 2)
        labels = tuple(index)
        _check_names(labels, "label")
        return cls._from_unsorted(labels, pairs, num_roots=len(roots), index=index)

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[str]], identity: Literal["path", "name"] = "path") -> "Taxonomy":
        """Builds a taxonomy from root-to-node paths, such as the rows of a spreadsheet.

        Args:
            paths: sequences of names from a root downwards, of any lengths, in any order, repeated or not. A path
                that stops at an inner node is fine.
            identity: what makes two steps the same node. `"path"` (default): the whole path to it, so "Other" under
                "Books" and under "Toys" are two nodes, labelled "Books > Other" and "Toys > Other"; the result is
                a forest. `"name"`: the bare name, so that both are one node with two parents; the result is a DAG,
                and the nodes merged are told.

        Raises:
            ValueError: for empty names or paths, or (`identity="name"`) a cycle.
        """
        if identity not in ("path", "name"):
            raise ValueError(f'identity must be "path" or "name", got {identity!r}.')
        unique = _unique_paths(paths)
        if identity == "name":
            edges = dict.fromkeys(chain.from_iterable(zip(path, path[1:]) for path in unique))
            # A path's first node is a root only where no other path gives it a parent.
            children = {child for _, child in edges}
            firsts = dict.fromkeys(path[0] for path in unique)
            nested = [name for name in firsts if name in children]
            if nested:
                logger.warning(
                    f"{len(nested)} node(s) start a path and also stand below a parent in another ({_some(nested)}): "
                    "they are taken to stand below that parent."
                )
            taxonomy = cls.from_edges(edges, roots=[name for name in firsts if name not in children])
            merged = np.flatnonzero(np.bincount(taxonomy.edges[:, 1], minlength=taxonomy.num_labels) > 1)
            if len(merged):
                logger.warning(
                    f'identity="name" merged {len(merged)} node(s) that stand below several parents '
                    f"({_some([taxonomy.labels[i] for i in merged])}): the taxonomy is a DAG."
                )
            return taxonomy
        return cls._from_unique_paths(unique)

    @classmethod
    def _from_unique_paths(cls, unique: list[tuple[str, ...]]) -> "Taxonomy":
        # One dictionary from (parent index, name) to index: linear in the steps, not in the path lengths squared.
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
        """Sorts nodes by depth, then first appearance. The first `num_roots` labels must have no parent; `index` holds the
        position of each label, if that is known."""
        nested = pairs[pairs[:, 1] < num_roots]
        if len(nested):
            parent, root = (labels[i] for i in nested[0])
            raise ValueError(f"{root!r} is given as a root but is also a child of {parent!r}: drop one of both.")
        depths = _depths(pairs, labels)
        order = np.argsort(depths, kind="stable")
        taxonomy = cls.__new__(cls)
        if index is not None and (np.diff(depths) >= 0).all():  # they came in order
            taxonomy._fill(labels, pairs, depths, dict(index))
            return taxonomy
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        taxonomy._fill(tuple(map(labels.__getitem__, order.tolist())), rank[pairs], depths[order])
        return taxonomy

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "Taxonomy":
        """Reads a JSON file: `to_json`'s own form (`labels` and `edges` as indices), `edges` as label pairs with
        optional `roots`, or `paths` (with optional `identity`).

        Raises:
            ValueError: if the file holds none of the three forms, or describes no valid taxonomy.
        """
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(data, dict) and "labels" in data:
            return cls(data["labels"], data.get("edges", ()))
        if isinstance(data, dict) and "paths" in data:
            return cls.from_paths(data["paths"], identity=data.get("identity", "path"))
        if isinstance(data, dict) and ("edges" in data or "roots" in data):
            return cls.from_edges([tuple(edge) for edge in data.get("edges", ())], roots=data.get("roots", ()))
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f'{path} must hold an object with "labels" and "edges" (indices), "edges" (label pairs) and "roots", or '
            f'"paths"; found {found}.'
        )

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes {"labels": [L strings], "edges": [[parent index, child index], ...]}; [`from_json`] reads it."""
        data = {"labels": list(self.labels), "edges": self.edges.tolist()}
        Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")

    # ---- Structure ----

    @property
    def num_labels(self) -> int:
        """Number of nodes L."""
        return len(self.labels)

    @cached_property
    def levels(self) -> tuple[slice, ...]:
        """One slice of the node indices for each depth, from the roots (depth 0) down."""
        if not self.num_labels:
            return ()
        bounds = np.searchsorted(self.depths, np.arange(self.depths[-1] + 2)).tolist()
        return tuple(slice(low, high) for low, high in zip(bounds, bounds[1:]))

    @cached_property
    def edge_slices(self) -> tuple[slice, ...]:
        """For each level the slice of `edges` that lead into it (empty for the roots)."""
        bounds = np.searchsorted(self.edges[:, 1], [level.start for level in self.levels] + [self.num_labels]).tolist()
        return tuple(slice(low, high) for low, high in zip(bounds, bounds[1:]))

    @cached_property
    def is_forest(self) -> bool:
        """Whether no node has more than one parent."""
        return bool((np.diff(self.edges[:, 1]) > 0).all())

    @cached_property
    def is_leaf(self) -> np.ndarray:
        """Bool array [L]: the nodes without children."""
        leaf = np.ones(self.num_labels, dtype=bool)
        leaf[self.edges[:, 0]] = False
        return leaf

    @cached_property
    def _parent_offsets(self) -> np.ndarray:
        return np.searchsorted(self.edges[:, 1], np.arange(self.num_labels + 1))

    def parents(self, node: int) -> np.ndarray:
        """The sorted indices of a node's parents (empty for a root)."""
        return self.edges[self._parent_offsets[node] : self._parent_offsets[node + 1], 0]

    def parents_of(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The parents of many nodes at once.

        Args:
            nodes (`np.ndarray` of shape `[N]`): node indices, in any order and number.

        Returns:
            two arrays of one length: positions in `nodes`, ascending, and a parent of the node there.
        """
        first, last = self._parent_offsets[nodes], self._parent_offsets[nodes + 1]
        counts = last - first
        owners = np.repeat(np.arange(len(nodes)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return owners, self.edges[first[owners] + within, 0]

    def check_single_path(self) -> None:
        """Raises ValueError naming a node with two parents: a document's one path would not be defined there."""
        if self.is_forest:
            return
        node = int(self.edges[1:, 1][np.diff(self.edges[:, 1]) == 0][0])
        names = " and ".join(repr(self.labels[p]) for p in self.parents(node)[:2])
        raise ValueError(
            f"single_path needs a forest, but {self.labels[node]!r} has {len(self.parents(node))} parents, {names}: "
            'use label_mode="multi_path", or Taxonomy.from_paths(paths, identity="path") to make it one node a parent.'
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Each node's name inside a path: its label without the path of its parent where the label starts with that."""
        if not any(SEPARATOR in label for label in self.labels):
            return self.labels
        names = list(self.labels)
        taken: dict[tuple[int, str], int] = {}
        for node, label in enumerate(self.labels):
            if SEPARATOR not in label:
                continue
            above, step = "", node
            while len(parents := self.parents(step)):
                step = int(parents[0])
                above = names[step] + SEPARATOR + above
            if above and label.startswith(above) and len(label) > len(above):
                names[node] = label[len(above) :]
        for node, name in enumerate(names):
            for parent in self._parent_lists[node] or [-1]:
                other = taken.setdefault((parent, name), node)
                if other != node:
                    raise ValueError(
                        f"{self.labels[other]!r} and {self.labels[node]!r} are both {name!r} inside a path: a label that "
                        f"starts with the path of its parent and {SEPARATOR!r} is named by the rest. Rename one of them."
                    )
        return tuple(names)

    def texts(self) -> list[str]:
        """The words of each label, for an encoder to read: its name after its parents' names, underscores as spaces."""
        words = [name.replace("_", " ") for name in self.names]
        return [
            ": ".join(
                [", ".join(words[parent] for parent in self._parent_lists[node]), word]
                if self._parent_lists[node]
                else [word]
            )
            for node, word in enumerate(words)
        ]

    def paths(self, node: int, limit: int | None = None) -> list[list[str]]:
        """The paths of names from a root to a node; one in a forest, possibly very many in a DAG: `limit` stops there."""
        return [[self.names[i] for i in path] for path in islice(self._index_paths(int(node)), limit)]

    def _index_paths(self, node: int) -> Iterator[list[int]]:
        parents = self.parents(node)
        if not len(parents):
            yield [node]
        for parent in parents.tolist():
            for path in self._index_paths(parent):
                yield [*path, node]

    # ---- Labels of documents ----

    def index(self, label: str) -> int:
        """The index of a node, by its label, by its name where only one node has it, or by its path ("A > B > C").

        Raises:
            ValueError: for an unknown label (with the three closest known ones) or a name that several nodes have.
        """
        if not isinstance(label, str):
            raise ValueError(f"A label must be a string, got {label!r} of type {type(label).__name__}.")
        node = self._index.get(label)
        if node is not None:
            return node
        same_name = self._nodes_of_name.get(label, ())
        if len(same_name) == 1:
            return same_name[0]
        if same_name:
            raise ValueError(
                f"{label!r} is the name of {len(same_name)} nodes ({_some([self.labels[i] for i in same_name])}): "
                "give the whole path."
            )
        if SEPARATOR.strip() in label:
            return self.index_path(split_path(label))
        raise ValueError(f"Unknown label {label!r}. {self._closest(label, self.labels)}")

    def index_path(self, path: Sequence[str]) -> int:
        """The index of the node at the end of a path of names (or labels) that starts at a root.

        Raises:
            ValueError: for an empty path, an unknown first step, or a step that is not an edge of the taxonomy.
        """
        return self._walk(path)[-1]

    def _walk(self, path: Sequence[str]) -> list[int]:
        if isinstance(path, str) or not len(path):
            raise ValueError(f"A path must be a non-empty sequence of names from a root down, got {path!r}.")
        nodes: list[int] = []
        for step in path:
            if not isinstance(step, str):
                raise ValueError(f"A step of a path must be a string, got {step!r} in {list(path)!r}.")
            parent = nodes[-1] if nodes else -1
            node = self._steps.get((parent, step))
            if node is None:
                known = [name for above, name in self._steps if above == parent]
                where = f"below {self.labels[parent]!r}" if nodes else "among the roots"
                if step in self._index or step in self._nodes_of_name:
                    raise ValueError(
                        f"{list(path)!r} is not a path of the taxonomy: {step!r} exists, but not {where}. "
                        f"{self._closest(step, known)}"
                    )
                raise ValueError(f"Unknown label {step!r} {where} in {list(path)!r}. {self._closest(step, known)}")
            nodes.append(node)
        return nodes

    def complete(self, nodes: Iterable[int]) -> np.ndarray:
        """The sorted indices of the nodes with all their ancestors.

        Raises:
            ValueError: for an index outside 0 to L - 1.
        """
        found = set(map(int, nodes))
        for node in found:
            if not 0 <= node < self.num_labels:
                raise ValueError(f"Node {node} is outside the {self.num_labels} labels (0 to {self.num_labels - 1}).")
        open_nodes = list(found)
        while open_nodes:
            for parent in self._parent_lists[open_nodes.pop()]:
                if parent not in found:
                    found.add(parent)
                    open_nodes.append(parent)
        return np.fromiter(sorted(found), dtype=np.int64, count=len(found))

    def complete_rows(self, rows: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[`Taxonomy.complete`] of many documents at once.

        Args:
            rows, nodes (`np.ndarray` of shape `[P]`): (document, node) cells in any order.

        Returns:
            the cells with those of all ancestors, each once, sorted by document and then by node: two int64 arrays.
        """
        number = max(self.num_labels, 1)
        newest = rows * number + nodes
        found = [newest]
        while len(newest):
            owners, parents = self.parents_of(newest % number)
            newest = newest[owners] // number * number + parents
            if not self.is_forest:  # there may be many ways to one ancestor
                newest = np.unique(newest)
            found.append(newest)
        cells = np.unique(np.concatenate(found))
        return cells // number, cells % number

    def encode(self, labels: str | Sequence[str] | Sequence[Sequence[str]]) -> np.ndarray:
        """The sorted indices of a document's labels, completed with their ancestors.

        Args:
            labels: a label or path string ("A > B > C"), a list of those, or a list of paths (lists of names from a
                root down). An empty list is an empty set. A flat list of strings means labels; where they are only
                readable as the steps of one path, it is that path, and where both readings exist and differ it is
                refused.

        Raises:
            ValueError: for an unknown label (with the three closest known ones), a step that is not an edge, or an
                ambiguous list.
        """
        return self.complete(self.given_nodes(labels))

    def given_nodes(self, labels: Any) -> set[int]:
        """The indices of the nodes that a document's labels name themselves, without the ancestors implied.

        Takes and refuses what [`Taxonomy.encode`] does; a path names each of its steps.
        """
        if isinstance(labels, str):
            return self._named(labels)
        if isinstance(labels, dict) or not isinstance(labels, Iterable):
            raise ValueError(
                f"Labels must be a string, a list of strings or a list of paths, got {labels!r} of type "
                f"{type(labels).__name__}."
            )
        labels = list(labels)
        if len(labels) > 1 and all(isinstance(label, str) for label in labels):
            if self.ambiguous_names.isdisjoint(labels):
                return set().union(*map(self._named, labels))
            return self._flat_list(labels)
        nodes: set[int] = set()
        for label in labels:
            if not isinstance(label, str | Sequence | np.ndarray):
                raise ValueError(
                    f"A label must be a string or a path (a list of strings), got {label!r} in {labels!r}."
                )
            nodes.update(self._named(label) if isinstance(label, str) else self._walk(list(label)))
        return nodes

    def _named(self, label: str) -> set[int]:
        """The nodes that one string names: all steps of a path, else the node itself."""
        if label not in self._index and label not in self._nodes_of_name and SEPARATOR.strip() in label:
            return set(self._walk(split_path(label)))
        return {self.index(label)}

    def _flat_list(self, labels: list[str]) -> set[int]:
        """A flat list with a name that several nodes share: several labels, or one path?"""
        readings: list[set[int]] = []
        error: ValueError | None = None
        for read in (lambda: set().union(*map(self._named, labels)), lambda: set(self._walk(labels))):
            try:
                readings.append(read())
            except ValueError as problem:
                error = error or problem
        if not readings:
            assert error is not None
            raise error
        if len(readings) == 2 and not np.array_equal(self.complete(readings[0]), self.complete(readings[1])):
            raise ValueError(
                f"{labels!r} can be read as {len(labels)} labels or as one path, with different nodes: give a list of "
                f"paths, [{labels!r}] for one path."
            )
        return readings[-1]

    def decode(self, nodes: Iterable[int]) -> list[list[str]]:
        """The paths of names that stand for a set of node indices: those of its nodes without a child in the set.

        The inverse of [`Taxonomy.encode`] for ancestor-complete sets of a forest; in a DAG a node gives all its paths.
        """
        chosen = sorted(set(map(int, nodes)))
        inner = {parent for node in chosen for parent in self._parent_lists[node]}
        return [path for node in chosen if node not in inner for path in self.paths(node)]

    # ---- Look-up tables, made when first needed ----

    @property
    def label_index(self) -> Mapping[str, int]:
        """The index of each label."""
        return self._index

    @cached_property
    def _parent_lists(self) -> list[list[int]]:
        parents: list[list[int]] = [[] for _ in range(self.num_labels)]
        for parent, child in self.edges.tolist():
            parents[child].append(parent)
        return parents

    @cached_property
    def _nodes_of_name(self) -> dict[str, tuple[int, ...]]:
        if self.names is self.labels:
            return {}
        nodes: dict[str, tuple[int, ...]] = {}
        for node, name in enumerate(self.names):
            nodes[name] = (*nodes.get(name, ()), node)
        return nodes

    @cached_property
    def ambiguous_names(self) -> set[str]:
        """The names that several nodes share."""
        return {name for name, nodes in self._nodes_of_name.items() if len(nodes) > 1}

    @cached_property
    def _steps(self) -> dict[tuple[int, str], int]:
        """(parent index or -1, name or label) -> node."""
        parents = self._parent_lists
        steps: dict[tuple[int, str], int] = {}
        for texts in (self.labels, self.names):  # names win: they are what a path is written with
            for node, text in enumerate(texts):
                for parent in parents[node] or (-1,):
                    steps[parent, text] = node
        return steps

    def _closest(self, label: str, known: Sequence[str]) -> str:
        if not known:
            return "Nothing stands there."
        among_all = known is self.labels
        if among_all and label in self._suggestions:  # bad labels come in numbers, and repeat
            return self._suggestions[label]
        shortlist = known
        if len(known) > 100:
            table = self._letter_pairs if among_all else _letter_pairs(known)
            shortlist = [known[i] for i in _sharing_most(label, table, len(known))]
        close = difflib.get_close_matches(label, shortlist, n=3, cutoff=0.0)
        text = f"Closest known: {', '.join(map(repr, close))}."
        if among_all:
            self._suggestions[label] = text
        return text

    @cached_property
    def _suggestions(self) -> dict[str, str]:
        return {}

    @cached_property
    def _letter_pairs(self) -> dict[str, np.ndarray]:
        return _letter_pairs(self.labels)

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
        # The tables are rebuilt: a pickle or fingerprint (datasets hashes it) depends on the hierarchy alone. One string is
        # pickled many times as fast as a million.
        ends = np.cumsum(list(map(len, self.labels)), dtype=np.int64)
        return {"labels": "".join(self.labels), "ends": ends, "edges": self.edges}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ends = state["ends"].tolist()
        labels = [state["labels"][start:end] for start, end in zip([0, *ends], ends)]
        self.__init__(labels, state["edges"])  # type: ignore[misc]


def _letter_pairs(names: Sequence[str]) -> dict[str, np.ndarray]:
    """For each pair of neighbouring letters the indices of the names that hold it."""
    holders: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        lower = name.lower()
        for pair in set(map("".join, zip(lower, lower[1:]))):
            holders[pair].append(i)
    return {pair: np.array(indices) for pair, indices in holders.items()}


def _sharing_most(label: str, table: dict[str, np.ndarray], number: int) -> list[int]:
    """The names (at most 50) that share the most letter pairs with a label: few enough to compare in full."""
    lower = label.lower()
    found = [table[pair] for pair in set(map("".join, zip(lower, lower[1:]))) if pair in table]
    shared = np.bincount(np.concatenate(found), minlength=number) if found else np.zeros(number, dtype=np.int64)
    return np.argsort(-shared, kind="stable")[:50].tolist()


def split_path(text: str, separator: str = SEPARATOR) -> list[str]:
    """The steps of a path string, without white space at their ends: "A > B" and "A>B" are the same path."""
    return [step.strip() for step in text.split(separator.strip() or separator)]


def _depths(edges: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Longest-path depth of each node, [L] int64, by removing roots round after round (Kahn, 1962)."""
    num_labels = len(labels)
    depths = np.zeros(num_labels, dtype=np.int64)
    loops = edges[edges[:, 0] == edges[:, 1]]
    if len(loops):
        raise ValueError(f"{labels[loops[0, 0]]!r} is its own parent: remove that edge.")
    by_parent = edges[np.argsort(edges[:, 0], kind="stable")]
    offsets = np.searchsorted(by_parent[:, 0], np.arange(num_labels + 1))
    open_parents = np.bincount(edges[:, 1], minlength=num_labels)
    frontier = np.flatnonzero(open_parents == 0)
    done, depth = 0, 0
    while len(frontier):
        done += len(frontier)
        depths[frontier] = depth
        starts, counts = offsets[frontier], offsets[frontier + 1] - offsets[frontier]
        runs = np.repeat(starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(counts.sum())
        children = np.sort(by_parent[runs, 1])
        starts = np.flatnonzero(np.diff(children, prepend=-1))
        times = np.diff(starts, append=len(children))
        children = children[starts]
        open_parents[children] -= times
        frontier = children[open_parents[children] == 0]
        depth += 1
    if done < num_labels:
        raise ValueError(
            f"The hierarchy has a cycle: {' -> '.join(_cycle(edges, open_parents, labels))}. Remove an edge."
        )
    return depths


def _cycle(edges: np.ndarray, open_parents: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The labels of one cycle, its first repeated at the end, among the nodes that still have open parents."""
    left = open_parents > 0
    inside = edges[left[edges[:, 0]] & left[edges[:, 1]]]
    a_parent = dict(zip(inside[:, 1].tolist(), inside[:, 0].tolist()))
    node = int(inside[0, 1])
    seen: dict[int, int] = {}
    while node not in seen:
        seen[node] = len(seen)
        node = a_parent[node]
    cycle = [*list(seen)[seen[node] :], node]
    return [repr(labels[i]) for i in reversed(cycle)]


def _check_pairs(edges: list[tuple[str, str]]) -> None:
    if set(map(len, edges)) <= {2} and str not in set(map(type, edges)):
        return
    for edge in edges:
        if isinstance(edge, str) or len(edge) != 2:
            raise ValueError(f"An edge must be a (parent, child) pair of labels, got {edge!r}.")


def _check_names(names: Sequence[str], what: str) -> None:
    if set(map(type, names)) <= {str} and all(names) and list(map(str.strip, names)) == list(names):
        return
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"A {what} must be a string, got {name!r} of type {type(name).__name__}.")
        if not name.strip():
            raise ValueError(
                f"A {what} must not be empty, got {name!r}. In a table with rows of different lengths, leave the empty "
                "cells out: [cell for cell in row if cell]."
            )
        if name != name.strip():
            raise ValueError(f"A {what} must not start or end with white space, got {name!r}: use {name.strip()!r}.")


def _unique_paths(paths: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    unique: dict[tuple[str, ...], None] = {}
    for path in paths:
        if isinstance(path, str):
            raise ValueError(f"A path must be a sequence of names, got the string {path!r}: use split_path({path!r}).")
        unique[tuple(path)] = None
    if () in unique:
        raise ValueError("A path must have at least one step, got an empty one: leave it out.")
    names = list(dict.fromkeys(chain.from_iterable(unique)))
    _check_names(names, "name in a path")
    for name in names:
        if SEPARATOR in name:
            raise ValueError(
                f"The name {name!r} holds {SEPARATOR!r}, which separates the steps of a path in labels: write it "
                f"in another way, such as {name.replace(SEPARATOR, ' - ')!r}."
            )
    return list(unique)


def _duplicates(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return _some(list(dict.fromkeys(name for name in names if name in seen or seen.add(name))))  # type: ignore[func-returns-value]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"

"""Collects the nodes and edges of a hierarchy with their places in a file, and builds the taxonomy."""

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from transformers.utils import logging

from ..node_depths import node_depths
from ..node_names import SEPARATOR, quote_first
from ..taxonomy import Taxonomy
from .described_taxonomy import DescribedTaxonomy
from .hierarchy_check import find_cycles

logger = logging.get_logger(__name__)


class NodeTable:
    """Collects the nodes and edges of a hierarchy in the order of a file.

    A node is identified by a key: its label, its identifier, or its parent and its name.

    Args:
        source: the name of the file or object, for messages.
        unit: the word for a place in it, such as "line".
    """

    def __init__(self, source: str, unit: str = "line"):
        self.source, self.unit = source, unit
        self.names: list[str] = []
        self.ids: list[str | None] = []
        self.descriptions: list[str | None] = []
        self.places: list[int] = []
        self.edges: dict[tuple[int, int], int] = {}  # (parent, child) -> place
        self.other_ids: dict[int, str] = {}  # identifiers in addition to those that may be labels
        self.repeated: list[int] = []  # places that only repeat what an earlier one says
        self._index: dict[Hashable, int] = {}
        self._of_id: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    def error(self, place: int, problem: str) -> ValueError:
        """Returns an error that names the place."""
        return ValueError(f"{self.source}, {self.unit} {place}: {problem}")

    def node(self, key: Hashable, name: str, place: int) -> int:
        """Returns the index of a node, which is added if it is new.

        Raises:
            ValueError: for an empty name.
        """
        node = self._index.get(key)
        if node is None:
            if not isinstance(name, str) or not name.strip():
                raise self.error(place, f"a label must be a text that is not empty, got {name!r}.")
            node = self._index[key] = len(self.names)
            self.names.append(name.strip())
            self.ids.append(None)
            self.descriptions.append(None)
            self.places.append(place)
        return node

    def add_edge(self, parent: int, child: int, place: int) -> None:
        """Adds an edge. One that exists is noted as repeated.

        Raises:
            ValueError: if the two nodes are the same.
        """
        if parent == child:
            raise self.error(place, f"{self.names[child]!r} is its own parent: remove that line or edge.")
        if self.edges.setdefault((parent, child), place) != place:
            self.repeated.append(place)

    def add_path(self, steps: Sequence[str], place: int, start: int = -1) -> int:
        """Adds the nodes of a path below the node `start` (-1: from a root). Returns the index of the last one.

        Raises:
            ValueError: for an empty path or step, or a step that contains the separator of paths.
        """
        parent, before = start, len(self)
        for step in steps:
            if isinstance(step, str) and SEPARATOR in step:
                raise self.error(
                    place,
                    f"the name {step!r} contains {SEPARATOR!r}, which separates the steps of a path in labels: write "
                    f"{step.replace(SEPARATOR, ' - ')!r}.",
                )
            name = step.strip() if isinstance(step, str) else step
            if not name:
                raise self.error(place, f"the path {list(steps)!r} has an empty step.")
            node = self.node((parent, name), name, place)
            if parent >= 0 and node >= before:
                self.edges[parent, node] = place
            parent = node
        if parent == start:
            raise self.error(place, "the path has no steps.")
        return parent

    def describe(self, node: int, place: int, id_: str | None = None, description: str | None = None) -> None:
        """Notes the identifier and the description of a node.

        Raises:
            ValueError: if the node has another identifier, or another node has this one.
        """
        if id_:
            if self.ids[node] not in (None, id_):
                raise self.error(
                    place,
                    f"{self.names[node]!r} has the id {id_!r}, but {self.unit} {self.places[node]} gives it "
                    f"{self.ids[node]!r}.",
                )
            other = self._of_id.setdefault(id_, node)
            if other != node:
                raise self.error(
                    place,
                    f"the id {id_!r} belongs to two labels, {self.names[other]!r} ({self.unit} {self.places[other]}) and "
                    f"{self.names[node]!r}. Correct one of them.",
                )
            self.ids[node] = id_
        if description and self.descriptions[node] is None:
            self.descriptions[node] = description

    # ---- Building ----

    def build(self, label_by: Literal["name", "id"], identity: Literal["path", "name"] = "path") -> Taxonomy:
        """Builds the taxonomy. Logs repeated edges, and nodes with several parents.

        Args:
            label_by: whether names or identifiers are the labels.
            identity: whether nodes of one name stay apart, or are one node with several parents.

        Raises:
            ValueError: for an empty hierarchy, a cycle, a missing identifier, or labels that are not unique.
        """
        if not self.names:
            raise ValueError(f"{self.source} has no labels.")
        keep = np.arange(len(self))
        if identity == "name":
            first: dict[str, int] = {}
            keep = np.array([first.setdefault(name, node) for node, name in enumerate(self.names)])
            dropped = sum(id_ is not None and kept != node for node, (kept, id_) in enumerate(zip(keep, self.ids)))
            if dropped:
                logger.warning_once(
                    f"{self.source}: {dropped:,} id(s) of labels that were merged by name are left out."
                )
        pairs = keep[np.array(list(self.edges), dtype=np.int64).reshape(-1, 2)]
        present, number = np.unique(keep, return_inverse=True)
        pairs = np.unique(number[pairs].reshape(-1, 2), axis=0)
        nodes = present.tolist()
        depths = self._depths(pairs, nodes)
        self._log_shape(pairs, nodes)
        written = self._labels(label_by, pairs, nodes)
        order = np.argsort(depths, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        taxonomy = (tuple(written[i] for i in order.tolist()), rank[pairs])
        ids, names, descriptions = {}, {}, {}
        for label, node in zip(written, nodes):
            id_, name, description = self.ids[node], self.names[node], self.descriptions[node]
            if node in self.other_ids:
                ids[label] = self.other_ids[node]
            if label_by == "id" and name != label and not label.endswith(SEPARATOR + name):
                names[label] = name
            elif label_by == "name" and id_ is not None and id_ != label:
                ids.setdefault(label, id_)
            if description is not None and description not in (name, label):
                descriptions[label] = description
        if ids or names or descriptions:
            return DescribedTaxonomy(*taxonomy, ids=ids, label_names=names, descriptions=descriptions)
        return Taxonomy(*taxonomy)

    def _depths(self, pairs: np.ndarray, nodes: list[int]) -> np.ndarray:
        names = [self.names[node] for node in nodes]
        try:
            return node_depths(pairs, names)
        except ValueError as problem:
            cycles = find_cycles(map(tuple, pairs.tolist()), limit=1)
            if not cycles:  # an own parent, after nodes of one name became one
                raise ValueError(f"{self.source}: {problem}") from problem
            cycle = [nodes[i] for i in cycles[0]]
            known = [(pair, self.edges[pair]) for pair in zip(cycle, cycle[1:]) if pair in self.edges]
            where = "; ".join(
                f"{self.names[parent]!r} -> {self.names[child]!r} in {self.unit} {place}"
                for (parent, child), place in known[:5]
            )
            raise ValueError(
                f"{self.source}: {problem} The edges of the cycle: {where or 'merged by name'}."
            ) from problem

    def _log_shape(self, pairs: np.ndarray, nodes: list[int]) -> None:
        if self.repeated:
            logger.warning_once(
                f"{self.source}: {len(self.repeated):,} {self.unit}(s) repeat an earlier one and count once, first "
                f"{self.unit} {self.repeated[0]}."
            )
        several = np.flatnonzero(np.bincount(pairs[:, 1], minlength=len(nodes)) > 1)
        if len(several):
            names = quote_first([self.names[nodes[i]] for i in several.tolist()])
            logger.warning_once(f"{self.source}: {len(several):,} label(s) have several parents ({names}): a DAG.")

    def _labels(self, label_by: str, pairs: np.ndarray, nodes: list[int]) -> list[str]:
        if label_by == "id":
            for node in nodes:
                if self.ids[node] is None:
                    raise self.error(self.places[node], f'{self.names[node]!r} has no id. Use label_by="name".')
            return [str(self.ids[node]) for node in nodes]
        written = [self.names[node] for node in nodes]
        times: dict[str, int] = {}
        for name in written:
            times[name] = times.get(name, 0) + 1
        shared = [i for i, name in enumerate(written) if times[name] > 1]
        if not shared:
            return written
        is_forest = len(np.unique(pairs[:, 1])) == len(pairs)
        parents = dict(zip(pairs[:, 1].tolist(), pairs[:, 0].tolist()))
        names = list(written)
        for i in shared:
            written[i] = self._path_label(i, names, parents) if is_forest else self._id_label(nodes[i])
        self._check_unique(written, nodes)
        return written

    @staticmethod
    def _path_label(node: int, names: list[str], parents: dict[int, int]) -> str:
        steps = [names[node]]
        while (node := parents.get(node, -1)) >= 0:
            steps.append(names[node])
        return SEPARATOR.join(reversed(steps))

    def _id_label(self, node: int) -> str:
        if self.ids[node] is None:
            raise self.error(
                self.places[node],
                f"{self.names[node]!r} is the name of several labels of a hierarchy in which labels have several parents. "
                "Rename one, or give ids.",
            )
        return f"{self.names[node]} ({self.ids[node]})"

    def _check_unique(self, labels: list[str], nodes: list[int]) -> None:
        first: dict[str, int] = {}
        for label, node in zip(labels, nodes):
            other = first.setdefault(label, node)
            if other != node:
                raise self.error(
                    self.places[node],
                    f"{label!r} is also the label of {self.unit} {self.places[other]} (ids {self.ids[other]!r} and "
                    f'{self.ids[node]!r}). Rename one, or use label_by="id".',
                )

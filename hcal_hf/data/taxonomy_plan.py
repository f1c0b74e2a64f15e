"""Works out the taxonomy that a list of changes leads to, and where each of its labels comes from."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..label_map import LabelMap, sorted_taxonomy
from ..node_depths import node_depths
from ..node_names import SEPARATOR, check_names, quote_first
from ..taxonomy import Taxonomy
from .label_graph import ROOT, LabelGraph
from .taxonomy_diff import ACTIONS, Change

# Actions that only `hcal taxonomy apply` understands, because a comparison of two taxonomies cannot find them.
MANUAL_ACTIONS = ("merge", "remove_subtree")
_REMOVING = ("remove", "remove_subtree")


@dataclass
class TaxonomyPlan:
    """Holds a changed taxonomy and the origin of its labels.

    Attributes:
        label_map ([`LabelMap`]): both taxonomies, and the old labels of each new one.
        fate (`np.ndarray` of shape `[L]`): the new index of each old label, also if it was merged; -1 for removed ones.
        renamed, moved (`set[int]`): the new indices of labels with another name and of labels with other parents.
        names, descriptions (`dict[int, str]`): names for people and descriptions that the changes give, by new index.
    """

    label_map: LabelMap
    fate: np.ndarray
    renamed: set[int]
    moved: set[int]
    names: dict[int, str]
    descriptions: dict[int, str]

    @property
    def removed(self) -> list[str]:
        """The old labels that no longer exist and were not merged into another one."""
        return [self.label_map.old.labels[i] for i in np.flatnonzero(self.fate < 0).tolist()]


def plan_changes(
    taxonomy: Taxonomy,
    changes: Sequence[Change],
    places: Sequence[str] | None = None,
    *,
    single_path: bool = False,
    documents: np.ndarray | None = None,
) -> TaxonomyPlan:
    """Applies changes to a taxonomy.

    All changes apply at once, in any order: `path` is a path of the old taxonomy and `new_path` one of the new taxonomy.
    A `path` may also be a label, or a name that only one label has. The parents in a `new_path` may have their old names,
    and a single parent or merged label may be named without the path to it.

    Args:
        taxonomy: the old taxonomy.
        changes: the changes.
        places: where each change comes from, for error messages, such as "Row 3 of diff.csv".
        single_path: refuses labels with several parents.
        documents (`np.ndarray` of shape `[L]`, *optional*): the number of training documents of each label, as weights of
            merged labels. Equal weights by default.

    Raises:
        ValueError: for an unknown label (the message lists the closest labels), changes that contradict each other, a
            path that exists already, children without a parent, a cycle, several parents with `single_path`, or a
            taxonomy without labels.
    """
    return _Draft(taxonomy, changes, places, documents).plan(single_path)


class _Draft(LabelGraph):
    """Applies the changes one after the other to a graph of the labels."""

    def __init__(
        self, taxonomy: Taxonomy, changes: Sequence[Change], places: Sequence[str] | None, documents: np.ndarray | None
    ):
        super().__init__(taxonomy)
        self.changes, self.documents = list(changes), documents
        self.places = places or [f"Change {i} ({change.action})" for i, change in enumerate(self.changes, start=1)]
        self.removed_by: dict[int, int] = {}  # node -> index of the change
        self.merged_into: dict[int, int] = {}  # node -> target
        self.to_merge: set[int] = set()
        self.sources: dict[int, list[int]] = {}  # target -> nodes, the target included if it existed
        self.moved: set[int] = set()
        self.shown_names: dict[int, str] = {}
        self.descriptions: dict[int, str] = {}
        self.node_of: list[int] = []  # node of each change's path, -1 without one

    def fail(self, i: int, message: str) -> NoReturn:
        raise ValueError(f"{self.places[i]}: {message}")

    # ---- Edges ----

    def _attach(self, i: int, node: int, parents: set[int]) -> None:
        """Gives a node other parents."""
        self.leave(node)
        self.parents[node] = parents
        for parent in parents or {ROOT}:
            self._check_free(i, node, parent)
        self.enter(node)

    def _check_free(self, i: int, node: int, parent: int) -> None:
        other = self.by_name.get((parent, self.names[node]), node)
        if other != node:
            where = f"below {self.shown(parent)!r}" if parent != ROOT else "among the top labels"
            self.fail(
                i,
                f"there is a label {self.names[node]!r} {where} already. To unite both, write a row with the action merge. "
                "Otherwise give another name.",
            )

    # ---- Reading the changes ----

    def plan(self, single_path: bool) -> TaxonomyPlan:
        """Applies all changes and numbers the labels of the result."""
        added = {tuple(change.new_path) for change in self.changes if change.action == "add"}
        for i, change in enumerate(self.changes):
            is_old = change.action != "add_parent" or tuple(change.path) not in added
            self.node_of.append(self._read(i, change) if is_old else -1)
        self._check_conflicts()
        self.to_merge = {node for _, _, node in self._of("merge")}
        self._remove()
        self._detach_moved()
        self._rename()
        self._attach_all()
        self._check_orphans()
        self._check_renames()
        alive = [n for n in range(len(self.names)) if n not in self.removed_by and n not in self.merged_into]
        if not alive:
            raise ValueError("The changes remove every label. A model needs at least one: keep a label, or add one.")
        if single_path:
            self._check_single_path(alive)
        return self._number(alive)

    def _read(self, i: int, change: Change) -> int:
        """Checks the fields of a change and returns the old node that it names, -1 for an addition."""
        actions = (*ACTIONS, *MANUAL_ACTIONS)
        if change.action not in actions:
            self.fail(i, f"the action {change.action!r} is unknown: use one of {', '.join(actions)}.")
        if change.action == "add":
            if not change.new_path:
                self.fail(i, "add needs the path of the new label in new_path.")
            return -1
        if not change.path:
            self.fail(i, f"{change.action} needs an existing label in path.")
        if change.action not in (*_REMOVING, "remove_parent") and not change.new_path:
            self.fail(i, f"{change.action} needs new_path, the path of the label in the new taxonomy.")
        if change.action in ("rename", "move", "merge"):
            try:
                check_names(change.new_path, "name in a path")
            except ValueError as problem:
                self.fail(i, str(problem))
        return self._old_node(i, change.path)

    def _old_node(self, i: int, path: Sequence[str]) -> int:
        label = SEPARATOR.join(path)
        if len(path) == 1 or label in self.old.label_index:
            try:
                return self.old.index_path(path)
            except ValueError:
                pass
        try:
            return (
                self.old.index(label) if len(path) == 1 or label in self.old.label_index else self.old.index_path(path)
            )
        except ValueError as problem:
            self.fail(i, str(problem))

    def _check_conflicts(self) -> None:
        """Refuses changes of one label that exclude each other."""
        rows: dict[int, list[int]] = defaultdict(list)
        seen: dict[Any, int] = {}
        for i, (change, node) in enumerate(zip(self.changes, self.node_of)):
            key = (change.action, tuple(change.path), tuple(change.new_path))
            if key in seen:
                self.fail(i, f"it repeats {_inside(self.places[seen[key]])}: remove one of them.")
            seen[key] = i
            if node >= 0:
                rows[node].append(i)
        for node, of_node in rows.items():
            final = [i for i in of_node if self.changes[i].action in (*_REMOVING, "merge")]
            others = [i for i in of_node if i not in final and self.changes[i].action != "remove_parent"]
            if final and (others or len(final) > 1):
                first, second = sorted([final[0], (others or final[1:])[0]])
                self.fail(
                    second,
                    f"{self.old.labels[node]!r} is also changed by {_inside(self.places[first])}, "
                    "which excludes this change: remove one of them.",
                )
            named = {self.changes[i].new_path[-1]: i for i in of_node if self.changes[i].action in ("rename", "move")}
            if len(named) > 1:
                (first_name, first), (second_name, second) = list(named.items())[:2]
                self.fail(
                    second,
                    f"it names {self.old.labels[node]!r} {second_name!r}, but {_inside(self.places[first])} names it "
                    f"{first_name!r}: give one name.",
                )

    # ---- Applying the changes ----

    def _of(self, *actions: str) -> Iterator[tuple[int, Change, int]]:
        for i, (change, node) in enumerate(zip(self.changes, self.node_of)):
            if change.action in actions:
                yield i, change, node

    def _remove(self) -> None:
        for i, _, node in self._of(*_REMOVING):
            self.removed_by[node] = i
        changed = {node for _, change, node in self._of("move", "add_parent", "merge")}
        for i, _, top in self._of("remove_subtree"):
            below = {top}
            for node in range(top + 1, len(self.names)):  # parents come before their children
                if self.parents[node] & below and self.parents[node] <= self.removed_by.keys() and node not in changed:
                    below.add(node)
                    self.removed_by.setdefault(node, i)
        for node in self.removed_by:
            self.leave(node)

    def _detach_moved(self) -> None:
        for i, change, node in self._of("move", "remove_parent"):
            parents = self.old.parent_lists[node]
            if change.action == "remove_parent" and len(change.path) < 2:
                self.fail(i, "remove_parent needs the whole path through the parent that the label loses.")
            if len(change.path) > 1:
                lost = self._old_node(i, change.path[:-1])
            elif len(parents) > 1:
                names = quote_first([self.old.labels[p] for p in parents])
                self.fail(i, f"the label has {len(parents)} parents ({names}). Give the path through one of them.")
            else:
                lost = parents[0] if parents else ROOT
            if node in self.removed_by:
                continue
            self.leave(node)
            self.parents[node].discard(lost)
            self.moved.add(node)
            # Without an entry until it is attached. A label with other parents stays there.
            if self.parents[node]:
                self.enter(node)

    def _rename(self) -> None:
        """Renames all labels at once, so that two labels can exchange their names."""
        renamed: dict[int, int] = {}
        for i, change, node in self._of("rename", "move"):
            if change.name:
                self.shown_names[node] = change.name
            if change.new_path[-1] != self.names[node]:
                renamed[node] = i
                self.leave(node)
        for node, i in renamed.items():
            self.names[node] = self.changes[i].new_path[-1]
        for node, i in renamed.items():
            if self.parents[node] or node not in self.moved:
                for parent in self.parents[node] or {ROOT}:
                    self._check_free(i, node, parent)
                self.enter(node)

    def _attach_all(self) -> None:
        """Places added, moved and merged labels, those with short paths first, because they can be parents of others."""
        merges: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, change, _ in self._of("merge"):
            merges[tuple(change.new_path)].append(i)
        steps = [(len(change.new_path), 1, i) for i, change, _ in self._of("add", "move")]
        # A further parent of an added label follows the addition.
        steps += [
            (max(len(change.path) * (node < 0), len(change.new_path)), 2, i)
            for i, change, node in self._of("add_parent")
        ]
        steps += [(len(path), 0, rows[0]) for path, rows in merges.items()]
        for _, _, i in sorted(steps):
            change, node = self.changes[i], self.node_of[i]
            if change.action == "merge":
                self._merge(merges[tuple(change.new_path)])
            elif change.action == "add":
                self._add(i, change.new_path)
            else:
                node = node if node >= 0 else self._find(change.path) or 0
                parent = self._new_parent(i, change.new_path)
                if change.action == "add_parent" and change.new_path[-1] != self.names[node]:
                    self.fail(i, f"the path must end in the name of the label, {self.names[node]!r}.")
                parents = self.parents[node] | ({parent} if parent != ROOT else set())
                if parent == ROOT and parents:
                    self.fail(i, "a top label has no parent, but this label keeps one: remove it with remove_parent.")
                self.moved.add(node)
                self._attach(i, node, parents)

    def _add(self, i: int, path: Sequence[str]) -> int:
        try:
            check_names(path, "name in a path")
        except ValueError as problem:
            self.fail(i, str(problem))
        parent = self._new_parent(i, path)
        node = len(self.names)
        self.names.append(path[-1])
        self.parents.append({parent} if parent != ROOT else set())
        self._check_free(i, node, parent)
        self.enter(node)
        if self.changes[i].name:
            self.shown_names[node] = self.changes[i].name
        if self.changes[i].description:
            self.descriptions[node] = self.changes[i].description
        return node

    def _merge(self, rows: Sequence[int]) -> None:
        """Merges labels into an existing or a new one. Their children become its children."""
        i, path = rows[0], self.changes[rows[0]].new_path
        sources = [self.node_of[row] for row in rows]
        target = self._find(path)
        if target in sources:
            self.fail(rows[sources.index(target)], "a label cannot be merged into itself: leave this row out.")
        if target is None or target in self.merged_into or target in self.removed_by:
            if len(sources) == 1:
                self.fail(
                    i,
                    f"{SEPARATOR.join(path)!r} does not exist and nothing else is merged into it. Write rename or move, or "
                    "merge at least two labels.",
                )
            target = self._add(i, path)
        elif target < self.old.num_labels:
            sources = [target, *sources]
        if chained := [row for row in rows if self.node_of[row] in self.sources]:
            self.fail(chained[0], "other labels are merged into this label. Merge all of them into the same label.")
        self.sources[target] = sources
        for source in sources:
            if source == target:
                continue
            self.merged_into[source] = target
            self.leave(source)
            if source in self.parents[target]:
                self.fail(
                    i,
                    f"{self.shown(target)!r} is below {self.names[source]!r}. Merge the lower label into the upper one.",
                )
            for child in sorted(self.children.pop(source, ())):
                if child in self.to_merge and child not in self.merged_into:
                    self.leave(child)  # its name may be that of its own target
                    self.parents[child].discard(source)
                elif child != target:
                    self._attach(i, child, (self.parents[child] - {source}) | {target})

    def _find(self, path: Sequence[str]) -> int | None:
        """Finds the node on a path of the new taxonomy, or of the old one if the node still exists.

        A single step may also be a label that is not at the top.
        """
        node = ROOT
        for step in path:
            found = self.by_name.get((node, step))
            if found is None:
                break
            node = found
        else:
            return node
        try:
            node = self.old.index(path[0]) if len(path) == 1 else self.old.index_path(path)
        except ValueError:
            return None
        return None if node in self.removed_by else self.merged_into.get(node, node)

    def _new_parent(self, i: int, path: Sequence[str]) -> int:
        if len(path) == 1:
            return ROOT
        parent, above = self._find(path[:-1]), SEPARATOR.join(path[:-1])
        if parent is None:
            try:
                gone = self.old.index_path(path[:-1])
            except ValueError as problem:
                self.fail(i, f"nothing can be below {above!r}, which is no label of the new taxonomy. {problem}")
            self.fail(
                i, f"nothing can be below {above!r}, which {_inside(self.places[self.removed_by[gone]])} removes."
            )
        return parent

    # ---- Checks of the result ----

    def _check_orphans(self) -> None:
        orphans: dict[int, list[str]] = defaultdict(list)
        for node, parents in enumerate(self.parents):
            if node in self.removed_by or node in self.merged_into or not parents & self.removed_by.keys():
                continue
            kept = parents - self.removed_by.keys()
            first = min(self.removed_by[parent] for parent in parents - kept)
            if kept:
                self._attach(first, node, kept)
            else:
                orphans[first].append(self.names[node])
        for i, names in orphans.items():
            self.fail(
                i,
                f"{quote_first(names)} would have no parent. Move or remove the labels below "
                f"{SEPARATOR.join(self.changes[i].path)!r} too, or write remove_subtree to remove them all.",
            )
        placed = {*self.removed_by, *self.merged_into, *(node for _, _, node in self._of("move"))}
        for i, _, node in self._of("remove_parent"):
            if not self.parents[node] and node not in placed:
                self.fail(i, f"{self.names[node]!r} would have no parent. Write move, with the new path of the label.")

    def _check_renames(self) -> None:
        for i, change, node in self._of("rename"):
            if len(change.new_path) > 1 and self._find(change.new_path[:-1]) not in self.parents[node]:
                self.fail(
                    i,
                    f"{self.shown(node)!r} is not below {SEPARATOR.join(change.new_path[:-1])!r}. Write move instead of "
                    "rename to give a label another parent.",
                )

    def _check_single_path(self, alive: Sequence[int]) -> None:
        for node in alive:
            if len(self.parents[node]) > 1:
                rows = [i for i, change, n in self._of("add_parent", "move") if n == node] or [0]
                names = quote_first([self.shown(parent) for parent in sorted(self.parents[node])])
                self.fail(
                    rows[-1],
                    f"{self.names[node]!r} would have {len(self.parents[node])} parents ({names}), but the model has "
                    'label_mode="single_path". Move the label instead, or train a model with label_mode="multi_path".',
                )

    # ---- The new taxonomy ----

    def _number(self, alive: Sequence[int]) -> TaxonomyPlan:
        """Sorts the labels by depth, names them, and maps them to the old ones."""
        position = {node: i for i, node in enumerate(alive)}
        pairs = np.array(
            [(position[parent], position[node]) for node in alive for parent in sorted(self.parents[node])],
            dtype=np.int64,
        ).reshape(-1, 2)
        try:
            node_depths(pairs, [self.names[node] for node in alive])
        except ValueError as problem:
            rows = [self.places[i] for i, _, _ in self._of("move", "add_parent", "merge")]
            raise ValueError(
                f"A label would be below itself after these changes. {problem} Change one of these rows: "
                f"{', '.join(map(_inside, rows[:5]))}."
            ) from problem
        numbered, order = sorted_taxonomy([str(node) for node in alive], pairs)
        nodes = [alive[i] for i in order.tolist()]
        taxonomy = Taxonomy(self.labels(numbered, nodes), numbered.edges)
        for label, name, node in zip(taxonomy.labels, taxonomy.names, nodes):
            if name != self.names[node]:
                raise ValueError(
                    f"The label {label!r} would be read as a path that ends in {name!r}. Give it another name."
                )
        index = {node: i for i, node in enumerate(nodes)}
        source = np.array([node if node < self.old.num_labels else -1 for node in nodes])
        merged = {}
        for target, sources in self.sources.items():
            weights = np.ones(len(sources)) if self.documents is None else self.documents[sources].astype(float)
            weights = weights if weights.sum() else np.ones(len(sources))
            merged[index[target]] = dict(zip(sources, (weights / weights.sum()).tolist()))
            if source[index[target]] < 0:
                source[index[target]] = sources[int(weights.argmax())]
        fate = [
            -1 if node in self.removed_by else index[self.merged_into.get(node, node)]
            for node in range(self.old.num_labels)
        ]
        renamed = {index[n] for n in alive if n < self.old.num_labels and self.names[n] != self.old.names[n]}
        return TaxonomyPlan(
            LabelMap(self.old, taxonomy, source, merged),
            np.array(fate),
            renamed,
            {index[node] for node in self.moved if node in index},
            {index[node]: name for node, name in self.shown_names.items() if node in index},
            {index[node]: text for node, text in self.descriptions.items()},
        )


def _inside(place: str) -> str:
    """Returns a place as it is written inside a sentence."""
    return place[:1].lower() + place[1:]


__all__ = ["MANUAL_ACTIONS", "TaxonomyPlan", "plan_changes"]

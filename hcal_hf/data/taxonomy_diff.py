"""Compares two versions of a taxonomy."""

import csv
import difflib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..node_names import SEPARATOR
from ..taxonomy import Taxonomy
from .hierarchy_check import loosely

Action = Literal["add", "remove", "rename", "move", "add_parent", "remove_parent", "merge", "remove_subtree"]
# The actions that a comparison finds.
ACTIONS: tuple[Action, ...] = ("add", "remove", "rename", "move", "add_parent", "remove_parent")
_FIELDS = ("action", "path", "new_path", "certain", "reason")
# Fields that are written if any change has them.
_TEXT_FIELDS = ("name", "description")
# Names of leaves that are at least as similar as this are probably two spellings of one.
_SIMILAR = 0.8


@dataclass
class Change:
    """Describes one change of a taxonomy.

    Attributes:
        action: `add`, `remove`, `rename`, `move` (also with another name), and in a DAG `add_parent` or `remove_parent`.
            [`change_taxonomy`] also applies `merge` and `remove_subtree`, which a comparison cannot find.
        path: the path of the label in the old taxonomy; empty for an added one. For `remove_parent` it is the path that no
            longer exists. For a further parent of an added label it is the path of the addition.
        new_path: the path in the new taxonomy; empty for a removed one. For `add_parent` it is the additional path.
        certain: False if it is only probable that the two labels are the same.
        reason: the reason for this assumption, such as "same children".
        name: the name for people of a renamed, moved or added label that is an identifier; empty if it has none.
        description: a longer text of an added label; empty if it has none.
    """

    action: Action
    path: list[str] = field(default_factory=list)
    new_path: list[str] = field(default_factory=list)
    certain: bool = True
    reason: str = ""
    name: str = ""
    description: str = ""


@dataclass
class TaxonomyDiff:
    """Holds the changes from one taxonomy to another. Labels below a changed one are listed only if they change too."""

    changes: list[Change]
    old_labels: int
    new_labels: int

    def number(self, action: str) -> int:
        """Counts the changes of one kind."""
        return sum(change.action == action for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the changes and their numbers as a dictionary that JSON can represent."""
        numbers: dict[str, int] = {action: self.number(action) for action in ACTIONS}
        changes = [asdict(change) for change in self.changes]
        return {"old_labels": self.old_labels, "new_labels": self.new_labels, **numbers, "changes": changes}

    def to_csv(self, path: str | os.PathLike, separator: str = SEPARATOR) -> None:
        """Writes one row per change: action, path, new_path, certain (yes or no) and reason.

        The columns name and description follow if any change has them. [`read_changes`] reads the file.
        """
        texts = [name for name in _TEXT_FIELDS if any(getattr(change, name) for change in self.changes)]
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, [*_FIELDS, *texts], extrasaction="ignore")
            writer.writeheader()
            for change in self.changes:
                paths = {name: _joined(getattr(change, name), separator) for name in ("path", "new_path")}
                writer.writerow({**asdict(change), **paths, "certain": "yes" if change.certain else "no"})

    def __str__(self) -> str:
        verbs = {"add": "added", "remove": "removed", "rename": "renamed", "move": "moved"}
        numbers = [f"{self.number(action):,} {verb}" for action, verb in verbs.items()]
        for action, verb in (("add_parent", "with another parent"), ("remove_parent", "with a parent less")):
            numbers += [f"{self.number(action):,} {verb}"] if self.number(action) else []
        lines = [f"{self.old_labels:,} labels before and {self.new_labels:,} after: {', '.join(numbers)}."]
        for change in self.changes:
            old, new = SEPARATOR.join(change.path), SEPARATOR.join(change.new_path)
            shown = {"add": f"+ {new}", "remove": f"- {old}"}.get(change.action, f"{change.action} {old} -> {new}")
            lines.append(f"  {shown}{'' if change.certain else f' (probably: {change.reason})'}")
        return "\n".join(lines)


def _joined(steps: Sequence[str], separator: str) -> str:
    """Joins a path. A step that contains the separator makes it a list in JSON, as in other tables."""
    return (
        json.dumps(list(steps), ensure_ascii=False)
        if any(separator.strip() in s for s in steps)
        else separator.join(steps)
    )


def diff_taxonomies(old: Taxonomy, new: Taxonomy) -> TaxonomyDiff:
    """Finds the labels that were added, removed, renamed or moved between two taxonomies.

    Labels are matched in this order, which is repeated while it finds more:

    1. Labels with the same identifier are the same ([`DescribedTaxonomy`]).
    2. Labels with the same name and the same parents are the same.
    3. A label with a name that occurs once among the other labels of each taxonomy has moved. This is certain if the name
       occurs once in each whole taxonomy.
    4. Two labels below the same parents are a probable rename if they have the same children, or more than half of them,
       or the same description, if they are leaves with similar names, or if they are the only leaves that changed there.

    Labels below a renamed or moved one keep their places under it, and are not listed.

    Args:
        old, new: the two versions.
    """
    matching = _Matching(_Side(old), _Side(new))
    matching.run()
    return TaxonomyDiff(matching.changes(), old.num_labels, new.num_labels)


def _is_majority(matched: set[int | None], children: Sequence[int]) -> bool:
    """Returns whether more than half of the children of two labels are the same, of the one with more children."""
    return len(matched.intersection(children)) * 2 > max(len(matched), len(children))


class _Side:
    """Holds one version of a taxonomy in the form that the comparison needs."""

    def __init__(self, taxonomy: Taxonomy):
        self.names, self.parents, self.labels = taxonomy.names, taxonomy.parent_lists, taxonomy.labels
        self.children: list[list[int]] = [[] for _ in taxonomy.labels]
        for parent, child in taxonomy.edges.tolist():
            self.children[parent].append(child)
        texts: Mapping[str, str] = getattr(taxonomy, "descriptions", {})
        shown: Mapping[str, str] = getattr(taxonomy, "label_names", {})
        ids: Mapping[str, str] = getattr(taxonomy, "ids", {})
        self.descriptions = [texts.get(label, "") for label in taxonomy.labels]
        # The labels are ids themselves if they have names.
        self.ids = [label if shown else ids.get(label, "") for label in taxonomy.labels]
        self.shown_names, self.described = shown, texts
        self.titles = [shown.get(label, name) for label, name in zip(taxonomy.labels, taxonomy.names)]
        self.count = Counter(self.names)

    def texts(self, node: int) -> dict[str, str]:
        """Returns the name for people and the description of a label, "" for those that it does not have."""
        label = self.labels[node]
        return {"name": self.shown_names.get(label, ""), "description": self.described.get(label, "")}

    def path(self, node: int, parent: int | None = None) -> list[str]:
        """Returns the path to a node through one of its parents, by default the first, and their first parents."""
        steps = [self.names[node]]
        above = [parent] if parent is not None else self.parents[node][:1]
        while above:
            steps.append(self.names[above[0]])
            above = self.parents[above[0]][:1]
        return steps[::-1]


class _Matching:
    """Matches the labels of two versions."""

    def __init__(self, old: _Side, new: _Side):
        self.old, self.new = old, new
        self.match: dict[int, int] = {}  # old node -> new node
        self.taken: set[int] = set()
        self.doubts: dict[int, str] = {}  # old node -> reason why its match is only probable

    def run(self) -> None:
        ids = {id_: node for node, id_ in enumerate(self.new.ids) if id_}
        for node, id_ in enumerate(self.old.ids):
            if id_ in ids:
                self._add(node, ids[id_])
        before = -1
        while before < len(self.match):
            before = len(self.match)
            self._match_same_places()
            self._match_unique_names()
            self._match_renames()

    def _add(self, old: int, new: int, doubt: str = "") -> None:
        self.match[old] = new
        self.taken.add(new)
        if doubt:
            self.doubts[old] = doubt

    def _open(self) -> tuple[list[int], list[int]]:
        """Returns the nodes of both sides that have no match. Nodes with different identifiers stay apart."""
        old = [node for node in range(len(self.old.names)) if node not in self.match]
        return old, [node for node in range(len(self.new.names)) if node not in self.taken]

    def _may_match(self, old: int, new: int) -> bool:
        return not (self.old.ids[old] and self.new.ids[new])

    def _new_parents(self, node: int) -> frozenset[int] | None:
        """Returns the matches of the parents of an old node, or None if one has none."""
        parents = [self.match.get(parent, -1) for parent in self.old.parents[node]]
        return None if -1 in parents else frozenset(parents)

    def _match_same_places(self) -> None:
        _, new = self._open()
        places = {(frozenset(self.new.parents[node]), self.new.names[node]): node for node in new}
        for node in range(len(self.old.names)):  # parents first
            if node in self.match:
                continue
            found = places.get((self._new_parents(node), self.old.names[node]))  # type: ignore[arg-type]
            if found is not None and found not in self.taken and self._may_match(node, found):
                self._add(node, found)

    def _match_unique_names(self) -> None:
        old, new = self._open()
        times_old, times_new = Counter(self.old.names[n] for n in old), Counter(self.new.names[n] for n in new)
        of_name = {self.new.names[node]: node for node in new}
        for node in old:
            name = self.old.names[node]
            if times_old[name] == times_new[name] == 1 and self._may_match(node, of_name[name]):
                is_certain = self.old.count[name] == self.new.count[name] == 1
                self._add(node, of_name[name], "" if is_certain else "same name")

    def _match_renames(self) -> None:
        old, new = self._open()
        below: dict[frozenset[int], list[int]] = defaultdict(list)
        for node in new:
            below[frozenset(self.new.parents[node])].append(node)
        gone: Counter[frozenset[int] | None] = Counter(self._new_parents(node) for node in old)
        for node in old:
            parents = self._new_parents(node)
            candidates = [] if parents is None else below[parents]
            candidates = [other for other in candidates if other not in self.taken and self._may_match(node, other)]
            found = self._probable_rename(node, candidates, gone[parents] == 1)
            if found is not None:
                self._add(node, *found)

    def _probable_rename(self, node: int, candidates: Sequence[int], is_only_loss: bool) -> tuple[int, str] | None:
        """Returns the new node that an old one was probably renamed to, with the reason."""
        children = self._names_of_children(self.old, node)
        description = self.old.descriptions[node]
        matched = {self.match.get(child) for child in self.old.children[node]}
        for reason, fitting in (
            (
                "same children",
                [c for c in candidates if children and children == self._names_of_children(self.new, c)],
            ),
            ("most children are the same", [c for c in candidates if _is_majority(matched, self.new.children[c])]),
            ("same description", [c for c in candidates if description and description == self.new.descriptions[c]]),
            (
                "similar names",
                [c for c in candidates if not children and not self.new.children[c] and self._alike(node, c)],
            ),
            ("only change", [c for c in candidates if is_only_loss and not children and not self.new.children[c]]),
        ):
            if len(fitting) == 1 and (reason != "only change" or len(candidates) == 1):
                return fitting[0], reason
        return None

    @staticmethod
    def _names_of_children(side: _Side, node: int) -> frozenset[str]:
        return frozenset(side.names[child] for child in side.children[node])

    def _alike(self, old: int, new: int) -> bool:
        a, b = loosely(self.old.names[old]), loosely(self.new.names[new])
        return a == b or difflib.SequenceMatcher(None, a, b).ratio() >= _SIMILAR

    # ---- Changes ----

    def changes(self) -> list[Change]:
        """Returns the changes: renames and moves from the top down, then removals, then additions."""
        changed: list[Change] = []
        for node in range(len(self.old.names)):
            if node in self.match:
                changed += self._changes_of(node, self.match[node])
        old, new = self._open()
        changed += [Change("remove", self.old.path(node)) for node in old]
        for node in new:
            first, *more = [self.new.path(node, parent) for parent in self.new.parents[node]] or [self.new.path(node)]
            texts: dict[str, Any] = {**self.new.texts(node)}
            changed.append(Change("add", [], first, **texts))
            changed += [Change("add_parent", first, path) for path in more]
        return changed

    def _changes_of(self, old: int, new: int) -> Iterable[Change]:
        doubt = self.doubts.get(old, "")
        # A label that is an id keeps it, but its name for people may differ.
        is_renamed = self.old.names[old] != self.new.names[new] or self.old.titles[old] != self.new.titles[new]
        kept = {self.match[parent]: parent for parent in self.old.parents[old] if parent in self.match}
        lost = [parent for parent in self.old.parents[old] if self.match.get(parent) not in self.new.parents[new]]
        gained = [parent for parent in self.new.parents[new] if parent not in kept]
        was_moved = bool(lost and gained) or (bool(lost) and not self.new.parents[new])
        was_moved = was_moved or (bool(gained) and not self.old.parents[old])
        if was_moved:
            path = self.old.path(old, lost.pop(0) if lost else None)
            new_path = self.new.path(new, gained.pop(0) if gained else None)
            yield Change("move", path, new_path, not doubt, doubt, self.new.texts(new)["name"])
        elif is_renamed:
            name = self.new.texts(new)["name"]
            yield Change("rename", self.old.path(old), self.new.path(new), not doubt, doubt, name)
        for parent in lost:
            yield Change("remove_parent", self.old.path(old, parent), self.new.path(new), not doubt, doubt)
        for parent in gained:
            yield Change("add_parent", self.old.path(old), self.new.path(new, parent), not doubt, doubt)

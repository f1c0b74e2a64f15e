"""Compares two versions of a taxonomy."""

import csv
import os
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..node_names import SEPARATOR
from ..taxonomy import Taxonomy

_FIELDS = ("action", "path", "new_path", "certain")


@dataclass
class Change:
    """Describes one change of a taxonomy.

    Attributes:
        action: `add`, `remove`, `rename` or `move`.
        path: the path of the label in the old taxonomy; empty for an added one.
        new_path: the path in the new taxonomy; empty for a removed one.
        certain: False for a rename that is inferred from equal parents and equal children.
    """

    action: Literal["add", "remove", "rename", "move"]
    path: list[str] = field(default_factory=list)
    new_path: list[str] = field(default_factory=list)
    certain: bool = True


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
        numbers = {action: self.number(action) for action in ("add", "remove", "rename", "move")}
        changes = [asdict(change) for change in self.changes]
        return {"old_labels": self.old_labels, "new_labels": self.new_labels, **numbers, "changes": changes}

    def to_csv(self, path: str | os.PathLike, separator: str = SEPARATOR) -> None:
        """Writes one row per change: action, path, new_path and certain."""
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, _FIELDS)
            writer.writeheader()
            for change in self.changes:
                paths = {name: separator.join(getattr(change, name)) for name in ("path", "new_path")}
                writer.writerow({**asdict(change), **paths, "certain": "yes" if change.certain else "no"})

    def __str__(self) -> str:
        lines = [
            f"{self.old_labels:,} labels before and {self.new_labels:,} after: {self.number('add'):,} added, "
            f"{self.number('remove'):,} removed, {self.number('rename'):,} renamed, {self.number('move'):,} moved."
        ]
        for change in self.changes:
            old, new = SEPARATOR.join(change.path), SEPARATOR.join(change.new_path)
            shown = {"add": f"+ {new}", "remove": f"- {old}"}.get(change.action, f"{change.action} {old} -> {new}")
            lines.append(f"  {shown}{'' if change.certain else ' (probably)'}")
        return "\n".join(lines)


def diff_taxonomies(old: Taxonomy, new: Taxonomy) -> TaxonomyDiff:
    """Finds the labels that were added, removed, renamed or moved between two taxonomies.

    Labels are the same if they have the same path. Of the others, a name that is unique among the removed and among the
    added labels has moved. A removed and an added label below the same parent are a probable rename if they have equally
    named children, or if they are the only change below that parent. Labels below a renamed or moved one keep their places
    under it, and are not listed.

    Args:
        old, new: the two versions. In a DAG the first path of each label counts.
    """
    old_paths, new_paths = _paths(old), _paths(new)
    removed = [path for path in old_paths if path not in new_paths]
    added = [path for path in new_paths if path not in old_paths]
    renamed: dict[tuple[str, ...], tuple[str, ...]] = {}  # old path -> new path
    changes: list[Change] = []
    added_below: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for path in added:
        added_below[path[:-1]].append(path)
    left = set(added)
    for path in removed:  # from the top down
        above = renamed.get(path[:-1], path[:-1])
        kept = (*above, path[-1])
        if kept in left and above != path[:-1]:  # its parent was renamed or moved
            renamed[path] = kept
            left.discard(kept)
            continue
        candidates = [other for other in added_below[above] if other in left]
        same_children = [other for other in candidates if old_paths[path] and old_paths[path] == new_paths[other]]
        siblings = [other for other in removed if other[:-1] == path[:-1] and other not in renamed]
        is_only_change = (
            len(candidates) == 1 and len(siblings) == 1 and not (old_paths[path] or new_paths[candidates[0]])
        )
        if len(same_children) == 1 or is_only_change:
            other = (same_children or candidates)[0]
            renamed[path] = other
            left.discard(other)
            changes.append(Change("rename", list(path), list(other), certain=False))
    gone = [path for path in removed if path not in renamed]
    changes += _moves(gone, left, renamed)
    changes += [Change("remove", list(path)) for path in gone if path not in renamed]
    changes += [Change("add", [], list(path)) for path in added if path in left]
    return TaxonomyDiff(changes, old.num_labels, new.num_labels)


def _moves(
    gone: list[tuple[str, ...]], left: set[tuple[str, ...]], renamed: dict[tuple[str, ...], tuple[str, ...]]
) -> list[Change]:
    """Finds names that are once among the removed and once among the added labels. Marks them, and the labels below."""
    by_name: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for path in left:
        by_name[path[-1]].append(path)
    old_names: dict[str, int] = defaultdict(int)
    for path in gone:
        old_names[path[-1]] += 1
    changes = []
    for path in sorted(gone, key=len):
        above = renamed.get(path[:-1])
        if above is not None and (*above, path[-1]) in left:  # it went with its parent
            renamed[path] = (*above, path[-1])
        elif old_names[path[-1]] == 1 and len(by_name[path[-1]]) == 1 and by_name[path[-1]][0] in left:
            renamed[path] = by_name[path[-1]][0]
            changes.append(Change("move", list(path), list(renamed[path])))
        else:
            continue
        left.discard(renamed[path])
    return changes


def _paths(taxonomy: Taxonomy) -> dict[tuple[str, ...], frozenset[str]]:
    """Returns the first path of each label, from the top down, with the names of its children."""
    paths: list[tuple[str, ...]] = []
    for node, name in enumerate(taxonomy.names):
        parents = taxonomy.parent_lists[node]
        paths.append((*paths[parents[0]], name) if parents else (name,))
    children: dict[int, list[str]] = defaultdict(list)
    for parent, child in taxonomy.edges.tolist():
        children[parent].append(taxonomy.names[child])
    return {path: frozenset(children[node]) for node, path in enumerate(paths)}

"""Reads a table of changes of a taxonomy."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..node_names import split_path
from .tables import TableFile
from .taxonomy_diff import ACTIONS, Change
from .taxonomy_plan import MANUAL_ACTIONS

# Each field of a change, and the other names that its column may have.
_COLUMNS: Mapping[str, Sequence[str]] = {
    "action": ("change",),
    "path": ("label", "old_path", "old"),
    "new_path": ("new", "new_label"),
    "certain": (),
    "reason": (),
    "name": ("new_name",),
    "description": (),
}
_YES, _NO = ("", "yes", "true", "1"), ("no", "false", "0")


@dataclass
class ChangeTable:
    """Holds the changes of a file.

    Attributes:
        changes (`list[Change]`): the changes in the order of the rows.
        places (`list[str]`): the row of each change, for error messages.
        uncertain (`list[str]`): the rows that `hcal taxonomy diff` marked as only probable, and a person has not changed.
    """

    changes: list[Change] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    uncertain: list[str] = field(default_factory=list)


def read_changes(path: str | os.PathLike) -> ChangeTable:
    """Reads a table with one change per row, as `hcal taxonomy diff --out` writes it.

    Args:
        path: a table in any format of [`read_table`]. It needs the columns `action`, `path` and `new_path`, which may also
            be called `change`, `label` and `new`. The columns `certain`, `reason`, `name` and `description` are optional. A
            path is written `A > B > C`, or as a JSON list of its steps. Empty rows are skipped.

    Raises:
        ValueError: for a missing column, or an unknown action. The message names the row as a spreadsheet counts it.
    """
    path = Path(path)
    table = TableFile(path)
    columns = _find_columns(path, table.columns)
    result = ChangeTable()
    for number, row in enumerate(table.rows(list(columns.values())), start=1 if table.kind == "json lines" else 2):
        place = f"Row {number} of {path.name}"
        if row.problem:
            raise ValueError(f"{place}: {row.problem}")
        cells = {name: _text(cell) for name, cell in zip(columns, row.cells)}
        if not any(cells.values()):
            continue
        action = cells["action"].lower().replace(" ", "_")
        if action not in (*ACTIONS, *MANUAL_ACTIONS):
            raise ValueError(
                f"{place}: the action {cells['action']!r} is unknown. Use one of {', '.join((*ACTIONS, *MANUAL_ACTIONS))}."
            )
        certain = cells.get("certain", "").lower()
        if certain not in (*_YES, *_NO):
            raise ValueError(f"{place}: certain must be yes or no, got {cells['certain']!r}.")
        old, new = _steps(cells["path"]), _steps(cells.get("new_path", ""))
        if action == "add" and old and not new:
            old, new = [], old
        texts = {name: cells.get(name, "") for name in ("reason", "name", "description")}
        result.changes.append(Change(action, old, new, certain in _YES, **texts))  # type: ignore[arg-type]
        result.places.append(place)
        if certain in _NO:
            result.uncertain.append(place)
    return result


def _find_columns(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Returns the column of each field that the table has."""
    by_name = {column.strip().lower().replace(" ", "_"): column for column in columns}
    found: dict[str, str] = {}
    for name, others in _COLUMNS.items():
        column = next((by_name[other] for other in (name, *others) if other in by_name), None)
        if column is not None:
            found[name] = column
    if missing := [name for name in ("action", "path") if name not in found]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}. A table of changes has the columns action, path and new_path, as hcal "
            f"taxonomy diff --out writes them. The columns are {', '.join(map(repr, columns))}."
        )
    return found


def _text(cell: object) -> str:
    if isinstance(cell, list):
        return json.dumps(cell, ensure_ascii=False) if cell else ""
    return "" if cell is None else str(cell).strip()


def _steps(cell: str) -> list[str]:
    """Reads a path: the steps of `A > B > C`, or a JSON list of steps."""
    if cell.startswith("["):
        try:
            steps = json.loads(cell)
        except ValueError:
            steps = None
        if isinstance(steps, list) and all(isinstance(step, str) for step in steps):
            return steps
    return split_path(cell) if cell else []


__all__ = ["ChangeTable", "read_changes"]

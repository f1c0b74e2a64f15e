"""Reads the labels of a row in the forms that tables use."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..node_names import SEPARATOR, split_path


@dataclass
class LabelReader:
    """Reads the labels of a row in the forms that tables use.

    Args:
        columns (`str` or `Sequence[str]`): one column, or one column per level from the root down. With one column per
            level, empty cells at the end mean that the path ends earlier.
        separator (`str`): separates the steps of a path string ("A > B > C"). White space around it is ignored.
        delimiter (`str`, *optional*): separates several labels in one string ("A > B; C > D" with ";").
        missing_is_empty (`bool`): reads a missing value in a single column as a document without labels.
        class_names (`dict`, *optional*): the names of the integers in columns that are `ClassLabel`s.

    Raises:
        ValueError: if there are no columns, or if `delimiter` is given with one column per level, where each cell is one
            name.
    """

    columns: str | Sequence[str] = "labels"
    separator: str = SEPARATOR
    delimiter: str | None = None
    missing_is_empty: bool = False
    class_names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.column_list:
            raise ValueError("labels must name a column, or one column per level, but the list of columns is empty.")
        if self.delimiter is not None and not isinstance(self.columns, str):
            raise ValueError(
                f"delimiter={self.delimiter!r} is for one column with several labels per cell. With one column per level "
                f"({list(self.columns)}) each cell is one name: leave it out."
            )

    @property
    def column_list(self) -> list[str]:
        return [self.columns] if isinstance(self.columns, str) else list(self.columns)

    def __call__(self, cells: Sequence[Any], known: Iterable[str] = ()) -> Any:
        """Returns the labels of one row in a form that [`Taxonomy.encode`] accepts.

        Args:
            cells: the row's values in the order of `columns`.
            known: labels that are not split although they contain the separator.

        Raises:
            ValueError: if a label is missing, or if a level is empty while a deeper one is not.
        """
        if not isinstance(self.columns, str):
            return self._read_levels(cells)
        labels = cells[0]
        if _is_missing(labels):
            if self.missing_is_empty:
                return []
            raise ValueError(f"no labels in column {self.columns!r}")
        if isinstance(labels, int | float | np.number):
            labels = _as_name(labels, self.class_names.get(self.columns))
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(self.delimiter)] if self.delimiter else [labels]
            labels = [label for label in labels if label]
        if isinstance(labels, dict) or not isinstance(labels, Iterable):
            raise ValueError(f"labels must be a string or a list, got {labels!r}")
        return [self._split(label, known) if isinstance(label, str) else label for label in labels]

    def _split(self, label: str, known: Iterable[str]) -> str | list[str]:
        if self.separator.strip() not in label or label in known:
            return label
        steps = split_path(label, self.separator)
        if "" in steps:
            raise ValueError(f"{label!r} has an empty step between its separators ({self.separator.strip()!r})")
        return steps

    def _read_levels(self, cells: Sequence[Any]) -> list[list[str]]:
        path = [
            None if _is_missing(cell) else _as_name(cell, self.class_names.get(column)) or None
            for column, cell in zip(self.columns, cells)
        ]
        while path and path[-1] is None:
            path.pop()
        if None in path:
            empty, deeper = self.columns[path.index(None)], self.columns[len(path) - 1]
            raise ValueError(f"column {empty!r} is empty, but the deeper {deeper!r} is not")
        return [[step for step in path if step]] if path else []


def as_paths(labels: list[Any], column: Any) -> list[tuple[str, ...]]:
    """Returns the labels of one row as paths from a root. A single name is a path of one step.

    Args:
        labels: the labels of one row, as [`LabelReader`] returns them.
        column: the column that they come from, for the error message.

    Raises:
        ValueError: if the labels are a list of names, which could be one path or several labels.
    """
    if len(labels) > 1 and all(isinstance(label, str) for label in labels):
        raise ValueError(
            f"{labels!r} does not show the hierarchy: are these the steps of one path, or several labels? Give paths, "
            f"[{labels!r}] for one path: dataset.map(lambda row: {{{column!r}: [row[{column!r}]]}})"
        )
    return [(label,) if isinstance(label, str) else tuple(label) for label in labels]


def _as_name(cell: Any, class_names: list[str] | None = None) -> str:
    """Returns a cell as a name. Numbers, into which spreadsheets turn codes, are written as they were typed."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, int | float | np.number) and not isinstance(cell, bool) and float(cell).is_integer():
        return class_names[int(cell)] if class_names else str(int(cell))  # an empty cell turns a column's 1 into 1.0
    raise ValueError(f"a label must be a string or a whole number, got {cell!r} of type {type(cell).__name__}")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))

"""Reads the labels of a row in the forms that tables use."""

import ast
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..node_names import SEPARATOR, split_path
from .annotation_exports import unwrap_results
from .rows import column_names

# Two quoted items of an array without a comma between them, as numpy writes them: ['A' 'B'].
_NO_COMMA = re.compile(r"""(['"])\s+(?=['"])""")


@dataclass
class LabelReader:
    """Reads the labels of a row in the forms that tables use.

    A cell that holds a list as text, in JSON or as Python writes it ("['A', 'B']"), is read like that list. A flat list
    holds names, a nested list paths.

    Args:
        columns (`str` or `Sequence[str]`): one column, or one column per level from the root down. With one column per
            level, empty cells at the end mean that the path ends earlier, and so does None in the lists of several paths:
            ["A", "B"] and ["A1", None] are the paths A > A1 and B.
        separator (`str`): separates the steps of a path string ("A > B > C"). White space around it is ignored.
        delimiter (`str`, *optional*): separates several labels in one string ("A > B; C > D" with ";"). With one column
            per level, the labels of a row's cells are paired in their order; a cell with a single label belongs to all.
        empty_means_none (`bool`): reads a missing value or an empty cell as a document that has no label, and not as one
            whose labels are unknown.
        class_names (`dict`, *optional*): the names of the integers in columns of `ClassLabel`s.

    Raises:
        ValueError: if there are no columns, if one is named twice, or if `separator` or `delimiter` is empty.
    """

    columns: str | Sequence[str] = "labels"
    separator: str = SEPARATOR
    delimiter: str | None = None
    empty_means_none: bool = False
    class_names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        column_names(self.columns, "labels")
        for name in ("separator", "delimiter"):
            value = getattr(self, name)
            if value is not None and not value.strip(" "):
                raise ValueError(f'{name} must be a visible text such as ">" or ";", got {value!r}.')

    @property
    def column_list(self) -> list[str]:
        return [self.columns] if isinstance(self.columns, str) else list(self.columns)

    def __call__(self, cells: Sequence[Any], known: Iterable[str] = ()) -> list[Any] | None:
        """Returns the labels of one row in a form that [`Taxonomy.encode`] accepts, or None for an unlabelled row.

        A row is unlabelled if its cells are missing, blank or the `ClassLabel` -1. An empty list is a document that has no
        label.

        Args:
            cells: the row's values in the order of `columns`.
            known: labels that are not split although they contain the separator.

        Raises:
            ValueError: if the cells cannot be read as labels, or if a level is empty while a deeper one is not.
        """
        if not isinstance(self.columns, str):
            return self._read_levels(cells)
        labels = self._read_list(cells[0], self.class_names.get(self.columns), known)
        if labels is None:
            return [] if self.empty_means_none else None
        return [self._split(label, known) if isinstance(label, str) else label for label in labels]

    def _read_list(
        self, cell: Any, class_names: list[str] | None, known: Iterable[str] = (), is_level: bool = False
    ) -> list[Any] | None:
        """Returns the labels of a cell, None if they are unknown. Path strings are not yet split.

        In the cell of a level, a missing label of a list means that a path has ended, and is returned as None.
        """
        if is_missing(cell):
            return None
        if isinstance(cell, np.ndarray):
            cell = cell.tolist()
        if isinstance(cell, str) and cell not in known:
            listed = parse_list(cell)
            if listed is None:
                parts = [cell.strip()] if self.delimiter is None else [p.strip() for p in cell.split(self.delimiter)]
                return [part for part in parts if part] or None
            cell = listed
        if isinstance(cell, str | int | float | np.number):
            name = as_name(cell, class_names)
            return None if name is None else [name]
        if isinstance(cell, dict) or not isinstance(cell, Iterable):
            raise ValueError(f"labels must be a string or a list, got {cell!r}")
        return [None if is_level and is_missing(label) else self._name_or_path(label, class_names) for label in cell]

    @staticmethod
    def _name_or_path(label: Any, class_names: list[str] | None) -> Any:
        if isinstance(label, list | tuple | np.ndarray):
            return [as_name(step, class_names) or "" for step in label]
        name = as_name(label, class_names) if not is_missing(label) else None
        if name is None:
            raise ValueError(f"a list of labels contains {label!r}, which is not a label")
        return name

    def _split(self, label: str, known: Iterable[str]) -> str | list[str]:
        if self.separator.strip() not in label or label in known:
            return label
        steps = split_path(label, self.separator)
        if "" in steps:
            raise ValueError(f"{label!r} has an empty step between its separators ({self.separator.strip()!r})")
        return steps

    def _read_levels(self, cells: Sequence[Any]) -> list[Any] | None:
        read = [
            self._read_list(cell, self.class_names.get(column), is_level=True)
            for column, cell in zip(self.columns, cells)
        ]
        levels = [names or [] for names in read]
        while levels and not any(levels[-1]):
            levels.pop()
        if not levels:
            return [] if self.empty_means_none or any(names == [] for names in read) else None
        for column, names in zip(self.columns, levels):
            if not names:
                raise ValueError(
                    f"column {column!r} is empty, but the deeper {self.columns[len(levels) - 1]!r} is not"
                )
        count = max(map(len, levels))
        if any(len(names) not in (1, count) for names in levels):
            counts = ", ".join(f"{column!r}: {len(names)}" for column, names in zip(self.columns, levels))
            raise ValueError(
                f"the numbers of labels in the columns do not match ({counts}): each column must have one label, or as "
                "many as the others"
            )
        paths = [[names[i if len(names) > 1 else 0] for names in levels] for i in range(count)]
        return [list(path) for path in dict.fromkeys(map(self._without_end, paths))]

    def _without_end(self, steps: list[str | None]) -> tuple[str, ...]:
        """Returns the steps of a path before the first None.

        Raises:
            ValueError: if a step follows a None, or if there is no step.
        """
        path = tuple(step for step in steps if step is not None)
        if not path or None in steps[: len(path)]:
            empty = steps.index(None)
            raise ValueError(
                f"a path in the columns has no label in {self.columns[empty]!r}: its levels are {steps!r}"
            )
        return path


def parse_list(cell: str) -> list[Any] | None:
    """Returns the list that a cell holds as text: in JSON, as Python writes it, or as Label Studio exports it.

    Returns None if it holds none.
    """
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")) and not text.startswith('{"choices"'):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        try:
            values = ast.literal_eval(_NO_COMMA.sub(r"\1, ", text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    values = unwrap_results(values)
    return values if isinstance(values, list) else None


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
            f"[{labels!r}] for one path: dataset.map(lambda row: {{{column!r}: [row[{column!r}]]}}). For several labels, "
            "give the hierarchy as a taxonomy."
        )
    return [(label,) if isinstance(label, str) else tuple(label) for label in labels]


def as_name(cell: Any, class_names: list[str] | None = None) -> str | None:
    """Returns a cell as a name, or None for the `ClassLabel` -1, which means unlabelled by convention.

    Whole numbers, into which spreadsheets turn codes, are written without a decimal point.

    Raises:
        ValueError: for another type, or a number without a class name.
    """
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, int | float | np.number) and not isinstance(cell, bool) and float(cell).is_integer():
        if class_names is None:
            return str(int(cell))  # an empty cell turns a column's 1 into 1.0
        if int(cell) == -1:
            return None
        if not 0 <= cell < len(class_names):
            raise ValueError(f"{cell!r} is not a class: the column has the classes 0 to {len(class_names) - 1}")
        return class_names[int(cell)]
    raise ValueError(f"a label must be a string or a whole number, got {cell!r} of type {type(cell).__name__}")


def is_missing(value: Any) -> bool:
    """Returns whether a cell is None, NaN or a blank string."""
    return (
        value is None
        or (isinstance(value, float) and np.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )

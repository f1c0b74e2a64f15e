"""Finds cells that seem to hold several labels, although no delimiter was given."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..node_names import SEPARATOR
from .labels import is_missing

# Delimiters that are part of a name more rarely than of a list.
_STRONG = (";", "|", "\n")
_WEAK = (",", "/")
# Different cells that are looked at, per column.
_MOST_CELLS = 100_000


@dataclass
class SuspectedDelimiter:
    """Describes cells that seem to hold several labels.

    Attributes:
        delimiter: the text that seems to separate them.
        column: the column.
        cells: the number of different cells.
        rows: the number of rows.
        examples: up to three cells.
    """

    delimiter: str
    column: str
    cells: int
    rows: int
    examples: list[str]

    def __str__(self) -> str:
        shown = ", ".join(map(repr, self.examples))
        return f"{self.rows:,} rows of column {self.column!r} seem to hold several labels, such as {shown}"

    @property
    def fix(self) -> str:
        """The option that reads the cells as several labels."""
        return f"Read them as several labels with --delimiter {self.delimiter!r} (in Python delimiter={self.delimiter!r})."


class CellCounter:
    """Counts the different texts of label columns, in bounded memory.

    Args:
        columns: the label columns.
    """

    def __init__(self, columns: Sequence[str]):
        self.counts: dict[str, Counter[str]] = {column: Counter() for column in columns}

    def add(self, cells: Iterable[Any]) -> None:
        """Counts the cells of one row, in the order of the columns. Lists and missing cells are ignored."""
        for counts, cell in zip(self.counts.values(), cells):
            if isinstance(cell, str) and (cell in counts or len(counts) < _MOST_CELLS) and not is_missing(cell):
                counts[cell.strip()] += 1

    def suspected(self, separator: str = SEPARATOR) -> SuspectedDelimiter | None:
        """Returns the most frequent suspected delimiter of all columns, or None."""
        found = [
            suspect
            for column, counts in self.counts.items()
            for delimiter in (*_STRONG, *_WEAK)
            if delimiter != separator.strip() and (suspect := _suspect(column, counts, delimiter, separator))
        ]
        return max(found, key=lambda suspect: suspect.rows, default=None)


def _suspect(column: str, counts: Mapping[str, int], delimiter: str, separator: str) -> SuspectedDelimiter | None:
    """Looks for one delimiter in one column.

    A cell is suspect if all parts between the delimiters are cells themselves, or paths if the column holds paths. A part
    next to a delimiter that is rare in names also counts if it is in another such cell.
    """
    split = {
        cell: parts
        for cell in counts
        if delimiter in cell and len(parts := [part.strip() for part in cell.split(delimiter) if part.strip()]) > 1
    }
    if not split:
        return None
    alone = counts.keys() - split.keys()
    has_paths = sum(separator.strip() in cell for cell in counts) > len(counts) / 2
    repeated = Counter(part for parts in split.values() for part in set(parts))

    def is_label(part: str) -> bool:
        if part in alone:
            return True
        return delimiter in _STRONG and (repeated[part] > 1 or (has_paths and separator.strip() in part))

    suspects = [cell for cell, parts in split.items() if all(map(is_label, parts))]
    if not suspects:
        return None
    return SuspectedDelimiter(delimiter, column, len(suspects), sum(counts[cell] for cell in suspects), suspects[:3])

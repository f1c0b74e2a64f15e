"""Iterates over the splits and rows of data sets, and reports rows that cannot be encoded."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, IterableDatasetDict, LargeList, List

AnyDataset: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict
# (split, index of the row, problem)
BadRow: TypeAlias = tuple[str, int, str]


class BadRowsError(ValueError):
    """Lists the rows that cannot be encoded.

    Attributes:
        rows (`list[tuple[str, int, str]]`): (split, index, problem) of every bad row.
    """

    def __init__(self, rows: list[BadRow]):
        self.rows = rows
        listed = "\n".join(f"  {split}[{index}]: {problem}" for split, index, problem in rows[:10])
        more = f"\n  and {len(rows) - 10} more" if len(rows) > 10 else ""
        super().__init__(
            f"{len(rows)} row(s) cannot be encoded:\n{listed}{more}\nFix them, or leave them out with "
            'on_bad_row="drop".'
        )


def iterate_splits(dataset: AnyDataset) -> Iterator[tuple[str, Any]]:
    """Yields (name, table) for each split. A single table is one split.

    Raises:
        ValueError: if `dataset` is not a data set of the `datasets` library.
    """
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        yield from dataset.items()
    elif isinstance(dataset, Dataset | IterableDataset):
        yield str(dataset.split or "dataset"), dataset
    else:
        raise ValueError(
            f"Expected a data set of the datasets library, got {type(dataset).__name__}: use "
            "datasets.Dataset.from_list(rows), .from_pandas(frame) or load_dataset(...)."
        )


def iterate_rows(split: Dataset | IterableDataset, columns: list[str]) -> Iterator[tuple]:
    """Yields the cells of each row in the order of `columns`."""
    check_columns(split, columns, str(split.split or "dataset"))
    for batch in split.select_columns(columns).iter(batch_size=1000):
        yield from zip(*(batch[name] for name in columns))


def check_columns(split: Dataset | IterableDataset, columns: list[str], split_name: str) -> None:
    """Raises a ValueError if the split lacks one of the columns. A stream may not know its columns."""
    existing = split.column_names
    missing = [name for name in columns if existing is not None and name not in existing]
    if missing:
        raise ValueError(f"{split_name} has no column {missing[0]!r}; its columns are {existing}.")


def class_names(split: Any, columns: list[str]) -> dict[str, list[str]]:
    """Returns the class names of those columns that hold `ClassLabel`s, also in lists and lists of lists."""
    features = split.features or {}
    names = {}
    for column in columns:
        feature = features.get(column)
        while isinstance(feature, List | LargeList | list):  # `Sequence(ClassLabel)` is a List
            feature = feature[0] if isinstance(feature, list) else feature.feature
        if isinstance(feature, ClassLabel):
            names[column] = feature.names
    return names


def column_names(columns: Any, what: str) -> list[str]:
    """Returns the names of one or several columns as a list.

    Raises:
        ValueError: if they are not texts, if there are none, or if one is named twice.
    """
    names = [columns] if isinstance(columns, str) else columns
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what} must be the name of a column, or a list of names, got {columns!r}.")
    if not names:
        raise ValueError(f"{what} must name a column, or one column per level, but the list of columns is empty.")
    if len(set(names)) != len(names):
        raise ValueError(f"{what} names a column twice: {list(names)}.")
    return list(names)

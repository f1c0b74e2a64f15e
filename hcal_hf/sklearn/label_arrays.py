"""Labels as scikit-learn and hiclass write them: arrays of one, two or three dimensions, or lists of paths."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from ..data.labels import LabelReader
from ..taxonomy import Taxonomy

Path = tuple[str, ...]
SEQUENCE = (list, tuple, np.ndarray)


@dataclass
class LabelFormat:
    """How a `y` writes its labels.

    Attributes:
        ndim (`int`): 1 (a label a document), 2 (a path) or 3 (paths).
        width, most_paths (`int`): levels of its widest row, and paths of its longest document.
        dtype (`np.dtype`): of the array; object for lists.
        numbers (`dict`): for the paths of names that end in a number, the number.
    """

    ndim: int
    width: int = 1
    most_paths: int = 1
    dtype: np.dtype = np.dtype(object)  # noqa: RUF009 - it cannot be changed
    numbers: dict[Path, Any] = field(default_factory=dict)


@dataclass
class LabelTable:
    """The labels of N documents: an array [N] for 1-d labels, else a tuple of paths for each."""

    format: LabelFormat
    documents: Any


def read_labels(y: Any) -> LabelTable:
    """Reads labels in the formats of [`HcalClassifier`].

    Raises:
        ValueError: for another number of dimensions, rows that are no paths (listed by index), numbers that are not whole,
            or a matrix of 0 and 1 with a column a label.
    """
    if hasattr(y, "iloc") and y.ndim == 2:
        y = y.to_numpy(dtype=object, na_value=None)
    elif not isinstance(y, SEQUENCE):
        y = np.asarray(y)
    ndim = _nesting(y)
    if ndim not in (1, 2, 3):
        raise ValueError(
            f"y should be a 1d array of labels, a 2d array of paths [N, depth] or a 3d array [N, paths, depth], got {ndim} "
            "dimension(s)."
        )
    if ndim == 1:
        return LabelTable(LabelFormat(1), _flat_labels(y))
    is_array = isinstance(y, np.ndarray)
    form = LabelFormat(ndim, dtype=y.dtype if is_array else np.dtype(object))
    rows = y.tolist() if is_array else list(y)
    documents = []
    for row, given in enumerate(rows):
        paths = tuple(given) if ndim == 3 and isinstance(given, SEQUENCE) else (given,)
        if flat := [path for path in paths if not isinstance(path, SEQUENCE)]:
            raise bad_rows("y", [(row, f"a path must be a sequence of names, got {flat[0]!r} in {given!r}")])
        documents.append(paths)
    form.most_paths = max(map(len, documents), default=1)
    form.width = max((len(path) for paths in documents for path in paths), default=1)
    if ndim == 2 and form.width > 1 and all(_is_bit(cell) for (path,) in documents for cell in path):
        raise ValueError(
            f"y is a matrix of 0 and 1 [N, {form.width}], but the columns of a 2-d y are levels, from the root down: give "
            "lists of paths for documents with several labels, or names as strings."
        )
    reader = LabelReader([f"level {level}" for level in range(form.width)])
    known: dict[Any, Path] = {}
    found, bad = [], []
    for row, paths in enumerate(documents):
        try:
            read = (_read_path(path, reader, known, form.numbers) for path in paths)
            found.append(tuple(dict.fromkeys(path for path in read if path)))
        except (ValueError, TypeError) as problem:
            bad.append((row, str(problem)))
    if bad:
        raise bad_rows("y", bad)
    return LabelTable(form, found)


def _read_path(path: Sequence[Any], reader: LabelReader, known: dict[Any, Path], numbers_of: dict[Path, Any]) -> Path:
    key = tuple(path)
    if key not in known:
        names = reader(key)
        known[key] = tuple(names[0]) if names else ()
        for level, cell in enumerate(key[: len(known[key])]):
            if not isinstance(cell, str):
                numbers_of.setdefault(known[key][: level + 1], cell)
    return known[key]


def _flat_labels(y: Any) -> np.ndarray:
    labels = check_array(column_or_1d(y), dtype=None, ensure_2d=False, input_name="y")
    if labels.dtype == object:
        bad = [
            (row, f"Unknown label type: {v!r} among labels of type object, which must be strings")
            for row, v in enumerate(labels)
            if not isinstance(v, str)
        ]
        if bad:
            raise bad_rows("y", bad)
    check_classification_targets(labels)
    return labels


def _nesting(item: Any) -> int:
    """The number of dimensions of an array, or of nested lists at their deepest."""
    if isinstance(item, np.ndarray) and item.dtype != object:
        return item.ndim
    if not isinstance(item, SEQUENCE):
        return 0
    if isinstance(item, np.ndarray) and item.ndim != 1:
        return item.ndim
    return 1 + max(map(_nesting, item), default=0)


def _is_bit(cell: Any) -> bool:
    return isinstance(cell, numbers.Number | np.bool_) and cell in (0, 1)


def encoded_paths(documents: Sequence[tuple[Path, ...]], taxonomy: Taxonomy) -> list[list[int]]:
    """The sorted nodes of documents given as paths, with their ancestors."""
    known: dict[tuple[Path, ...], list[int]] = {}
    bad = []
    for row, paths in enumerate(documents):
        try:
            if paths not in known:
                known[paths] = taxonomy.encode([list(path) for path in paths]).tolist()
        except ValueError as problem:
            bad.append((row, str(problem)))
    if bad:
        raise bad_rows("y", bad)
    return [known[paths] for paths in documents]


def bad_rows(name: str, rows: Sequence[tuple[int, str]]) -> ValueError:
    shown = "\n".join(f"  {name}[{row}]: {problem}" for row, problem in rows[:10])
    more = f"\n  and {len(rows) - 10} more" if len(rows) > 10 else ""
    return ValueError(f"{len(rows)} row(s) of {name} cannot be used:\n{shown}{more}")

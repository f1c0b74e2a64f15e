"""Reads and writes labels as in scikit-learn and hiclass: arrays of one, two or three dimensions, or lists of paths."""

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
from .bad_rows import bad_rows

Path = tuple[str, ...]
SEQUENCE = (list, tuple, np.ndarray)


@dataclass
class LabelFormat:
    """Describes the format of a `y`.

    Attributes:
        ndim (`int`): 1 (one label per document), 2 (one path) or 3 (any number of paths).
        width (`int`): the number of levels of the longest path.
        most_paths (`int`): the largest number of paths of a document.
        dtype (`np.dtype`): the type of the array; object for lists.
        numbers (`dict`): maps the path to each node with a number as its name to that number.
    """

    ndim: int
    width: int = 1
    most_paths: int = 1
    dtype: np.dtype = np.dtype(object)  # noqa: RUF009 - it is immutable
    numbers: dict[Path, Any] = field(default_factory=dict)


@dataclass
class LabelTable:
    """Holds the labels of N documents: an array [N] for 1-d labels, else a tuple of paths for each document."""

    format: LabelFormat
    documents: Any


def read_labels(y: Any) -> LabelTable:
    """Reads labels in the formats of [`HcalClassifier`].

    Raises:
        ValueError: if y has another number of dimensions, rows that are not paths (the message lists their indices),
            numbers that are not whole, or is a matrix of 0 and 1 with one column per label.
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
        return LabelTable(LabelFormat(1), _read_flat_labels(y))
    is_array = isinstance(y, np.ndarray)
    label_format = LabelFormat(ndim, dtype=y.dtype if is_array else np.dtype(object))
    rows = []
    for index, row in enumerate(y.tolist() if is_array else y):
        paths = tuple(row) if ndim == 3 and isinstance(row, SEQUENCE) else (row,)
        if names := [path for path in paths if not isinstance(path, SEQUENCE)]:
            raise bad_rows("y", [(index, f"a path must be a sequence of names, got {names[0]!r} in {row!r}")])
        rows.append(paths)
    label_format.most_paths = max(map(len, rows), default=1)
    label_format.width = max((len(path) for paths in rows for path in paths), default=1)
    if ndim == 2 and label_format.width > 1 and all(_is_bit(cell) for (path,) in rows for cell in path):
        raise ValueError(
            f"y is a matrix of 0 and 1 [N, {label_format.width}], but the columns of a 2-d y are levels, from the root "
            "down: give lists of paths for documents with several labels, or names as strings."
        )
    reader = _PathReader(label_format)
    documents, bad = [], []
    for index, paths in enumerate(rows):
        try:
            documents.append(tuple(dict.fromkeys(path for path in map(reader.read, paths) if path)))
        except (ValueError, TypeError) as problem:
            bad.append((index, str(problem)))
    if bad:
        raise bad_rows("y", bad)
    return LabelTable(label_format, documents)


class _PathReader:
    """Reads paths as tuples of names, each distinct path once, and records numbers in the format."""

    def __init__(self, label_format: LabelFormat):
        self.reader = LabelReader([f"level {level}" for level in range(label_format.width)])
        self.numbers = label_format.numbers
        self.cache: dict[Any, Path] = {}

    def read(self, cells: Sequence[Any]) -> Path:
        """Reads one path; () if all its cells are empty."""
        key = tuple(cells)
        if key not in self.cache:
            paths = self.reader(key)
            path = self.cache[key] = tuple(paths[0]) if paths else ()
            for level, cell in enumerate(key[: len(path)]):
                if not isinstance(cell, str):
                    self.numbers.setdefault(path[: level + 1], cell)
        return self.cache[key]


def _read_flat_labels(y: Any) -> np.ndarray:
    """Checks one label per document."""
    labels = check_array(column_or_1d(y), dtype=None, ensure_2d=False, input_name="y")
    if labels.dtype == object:
        bad = [
            (row, f"Unknown label type: {label!r} among labels of type object, which must be strings")
            for row, label in enumerate(labels)
            if not isinstance(label, str)
        ]
        if bad:
            raise bad_rows("y", bad)
    check_classification_targets(labels)
    return labels


def _nesting(item: Any) -> int:
    """Counts the dimensions of an array, or the deepest nesting of lists."""
    if isinstance(item, np.ndarray) and item.dtype != object:
        return item.ndim
    if not isinstance(item, SEQUENCE):
        return 0
    if isinstance(item, np.ndarray) and item.ndim != 1:
        return item.ndim
    return 1 + max(map(_nesting, item), default=0)


def _is_bit(cell: Any) -> bool:
    return isinstance(cell, numbers.Number | np.bool_) and cell in (0, 1)


def encode_paths(documents: Sequence[tuple[Path, ...]], taxonomy: Taxonomy) -> list[list[int] | ValueError]:
    """Encodes the paths of each document as sorted nodes with their ancestors, or as the error if it has none.

    Each distinct tuple of paths is encoded once.
    """
    encoded: dict[tuple[Path, ...], list[int] | ValueError] = {}
    for paths in dict.fromkeys(documents):
        try:
            encoded[paths] = taxonomy.encode([list(path) for path in paths]).tolist()
        except ValueError as problem:
            encoded[paths] = problem
    return [encoded[paths] for paths in documents]


def end_nodes(label_sets: np.ndarray, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nodes without a child in the same set. Returns their documents [n] and nodes [n], in this order."""
    parents, children = taxonomy.edges.T
    documents, edges = label_sets[:, children].nonzero()
    is_inner = np.zeros_like(label_sets)
    is_inner[documents, parents[edges]] = True
    return (label_sets & ~is_inner).nonzero()


def write_paths(label_sets: np.ndarray, taxonomy: Taxonomy, label_format: LabelFormat, one_path: bool) -> np.ndarray:
    """Writes label sets as paths, padded with "".

    Args:
        label_sets: bool [N, L], with all ancestors.
        taxonomy: the hierarchy.
        label_format: the format of the `y` in `fit`, with its numbers and its least size.
        one_path: whether to write [N, depth] instead of [N, paths, depth].
    """
    width = max(label_format.width, len(taxonomy.levels))
    empty = [""] * width

    def write(path: list[str]) -> list[Any]:
        cells = [label_format.numbers.get(tuple(path[: k + 1]), name) for k, name in enumerate(path)]
        return cells + empty[len(path) :]

    documents: list[list[list[Any]]] = [[] for _ in label_sets]
    written: dict[int, list[list[Any]]] = {}  # several paths per node in a DAG
    for document, node in zip(*(indices.tolist() for indices in end_nodes(label_sets, taxonomy))):
        if node not in written:
            written[node] = [write(path) for path in taxonomy.paths(node)]
        documents[document] += written[node]
    if one_path:
        rows: list[Any] = [paths[0] if paths else empty for paths in documents]
        shape: tuple[int, ...] = (len(rows), width)
    else:
        most_paths = max([1, label_format.most_paths, *map(len, documents)])
        rows = [paths + [empty] * (most_paths - len(paths)) for paths in documents]
        shape = (len(rows), most_paths, width)
    array = np.array(rows, dtype=object).reshape(shape)
    is_full = label_format.dtype.kind in "iuf" and not (array == "").any()
    return array.astype(label_format.dtype) if is_full else array

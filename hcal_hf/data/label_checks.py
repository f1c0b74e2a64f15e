"""Checks encoded labels against the `label_mode` and `partial_paths` of a model."""

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..taxonomy import SEPARATOR, Taxonomy
from .rows import BadRowsError


def label_column(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Reads the `labels` column of an encoded table.

    Returns:
        the number of labels in each row [N], and the labels of all rows, concatenated.

    Raises:
        ValueError: if a row has no list of whole numbers.
    """
    # Formatting a shuffled table copies all its columns, so the others are left out first.
    column: Any = dataset.select_columns("labels").with_format("arrow")[:]["labels"]
    lists = column.combine_chunks()
    if lists.null_count:
        row = int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(
            f"Training row {row} has no labels (None): encode the table with encode_dataset, which leaves it out."
        )
    if not is_list(lists.type) or not (pa.types.is_integer(lists.type.value_type) or not len(lists.flatten())):
        example = dataset[0]["labels"] if len(dataset) else None
        raise ValueError(
            f"labels must be lists of node indices, but row 0 has {example!r}: encode the table with encode_dataset."
        )
    nodes = lists.flatten()
    if not pa.types.is_integer(lists.type.value_type):  # empty lists have no type
        return lists.value_lengths().to_numpy(), np.zeros(0, dtype=np.int64)
    return lists.value_lengths().to_numpy(), nodes.to_numpy(zero_copy_only=False).astype(np.int64)


def is_list(kind: pa.DataType) -> bool:
    """Returns whether a column of this type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def check_encoded(dataset: Any, taxonomy: Taxonomy, label_mode: str, partial_paths: bool) -> None:
    """Checks the `labels` column of an encoded table against the labels that a model can predict.

    Raises:
        BadRowsError: if rows are not one path each (single_path), or have paths that end at inner nodes (without
            `partial_paths`).
        ValueError: if the labels are not sorted, ancestor-complete node indices of the taxonomy.
    """
    sizes, all_nodes = label_column(dataset)
    _check_nodes(sizes, all_nodes, taxonomy)
    suspects = find_misfits(sizes, all_nodes, taxonomy, label_mode, partial_paths)
    split_name, bad_rows = str(getattr(dataset, "split", None) or "dataset"), []
    for row in np.flatnonzero(suspects).tolist():
        nodes = np.asarray(dataset[row]["labels"], dtype=np.int64)
        if problem := describe_misfit(nodes, taxonomy, label_mode, partial_paths):
            bad_rows.append((split_name, row, problem))
    if bad_rows:
        raise BadRowsError(bad_rows)


def _check_nodes(sizes: np.ndarray, nodes: np.ndarray, taxonomy: Taxonomy) -> None:
    """Raises a ValueError unless all rows hold sorted, ancestor-complete node indices of the taxonomy."""
    outside = (nodes < 0) | (nodes >= taxonomy.num_labels)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    if outside.any():
        raise ValueError(
            f"labels must be node indices from 0 to {taxonomy.num_labels - 1}, got {nodes[outside][0]} in row "
            f"{rows[outside][0]}: encode the table with encode_dataset and the taxonomy of the model."
        )
    keys = rows * taxonomy.num_labels + nodes
    wrong = np.concatenate([keys[1:][np.diff(keys) <= 0], _without_parents(rows, nodes, taxonomy)])
    if len(wrong):
        row = int(wrong.min() // taxonomy.num_labels)
        raise ValueError(
            f"labels must be sorted and hold each ancestor once, but row {row} has {nodes[rows == row].tolist()}: encode "
            "the table with encode_dataset."
        )


def _without_parents(rows: np.ndarray, nodes: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns row * L + node of the nodes of which a parent is missing in their row."""
    keys = rows * taxonomy.num_labels + nodes
    owners, parents = taxonomy.parents_of(nodes)
    missing = ~np.isin(rows[owners] * taxonomy.num_labels + parents, keys)
    return keys[owners[missing]]


def find_misfits(
    sizes: np.ndarray, nodes: np.ndarray, taxonomy: Taxonomy, label_mode: str | None, partial_paths: bool
) -> np.ndarray:
    """Finds the rows that are not one path (single_path), or that end at inner nodes (without `partial_paths`).

    Args:
        sizes: the number of labels in each row [N].
        nodes: the labels of all rows, concatenated; sorted and complete within a row.

    Returns:
        bool [N].
    """
    rows = np.repeat(np.arange(len(sizes)), sizes)
    suspects = np.zeros(len(sizes), dtype=bool)
    if label_mode == "single_path":
        position = np.arange(len(nodes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        suspects |= sizes == 0
        suspects[rows[taxonomy.depths[nodes] != position]] = True
    if not partial_paths:
        # A node is inner in its row if the row contains a child of it.
        owners, parents = taxonomy.parents_of(nodes)
        continued = np.isin(rows * len(taxonomy) + nodes, rows[owners] * len(taxonomy) + parents)
        suspects[rows[~continued & ~taxonomy.is_leaf[nodes]]] = True
    return suspects


def describe_misfit(nodes: np.ndarray, taxonomy: Taxonomy, label_mode: str | None, partial_paths: bool) -> str | None:
    """Explains why the sorted nodes of a row do not fit the model. Returns None if they fit."""
    try:
        if label_mode == "single_path":
            check_one_path(nodes, taxonomy)
        if not partial_paths:
            _check_full_paths(nodes, taxonomy)
    except ValueError as problem:
        return str(problem)
    return None


def check_one_path(nodes: np.ndarray, taxonomy: Taxonomy) -> None:
    """Raises a ValueError unless complete, sorted nodes of a forest are one path."""
    if not len(nodes):
        raise ValueError('single_path needs one path a document, got no label (label_mode="multi_path" allows it)')
    if not np.array_equal(taxonomy.depths[nodes], np.arange(len(nodes))):
        paths = [SEPARATOR.join(path) for path in taxonomy.decode(nodes)]
        raise ValueError(
            f"single_path needs one path a document, got {len(paths)}: {', '.join(map(repr, paths[:3]))} "
            '(label_mode="multi_path" allows it)'
        )


def _check_full_paths(nodes: np.ndarray, taxonomy: Taxonomy) -> None:
    """Raises a ValueError unless each path of a complete set of nodes ends at a leaf."""
    inner = {parent for node in nodes.tolist() for parent in taxonomy.parents(node).tolist()}
    for node in nodes.tolist():
        if node not in inner and not taxonomy.is_leaf[node]:
            raise ValueError(
                f"the path to {taxonomy.labels[node]!r} ends at an inner node (partial_paths=True allows it)"
            )

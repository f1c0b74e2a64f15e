"""Converts labels to the cells of a table as a model's training reads them, and back."""

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...configuration_hcal import HcalConfig
from ...data.encoding import RowEncoder
from ...data.labels import LabelReader
from ...taxonomy import SEPARATOR, Taxonomy


class LabelCells:
    """Writes and reads the label columns of a document. The columns and their forms are those of `config.table_options`.

    With `label_mode="single_path"`, a cell is a text, such as `"Hardware > Printer"` or, with one column per level,
    `"Hardware"` and `"Printer"`. With `"multi_path"`, and for names that contain a separator, a cell is a list.

    Args:
        config ([`HcalConfig`]): the configuration of the model.
        taxonomy ([`Taxonomy`]): its hierarchy.
    """

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        options = config.table_options or {}
        self.taxonomy = taxonomy
        self.text_columns: list[str] = list(options.get("text") or ["text"])
        self.columns: list[str] = list(options.get("labels") or ["labels"])
        self.is_single_path = config.label_mode == "single_path"
        self.separator = options.get("separator") or SEPARATOR
        columns = self.columns[0] if len(self.columns) == 1 else self.columns
        self._reader = LabelReader(
            columns, self.separator, options.get("delimiter"), bool(options.get("empty_means_none"))
        )
        self._encoder = RowEncoder(taxonomy, None, [], self._reader, config.label_mode, config.partial_paths, None)

    def ends(self, nodes: Iterable[int]) -> list[int]:
        """Returns the labels that are not an ancestor of another one, sorted."""
        complete = self.taxonomy.complete(nodes)
        inner = set(self.taxonomy.parents_of(complete)[1].tolist())
        return [node for node in complete.tolist() if node not in inner]

    def check(self, nodes: Iterable[int]) -> None:
        """Checks that a document of the model can have these labels.

        Raises:
            ValueError: if the number of paths, or the label at the end of a path, is not allowed.
        """
        problems: list[str | None] = [None]
        self._encoder.encode_labels(self._columns_of(self._lists(self.ends(nodes))), problems)
        if problems[0]:
            raise ValueError(f"These labels cannot be saved: {problems[0]}. Choose other labels.")

    def write(self, nodes: Iterable[int]) -> dict[str, Any]:
        """Returns the cells of labels and their ancestors, {column: cell}. They are read back as the same labels.

        Raises:
            ValueError: if a model with this configuration cannot have, or its table cannot hold the labels.
        """
        ends = self.ends(nodes)
        deepest = max((len(self._path(node)) for node in ends), default=0)
        if len(self.columns) > 1 and deepest > len(self.columns):
            raise ValueError(
                f"A path of {deepest} levels does not fit into the {len(self.columns)} label columns of the model, "
                f"{', '.join(map(repr, self.columns))}. Choose a label on a higher level."
            )
        self.check(ends)
        forms = [self._texts(ends)] if self.is_single_path else []
        for cells in [*forms, self._lists(ends)]:
            with contextlib.suppress(ValueError):  # a name that looks like a path or a list is read as one
                if self.read(cells) == ends:
                    return cells
        raise ValueError(
            f"The labels {self.taxonomy.decode(ends)} cannot be written so that training reads them: a name contains the "
            f"separator {self.separator!r}. Rename the label."
        )

    def read(self, record: dict[str, Any]) -> list[int] | None:
        """Returns the labels of a row of a table without their ancestors, or None if the row is unlabelled.

        Raises:
            ValueError: if a label is unknown or not allowed.
        """
        problems: list[str | None] = [None]
        rows, _, unlabelled = self._encoder.encode_labels(self._columns_of(record), problems)
        if problems[0]:
            raise ValueError(problems[0])
        return None if unlabelled[0] else self.ends(rows[0])

    def _columns_of(self, record: dict[str, Any]) -> list[list[Any]]:
        return [[record.get(name)] for name in self.columns]

    def _path(self, node: int) -> list[str]:
        return self.taxonomy.paths(node, limit=1)[0]

    def _texts(self, ends: list[int]) -> dict[str, Any]:
        """Returns the cells of at most one path as text."""
        path = self._path(ends[0]) if ends else []
        if len(self.columns) == 1:
            separator = self.separator if self.separator.startswith(" ") else f" {self.separator.strip()} "
            return {self.columns[0]: separator.join(path)}
        return {name: path[level] if level < len(path) else None for level, name in enumerate(self.columns)}

    def _lists(self, ends: list[int]) -> dict[str, Any]:
        """Returns the cells of any number of paths as lists."""
        paths = [self._path(node) for node in ends]
        if len(self.columns) == 1:
            return {self.columns[0]: paths}
        cells = {}
        for level, name in enumerate(self.columns):
            cells[name] = [path[level] if level < len(path) else None for path in paths]
        return cells


def end_nodes(taxonomy: Taxonomy, is_predicted: np.ndarray) -> list[int]:
    """Returns the predicted labels, from bool [L], that have no predicted child."""
    is_end = is_predicted.copy()
    parents, children = taxonomy.edges[:, 0], taxonomy.edges[:, 1]
    is_end[parents[is_predicted[children]]] = False
    return np.flatnonzero(is_end).tolist()

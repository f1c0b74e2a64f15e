"""Reads label sets that are given by names or paths. Needs only numpy."""

from __future__ import annotations

from typing import Any, Protocol


class TaxonomyLike(Protocol):
    """The attributes of a taxonomy that the metrics use."""

    @property
    def edges(self) -> Any:
        """The edges: int [E, 2], rows (parent, child)."""

    @property
    def depths(self) -> Any:
        """The depth of each label: int [L], 0 = top level."""

    @property
    def num_labels(self) -> int:
        """The number of labels L."""


def node_sets(sets: Any, taxonomy: TaxonomyLike, name: str = "predictions") -> Any:
    """Replaces label names and paths by node ids. Arrays and sequences of ids stay as they are.

    A document may be a list of label names (`["Hardware", "Printer"]`), a list of paths (`[["Hardware", "Printer"]]`), a
    path string (`"Hardware > Printer"`) or a list of those. A path names each of its steps. A label name stands for this
    label alone: its ancestors are not added, because the violation rates count sets that lack them.

    Args:
        sets: one label set per document.
        taxonomy: a [`Taxonomy`]. Other objects cannot look names up, so the sets stay as they are.
        name: the name of the argument in errors.

    Raises:
        ValueError: for an unknown name, or if some documents have names and others ids. The message names the document.
    """
    look_up = getattr(taxonomy, "given_nodes", None)
    if look_up is None or not isinstance(sets, list | tuple) or not any(map(_is_named, sets)):
        return sets
    found = []
    for index, row in enumerate(sets):
        if len(row) and not _is_named(row):
            raise ValueError(f"{name}[{index}] holds node ids and other documents hold names: give one of them.")
        try:
            found.append(sorted(look_up(row)) if len(row) else [])
        except ValueError as problem:
            raise ValueError(f"{name}[{index}]: {problem}") from problem
    return found


def _is_named(row: Any) -> bool:
    """Tells whether a document's labels are given by names. A set without labels is not."""
    if isinstance(row, str):
        return True
    return isinstance(row, list | tuple | set) and any(isinstance(value, str | list | tuple) for value in row)


__all__ = ["TaxonomyLike", "node_sets"]

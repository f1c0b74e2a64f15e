"""Builds a taxonomy from the paths in a data set."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from transformers.utils import logging

from ..taxonomy import SEPARATOR, Taxonomy
from .cell_check import CellCounter
from .labels import LabelReader, as_paths
from .rows import AnyDataset, BadRow, BadRowsError, class_names, iterate_rows, iterate_splits
from .tables import TableFile, read_table
from .taxonomy_reader import read_taxonomy

logger = logging.get_logger(__name__)


def build_taxonomy(
    dataset: AnyDataset,
    labels: str | Sequence[str] = "labels",
    *,
    separator: str = SEPARATOR,
    delimiter: str | None = None,
    identity: Literal["path", "name"] = "path",
    on_bad_row: Literal["raise", "drop"] = "raise",
) -> Taxonomy:
    """Builds the taxonomy that the paths of a data set span, over all its splits.

    Rows without labels are skipped. Cells that seem to hold several labels are logged, with the delimiter that reads them.

    Args:
        dataset: rows with paths as labels (lists or strings), or with one column per level. Or a file that has no column
            `labels` and holds a taxonomy, which [`read_taxonomy`] reads.
        labels, separator, delimiter: as for [`encode_dataset`].
        identity: as for [`Taxonomy.from_paths`].
        on_bad_row: `"raise"` raises one [`BadRowsError`] that lists the bad rows by split and index. `"drop"` skips them
            and logs how many.

    Raises:
        BadRowsError: if labels are not paths from a root.
        ValueError: if no row has a label, or the paths do not form a taxonomy.
    """
    reader = LabelReader(labels, separator, delimiter)
    if labels == "labels" and _is_taxonomy_file(dataset):
        own_separator = None if separator == SEPARATOR else separator
        return read_taxonomy(dataset, separator=own_separator, identity=identity)
    dataset = read_table(dataset)
    counter = CellCounter(reader.column_list)
    bad_rows: list[BadRow] = []
    paths: dict[tuple[str, ...], None] = {}
    for split_name, split in iterate_splits(dataset):
        reader = replace(reader, class_names=class_names(split, reader.column_list))
        for row, cells in enumerate(iterate_rows(split, reader.column_list)):
            counter.add(cells)
            try:
                new_paths = [path for path in as_paths(reader(cells) or [], labels) if path not in paths]
                if new_paths:
                    Taxonomy.from_paths(new_paths)  # raises for empty names and the like
            except (ValueError, TypeError) as problem:
                bad_rows.append((split_name, row, str(problem)))
            else:
                paths.update(dict.fromkeys(new_paths))
    if delimiter is None and (suspect := counter.suspected(separator)):
        logger.warning(f"{suspect}. {suspect.fix}")
    if bad_rows and on_bad_row == "raise":
        raise BadRowsError(bad_rows)
    if bad_rows:
        split_name, row, reason = bad_rows[0]
        logger.warning(f"Skipped {len(bad_rows):,} rows for the taxonomy, first: {split_name}[{row}]: {reason}.")
    if not paths:
        raise ValueError(
            f"No row has a label in {', '.join(map(repr, reader.column_list))}, so there is no hierarchy to build. Give "
            "one with --taxonomy FILE, or in Python with read_taxonomy."
        )
    return Taxonomy.from_paths(paths, identity=identity)


def _is_taxonomy_file(source: Any) -> bool:
    """Returns whether a source is a file, but not a table with a column `labels`."""
    if not isinstance(source, str | PathLike) or not Path(source).is_file():
        return False
    try:
        return "labels" not in TableFile(Path(source)).columns
    except ValueError:  # not a table
        return True

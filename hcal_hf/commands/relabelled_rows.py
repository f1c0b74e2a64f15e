"""Translates the labels of rows that were labelled with an earlier taxonomy of a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, List, Value
from transformers.utils import logging

from ..configuration_hcal import HcalConfig
from ..data.encoding import RowEncoder
from ..data.label_checks import describe_misfit
from ..data.labels import LabelReader
from ..data.rows import class_names
from ..data.taxonomy_writer import first_path
from ..taxonomy import Taxonomy

logger = logging.get_logger(__name__)

# The entry of a record in split.json.
_KEY = "relabelled"


@dataclass
class Relabelling:
    """Maps the labels of the taxonomy that rows were labelled with to the present labels.

    Attributes:
        old ([`Taxonomy`]): the taxonomy of the rows.
        labels (`list[str | None]`): the present label of each old one; None if it was removed.
    """

    old: Taxonomy
    labels: list[str | None]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Relabelling | None":
        """Reads a relabelling from a record of split.json. Returns None if the rows have the present labels."""
        stored = record.get(_KEY)
        return cls(Taxonomy(stored["labels"], stored["edges"]), stored["to"]) if stored else None

    def write(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a record of split.json with this relabelling."""
        stored = {"labels": list(self.old.labels), "edges": self.old.edges.tolist(), "to": self.labels}
        return {**record, _KEY: stored}

    def then(self, labels: Mapping[str, str | None]) -> "Relabelling":
        """Returns the relabelling that another change follows."""
        return Relabelling(self.old, [None if label is None else labels.get(label, label) for label in self.labels])

    def map_nodes(self, nodes: Sequence[int], new: Taxonomy) -> np.ndarray:
        """Returns the nodes of a taxonomy for the complete nodes of a row. A removed label becomes the labels above it."""
        above = {parent for node in nodes for parent in self.old.parent_lists[node]}
        waiting, ends = [node for node in nodes if node not in above], set()
        while waiting:
            node = waiting.pop()
            label = self.labels[node]
            if label is not None and label in new.label_index:
                ends.add(new.label_index[label])
            else:
                waiting += self.old.parent_lists[node]
        return new.complete(ends)


def relabel(part: Dataset, relabelling: Relabelling, config: HcalConfig, options: Mapping[str, Any]) -> Dataset:
    """Writes the present labels into the label columns of rows.

    Rows that the model cannot be trained on are left out, and their number is logged: the label was removed, or it has
    other labels below it, or its path has more levels than the table has columns.

    Args:
        part: the rows.
        relabelling: the labels that have changed.
        config: the configuration of the model with the present labels.
        options: `labels`, `separator` and `delimiter` as for [`hcal_hf.encode_dataset`].
    """
    columns = [options["labels"]] if isinstance(options["labels"], str) else list(options["labels"])
    kinds = [_list_depth(part.features[name]) for name in columns]
    if None in kinds:
        logger.warning(
            "Rows are left out: their labels have changed, and their column of classes cannot be rewritten."
        )
        return part.select([])
    new = config.to_taxonomy()
    cells = [part[name][:] for name in columns]
    rows, problems = read_nodes(part, relabelling.old, options)
    kept: list[int] = []
    changed = 0
    written: dict[tuple[int, ...], list[Any] | str | None] = {}
    for row, nodes in enumerate(rows):
        key = tuple(nodes)
        if problems[row] is None and key:
            if key not in written:
                written[key] = _cells(key, relabelling, new, config, kinds)  # type: ignore[arg-type]
            values = written[key]
            if isinstance(values, str):
                continue
            if values is not None:
                changed += 1
                for column, value in zip(cells, values):
                    column[row] = value
        kept.append(row)
    logger.warning(
        f"The taxonomy has changed since {len(part):,} earlier rows were labelled: {changed:,} have other labels now, and "
        f"{len(part) - len(kept):,} are left out, because their label no longer exists or no longer ends a path."
    )
    for name, values in zip(columns, cells):
        feature = part.features[name]
        part = part.remove_columns(name).add_column(name, values).cast_column(name, feature)
    return part.select(kept)


def read_nodes(
    part: Dataset, taxonomy: Taxonomy, options: Mapping[str, Any]
) -> tuple[list[list[int]], list[str | None]]:
    """Returns the complete nodes of each row, and the reason for each row that cannot be read."""
    columns = [options["labels"]] if isinstance(options["labels"], str) else list(options["labels"])
    reader = LabelReader(
        options["labels"], options["separator"], options["delimiter"], class_names=class_names(part, columns)
    )
    problems: list[str | None] = [None] * len(part)
    encoder = RowEncoder(taxonomy, None, [], reader, None, True, None)
    return encoder.encode_labels([part[name][:] for name in columns], problems)[0], problems


def _list_depth(feature: Any) -> int | None:
    """Returns 0 for a column of strings, 1 for lists of strings, 2 for lists of lists, and None for others."""
    depth = 0
    while isinstance(feature, List):
        feature, depth = feature.feature, depth + 1
    is_text = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    return depth if is_text and depth <= 2 else None


def _cells(
    nodes: tuple[int, ...], relabelling: Relabelling, new: Taxonomy, config: HcalConfig, kinds: Sequence[int]
) -> list[Any] | str | None:
    """Returns the new cells of a row, None if they are unchanged, or the reason why the row is left out."""
    mapped = relabelling.map_nodes(nodes, new)
    if not len(mapped):
        return "no label is left"
    if problem := describe_misfit(mapped, new, config.label_mode, config.partial_paths):
        return problem
    old = relabelling.old
    ends, paths = _ends(mapped.tolist(), new)
    if old.is_forest and new.is_forest and sorted(paths) == sorted(_ends(nodes, old)[1]):
        return None
    if len(kinds) == 1:
        labels: list[Any] = paths if kinds[0] == 2 else [new.labels[end] for end in ends]
        return [labels if kinds[0] else labels[0] if len(labels) == 1 else json.dumps(labels, ensure_ascii=False)]
    depth = len(paths[0])
    if any(len(path) != depth for path in paths) or depth > len(kinds):
        return "the path does not fit the columns"
    levels: list[Any] = []
    for level, kind in enumerate(kinds):
        names = [path[level] for path in paths] if level < depth else []
        text = names[0] if len(names) == 1 else json.dumps(names, ensure_ascii=False) if names else None
        levels.append(names if kind else text)
    return levels


def _ends(nodes: Sequence[int], taxonomy: Taxonomy) -> tuple[list[int], list[list[str]]]:
    """Returns the nodes of a complete set without a child in it, and a path to each."""
    above = {parent for node in nodes for parent in taxonomy.parent_lists[node]}
    ends = [node for node in nodes if node not in above]
    return ends, [first_path(taxonomy, end) for end in ends]

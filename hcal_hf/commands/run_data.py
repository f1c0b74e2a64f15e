"""Loads and encodes the splits of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers.utils import logging

from ..data.encoding import encode_dataset
from ..data.labels import LabelReader
from ..data.tables import read_table
from ..taxonomy import Taxonomy
from .run_arguments import TableArguments

logger = logging.get_logger(__name__)


def load_data(data_args: TableArguments, splits: Sequence[str] | None = None) -> DatasetDict:
    """Splits from a folder of files that are named so, or from the Hub, without the documents that `leave_out` names.

    Args:
        data_args: the folder or the name on the Hub; for a single split `data_dir` may also be its file.
        splits: those to load, from `SPLITS`; train, and validation and test where there are any, by default.

    Raises:
        ValueError: if neither or both are given, a split is missing, or the files differ in type.
    """
    if (data_args.data_dir is None) == (data_args.dataset is None):
        raise ValueError(
            "Give either data_dir (a folder with train, validation and test files) or dataset (on the Hub)."
        )
    source: Any = data_args.dataset or Path(data_args.data_dir)  # type: ignore[arg-type]
    if isinstance(source, Path) and not source.is_dir() and (splits is None or len(splits) > 1):
        raise ValueError(
            f"{source} is not a folder, but there must be a folder with the files of "
            f"{', '.join(splits or ('train', 'validation', 'test'))}: give that folder."
        )
    table = read_table(source, splits=splits)
    return _leave_out(table if isinstance(table, DatasetDict) else DatasetDict({splits[0]: table}), data_args)  # type: ignore[index]


def _leave_out(raw: DatasetDict, data_args: TableArguments) -> DatasetDict:
    """The documents with none of the labels in `leave_out`, wherever on a path it stands; how many go is told."""
    if not data_args.leave_out:
        return raw
    names = set(data_args.leave_out)
    reading = data_args.reading
    reader = LabelReader(reading.pop("labels"), **reading)

    def is_kept(*cells: Any) -> bool:
        try:
            labels = reader(cells, known=names) or []
        except ValueError:  # a bad row, which encode_dataset names
            return True
        return names.isdisjoint(step for label in labels for step in ([label] if isinstance(label, str) else label))

    kept = raw.filter(is_kept, input_columns=reader.column_list)
    for split in raw:
        left_out = len(raw[split]) - len(kept[split])
        logger.warning(f"{split}: {left_out:,} rows with a label in {sorted(names)} left out.")
    return kept


def encode_splits(
    raw: DatasetDict,
    taxonomy: Taxonomy,
    tokenizer: Any,
    data_args: TableArguments,
    label_mode: str,
    partial_paths: bool,
) -> DatasetDict:
    """[`encode_dataset`] with the columns and options of the arguments."""
    return encode_dataset(
        raw,
        taxonomy,
        tokenizer,
        data_args.text,
        label_mode=label_mode,  # type: ignore[arg-type]
        partial_paths=partial_paths,
        max_length=data_args.max_length,
        on_bad_row=data_args.on_bad_row,  # type: ignore[arg-type]
        **data_args.reading,
    )

"""Loads and encodes the splits of a run."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import AutoConfig
from transformers.utils import logging

from ..data.encoding import RowEncoder, encode_dataset
from ..data.labels import LabelReader
from ..data.rows import class_names
from ..data.split import FEWEST_GROUPS, split_rows
from ..data.tables import read_table
from ..data.taxonomy_builder import build_taxonomy
from ..data.taxonomy_reader import read_taxonomy
from ..data.texts import join_texts
from ..taxonomy import Taxonomy
from ..windows import Windows, default_overlap, window_fields
from .run_arguments import ModelArguments, TableArguments

logger = logging.get_logger(__name__)

# The column that holds the row number in the file from which a part was split.
ROW = "_row"
# The column that holds how many times a document counts.
COUNT = "_count"


def load_data(
    data_args: TableArguments, splits: Sequence[str] | None = None, taxonomy: Taxonomy | None = None
) -> DatasetDict:
    """Loads splits from a folder or from the Hub, without the documents that `leave_out` excludes.

    A folder holds one file per split, named after it.

    Args:
        data_args: the folder, or the name on the Hub. To load a single split, `data_dir` may also be its file. Without
            `splits`, one file is split 80/10/10 ([`split_rows`]), and the column `_row` holds the row numbers from 0.
        splits: the splits to load, from `SPLITS`. By default train, and validation and test if they exist.
        taxonomy: the labels by which one file is split. By default those of `data_args`, or the paths in the file.

    Raises:
        ValueError: if neither or both of `data_dir` and `dataset` are set, if a split is missing, or if the files differ
            in type.
    """
    data_args = data_args.with_defaults()
    if (data_args.data_dir is None) == (data_args.dataset is None):
        raise ValueError(
            "Give either data_dir (a folder with train, validation and test files) or dataset (on the Hub)."
        )
    source: Any = data_args.dataset or Path(data_args.data_dir)  # type: ignore[arg-type]
    is_file = isinstance(source, Path) and not source.is_dir()
    if is_file and splits is not None and len(splits) > 1:
        raise ValueError(
            f"{source} is not a folder, but there must be a folder with the files of {', '.join(splits)}: give that folder."
        )
    table = read_table(source, splits=splits)
    if is_file and splits is None:
        return split_table(_leave_out(DatasetDict(train=table), data_args)["train"], data_args, taxonomy)
    return _leave_out(table if isinstance(table, DatasetDict) else DatasetDict({splits[0]: table}), data_args)  # type: ignore[index]


def split_table(table: Dataset, data_args: TableArguments, taxonomy: Taxonomy | None = None) -> DatasetDict:
    """Splits one table 80/10/10. Equal texts stay in one part, and each label is in each part if possible.

    Args:
        table: the rows. Unusable rows are kept, so that encoding reports them.
        data_args: the columns. [`DataArguments`] also has the taxonomy and the seed.
        taxonomy: as for [`load_data`].
    """
    options, is_given = data_args.label_options, taxonomy is not None
    if taxonomy is None:
        taxonomy = read_or_build_taxonomy(table, data_args)
    names = [options["labels"]] if isinstance(options["labels"], str) else options["labels"]
    reader = LabelReader(options.pop("labels"), **options, class_names=class_names(table, names))
    encoder = RowEncoder(taxonomy, None, [], reader, None, True, None)
    labels, _, _ = encoder.encode_labels([table[name][:] for name in names], [None] * len(table))
    texts = [str(join_texts(cells)) for cells in zip(*(table[name][:] for name in data_args.text))]
    if is_given and len(set(texts)) < FEWEST_GROUPS:  # a few new rows for a trained model
        rows = {"train": np.arange(len(texts))}
    else:
        rows = split_rows(texts, labels, getattr(data_args, "split_seed", 0))
    table = table.add_column(ROW, list(range(len(table))))
    parts = DatasetDict({name: table.select(numbers) for name, numbers in rows.items() if len(numbers)})
    logger.warning(
        f"{len(table):,} rows are split into "
        + ", ".join(f"{len(part):,} for {name}" for name, part in parts.items())
        + f" (seed {getattr(data_args, 'split_seed', 0)})."
    )
    return parts


def read_or_build_taxonomy(table: Any, data_args: TableArguments) -> Taxonomy:
    """Returns the taxonomy that the arguments name, or the one of the paths in a table or in all of its parts."""
    if taxonomy_file := getattr(data_args, "taxonomy", None):
        options: dict[str, Any] = {"identity": data_args.identity, **(data_args.taxonomy_options or {})}  # type: ignore[attr-defined]
        if unknown := sorted(options.keys() - inspect.signature(read_taxonomy).parameters.keys()):
            raise ValueError(
                f"taxonomy_options has {unknown[0]!r}, which is no argument of read_taxonomy: those are "
                f"{', '.join(list(inspect.signature(read_taxonomy).parameters)[1:])}."
            )
        return read_taxonomy(taxonomy_file, **options)
    options = {"identity": getattr(data_args, "identity", "path"), "on_bad_row": data_args.on_bad_row}
    return build_taxonomy(table, **data_args.label_options, **options)


def _leave_out(raw: DatasetDict, data_args: TableArguments) -> DatasetDict:
    """Removes the documents with a label in `leave_out` anywhere on a path, and logs their number."""
    if not data_args.leave_out:
        return raw
    names = set(data_args.leave_out)
    label_options = data_args.label_options
    reader = LabelReader(label_options.pop("labels"), **label_options)

    def is_kept(*cells: Any) -> bool:
        try:
            labels = reader(cells, known=names) or []
        except ValueError:  # a bad row, which encode_dataset reports
            return True
        return names.isdisjoint(step for label in labels for step in ([label] if isinstance(label, str) else label))

    kept = raw.filter(is_kept, input_columns=reader.column_list)
    for split in raw:
        left_out = len(raw[split]) - len(kept[split])
        logger.warning(f"{split}: {left_out:,} rows with a label in {sorted(names)} left out.")
    return kept


def resolve_windows(model_args: ModelArguments, data_args: TableArguments, tokenizer: Any) -> None:
    """Completes the arguments of a run whose texts are read in windows.

    `max_length` becomes the number of tokens that the windows hold.

    Raises:
        ValueError: if `max_length` is something else, or a window has no room for text.
    """
    given = {name: getattr(model_args, name) for name in ("window_length", "max_windows", "text_prefix")}
    if given["window_length"] is None and given["max_windows"] is None:
        return
    encoder = model_args.encoder
    found = window_fields(given, encoder, {}, tokenizer, AutoConfig.from_pretrained(encoder))
    model_args.window_length, model_args.max_windows = found["window_length"], found["max_windows"]
    if model_args.window_overlap is None:
        model_args.window_overlap = default_overlap(found["window_length"], found["window_affixes"])
    windows = Windows(
        found["window_length"], model_args.window_overlap, found["max_windows"], *found["window_affixes"]
    )
    windows.check()
    if data_args.max_length not in (None, windows.capacity):
        raise ValueError(
            f"max_length={data_args.max_length} and windows were given, and {windows.maximum} windows of {windows.length} "
            f"tokens hold {windows.capacity:,} tokens of a text: leave max_length out, and set max_windows to read less."
        )
    data_args.max_length = windows.capacity
    logger.warning(
        f"Texts of more than {windows.length:,} tokens are read in up to {windows.maximum} windows, which hold "
        f"{windows.capacity:,} tokens."
    )


def encode_splits(
    raw: DatasetDict,
    taxonomy: Taxonomy,
    tokenizer: Any,
    data_args: TableArguments,
    label_mode: str,
    partial_paths: bool,
    prefix: str = "",
    truncated: dict[str, int] | None = None,
) -> DatasetDict:
    """Encodes the splits with the columns and options of the arguments ([`encode_dataset`]).

    `truncated` gets the number of truncated texts of each split.
    """
    data_args = data_args.with_defaults()
    weight = getattr(data_args, "weight", None)
    encoded = encode_dataset(
        raw,
        taxonomy,
        tokenizer,
        data_args.text,
        label_mode=label_mode,  # type: ignore[arg-type]
        partial_paths=partial_paths,
        max_length=data_args.max_length,
        on_bad_row=data_args.on_bad_row,  # type: ignore[arg-type]
        empty_means_none=bool(data_args.empty_means_none),
        keep_columns=[weight] if weight else [],
        prefix=prefix,
        truncated=truncated,
        **data_args.label_options,
    )
    return DatasetDict({name: _with_counts(part, weight) for name, part in encoded.items()}) if weight else encoded


def _with_counts(part: Dataset, weight: str) -> Dataset:
    """Replaces a column of weights by the column `_count` of whole numbers.

    Raises:
        ValueError: for a weight that is no whole number from 0.
    """
    counts = []
    for row, value in enumerate(part[weight][:]):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if number < 0 or not number.is_integer():
            raise ValueError(
                f"The weight of encoded row {row} is {value!r}, but weights must be whole numbers of at least 0. Multiply "
                "fractions by a common factor."
            )
        counts.append(int(number))
    return part.remove_columns(weight).add_column(COUNT, counts)


def repeat_rows(part: Dataset, counts: Sequence[int]) -> Dataset:
    """Repeats each row as many times as its count says, and logs the new number of rows."""
    rows = np.repeat(np.arange(len(part)), np.asarray(counts, dtype=np.int64))
    if not len(rows):
        raise ValueError("All training documents have the weight 0: give at least one a larger weight.")
    logger.warning(f"{len(part):,} training documents count as {len(rows):,} by their weights.")
    return part.select(rows)

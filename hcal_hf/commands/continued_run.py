"""Continues from a saved model: reads the rows that it was trained on again, and adds labels that are new."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from transformers.utils import logging

from ..configuration_hcal import HcalConfig
from ..data.labels import LabelReader, as_name, is_missing
from ..data.rows import class_names
from ..data.tables import read_table
from ..data.texts import join_texts
from ..label_extension import add_labels
from ..modeling_hcal import HcalForSequenceClassification
from ..taxonomy import Taxonomy
from ..training.arguments import HcalTrainingArguments
from .relabelled_rows import Relabelling, relabel
from .run_arguments import SPLITS, DataArguments, ModelArguments
from .run_data import ROW, load_data
from .saved_model import load_model

logger = logging.get_logger(__name__)

SPLIT_FILE = "split.json"


def continue_from(
    model_args: ModelArguments, data_args: DataArguments, args: HcalTrainingArguments
) -> tuple[HcalForSequenceClassification, Any, DatasetDict, dict[str, Any]]:
    """Loads a saved model, its earlier rows and the new ones, and adds the labels that are new.

    Sets the fields of `model_args` that the model has decided. Without earlier rows, `args.head_prior` becomes "model", so
    that the head stays near its present values.

    Returns:
        the model, its tokenizer, the parts of all rows, and the record of the split ([`split_record`]).
    """
    model, tokenizer = load_model(str(model_args.start_from))
    for name in {f.name for f in fields(ModelArguments)} & set(HcalConfig.__dataclass_fields__):
        setattr(model_args, name, getattr(model.config, name))
    raw = load_data(data_args, taxonomy=model.taxonomy)
    split = split_record(raw, data_args) if ROW in raw["train"].column_names else {}
    records = [] if data_args.new_rows_only else earlier_splits(str(model_args.start_from))
    raw, used = add_earlier_rows(raw, records, data_args, model.config)
    if used:
        split["earlier"] = used
    else:
        args.head_prior = "model"
        logger.warning(
            "Only the new rows are trained on. Labels that they do not contain may get worse: measure the new model on the "
            "earlier rows."
        )
    if added := add_new_labels(model, tokenizer, raw, data_args):
        print(f"New labels: {len(added):,} ({', '.join(added[:5])}{', ...' if len(added) > 5 else ''}).")
    return model, tokenizer, raw, split


def split_record(raw: DatasetDict, data_args: DataArguments) -> dict[str, Any]:
    """Describes how a file was split: its path and content (SHA-256), the seed, and the row numbers of each part."""
    path = Path(str(data_args.data_dir))
    rows = {name: part[ROW][:] for name, part in raw.items()}
    return {"file": str(path), "sha256": _sha256(path), "seed": data_args.split_seed, **rows}


def earlier_splits(model: str) -> list[dict[str, Any]]:
    """Returns the records of the files that a model was trained on, the last one first; [] if it stores none."""
    path = Path(model) / SPLIT_FILE
    if not path.is_file():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    earlier = record.pop("earlier", [])
    return (
        [record, *earlier] if record else earlier
    )  # a model that was trained on split files has only earlier records


def is_unchanged(record: dict[str, Any]) -> bool:
    """Returns whether the file of a record exists with the content that the model was trained on."""
    path = Path(record["file"])
    return path.is_file() and _sha256(path) == record.get("sha256")


def add_earlier_rows(
    raw: DatasetDict, records: list[dict[str, Any]], data_args: DataArguments, config: HcalConfig | None = None
) -> tuple[DatasetDict, list[dict[str, Any]]]:
    """Adds the rows that a model was trained on, each to the part that it was in.

    A new row whose text is an earlier one goes to the part of that row, so that no text is trained on and tested. Files
    that are missing or have changed are left out, with a warning.

    Args:
        raw: the parts of the new table.
        records: from [`earlier_splits`].
        data_args: the columns.
        config: the configuration of the model. Needed if its taxonomy has changed since the rows were labelled.

    Returns:
        the parts with all rows, and the records that were used.

    Raises:
        ValueError: if a column of texts or weights has another type than in the new table.
    """
    columns = [*data_args.text, *data_args.labels, *([data_args.weight] if data_args.weight else [])]
    tables, used = [], []
    for record in records:
        path = Path(record["file"])
        if not is_unchanged(record):
            logger.warning(
                f"The rows of {path} are not used: the file is {'changed' if path.is_file() else 'missing'}."
            )
            continue
        table = read_table(path)
        if not set(columns) <= set(table.column_names):
            logger.warning(f"The rows of {path} are not used: it has no columns {', '.join(map(repr, columns))}.")
            continue
        parts = DatasetDict({n: table.select(record[n]).select_columns(columns) for n in SPLITS if n in record})
        relabelling = Relabelling.read(record)
        if relabelling is not None and config is not None:
            options = data_args.label_options
            for name, part in parts.items():
                parts[name] = relabel(part, relabelling, config, options)
        tables.append(parts)
        used.append(record)
    if not used:
        return raw, []
    raw, *tables = _with_equal_label_types([raw, *tables], data_args.labels)
    part_of = {text: name for table in tables for name, part in table.items() for text in _texts(part, data_args)}
    raw = _moved(raw, part_of, data_args)
    joined = {}
    for name in SPLITS:
        parts = [table[name].select_columns(columns) for table in (raw, *tables) if name in table]
        if any(part.features != parts[0].features for part in parts):
            raise ValueError(
                f"The columns {', '.join(map(repr, columns))} have other types in {used[0]['file']} than in "
                f"{data_args.data_dir}: write both in one format, or give --new-rows-only."
            )
        if parts:
            joined[name] = concatenate_datasets(parts)
    number = sum(len(part) for table in tables for part in table.values())
    print(f"Rows: {sum(map(len, raw.values())):,} new, and {number:,} that the model was trained on or measured with.")
    return DatasetDict(joined), used


def _with_equal_label_types(tables: list[DatasetDict], columns: list[str]) -> list[DatasetDict]:
    """Converts each label column with several types to text, with JSON text for lists, which [`LabelReader`] reads."""
    parts = [part for table in tables for part in table.values()]
    for column in columns:
        if all(part.features[column] == parts[0].features[column] for part in parts):
            continue
        tables = [DatasetDict({n: _with_text(part, column) for n, part in table.items()}) for table in tables]
    return tables


def _with_text(part: Dataset, column: str) -> Dataset:
    names = class_names(part, [column]).get(column)

    def as_text(cell: Any) -> str | None:
        if is_missing(cell):
            return None
        if isinstance(cell, list):
            return json.dumps(named(cell), ensure_ascii=False)
        return as_name(cell, names)

    def named(cells: list[Any]) -> list[Any]:
        return [
            named(cell) if isinstance(cell, list) else None if cell is None else as_name(cell, names) for cell in cells
        ]

    features = Features({**part.features, column: Value("string")})
    return part.map(lambda row: {column: as_text(row[column])}, features=features)


def add_new_labels(
    model: HcalForSequenceClassification, tokenizer: Any, raw: DatasetDict, data_args: DataArguments
) -> list[str]:
    """Adds the paths of the rows that the model does not have, level by level from the top.

    Names without a path are left alone: nothing says where they belong, and encoding reports them.

    Returns:
        the new labels.
    """
    added: list[str] = []
    new_paths = unknown_paths(raw.values(), data_args, model.taxonomy)
    for depth in sorted({len(path) for path in new_paths}):
        level = [path for path in new_paths if len(path) == depth]
        added += add_labels(model, level, tokenizer, to_be_trained=True)
    return added


def unknown_paths(tables: Iterable[Dataset], data_args: DataArguments, taxonomy: Taxonomy) -> list[tuple[str, ...]]:
    """Returns the paths in the label columns, and the beginnings of these paths, that a taxonomy does not have.

    Rows that cannot be read are skipped, because encoding reports them.
    """
    options = data_args.label_options
    known = taxonomy.label_index.keys()
    unknown: dict[tuple[str, ...], None] = {}
    seen: set[tuple[str, ...]] = set()
    for table in tables:
        names = class_names(table, data_args.labels)
        reader = LabelReader(options["labels"], options["separator"], options["delimiter"], class_names=names)
        for cells in zip(*(table[name][:] for name in data_args.labels)):
            try:
                labels = reader(cells, known=known) or []
            except (ValueError, TypeError):
                continue
            for label in labels:
                if isinstance(label, str) or tuple(label) in seen:
                    continue
                seen.add(tuple(label))
                for end in range(1, len(label) + 1):
                    if not _has_path(taxonomy, label[:end]):
                        unknown[tuple(label[:end])] = None
    return list(unknown)


def _has_path(taxonomy: Taxonomy, path: list[str]) -> bool:
    try:
        taxonomy.index_path(path)
    except ValueError:
        return False
    return True


def _moved(raw: DatasetDict, part_of: dict[str, str], data_args: DataArguments) -> DatasetDict:
    """Moves the rows whose texts `part_of` assigns to another part."""
    wanted: dict[str, list[Dataset]] = {name: [] for name in SPLITS}
    for name, part in raw.items():
        names = [part_of.get(text, name) for text in _texts(part, data_args)]
        for target in SPLITS:
            rows = [row for row, wanted_name in enumerate(names) if wanted_name == target]
            if rows:
                wanted[target].append(part.select(rows))
    return DatasetDict({name: concatenate_datasets(parts) for name, parts in wanted.items() if parts})


def _texts(part: Dataset, data_args: DataArguments) -> list[str]:
    return [str(join_texts(cells)).strip() for cells in zip(*(part[name][:] for name in data_args.text))]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

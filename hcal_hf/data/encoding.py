"""From any table of texts and labels to an encoded data set, and from its rows to batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning
from transformers.utils import logging

from ..taxonomy import SEPARATOR, Taxonomy, split_path

logger = logging.get_logger(__name__)

AnyDataset: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict

# Above this many labels a batch carries node indices instead of a multi-hot matrix.
MAX_MULTI_HOT_LABELS = 4096
# Different label sets that an encoder remembers; documents share most of theirs.
MOST_KNOWN = 2**16
_PROBLEM, _COMPLETED, _TRUNCATED = "_problem", "_completed", "_truncated"


class BadRowsError(ValueError):
    """Rows that cannot be encoded.

    Attributes:
        rows (`list[tuple[str, int, str]]`): (split, index, what is wrong) of every bad row.
    """

    def __init__(self, rows: list[tuple[str, int, str]]):
        self.rows = rows
        shown = "\n".join(f"  {split}[{index}]: {problem}" for split, index, problem in rows[:10])
        more = f"\n  and {len(rows) - 10} more" if len(rows) > 10 else ""
        super().__init__(
            f"{len(rows)} row(s) cannot be encoded:\n{shown}{more}\nMend them, or leave them out with "
            'on_bad_row="drop".'
        )


@dataclass
class LabelReader:
    """Reads the labels of a row in the forms that tables have.

    Args:
        columns (`str` or `Sequence[str]`): one column, or one column a level from the root down (empty cells at the end
            mean that the path ends there).
        separator (`str`): between the steps of a path string ("A > B > C"); white space around it does not count.
        delimiter (`str`, *optional*): between several labels in one string ("A > B; C > D" with ";").
        missing_is_empty (`bool`): whether a missing value in a single column is a document without labels.
        class_names (`dict`, *optional*): names of the integers in columns that are `ClassLabel`s.

    Raises:
        ValueError: for no columns, or a delimiter with one column a level, where each cell is one name.
    """

    columns: str | Sequence[str] = "labels"
    separator: str = SEPARATOR
    delimiter: str | None = None
    missing_is_empty: bool = False
    class_names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.column_list:
            raise ValueError("labels must name a column, or one column a level, got none of them.")
        if self.delimiter is not None and not isinstance(self.columns, str):
            raise ValueError(
                f"delimiter={self.delimiter!r} is for one column with several labels a cell; with one column a level "
                f"({list(self.columns)}) each cell is one name: leave it out."
            )

    @property
    def column_list(self) -> list[str]:
        return [self.columns] if isinstance(self.columns, str) else list(self.columns)

    def __call__(self, cells: Sequence[Any], known: Iterable[str] = ()) -> Any:
        """The labels of one row, as [`Taxonomy.encode`] takes them.

        Args:
            cells: the row's values in the order of `columns`.
            known: labels that are never split, though they hold the separator.

        Raises:
            ValueError: if a label is missing, or a level is empty while a deeper one is not.
        """
        if not isinstance(self.columns, str):
            return self._path_of_cells(cells)
        labels = cells[0]
        if _is_missing(labels):
            if self.missing_is_empty:
                return []
            raise ValueError(f"no labels in column {self.columns!r}")
        if isinstance(labels, int | float | np.number):
            labels = _as_name(labels, self.class_names.get(self.columns))
        if isinstance(labels, str):
            labels = [part.strip() for part in labels.split(self.delimiter)] if self.delimiter else [labels]
            labels = [label for label in labels if label]
        if isinstance(labels, dict) or not isinstance(labels, Iterable):
            raise ValueError(f"labels must be a string or a list, got {labels!r}")
        return [self._split(label, known) if isinstance(label, str) else label for label in labels]

    def _split(self, label: str, known: Iterable[str]) -> str | list[str]:
        if self.separator.strip() not in label or label in known:
            return label
        steps = split_path(label, self.separator)
        if "" in steps:
            raise ValueError(f"{label!r} has an empty step between its separators ({self.separator.strip()!r})")
        return steps

    def _path_of_cells(self, cells: Sequence[Any]) -> list[list[str]]:
        path = [
            None if _is_missing(cell) else _as_name(cell, self.class_names.get(column)) or None
            for column, cell in zip(self.columns, cells)
        ]
        while path and path[-1] is None:
            path.pop()
        if None in path:
            empty, deeper = self.columns[path.index(None)], self.columns[len(path) - 1]
            raise ValueError(f"column {empty!r} is empty, but the deeper {deeper!r} is not")
        return [[step for step in path if step]] if path else []


def build_taxonomy(
    dataset: AnyDataset,
    labels: str | Sequence[str] = "labels",
    *,
    separator: str = SEPARATOR,
    delimiter: str | None = None,
    identity: Literal["path", "name"] = "path",
    on_bad_row: Literal["raise", "drop"] = "raise",
) -> Taxonomy:
    """The taxonomy that the paths of a data set span, over all its splits.

    Args:
        dataset: rows whose labels are paths (lists or strings), or one column a level.
        labels, separator, delimiter: as for [`encode_dataset`].
        identity: as for [`Taxonomy.from_paths`].
        on_bad_row: `"raise"`: one [`BadRowsError`] that lists them by split and index. `"drop"`: pass over them and tell
            how many.

    Raises:
        BadRowsError: for rows whose labels are not paths from a root. Rows without labels are passed over.
        ValueError: if the paths make no taxonomy.
    """
    reader = LabelReader(labels, separator, delimiter, missing_is_empty=True)
    bad: list[tuple[str, int, str]] = []
    paths: dict[tuple[str, ...], None] = {}
    for name, split in _splits(dataset):
        reader = replace(reader, class_names=_class_names(split, reader.column_list))
        for row, cells in enumerate(_columns(split, reader.column_list)):
            try:
                found = [path for path in _paths_of(reader(cells), labels) if path not in paths]
                if found:
                    Taxonomy.from_paths(found)  # refuses empty names and the like
            except (ValueError, TypeError) as problem:
                bad.append((name, row, str(problem)))
            else:
                paths.update(dict.fromkeys(found))
    if bad and on_bad_row == "raise":
        raise BadRowsError(bad)
    if bad:
        logger.warning(
            f"{len(bad):,} rows passed over for the taxonomy, first: {bad[0][0]}[{bad[0][1]}]: {bad[0][2]}."
        )
    return Taxonomy.from_paths(paths, identity=identity)


def _paths_of(found: list[Any], column: Any) -> list[tuple[str, ...]]:
    if len(found) > 1 and all(isinstance(label, str) for label in found):
        raise ValueError(
            f"{found!r} does not tell the hierarchy: are these steps of one path, or several labels? Give paths, "
            f"[{found!r}] for one path: dataset.map(lambda row: {{{column!r}: [row[{column!r}]]}})"
        )
    paths = [(label,) if isinstance(label, str) else tuple(label) for label in found]
    return paths


def encode_dataset(
    dataset: AnyDataset,
    taxonomy: Taxonomy,
    tokenizer: PreTrainedTokenizerBase,
    text: str = "text",
    labels: str | Sequence[str] | None = "labels",
    *,
    separator: str = SEPARATOR,
    delimiter: str | None = None,
    label_mode: Literal["single_path", "multi_path"] | None = None,
    partial_paths: bool = True,
    max_length: int | None = None,
    on_bad_row: Literal["raise", "drop"] = "raise",
    num_proc: int | None = None,
) -> Any:
    """Tokenises the texts and turns the labels into ancestor-complete node indices.

    Args:
        dataset: a `datasets` table or dictionary of tables, in memory or streaming.
        taxonomy ([`Taxonomy`]): the hierarchy.
        tokenizer: the encoder's tokenizer.
        text: the column of texts.
        labels: the column of labels; each value is a label, a path string, a list of labels, or a list of paths. Or a
            list of columns, one a level from the root down. None for a table without labels.
        separator: between the steps of a path string.
        delimiter: between several labels in one string, if there can be several.
        label_mode: the model's; with `"single_path"` a row whose labels are not exactly one path is a bad row.
        partial_paths: False makes a row whose path ends at an inner node a bad row.
        max_length: tokens at most; the tokenizer's own limit by default. Longer texts are cut, and the number is told.
        on_bad_row: `"raise"`: one [`BadRowsError`] that lists them by split and index. `"drop"`: leave them out and tell
            how many. A streaming table meets its bad rows only when it is read.
        num_proc: processes for tables in memory.

    Returns:
        the same kind of table with the tokenizer's columns and `labels` (sorted int64 indices); ancestors that were
        added, texts that were cut and rows that were dropped are counted and told (streaming: dropped rows only).

    Raises:
        BadRowsError: for bad rows: unknown label, text not a string, empty text, and the cases above.
        ValueError: for an unknown column or option.
    """
    if on_bad_row not in ("raise", "drop"):
        raise ValueError(f'on_bad_row must be "raise" or "drop", got {on_bad_row!r}.')
    reader = None
    if labels is not None:
        reader = LabelReader(labels, separator, delimiter, missing_is_empty=label_mode == "multi_path")
    if max_length is None and tokenizer.model_max_length > 10**9:
        logger.warning("The tokenizer names no longest text and max_length is not given: texts will not be cut.")
    if label_mode == "single_path":
        taxonomy.check_single_path()
    encoded: dict[str, Any] = {}
    bad: list[tuple[str, int, str]] = []
    notes: list[str] = []
    for name, split in _splits(dataset):
        _check_columns(split, [text, *(reader.column_list if reader else [])], name)
        if reader:
            reader = replace(reader, class_names=_class_names(split, reader.column_list))
        encoder = _RowEncoder(taxonomy, tokenizer, text, reader, label_mode, partial_paths, max_length)
        if isinstance(split, IterableDataset):
            encoded[name] = _encode_stream(split, encoder, name, on_bad_row)
        else:
            encoded[name], problems, note = _encode_table(split, encoder, name, num_proc)
            bad += problems
            notes += [note] if note else []
    if bad and on_bad_row == "raise":
        raise BadRowsError(bad)
    for note in notes:
        logger.warning(note)
    if not isinstance(dataset, DatasetDict | IterableDatasetDict):
        return next(iter(encoded.values()))
    return type(dataset)(encoded)


class _RowEncoder:
    """Encodes a batch of rows; its attributes alone determine the result, so that `datasets` can cache it."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        reader: LabelReader | None,
        label_mode: str | None,
        partial_paths: bool,
        max_length: int | None,
    ):
        self.taxonomy, self.tokenizer, self.text, self.reader = taxonomy, tokenizer, text, reader
        self.label_mode, self.partial_paths, self.max_length = label_mode, partial_paths, max_length
        self._known: dict[Any, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}  # what was met so far is not what it does

    def features(self) -> Features:
        """The types of the columns made; told to `datasets`, since an empty first batch would not show them."""
        names = list(self.tokenizer("a").keys())
        small = ("attention_mask", "token_type_ids")
        columns = {name: List(Value("int8" if name in small else "int32")) for name in names}
        if self.reader:
            columns["labels"] = List(Value("int64"))
        counts = {_PROBLEM: Value("string"), _COMPLETED: Value("int32"), _TRUNCATED: Value("bool")}
        return Features({**columns, **counts})

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        texts = batch[self.text]
        problems: list[str | None] = [self._text_problem(text) for text in texts]
        rows: list[list[int]] = []
        completed = np.zeros(len(texts), dtype=np.int64)
        if self.reader:
            rows, completed = self._labels([batch[name] for name in self.reader.column_list], problems)
        clean = ["" if problem else text for text, problem in zip(texts, problems)]
        tokens = self.tokenizer(clean, truncation=True, max_length=self.max_length)
        # Only fast tokenizers keep what they cut off.
        truncated = [bool(e.overflowing) for e in tokens.encodings] if tokens.encodings else [False] * len(texts)
        columns = {**tokens, _PROBLEM: problems, _COMPLETED: completed, _TRUNCATED: truncated}
        return {**columns, "labels": rows} if self.reader else columns

    @staticmethod
    def _text_problem(text: Any) -> str | None:
        if not isinstance(text, str):
            return f"the text must be a string, got {text!r} of type {type(text).__name__}"
        return None if text.strip() else "the text is empty"

    def _labels(self, columns: list[list], problems: list[str | None]) -> tuple[list[list[int]], np.ndarray]:
        """The sorted nodes of each row's labels with all ancestors, and how many ancestors were added [N]; notes the
        problems of rows that have none yet."""
        given = self._given_by_label(columns)
        if given is None:
            given = [self._given(cells, row, problems) for row, cells in enumerate(zip(*columns))]
        number = self.taxonomy.num_labels
        owners = np.repeat(np.arange(len(given)), list(map(len, given)))
        nodes = np.fromiter(chain.from_iterable(given), dtype=np.int64, count=len(owners))
        named = np.bincount(np.unique(owners * number + nodes) // max(number, 1), minlength=len(given))
        owners, nodes = self.taxonomy.complete_rows(owners, nodes)
        sizes = np.bincount(owners, minlength=len(given))
        ends, flat = np.cumsum(sizes).tolist(), nodes.tolist()
        rows = [flat[start:end] for start, end in zip([0, *ends], ends)]
        suspects = _misfits(sizes, nodes, self.taxonomy, self.label_mode, self.partial_paths)
        for row in np.flatnonzero(suspects).tolist():
            if problems[row] is None:
                problems[row] = _misfit(np.array(rows[row]), self.taxonomy, self.label_mode, self.partial_paths)
        return rows, sizes - named

    def _given_by_label(self, columns: list[list]) -> list[list[int]] | None:
        """The nodes that each row names, where all rows are lists of labels of one node each: a look-up a label.
        None where any is not."""
        values = columns[0]
        if len(columns) > 1 or set(map(type, values)) != {list}:
            return None
        names = list(chain.from_iterable(values))
        if set(map(type, names)) - {str} or not self.taxonomy.ambiguous_names.isdisjoint(names):
            return None
        found = list(map(self.taxonomy.label_index.get, names))
        if None in found:
            return None
        ends = np.cumsum(list(map(len, values))).tolist()
        return [found[start:end] for start, end in zip([0, *ends], ends)]  # type: ignore[misc]

    def _given(self, cells: Sequence[Any], row: int, problems: list[str | None]) -> list[int]:
        """The nodes that one row names; none where it has a problem."""
        try:
            key = _hashable(cells)
            found = self._known.get(key)
            if found is None:
                found = self._read_labels(cells)
                if len(self._known) < MOST_KNOWN:
                    self._known[key] = found
        except (ValueError, TypeError) as problem:
            problems[row] = problems[row] or str(problem)
            return []
        return found

    def _read_labels(self, cells: Sequence[Any]) -> list[int]:
        assert self.reader is not None
        return list(self.taxonomy.given_nodes(self.reader(cells, known=self.taxonomy.label_index.keys())))


def _hashable(value: Any) -> Any:
    """Lists and arrays as tuples; numbers with their types, since 1, 1.0 and True are one key but not one label."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_hashable, value))
    return (type(value), repr(value))


def _check_one_path(nodes: np.ndarray, taxonomy: Taxonomy) -> None:
    """Raises unless complete, sorted nodes of a forest are one path."""
    if not len(nodes):
        raise ValueError('single_path needs one path a document, got no label (label_mode="multi_path" allows it)')
    if not np.array_equal(taxonomy.depths[nodes], np.arange(len(nodes))):
        paths = [SEPARATOR.join(path) for path in taxonomy.decode(nodes)]
        raise ValueError(
            f"single_path needs one path a document, got {len(paths)}: {', '.join(map(repr, paths[:3]))} "
            '(label_mode="multi_path" allows it)'
        )


def _check_full_paths(nodes: np.ndarray, taxonomy: Taxonomy) -> None:
    """Raises unless each path of a complete set of nodes ends at a leaf."""
    inner = {parent for node in nodes.tolist() for parent in taxonomy.parents(node).tolist()}
    for node in nodes.tolist():
        if node not in inner and not taxonomy.is_leaf[node]:
            raise ValueError(
                f"the path to {taxonomy.labels[node]!r} ends at an inner node (partial_paths=True allows it)"
            )


def label_cells(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The `labels` column of an encoded table: the number of labels of each row [N], and all of them one after another."""
    column: Any = dataset.with_format("arrow")[:]["labels"]
    cells = column.combine_chunks()
    return cells.value_lengths().to_numpy(), cells.flatten().to_numpy().astype(np.int64)


def check_encoded(dataset: Any, taxonomy: Taxonomy, label_mode: str, partial_paths: bool) -> None:
    """Checks the `labels` column of an encoded table against what a model expects of documents.

    Raises:
        BadRowsError: for rows that are not one path (single_path), or whose paths end at inner nodes (unless
            `partial_paths`).
    """
    suspects = _misfits(*label_cells(dataset), taxonomy, label_mode, partial_paths)
    name, bad = str(getattr(dataset, "split", None) or "dataset"), []
    for row in np.flatnonzero(suspects).tolist():
        given = np.asarray(dataset[row]["labels"], dtype=np.int64)
        if problem := _misfit(given, taxonomy, label_mode, partial_paths):
            bad.append((name, row, problem))
    if bad:
        raise BadRowsError(bad)


def _misfits(
    sizes: np.ndarray, nodes: np.ndarray, taxonomy: Taxonomy, label_mode: str | None, partial_paths: bool
) -> np.ndarray:
    """Bool [N]: the rows, `sizes` [N] sorted nodes each, that are not one path (single_path), or whose paths end at inner
    nodes (unless `partial_paths`)."""
    rows = np.repeat(np.arange(len(sizes)), sizes)
    suspects = np.zeros(len(sizes), dtype=bool)
    if label_mode == "single_path":
        position = np.arange(len(nodes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        suspects |= sizes == 0
        suspects[rows[taxonomy.depths[nodes] != position]] = True
    if not partial_paths:
        # A node is inner in its row where the row holds a child of it.
        owners, parents = taxonomy.parents_of(nodes)
        continued = np.isin(rows * len(taxonomy) + nodes, rows[owners] * len(taxonomy) + parents)
        suspects[rows[~continued & ~taxonomy.is_leaf[nodes]]] = True
    return suspects


def _misfit(nodes: np.ndarray, taxonomy: Taxonomy, label_mode: str | None, partial_paths: bool) -> str | None:
    """Why the sorted nodes of a row do not fit, in words."""
    try:
        if label_mode == "single_path":
            _check_one_path(nodes, taxonomy)
        if not partial_paths:
            _check_full_paths(nodes, taxonomy)
    except ValueError as problem:
        return str(problem)
    return None


def _encode_table(
    split: Dataset, encoder: _RowEncoder, name: str, num_proc: int | None
) -> tuple[Dataset, list[tuple[str, int, str]], str]:
    """The encoded table without its bad rows, these, and what was done to the others in one sentence ("" if nothing)."""
    mapped = split.map(
        encoder,
        batched=True,
        remove_columns=split.column_names,
        features=encoder.features(),
        num_proc=num_proc,
        desc=f"Encoding {name}",
    )
    bad = [(name, index, problem) for index, problem in enumerate(mapped[_PROBLEM]) if problem]
    if bad:
        good = np.setdiff1d(np.arange(len(mapped)), [index for _, index, _ in bad])
        mapped = mapped.select(good)
    completed, truncated = np.asarray(mapped[_COMPLETED][:]), np.asarray(mapped[_TRUNCATED][:])
    notes = [
        (completed > 0).any() and f"{completed.sum():,} ancestors added to {(completed > 0).sum():,} rows",
        truncated.any()
        and f"{truncated.sum():,} texts cut to {encoder.max_length or 'the limit of the model'} tokens",
        bad and f"{len(bad):,} bad rows left out",
    ]
    note = f"{name}: {len(mapped):,} rows encoded; {'; '.join(note for note in notes if note)}." if any(notes) else ""
    return mapped.remove_columns([_PROBLEM, _COMPLETED, _TRUNCATED]), bad, note


def _encode_stream(split: IterableDataset, encoder: _RowEncoder, name: str, on_bad_row: str) -> IterableDataset:
    columns = split.column_names or list(next(iter(split.take(1))))

    def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = encoder(batch)
        bad = [(name, index, problem) for index, problem in zip(indices, rows[_PROBLEM]) if problem]
        if bad and on_bad_row == "raise":
            raise BadRowsError(bad)
        if bad:
            logger.warning(f"{name}: {len(bad)} bad rows left out, first: [{bad[0][1]}] {bad[0][2]}.")
        keep = [index for index, problem in enumerate(rows[_PROBLEM]) if not problem]
        kept = {key: values for key, values in rows.items() if key not in (_PROBLEM, _COMPLETED, _TRUNCATED)}
        return {key: [values[index] for index in keep] for key, values in kept.items()}

    features = {k: v for k, v in encoder.features().items() if k not in (_PROBLEM, _COMPLETED, _TRUNCATED)}
    return split.map(encode, batched=True, with_indices=True, remove_columns=columns, features=Features(features))


def _as_name(cell: Any, class_names: list[str] | None = None) -> str:
    """A cell as a name: numbers, which spreadsheets make of codes, as they were typed."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, int | float | np.number) and not isinstance(cell, bool) and float(cell).is_integer():
        return class_names[int(cell)] if class_names else str(int(cell))  # 1.0 was 1 before a cell was empty
    raise ValueError(f"a label must be a string or a whole number, got {cell!r} of type {type(cell).__name__}")


def _class_names(split: Any, columns: list[str]) -> dict[str, list[str]]:
    features = split.features or {}
    return {name: features[name].names for name in columns if isinstance(features.get(name), ClassLabel)}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _splits(dataset: AnyDataset) -> Iterator[tuple[str, Any]]:
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        yield from dataset.items()
    elif isinstance(dataset, Dataset | IterableDataset):
        yield str(dataset.split or "dataset"), dataset
    else:
        raise ValueError(
            f"Expected a data set of the datasets library, got {type(dataset).__name__}: use "
            "datasets.Dataset.from_list(rows), .from_pandas(frame) or load_dataset(...)."
        )


def _columns(split: Dataset | IterableDataset, names: list[str]) -> Iterator[tuple]:
    _check_columns(split, names, str(split.split or "dataset"))
    for batch in split.select_columns(names).iter(batch_size=1000):
        yield from zip(*(batch[name] for name in names))


def _check_columns(split: Dataset | IterableDataset, names: list[str], where: str) -> None:
    known = split.column_names
    missing = [name for name in names if known is not None and name not in known]
    if missing:
        raise ValueError(f"{where} has no column {missing[0]!r}; its columns are {known}.")


@dataclass
class HcalDataCollator:
    """Pads token columns and builds the targets of a batch.

    Args:
        tokenizer: pads `input_ids` and what belongs to them; not needed for rows of `pooled_states` alone.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode (*optional*): with `"single_path"`, rows whose labels are not one path are refused.
        pad_to_multiple_of (*optional*): pads token columns to a multiple of this length.
        targets: `"multi_hot"`: float32 [B, L]. `"indices"`: int64 [B, K], padded with -100. `"auto"`: indices above 4,096
            labels.

    Raises:
        ValueError: for token columns without a tokenizer, or a row that is not one path under `single_path`.
    """

    tokenizer: PreTrainedTokenizerBase | None
    taxonomy: Taxonomy
    label_mode: str | None = None
    pad_to_multiple_of: int | None = None
    targets: Literal["auto", "multi_hot", "indices"] = "auto"

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [dict(row) for row in features]
        labels = [row.pop("labels") for row in rows] if "labels" in rows[0] else None
        pooled = [row.pop("pooled_states") for row in rows] if "pooled_states" in rows[0] else None
        batch: dict[str, torch.Tensor] = {}
        if rows[0]:
            if self.tokenizer is None:
                raise ValueError(
                    f"The rows have token columns {sorted(rows[0])}, but there is no tokenizer to pad them: pass "
                    "processing_class=tokenizer to HcalTrainer, or tokenizer to HcalDataCollator."
                )
            padded = pad_without_fast_tokenizer_warning(
                self.tokenizer, rows, pad_to_multiple_of=self.pad_to_multiple_of, return_tensors="pt"
            )
            batch.update(padded)
        if pooled is not None:
            batch["pooled_states"] = torch.from_numpy(np.asarray(pooled, dtype=np.float32))
        if labels is not None:
            batch["labels"] = self._targets(labels)
        return batch

    def _targets(self, labels: list[Any]) -> torch.Tensor:
        sizes = np.fromiter(map(len, labels), dtype=np.int64, count=len(labels))
        nodes = np.concatenate([np.asarray(row, dtype=np.int64) for row in labels])
        starts = np.cumsum(sizes) - sizes
        column = np.arange(len(nodes)) - np.repeat(starts, sizes)
        if self.label_mode == "single_path" and (
            not sizes.all() or not np.array_equal(self.taxonomy.depths[nodes], column)
        ):
            for row in labels:
                _check_one_path(np.asarray(row, dtype=np.int64), self.taxonomy)
        document = torch.from_numpy(np.repeat(np.arange(len(labels)), sizes))
        flat = torch.from_numpy(nodes)
        if self.targets == "multi_hot" or (
            self.targets == "auto" and self.taxonomy.num_labels <= MAX_MULTI_HOT_LABELS
        ):
            dense = torch.zeros(len(labels), self.taxonomy.num_labels)
            dense[document, flat] = 1.0
            return dense
        padded = torch.full((len(labels), max(int(sizes.max()), 1)), -100)
        padded[document, torch.from_numpy(column)] = flat
        return padded

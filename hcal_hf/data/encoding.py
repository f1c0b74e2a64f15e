"""Encodes any table of texts and labels."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import numpy as np
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..taxonomy import SEPARATOR, Taxonomy
from ..token_limits import check_max_length, tokenize
from .label_checks import describe_misfit, find_misfits
from .labels import LabelReader
from .rows import AnyDataset, BadRow, BadRowsError, check_columns, class_names, column_names, iterate_splits
from .tables import UNREADABLE, read_table
from .texts import join_texts, text_problem

logger = logging.get_logger(__name__)

# The number of different label sets that an encoder caches. Most documents share theirs with others.
MAX_CACHED_LABEL_SETS = 2**16
# Columns that carry what happened to a row through `datasets.map`.
_PROBLEM, _COMPLETED, _TRUNCATED, _UNLABELLED = _ROW_REPORT = ("_problem", "_completed", "_truncated", "_unlabelled")


def encode_dataset(
    dataset: AnyDataset,
    taxonomy: Taxonomy,
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[str] = "text",
    labels: str | Sequence[str] | None = "labels",
    *,
    separator: str = SEPARATOR,
    delimiter: str | None = None,
    empty_means_none: bool = False,
    label_mode: Literal["single_path", "multi_path"] | None = None,
    partial_paths: bool = True,
    max_length: int | None = None,
    on_bad_row: Literal["raise", "drop"] = "raise",
    keep_columns: Sequence[str] = (),
    num_proc: int | None = None,
    prefix: str = "",
    truncated: dict[str, int] | None = None,
) -> Any:
    """Tokenises the texts and turns the labels into ancestor-complete node indices.

    Args:
        dataset: a `datasets` table or dictionary of tables, in memory or streaming; or what [`read_table`] reads: a file, a
            folder of split files, a name on the Hub, or a DataFrame.
        taxonomy ([`Taxonomy`]): the hierarchy.
        tokenizer: the encoder's tokenizer.
        text: the column of texts, or several columns, which are joined by a line break.
        labels: the column of labels; each value is a label, a path string, a list of labels, or a list of paths. Or a
            list of columns, one per level from the root down. None for a table without labels. Rows with a missing value,
            an empty cell or the `ClassLabel` -1 are unlabelled and left out, and their number is logged.
        separator: separates the steps of a path string.
        delimiter: separates several labels in one string, if there can be several.
        empty_means_none: reads a missing value or an empty cell as a document that has no label, which `"multi_path"`
            allows, and not as an unlabelled one.
        label_mode: the model's label mode; with `"single_path"` a row is bad unless its labels are exactly one path.
        partial_paths: if False, a row with a path that ends at an inner node is bad.
        max_length: the maximum number of tokens; the tokenizer's own limit by default. Longer texts are truncated, and
            their number is logged. For a model with windows, give `model.max_tokens`.
        on_bad_row: `"raise"` raises one [`BadRowsError`] that lists the bad rows by split and index. `"drop"` leaves them
            out and logs how many. The bad rows of a stream are met only when it is read.
        keep_columns: columns that encoded tables keep, such as keys or weights. Remove them before training.
        num_proc: the number of processes for tables in memory.
        prefix: precedes each text (`config.text_prefix` of the model).
        truncated (*optional*): gets the number of truncated texts of each split of a table in memory, by its name.

    Returns:
        the same kind of table with the tokenizer's columns and `labels` (sorted int64 indices). The numbers of added
        ancestors, truncated texts and dropped rows are logged (for a stream, dropped rows only).

    Raises:
        BadRowsError: if there are bad rows: unknown labels, texts that are not strings, empty texts, and the cases above.
        ValueError: if a column or an option does not exist.
    """
    if on_bad_row not in ("raise", "drop"):
        raise ValueError(f'on_bad_row must be "raise" or "drop", got {on_bad_row!r}.')
    if not isinstance(taxonomy, Taxonomy):
        raise ValueError(f"taxonomy must be a Taxonomy, got {type(taxonomy).__name__}: use build_taxonomy(table).")
    if not callable(tokenizer):
        raise ValueError(
            f"tokenizer must be a tokenizer, got {tokenizer!r}: use AutoTokenizer.from_pretrained(encoder)."
        )
    texts = column_names(text, "text")
    if label_mode not in (None, "single_path", "multi_path"):
        raise ValueError(f'label_mode must be "single_path", "multi_path" or None, got {label_mode!r}.')
    if max_length is not None:
        check_max_length(max_length)
    reader = None
    if labels is not None:
        reader = LabelReader(labels, separator, delimiter, empty_means_none)
    if max_length is None and tokenizer.model_max_length > 10**9:
        logger.warning(
            "Texts will not be truncated: the tokenizer has no maximum length and max_length is not given. Set max_length "
            "to the encoder's limit."
        )
    if label_mode == "single_path":
        taxonomy.check_single_path()
    dataset = read_table(dataset)
    encoded: dict[str, Any] = {}
    bad_rows: list[BadRow] = []
    summaries: list[str] = []
    for split_name, split in iterate_splits(dataset):
        if taken := sorted({"labels", *tokenizer("a").keys()} & set(keep_columns)):
            raise ValueError(f"keep_columns names {taken[0]!r}, which encoding writes itself: rename that column.")
        check_columns(split, [*texts, *(reader.column_list if reader else []), *keep_columns], split_name)
        if reader:
            reader = replace(reader, class_names=class_names(split, reader.column_list))
        encoder = RowEncoder(taxonomy, tokenizer, texts, reader, label_mode, partial_paths, max_length, prefix)
        if isinstance(split, IterableDataset):
            if keep_columns:
                raise ValueError("keep_columns needs tables in memory, and this is a stream: leave it out.")
            encoded[split_name] = _encode_stream(split, encoder, split_name, on_bad_row)
        else:
            encoded[split_name], bad_rows_of_split, summary, number = _encode_table(
                split, encoder, split_name, num_proc, keep_columns
            )
            if truncated is not None:
                truncated[split_name] = number
            bad_rows += bad_rows_of_split
            summaries += [summary] if summary else []
    if bad_rows and on_bad_row == "raise":
        raise BadRowsError(bad_rows)
    for summary in summaries:
        logger.warning(summary)
    if not isinstance(dataset, DatasetDict | IterableDatasetDict):
        return next(iter(encoded.values()))
    return type(dataset)(encoded)


class RowEncoder:
    """Encodes batches of rows. The attributes alone determine the result, so that `datasets` can cache it."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        tokenizer: PreTrainedTokenizerBase,
        texts: list[str],
        reader: LabelReader | None,
        label_mode: str | None,
        partial_paths: bool,
        max_length: int | None,
        prefix: str = "",
    ):
        self.taxonomy, self.tokenizer, self.texts, self.reader = taxonomy, tokenizer, texts, reader
        self.label_mode, self.partial_paths, self.max_length = label_mode, partial_paths, max_length
        self.prefix = prefix
        self._cached_nodes: dict[Any, list[int] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached_nodes": {}}  # keeps the fingerprint free of the rows met so far

    def features(self) -> Features:
        """Returns the types of the new columns, which `datasets` cannot infer from an empty first batch."""
        names = list(self.tokenizer("a").keys())
        small = ("attention_mask", "token_type_ids")
        columns = {name: List(Value("int8" if name in small else "int32")) for name in names}
        if self.reader:
            columns["labels"] = List(Value("int64"))
        row_report = {
            _PROBLEM: Value("string"),
            _COMPLETED: Value("int32"),
            _TRUNCATED: Value("bool"),
            _UNLABELLED: Value("bool"),
        }
        return Features({**columns, **row_report})

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        texts, problems, rows, completed, unlabelled = self.read(batch)
        clean = ["" if problem else self.prefix + text for text, problem in zip(texts, problems)]
        tokens = tokenize(self.tokenizer, clean, truncation=True, max_length=self.max_length)
        # Only fast tokenizers keep the tokens that were cut off.
        truncated = [bool(e.overflowing) for e in tokens.encodings] if tokens.encodings else [False] * len(texts)
        row_report = {_PROBLEM: problems, _COMPLETED: completed, _TRUNCATED: truncated, _UNLABELLED: unlabelled}
        columns = {**tokens, **row_report}
        return {**columns, "labels": rows} if self.reader else columns

    def read(
        self, batch: dict[str, list]
    ) -> tuple[list[Any], list[str | None], list[list[int]], np.ndarray, list[bool]]:
        """Reads texts and labels of a batch, without tokenising.

        Returns:
            the text and the problem of each row, and the labels as from [`encode_labels`], empty without label columns.
        """
        texts = list(map(join_texts, zip(*(batch[name] for name in self.texts))))
        unreadable = batch.get(UNREADABLE, [None] * len(texts))
        problems: list[str | None] = [reason or text_problem(text) for reason, text in zip(unreadable, texts)]
        rows: list[list[int]] = []
        completed = np.zeros(len(texts), dtype=np.int64)
        unlabelled = [False] * len(texts)
        if self.reader:
            rows, completed, unlabelled = self.encode_labels(
                [batch[name] for name in self.reader.column_list], problems
            )
        return texts, problems, rows, completed, unlabelled

    def encode_labels(
        self, columns: list[list], problems: list[str | None]
    ) -> tuple[list[list[int]], np.ndarray, list[bool]]:
        """Encodes the label columns of N rows.

        Args:
            columns: the label columns, each with N values.
            problems: the problem of each row so far; the first problem of a row's labels is written into it.

        Returns:
            the sorted nodes of each row's labels with all ancestors, the number of added ancestors [N], and whether each
            row is unlabelled.
        """
        found = [self._named_nodes(cells, row, problems) for row, cells in enumerate(zip(*columns))]
        unlabelled = [nodes is None for nodes in found]
        named_nodes = [nodes or [] for nodes in found]
        number = self.taxonomy.num_labels
        owners = np.repeat(np.arange(len(named_nodes)), list(map(len, named_nodes)))
        nodes = np.fromiter(chain.from_iterable(named_nodes), dtype=np.int64, count=len(owners))
        named = np.bincount(np.unique(owners * number + nodes) // max(number, 1), minlength=len(named_nodes))
        owners, nodes = self.taxonomy.complete_rows(owners, nodes)
        sizes = np.bincount(owners, minlength=len(named_nodes))
        ends, flat = np.cumsum(sizes).tolist(), nodes.tolist()
        rows = [flat[start:end] for start, end in zip([0, *ends], ends)]
        suspects = find_misfits(sizes, nodes, self.taxonomy, self.label_mode, self.partial_paths)
        for row in np.flatnonzero(suspects).tolist():
            if problems[row] is None and not unlabelled[row]:
                problems[row] = describe_misfit(
                    np.array(rows[row]), self.taxonomy, self.label_mode, self.partial_paths
                )
        return rows, sizes - named, unlabelled

    def _named_nodes(self, cells: Sequence[Any], row: int, problems: list[str | None]) -> list[int] | None:
        """Returns the nodes that one row names, without ancestors; None for an unlabelled row.

        Notes a problem and returns no nodes if there is one.
        """
        try:
            key = _cache_key(cells)
            if key in self._cached_nodes:
                return self._cached_nodes[key]
            nodes = self._read_labels(cells)
            if len(self._cached_nodes) < MAX_CACHED_LABEL_SETS:
                self._cached_nodes[key] = nodes
        except (ValueError, TypeError) as problem:
            problems[row] = problems[row] or str(problem)
            return []
        return nodes

    def _read_labels(self, cells: Sequence[Any]) -> list[int] | None:
        assert self.reader is not None
        labels = self.reader(cells, known=self.taxonomy.label_index.keys())
        return None if labels is None else list(self.taxonomy.given_nodes(labels))


def _cache_key(value: Any) -> Any:
    """Turns lists and arrays into tuples, and numbers into (type, text): 1, 1.0 and True are equal as keys only."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_cache_key, value))
    return (type(value), repr(value))


def _encode_table(
    split: Dataset, encoder: RowEncoder, split_name: str, num_proc: int | None, keep_columns: Sequence[str]
) -> tuple[Dataset, list[BadRow], str, int]:
    """Encodes a table in memory.

    Returns:
        the encoded table without its bad rows, the bad rows, a summary of the changes ("" if none), and the number of
        truncated texts.
    """
    if not len(split):  # `map` would return the old columns
        kept = {name: split.features[name] for name in keep_columns}
        new = {name: feature for name, feature in encoder.features().items() if name not in _ROW_REPORT}
        return Dataset.from_dict({name: [] for name in {**kept, **new}}, Features({**kept, **new})), [], "", 0
    mapped = split.map(
        encoder,
        batched=True,
        remove_columns=[name for name in split.column_names if name not in keep_columns],
        features=Features({**{name: split.features[name] for name in keep_columns}, **encoder.features()}),
        num_proc=num_proc,
        desc=f"Encoding {split_name}",
    )
    bad_rows = [(split_name, index, problem) for index, problem in enumerate(mapped[_PROBLEM]) if problem]
    unlabelled = np.asarray(mapped[_UNLABELLED][:], dtype=bool)
    left_out = unlabelled.copy()
    left_out[[index for _, index, _ in bad_rows]] = True
    number_unlabelled = int(left_out.sum()) - len(bad_rows)
    if left_out.any():
        mapped = mapped.select(np.flatnonzero(~left_out))
    completed, truncated = np.asarray(mapped[_COMPLETED][:]), np.asarray(mapped[_TRUNCATED][:])
    changes = []
    if completed.any():
        changes.append(f"{completed.sum():,} ancestors added to {(completed > 0).sum():,} rows")
    if truncated.any():
        limit = "the limit of the model" if encoder.max_length is None else encoder.max_length
        changes.append(f"{truncated.sum():,} texts truncated to {limit} tokens")
    if bad_rows:
        changes.append(f"{len(bad_rows):,} bad rows left out")
    if number_unlabelled:
        changes.append(f"{number_unlabelled:,} unlabelled rows left out")
    summary = f"{split_name}: {len(mapped):,} rows encoded; {'; '.join(changes)}." if changes else ""
    return mapped.remove_columns(list(_ROW_REPORT)), bad_rows, summary, int(truncated.sum())


def _encode_stream(split: IterableDataset, encoder: RowEncoder, split_name: str, on_bad_row: str) -> IterableDataset:
    columns = split.column_names or list(next(iter(split.take(1)), ()))
    if not columns:
        raise ValueError(f"{split_name} is a stream without rows: check its source.")

    def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = encoder(batch)
        bad_rows = [(split_name, index, problem) for index, problem in zip(indices, rows[_PROBLEM]) if problem]
        if bad_rows and on_bad_row == "raise":
            raise BadRowsError(bad_rows)
        if bad_rows:
            _, index, problem = bad_rows[0]
            logger.warning(f"{split_name}: {len(bad_rows)} bad rows left out, first: [{index}] {problem}.")
        keep = [i for i, problem in enumerate(rows[_PROBLEM]) if not problem and not rows[_UNLABELLED][i]]
        kept = {key: values for key, values in rows.items() if key not in _ROW_REPORT}
        return {key: [values[index] for index in keep] for key, values in kept.items()}

    features = {name: feature for name, feature in encoder.features().items() if name not in _ROW_REPORT}
    return split.map(encode, batched=True, with_indices=True, remove_columns=columns, features=Features(features))

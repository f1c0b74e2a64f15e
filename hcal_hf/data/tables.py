"""Reads tables of any format and size: in windows ([`TableFile`]) or as a data set ([`read_table`])."""

import contextlib
import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .annotation_exports import read_annotations
from .table_formats import (
    FORMATS,
    TEXT_FORMATS,
    ArrowRecords,
    CsvRecords,
    ExcelRecords,
    LineRecords,
    Records,
    Row,
    detect_delimiter,
    detect_encoding,
    excel_header,
    is_json_array,
    open_arrow,
    open_excel,
    open_parquet,
    read_json_array,
    sample_lines,
)
from .texts import text_problem

logger = logging.get_logger(__name__)

SPLITS = ("train", "validation", "test")
# The column of a data set that holds the reason why a row of its file cannot be read.
UNREADABLE = "_unreadable"
_EMPTY = -1  # the depth of an empty list
_ALTERNATIVES = {
    ".xls": "save the sheet as .xlsx or as CSV UTF-8",
    ".ods": "save the sheet as .xlsx or as CSV UTF-8",
}


class TableFile:
    """Reads the rows of a file in windows, in bounded memory.

    Cells of text formats and Excel files are text, so that "NA", "007" and "1.0" are read as they are written. Cells of
    JSON, Parquet and Arrow files keep their types.

    Args:
        path: `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json`, `.txt` (one text per line), each also with `.gz`; `.xlsx`,
            `.parquet` or `.arrow`.
        encoding: the encoding of text formats; detected by default ([`detect_encoding`]).
        delimiter: separates the cells of a CSV file; detected by default among comma, semicolon, tab and bar.

    Attributes:
        kind (`str`): one of the values of `FORMATS`.
        columns (`list[str]`): the names of the columns; for JSON lines those of the first 100 rows.
        total, position (`int`): the size of the file and the part of it that has been read, in bytes or rows.

    Raises:
        ValueError: for another or a damaged file, with what to do about it.
        FileNotFoundError: if there is no such file.
        ImportError: for an Excel file without openpyxl.
    """

    def __init__(self, path: str | Path, encoding: str | None = None, delimiter: str | None = None):
        self.path = Path(path)
        is_gzip = self.path.suffix.lower() == ".gz"
        suffix = (Path(self.path.stem).suffix if is_gzip else self.path.suffix).lower()
        if suffix not in FORMATS or (is_gzip and FORMATS[suffix] not in TEXT_FORMATS):
            allowed = "allowed are .csv, .tsv, .jsonl, .json, .txt, each also with .gz, .xlsx, .parquet and .arrow"
            raise ValueError(f"{self.path} cannot be read as a table: {_ALTERNATIVES.get(suffix, allowed)}.")
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file {self.path}.")
        self.kind = FORMATS[suffix]
        self.position = 0
        self.encoding = self.delimiter = ""
        if self.kind in TEXT_FORMATS:
            self.total = self.path.stat().st_size
            with _damage_named(self.path):
                self.encoding = self._check_encoding(encoding)
                self.columns = self._text_columns(suffix, delimiter)
        else:
            self.columns, self.total = self._typed_columns()

    def _check_encoding(self, encoding: str | None) -> str:
        if encoding is None:
            return detect_encoding(self.path)
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"encoding={encoding!r} is unknown: give utf-8, cp1252, utf-16, ...") from None
        # A byte-order mark is not a part of the first name.
        return "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding

    def _text_columns(self, suffix: str, delimiter: str | None) -> list[str]:
        if self.kind == "text":
            return ["text"]
        if self.kind == "csv":
            lines = sample_lines(self.path, self.encoding, is_csv=True)
            self.delimiter = delimiter or ("\t" if suffix == ".tsv" else detect_delimiter(lines))
            if len(self.delimiter) != 1:
                raise ValueError(f"delimiter must be one character, got {self.delimiter!r}.")
            header = next(csv.reader(lines, delimiter=self.delimiter), [])
            if not header:
                raise ValueError(f"{self.path} is empty: its first line must name the columns.")
            return header
        rows: list[Any]
        if is_json_array(self.path):
            rows = read_json_array(self.path, self.encoding)[:100]
        else:
            rows = [_parsed(line) for line in sample_lines(self.path, self.encoding, is_csv=False) if line.strip()]
        return list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))

    def _typed_columns(self) -> tuple[list[str], int]:
        if self.kind == "parquet":
            parquet = open_parquet(self.path)
            with parquet:
                return list(parquet.schema_arrow.names), int(parquet.metadata.num_rows)
        if self.kind == "arrow":
            arrow = open_arrow(self.path)
            try:
                return arrow.columns, sum(batch.num_rows for batch in arrow.batches())
            finally:
                arrow.close()
        book = open_excel(self.path)
        try:
            sheet = book.worksheets[0]
            if len(book.worksheets) > 1:
                logger.warning(f"{self.path} has {len(book.worksheets)} sheets; the first, {sheet.title!r}, is read.")
            header = excel_header(next(sheet.iter_rows(values_only=True), ()))
            if not any(header):
                raise ValueError(f"{self.path} is empty: its first row must name the columns.")
            return header, max((sheet.max_row or 1) - 1, 0)
        finally:
            book.close()

    def check_columns(self, names: Sequence[str]) -> None:
        """Raises a ValueError for a column that the file does not have, with the closest and all existing names."""
        if not self.columns:
            return  # JSON lines without a readable row: the rows report it
        for name in names:
            if self.columns.count(name) > 1:
                raise ValueError(
                    f"{self.path} has {self.columns.count(name)} columns {name!r}: rename all except one of them."
                )
            if name not in self.columns:
                close = difflib.get_close_matches(name, self.columns, n=1)
                raise ValueError(
                    f"{self.path} has no column {name!r}{f', but {close[0]!r}' if close else ''}: its columns are "
                    f"{', '.join(map(repr, self.columns))}."
                )

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        """Yields all rows, with the requested columns. Blank lines of JSON lines and CSV files are skipped."""
        for _, rows in self.windows(names, 1000):
            yield from rows or ()

    def windows(
        self, names: Sequence[str], size: int, is_wanted: Callable[[int], bool] = lambda index: True
    ) -> Iterator[tuple[int, list[Row] | None]]:
        """Yields (index, rows) for each window of `size` rows, with None instead of the rows of unwanted windows."""
        with self._open(names) as records:
            for index in count():
                wanted = is_wanted(index)
                with _damage_named(self.path):
                    raw = list(islice(records.rows, size))
                if not raw:
                    return
                rows = [records.read(record) for record in raw] if wanted else None
                self.position = records.position()
                yield index, rows

    def _open(self, names: Sequence[str]) -> Records:
        if self.kind in ("parquet", "arrow"):
            return ArrowRecords(self.path, names, self.kind == "parquet")
        if self.kind == "excel":
            return ExcelRecords(self.path, names)
        if self.kind == "csv":
            return CsvRecords(self.path, self.encoding, names, self.delimiter)
        return LineRecords(self.path, self.encoding, names, self.kind == "json lines")


def read_table(
    source: Any,
    *,
    encoding: str | None = None,
    delimiter: str | None = None,
    splits: Sequence[str] | None = None,
) -> Any:
    """Reads a table as a data set of the `datasets` library.

    Cells of CSV, Excel and JSON files become strings or None, so that "NA", "007" and "1.0" are read as they are written.
    A JSON column in which all cells are lists of strings, or lists of these, keeps them. In any other JSON column lists and
    objects become their JSON text, which [`LabelReader`] reads as the list. Rows that cannot be
    read have None in all columns and the reason in the column `_unreadable`, which `encode_dataset` reports as bad rows.
    Data are kept on disk, not in memory.

    Args:
        source: a file ([`TableFile`] lists the formats); a folder with files named train, validation and test; a name on
            the Hub; a data set, which is returned as it is; or a pandas or polars DataFrame. Exports of Label Studio
            (JSON, JSON-MIN, CSV) and Argilla 2 (JSON, data sets) get one column of labels per question, with the labels of
            the ground truth, or else the most frequent ones. Documents without an annotation are unlabelled.
        encoding, delimiter: as for [`TableFile`].
        splits: the splits of a folder or of a data set on the Hub; all of train, validation and test that exist by
            default, and train is required.

    Returns:
        `datasets.Dataset` for a file or a DataFrame; `datasets.DatasetDict` for a folder or a name on the Hub.

    Raises:
        ValueError: for a source that cannot be read, with what to do about it.
        FileNotFoundError: for a missing file or folder.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset

    if isinstance(source, Dataset | DatasetDict | IterableDataset | IterableDatasetDict):
        return read_annotations(source, "The data set")
    if type(source).__module__.split(".")[0] == "polars":
        return Dataset.from_polars(source)
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return _from_pandas(source)
    if not isinstance(source, str | Path):
        raise ValueError(
            f"A table must be a path, a name on the Hub, a data set or a DataFrame, got {type(source).__name__}. Use "
            "datasets.Dataset.from_list(rows) for a list of rows."
        )
    path = Path(source)
    if path.is_dir():
        files = _split_files(path, splits)
        return DatasetDict(
            {name: read_table(file, encoding=encoding, delimiter=delimiter) for name, file in files.items()}
        )
    if not path.is_file() and not path.suffix and len(path.parts) <= 2:
        loaded = load_dataset(str(source))
        for split in ("train",) if splits is None else splits:
            if split not in loaded:
                raise ValueError(f"{source} has no split named {split}, only {sorted(loaded)}.")
        chosen = loaded if splits is None else DatasetDict({split: loaded[split] for split in splits})
        return read_annotations(chosen, str(source))
    table = TableFile(path, encoding, delimiter)
    if table.kind == "parquet":
        return read_annotations(Dataset.from_parquet(str(path)), str(path))
    if table.kind == "arrow":
        return read_annotations(load_dataset("arrow", data_files=str(path), split="train"), str(path))
    return read_annotations(_from_file(table), str(path), table.kind == "csv")


def _split_files(folder: Path, splits: Sequence[str] | None) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for split in SPLITS if splits is None else splits:
        for path in sorted(folder.glob(f"{split}.*")):
            if Path(path.name.removesuffix(".gz")).suffix not in FORMATS:
                continue
            if split in files:
                raise ValueError(f"{folder} has two files for {split}: {files[split]} and {path}. Remove one of them.")
            files[split] = path
    for split in ("train",) if splits is None else splits:
        if split not in files:
            raise ValueError(
                f"{folder} has no {'training' if split == 'train' else split} file: it must hold {split}.jsonl "
                "(or .csv, .xlsx, .parquet, ...)."
            )
    return files


def _from_pandas(frame: Any) -> Any:
    """Converts a DataFrame without its index. Cells of a column with mixed types become text."""
    import pyarrow as pa
    from datasets import Dataset

    columns = {}
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"The DataFrame has several columns {name!r}: give each column a name of its own.")
    for name in frame.columns:
        values = frame[name]
        cells = [None if _is_nan(value) else value for value in values.tolist()]
        try:
            columns[str(name)] = pa.array(cells)
        except UnicodeEncodeError as problem:
            problems = (
                (i, text_problem(cell)) for i, cell in enumerate(cells) if isinstance(cell, str) and cell.strip()
            )
            row, reason = next((i, reason) for i, reason in problems if reason)
            raise ValueError(f"Column {name!r}, row {row}: {reason}") from problem
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[str(name)] = pa.array([_as_text(cell) for cell in cells], pa.string())
    return Dataset(pa.table(columns))


def _is_nan(value: Any) -> bool:
    return value is None or value != value if not hasattr(value, "__len__") else False


def _from_file(table: TableFile) -> Any:
    from datasets import Dataset, Features, List, Value

    names = [name for name in table.columns if name and table.columns.count(name) == 1]
    if not names and any(table.columns):
        raise ValueError(
            f"{table.path} names several columns {table.columns[0]!r}: give each column a name of its own."
        )
    if not names:
        raise ValueError(f"{table.path} has no row that can be read.")
    if binary := next((name for name in names if "\0" in name), None):
        raise ValueError(
            f"{table.path} names a column {binary!r:.80}, which is no text: it is a binary file, or a text in another "
            "encoding. Save it as UTF-8, or give encoding=..."
        )
    if next(table.rows(names), None) is None:
        raise ValueError(f"{table.path} names columns but has no rows: {', '.join(map(repr, names))}.")
    stat = table.path.stat()
    depths = _list_depths(table, names) if table.kind == "json lines" else [0] * len(names)
    features: dict[str, Any] = {UNREADABLE: Value("string")}
    for name, depth in zip(names, depths):
        features[name] = Value("string")
        for _ in range(depth):
            features[name] = List(features[name])
    return Dataset.from_generator(
        _generate,
        features=Features({name: features[name] for name in [*names, UNREADABLE]}),
        # The cache of `datasets` depends on these. It takes a list for shards.
        gen_kwargs={
            "path": str(table.path.resolve()),
            "encoding": table.encoding or None,
            "delimiter": table.delimiter or None,
            "names": tuple(names),
            "depths": tuple(depths),
            "version": (stat.st_size, stat.st_mtime_ns),
        },
    )


def _generate(
    path: str,
    encoding: str | None,
    delimiter: str | None,
    names: tuple[str, ...],
    depths: tuple[int, ...],
    version: tuple[int, int],
) -> Iterator[dict[str, Any]]:
    for row in TableFile(path, encoding, delimiter).rows(names):
        cells = (cell if depth else _as_text(cell) for cell, depth in zip(row.cells, depths))
        yield {**dict(zip(names, cells)), UNREADABLE: row.problem}


def _list_depths(table: TableFile, names: Sequence[str]) -> list[int]:
    """Returns for each column 1 if all cells are lists of strings, 2 for lists of lists of strings, and else 0."""
    depths: list[set[int]] = [set() for _ in names]
    for row in table.rows(names):
        for kinds, cell in zip(depths, row.cells):
            if cell is not None:
                kinds |= _list_kinds(cell)
    # An empty list fits both.
    return [max(kinds, default=0) if kinds in ({1}, {2}, {1, _EMPTY}, {2, _EMPTY}) else 0 for kinds in depths]


def _list_kinds(cell: Any) -> set[int]:
    if not isinstance(cell, list):
        return {0}
    if not cell:
        return {_EMPTY}
    if all(isinstance(item, str) for item in cell):
        return {1}
    is_nested = all(isinstance(item, list) and all(isinstance(step, str) for step in item) for item in cell)
    return {2} if is_nested else {0}


def _as_text(cell: Any) -> str | None:
    """Returns a cell as text, with JSON text for lists and objects. Undecodable bytes become question marks."""
    if cell is None:
        return None
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
    return text.encode(errors="replace").decode()


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Converts the errors of damaged compressed files to a ValueError that names the file."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise ValueError(f"{path} is damaged, or was not written to its end: {problem}") from problem

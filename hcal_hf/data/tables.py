"""Rows of a file of any size, read in windows: JSON lines, CSV, TSV, Parquet, or one text a line."""

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

KINDS = {".jsonl": "json lines", ".ndjson": "json lines", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
         ".txt": "text"}  # fmt: skip
_INSTEAD = {
    ".json": 'a JSON array cannot be read row by row: write one object a line and name it .jsonl (jq -c ".[]")',
    ".xlsx": 'save the sheet as "CSV UTF-8"',
    ".xls": 'save the sheet as "CSV UTF-8"',
    ".ods": "save the sheet as CSV, in UTF-8",
    ".arrow": "write it as Parquet: dataset.to_parquet(path)",
}


@dataclass
class Row:
    """One row of a file.

    Attributes:
        cells (`tuple`): the values of the columns asked for; None where there is none.
        problem (`str`, *optional*): why the row cannot be read; its cells are None then.
    """

    cells: tuple[Any, ...]
    problem: str | None = None


class TableFile:
    """A file of rows.

    `datasets` is not used for this: it guesses types, which takes a text such as "NA" or "007" for a missing value or a
    number, and stops at the first line that it cannot parse.

    Args:
        path: `.jsonl`, `.csv`, `.tsv`, `.txt` (each also with `.gz`) or `.parquet`.
        encoding: of the text formats. A byte that does not fit it spoils its row, not the file.

    Attributes:
        kind (`str`): one of the values of `KINDS`.
        total, position (`int`): the size of the file and how much of it has been read, in bytes (Parquet: rows).

    Raises:
        ValueError: for another kind of file, and what to do with it.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: str | Path, encoding: str = "utf-8"):
        self.path = Path(path)
        self.is_gzip = self.path.suffix == ".gz"
        suffix = Path(self.path.stem).suffix if self.is_gzip else self.path.suffix
        if suffix.lower() not in KINDS or (self.is_gzip and KINDS[suffix.lower()] == "parquet"):
            hint = _INSTEAD.get(
                suffix.lower(), "allowed are .jsonl, .csv, .tsv, .txt, each also with .gz, and .parquet"
            )
            raise ValueError(f"{self.path} is no file of rows that can be read: {hint}.")
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file {self.path}.")
        self.kind = KINDS[suffix.lower()]
        # A byte-order mark, as spreadsheets write it, is no part of the first name.
        self.encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
        self.delimiter = "\t" if suffix.lower() == ".tsv" else ","
        self.position = 0
        if self.kind == "parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(self.path) as file:
                self.total = int(file.metadata.num_rows)
                self.columns: list[str] | None = list(file.schema_arrow.names)
        else:
            self.total = self.path.stat().st_size
            self.columns = self._header() if self.kind == "csv" else ["text"] if self.kind == "text" else None

    def check_columns(self, names: Sequence[str]) -> None:
        """Raises ValueError for a column that the file does not have (JSON lines: none of its first 100 rows)."""
        known = self.columns
        if known is None:
            with open(self.path, "rb") as raw, self._open(raw) as file:
                found = [_parsed(line) for line in islice(filter(str.strip, file), 100)]
            known = list(dict.fromkeys(key for row in found if isinstance(row, dict) for key in row))
            if not known:
                return  # empty, or nothing that can be read: the rows will say so
        for name in names:
            if known.count(name) > 1:
                raise ValueError(f"{self.path} has {known.count(name)} columns {name!r}: rename all but one.")
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"{self.path} has no column {name!r}{f', but {close[0]!r}' if close else ''}: its columns are "
                    f"{', '.join(map(repr, known))}."
                )

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        """All rows, with the columns named. Blank lines of JSON lines and CSV are no rows; those of texts are."""
        for window in self.windows(names, 1000):
            yield from window[1] or ()

    def windows(
        self, names: Sequence[str], size: int, is_wanted: Callable[[int], bool] = lambda index: True
    ) -> Iterator[tuple[int, list[Row] | None]]:
        """(index, rows) of each `size` rows in turn; None instead of rows where the window is not wanted."""
        with self._open_rows(names) as records:
            for index in count():
                wanted = is_wanted(index)
                try:
                    raw = list(islice(records.rows, size))
                except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
                    raise ValueError(f"{self.path} is damaged, or was not written to its end: {problem}") from problem
                if not raw:
                    return
                self.position = records.position()
                yield index, [records.read(record) for record in raw] if wanted else None

    # ---- The formats ----

    def _open(self, raw: IO[bytes]) -> IO[str]:
        # Bytes that do not fit become surrogates, which the check of each text finds.
        return io.TextIOWrapper(
            gzip.GzipFile(fileobj=raw) if self.is_gzip else raw,
            encoding=self.encoding,
            errors="surrogateescape",
            newline="" if self.kind == "csv" else "\n",
        )

    def _header(self) -> list[str]:
        with open(self.path, "rb") as raw, self._open(raw) as file:
            line = file.readline()
            if self.delimiter == "," and "," not in line:  # spreadsheets of many countries write semicolons
                self.delimiter = max(";\t", key=line.count) if ";" in line or "\t" in line else ","
        with open(self.path, "rb") as raw, self._open(raw) as file:
            header = next(csv.reader(file, delimiter=self.delimiter), [])
        if not header:
            raise ValueError(f"{self.path} is empty: its first line must name the columns.")
        return header

    def _open_rows(self, names: Sequence[str]) -> "_Records":
        if self.kind == "parquet":
            return _ParquetRecords(self.path, names)
        if self.kind == "csv":
            return _CsvRecords(self, names)
        return _LineRecords(self, names)


class _Records:
    """An open file: its raw records, and how each is read."""

    rows: Iterator[Any]

    def read(self, record: Any) -> Row:
        raise NotImplementedError

    def position(self) -> int:
        raise NotImplementedError

    def __enter__(self) -> "_Records":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class _LineRecords(_Records):
    def __init__(self, table: TableFile, names: Sequence[str]):
        self.names, self.is_json = names, table.kind == "json lines"
        self._raw = open(table.path, "rb")  # noqa: SIM115 (closed in close)
        self._file = table._open(self._raw)
        self.rows = filter(str.strip, self._file) if self.is_json else iter(self._file)

    def read(self, record: str) -> Row:
        if not self.is_json:
            return Row((record.rstrip("\r\n"),))
        nothing = (None,) * len(self.names)
        try:
            values = json.loads(record)
        except (ValueError, RecursionError) as problem:
            # Without the place, so that the same mistake in a million lines is one kind of problem.
            return Row(nothing, f"the line is not JSON: {getattr(problem, 'msg', problem)}")
        if not isinstance(values, dict):
            return Row(nothing, f"the line is no JSON object but {type(values).__name__}")
        return Row(tuple(map(values.get, self.names)))

    def position(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._file.close()
        self._raw.close()


class _CsvRecords(_LineRecords):
    def __init__(self, table: TableFile, names: Sequence[str]):
        super().__init__(table, names)
        self.path = table.path
        # The default refuses texts of more than 131,072 characters; with none, an open quote would read on to the end.
        csv.field_size_limit(2**27)
        reader = csv.reader(self._file, delimiter=table.delimiter, strict=True)
        header = next(reader, [])
        self.columns, self.width = [header.index(name) for name in names], len(header)
        self.rows = self._records(reader)

    def _records(self, reader: Any) -> Iterator[list[str] | str]:
        """Cells, or what is wrong with a row."""
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as problem:
                if "end of data" in str(problem):
                    raise ValueError(
                        f"{self.path}: the row at line {start} opens a quote that is never closed, so that all lines "
                        "after it belong to one cell. Close it, or double the quotes inside the cell."
                    ) from problem
                yield f"the row cannot be read: {problem}"
            else:
                if cells:
                    yield cells

    def read(self, record: list[str] | str) -> Row:
        nothing = (None,) * len(self.names)
        if isinstance(record, str):
            return Row(nothing, record)
        if len(record) != self.width:
            # Cells are shifted, or a text is cut at its comma: what stands in a column is not to be trusted.
            why = f"the row has {len(record)} cells, the header {self.width} (a comma or a line end without quotes?)"
            return Row(nothing, why)
        return Row(tuple(record[i] for i in self.columns))


class _ParquetRecords(_Records):
    def __init__(self, path: Path, names: Sequence[str]):
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path)
        self.names = list(dict.fromkeys(names))
        self._order = [self.names.index(name) for name in names]
        self._read = 0
        self.rows = self._rows()

    def _rows(self) -> Iterator[tuple]:
        for batch in self._file.iter_batches(batch_size=1024, columns=self.names):
            columns = [batch.column(name).to_pylist() for name in self.names]
            for cells in zip(*columns):
                self._read += 1
                yield cells

    def read(self, record: tuple) -> Row:
        return Row(tuple(record[i] for i in self._order))

    def position(self) -> int:
        return self._read

    def close(self) -> None:
        self._file.close()


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def text_problem(text: Any) -> str | None:
    """Why a value is no text that a model can read; None if it is one."""
    if text is None:
        return "there is no text"
    if not isinstance(text, str):
        return f"the text must be a string, got {type(text).__name__}"
    if not text.strip():
        return "the text is empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the text holds bytes or half characters that are no Unicode: is the file in another encoding (cp1252)?"
    return None

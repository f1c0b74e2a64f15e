"""Reads the raw records of each table format. [`hcal_hf.data.tables.TableFile`] chooses the format."""

import codecs
import contextlib
import csv
import datetime
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from transformers.utils import logging

from .annotation_exports import flatten_export
from .compressed import check_zip, decompress, open_bytes

logger = logging.get_logger(__name__)

# The format of each suffix. Text formats may also end in .gz.
FORMATS = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".xlsx": "excel",
}
TEXT_FORMATS = ("json lines", "csv", "text")
DELIMITERS = ",;\t|"
# Records that are read to find the delimiter of a CSV file or the columns of JSON lines.
SAMPLE_ROWS = 100
_CHUNK_BYTES = 2**20
# Bytes that cannot be decoded, as the error handler "surrogateescape" represents them.
_UNDECODABLE = re.compile("[\udc80-\udcff]")
_NOT_ASCII = re.compile("[^\x00-\x7f]")


@dataclass
class Row:
    """Holds one row of a table.

    Attributes:
        cells (`tuple`): the values of the requested columns; None for a missing value.
        problem (`str`, *optional*): the reason why the row cannot be read. Its cells are then None.
    """

    cells: tuple[Any, ...]
    problem: str | None = None


def detect_encoding(path: Path) -> str:
    """Finds the encoding of a text file: UTF-16 with a byte-order mark, UTF-8, or else cp1252.

    Bytes that are not UTF-8 make a file cp1252, the encoding of spreadsheets in Western Europe, only if it contains no
    valid UTF-8 character beyond ASCII. Otherwise the file is a damaged UTF-8 file, and only the rows with these bytes are
    bad. A choice other than UTF-8 is logged.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
    invalid = valid = 0
    with open_bytes(path) as file:
        start = file.read(2)
        if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            logger.warning(f"{path} starts with a byte-order mark of UTF-16 and is read in this encoding.")
            return "utf-16"
        chunk = start + file.read(_CHUNK_BYTES)
        while chunk:
            text = decoder.decode(chunk)
            if not text.isascii():
                undecodable = len(_UNDECODABLE.findall(text))
                invalid += undecodable
                valid += len(_NOT_ASCII.findall(text)) - undecodable
            chunk = file.read(_CHUNK_BYTES)
    if not invalid:
        return "utf-8-sig"
    if valid:
        logger.warning(f"{path} is read as UTF-8, but {invalid:,} byte(s) are not UTF-8. Their rows are bad rows.")
        return "utf-8-sig"
    logger.warning(f'{path} is not UTF-8 and is read as cp1252. Give encoding="..." if it has another encoding.')
    return "cp1252"


def open_text(path: Path, encoding: str, is_csv: bool) -> tuple[IO[bytes], IO[str]]:
    """Opens a text file. Returns the file on disk, for its position, and the decoded text.

    Bytes outside the encoding become surrogates, which [`text_problem`] finds in the rows that contain them.
    """
    raw = open(path, "rb")  # noqa: SIM115 (closed by the reader)
    newline = "" if is_csv else "\n"
    return raw, io.TextIOWrapper(decompress(path, raw), encoding=encoding, errors="surrogateescape", newline=newline)


def detect_delimiter(lines: Sequence[str]) -> str:
    """Finds the delimiter of CSV lines: the one with which most lines have as many cells as the header.

    Among equals, it is the one that gives the most cells, and then the one that comes first in the header.
    """
    scores = {}
    for delimiter in DELIMITERS:
        try:
            widths = [len(cells) for cells in csv.reader(lines, delimiter=delimiter) if cells]
        except csv.Error:
            continue
        if widths and widths[0] > 1:
            consistency = sum(width == widths[0] for width in widths) / len(widths)
            scores[delimiter] = (consistency, widths[0], -lines[0].index(delimiter))
    return max(scores, key=scores.__getitem__) if scores else ","


class Records:
    """An open table: iterates over raw records and converts each to a [`Row`].

    Attributes:
        rows: the raw records, in order.
    """

    rows: Iterator[Any]

    def read(self, record: Any) -> Row:
        """Converts a raw record to a row."""
        raise NotImplementedError

    def position(self) -> int:
        """Returns the position in the file, in bytes or rows, for a progress bar."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class LineRecords(Records):
    """Reads one JSON object or one text per line. A .json file may also hold one array of objects."""

    def __init__(self, path: Path, encoding: str, names: Sequence[str], is_json: bool):
        self.names, self.is_json = names, is_json
        self._raw, self._file = open_text(path, encoding, is_csv=False)
        self.rows = iter(self._file)
        if is_json:
            self.rows = filter(str.strip, self._file)
            if is_json_array(path):
                self.rows = iter(read_json_array(path, encoding))

    def read(self, record: Any) -> Row:
        if not self.is_json:
            return Row((record.rstrip("\r\n"),))
        empty = (None,) * len(self.names)
        values = record
        if isinstance(record, str):
            try:
                values = json.loads(record)
            except (ValueError, RecursionError) as problem:
                # Without the position, so that the same mistake in many lines is one kind of problem.
                return Row(empty, f"the line is not JSON: {getattr(problem, 'msg', problem)}")
        if not isinstance(values, dict):
            return Row(empty, f"the line is not a JSON object but {type(values).__name__}")
        return Row(tuple(map(values.get, self.names)))

    def position(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._file.close()
        self._raw.close()


class CsvRecords(Records):
    """Reads the rows of a CSV or TSV file. A row with too few or too many cells is a bad row."""

    def __init__(self, path: Path, encoding: str, names: Sequence[str], delimiter: str):
        self.path = path
        self._raw, self._file = open_text(path, encoding, is_csv=True)
        # The default limit refuses texts of more than 131,072 characters; without one, an open quote reads to the end.
        csv.field_size_limit(2**27)
        reader = csv.reader(self._file, delimiter=delimiter, strict=True)
        header = next(reader, [])
        self.columns, self.width = [header.index(name) for name in names], len(header)
        self.rows = self._records(reader)

    def _records(self, reader: Any) -> Iterator[list[str] | str]:
        """Yields the cells of each row, or the problem of a row."""
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
        empty = (None,) * len(self.columns)
        if isinstance(record, str):
            return Row(empty, record)
        if len(record) != self.width:
            # The cells are shifted, or a text is cut at its comma, so that no column can be trusted.
            problem = (
                f"the row has {len(record)} cells, the header {self.width} (a comma or a line end without quotes?)"
            )
            return Row(empty, problem)
        return Row(tuple(record[i] for i in self.columns))

    def position(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._file.close()
        self._raw.close()


class ArrowRecords(Records):
    """Reads the rows of a Parquet or Arrow file, one record batch at a time."""

    def __init__(self, path: Path, names: Sequence[str], is_parquet: bool):
        self._file: Any = open_parquet(path) if is_parquet else open_arrow(path)
        self.names = list(dict.fromkeys(names))
        self._order = [self.names.index(name) for name in names]
        self._position = 0
        self.is_parquet = is_parquet
        self.rows = self._records()

    def _batches(self) -> Iterator[Any]:
        if self.is_parquet:
            yield from self._file.iter_batches(batch_size=1024, columns=self.names)
        else:
            yield from self._file.batches()

    def _records(self) -> Iterator[tuple]:
        for batch in self._batches():
            for start in range(0, batch.num_rows, 1024):
                part = batch.slice(start, 1024)
                for cells in zip(*(part.column(name).to_pylist() for name in self.names)):
                    self._position += 1
                    yield cells

    def read(self, record: tuple) -> Row:
        return Row(tuple(record[i] for i in self._order))

    def position(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()


class ExcelRecords(Records):
    """Reads the rows of the first sheet of an .xlsx file as text. The first row names the columns."""

    def __init__(self, path: Path, names: Sequence[str]):
        self._book = open_excel(path)
        sheet = self._book.worksheets[0]
        rows = sheet.iter_rows(values_only=True)
        header = excel_header(next(rows, ()))
        self.columns = [header.index(name) for name in names]
        self._position = 0
        self.rows = (cells for cells in rows if any(cell is not None for cell in cells))

    def read(self, record: tuple) -> Row:
        self._position += 1
        return Row(tuple(excel_text(record[i]) if i < len(record) else None for i in self.columns))

    def position(self) -> int:
        return self._position

    def close(self) -> None:
        self._book.close()


def open_parquet(path: Path) -> Any:
    """Opens a Parquet file.

    Raises:
        ValueError: if it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as problem:
        raise ValueError(f"{path} is damaged, or is not a Parquet file: {problem}") from problem


class open_arrow:
    """Opens an Arrow file in the file or the stream format and iterates over its record batches."""

    def __init__(self, path: Path):
        import pyarrow as pa

        self._source = pa.memory_map(str(path))
        try:
            try:
                self._reader: Any = pa.ipc.open_file(self._source)
                self._is_file = True
            except (pa.ArrowException, OSError):
                self._source.seek(0)
                self._reader = pa.ipc.open_stream(self._source)
                self._is_file = False
        except (pa.ArrowException, OSError) as problem:
            raise ValueError(f"{path} is damaged, or is not an Arrow file: {problem}") from problem
        self.columns = list(self._reader.schema.names)

    def batches(self) -> Iterator[Any]:
        if self._is_file:
            for index in range(self._reader.num_record_batches):
                yield self._reader.get_batch(index)
        else:
            yield from self._reader

    def close(self) -> None:
        self._source.close()


def open_excel(path: Path) -> Any:
    """Opens an .xlsx file for reading in a stream.

    Raises:
        ImportError: without openpyxl.
        ValueError: if the file is damaged.
    """
    try:
        from openpyxl import load_workbook
    except ImportError as missing:
        raise ImportError(
            f'Reading {path} needs openpyxl: pip install "hcal-hf[xlsx]", or save it as CSV.'
        ) from missing
    with contextlib.suppress(zipfile.BadZipFile):
        check_zip(path)
    try:
        return load_workbook(path, read_only=True, data_only=True)
    except Exception as problem:  # openpyxl raises errors of zipfile, XML and its own
        raise ValueError(f"{path} is damaged, or is not an .xlsx file: {problem}") from problem


def excel_header(cells: Sequence[Any]) -> list[str]:
    """Returns the names of the columns of a sheet. Cells without a name are '' and cannot be requested."""
    return [excel_text(cell) or "" for cell in cells]


def excel_text(cell: Any) -> str | None:
    """Returns an Excel cell as text: whole numbers without a decimal point, dates in ISO format."""
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    return cell.isoformat() if hasattr(cell, "isoformat") else str(cell)


def is_json_array(path: Path) -> bool:
    """Returns whether a .json file holds an array instead of one object per line."""
    if path.name.removesuffix(".gz").rpartition(".")[2] != "json":
        return False
    with open_bytes(path) as file:
        start = file.read(1024)
    return start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def read_json_array(path: Path, encoding: str) -> list[Any]:
    """Reads a JSON array as a whole. Exports of annotation tools become one row per document ([`flatten_export`]).

    Raises:
        ValueError: if it is not JSON.
    """
    with open_bytes(path) as file:
        content = file.read()
    try:
        return flatten_export(json.loads(content.decode(encoding)), path.name)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path} is not JSON: {problem}") from problem


def sample_lines(path: Path, encoding: str, is_csv: bool) -> list[str]:
    """Returns the first lines of a text file."""
    raw, file = open_text(path, encoding, is_csv)
    with raw, file:
        return list(islice(file, SAMPLE_ROWS))

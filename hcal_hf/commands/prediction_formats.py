"""Writes predictions as CSV, JSON lines, Excel or Parquet, and separates the rows that need a review."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..taxonomy import SEPARATOR

FORMATS = (".parquet", ".csv", ".tsv", ".jsonl", ".xlsx")
# Rows of a sheet of Excel, without the header.
EXCEL_ROWS = 2**20 - 1
# Formats without lists, in which labels are written as path strings.
_FLAT = (".csv", ".tsv", ".xlsx")
_BUFFER = 1024
Write = Callable[[dict[str, Any]], None]


def confidence(paths: Sequence[Sequence[str]], scores: Sequence[float]) -> float:
    """Returns the probability of the least probable end label of a prediction; 0 if nothing is predicted.

    An end label is one without a predicted label below it.
    """
    inner = {tuple(path[:-1]) for path in paths}
    ends = [score for path, score in zip(paths, scores) if tuple(path) not in inner]
    return min(ends, default=0.0)


def end_paths(paths: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns the paths that do not continue in another one."""
    inner = {tuple(path[:-1]) for path in paths}
    return [list(path) for path in paths if tuple(path) not in inner]


def convert_predictions(
    source: Path, out: Path, *, num_levels: int = 0, review: float | None = None
) -> dict[str, Any]:
    """Converts the Parquet file of [`predict_file`] to the format of `out`.

    Every row gets a `confidence` ([`confidence`]). In CSV and Excel files the labels of a row are path strings, separated
    by "; ", and `names` has the names of the same labels. Files appear as a whole.

    Args:
        source: the Parquet file.
        out: the output; its ending decides the format.
        num_levels: writes one column per level, `level_1` for the top one, up to this number; 0 for none.
        review: rows with a lower confidence have `unsure` set, and are written to a second file, `NAME-review`, instead.

    Returns:
        `out`, and with `review` also `review_file` and `review_rows`.

    Raises:
        ValueError: for another format, a `review` outside 0 to 1, or more rows than a sheet of Excel holds.
    """
    if out.suffix not in FORMATS:
        raise ValueError(f"The output must end in {', '.join(FORMATS)}, got {out}.")
    if review is not None and not 0 <= review <= 1:
        raise ValueError(f"review must be a confidence from 0 to 1, got {review}.")
    total = pq.read_metadata(source).num_rows
    if out.suffix == ".xlsx" and total > EXCEL_ROWS:
        raise ValueError(f"{total:,} rows do not fit into a sheet of Excel, which holds {EXCEL_ROWS:,}: write CSV.")
    schema = _schema(source, out.suffix, num_levels, review)
    report: dict[str, Any] = {"out": str(out)}
    if review is None:
        with open_rows(out, schema) as write:
            for row in _rows(source, out.suffix, num_levels, None):
                write(row)
        return report
    second, number = out.with_name(f"{out.stem}-review{out.suffix}"), 0
    with open_rows(out, schema) as write, open_rows(second, schema) as write_review:
        for row in _rows(source, out.suffix, num_levels, review):
            number += row["unsure"]
            (write_review if row["unsure"] else write)(row)
    return {**report, "review_file": str(second), "review_rows": number}


def _schema(source: Path, suffix: str, num_levels: int, review: float | None) -> pa.Schema:
    fields = list(pq.read_schema(source))
    if suffix in _FLAT:
        fields = [field for field in fields if field.name not in ("scores", "paths")]
    added = [pa.field(f"level_{level}", pa.string()) for level in range(1, num_levels + 1)]
    added += [pa.field("confidence", pa.float64()), *([pa.field("unsure", pa.bool_())] if review is not None else [])]
    return pa.schema([*fields[:-1], *added, fields[-1]])  # the last one is the problem


def _rows(source: Path, suffix: str, num_levels: int, review: float | None) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                paths = end_paths(row["paths"])
                row["confidence"] = round(confidence(row["paths"], row["scores"]), 6)
                if review is not None:
                    row["unsure"] = row["confidence"] < review
                for level in range(num_levels):
                    names = dict.fromkeys(path[level] for path in paths if len(path) > level)
                    row[f"level_{level + 1}"] = "; ".join(names) or None
                if suffix in _FLAT:
                    if "names" in row:
                        ends = {tuple(path) for path in paths}
                        row["names"] = "; ".join(n for n, p in zip(row["names"], row["paths"]) if tuple(p) in ends)
                    row["labels"] = "; ".join(SEPARATOR.join(path) for path in paths)
                yield row


@contextmanager
def open_rows(out: Path, schema: pa.Schema) -> Iterator[Write]:
    """Yields a function that writes one row. The file appears at the end, as a whole."""
    columns = schema.names
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        if out.suffix in (".csv", ".tsv"):
            # With a byte-order mark, so that Excel reads it as UTF-8.
            with open(temporary, "w", encoding="utf-8-sig", newline="") as file:
                delimiter = "\t" if out.suffix == ".tsv" else ","
                writer = csv.DictWriter(file, columns, extrasaction="ignore", delimiter=delimiter)
                writer.writeheader()
                yield writer.writerow
        elif out.suffix == ".jsonl":
            with open(temporary, "w", encoding="utf-8") as file:

                def write_line(row: dict[str, Any]) -> None:
                    file.write(
                        json.dumps({name: row[name] for name in columns}, ensure_ascii=False, default=str) + "\n"
                    )

                yield write_line
        elif out.suffix == ".xlsx":
            book = _new_workbook()
            sheet = book.create_sheet("predictions")
            sheet.append(list(columns))
            yield lambda row: sheet.append([_cell(row[column]) for column in columns])
            book.save(temporary)
        else:
            with pq.ParquetWriter(temporary, schema) as parquet:
                buffer: list[dict[str, Any]] = []

                def write_row(row: dict[str, Any]) -> None:
                    buffer.append(row)
                    if len(buffer) == _BUFFER:
                        parquet.write_table(pa.Table.from_pylist(buffer, schema=schema))
                        buffer.clear()

                yield write_row
                parquet.write_table(pa.Table.from_pylist(buffer, schema=schema))
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _new_workbook() -> Any:
    try:
        from openpyxl import Workbook
    except ImportError as missing:
        raise ImportError('Writing .xlsx needs openpyxl: pip install "hcal-hf[xlsx]", or write CSV.') from missing
    return Workbook(write_only=True)


def _cell(value: Any) -> Any:
    """Returns a value for a cell of Excel, where a text that starts with = would be a formula."""
    if isinstance(value, str) and value.startswith("="):
        return f"'{value}"
    return value

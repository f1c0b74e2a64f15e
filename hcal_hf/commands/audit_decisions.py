"""Applies decisions about missing labels to a labelled table, in the table's own layout."""

import contextlib
import csv
import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..data.encoding import RowEncoder
from ..data.labels import LabelReader
from ..data.rows import class_names
from ..data.table_formats import open_parquet
from ..data.tables import TableFile, read_table
from ..data.texts import join_texts
from ..taxonomy import SEPARATOR, Taxonomy
from .run_arguments import DataArguments
from .run_data import read_or_build_taxonomy
from .saved_model import load_config

_VALUES = ("accept", "reject")
_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass
class Decisions:
    """Holds the decisions about the rows of a table.

    Attributes:
        accepted, rejected (`dict[int, dict[int, int]]`): for each row of the table, from 0, the nodes and the row of the
            decision, from 1.
        undecided (`int`): the number of decisions without a value.
    """

    accepted: dict[int, dict[int, int]] = field(default_factory=dict)
    rejected: dict[int, dict[int, int]] = field(default_factory=dict)
    undecided: int = 0


def apply_decisions(
    tables: DataArguments,
    decisions: str | os.PathLike,
    out: str | os.PathLike,
    *,
    model: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a labelled table with the labels that were accepted, and with all ancestors of them.

    Only the label cells of rows with an accepted label change. All other cells, columns and rows are kept.

    Args:
        tables: the table, its label columns and its hierarchy.
        decisions: a table with the columns `row` (or `document`; from 0), `path`, and `decision`: accept, reject, or empty.
            With a column `text`, it is compared with the text of the row.
        out: the corrected table, with the ending of the table.
        model: a saved model, for its hierarchy.
        overwrite: replaces an existing output.

    Returns:
        `out`, `rows`, `changed` rows, `accepted`, `rejected` and `undecided` decisions, and `present`: accepted labels that
        the row had already.

    Raises:
        ValueError: for decisions that contradict each other, an unknown row, path or value, decisions about another table,
            or a label that the layout of the table cannot hold. The message names the row of the decisions. Nothing is
            written.
        FileExistsError: if the output exists and `overwrite` is not set.
    """
    source, target = Path(str(tables.data_dir)), Path(out)
    endings = [path.name.removesuffix(".gz") for path in (source, target)]
    if not endings[0].endswith(_ENDINGS):
        raise ValueError(
            f"Decisions can be applied to {', '.join(_ENDINGS)} files, got {source}: save it as one of these."
        )
    if Path(endings[0]).suffix != Path(endings[1]).suffix:
        raise ValueError(f"The corrected table must end like the table, in {Path(endings[0]).suffix}, got {target}.")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already: remove it, or give --overwrite.")
    if target.resolve() == source.resolve():
        raise ValueError(f"{target} is the table itself: give another file with --out.")
    table = read_table(source)
    for name in tables.labels:
        if name not in table.column_names:
            raise ValueError(f"{source} has no column {name!r}: name the label columns with --labels.")
    taxonomy = load_config(model).to_taxonomy() if model else read_or_build_taxonomy(table, tables)
    found = read_decisions(decisions, taxonomy, table, tables)
    report: dict[str, Any] = {"out": str(target), "rows": len(table), "changed": 0, "accepted": 0, "present": 0}
    report["rejected"], report["undecided"] = sum(map(len, found.rejected.values())), found.undecided
    changes: dict[int, list[Any]] = {}
    file = _open_layout(source)
    example = next((cells[0] for cells in file.label_cells(tables.labels) if cells[0]), None)
    writer = _CellWriter(taxonomy, table, tables, example)
    for row, cells in enumerate(file.label_cells(tables.labels)):
        nodes = found.accepted.get(row)
        if nodes is None:
            continue
        new, added = writer.add(cells, nodes)
        report["present"] += len(nodes) - added
        if added:
            changes[row] = new
            report["accepted"] += added
    report["changed"] = len(changes)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        file.write(temporary, tables.labels, changes, target.suffix == ".gz")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return report


def read_decisions(file: str | os.PathLike, taxonomy: Taxonomy, table: Any, tables: DataArguments) -> Decisions:
    """Reads and checks decisions. The arguments and errors are those of [`apply_decisions`]."""
    source = read_table(file)
    columns = source.column_names
    row_column = "row" if "row" in columns else "document"
    for name in (row_column, "path", "decision"):
        if name not in columns:
            visible = ", ".join(repr(column) for column in columns if not column.startswith("_"))
            raise ValueError(f"{file} has no column {name!r}: it needs row, path and decision, and has {visible}.")
    decided = Decisions()
    texts = source["text"][:] if "text" in columns and set(tables.text) <= set(table.column_names) else None
    for index, (row, path, value) in enumerate(zip(source[row_column], source["path"], source["decision"])):
        where = f"Row {index + 1} of {file}"
        value = str(value or "").strip().lower()
        if not value:
            decided.undecided += 1
            continue
        if value not in _VALUES:
            raise ValueError(f"{where}: the decision must be accept, reject or empty, got {value!r}.")
        number = _row_number(row, len(table), where)
        if texts is not None and (own := join_texts([table[number][name] for name in tables.text])) != texts[index]:
            raise ValueError(
                f"{where} has another text than row {number} of the table ({str(own)[:80]!r}): the decisions belong to "
                "another table, or rows were moved."
            )
        try:
            node = taxonomy.index(str(path))
        except ValueError as problem:
            raise ValueError(f"{where}: {problem}") from problem
        own_side, other = (decided.accepted, decided.rejected)[:: 1 if value == "accept" else -1]
        if node in other.get(number, {}):
            raise ValueError(
                f"{where} is to {value} {path!r} for row {number}, but row {other[number][node]} decides the opposite: "
                "remove one of them."
            )
        own_side.setdefault(number, {})[node] = index + 1
    for number, nodes in decided.accepted.items():
        for node, at in nodes.items():
            for above in taxonomy.complete([node]).tolist():
                if above in decided.rejected.get(number, {}):
                    raise ValueError(
                        f"Row {at} of {file} accepts {taxonomy.labels[node]!r} for row {number}, but row "
                        f"{decided.rejected[number][above]} rejects {taxonomy.labels[above]!r}, which is above it: remove "
                        "one of them."
                    )
    return decided


def _row_number(value: Any, rows: int, where: str) -> int:
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if not 0 <= number < rows or not number.is_integer():
        raise ValueError(f"{where}: the row must be a whole number from 0 to {rows - 1}, got {value!r}.")
    return int(number)


class _CellWriter:
    """Adds labels to the label cells of a row, in the form in which the cells hold labels.

    Args:
        taxonomy, table, tables: the hierarchy, the rows and their columns.
        example: a cell of the first label column with labels, for the form of rows without labels.
    """

    def __init__(self, taxonomy: Taxonomy, table: Any, tables: DataArguments, example: Any):
        self.example = example
        options = tables.label_options
        self.taxonomy, self.columns = taxonomy, tables.labels
        self.separator, self.delimiter = options["separator"] or SEPARATOR, options["delimiter"]
        self.reader = LabelReader(
            options["labels"], self.separator, self.delimiter, class_names=class_names(table, tables.labels)
        )
        self.encoder = RowEncoder(taxonomy, None, [], self.reader, None, True, None)

    def add(self, cells: Sequence[Any], nodes: dict[int, int]) -> tuple[list[Any], int]:
        """Returns new cells with more nodes, and the number of nodes that are new.

        Args:
            cells: the label cells of the row.
            nodes: the nodes to add, with the row of their decision for the error message.

        Raises:
            ValueError: if the cells cannot be read, or cannot hold the labels.
        """
        at = next(iter(nodes.values()))
        old, problem = self._read(cells)
        if problem:
            raise ValueError(f"Row {at} of the decisions belongs to a row with labels that cannot be read: {problem}")
        added = sum(node not in old for node in nodes)
        wanted = set(self.taxonomy.complete([*old, *nodes]).tolist())
        if not added:
            return list(cells), 0
        for form in self._forms(cells, wanted):
            if self._read(form) == (wanted, None):
                return form, added
        raise ValueError(
            f"Row {at} of the decisions adds {', '.join(repr(self.taxonomy.labels[n]) for n in nodes)}, but the label "
            f"columns {', '.join(map(repr, self.columns))} cannot hold these labels together: "
            + ("a path has more levels than columns." if len(self.columns) > 1 else "give --delimiter, or use lists.")
        )

    def _read(self, cells: Sequence[Any]) -> tuple[set[int], str | None]:
        problems: list[str | None] = [None]
        rows, _, _ = self.encoder.encode_labels([[cell] for cell in cells], problems)
        return set(rows[0]), problems[0]

    def _forms(self, cells: Sequence[Any], wanted: set[int]) -> Iterator[list[Any]]:
        """Yields forms of the cells, the one that is closest to the present cells first."""
        inner = {parent for node in wanted for parent in self.taxonomy.parent_lists[node]}
        ends = sorted(wanted - inner)
        paths = [self.taxonomy.paths(node, limit=1)[0] for node in ends]
        if len(cells) > 1:
            yield from self._level_forms(cells, paths)
            return
        cell = cells[0]
        joined = [self._joined(path) for path in paths]
        labels = [self.taxonomy.labels[node] for node in ends]
        if not cell and isinstance(self.example, list):
            cell = []
        if not isinstance(cell, list) and not str(cell or "").lstrip().startswith("["):
            if len(paths) == 1:
                yield [joined[0]]
            elif self.delimiter:
                yield [f"{self.delimiter} ".join(joined)]
            yield from ([json.dumps(form, ensure_ascii=False)] for form in (paths, labels))
            return
        items = _items(cell) or _items(self.example)
        forms: list[Any] = [paths, joined, labels]
        if items and isinstance(items[0], str):
            is_path = any(self.separator.strip() in item for item in items)
            forms = [joined, labels, paths] if is_path else [labels, joined, paths]
        if isinstance(cell, str):
            forms = [json.dumps(form, ensure_ascii=False) for form in forms]
        yield from ([form] for form in forms)

    def _level_forms(self, cells: Sequence[Any], paths: list[list[str]]) -> Iterator[list[Any]]:
        depth = max(map(len, paths))
        if depth > len(cells):
            return
        levels = [[path[k] if k < len(path) else None for path in paths] for k in range(len(cells))]
        is_list = any(isinstance(cell, list) for cell in cells)
        if len(paths) == 1 and not is_list:
            yield [names[0] for names in levels]
        shared = [names[:1] if len(set(names)) == 1 else names for names in levels]
        for form in (shared, levels):
            cut = [[] if not any(names) else names for names in form]
            if is_list:
                yield cut
            elif self.delimiter and all(None not in names for names in cut):
                yield [f"{self.delimiter} ".join(map(str, names)) or None for names in cut]
            yield [
                None if not names else names[0] if len(names) == 1 else json.dumps(names, ensure_ascii=False)
                for names in cut
            ]

    def _joined(self, path: Sequence[str]) -> str:
        separator = self.separator if self.separator.startswith(" ") else f" {self.separator.strip()} "
        return separator.join(path)


def _items(cell: Any) -> list[Any]:
    """Returns the items of a list, also if it is written as JSON text."""
    if isinstance(cell, str):
        with contextlib.suppress(ValueError):
            cell = json.loads(cell)
    return cell if isinstance(cell, list) else []


# ---- Layouts of files ----


def _open_layout(path: Path) -> Any:
    """Opens a table for reading its label cells and writing it again."""
    kind = TableFile(path).kind
    return {"csv": _CsvLayout, "json lines": _LineLayout, "parquet": _ParquetLayout}[kind](path)


class _TextLayout:
    """A text file, with its encoding and its line ends."""

    def __init__(self, path: Path):
        self.table = TableFile(path)
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            content: bytes = file.read()
        self.has_mark = content.startswith(b"\xef\xbb\xbf")
        encoding = "utf-8" if self.table.encoding == "utf-8-sig" else self.table.encoding
        self.encoding = encoding
        self.text = content.removeprefix(b"\xef\xbb\xbf").decode(encoding, errors="surrogateescape")

    def save(self, path: Path, text: str, is_gzip: bool) -> None:
        content = text.encode(self.encoding, errors="surrogateescape")
        content = b"\xef\xbb\xbf" * self.has_mark + content
        path.write_bytes(gzip.compress(content, mtime=0) if is_gzip else content)


class _CsvLayout(_TextLayout):
    """A CSV or TSV file. Records that do not change are kept character by character."""

    def __init__(self, path: Path):
        super().__init__(path)
        csv.field_size_limit(2**27)
        lines = io.StringIO(self.text, newline="").readlines()
        reader = csv.reader(lines, delimiter=self.table.delimiter, strict=True)
        self.records: list[tuple[str, list[str]]] = []
        start = 0
        for cells in reader:
            self.records.append(("".join(lines[start : reader.line_num]), cells))
            start = reader.line_num
        self.header = self.records[0][1]

    def label_cells(self, columns: Sequence[str]) -> Iterator[list[Any]]:
        indices = [self.header.index(name) for name in columns]
        for _, cells in self.records[1:]:
            if cells:
                yield [cells[i] if i < len(cells) else None for i in indices]

    def write(self, path: Path, columns: Sequence[str], changes: dict[int, list[Any]], is_gzip: bool) -> None:
        indices = [self.header.index(name) for name in columns]
        parts, row = [self.records[0][0]], -1
        for text, cells in self.records[1:]:
            row += bool(cells)
            if cells and row in changes:
                new = list(cells)
                for i, value in zip(indices, changes[row]):
                    new[i] = "" if value is None else value
                end = "\r\n" if text.endswith("\r\n") else "\n" if text.endswith("\n") else ""
                line = io.StringIO(newline="")
                csv.writer(line, delimiter=self.table.delimiter, lineterminator=end).writerow(new)
                text = line.getvalue()
            parts.append(text)
        self.save(path, "".join(parts), is_gzip)


class _LineLayout(_TextLayout):
    """JSON lines. Lines that do not change are kept character by character."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.lines = self.text.split("\n")

    def label_cells(self, columns: Sequence[str]) -> Iterator[list[Any]]:
        for line in self.lines:
            if line.strip():
                values = None
                with contextlib.suppress(ValueError):
                    values = json.loads(line)
                yield [values.get(name) if isinstance(values, dict) else None for name in columns]

    def write(self, path: Path, columns: Sequence[str], changes: dict[int, list[Any]], is_gzip: bool) -> None:
        lines, row = list(self.lines), -1
        for i, line in enumerate(lines):
            row += bool(line.strip())
            if line.strip() and row in changes:
                values = {**json.loads(line), **dict(zip(columns, changes[row]))}
                lines[i] = json.dumps(values, ensure_ascii=False) + ("\r" if line.endswith("\r") else "")
        self.save(path, "\n".join(lines), is_gzip)


class _ParquetLayout:
    """A Parquet file, with its schema and its metadata."""

    def __init__(self, path: Path):
        with open_parquet(path) as file:
            self.table: pa.Table = file.read()

    def label_cells(self, columns: Sequence[str]) -> Iterator[list[Any]]:
        yield from map(list, zip(*(self.table[name].to_pylist() for name in columns)))

    def write(self, path: Path, columns: Sequence[str], changes: dict[int, list[Any]], is_gzip: bool) -> None:
        import pyarrow.parquet as pq

        table = self.table
        for k, name in enumerate(columns):
            index = table.schema.get_field_index(name)
            cells = table[name].to_pylist()
            for row, values in changes.items():
                cells[row] = values[k]
            kind = table.schema.field(index).type
            try:
                column = pa.array(cells, type=kind)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as problem:
                raise ValueError(
                    f"The column {name!r} has the type {kind}, which cannot hold the new labels: write the labels as text "
                    "or as lists of text."
                ) from problem
            table = table.set_column(index, table.schema.field(index), column)
        pq.write_table(table, path)

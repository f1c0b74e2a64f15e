"""What is wrong with a hierarchy, or with the labels of a table of documents, before anything is trained on it."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..taxonomy import SEPARATOR, Taxonomy
from .hierarchy_check import Steps, check_edges, check_paths, finish, shown
from .labels import LabelReader, as_paths
from .tables import TableFile, text_problem
from .validation_report import Findings, Report, Severity

# What `load_dataset` (pandas) takes for an empty cell in a CSV file.
READ_AS_MISSING = {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
                   "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}  # fmt: skip


def check_file(
    path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    edges: Sequence[str] | None = None,
    text: str | None = None,
    taxonomy: str | Path | None = None,
    separator: str = SEPARATOR,
    delimiter: str | None = None,
    identity: Literal["path", "name"] = "path",
    min_documents: int = 5,
    encoding: str = "utf-8",
) -> Report:
    """Checks a hierarchy, or a table of documents and the hierarchy that their labels make.

    Args:
        path: taxonomy JSON (any form that [`Taxonomy.from_json`] reads); a table with a row for each edge; or a table with
            a row for each document (`.csv`, `.tsv`, `.jsonl`, `.parquet`, also `.gz`).
        labels: the column of labels, or one column a level, of a table of documents; `labels` by default.
        edges: the two columns of a table of edges; `parent` and `child` by default. An empty parent makes a root.
        text: the column of texts, to be checked too; `text` where there is one.
        taxonomy: taxonomy JSON that the documents' labels must be in; by default they make their own.
        separator, delimiter: as for [`hcal_hf.encode_dataset`].
        identity: as for [`Taxonomy.from_paths`].
        min_documents: labels with fewer are told; 0 for a table whose rows are paths of a hierarchy and no documents.
        encoding: of text formats.

    Raises:
        ValueError: for a file that is none of these, and columns that it lacks.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    found = Findings()
    if path.suffix == ".json":
        for name, given in {"labels": labels, "edges": edges, "taxonomy": taxonomy}.items():
            if given:
                raise ValueError(f"{name} is for tables; {path} is read as a taxonomy.")
        return _check_json(path, found)
    table = TableFile(path, encoding)
    columns = table.columns or []
    lowered = {column.strip().lower(): column for column in columns}
    if edges is None and labels is None and {"parent", "child"} <= lowered.keys():
        edges = [lowered["parent"], lowered["child"]]
    if edges is not None:
        if labels is not None or len(edges) != 2:
            raise ValueError(f"edges must be the two columns of parent and child, without labels; got {list(edges)}.")
        table.check_columns(edges)
        return _check_edge_table(table, edges, found)
    if labels is None and columns and "labels" not in columns:
        raise ValueError(
            f"{path} has no column 'labels' and no columns 'parent' and 'child': name the columns of the levels (on the "
            f"command line --labels A B C), or those of the edges (--edges A B). There are {columns}."
        )
    labels = list(labels or ["labels"])
    table.check_columns(labels)
    if text is not None:
        table.check_columns([text])
    elif "text" in columns:
        text = "text"
    known = None if taxonomy is None else Taxonomy.from_json(taxonomy)
    reader = LabelReader(labels if len(labels) > 1 else labels[0], separator, delimiter, missing_is_empty=True)
    return _DocumentCheck(table, reader, text, known, identity, min_documents, found).run()


# ---- A hierarchy ----


def _check_json(path: Path, found: Findings) -> Report:
    data = _read_json(path)
    if "labels" in data:
        names, pairs = data["labels"], data.get("edges", ())
        bad = [pair for pair in pairs if len(pair) != 2 or not all(0 <= i < len(names) for i in pair)]
        if bad:
            raise ValueError(f"{path}: edge {bad[0]} does not point to two of the {len(names)} labels.")
        return check_edges(str(path), [(names[a], names[b], f"edge {i}") for i, (a, b) in enumerate(pairs)], names,
                            found, lambda: Taxonomy.from_json(path))  # fmt: skip
    if "paths" in data:
        paths = dict.fromkeys(tuple(steps) for steps in data["paths"])
        check_paths(paths, found, lambda steps: f"path {SEPARATOR.join(map(str, steps))!r}", is_counted=False)
        return finish(str(path), found, lambda: Taxonomy.from_json(path))
    pairs = [(*edge, f"edge {i}") for i, edge in enumerate(data.get("edges", ()))]
    if any(len(pair) != 3 for pair in pairs):
        raise ValueError(f"{path}: an edge must be a pair [parent, child].")
    return check_edges(str(path), pairs, data.get("roots", ()), found, lambda: Taxonomy.from_json(path))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as problem:
        raise ValueError(f"{path} is no JSON: {problem}") from problem
    if not isinstance(data, dict) or not {"labels", "edges", "paths", "roots"} & data.keys():
        shown = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f'{path} must hold an object with "labels" and "edges" (indices), "edges" (label pairs) and "roots", or '
            f'"paths"; found {shown}.'
        )
    return data


def _check_edge_table(table: TableFile, columns: Sequence[str], found: Findings) -> Report:
    triples: list[tuple[Any, Any, str]] = []
    roots: dict[str, None] = {}
    for number, row in enumerate(table.rows(columns)):
        where = _where(table, number)
        parent, child = (str(cell or "").strip() for cell in row.cells)
        if row.problem or not child:
            found.add(
                "error",
                "empty-name",
                "rows that are no edges",
                "Each row must name a child; an empty parent makes it a root.",
                [f"{where}: {row.problem or f'the cell of {columns[1]!r} is empty'}"],
            )
        elif parent:
            triples.append((parent, child, where))
        else:
            roots[child] = None
    # A root may be named as such and have children; what is a child elsewhere is none.
    children = {child for _, child, _ in triples}
    found.add(
        "error",
        "root-with-parent",
        "labels given both without a parent and with one",
        "Remove the row without a parent, or the other.",
        (repr(name) for name in roots if name in children),
    )
    return check_edges(str(table.path), triples, [r for r in roots if r not in children], found, None)


# ---- Documents ----


def _where(table: TableFile, number: int) -> str:
    """A row as a spreadsheet (whose first row are the names of the columns) or an editor counts it."""
    return f"row {number + 2}" if table.kind == "csv" else f"row {number + 1}"


class _DocumentCheck:
    """Reads the rows of a table once, counting; then looks at the hierarchy that they make."""

    def __init__(
        self,
        table: TableFile,
        reader: LabelReader,
        text: str | None,
        taxonomy: Taxonomy | None,
        identity: Literal["path", "name"],
        min_documents: int,
        found: Findings,
    ):
        self.table, self.reader, self.text, self.taxonomy = table, reader, text, taxonomy
        self.identity, self.min_documents, self.found = identity, min_documents, found
        self.columns = reader.column_list
        self.paths: dict[Steps, int] = {}  # each with its first row
        self.counts: Counter[Any] = Counter()  # documents at or below a node
        self.ends: Counter[Any] = Counter()  # documents that end at a node
        self.several: list[int] = []
        self.rows: dict[tuple[str, str], list[int]] = defaultdict(list)  # (kind, what is wrong): where
        self.odd: dict[str, dict[str, None] | None] = {name: {} for name in self.columns}

    def run(self) -> Report:
        wanted = [*self.columns, *([self.text] if self.text else [])]
        documents = 0
        for number, row in enumerate(self.table.rows(wanted)):
            documents += 1
            cells = row.cells[: len(self.columns)]
            if row.problem:
                self.rows["unreadable", row.problem].append(number)
                continue
            if self.table.kind == "csv":
                self._compare_with_datasets(cells, number)
            self._count(cells, number)
            if self.text and (problem := text_problem(row.cells[-1])):
                self.rows["empty-text", problem].append(number)
        self._tell_rows()
        report = self._shape()
        report.documents = documents if self.min_documents else None
        report.findings = self.found.sorted()
        return report

    def _count(self, cells: Sequence[Any], number: int) -> None:
        try:
            given = self.reader(cells, known=self.taxonomy.label_index if self.taxonomy else ())
            if self.taxonomy is not None:
                nodes: list[Any] = self.taxonomy.encode(given).tolist()
                inner = {parent for node in nodes for parent in self.taxonomy.parents(node).tolist()}
            else:
                paths = dict.fromkeys(as_paths(given, self.reader.columns))
                if () in paths:
                    raise ValueError("a path has no steps")
                for path in paths:
                    self.paths.setdefault(path, number)
                nodes = list(dict.fromkeys(path[: i + 1] for path in paths for i in range(len(path))))
                inner = {node[:-1] for node in nodes}
                if self.identity == "name":
                    inner = {node[-1] for node in inner if node}
                    nodes = list(dict.fromkeys(node[-1] for node in nodes))
        except (ValueError, TypeError) as problem:
            text = str(problem)
            kind = "unreadable" if self.taxonomy is None else "unknown-label"
            self.rows["empty-level" if "is empty, but" in text or "empty step" in text else kind, text].append(number)
            return
        if not nodes:
            self.rows["no-labels", "no label"].append(number)
        ends = [node for node in nodes if node not in inner]
        self.counts.update(nodes)
        self.ends.update(ends)
        if len(ends) > 1:
            self.several.append(number)

    def _compare_with_datasets(self, cells: Sequence[Any], number: int) -> None:
        """Notes what `load_dataset` would read in another way than it stands in the file."""
        for name, cell in zip(self.columns, cells):
            if cell in READ_AS_MISSING:
                self.rows["read-as-missing", f"{cell!r} in column {name!r}"].append(number)
            odd = self.odd[name]
            if cell and odd is not None:
                if not _NUMBER.fullmatch(cell):
                    self.odd[name] = None
                elif str(int(float(cell))) != cell and len(odd) < 5:
                    odd[cell] = None

    def _tell_rows(self) -> None:
        for (kind, problem), numbers in sorted(self.rows.items(), key=lambda item: -len(item[1])):
            severity, message, fix = _ROWS[kind]
            first = _where(self.table, numbers[0])
            example = (
                f"{first}: {problem}" if len(numbers) == 1 else f"{len(numbers):,} rows, first {first}: {problem}"
            )
            self.found.add(severity, kind, message, fix, [example])
            self.found.found[kind].rows += len(numbers)
        self.found.add(
            "error",
            "numbers",
            "columns of labels whose codes load_dataset reads as numbers from a CSV file",
            "007 becomes 7: save the table as JSON lines or Parquet, or put a letter before the codes.",
            (f"column {name!r}: {', '.join(odd)}" for name, odd in self.odd.items() if odd),
        )
        if self.min_documents:
            self.found.add(
                "warning",
                "several-paths",
                "documents with several paths",
                'Train with label_mode="multi_path".',
                (_where(self.table, number) for number in self.several),
            )

    def _shape(self) -> Report:
        source = str(self.table.path)
        if self.taxonomy is not None:
            report = Report(source, [], self.taxonomy)
            labels: dict[Any, str] = dict(enumerate(self.taxonomy.labels))
            inner: set[Any] = set(self.taxonomy.edges[:, 0].tolist())
            self.found.add(
                "warning",
                "no-documents",
                "leaves without documents",
                "They cannot be learned: remove them, or find documents.",
                (repr(label) for node, label in labels.items() if node not in inner and not self.counts[node]),
            )
        elif self.identity == "name":
            triples = [
                (a, b, _where(self.table, number))
                for path, number in self.paths.items()
                for a, b in zip(path, path[1:])
            ]
            children = {b for _, b, _ in triples}
            roots = dict.fromkeys(path[0] for path in self.paths if path[0] not in children)
            report = check_edges(source, triples, roots, self.found, None)
            labels = {name: str(name) for name in self.counts}
            inner = {a for a, _, _ in triples}
        else:
            first: dict[Steps, int] = {}
            for path, number in self.paths.items():
                for i in range(len(path)):
                    first.setdefault(path[: i + 1], number)
            below = check_paths(
                self.paths,
                self.found,
                lambda node: _where(self.table, first[node]),
                bool(self.min_documents),
                self.ends,
            )
            report = finish(source, self.found, lambda: Taxonomy.from_paths(self.paths))
            labels = {node: shown(node) for node in first}
            inner = set(below) - {()}
        if self.min_documents:
            self._tell_numbers(labels, inner)
        return report

    def _tell_numbers(self, labels: dict[Any, str], inner: set[Any]) -> None:
        few = sorted((self.counts[node], label) for node, label in labels.items() if self.counts[node])
        self.found.add(
            "warning",
            "few-documents",
            f"labels with fewer than {self.min_documents} documents",
            "Expect little of them: merge them with a sibling, let paths end above them (partial_paths=True), or collect "
            "more.",
            (f"{label!r}: {number}" for number, label in few if number < self.min_documents),
        )
        early = [(number, node) for node, number in self.ends.most_common() if node in inner]
        self.found.add(
            "warning",
            "inner-ends",
            "documents that end at an inner label",
            "Train with partial_paths=True, or move them to a leaf.",
            (f"{labels[node]!r}: {number:,} documents" for number, node in early),
        )
        if early:
            self.found.found["inner-ends"].rows = sum(number for number, _ in early)


_NUMBER = re.compile(r"[+-]?[0-9]+([.][0-9]+)?")

# kind: severity, message, fix
_ROWS: dict[str, tuple[Severity, str, str]] = {
    "unreadable": (
        "error",
        "rows whose labels cannot be read",
        'Mend them, or leave them out with on_bad_row="drop".',
    ),
    "empty-level": (
        "error",
        "rows with an empty level in the middle of a path",
        "Fill the cell, or move the deeper ones up; cells may be empty at the end of a path only.",
    ),
    "unknown-label": (
        "error",
        "rows with labels that are not in the taxonomy",
        "Write them as the taxonomy does, or add them to it.",
    ),
    "read-as-missing": (
        "error",
        "cells whose name load_dataset takes for an empty cell in a CSV file",
        "Rename the label (such as 'not applicable'), or save the table as JSON lines or Parquet.",
    ),
    "empty-text": (
        "warning",
        "rows without a text that can be read",
        'Write one, or leave them out with on_bad_row="drop".',
    ),
    "no-labels": (
        "warning",
        "rows without labels",
        'Label them, leave them out, or train with label_mode="multi_path", which takes them as documents without labels.',
    ),
}

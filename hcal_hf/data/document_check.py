"""Checks the labels of a table of documents, and the hierarchy that they span."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from ..taxonomy import Taxonomy
from .cell_check import CellCounter
from .hierarchy_check import Steps, check_edges, check_paths, join_steps, try_to_build
from .labels import LabelReader, as_paths
from .tables import TableFile
from .texts import join_texts, text_problem
from .validation_report import Severity, ValidationReport

# Cells of a CSV file that `load_dataset` (pandas) reads as empty.
READ_AS_MISSING = {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
                   "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}  # fmt: skip


_NUMBER = re.compile(r"[+-]?[0-9]+([.][0-9]+)?")

# kind: (severity, message, fix)
_ROW_PROBLEMS: dict[str, tuple[Severity, str, str]] = {
    "unreadable": (
        "error",
        "rows whose labels cannot be read",
        'Fix them, or leave them out with on_bad_row="drop".',
    ),
    "empty-level": (
        "error",
        "rows with an empty level in the middle of a path",
        "Fill the cell, or move the deeper ones up: only cells at the end of a path may be empty.",
    ),
    "unknown-label": (
        "error",
        "rows with labels that are not in the taxonomy",
        "Spell them as in the taxonomy, or add them to it.",
    ),
    "read-as-missing": (
        "warning",
        "cells of a CSV file that load_dataset reads as empty",
        "hcal_hf reads them as they are written: in Python, load the file with hcal_hf.read_table, not with load_dataset.",
    ),
    "empty-text": (
        "warning",
        "rows without a readable text",
        'Add a text, or leave them out with on_bad_row="drop".',
    ),
    "no-labels": (
        "warning",
        "rows without labels",
        "They are left out of training as unlabelled. If an empty cell means that a document has no label, train with "
        "--empty-means-none.",
    ),
}


def row_name(table: TableFile, number: int) -> str:
    """Names a row by the number that a spreadsheet or an editor shows. In a CSV file row 1 is the header."""
    return f"row {number + 2}" if table.kind == "csv" else f"row {number + 1}"


class DocumentCheck:
    """Reads the rows of a table once, then checks the rows, the hierarchy and the numbers of documents.

    Args:
        table: the table of documents.
        reader: reads the labels of a row.
        text: the columns of texts to check, if any.
        taxonomy: the taxonomy that must contain the labels; None if the labels span their own.
        identity: as for [`Taxonomy.from_paths`].
        min_documents: labels with fewer documents are reported; 0 if the rows are paths of a hierarchy, not documents.
    """

    def __init__(
        self,
        table: TableFile,
        reader: LabelReader,
        text: Sequence[str],
        taxonomy: Taxonomy | None,
        identity: Literal["path", "name"],
        min_documents: int,
    ):
        self.table, self.reader, self.text, self.taxonomy = table, reader, text, taxonomy
        self.identity, self.min_documents = identity, min_documents
        self.report = ValidationReport(str(table.path))
        self.columns = reader.column_list
        self.first_rows: dict[Steps, int] = {}  # path -> first row with it
        self.counts: Counter[Any] = Counter()  # node -> documents at or below it
        self.path_ends: Counter[Any] = Counter()  # node -> documents with a path that ends there
        self.rows_with_several_paths: list[int] = []
        # hash of the texts of a row -> (its first row, hash of the labels there)
        self.first_texts: dict[int, tuple[int, int]] = {}
        self.equal_rows: list[tuple[int, int]] = []  # (row, first equal row)
        self.conflicting_rows: list[tuple[int, int]] = []
        self.cells = CellCounter(self.columns)
        self.rows_by_problem: dict[tuple[str, str], list[int]] = defaultdict(list)  # (kind, message) -> rows
        # column -> codes that would change if read as numbers; None if the column is not all numbers
        self.altered_codes: dict[str, dict[str, None] | None] = {name: {} for name in self.columns}

    def run(self) -> ValidationReport:
        columns = [*self.columns, *self.text]
        documents = 0
        for number, row in enumerate(self.table.rows(columns)):
            documents += 1
            cells = row.cells[: len(self.columns)]
            if row.problem:
                self.rows_by_problem["unreadable", row.problem].append(number)
                continue
            if self.table.kind == "csv":
                self._compare_with_datasets(cells, number)
            self._count_labels(cells, number)
            self.cells.add(cells)
            if self.text:
                self._check_text(join_texts(row.cells[len(self.columns) :]), cells, number)
        if not documents:
            self.report.add(
                "error",
                "no-rows",
                "tables without rows",
                "Give a table with rows below its names.",
                [str(self.table.path)],
            )
        self._check_rows()
        self._check_cells()
        self._check_hierarchy()
        self.report.documents = documents if self.min_documents else None
        return self.report

    def _check_text(self, text: Any, cells: Sequence[Any], number: int) -> None:
        """Notes texts that cannot be read, and texts that an earlier row has too."""
        if problem := text_problem(text):
            self.rows_by_problem["empty-text", problem].append(number)
            return
        labels = hash(repr(cells))
        first, first_labels = self.first_texts.setdefault(hash(text.strip()), (number, labels))
        if first != number:
            (self.equal_rows if labels == first_labels else self.conflicting_rows).append((number, first))

    def _check_cells(self) -> None:
        def pairs(rows: list[tuple[int, int]]) -> Iterator[str]:
            return (f"{row_name(self.table, row)} and {row_name(self.table, first)}" for row, first in rows)

        self.report.add(
            "warning",
            "conflicting-labels",
            "rows with the text of an earlier row and other labels",
            "Decide on one label for each text, or train with several paths per document: list all labels in one row.",
            pairs(self.conflicting_rows),
        )
        self.report.add(
            "warning",
            "equal-rows",
            "rows with the text and the labels of an earlier row",
            "Each counts as a document. Remove them, unless they are meant. Equal texts stay in one part of a split.",
            pairs(self.equal_rows),
        )
        if self.reader.delimiter is None and (suspect := self.cells.suspected(self.reader.separator)):
            self.report.add(
                "warning",
                "several-labels",
                "cells that seem to hold several labels",
                suspect.fix,
                [f"column {suspect.column!r}: {cell!r}" for cell in suspect.examples],
                rows=suspect.rows,
            )

    def _count_labels(self, cells: Sequence[Any], number: int) -> None:
        try:
            labels = self.reader(cells, known=self.taxonomy.label_index if self.taxonomy else ()) or []
            if self.taxonomy is not None:
                nodes: list[Any] = self.taxonomy.encode(labels).tolist()
                inner = {parent for node in nodes for parent in self.taxonomy.parents(node).tolist()}
            else:
                paths = dict.fromkeys(as_paths(labels, self.reader.columns))
                if () in paths:
                    raise ValueError("a path has no steps")
                for path in paths:
                    self.first_rows.setdefault(path, number)
                nodes = list(dict.fromkeys(path[: i + 1] for path in paths for i in range(len(path))))
                inner = {node[:-1] for node in nodes}
                if self.identity == "name":
                    inner = {node[-1] for node in inner if node}
                    nodes = list(dict.fromkeys(node[-1] for node in nodes))
        except (ValueError, TypeError) as problem:
            message = str(problem)
            kind = "unreadable" if self.taxonomy is None else "unknown-label"
            if "is empty, but" in message or "empty step" in message:
                kind = "empty-level"
            self.rows_by_problem[kind, message].append(number)
            return
        if not nodes:
            self.rows_by_problem["no-labels", "no label"].append(number)
        ends = [node for node in nodes if node not in inner]
        self.counts.update(nodes)
        self.path_ends.update(ends)
        if len(ends) > 1:
            self.rows_with_several_paths.append(number)

    def _compare_with_datasets(self, cells: Sequence[Any], number: int) -> None:
        """Notes cells that `load_dataset` would not read as they are written in the file."""
        for name, cell in zip(self.columns, cells):
            if cell in READ_AS_MISSING:
                self.rows_by_problem["read-as-missing", f"{cell!r} in column {name!r}"].append(number)
            altered = self.altered_codes[name]
            if cell and altered is not None:
                if not _NUMBER.fullmatch(cell):
                    self.altered_codes[name] = None
                elif str(int(float(cell))) != cell and len(altered) < 5:
                    altered[cell] = None

    def _check_rows(self) -> None:
        for (kind, problem), numbers in sorted(self.rows_by_problem.items(), key=lambda item: -len(item[1])):
            severity, message, fix = _ROW_PROBLEMS[kind]
            first = row_name(self.table, numbers[0])
            example = (
                f"{first}: {problem}" if len(numbers) == 1 else f"{len(numbers):,} rows, first {first}: {problem}"
            )
            self.report.add(severity, kind, message, fix, [example], rows=len(numbers))
        self.report.add(
            "warning",
            "numbers",
            "columns with codes that load_dataset reads as numbers from a CSV file",
            "007 becomes 7 there. hcal_hf reads them as they are written: in Python, use hcal_hf.read_table.",
            (f"column {name!r}: {', '.join(codes)}" for name, codes in self.altered_codes.items() if codes),
        )
        if self.min_documents:
            self.report.add(
                "warning",
                "several-paths",
                "documents with several paths",
                'Train with label_mode="multi_path".',
                (row_name(self.table, number) for number in self.rows_with_several_paths),
            )

    def _check_hierarchy(self) -> None:
        if self.taxonomy is not None:
            self.report.taxonomy = self.taxonomy
            labels: dict[Any, str] = dict(enumerate(self.taxonomy.labels))
            inner: set[Any] = set(self.taxonomy.edges[:, 0].tolist())
            self.report.add(
                "warning",
                "no-documents",
                "leaves without documents",
                "They cannot be learned: remove them, or find documents.",
                (repr(label) for node, label in labels.items() if node not in inner and not self.counts[node]),
            )
        elif self.identity == "name":
            triples = [
                (a, b, row_name(self.table, number))
                for path, number in self.first_rows.items()
                for a, b in zip(path, path[1:])
            ]
            children = {b for _, b, _ in triples}
            roots = dict.fromkeys(path[0] for path in self.first_rows if path[0] not in children)
            check_edges(self.report, triples, roots)
            labels = {name: str(name) for name in self.counts}
            inner = {a for a, _, _ in triples}
        else:
            first_rows: dict[Steps, int] = {}
            for path, number in self.first_rows.items():
                for i in range(len(path)):
                    first_rows.setdefault(path[: i + 1], number)
            children_of = check_paths(
                self.report,
                self.first_rows,
                lambda node: row_name(self.table, first_rows[node]),
                self.path_ends if self.min_documents else (),
            )
            try_to_build(self.report, lambda: Taxonomy.from_paths(self.first_rows))
            labels = {node: join_steps(node) for node in first_rows}
            inner = set(children_of) - {()}
        if self.min_documents:
            self._check_numbers_of_documents(labels, inner)

    def _check_numbers_of_documents(self, labels: dict[Any, str], inner: set[Any]) -> None:
        few = sorted((self.counts[node], label) for node, label in labels.items() if self.counts[node])
        self.report.add(
            "warning",
            "few-documents",
            f"labels with fewer than {self.min_documents} documents",
            "Expect poor predictions for them: merge them with a sibling, let paths end above them (partial_paths=True), "
            "or collect more documents.",
            (f"{label!r}: {number}" for number, label in few if number < self.min_documents),
        )
        inner_ends = [(node, number) for node, number in self.path_ends.most_common() if node in inner]
        self.report.add(
            "warning",
            "inner-ends",
            "documents that end at an inner label",
            "Train with partial_paths=True, or move them to a leaf.",
            (f"{labels[node]!r}: {number:,} documents" for node, number in inner_ends),
            rows=sum(number for _, number in inner_ends),
        )

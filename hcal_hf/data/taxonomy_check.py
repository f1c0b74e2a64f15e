"""Checks a file with a hierarchy, or with labelled documents, before training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..json_file import read_json
from ..node_paths import edge_array
from ..taxonomy import SEPARATOR, Taxonomy
from .document_check import DocumentCheck, row_name
from .hierarchy_check import check_edges, check_paths, try_to_build
from .labels import LabelReader
from .table_formats import FORMATS, is_json_array
from .tables import TableFile
from .taxonomy_object import is_taxonomy_json
from .taxonomy_reader import read_taxonomy
from .taxonomy_table import names_a_taxonomy
from .taxonomy_writer import first_path
from .validation_report import ValidationReport


def check_file(
    path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    edges: Sequence[str] | None = None,
    text: str | Sequence[str] | None = None,
    taxonomy: str | Path | None = None,
    separator: str = SEPARATOR,
    delimiter: str | None = None,
    identity: Literal["path", "name"] = "path",
    min_documents: int = 5,
    encoding: str | None = None,
) -> ValidationReport:
    """Checks a hierarchy, or a table of documents and the hierarchy that their labels span.

    Args:
        path: a taxonomy in any form that [`read_taxonomy`] reads; a table with one row per edge; or a table with
            one row per document (`.csv`, `.tsv`, `.jsonl`, `.parquet`, also `.gz`).
        labels: the column of labels of a table of documents, or one column per level; `labels` by default.
        edges: the two columns of a table of edges; `parent` and `child` by default. An empty parent makes a root.
        text: the column of texts, or several, which are checked too; the column `text` by default, if there is one.
        taxonomy: the file of a taxonomy that must contain the documents' labels; by default they span their own taxonomy.
        separator, delimiter: as for [`hcal_hf.encode_dataset`].
        identity: as for [`Taxonomy.from_paths`].
        min_documents: labels with fewer documents are reported; 0 for a table of paths of a hierarchy without documents.
        encoding: the encoding of text formats; detected by default.

    Raises:
        ValueError: if the file is none of these, or lacks a column.
        FileNotFoundError: if the file does not exist.
    """
    path = Path(path)
    if path.suffix == ".json" and not _is_json_table(path):
        for name, value in {"labels": labels, "edges": edges, "taxonomy": taxonomy}.items():
            if value is not None:
                raise ValueError(f"{name} is for tables, but {path} is read as a taxonomy: leave it out.")
        return _check_json(path)
    if labels is None and edges is None and not _is_table(path):
        return _check_other(path, separator, identity, encoding)
    table = TableFile(path, encoding)
    columns = table.columns or []
    lowered = {column.strip().lower(): column for column in columns}
    if edges is None and labels is None and {"parent", "child"} <= lowered.keys():
        edges = [lowered["parent"], lowered["child"]]
    if edges is not None:
        if labels is not None or len(edges) != 2:
            raise ValueError(f"edges must be the two columns of parent and child, without labels; got {list(edges)}.")
        table.check_columns(edges)
        return _check_edge_table(table, edges)
    if labels is None and columns and "labels" not in columns:
        if names_a_taxonomy(columns) and "text" not in columns:
            return _check_other(path, separator, identity, encoding)
        raise ValueError(
            f"{path} has no column 'labels' and no columns 'parent' and 'child': name the columns of the levels (on the "
            f"command line --labels A B C), or those of the edges (--edges A B). There are {columns}."
        )
    labels = ["labels"] if labels is None else list(labels)
    table.check_columns(labels)
    if text is None:
        text = ["text"] if "text" in columns else []
    texts = [text] if isinstance(text, str) else list(text)
    table.check_columns(texts)
    required = None if taxonomy is None else read_taxonomy(taxonomy, identity=identity)
    reader = LabelReader(labels[0] if len(labels) == 1 else labels, separator, delimiter)
    return DocumentCheck(table, reader, texts, required, identity, min_documents).run()


def _check_json(path: Path) -> ValidationReport:
    report = ValidationReport(str(path))
    data = read_json(path)
    if not is_taxonomy_json(data):
        return _check_other(path, SEPARATOR, "path", None)
    if "labels" in data:
        names, pairs = data["labels"], edge_array(data.get("edges", ())).tolist()
        bad = [pair for pair in pairs if not all(0 <= i < len(names) for i in pair)]
        if bad:
            raise ValueError(f"{path}: edge {bad[0]} does not point to two of the {len(names)} labels.")
        triples = [(names[parent], names[child], f"edge {i}") for i, (parent, child) in enumerate(pairs)]
        check_edges(report, triples, names, lambda: Taxonomy.from_json(path))
        return report
    if "paths" in data:
        paths = dict.fromkeys(tuple(steps) for steps in data["paths"])
        check_paths(report, paths, lambda steps: f"path {SEPARATOR.join(map(str, steps))!r}")
        try_to_build(report, lambda: Taxonomy.from_json(path))
        return report
    pairs = [(*edge, f"edge {i}") for i, edge in enumerate(data.get("edges", ()))]
    if any(len(pair) != 3 for pair in pairs):
        raise ValueError(f"{path}: an edge must be a pair [parent, child].")
    check_edges(report, pairs, data.get("roots", ()), lambda: Taxonomy.from_json(path))
    return report


def _is_json_table(path: Path) -> bool:
    """Returns whether a JSON file is an array of objects with texts or labels, such as an export of an annotation tool."""
    return path.is_file() and is_json_array(path) and bool({"text", "labels"} & set(TableFile(path).columns))


def _is_table(path: Path) -> bool:
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower() in (".xls", ".ods") or FORMATS.get(suffix.lower(), "text") != "text"


def _check_other(
    path: Path, separator: str, identity: Literal["path", "name"], encoding: str | None
) -> ValidationReport:
    """Checks a taxonomy in another form. Its reader raises for lines that it cannot read."""
    taxonomy = read_taxonomy(
        path, separator=None if separator == SEPARATOR else separator, identity=identity, encoding=encoding
    )
    report = ValidationReport(str(path))
    if taxonomy.is_forest:
        paths = {tuple(first_path(taxonomy, node)): taxonomy.labels[node] for node in range(len(taxonomy))}
        check_paths(report, paths, lambda steps: f"label {paths[steps]!r}")
        report.taxonomy = taxonomy
        return report
    labels = taxonomy.labels
    triples = [
        (labels[parent], labels[child], f"label {labels[child]!r}") for parent, child in taxonomy.edges.tolist()
    ]
    check_edges(report, triples, labels[taxonomy.levels[0]], lambda: taxonomy)
    return report


def _check_edge_table(table: TableFile, columns: Sequence[str]) -> ValidationReport:
    report = ValidationReport(str(table.path))
    triples: list[tuple[Any, Any, str]] = []
    roots: dict[str, None] = {}
    for number, row in enumerate(table.rows(columns)):
        where = row_name(table, number)
        parent, child = ("" if cell is None else str(cell).strip() for cell in row.cells)
        if row.problem or not child:
            report.add(
                "error",
                "empty-name",
                "rows that are not edges",
                "Each row must name a child; an empty parent makes it a root.",
                [f"{where}: {row.problem or f'the cell of {columns[1]!r} is empty'}"],
            )
        elif parent:
            triples.append((parent, child, where))
        else:
            roots[child] = None
    # Another row may say that a label in `roots` has a parent.
    children = {child for _, child, _ in triples}
    report.add(
        "error",
        "root-with-parent",
        "labels given both without a parent and with one",
        "Remove the row without a parent, or the other.",
        (repr(name) for name in roots if name in children),
    )
    check_edges(report, triples, [root for root in roots if root not in children])
    return report

"""Reads a taxonomy in any of the forms in which taxonomies are published."""

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers.utils import logging

from ..taxonomy import Taxonomy
from . import skos
from .code_rules import CodeRule, parse_rule
from .compressed import open_bytes
from .node_table import NodeTable
from .table_formats import FORMATS as TABLE_FORMATS
from .table_formats import detect_encoding
from .tables import TableFile, read_table
from .taxonomy_object import (
    add_child_lists,
    add_nested,
    add_node_objects,
    from_taxonomy_json,
    object_format,
)
from .taxonomy_table import Columns, Table, TableFormat, add_table, find_table_format
from .taxonomy_text import (
    ROOT,
    SEPARATORS,
    Line,
    add_children,
    add_code_lines,
    add_indented,
    add_paths,
    detect_text_format,
    kept_lines,
    path_format,
    read_lines,
)

logger = logging.get_logger(__name__)

FORMATS = ("json", "paths", "indented", "parent-children", "codes", "edges", "levels", "nested", "skos")
_TABLE_SUFFIXES = {suffix for suffix, kind in TABLE_FORMATS.items() if kind != "text" and suffix != ".json"}
_OF_TEXT = ("paths", "indented", "parent-children", "codes")


def read_taxonomy(
    source: Any,
    *,
    format: str | None = None,
    label_by: Literal["auto", "name", "id"] = "auto",
    columns: Columns | None = None,
    separator: str | None = None,
    identity: Literal["path", "name"] = "path",
    code_rule: CodeRule | None = None,
    language: str | None = None,
    root: str | None = None,
    encoding: str | None = None,
) -> Taxonomy:
    """Reads a taxonomy from a file or a Python object in any common form.

    | format | source |
    |---|---|
    | `"paths"` | one path per line (`A > B`), also after an id (`3237 - A > B`); a column of paths; a list of paths |
    | `"indented"` | one label per line, indented below its parent by tabs or spaces |
    | `"parent-children"` | one parent per line with its children, separated by tabs; a dictionary of lists of children |
    | `"codes"` | codes that contain their parents' codes (`E11.9` below `E11`), with or without descriptions |
    | `"edges"` | a table with a column of parents and one of children; a list of (parent, child) pairs |
    | `"levels"` | a table with one column per level |
    | `"nested"` | nested dictionaries; objects with a name and `children` |
    | `"skos"` | SKOS in Turtle, RDF/XML, JSON-LD or N-Triples; needs `pip install "hcal-hf[skos]"` |
    | `"json"` | the file of [`Taxonomy.to_json`], or the other forms of [`Taxonomy.from_json`] |

    The format is detected and logged. Text files, tables and RDF may end in `.gz`. Comments ("# ...") at the beginning of a
    text file are skipped.

    Args:
        source: a file; a dictionary, a list, a DataFrame, a data set or a graph of rdflib; or a [`Taxonomy`], which is
            returned as it is.
        format: one of the formats above; detected by default.
        label_by: `"name"` makes the names of nodes their labels, and `"id"` their identifiers: ids before paths or in a
            column, codes, notations or URIs of SKOS. `"auto"` (default) uses ids where the hierarchy is given by them
            (codes, a table of ids with names, SKOS in which all concepts have different notations), and else names. The
            other of the two is kept in a [`DescribedTaxonomy`], so that a model shows and embeds the names of ids. A name
            that several nodes share is made unique by its path, as in [`Taxonomy.from_paths`], or by its id in a DAG.
        columns: the columns of a table. A dictionary from roles to columns (`parent`, `child`, `path`, `code`, `id`,
            `name`, `description`), or a list with one column per level. Common names of columns are recognised.
        separator: separates the steps of a path; detected by default. White space at its ends must be in the text too.
        identity: as for [`Taxonomy.from_paths`]: whether equal names below different parents are two nodes (`"path"`) or
            one node with two parents (`"name"`).
        code_rule: how a code contains its parents' codes: a separator; the lengths of the prefixes, such as
            `[2, 4, 6]`; or a regular expression in which each group ends one level, such as `"([A-Z])(\\d\\d)"`, and which
            is applied to the parents again. By default a dot separates levels, and in codes of ICD-10 each character
            after the dot is a level (E11.65 is below E11.6, if that is listed). A code is below the nearest code above
            it that is listed. If none is listed, they are added.
        language: the language of labels in SKOS; that of most labels by default.
        root: the name of a virtual root, which is not a label; `"Root"` for `"parent-children"` by default. `""`
            if there is none.
        encoding: the encoding of text files; detected by default.

    Returns:
        a [`Taxonomy`], or a [`DescribedTaxonomy`] if there are ids, names of ids, or descriptions.

    Raises:
        ValueError: for a source that cannot be read or that can be read in several ways, an empty one, a cycle, a node
            that is its own parent, or an id of two nodes. The message names the line or row.
        FileNotFoundError: if the file does not exist.
        ImportError: for SKOS without rdflib.
    """
    return _read(source, format, label_by, columns, separator, identity, code_rule, language, root, encoding)[0]


@dataclass
class NamedTaxonomy:
    """Holds a taxonomy, and the names of its labels if they are identifiers.

    Attributes:
        taxonomy ([`Taxonomy`]): the hierarchy.
        names (`dict[str, str]`): the name of each label that has one. Empty if the labels are names themselves.
        format (`str`): what the input was read as.
    """

    taxonomy: Taxonomy
    names: dict[str, str] = field(default_factory=dict)
    format: str = ""


def read_named_taxonomy(source: Any, **options: Any) -> NamedTaxonomy:
    """Reads a taxonomy, the names of its labels and the form of the source. Takes the arguments of [`read_taxonomy`]."""
    defaults: dict[str, Any] = dict.fromkeys(
        ("format", "columns", "separator", "code_rule", "language", "root", "encoding")
    )
    taxonomy, described = _read(source, **{**defaults, "label_by": "auto", "identity": "path", **options})
    return NamedTaxonomy(taxonomy, dict(getattr(taxonomy, "label_names", {})), described)


def _read(
    source: Any,
    format: str | None,
    label_by: str,
    columns: Columns | None,
    separator: str | None,
    identity: Literal["path", "name"],
    code_rule: CodeRule | None,
    language: str | None,
    root: str | None,
    encoding: str | None,
) -> tuple[Taxonomy, str]:
    """Returns a taxonomy and how its source was read."""
    if isinstance(source, Taxonomy):
        return source, "a taxonomy"
    for name, value, allowed in (
        ("format", format, (None, *FORMATS)),
        ("label_by", label_by, ("auto", "name", "id")),
        ("identity", identity, ("path", "name")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    rule = parse_rule(code_rule) if isinstance(code_rule, str) else code_rule
    reader = _Reader(format, columns, separator, rule, language, root, encoding)
    nodes: NodeTable | Taxonomy
    if isinstance(source, str | os.PathLike):
        nodes = reader.read_file(Path(source))
    else:
        nodes = reader.read_object(source, f"the {type(source).__name__}")
    if isinstance(nodes, Taxonomy):
        return nodes, "taxonomy JSON"
    of_ids = label_by == "id" or (label_by == "auto" and reader.is_of_ids)
    taxonomy = nodes.build("id" if of_ids else "name", identity)
    logger.warning_once(f"{nodes.source} is read as {reader.described}: {taxonomy!r}.")
    return taxonomy, reader.described


class _Reader:
    """Reads one source.

    Attributes:
        format (`str`): the format, after reading.
        described (`str`): how the source was read, for the log.
        is_of_ids (`bool`): whether the hierarchy is given by identifiers.
    """

    def __init__(
        self,
        format: str | None,
        columns: Columns | None,
        separator: str | None,
        rule: CodeRule | None,
        language: str | None,
        root: str | None,
        encoding: str | None,
    ):
        self.format, self.columns, self.separator, self.rule = format, columns, separator, rule
        self.language, self.root, self.encoding = language, root, encoding
        self.described = ""
        self.is_of_ids = False

    def read_file(self, path: Path) -> NodeTable | Taxonomy:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        is_gzip = path.suffix.lower() == ".gz"
        suffix = (Path(path.stem).suffix if is_gzip else path.suffix).lower()
        if suffix == ".xls" or suffix == ".ods":
            TableFile(path)  # raises
        if self.format == "skos" or (self.format is None and suffix in skos.FORMATS):
            return self._read_graph(skos.parse_graph(path, self._rdf_format(path, suffix), self.encoding), str(path))
        if suffix == ".json" and self.format not in _OF_TEXT[1:2]:
            return self.read_object(self._load_json(path), str(path))
        if suffix in _TABLE_SUFFIXES and self.format not in ("indented", "parent-children"):
            return self._read_table(_table_of_file(TableFile(path, self.encoding)), str(path))
        if self.format is None and (form := _sniff_rdf(path)):
            return self._read_graph(skos.parse_graph(path, form, self.encoding), str(path))
        if self.format in ("edges", "levels", "nested", "json"):
            raise ValueError(
                f"{path} is a text file, which cannot be read with format={self.format!r}: rename it to .json or .csv."
            )
        return self._read_lines(read_lines(path, self.encoding), str(path))

    def read_object(self, data: Any, source: str) -> NodeTable | Taxonomy:
        if type(data).__module__.split(".")[0] == "rdflib":
            return self._read_graph(data, source)
        if data is None or isinstance(data, str | int | float):
            object_format(data, source)  # raises
        if not isinstance(data, Mapping | list | tuple):
            return self._read_table(_table_of_dataset(read_table(data)), source)
        if self.format in ("edges", "paths") and isinstance(data, list | tuple) and not isinstance(data[:1], str):
            form = "rows" if all(isinstance(item, Mapping) for item in data) else ""
            form = form or ("lines" if all(isinstance(item, str) for item in data) else self.format)
        elif self.format in ("parent-children", "nested") and isinstance(data, Mapping):
            form = self.format
        else:
            form = object_format(data, source)
        if form == "json":
            self.format = form
            return from_taxonomy_json(data, source)
        if form == "skos":
            return self._read_graph(skos.parse_graph(json.dumps(data), "json-ld"), source)
        if form == "lines":
            return self._read_lines(kept_lines(data, source), source)
        if form == "rows":
            columns = list(dict.fromkeys(key for row in data for key in row))
            rows = [(number, tuple(map(row.get, columns))) for number, row in enumerate(data, start=1)]
            return self._read_table(Table(columns, rows), source)
        nodes = NodeTable(source, "item")
        if form == "paths":
            for place, steps in enumerate(data, start=1):
                nodes.add_path(list(steps), place)
        elif form == "edges":
            table = Table(["parent", "child"], [(place, tuple(pair)) for place, pair in enumerate(data, start=1)])
            add_table(
                nodes, table, TableFormat("edges", {"parent": "parent", "child": "child"}, []), None, self.root or None
            )
        elif form == "parent-children":
            add_child_lists(nodes, data, self._virtual_root)
        elif form == "nodes":
            add_node_objects(nodes, data)
        else:
            add_nested(nodes, data)
        self.format, self.described = (
            form,
            {
                "paths": "a list of paths",
                "edges": "a list of edges",
                "parent-children": "a dictionary of parents and their children",
                "nodes": "objects with names and children",
                "nested": "nested dictionaries",
            }[form],
        )
        return nodes

    @property
    def _virtual_root(self) -> str | None:
        return ROOT if self.root is None else self.root or None

    def _read_graph(self, graph: Any, source: str) -> NodeTable:
        nodes = NodeTable(source, "concept")
        self.format = "skos"
        self.described, self.is_of_ids = skos.add_concepts(nodes, graph, self.language)
        return nodes

    def _read_lines(self, lines: list[Line], source: str) -> NodeTable:
        nodes = NodeTable(source)
        form = self.format
        separator = self.separator or ""
        if form is None and self.rule is not None:
            form = "codes"
        if form is None and self.separator:
            form = "paths"
        if form is None:
            found = detect_text_format(lines, source)
            form, separator, self.described = found.name, found.separator, found.described
        elif form == "paths":
            has_none = not any(sign in line.text for line in lines for sign in SEPARATORS)
            found = path_format(lines, source, separator or (" > " if has_none else None))
            separator, self.described = found.separator, found.described
        self.format = form
        self.described = self.described or {
            "indented": "indented text",
            "parent-children": "a parent and its children per line",
            "codes": "codes that contain their parents' codes",
        }.get(form, form)
        if form == "paths":
            add_paths(nodes, lines, separator)
        elif form == "indented":
            add_indented(nodes, lines)
        elif form == "parent-children":
            add_children(nodes, lines, self._virtual_root, self.separator or "\t")
        elif form == "codes":
            add_code_lines(nodes, lines, self.rule)
            self.is_of_ids = True
        else:
            raise ValueError(f"{source} has lines of text, which cannot be read with format={form!r}.")
        return nodes

    def _read_table(self, table: Table, source: str) -> NodeTable:
        if not table.rows:
            raise ValueError(f"{source} has no rows.")
        form = self.format if self.format in ("edges", "levels", "paths", "codes") else None
        if self.format is not None and form is None:
            raise ValueError(f'{source} is a table: format must be "edges", "levels", "paths" or "codes".')
        found = find_table_format(table, source, form, self.columns, self.separator, self.rule is not None)
        nodes = NodeTable(source, "row")
        self.format, self.described, self.is_of_ids = found.name, found.described, found.is_of_ids
        add_table(nodes, table, found, self.rule, self.root or None)
        if found.name == "codes" and form is None and self.rule is None and not nodes.edges:
            raise ValueError(
                f"{source} has no hierarchy that can be detected: no code contains another one before a dot. Give "
                'code_rule (on the command line --code-rule), or format="codes" if all codes are roots.'
            )
        return nodes

    def _load_json(self, path: Path) -> Any:
        try:
            with open_bytes(path) as file:
                content = file.read().decode(self.encoding or detect_encoding(path))
        except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as problem:
            raise ValueError(f"{path} is damaged, or has another encoding: {problem}") from problem
        if not content.strip():
            raise ValueError(f"{path} is empty.")
        try:
            return json.loads(content)
        except RecursionError as problem:
            raise ValueError(
                f"{path} is nested deeper than the JSON reader of Python allows. Write the taxonomy as a table of parents "
                "and children, or as indented text."
            ) from problem
        except ValueError as problem:
            lines = content.splitlines()
            try:
                return [json.loads(line) for line in lines if line.strip()]  # JSON lines
            except ValueError:
                raise ValueError(f"{path} is not JSON: {problem}") from problem

    @staticmethod
    def _rdf_format(path: Path, suffix: str) -> str:
        return skos.FORMATS.get(suffix) or ("json-ld" if suffix == ".json" else _sniff_rdf(path) or "turtle")


def _sniff_rdf(path: Path) -> str | None:
    with open_bytes(path) as file:
        start = file.read(2048).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"<?xml") or start.startswith(b"<rdf:RDF"):
        return "xml"
    return "turtle" if start.lower().startswith((b"@prefix", b"@base", b"prefix ")) else None


def _table_of_file(table: TableFile) -> Table:
    columns = [column for column in dict.fromkeys(table.columns) if column]
    table.check_columns(columns)
    first = 2 if table.kind in ("csv", "excel") else 1  # the header is row 1
    rows = []
    for number, row in enumerate(table.rows(columns), start=first):
        if row.problem:
            raise ValueError(
                f"{table.path}, row {number}: {row.problem}. If each line is a parent and its children, give "
                'format="parent-children".'
            )
        rows.append((number, row.cells))
    return Table(columns, rows)


def _table_of_dataset(dataset: Any) -> Table:
    if isinstance(dataset, dict):
        raise ValueError(f"A taxonomy must be one table, got the splits {sorted(dataset)}: give one of them.")
    columns = [name for name in dataset.column_names if not name.startswith("_")]
    cells = zip(*(dataset[name][:] for name in columns))
    return Table(columns, list(enumerate(cells, start=1)))

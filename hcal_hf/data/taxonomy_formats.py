"""Reads hierarchies from the formats in which people have them."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers.utils import logging

from ..node_names import SEPARATOR
from ..taxonomy import Taxonomy
from .code_hierarchy import CodeRule, code_edges
from .skos import read_skos
from .table_formats import FORMATS, detect_encoding
from .tables import TableFile

logger = logging.get_logger(__name__)

TEXT_FORMATS = ("paths", "indented", "parent-children", "codes")
# Separators of the steps of a path, the most specific first.
_SEPARATORS = (" > ", ">", " | ", "|", "::", " / ", "/", "\\", ";")
# "3237 - Animals > Live Animals": the code belongs to the whole line.
_DASH = "[-\u2013]"
_CODE_BEFORE = re.compile(rf"^(\S+)\s+{_DASH}\s+(.+)$")
_AFTER_CODE = re.compile(rf"\t|\s{{2,}}|\s+{_DASH}\s+|,|;|\s")
_VIRTUAL_ROOTS = {"root", "<root>", "top"}
_SKOS_SUFFIXES = (".rdf", ".ttl", ".jsonld", ".nt", ".xml")


@dataclass
class NamedTaxonomy:
    """Holds a taxonomy, and the names of its labels if they are codes.

    Attributes:
        taxonomy ([`Taxonomy`]): the hierarchy.
        names (`dict[str, str]`): the name of each label that has one. Empty if the labels are names themselves.
        format (`str`): what the input was read as.
    """

    taxonomy: Taxonomy
    names: dict[str, str] = field(default_factory=dict)
    format: str = ""


def read_taxonomy(source: Any, **options: Any) -> Taxonomy:
    """Reads a hierarchy. Arguments and errors are those of [`read_named_taxonomy`], which also returns names of codes."""
    return read_named_taxonomy(source, **options).taxonomy


def read_named_taxonomy(
    source: Any,
    *,
    format: Literal["paths", "indented", "parent-children", "codes"] | None = None,
    separator: str | None = None,
    identity: Literal["path", "name"] = "path",
    codes_as_labels: bool = False,
    code_rule: CodeRule = ".",
    language: str = "en",
) -> NamedTaxonomy:
    """Reads a hierarchy from a file or an object, and logs what it was taken for.

    | input | form |
    |---|---|
    | text | one path per line (`A > B > C`, other separators are detected), also with codes (`3237 - A > B`) |
    | text | one label per line, indented below its parent by spaces or tabs |
    | text | a parent and its children per line, separated by tabs (HiAGM, HGCLR, HJCL); a single `Root` is left out |
    | text or table | one code per line with an optional description: `E11.9` lies below `E11` |
    | table | columns `parent` and `child`; or `id`, `parent` and optionally `name`; or `path`; or one column per level |
    | JSON or object | nested dictionaries, a dictionary of lists of children, a list of paths, [`Taxonomy.to_json`] |
    | SKOS | `.rdf`, `.ttl`, `.jsonld` or `.nt`; needs rdflib, the extra `skos` |

    Args:
        source: a file (text and JSON also as `.gz`), a dictionary, a list of paths, or a [`Taxonomy`].
        format: the form of a text file, if it is not to be detected.
        separator: separates the steps of a path; detected by default.
        identity: as for [`Taxonomy.from_paths`].
        codes_as_labels: of lines with codes before their paths, use the codes as labels and the last steps as names.
        code_rule: how the parent of a code follows from the code: a separator (`E11.9` -> `E11`), a list of prefix lengths
            (`[2, 3, 4]` for 11 -> 111 -> 1112), or a regular expression whose first group is the parent's code. A code
            that is not in the list is skipped.
        language: the language of SKOS labels.

    Raises:
        ValueError: for input that cannot be read, with the line, or that can be read in several ways.
        FileNotFoundError: if there is no such file.
        ImportError: for SKOS without rdflib.
    """
    if isinstance(source, Taxonomy):
        return NamedTaxonomy(source, format="taxonomy")
    if isinstance(source, Mapping | list | tuple):
        return _from_object(source, "the object", separator, identity)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in _SKOS_SUFFIXES:
        edges, roots, names = read_skos(path, language)
        found = NamedTaxonomy(Taxonomy.from_edges(edges, roots=roots), names, "SKOS")
    elif suffix == ".json":
        found = _from_object(_read_json(path), str(path), separator, identity)
    elif suffix in FORMATS and FORMATS[suffix] != "text" and format is None:
        found = _from_table(path, separator, identity, code_rule)
    else:
        found = _from_text(path, format, separator, identity, codes_as_labels, code_rule)
    if not len(found.taxonomy):
        raise ValueError(f"{path} holds no label.")
    levels = " + ".join(f"{level.stop - level.start:,}" for level in found.taxonomy.levels)
    logger.warning(f"{path}: read as {found.format}; {len(found.taxonomy):,} labels ({levels} from the top down).")
    return found


# ---- Objects ----


def _read_json(path: Path) -> Any:
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except RecursionError as problem:
        raise ValueError(f"{path} is nested too deeply for JSON: write one path per line instead.") from problem
    except ValueError as problem:
        raise ValueError(f"{path} is no JSON: {problem}") from problem


def _from_object(data: Any, where: str, separator: str | None, identity: Any) -> NamedTaxonomy:
    if isinstance(data, Mapping):
        if isinstance(data.get("labels"), list):
            return NamedTaxonomy(Taxonomy(data["labels"], data.get("edges", ())), format="taxonomy JSON")
        if isinstance(data.get("paths"), list):
            identity = data.get("identity", identity)
            return NamedTaxonomy(Taxonomy.from_paths(data["paths"], identity=identity), format="a list of paths")
        if {"edges", "roots"} & data.keys() and all(isinstance(value, list) for value in data.values()):
            edges = [tuple(edge) for edge in data.get("edges", ())]
            return NamedTaxonomy(Taxonomy.from_edges(edges, roots=data.get("roots", ())), format="a list of edges")
        if _maps_parents_to_children(data):
            edges = [(parent, child) for parent, children in data.items() for child in children or ()]
            children = {child for _, child in edges}
            taxonomy = Taxonomy.from_edges(edges, roots=[parent for parent in data if parent not in children])
            return NamedTaxonomy(_without_root(taxonomy), format="a dictionary from parents to children")
        return NamedTaxonomy(
            Taxonomy.from_paths(_nested_paths(data, where), identity=identity), format="nested objects"
        )
    if isinstance(data, list | tuple) and all(isinstance(item, str) for item in data):
        step = separator or _detect_separator(data) or SEPARATOR
        paths = [[part.strip() for part in item.split(step.strip() or step)] for item in data]
        return NamedTaxonomy(Taxonomy.from_paths(paths, identity=identity), format="a list of path strings")
    if isinstance(data, list | tuple) and all(isinstance(item, list | tuple) for item in data):
        return NamedTaxonomy(Taxonomy.from_paths(data, identity=identity), format="a list of paths")
    raise ValueError(
        f"{where} is no hierarchy: it must be nested objects, an object of lists of children, a list of paths, or an "
        'object with "labels" and "edges".'
    )


def _maps_parents_to_children(data: Mapping[str, Any]) -> bool:
    """Returns whether all values are lists of names, and some of these names are keys."""
    lists = all(
        value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))
        for value in data.values()
    )
    return lists and any(name in data for value in data.values() for name in value or ())


def _nested_paths(data: Mapping[str, Any], where: str) -> list[list[str]]:
    """Returns the paths of nested dictionaries. Leaves are empty, None, a name, or a list of names or dictionaries."""
    paths: list[list[str]] = []
    waiting: list[tuple[list[str], Any]] = [([], data)]
    while waiting:
        path, value = waiting.pop()
        if path:
            paths.append(path)
        if value is None or value == "":
            continue
        if isinstance(value, str):
            waiting.append(([*path, value], None))
        elif isinstance(value, Mapping):
            waiting += [([*path, str(name)], below) for name, below in list(value.items())[::-1]]
        elif isinstance(value, list):
            waiting += [(path, item) for item in reversed(value) if isinstance(item, Mapping | str)]
        else:
            raise ValueError(f"{where}: below {SEPARATOR.join(path)!r} there is {value!r}, which is no label.")
    return list(map(list, dict.fromkeys(map(tuple, paths))))


def _without_root(taxonomy: Taxonomy) -> Taxonomy:
    """Leaves out a single root that only holds the hierarchy together."""
    roots = taxonomy.levels[0] if len(taxonomy) else slice(0, 0)
    if roots.stop - roots.start != 1 or taxonomy.labels[0].lower() not in _VIRTUAL_ROOTS or len(taxonomy) == 1:
        return taxonomy
    kept = [(taxonomy.labels[a], taxonomy.labels[b]) for a, b in taxonomy.edges.tolist() if a != 0]
    tops = [taxonomy.labels[b] for a, b in taxonomy.edges.tolist() if a == 0]
    below = {child for _, child in kept}
    return Taxonomy.from_edges(kept, roots=[top for top in tops if top not in below])


# ---- Tables ----


def _from_table(path: Path, separator: str | None, identity: Any, code_rule: CodeRule) -> NamedTaxonomy:
    table = TableFile(path)
    lowered = {column.strip().lower(): column for column in table.columns}

    def column(*names: str) -> str | None:
        return next((lowered[name] for name in names if name in lowered), None)

    parent, child = column("parent", "parent_id", "parentid", "broader"), column("child", "child_id", "narrower")
    code, name = column("id", "code", "notation"), column("name", "label", "title", "description", "preflabel")
    if parent and (child or code or name):
        return _from_edge_rows(table, parent, child or code or name, name if code and not child else None)  # type: ignore[arg-type]
    if whole := column("path", "paths", "category", "labels"):
        lines = [str(row.cells[0]).strip() for row in table.rows([whole]) if row.cells[0]]
        step = separator or _detect_separator(lines) or SEPARATOR
        paths = [[part.strip() for part in line.split(step.strip() or step)] for line in lines]
        return NamedTaxonomy(Taxonomy.from_paths(paths, identity=identity), format=f"a column of paths, {whole!r}")
    if code and (len(table.columns) == 1 or name):
        rows = [row.cells for row in table.rows([code, *([name] if name else [])])]
        return _from_codes([(str(cells[0]), str(cells[1]) if name else "") for cells in rows], code_rule)
    paths = []
    for number, row in enumerate(table.rows(table.columns)):
        steps = ["" if cell is None else str(cell).strip() for cell in row.cells]
        while steps and not steps[-1]:
            steps.pop()
        if "" in steps:
            raise ValueError(
                f"{path}, row {number + 2}: column {table.columns[steps.index('')]!r} is empty, but a deeper one is not."
            )
        if steps:
            paths.append(steps)
    return NamedTaxonomy(
        Taxonomy.from_paths(paths, identity=identity), format=f"one column per level ({len(table.columns)})"
    )


def _from_edge_rows(table: TableFile, parent: str, child: str, name: str | None) -> NamedTaxonomy:
    edges, roots, names = [], [], {}
    for number, row in enumerate(table.rows([parent, child, *([name] if name else [])])):
        above, below, *title = ("" if cell is None else str(cell).strip() for cell in row.cells)
        if not below:
            raise ValueError(f"{table.path}, row {number + 2}: column {child!r} is empty.")
        if above:
            edges.append((above, below))
        else:
            roots.append(below)
        if title and title[0]:
            names[below] = title[0]
    children = {below for _, below in edges}
    roots = [root for root in dict.fromkeys(roots) if root not in children]
    return NamedTaxonomy(Taxonomy.from_edges(edges, roots=roots), names, f"edges ({parent!r} -> {child!r})")


def _from_codes(pairs: Sequence[tuple[str, str]], rule: CodeRule) -> NamedTaxonomy:
    pairs = [(code.strip(), name.strip()) for code, name in pairs if code and code.strip()]
    edges, roots = code_edges([code for code, _ in pairs], rule)
    names = {code: name for code, name in pairs if name}
    return NamedTaxonomy(Taxonomy.from_edges(edges, roots=roots), names, f"codes (rule {rule!r})")


# ---- Text ----


def _from_text(
    path: Path, form: str | None, separator: str | None, identity: Any, codes_as_labels: bool, code_rule: CodeRule
) -> NamedTaxonomy:
    if form is not None and form not in TEXT_FORMATS:
        raise ValueError(f"format must be one of {', '.join(TEXT_FORMATS)}, got {form!r}.")
    lines = _read_lines(path)
    form = form or _detect_form([line for _, line in lines], separator, path)
    if form == "codes":
        pairs = [_AFTER_CODE.split(line.strip(), maxsplit=1) for _, line in lines]
        return _from_codes([(pair[0], pair[1] if len(pair) > 1 else "") for pair in pairs], code_rule)
    if form == "parent-children":
        return _from_children(lines, path)
    if form == "indented":
        return NamedTaxonomy(
            Taxonomy.from_paths(_indented_paths(lines, path), identity=identity), format="indented text"
        )
    codes = [_CODE_BEFORE.match(line.strip()) for _, line in lines]
    has_codes = all(codes) and len({match[1] for match in codes if match}) == len(lines) > 1
    texts = [match[2] if has_codes and match else line.strip() for match, (_, line) in zip(codes, lines)]
    step = separator or _detect_separator(texts) or SEPARATOR
    paths = []
    for (number, _), text in zip(lines, texts):
        steps = [part.strip() for part in text.split(step.strip() or step)]
        if "" in steps:
            raise ValueError(
                f"{path}, line {number}: {text!r} has an empty step between its separators ({step.strip()!r})."
            )
        paths.append(tuple(steps))
    shown = f"one path per line, separated by {step.strip()!r}" + (", with codes" if has_codes else "")
    if not (has_codes and codes_as_labels):
        return NamedTaxonomy(Taxonomy.from_paths(paths, identity=identity), format=shown)
    code_of = {steps: match[1] for steps, match in zip(paths, codes) if match}
    edges, roots, names = [], [], {}
    for (number, _), path_steps in zip(lines, paths):
        names[code_of[path_steps]] = path_steps[-1]
        if len(path_steps) == 1:
            roots.append(code_of[path_steps])
        elif path_steps[:-1] in code_of:
            edges.append((code_of[path_steps[:-1]], code_of[path_steps]))
        else:
            raise ValueError(
                f"{path}, line {number}: {SEPARATOR.join(path_steps[:-1])!r} has no line of its own, and so no code."
            )
    return NamedTaxonomy(Taxonomy.from_edges(edges, roots=roots), names, shown)


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Returns (number, line) of the lines that are not blank. Comments (#) are left out."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    text = raw.decode(detect_encoding(path))
    numbered = enumerate(text.lstrip("\ufeff").splitlines(), start=1)
    lines = [(number, line.rstrip()) for number, line in numbered if line.strip() and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path} is empty.")
    return lines


def _detect_form(lines: Sequence[str], separator: str | None, path: Path) -> str:
    if any(line[:1].isspace() for line in lines):
        return "indented"
    if separator is None and sum("\t" in line for line in lines) > len(lines) / 2:
        firsts = [line.split("\t")[0].strip() for line in lines]
        children = {name.strip() for line in lines for name in line.split("\t")[1:]}
        below = sum(first in children for first in firsts)
        if len(set(firsts)) == len(firsts) and (below >= len(firsts) / 2 or firsts[0].lower() in _VIRTUAL_ROOTS):
            return "parent-children"
        if len(set(firsts)) < len(firsts) and below == 0:
            return "paths"
        codes = [first for first in firsts if re.fullmatch(r"\S*\d\S*", first)]
        if len(codes) == len(firsts) == len(set(firsts)):
            return "codes"
        raise ValueError(
            f"{path} has tabs, and can be read as paths or as parents with their children: say which, with "
            'format="paths" or format="parent-children" (on the command line --format).'
        )
    if separator or _detect_separator(lines):
        return "paths"
    firsts = [line.split()[0] for line in lines]
    is_code = [re.fullmatch(r"[A-Z]{0,2}\d[\w.]*", first) is not None for first in firsts]
    return "codes" if all(is_code) and any("." in first for first in firsts) else "paths"


def _detect_separator(lines: Sequence[str]) -> str | None:
    """Returns the separator that is in the most lines, the more specific one if several are; None if none is."""
    sample = lines[:10_000]
    counts = Counter({mark: sum(mark in line for line in sample) for mark in ("\t", *_SEPARATORS)})
    for mark in (" > ", "\t", *_SEPARATORS):
        if counts[mark] and counts[mark] >= len(sample) / 4:
            return mark
    return None


def _from_children(lines: Iterable[tuple[int, str]], path: Path) -> NamedTaxonomy:
    edges, firsts = [], []
    for number, line in lines:
        parent, *children = (name.strip() for name in line.split("\t"))
        if not parent or "" in children:
            raise ValueError(f"{path}, line {number}: a name between the tabs is empty.")
        firsts.append(parent)
        edges += [(parent, child) for child in children]
    below = {child for _, child in edges}
    taxonomy = Taxonomy.from_edges(edges, roots=[first for first in dict.fromkeys(firsts) if first not in below])
    return NamedTaxonomy(_without_root(taxonomy), format="a parent and its children per line")


def _indented_paths(lines: Iterable[tuple[int, str]], path: Path) -> list[list[str]]:
    """Returns the path of each line. A line lies below the last line that is indented less."""
    paths: list[list[str]] = []
    stack: list[tuple[int, str]] = []
    for number, line in lines:
        expanded = line.expandtabs(4)
        indent = len(expanded) - len(expanded.lstrip())
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if indent and not stack:
            raise ValueError(f"{path}, line {number}: the first line must not be indented.")
        name = re.sub(r"^[-*•]\s+", "", expanded.strip())
        stack.append((indent, name))
        paths.append([step for _, step in stack])
    return paths

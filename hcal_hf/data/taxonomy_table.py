"""Reads taxonomies from tables: edges, one column per level, paths, or codes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers.utils import logging

from .code_rules import CodeRule, add_code_pairs, looks_like_codes
from .node_table import NodeTable
from .taxonomy_text import SEPARATORS, detect_separator, split_steps

logger = logging.get_logger(__name__)

# The columns by role ({"parent": "parent_id", "child": "id", "name": "title"}), or the columns of the levels.
Columns: TypeAlias = Mapping[str, str] | Sequence[str]
ROLES = ("parent", "child", "path", "code", "id", "name", "description")
_NAMES = {
    "parent": ("parent", "parent_id", "parentid", "parent_code", "parent_name", "parent_label", "broader"),
    "child": ("child", "child_id", "childid", "child_name", "child_label"),
    "path": (
        "path",
        "full_path",
        "fullpath",
        "category_path",
        "label_path",
        "taxonomy_path",
        "breadcrumb",
        "full_name",
    ),
    "code": ("code", "notation", "tree_number", "treenumber", "icd_code", "icd10_code"),
    "id": ("id", "node_id", "category_id", "label_id", "key", "identifier"),
    "name": ("name", "title", "label", "category", "category_name", "term", "node"),
    "description": ("description", "definition", "desc", "scope_note"),
}
_LEVEL = re.compile(r"(level|lvl|l|tier|layer|category|cat|ebene|stufe|niveau|nivel)[ _\-.]?(\d+)")
_VIRTUAL_ROOTS = {"0", "-1", "null", "NULL", "none", "None", "root", "Root", "ROOT"}
_OF_DOCUMENTS = ("text", "labels")


@dataclass
class Table:
    """Holds the columns of a table and its rows: (row number as people count, cells in the order of the columns)."""

    columns: list[str]
    rows: list[tuple[int, tuple[Any, ...]]]

    def cells(self, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Yields the row number and the cells of some columns as stripped text, "" for a missing value."""
        positions = [self.columns.index(name) for name in names]
        for number, cells in self.rows:
            yield number, [_text(cells[position]) for position in positions]

    def column(self, name: str) -> list[str]:
        """Returns the cells of one column that are not empty."""
        return [cell for _, (cell,) in self.cells([name]) if cell]


def _text(cell: Any) -> str:
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))  # an empty cell turns a column of whole numbers into floats
    return str(cell).strip()


@dataclass
class TableFormat:
    """Describes how a table is read.

    Attributes:
        name (`str`): "edges", "levels", "paths" or "codes".
        roles (`dict`): the column of each role.
        levels (`list`): the columns of the levels.
        separator (`str`): separates the steps of a path.
    """

    name: str
    roles: dict[str, str]
    levels: list[str]
    separator: str = ""

    @property
    def is_of_ids(self) -> bool:
        """Whether the hierarchy is given by identifiers, which have names in another column."""
        return self.name == "codes" or (self.name == "edges" and "name" in self.roles)

    @property
    def described(self) -> str:
        if self.name == "levels":
            return f"a table with one column per level ({', '.join(map(repr, self.levels))})"
        what = {"edges": "parent and child", "paths": f"paths with the separator {self.separator!r}", "codes": "codes"}
        roles = ", ".join(f"{role} {column!r}" for role, column in self.roles.items())
        return f"a table of {what[self.name]} ({roles})"


def find_table_format(
    table: Table, source: str, name: str | None, columns: Columns | None, separator: str | None, has_rule: bool
) -> TableFormat:
    """Finds the columns of a table and how they form the hierarchy.

    Raises:
        ValueError: for missing columns, or a table that can be read in several ways.
    """
    roles: dict[str, str] = {}
    levels: list[str] = []
    if isinstance(columns, Mapping):
        roles = dict(columns)
        if unknown := [role for role in roles if role not in ROLES]:
            raise ValueError(f"columns has the unknown role {unknown[0]!r}. Roles are {', '.join(ROLES)}.")
    elif columns is not None:
        levels = [columns] if isinstance(columns, str) else list(columns)
    for column in [*roles.values(), *levels]:
        if column not in table.columns:
            raise ValueError(
                f"{source} has no column {column!r}: its columns are {', '.join(map(repr, table.columns))}."
            )
    if columns is None:
        roles, levels = _detect_roles(table)
    if name == "levels" or (levels and name is None):
        return _levels(table, source, levels or [c for c in table.columns if c not in roles.values()])
    if len(levels) == 2 and name == "edges":
        return TableFormat("edges", {"parent": levels[0], "child": levels[1]}, [])
    if len(levels) == 1 and name in ("paths", "codes"):
        roles = {{"paths": "path", "codes": "code"}[str(name)]: levels[0]}
    if name in (None, "edges") and "parent" in roles:
        if "child" not in roles:
            roles["child"] = roles.get("id") or roles.get("code") or roles.get("name") or ""
        if not roles["child"]:
            raise ValueError(f"{source} has a column of parents, but none of children: {_say_columns(table)}")
        kept = {role: column for role, column in roles.items() if role in ("parent", "child", "name", "description")}
        if kept.get("name") == kept["child"]:
            del kept["name"]
        if "name" not in kept and "id" in roles and roles["id"] != kept["child"]:
            kept["id"] = roles["id"]
        return TableFormat("edges", kept, [])
    if name in (None, "paths") and "path" in roles:
        kept = {role: column for role, column in roles.items() if role in ("path", "id", "description")}
        return TableFormat("paths", kept, [], separator or _separator_of(table, roles["path"], source))
    if name in (None, "codes"):
        code = roles.get("code") or roles.get("id") or (table.columns[0] if name == "codes" else "")
        is_pair = "code" in roles and len(table.columns) == 2 and bool(roles.keys() & {"name", "description"})
        if code and (name == "codes" or has_rule or is_pair or looks_like_codes(table.column(code))):
            kept = {"code": code}
            described = roles.get("name") or roles.get("description") or _other_column(table, code)
            return TableFormat("codes", kept | ({"name": described} if described else {}), [])
    return _guess(table, source, name, roles, separator)


def _detect_roles(table: Table) -> tuple[dict[str, str], list[str]]:
    lowered = {re.sub(r"[ \-]+", "_", column.strip().lower()): column for column in reversed(table.columns)}
    roles = {
        role: next(lowered[name] for name in names if name in lowered)
        for role, names in _NAMES.items()
        if any(name in lowered for name in names)
    }
    numbered = [(match, lowered[name]) for name in lowered if (match := _LEVEL.fullmatch(name))]
    kinds = {match[1] for match, _ in numbered}
    if len(numbered) > 1 and len(kinds) == 1 and "parent" not in roles and "path" not in roles:
        return {}, [column for match, column in sorted(numbered, key=lambda item: int(item[0][2]))]
    return roles, []


def names_a_taxonomy(columns: Sequence[str]) -> bool:
    """Returns whether columns are named as those of a taxonomy: parents, paths, or numbered levels."""
    roles, levels = _detect_roles(Table(list(columns), []))
    return bool(levels) or ("parent" in roles and len(roles) > 1) or "path" in roles


def _guess(table: Table, source: str, name: str | None, roles: dict[str, str], separator: str | None) -> TableFormat:
    """Reads a table without known names of columns."""
    columns = [column for column in table.columns if column]
    if name == "edges":
        raise ValueError(f"{source} has no columns of parents and children. {_say_columns(table)}")
    if any(column in _OF_DOCUMENTS for column in columns) and name is None:
        raise ValueError(
            f"{source} seems to be a table of documents. Use build_taxonomy(..., labels=[...]) for the labels of "
            f"documents, or say which columns hold the hierarchy. {_say_columns(table)}"
        )
    if name == "paths" or (len(columns) <= 2 and (separator or _has_separator(table, columns))):
        column = next((c for c in columns if _has_separator(table, [c], separator)), columns[0])
        others = [c for c in columns if c != column]
        return TableFormat(
            "paths",
            {"path": column, **({"id": others[0]} if others and roles.get("id") == others[0] else {})},
            [],
            separator or _separator_of(table, column, source),
        )
    if len(columns) == 2 and set(table.column(columns[0])) & set(table.column(columns[1])):
        first, second = columns
        raise ValueError(
            f"{source} can be read in several ways: labels of column {first!r} occur in {second!r} too. Give "
            f"columns={{'parent': {first!r}, 'child': {second!r}}} for edges (on the command line --columns parent={first} "
            f"child={second}), or columns=[{first!r}, {second!r}] for one column per level."
        )
    if len(columns) < 2:
        raise ValueError(f"{source} has one column, {columns[0]!r}, without a hierarchy. {_say_columns(table)}")
    return _levels(table, source, columns)


def _levels(table: Table, source: str, levels: list[str]) -> TableFormat:
    for level in levels:
        if level in table.column(level):
            raise ValueError(
                f"{source} seems to have no header: its first line contains {level!r}, which is also a label below. Add a "
                'first line with the names of the columns, or give format="parent-children" for a parent and its children.'
            )
    return TableFormat("levels", {}, levels)


def _say_columns(table: Table) -> str:
    return (
        "Give columns by role, such as columns={'parent': ..., 'child': ..., 'name': ...}, {'path': ..., 'id': ...} or "
        "{'code': ..., 'name': ...}, or a list with one column per level (on the command line --columns parent=... "
        f"child=..., or --columns A B C). The columns are {', '.join(map(repr, table.columns))}."
    )


def _other_column(table: Table, code: str) -> str | None:
    others = [column for column in table.columns if column and column != code]
    return others[0] if len(others) == 1 else None


def _has_separator(table: Table, columns: Sequence[str], separator: str | None = None) -> bool:
    signs = [separator] if separator else SEPARATORS
    return any(sign in cell for column in columns for cell in table.column(column) for sign in signs)


def _separator_of(table: Table, column: str, source: str) -> str:
    return detect_separator(table.column(column), f"{source}, column {column!r}")


# ---- Reading ----


def add_table(nodes: NodeTable, table: Table, form: TableFormat, rule: CodeRule | None, root: str | None) -> None:
    """Adds the rows of a table.

    Raises:
        ValueError: for a row that does not fit the format, with its number.
    """
    if form.name == "levels":
        _add_levels(nodes, table, form.levels)
    elif form.name == "paths":
        _add_path_rows(nodes, table, form)
    elif form.name == "codes":
        columns = [form.roles["code"], *([form.roles["name"]] if "name" in form.roles else [])]
        rows = [(number, cells[0], cells[1] or None if len(cells) > 1 else None)
                for number, cells in table.cells(columns) if any(cells)]  # fmt: skip
        for number, code, _ in rows:
            if not code:
                raise nodes.error(number, f"the cell of {columns[0]!r} is empty.")
        add_code_pairs(nodes, rows, rule)
    else:
        _add_edge_rows(nodes, table, form.roles, root)


def _add_levels(nodes: NodeTable, table: Table, levels: Sequence[str]) -> None:
    for number, cells in table.cells(levels):
        while cells and not cells[-1]:
            cells.pop()
        if "" in cells:
            column, deeper = levels[cells.index("")], levels[len(cells) - 1]
            raise nodes.error(number, f"column {column!r} is empty, but the deeper {deeper!r} is not.")
        if cells:
            nodes.add_path(cells, number)


def _add_path_rows(nodes: NodeTable, table: Table, form: TableFormat) -> None:
    roles = [role for role in ("path", "id", "description") if role in form.roles]
    sign = form.separator.strip()
    is_absolute = bool(sign) and all(cell.startswith(sign) for cell in table.column(form.roles["path"]))
    listed: set[int] = set()
    for number, cells in table.cells([form.roles[role] for role in roles]):
        values = dict(zip(roles, cells))
        if not any(cells):
            continue
        path = values["path"].removeprefix(sign) if is_absolute else values["path"]
        node = nodes.add_path(split_steps(path, form.separator), number)
        nodes.describe(node, number, values.get("id"), values.get("description"))
        if node in listed:
            nodes.repeated.append(number)
        listed.add(node)


def _add_edge_rows(nodes: NodeTable, table: Table, roles: Mapping[str, str], root: str | None) -> None:
    names = ["parent", "child", *(role for role in ("name", "description", "id") if role in roles)]
    rows = [(number, dict(zip(names, cells))) for number, cells in table.cells([roles[name] for name in names])
            if any(cells)]  # fmt: skip
    has_names = "name" in roles
    keys: dict[str, str] = {}
    for number, row in rows:
        if not row["child"]:
            raise nodes.error(number, f"the cell of {roles['child']!r} is empty. Each row must name a child.")
        if has_names and keys.setdefault(row["child"], row["name"]) != row["name"]:
            raise nodes.error(
                number, f"{row['child']!r} is named {row['name']!r}, but {keys[row['child']]!r} in an earlier row."
            )
    parents = {row["parent"] for _, row in rows} - {"", root}
    if has_names and root is None and (virtual := _virtual_root(parents - keys.keys())):
        root = virtual
        logger.warning(f"{nodes.source}: the parent {root!r} has no row and is read as the place above the roots.")
    aliases: dict[str, str] = {}
    if has_names and not parents & keys.keys():  # parents are given by name
        for key, name in keys.items():
            if aliases.setdefault(name, key) != key and name in parents:
                raise ValueError(
                    f"{nodes.source}: the parent {name!r} is the name of several rows. Give a column of parent ids."
                )
    seen: dict[str, tuple[int, str]] = {}
    for number, row in rows:
        child = nodes.node(row["child"], row.get("name") or row["child"], number)
        if has_names:
            nodes.describe(child, number, row["child"])
        nodes.describe(child, number, row.get("id"), row.get("description"))
        parent = aliases.get(row["parent"], row["parent"])
        if parent in ("", root):
            first, other = seen.setdefault(row["child"], (number, ""))
            if other:
                raise nodes.error(number, _is_root_and_child(row["child"], first))
            if first != number:
                nodes.repeated.append(number)
            continue
        first, other = seen.setdefault(row["child"], (number, parent))
        if not other:
            raise nodes.error(number, _is_root_and_child(row["child"], first))
        above = nodes.node(parent, keys.get(parent) or parent, number)
        if has_names:
            nodes.describe(above, number, parent)
        nodes.add_edge(above, child, number)


def _virtual_root(unknown: set[str]) -> str | None:
    """Returns the parent that databases enter for roots, if it is the only parent without a row of its own."""
    return next(iter(unknown)) if len(unknown) == 1 and unknown <= _VIRTUAL_ROOTS else None


def _is_root_and_child(label: str, row: int) -> str:
    return f"{label!r} has a parent in one row and none in another (row {row}). Remove one of the rows."

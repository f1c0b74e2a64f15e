"""Reads taxonomies from text: one path per line, indented lines, children after their parent, or codes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .code_rules import CodeRule, add_codes, looks_like_codes
from .node_table import NodeTable
from .table_formats import detect_encoding, open_text

# Separators of path steps. The first ones are rare inside names.
_STRONG = ("->", "=>", ">", "→", "»", "\u203a", "::")
_WEAK = ("/", "|", "\\", ";")
# The virtual root in lines of parents and children.
ROOT = "Root"
SEPARATORS = (*_STRONG, *_WEAK)
_ID = re.compile(r"(?P<id>\S*(?:\d|://)\S*)\s+[-\u2013:]\s+(?P<rest>\S.*)")
_BULLET = re.compile(r"([ \t]*)[-*+•] +(\S.*)")


@dataclass
class Line:
    """Holds one line of a text file: its number, counted from 1, and its text without the line end."""

    number: int
    text: str


@dataclass
class TextFormat:
    """Describes how lines are read.

    Attributes:
        name (`str`): "paths", "indented", "parent-children" or "codes".
        separator (`str`): separates the steps of a path. White space at its ends must be there in the text too.
        described (`str`): the description for the log.
    """

    name: str
    separator: str = ""
    described: str = ""


def read_lines(path: Path, encoding: str | None) -> list[Line]:
    """Reads the lines of a text file that are not empty, without comments at its beginning.

    Raises:
        ValueError: for an empty file, or bytes outside the encoding.
    """
    raw, file = open_text(path, encoding or detect_encoding(path), is_csv=False)
    with raw, file:
        texts = [text.rstrip("\r\n") for text in file]
    if texts and texts[0].startswith("\ufeff"):
        texts[0] = texts[0][1:]
    for number, text in enumerate(texts, start=1):
        if re.search("[\udc80-\udcff\0]", text):
            raise ValueError(f'{path}, line {number}: bytes that are not text in this encoding. Give encoding="...".')
    return kept_lines(texts, str(path))


def kept_lines(texts: Sequence[str], source: str) -> list[Line]:
    """Returns the lines that are not empty, without comments ("# ...") at the beginning."""
    lines = [Line(number, text.rstrip()) for number, text in enumerate(texts, start=1) if text.strip()]
    start = 0
    while start < len(lines) and re.match(r"#(\s|$)", lines[start].text):
        start += 1
    if start == len(lines):
        raise ValueError(f"{source} is empty: it must have one label or path per line.")
    return lines[start:]


# ---- Detection ----


def detect_text_format(lines: Sequence[Line], source: str) -> TextFormat:
    """Finds the format of lines.

    Raises:
        ValueError: if there is no hierarchy, or several ways to read it. The message names the arguments that decide.
    """
    texts = [line.text for line in lines]
    is_indented = any(text[0] in " \t" for text in texts)
    strong = [sign for sign in _STRONG if any(sign in text for text in texts)]
    if is_indented:
        if strong and sum(strong[0] in text for text in texts) * 2 > len(texts):
            raise _ambiguous(source, f"lines are indented and contain {strong[0]!r}", strong[0])
        return TextFormat("indented", described="indented text")
    with_tabs = sum("\t" in text for text in texts)
    if looks_like_codes(texts):
        return TextFormat("codes", described="codes that contain their parents' codes")
    if with_tabs:
        if strong and with_tabs < len(texts):
            raise _ambiguous(source, f"lines contain tabs and {strong[0]!r}", strong[0])
        return _tab_format(texts, source)
    return path_format(lines, source)


def _tab_format(texts: Sequence[str], source: str) -> TextFormat:
    """Tells a parent with its children from the steps of a path, both separated by tabs."""
    rows = [[cell.strip() for cell in text.split("\t")] for text in texts]
    firsts = [row[0] for row in rows]
    below = {cell for row in rows for cell in row[1:]}
    if max(map(len, rows)) <= 2 or not below.isdisjoint(firsts) or firsts[0].lower() == ROOT.lower():
        return TextFormat("parent-children", described="a parent and its children per line, separated by tabs")
    if len(set(firsts)) < len(firsts):
        return TextFormat("paths", "\t", "one path per line, separated by tabs")
    raise _ambiguous(source, "lines have three or more cells, separated by tabs, and share no label", "\t")


def path_format(lines: Sequence[Line], source: str, separator: str | None = None) -> TextFormat:
    """Describes lines of paths. The separator is detected by default.

    Raises:
        ValueError: if there is no separator, or several are possible.
    """
    texts = [line.text.strip() for line in lines]
    rest = [match["rest"] for text in texts if (match := _ID.fullmatch(text))]
    rest = rest if len(rest) == len(texts) else texts
    separator = separator or detect_separator(rest, source)
    ids = ", each after an id" if rest is not texts else ""
    return TextFormat("paths", separator, f"one path per line with the separator {separator!r}{ids}")


def detect_separator(texts: Sequence[str], source: str) -> str:
    """Finds the separator of paths.

    Raises:
        ValueError: if there is none, or several are possible.
    """
    counts = {sign: sum(sign in text for text in texts) for sign in SEPARATORS}
    if counts[">"] in (counts["->"], counts["=>"]):
        counts[">"] = 0
    strong = sorted((sign for sign in _STRONG if counts[sign]), key=lambda sign: -counts[sign])
    weak = sorted((sign for sign in _WEAK if counts[sign]), key=lambda sign: -counts[sign])
    if len(strong) > 1 and counts[strong[1]] * 10 > counts[strong[0]]:
        raise _ambiguous(source, f"lines contain {strong[0]!r} and {strong[1]!r}", strong[0])
    if strong and weak and counts[weak[0]] > 2 * counts[strong[0]] and counts[weak[0]] * 2 > len(texts):
        raise _ambiguous(source, f"lines contain {weak[0]!r} and {strong[0]!r}", weak[0])
    if strong:
        return _spaced(strong[0], texts)
    for sign in weak[:1]:
        separator = _spaced(sign, texts)
        if len(weak) > 1 and counts[weak[1]] * 2 > counts[sign]:
            raise _ambiguous(source, f"lines contain {sign!r} and {weak[1]!r}", sign)
        if counts[sign] * 2 >= len(texts) or _has_all_parents(texts, separator):
            return separator
        raise _ambiguous(source, f"only {counts[sign]:,} of {len(texts):,} lines contain {sign!r}", sign)
    raise ValueError(
        f"{source} has no hierarchy that can be detected: its lines are not indented and contain no separator. Give "
        'separator="..." (on the command line --separator) if paths have another one; format="codes" with code_rule if '
        'codes contain their parents\' codes; or format="paths" if all lines are roots.'
    )


def _spaced(sign: str, texts: Sequence[str]) -> str:
    """Returns the separator with spaces if nearly all lines write it so. A sign without spaces is then part of a name."""
    tight = sum(sign in text for text in texts)
    spaced = sum(f" {sign} " in text for text in texts)
    return f" {sign} " if spaced * 10 >= tight * 9 else sign


def _has_all_parents(texts: Sequence[str], separator: str) -> bool:
    known = set(texts)
    return all(text.rpartition(separator)[0] in known for text in texts if separator in text)


def _ambiguous(source: str, what: str, separator: str) -> ValueError:
    return ValueError(
        f'{source} can be read in several ways: {what}. Give one of format="paths" with separator={separator!r}, '
        'format="indented", format="parent-children" or format="codes" (on the command line --format and --separator).'
    )


# ---- Reading ----


def split_steps(text: str, separator: str) -> list[str]:
    """Splits a path. White space at the ends of the separator must be in the text, at the ends of steps it is removed."""
    sign = separator.strip()
    if not sign:
        return [step.strip() for step in text.split(separator)]
    before = r"(?<=\s)" if separator[0].isspace() else ""
    after = r"(?=\s)" if separator[-1].isspace() else ""
    return [step.strip() for step in re.split(before + re.escape(sign) + after, text)]


def add_paths(nodes: NodeTable, lines: Sequence[Line], separator: str) -> bool:
    """Adds lines with one path each. If every line starts with an id, it belongs to the last node. Returns whether so."""
    matches = [_ID.fullmatch(line.text.strip()) for line in lines]
    with_ids = all(matches) and separator.strip() not in ("-", ":")
    sign = separator.strip()
    is_absolute = all(line.text.strip().startswith(sign) for line in lines) and bool(sign)
    listed: set[int] = set()
    for line, match in zip(lines, matches):
        id_, text = (match["id"], match["rest"]) if with_ids and match else (None, line.text.strip())
        steps = split_steps(text.removeprefix(sign) if is_absolute else text, separator)
        node = nodes.add_path(steps, line.number)
        nodes.describe(node, line.number, id_)
        if node in listed:
            nodes.repeated.append(line.number)
        elif nodes.places[node] != line.number:
            nodes.places[node] = line.number
        listed.add(node)
    return with_ids


def add_indented(nodes: NodeTable, lines: Sequence[Line]) -> None:
    """Adds lines in which a child is indented more than its parent, by tabs or spaces. List signs are removed."""
    matches = [_BULLET.fullmatch(line.text) for line in lines]
    is_list = all(matches)
    open_nodes: list[tuple[str, int]] = []  # (indentation, node) of the last line and its ancestors
    listed: set[int] = set()
    for line, match in zip(lines, matches):
        name = match[2] if is_list and match else line.text.strip()
        indent = line.text[: len(line.text) - len(line.text.lstrip(" \t"))]
        while open_nodes and not (indent.startswith(open_nodes[-1][0]) and indent != open_nodes[-1][0]):
            last = open_nodes.pop()[0]
            if indent == last:
                break
            if not open_nodes or not last.startswith(indent) or (len(indent) > len(open_nodes[-1][0])):
                raise nodes.error(
                    line.number,
                    f"{name!r} is indented by {indent!r}, which is neither deeper than the line before nor equal to the "
                    "indentation of one of its ancestors. Indent all lines in the same way, by tabs or by spaces.",
                )
        node = nodes.add_path([name], line.number, open_nodes[-1][1] if open_nodes else -1)
        if node in listed:
            nodes.repeated.append(line.number)
        listed.add(node)
        open_nodes.append((indent, node))


def add_children(nodes: NodeTable, lines: Sequence[Line], root: str | None, separator: str = "\t") -> None:
    """Adds lines with a parent and its children, separated by tabs. `root` is a virtual root, which is no label."""
    for line in lines:
        cells = [cell.strip() for cell in line.text.split(separator)]
        while cells and not cells[-1]:
            cells.pop()
        if "" in cells:
            raise nodes.error(line.number, "a name between two separators is empty.")
        add_family(nodes, cells[0], cells[1:], line.number, root)


def add_family(nodes: NodeTable, parent: str, children: Sequence[str], place: int, root: str | None) -> None:
    """Adds a parent and its children, all identified by their names."""
    above = -1 if parent == root else nodes.node(parent, parent, place)
    for child in children:
        if child == root:
            raise nodes.error(
                place, f"{child!r} is the virtual root and cannot be a child. Give root=None if it is a label."
            )
        node = nodes.node(child, child, place)
        if above >= 0:
            nodes.add_edge(above, node, place)


def add_code_lines(nodes: NodeTable, lines: Sequence[Line], rule: CodeRule | None) -> None:
    """Adds lines with a code and, if there is more, its description."""
    add_codes(nodes, [(line.number, line.text) for line in lines], rule)

"""Reads hierarchies of codes that contain the codes of their parents, such as ICD, MeSH tree numbers or NACE."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

from transformers.utils import logging

from ..node_names import quote_first
from .node_table import NodeTable

logger = logging.get_logger(__name__)

# A separator, the lengths of the prefixes, or a regular expression in which each group ends one level.
CodeRule: TypeAlias = str | Sequence[int] | re.Pattern[str]
_CODE = re.compile(r"[A-Za-z0-9]+([.\-][A-Za-z0-9]+)*")
_ICD = re.compile(r"[A-Z]\d[0-9A-Z](\.[0-9A-Z]{1,4})?")
_DELIMITERS = ("\t", ";", "|")


def parse_rule(text: str) -> CodeRule:
    """Reads a rule given as text: a separator, lengths ("2,4,6"), or a regular expression, which contains a group.

    Raises:
        ValueError: for an invalid regular expression, or an empty separator.
    """
    if "(" in text:
        try:
            return re.compile(text)
        except re.error as problem:
            raise ValueError(f"code_rule {text!r} is not a regular expression: {problem}.") from problem
    if re.fullmatch(r"\d+(,\d+)*", text):
        return [int(length) for length in text.split(",")]
    return text


def check_rule(rule: CodeRule) -> None:
    """Raises a ValueError for a rule that has no level."""
    if isinstance(rule, re.Pattern):
        if not rule.groups:
            raise ValueError(
                f"The code rule {rule.pattern!r} has no groups. Each group must end one level: ([A-Z]\\d\\d)(\\.\\d)?"
            )
    elif isinstance(rule, str):
        if not rule.strip():
            raise ValueError(f"The code rule must be a separator such as '.', got {rule!r}.")
    elif not rule or list(rule) != sorted({int(length) for length in rule}) or rule[0] < 1:
        raise ValueError(f"The lengths of a code rule must be at least 1 and increase, as in [2, 4, 6]; got {rule!r}.")


def ancestors(code: str, rule: CodeRule, known: Collection[str] = (), is_icd: bool = False) -> list[str]:
    """Returns the codes above a code, from the root down.

    Args:
        code: the code.
        rule: how codes contain their parents' codes. A regular expression is applied to the parents again.
        known: the codes that are listed.
        is_icd: whether each character after the separator is one level, if the shorter code is listed: E11.65 is below
            E11.6.

    Raises:
        ValueError: if the code has an empty step.
    """
    if isinstance(rule, re.Pattern):
        above: set[str] = set()
        waiting = [code]
        while waiting:
            match = rule.fullmatch(step := waiting.pop())
            ends = {match.end(group) for group in range(1, rule.groups + 1) if match[group]} if match else set()
            new = {step[:end] for end in ends if 0 < end < len(step)} - above
            above |= new
            waiting += new
        return sorted(above, key=len)
    if not isinstance(rule, str):
        return [code[:length] for length in rule if length < len(code)]
    steps = code.split(rule)
    if "" in steps:
        raise ValueError(f"the code {code!r} has an empty step between its separators {rule!r}")
    found = [rule.join(steps[:length]) for length in range(1, len(steps))]
    if is_icd and found:
        start = len(found[-1]) + len(rule)
        found += [code[:end] for end in range(start + 1, len(code)) if code[:end] in known]
    return found


def split_code_cells(texts: Sequence[str], needs_digit: bool = True) -> list[tuple[str, str | None]] | None:
    """Splits lines into code and description: by a tab, semicolon or bar in all lines, else by the first white space.

    The description may come first, as in the files of MeSH. Returns None if a line does not begin with a code, which by
    default contains a digit.
    """
    for delimiter in _DELIMITERS:
        if all(text.count(delimiter) == 1 for text in texts):
            pairs = [tuple(cell.strip() for cell in text.split(delimiter)) for text in texts]
            for code, description in ((0, 1), (1, 0)):
                if all(_is_code(pair[code], needs_digit) for pair in pairs):
                    return [(pair[code], pair[description] or None) for pair in pairs]
    split = [text.split(None, 1) for text in texts]
    if all(cells and _is_code(cells[0], needs_digit) for cells in split):
        return [(cells[0], cells[1].strip() if len(cells) > 1 else None) for cells in split]
    return None


def _is_code(text: str, needs_digit: bool) -> bool:
    return (
        len(text) <= 40 and (not needs_digit or any(c.isdigit() for c in text)) and _CODE.fullmatch(text) is not None
    )


def looks_like_codes(texts: Sequence[str]) -> bool:
    """Returns whether lines begin with codes in which a dot separates levels, and no text is an id before a path."""
    cells = split_code_cells(texts)
    if cells is None or any(description and " > " in description for _, description in cells):
        return False
    codes = {code for code, _ in cells}
    dotted = [code for code in codes if "." in code]
    with_parent = sum(code.rpartition(".")[0] in codes for code in dotted)
    return bool(dotted) and (with_parent > 0 or len(dotted) * 2 >= len(codes))


def add_codes(nodes: NodeTable, rows: Iterable[tuple[int, str]], rule: CodeRule | None) -> None:
    """Adds lines with a code and, if there is more, its description.

    Raises:
        ValueError: for a line without a code.
    """
    rows = list(rows)
    texts = [text.strip() for _, text in rows]
    cells = split_code_cells(texts) or split_code_cells(texts, needs_digit=False)
    if cells is None:
        for place, text in rows:
            if split_code_cells([text.strip()], needs_digit=False) is None:
                raise nodes.error(
                    place, f"{text.strip()!r} does not begin with a code (letters, digits, '.' and '-')."
                )
        raise nodes.error(rows[0][0], "codes and descriptions must be separated in the same way in all lines.")
    add_code_pairs(nodes, [(place, *pair) for (place, _), pair in zip(rows, cells)], rule)


def add_code_pairs(nodes: NodeTable, rows: Sequence[tuple[int, str, str | None]], rule: CodeRule | None) -> None:
    """Adds (place, code, description) triples. A code is below the nearest code above it that is listed. If none
    is listed, those above it are added, and their number is logged.

    Args:
        nodes: receives the codes.
        rows: the triples.
        rule: how codes contain their parents' codes. By default a dot separates levels, and in codes of ICD-10 each
            character after the dot is a level.

    Raises:
        ValueError: for a code that the rule cannot split, or that has two descriptions.
    """
    if rule is not None:
        check_rule(rule)
    described: dict[str, tuple[int, str | None]] = {}
    for place, code, description in rows:
        first, other = described.setdefault(code, (place, description))
        if first != place and other != description:
            raise nodes.error(
                place, f"the code {code!r} is described as {description!r}, but in {nodes.unit} {first} as {other!r}."
            )
    is_icd = rule is None and all(_ICD.fullmatch(code) for code in described)
    added: dict[str, str] = {}
    unmatched: list[str] = []
    for place, code, _ in rows:
        try:
            above = ancestors(code, rule or ".", described, is_icd)
        except ValueError as problem:
            raise nodes.error(place, f"{problem}.") from problem
        if not above and isinstance(rule, re.Pattern) and not rule.fullmatch(code):
            unmatched.append(code)
        listed = [step for step in above if step in described]
        if not listed:
            added |= {step: code for step in above if step not in added}
        last = -1
        for step in [*(listed or above), code]:
            name = described[step][1] if step in described else None
            node = nodes.node(step, name or step, place)
            nodes.describe(node, place, step)
            if last >= 0:
                nodes.edges.setdefault((last, node), place)
            last = node
        if described[code][0] != place:
            nodes.repeated.append(place)
    if added:
        step, code = next(iter(added.items()))
        logger.warning_once(
            f"{nodes.source}: {len(added):,} parent code(s) are not listed and are added, first {step!r} above {code!r}."
        )
    if unmatched:
        logger.warning_once(
            f"{nodes.source}: {len(unmatched):,} code(s) do not match the code rule and are roots: "
            f"{quote_first(unmatched)}."
        )

"""Derives a hierarchy from codes such as ICD's E11.9 or the tree numbers of MeSH."""

import re
from collections.abc import Sequence
from typing import TypeAlias

# A separator, a list of prefix lengths, or a regular expression with the parent's code as its first group.
CodeRule: TypeAlias = str | Sequence[int] | re.Pattern


def code_edges(codes: Sequence[str], rule: CodeRule) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the edges (parent, child) and the roots of a list of codes.

    The parent of a code is the nearest code above it that is in the list.

    Args:
        codes: the codes.
        rule: a separator such as "."; a list of prefix lengths such as [1, 3, 5]; or a regular expression (compiled, or
            a text that contains a group) of which the first group is the code above.

    Raises:
        ValueError: for a code that occurs twice, or a rule that makes no code shorter.
    """
    known: set[str] = set()
    for code in codes:
        if code in known:
            raise ValueError(f"The code {code!r} occurs twice: remove one.")
        known.add(code)
    edges, roots = [], []
    for code in codes:
        above = _above(code, rule)
        while above and above not in known:
            above = _above(above, rule)
        if above:
            edges.append((above, code))
        else:
            roots.append(code)
    return edges, roots


def _above(code: str, rule: CodeRule) -> str:
    if isinstance(rule, str) and "(" not in rule:
        if not rule:
            raise ValueError('code_rule must be a separator such as ".", prefix lengths, or a regular expression.')
        before, _, _ = code.rpartition(rule)
        # Below the separator each further character is a level of its own: E11.65 lies below E11.6 if that is a code.
        last = code[len(before) + len(rule) :] if before else ""
        return code[:-1] if len(last) > 1 else before
    if isinstance(rule, str | re.Pattern):
        match = re.match(rule, code)
        above = (match[1] or "") if match and match.re.groups else ""
        if len(above) >= len(code):
            raise ValueError(f"The rule {rule!r} makes {above!r} of {code!r}: the code above must be shorter.")
        return above
    return code[: max((length for length in rule if length < len(code)), default=0)]

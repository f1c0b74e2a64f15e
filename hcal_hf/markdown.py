"""Text from outside, such as label names, as Markdown that cannot turn into anything else."""

import re
import unicodedata
from collections.abc import Sequence

# Zero-width joiners belong to words of some scripts and to emoji.
_JOINERS = "\u200c\u200d"
_RIGHT_TO_LEFT = ("R", "AL", "AN")


def readable(text: str, limit: int | None = None) -> str:
    """Text on one line: white space as single spaces, characters that do not show (control, direction, surrogates, line
    ends) as their code points, cut to `limit` characters."""
    line = " ".join("".join(map(_visible, str(text).replace("\t", " ").replace("\n", " ").replace("\r", " "))).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def _visible(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def code(text: str, limit: int | None = 80) -> str:
    """A code span, in which nothing is read as Markdown, HTML or a link."""
    line = readable(text, limit) or " "
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def cell(text: str, limit: int | None = 80) -> str:
    """A code span for a table, whose bars do not end the cell.

    Parsers differ on a backslash before an escaped bar: such a one is shown as a full-width backslash.
    """
    return re.sub(r"\\+(?=\|)", lambda run: "\uff3c" * len(run[0]), code(text, limit)).replace("|", r"\|")


def prose(text: str, limit: int | None = 80) -> str:
    """Text in a sentence or a heading: as it is where it is plain words, else a code span."""
    line = readable(text, limit)
    # A dot before a letter may make a link of it, a number with one at the start of a line a list.
    plain = re.fullmatch(r"[A-Za-z0-9]+(?:(?:[ -]|, |\.(?=[0-9]))[A-Za-z0-9]+)*", line)
    return line if plain else code(text, limit)


def isolated(text: str) -> str:
    """Keeps right-to-left letters from reordering what stands beside them on the line."""
    if any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in text):
        return f"\u2068{text}\u2069"
    return text


def block(lines: Sequence[str], language: str = "text") -> str:
    """A fenced block of lines, which may hold fences themselves."""
    runs = (len(run) for line in lines for run in re.findall("`+", line))
    fence = "`" * max(3, max(runs, default=0) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """A table; the columns from `numbers_from` on are set to the right. Cells must be safe already (`cell`)."""
    rule = ["---" if i < numbers_from else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


__all__ = ["block", "cell", "code", "isolated", "prose", "readable", "table"]

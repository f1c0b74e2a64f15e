"""Checks texts, and joins the text columns of a row."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def text_problem(text: Any) -> str | None:
    """Returns the reason why a value is not a text that a model can read, or None."""
    if text is None:
        return "there is no text"
    if not isinstance(text, str):
        return f"the text must be a string, got {type(text).__name__}"
    if not text.strip():
        return "the text is empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        return (
            "the text contains bytes or half characters that are not Unicode. Is the file in another encoding, such as "
            "cp1252?"
        )
    return None


def join_texts(cells: Sequence[Any]) -> Any:
    """Joins the text columns of a row by a line break. Missing and blank cells are left out.

    A single column is returned unchanged, so that [`text_problem`] can report a value that is not a string. With several
    columns a number counts as its text.
    """
    if len(cells) == 1:
        return cells[0]
    parts = [str(cell) for cell in cells if cell is not None and not (isinstance(cell, float) and cell != cell)]
    return "\n".join(part for part in parts if part.strip())


def group_equal_texts(texts: Sequence[str]) -> np.ndarray:
    """Numbers the different texts in their order, int64 [N]. White space at both ends is ignored."""
    numbers: dict[str, int] = {}
    groups = (numbers.setdefault(text.strip(), len(numbers)) for text in texts)
    return np.fromiter(groups, dtype=np.int64, count=len(texts))

"""Reads the documents that `hcal suggest` has chosen."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...data.tables import read_table
from ...data.texts import join_texts, text_problem

logger = logging.get_logger(__name__)

# The columns that every table of `hcal suggest` has, in addition to those of texts and labels.
_ROW, _SUGGESTION, _CONFIDENCE = "row", "suggestion", "confidence"


@dataclass(frozen=True)
class SuggestedText:
    """Holds a document to label.

    Attributes:
        key: its text without white space at the ends, by which it is recognised.
        cells: its text columns, with the names of the model's table.
        text: the joined text columns, which the model reads.
        row: its row in the table from which it was chosen, or None.
        confidence: the confidence of the model that chose it, or None.
    """

    key: str
    cells: dict[str, Any]
    text: str
    row: int | None
    confidence: float | None


def read_suggestions(file: str | os.PathLike, columns: Sequence[str]) -> list[SuggestedText]:
    """Reads a table that `hcal suggest` has written. Equal texts count once, and rows without a text are left out.

    Args:
        file: the table, `.csv` or `.jsonl`.
        columns: the text columns of the model. If there is only one, the table may call it `text`, as `hcal suggest`
            does for texts from another table than that of training.

    Raises:
        ValueError: if the file is no such table, or has no text.
        FileNotFoundError: if there is no file.
    """
    path = Path(file)
    make = "Write such a table with: hcal suggest MODEL TEXTS --out to_label.csv"
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. {make}")
    table = read_table(path)
    names = [name for name in table.column_names if not name.startswith("_")]
    found = f"its columns are {', '.join(map(repr, names))}"
    if missing := [name for name in (_ROW, _SUGGESTION) if name not in names]:
        hint = " Tasks for Label Studio are labelled there." if path.suffix == ".json" else ""
        raise ValueError(f"{path} is no table of suggestions: it has no column {missing[0]!r}, {found}.{hint} {make}")
    sources = ["text"] if len(columns) == 1 and columns[0] not in names and "text" in names else list(columns)
    for name in sources:
        if name not in names:
            raise ValueError(
                f"{path} has no column {name!r}, in which the model reads texts: {found}. Rename the column of the texts "
                f"to {name!r}, or write the table with this model: hcal suggest MODEL TEXTS --out to_label.csv"
            )
    texts: dict[str, SuggestedText] = {}
    left_out = 0
    rows = table[_ROW][:]
    confidences = table[_CONFIDENCE][:] if _CONFIDENCE in names else [None] * len(rows)
    for row, confidence, cells in zip(rows, confidences, zip(*(table[name][:] for name in sources))):
        text = join_texts(cells)
        if text_problem(text) or text.strip() in texts:
            left_out += 1
            continue
        number = _number(row)
        texts[text.strip()] = SuggestedText(
            text.strip(), dict(zip(columns, cells)), text, None if number is None else int(number), _number(confidence)
        )
    if left_out:
        logger.warning(
            f"{path}: {left_out:,} rows are left out, because they have no text or a text of an earlier row."
        )
    if not texts:
        raise ValueError(f"{path} has no row with a text in {', '.join(map(repr, sources))}. {make}")
    return list(texts.values())


def _number(cell: Any) -> float | None:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 1e15 else None

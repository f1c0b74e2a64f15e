"""Reads the names of labels that are codes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from ..taxonomy import Taxonomy
from .tables import TableFile

logger = logging.get_logger(__name__)

_CODE_COLUMNS = ("id", "code", "label", "notation", "key")
_NAME_COLUMNS = ("name", "title", "description", "text")


def read_label_names(path: str | os.PathLike, taxonomy: Taxonomy) -> dict[str, str]:
    """Reads the names of labels from a file: a table with a column of codes and one of names, or a JSON object.

    The columns are those named id, code, label, notation or key, and name, title, description or text; else the first two.
    A table without a header is recognised by a label in its first row. Codes are labels, or last steps of their paths.

    Args:
        path: a file in any format of [`TableFile`], or `.json` with an object {code: name}.
        taxonomy: the labels. Codes that it does not have are left out, and their number is logged, as is the number of
            labels that have no name.

    Returns:
        the names by code, as [`HcalConfig.from_taxonomy`] takes them.

    Raises:
        ValueError: if the file has not two columns, if a code has two names, or if no code is a label.
    """
    pairs = _read_object(Path(path)) or _read_pairs(Path(path), {*taxonomy.labels, *taxonomy.names})
    known = {*taxonomy.labels, *taxonomy.names}
    names: dict[str, str] = {}
    for code, name in pairs:
        if code in known and names.setdefault(code, name) != name:
            raise ValueError(f"{path} has two names for {code!r}: {names[code]!r} and {name!r}. Remove one of them.")
    if not names:
        raise ValueError(
            f"No code in {path} is a label. The first codes are {', '.join(repr(code) for code, _ in pairs[:3])}; the "
            f"labels are {', '.join(map(repr, taxonomy.labels[:3]))}, ..."
        )
    unused = len({code for code, _ in pairs} - names.keys())
    without = sum(label not in names and name not in names for label, name in zip(taxonomy.labels, taxonomy.names))
    notes = [f"{unused:,} codes are not labels"] if unused else []
    notes += [f"{without:,} labels have no name and are shown as they are"] if without else []
    logger.warning(f"{path}: names of {taxonomy.num_labels - without:,} labels{''.join(f'; {n}' for n in notes)}.")
    return names


def _read_object(path: Path) -> list[tuple[str, str]] | None:
    if path.suffix != ".json":
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        return None  # lines or an array of objects, which are a table
    if not isinstance(data, dict):
        return None
    if any(not isinstance(name, str) for name in data.values()):
        raise ValueError(f'{path} must hold an object {{code: name}} with texts as names, such as {{"111": "Crops"}}.')
    return list(data.items())


def _read_pairs(path: Path, known: set[str]) -> list[tuple[str, str]]:
    table = TableFile(path)
    columns = [column for column in table.columns if column]
    if len(columns) < 2:
        raise ValueError(f"{path} must have two columns, codes and names, but has {', '.join(map(repr, columns))}.")
    code, name = _find(columns, _CODE_COLUMNS, 0), _find(columns, _NAME_COLUMNS, 1)
    pairs = [(code.strip(), name.strip())] if code.strip() in known else []  # a file without a header
    for row in table.rows([code, name]):
        if not row.problem and all(cell is not None and str(cell).strip() for cell in row.cells):
            pairs.append((str(row.cells[0]).strip(), str(row.cells[1]).strip()))
    return pairs


def _find(columns: Sequence[str], wanted: Sequence[str], default: int) -> str:
    return next((column for column in columns if column.strip().lower() in wanted), columns[default])

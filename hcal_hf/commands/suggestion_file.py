"""Writes the documents to label next as a table, or as tasks for Label Studio."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.tables import read_table
from ..data.texts import join_texts
from ..taxonomy import SEPARATOR
from ..training.suggestions import suggest_documents
from .prediction_formats import confidence, end_paths
from .saved_model import load_model


def write_suggestions(
    model_name: str,
    file: str | os.PathLike,
    out: str | os.PathLike,
    number: int,
    *,
    text: Sequence[str] = (),
    exclude: str | os.PathLike | None = None,
    seed: int = 0,
    overwrite: bool = False,
    use_cpu: bool = False,
) -> dict[str, Any]:
    """Chooses documents of a table ([`hcal_hf.suggest_documents`]) and writes them.

    A table (`.csv`, `.jsonl`) has the columns `row` (from 0), the text columns, `suggestion` (the predicted paths),
    `confidence`, and the empty label columns of training. `.json` holds tasks for Label Studio, with the prediction as a
    pre-annotation for a Taxonomy tag named `taxonomy` on a text named `text`.

    Args:
        model_name: the folder of a saved model with its tokenizer, or its name on the Hub.
        file: the texts ([`hcal_hf.read_table`]).
        out: the output.
        number: how many documents to choose.
        text: the text columns; those of training by default.
        exclude: a table of texts that are left out.
        seed: of the draws.
        overwrite: replaces an existing output.
        use_cpu: use no accelerator.

    Returns:
        `out`, `texts`, `suggested` and `label_columns`.

    Raises:
        ValueError: if a column is missing, or there are fewer different texts.
        FileExistsError: if `out` exists.
    """
    path = Path(out)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: remove it, or give --overwrite.")
    model, tokenizer = load_model(model_name)
    if not use_cpu and torch.cuda.is_available():
        model = model.to("cuda")
    options = model.config.table_options or {}
    table = read_table(file)
    columns = list(text) or options.get("text", ["text"])
    if not text and not set(columns) <= set(table.column_names) and "text" in table.column_names:
        columns = ["text"]
    texts = _texts(table, columns, str(file))
    known = set(_texts(read_table(exclude), columns, str(exclude))) if exclude else set()
    candidates = [None if value in known else value for value in texts]
    found = suggest_documents(model, tokenizer, candidates, number, seed=seed)
    label_columns = options.get("labels", ["labels"])
    rows = []
    for row, labels, probabilities in zip(found.rows.tolist(), found.label_sets, found.probabilities):
        nodes = labels.nonzero()[0].tolist()
        paths = [model.taxonomy.paths(node, limit=1)[0] for node in nodes]
        rows.append(
            {
                "row": row,
                **{name: table[row][name] for name in columns},
                "paths": end_paths(paths),
                "confidence": round(float(confidence(paths, probabilities[nodes].tolist())), 4),
            }
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, path.suffix, rows, columns, label_columns)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"out": str(path), "texts": len(texts), "suggested": len(rows), "label_columns": label_columns}


def _texts(table: Any, columns: Sequence[str], where: str) -> list[Any]:
    for name in columns:
        if name not in table.column_names:
            visible = [column for column in table.column_names if not column.startswith("_")]
            raise ValueError(
                f"{where} has no column {name!r}: its columns are {', '.join(map(repr, visible))}. Name the columns of the "
                "texts with --text."
            )
    return [join_texts(cells) for cells in zip(*(table[name][:] for name in columns))]


def _write(
    path: Path, suffix: str, rows: list[dict[str, Any]], columns: Sequence[str], label_columns: Sequence[str]
) -> None:
    if suffix == ".json":
        tasks = [_task(row, columns) for row in rows]
        path.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
        return
    lines = [
        {
            **{name: row[name] for name in ("row", *columns)},
            "suggestion": "; ".join(SEPARATOR.join(steps) for steps in row["paths"]),
            "confidence": row["confidence"],
            **dict.fromkeys(label_columns),
        }
        for row in rows
    ]
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        return
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _task(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Returns a task for Label Studio with the prediction as a pre-annotation."""
    result = {"from_name": "taxonomy", "to_name": "text", "type": "taxonomy", "value": {"taxonomy": row["paths"]}}
    prediction = {"result": [result] if row["paths"] else [], "score": row["confidence"]}
    return {
        "data": {"text": join_texts([row[name] for name in columns]), "row": row["row"]},
        "predictions": [prediction],
    }

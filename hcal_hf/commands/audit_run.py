"""Audits a table for `hcal audit`, and writes the suspicions."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..audit.auditing import AuditReport, audit_labels
from ..data.tables import read_table
from ..report.audit_page import write_audit_page
from ..training.arguments import HcalTrainingArguments
from ..training.encoders import default_encoder
from ..training.regime import FINE_TUNING
from .prediction_formats import open_rows
from .run_arguments import DataArguments
from .run_data import read_or_build_taxonomy
from .saved_model import load_model

_LIST = pa.list_(pa.string())
_MISSING = {
    "rank": pa.int64(), "row": pa.int64(), "path": pa.string(), "missing": _LIST, "present": _LIST,
    "probability": pa.float64(), "conditional": pa.float64(), "p_missing": pa.float64(), "decision": pa.string(),
    "text": pa.string(),
}  # fmt: skip
_WRONG = {
    "rank": pa.int64(), "row": pa.int64(), "given": pa.string(), "likelier": pa.string(), "p_given": pa.float64(),
    "p_likelier": pa.float64(), "surprise": pa.float64(), "text": pa.string(),
}  # fmt: skip


@dataclass
class AuditArguments:
    """Selects how a table is audited, and what is written."""

    out: str | None = None
    page: str | None = None
    model: str | None = None
    encoder: str | None = None
    label_mode: str | None = None
    partial_paths: bool | None = None
    folds: int = 5
    fine_tune: int | None = None
    top: int = 1000
    label_frequency: float | None = None
    wrong_quantile: float = 0.99
    feature_cache: str | None = None
    no_texts: bool = False
    seed: int = 0
    overwrite: bool = False
    cpu: bool = False


def audit_table(args: AuditArguments, tables: DataArguments) -> dict[str, Any]:
    """Audits one table ([`audit_labels`]) and writes the suspicions as a table, as a page, or both.

    Args:
        args: the model and the outputs.
        tables: the file, its columns and its hierarchy.

    Returns:
        `documents`, `folds`, `label_mode`, `partial_paths`, `suspicions`, `wrong` (None under multi_path),
        `expected_missing`, `documents_missing`, the ten labels with the most expected missing (`labels`), and the files
        that were written: `out`, `wrong_file`, `page`.

    Raises:
        ValueError: as in [`audit_labels`].
        FileExistsError: if an output exists and `overwrite` is not set.
    """
    out = Path(args.out) if args.out else None
    wrong_file = out.with_name(f"{out.stem}-wrong{out.suffix}") if out else None
    page = Path(args.page) if args.page else None
    for path in (out, page):
        if path is not None and path.exists() and not args.overwrite:
            raise FileExistsError(f"{path} exists already: remove it, or give --overwrite.")
    table = read_table(tables.data_dir)
    source: Any = args.encoder
    tokenizer = taxonomy = None
    if args.model:
        source, tokenizer = load_model(args.model)
    else:
        source = source or default_encoder()
        if hasattr(table, "column_names") and set(tables.labels) <= set(table.column_names):
            taxonomy = read_or_build_taxonomy(table, tables)
    options: dict[str, Any] = {} if args.label_frequency is None else {"label_frequency": args.label_frequency}
    with tempfile.TemporaryDirectory() as folder:
        training_args = None
        if args.fine_tune is not None:
            settings = {**FINE_TUNING, "num_train_epochs": args.fine_tune, "save_strategy": "no", "report_to": "none"}
            training_args = HcalTrainingArguments(folder, use_cpu=args.cpu, seed=args.seed, **settings)
        report = audit_labels(
            source,
            table,
            taxonomy,
            tokenizer=tokenizer,
            text=tables.text,
            **tables.label_options,
            empty_means_none=bool(tables.empty_means_none),
            on_bad_row=tables.on_bad_row,
            max_length=tables.max_length,
            label_mode=args.label_mode,
            partial_paths=args.partial_paths,
            folds=args.folds,
            training_args=training_args,
            feature_cache=args.feature_cache,
            use_cpu=args.cpu,
            seed=args.seed,
            top=args.top,
            quantile=args.wrong_quantile,
            **options,
        )
    if args.no_texts:
        report.texts = None
    result = _summary(report, args.folds)
    if out is not None and wrong_file is not None:
        _write(out, _MISSING, ({**row, "decision": None} for row in report.suspicions()), report.texts is not None)
        result["out"] = str(out)
        if report.wrong is not None:
            _write(wrong_file, _WRONG, report.wrong_rows(), report.texts is not None)
            result["wrong_file"] = str(wrong_file)
    if page is not None:
        result["page"] = str(write_audit_page(page, report, f"Audit of {Path(str(tables.data_dir)).name}"))
    return result


def _summary(report: AuditReport, folds: int) -> dict[str, Any]:
    ranking = report.ranking
    return {
        "documents": len(report.rows),
        "folds": folds,
        "label_mode": report.label_mode,
        "partial_paths": report.partial_paths,
        "suspicions": len(ranking),
        "wrong": None if report.wrong is None else len(report.wrong),
        "expected_missing": float(ranking.expected_missing.sum()),
        "documents_missing": float(ranking.document_missing.sum()),
        "labels": report.label_rows()[:10],
    }


def _write(out: Path, columns: dict[str, pa.DataType], rows: Iterable[dict[str, Any]], has_texts: bool) -> None:
    """Writes rows in the format of the ending. Lists become text in formats without lists."""
    fields = {name: kind for name, kind in columns.items() if has_texts or name != "text"}
    is_flat = out.suffix in (".csv", ".tsv", ".xlsx")
    schema = pa.schema([(name, pa.string() if is_flat and kind == _LIST else kind) for name, kind in fields.items()])
    with open_rows(out, schema) as write:
        for row in _flat(rows) if is_flat else rows:
            write(row)


def _flat(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {name: "; ".join(value) if isinstance(value, list) else value for name, value in row.items()}

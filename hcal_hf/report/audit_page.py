"""Renders an audit as one HTML file, in which a person reads, filters and decides."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..audit.auditing import AuditReport
from ..card_markdown import readable
from ..model_card import package_version
from .page import FOLDER, environment, script_hash

# Characters of a text that the page keeps, so that the file stays small.
LONGEST_TEXT = 2000
# Labels in the table of labels.
MOST_LABELS = 100


def write_audit_page(path: str | os.PathLike, report: AuditReport, title: str) -> Path:
    """Writes the page of an audit.

    Args:
        path: the file to write.
        report ([`AuditReport`]): the audit. Without texts, the page has none.
        title: the heading of the page.

    Returns:
        the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_audit(report, title), encoding="utf-8")
    return path


def render_audit(report: AuditReport, title: str) -> str:
    """Renders the page of an audit, which needs no other file."""
    script = (FOLDER / "audit.js").read_text(encoding="utf-8")
    ranking, labels = report.ranking, [row for row in report.label_rows() if row["expected_missing"] > 0]
    tiles = [
        ("rows audited", f"{len(report.rows):,}", "each by a model that was trained on other rows"),
        ("labels expected to be missing", f"{ranking.expected_missing.sum():,.0f}", "an upper bound, over all labels"),
        ("rows expected to miss a label", f"{ranking.document_missing.sum():,.0f}", "an upper bound"),
        ("suspicions on this page", f"{len(ranking):,}", f"of {ranking.candidates:,} that were compared"),
    ]
    return (
        environment()
        .get_template("audit.html")
        .render(
            title=readable(title, 200),
            subtitle=f"{report.taxonomy.num_labels:,} labels, {report.label_mode}",
            tiles=tiles,
            labels=labels[:MOST_LABELS],
            num_labels=len(labels),
            wrong=None if report.wrong is None else [_shortened(row) for row in report.wrong_rows()],
            has_texts=report.texts is not None,
            version=package_version("hcal-hf"),
            page_data={"suspicions": [_for_page(row, report) for row in report.suspicions()]},
            style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
            page_style=Markup((FOLDER / "audit.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hashes=Markup(f"'{script_hash(script)}'"),
        )
    )


def _for_page(row: dict[str, Any], report: AuditReport) -> dict[str, Any]:
    """Returns a suspicion with short numbers, and the P that its row misses any label."""
    document = int(report.ranking.documents[row["rank"] - 1])
    short = {name: round(float(row[name]), 4) for name in ("probability", "conditional", "p_missing")}
    any_missing = round(float(np.clip(report.ranking.document_missing[document], 0, 1)), 4)
    return {**_shortened(row), **short, "p_any": any_missing}


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    if len(row.get("text", "")) > LONGEST_TEXT:
        return {**row, "text": row["text"][:LONGEST_TEXT] + " …"}
    return row

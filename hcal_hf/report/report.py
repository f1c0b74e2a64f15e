"""Writes reports."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..taxonomy import Taxonomy
from .comparison import Comparison
from .page import render
from .predictions import Predictions
from .summary import RunFacts, summarize


def write_report(
    path: str | os.PathLike,
    facts: RunFacts,
    predictions: Predictions,
    taxonomy: Taxonomy | None = None,
    texts: Callable[[Sequence[int]], Sequence[str]] | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """Writes the report of an evaluation: one HTML file that needs no network.

    The plots need plotly (`pip install "hcal-hf[report]"`). Without it, the report has tables only.

    Args:
        path: the file. Missing folders are created, and an existing file is replaced.
        facts ([`RunFacts`]): the model, the data and the metrics.
        predictions ([`Predictions`]): the label sets, from [`collect_predictions`].
        taxonomy ([`Taxonomy`], *optional*): the hierarchy, that of the configuration by default.
        texts: returns the texts of documents, by their position in the evaluated data set. By default the report has no
            texts.
        comparison ([`Comparison`], *optional*): the comparison with a second model ([`compare_predictions`]).

    Returns:
        the path.
    """
    taxonomy = facts.config.to_taxonomy() if taxonomy is None else taxonomy
    page = render(facts, summarize(facts, predictions, taxonomy, texts), taxonomy, comparison)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    temporary.write_text(page, encoding="utf-8", errors="replace")
    os.replace(temporary, target)
    return target

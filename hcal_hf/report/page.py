"""Renders a report as one HTML file."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..card_markdown import readable
from ..model_card import package_version
from ..taxonomy import Taxonomy
from ..windows import Windows
from .comparison import Comparison
from .figures import INSTALL, draw, plotly_script
from .predictions import BINS
from .summary import FEWEST_FOR_WORST, Coverage, RunFacts, Summary

FOLDER = Path(__file__).parent
# Bytes of the tree of labels. With plotly.js, 4.8 MB, the file stays below 8 MB.
TREE_BYTES = 2_500_000
# Bytes of the numbers of one label in the tree.
_NUMBERS = 34
_COVERAGES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def render(facts: RunFacts, summary: Summary, taxonomy: Taxonomy, comparison: Comparison | None = None) -> str:
    """Renders the report of a run.

    Args:
        facts: the facts of the run.
        summary: the facts from its predictions.
        taxonomy: the hierarchy.
        comparison ([`Comparison`], *optional*): the comparison with a second model.

    Returns:
        an HTML page that needs no other file. Without plotly it has no plots.
    """
    plotly, script = plotly_script(), (FOLDER / "script.js").read_text(encoding="utf-8")
    figures = draw(summary, facts.metrics, len(taxonomy.levels), comparison) if plotly else {}
    tree = tree_data(summary)
    has_texts = any(pair.texts for pair in summary.confusions) or bool(comparison and comparison.has_texts)
    return (
        environment()
        .get_template("template.html")
        .render(
            facts=facts,
            summary=summary,
            comparison=comparison,
            verb="trained" if facts.is_training else "evaluated",
            sections=_sections(comparison),
            tiles=_tiles(facts),
            settings=_settings(facts),
            levels=_levels(facts, summary, taxonomy),
            hvr_sentence=_hvr_sentence(facts),
            tree_note=_tree_note(summary, len(tree["names"]), taxonomy),
            calibration_sentence=_calibration_sentence(facts, summary.bins),
            bins=_bins(summary.bins),
            coverage=_coverage(summary.coverage),
            fewest=FEWEST_FOR_WORST,
            has_texts=has_texts,
            figures=figures,
            install=INSTALL,
            version=package_version("hcal-hf"),
            page_data={"figures": figures, "tree": tree, "documents": summary.documents},
            style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
            script=Markup(script),
            plotly_script=Markup(plotly) if plotly else None,
            script_hashes=Markup(" ".join(f"'{script_hash(text)}'" for text in (plotly, script) if text)),
        )
    )


def tree_data(summary: Summary, limit: int = TREE_BYTES) -> dict[str, list]:
    """Returns the labels of the tree, the most frequent ones if all take more than `limit` bytes.

    Returns:
        lists of equal length: `names`, `parents` (positions in these lists, or -1), `documents`, `predicted`, `hits` and
        `ends`. Labels that neither occur nor are predicted are left out. Every label comes after its parent.
    """
    labels = summary.labels
    is_shown = (labels.documents > 0) | (labels.predicted > 0)
    nodes = np.flatnonzero(is_shown)
    while len(nodes):  # one round per level
        nodes = np.unique(labels.parents[nodes])
        nodes = nodes[nodes >= 0]
        is_shown[nodes] = True
    order = np.argsort(-labels.documents, kind="stable")  # a parent has as many documents, and a smaller index
    order = order[is_shown[order]]
    sizes = np.fromiter((len(summary.names[node].encode()) for node in order), dtype=np.int64, count=len(order))
    order = order[: int(np.searchsorted(np.cumsum(sizes + _NUMBERS), limit, "right"))]
    position = np.full(len(labels.parents) + 1, -1)
    position[order] = np.arange(len(order))
    counts = {name: getattr(labels, name)[order].tolist() for name in ("documents", "predicted", "hits", "ends")}
    return {
        "names": [summary.names[node] for node in order],
        "parents": position[labels.parents[order]].tolist(),
        **counts,
    }


def environment() -> Environment:
    """Returns the settings of the templates: they escape all values, and refuse missing ones."""
    settings = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return settings


def script_hash(script: str) -> str:
    """Returns the source expression of a script for the Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _sections(comparison: Comparison | None) -> list[tuple[str, str]]:
    compared = [("comparison", "Comparison")] if comparison else []
    return [
        ("run", "Run"), *compared, ("scores", "Scores"), ("tree", "Tree"), ("confused", "Confused labels"),
        ("calibration", "Calibration"), ("coverage", "Coverage"), ("labels", "Worst and rarest"), ("rows", "Rows"),
    ]  # fmt: skip


def _tiles(facts: RunFacts) -> list[dict[str, str]]:
    chosen = [
        ("micro_f1", "micro-F1", "over all decisions"),
        ("macro_f1", "macro-F1", "mean over the labels"),
        ("hierarchical_f1", "hierarchical F1", "micro-F1 with all ancestors"),
        ("exact_match", "all labels right", "share of the documents"),
        ("hvr", "HVR", "documents that contradict the hierarchy"),
    ]
    return [
        {"name": title, "value": f"{100 * facts.metrics[name]:.1f} %", "meaning": meaning}
        for name, title, meaning in chosen
    ]


def _lengths(facts: RunFacts) -> list[tuple[str, str]]:
    """Describes the windows of long texts and the texts that were truncated, if there are any."""
    windows, found = Windows.from_config(facts.config), []
    if windows is not None:
        limit = f"up to {windows.maximum} of {windows.length:,} tokens, {windows.capacity:,} tokens of a text"
        found.append(("windows", limit))
    if cut := [f"{row.name} {row.truncated:,} of {row.used:,}" for row in facts.rows if row.truncated]:
        found.append(("texts whose end was not read", ", ".join(cut)))
    return found


def _settings(facts: RunFacts) -> list[tuple[str, str]]:
    config = facts.config
    rows = ", ".join(f"{row.name} {row.used:,}" for row in facts.rows)
    thresholds = config.thresholds
    threshold = "none" if thresholds is None else f"{min(thresholds):.2f} to {max(thresholds):.2f}"
    if thresholds is not None and min(thresholds) == max(thresholds):
        threshold = f"{thresholds[0]:.2f}"
    elif thresholds is None and config.label_mode == "multi_path":
        threshold = "0.50 (default)"
    several = "one path per document" if config.label_mode == "single_path" else "several paths per document"
    ends = "may end at inner labels" if config.partial_paths else "end at leaves"
    found = [
        ("model", facts.model),
        ("data", facts.data),
        ("rows", rows),
        *_lengths(facts),
        ("label mode", f"{config.label_mode}: {several}, paths {ends}"),
        ("head", config.head),
        ("temperature", f"{config.score_temperature:.3g}"),
        ("label threshold", threshold),
        *facts.settings,
    ]
    return [(name, readable(value, 400)) for name, value in found]


def _levels(facts: RunFacts, summary: Summary, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    metrics, documents = facts.metrics, summary.labels.documents
    return [
        {
            "number": k,
            "labels": level.stop - level.start,
            "occurring": int((documents[level] > 0).sum()),
            "accuracy": metrics[f"accuracy_level_{k}"],
            "micro_f1": metrics[f"micro_f1_level_{k}"],
            "macro_f1": metrics[f"macro_f1_level_{k}"],
            "hvr": metrics.get(f"hvr_level_{k}", 0.0),
        }
        for k, level in enumerate(taxonomy.levels)
    ]


def _hvr_sentence(facts: RunFacts) -> str:
    metrics = facts.metrics
    sentence = f"Here it is {100 * metrics['hvr']:.1f} % after decoding and {100 * metrics['raw_hvr']:.1f} % before it"
    if "hvr_argmax" in metrics:
        sentence += f", and {100 * metrics['hvr_argmax']:.1f} % if the best label of each level is taken on its own"
    return f"{sentence}."


def _tree_note(summary: Summary, shown: int, taxonomy: Taxonomy) -> str:
    occurring = int((summary.labels.documents > 0).sum())
    unused = taxonomy.num_labels - occurring
    has = "has" if unused == 1 else "have"
    notes = [f"{unused:,} of {taxonomy.num_labels:,} labels {has} no document here and no area."] if unused else []
    if shown < occurring:
        notes.append(f"To keep the file small, the tree has only the {shown:,} most frequent labels.")
    if not taxonomy.is_forest:
        notes.append("A label with several parents is drawn below one of them.")
    return " ".join(notes)


def _calibration_sentence(facts: RunFacts, bins: np.ndarray) -> str:
    single = facts.config.label_mode == "single_path"
    what = "the most probable path of each document" if single else "each label of each document"
    name = "end_ece" if single else "ece"
    error, how = facts.metrics.get(name), ""
    if error is None:
        error, how = np.abs(bins[1] - bins[2]).sum() / max(bins[0].sum(), 1), f", in {BINS} bins of equal width"
    return (
        f"The diagram compares the probability of {what} with the share that is true. The expected calibration error is "
        f"{100 * error:.2f} %{how}."
    )


def _bins(bins: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{100 * i // BINS} to {100 * (i + 1) // BINS} %",
            "count": int(count),
            "probability": total / max(count, 1),
            "outcome": true / max(count, 1),
        }
        for i, (count, total, true) in enumerate(bins.T.tolist())
    ]


def _coverage(coverage: Coverage) -> list[dict[str, float]]:
    """Returns the points of the curve that are nearest to a few shares."""
    shares = np.asarray(coverage.shares)
    if not len(shares):
        return []
    chosen = np.unique([int(np.abs(shares - share).argmin()) for share in _COVERAGES]).tolist()
    return [
        {
            "share": coverage.shares[i],
            "confidence": coverage.confidences[i],
            "exact_match": coverage.exact_match[i],
            "micro_f1": coverage.micro_f1[i],
        }
        for i in chosen
    ]

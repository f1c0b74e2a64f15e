"""Formats the metrics of a run as a table."""

from ..taxonomy import Taxonomy


def results_table(metrics: dict[str, float], taxonomy: Taxonomy, prefix: str, documents: int) -> str:
    """Formats the metrics of one split as text, in percent.

    The table has the accuracy and F1 of each level, and the overall scores of the thresholded ("raw") and the decoded
    predictions. Calibration errors follow if `metrics` holds them ([`hcal_hf.calibration_metrics`]).

    Args:
        metrics: the metrics, each name with the prefix of the split.
        taxonomy: the hierarchy of the labels.
        prefix: the name of the split.
        documents: the number of documents of the split.
    """

    def percent(name: str) -> str:
        return f"{100 * metrics[f'{prefix}_{name}']:9.1f}"

    lines = [f"\n{prefix}: {documents:,} documents, in percent", "", "level  labels  accuracy  micro-F1  macro-F1"]
    for k, level in enumerate(taxonomy.levels):
        scores = (percent(f"{name}_level_{k}") for name in ("accuracy", "micro_f1", "macro_f1"))
        lines.append(f"{k:5d}  {level.stop - level.start:6,d} {' '.join(scores)}")
    lines += ["", "decision  micro-F1  macro-F1  exact match  HVR (documents that contradict the hierarchy)"]
    for decision, start in (("raw", "raw_"), ("decoded", "")):
        micro, macro, exact, hvr = (percent(start + name) for name in ("micro_f1", "macro_f1", "exact_match", "hvr"))
        lines.append(f"{decision:8s} {micro} {macro}    {exact}  {hvr.strip()}")
    if f"{prefix}_hvr_argmax" in metrics:
        lines += ["", f"HVR of the best label of each level on its own: {percent('hvr_argmax').strip()}"]
    if f"{prefix}_ece" in metrics:
        lines += ["", "calibration of      ECE  ECE, equal width  Brier score"]
        for title, start in (("probabilities", ""), ("decisions", "end_")):
            if f"{prefix}_{start}ece" in metrics:
                mass, width, brier = (
                    100 * metrics[f"{prefix}_{start}{name}"] for name in ("ece", "ece_equal_width", "brier")
                )
                lines.append(f"{title:14s} {mass:8.2f} {width:17.2f} {brier:12.2f}")
    return "\n".join(lines)

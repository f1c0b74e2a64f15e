"""Metrics of a model's predictions, as the Trainer asks for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from .decoding import UNTHRESHOLDED, best_of_each_level, decode
from .metrics import classification_scores, violation_rates
from .taxonomy import Taxonomy

_RAW_SCORES = ("micro_f1", "macro_f1", "exact_match")


def compute_metrics(
    predictions: EvalPrediction | tuple[np.ndarray, np.ndarray],
    taxonomy: Taxonomy,
    label_mode: str,
    partial_paths: bool = False,
    head: str = "independent",
    thresholds: Sequence[float] | None = None,
    method: str | None = None,
    risk_threshold: float | None = None,
) -> dict[str, float]:
    """Scores of logits against labels.

    Args:
        predictions: `predictions` are logits [N, L], `label_ids` are multi-hot [N, L] or node indices [N, K] padded with
            -100.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode, partial_paths, head, thresholds, risk_threshold: as in [`HcalConfig`].
        method (`str`, *optional*): how to decode ([`hcal_hf.decoding.decode`]); the default of the label mode if None.

    Returns:
        F1s, hierarchical F1, accuracies ([`hcal_hf.metrics.classification_scores`]) and violation rates
        ([`hcal_hf.metrics.violation_rates`]) of the decoded decision under their own names; of the raw decision, as
        `raw_...`, the violation rates, `micro_f1`, `macro_f1`, `exact_match` and the accuracy of each level. `hvr_score`
        is of the probabilities, before any decision; `hvr_argmax` (single_path) of the best label of each level, which
        may contradict the hierarchy under every head. Each name works in `metric_for_best_model`.
    """
    logits, labels = (np.asarray(values) for values in (predictions[0], predictions[1]))
    references: Any = labels > 0 if np.issubdtype(labels.dtype, np.floating) else [row[row >= 0] for row in labels]
    scores = torch.from_numpy(logits)
    metrics: dict[str, float] = {}
    for prefix, decoder in (("", method), ("raw_", "raw")):
        lowest = None if decoder in UNTHRESHOLDED else thresholds
        risk = risk_threshold if decoder == "risk" else None
        sets = decode(scores, taxonomy, label_mode, decoder, lowest, partial_paths, head, risk).numpy()
        found = classification_scores(sets, references, taxonomy)
        rates: dict[str, Any] = violation_rates(
            sets, taxonomy, scores=None if prefix else torch.sigmoid(scores).numpy()
        )
        if prefix:
            found = {
                name: value
                for name, value in found.items()
                if name in _RAW_SCORES or name.startswith("accuracy_level_")
            }
        else:
            metrics["hvr_score"] = rates.pop("hvr_score")
        for k, rate in enumerate(rates.pop("hvr_level")):
            rates[f"hvr_level_{k}"] = rate
        metrics.update({f"{prefix}{name}": value for name, value in {**found, **rates}.items()})
    if label_mode == "single_path":
        best: dict[str, Any] = violation_rates(best_of_each_level(scores, taxonomy).numpy(), taxonomy)
        metrics["hvr_argmax"] = best["hvr"]
    return metrics


def target_matrix(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Labels as the Trainer gives them, multi-hot [N, L] or padded node indices [N, K], as bool [N, L]."""
    if np.issubdtype(labels.dtype, np.floating):
        return labels > 0
    row, column = np.nonzero(labels >= 0)
    targets = np.zeros((len(labels), num_labels), dtype=bool)
    targets[row, labels[row, column]] = True
    return targets

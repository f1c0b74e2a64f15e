"""Computes the metrics of predictions, in the format of the Trainer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from ..decoding import Decision, best_of_each_level
from ..metrics import classification_scores, violation_rates
from ..taxonomy import Taxonomy

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
    """Computes all metrics of logits and labels.

    Args:
        predictions: the logits [N, L], and the labels as a multi-hot array [N, L] or as node indices [N, K] padded with
            -100.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode, partial_paths, head, thresholds, risk_threshold: see [`HcalConfig`].
        method (`str`, *optional*): the decoder ([`hcal_hf.decoding.decode`]). By default, that of the label mode.

    Returns:
        values by name. Each name works in `metric_for_best_model`:

        - of the decoded predictions: F1, hierarchical F1, accuracies ([`hcal_hf.metrics.classification_scores`]) and
          violation rates ([`hcal_hf.metrics.violation_rates`]).
        - of the thresholded predictions, with the prefix `raw_`: `micro_f1`, `macro_f1`, `exact_match`, violation rates and
          the accuracy of each level.
        - `hvr_score`: the violation rate of the probabilities, without any threshold.
        - `hvr_argmax` (single_path): the violation rate of the most probable label of each level. These labels may
          contradict the hierarchy under every head.
    """
    return score_decision(
        predictions, taxonomy, Decision(label_mode, partial_paths, head, thresholds, method, risk_threshold)
    )


def score_decision(
    predictions: EvalPrediction | tuple[np.ndarray, np.ndarray], taxonomy: Taxonomy, decision: Decision
) -> dict[str, float]:
    """Computes the metrics of [`compute_metrics`] for a [`Decision`]."""
    logits, labels = (np.asarray(values) for values in (predictions[0], predictions[1]))
    scores = torch.from_numpy(logits)
    label_sets = _label_sets(scores, taxonomy, decision)
    return _scores(label_sets, _references(labels), taxonomy, torch.sigmoid(scores).numpy())


class BatchMetrics:
    """Computes [`compute_metrics`] batch by batch, for `batch_eval_metrics=True`.

    Keeps only the label sets of a batch, as lists of node indices. Its logits are not kept, because they would fill the
    memory if there are very many labels or documents.

    Args:
        taxonomy ([`Taxonomy`]): the hierarchy.
        decision: returns the current [`Decision`]. It is called for each batch.
    """

    def __init__(self, taxonomy: Taxonomy, decision: Callable[[], Decision]):
        self.taxonomy, self.decision = taxonomy, decision
        self.start()

    def start(self) -> None:
        """Removes all batches."""
        self.references: list[np.ndarray] = []
        self.label_sets: dict[str, list[np.ndarray]] = {}
        self.violating_scores = 0.0

    def __call__(
        self, predictions: EvalPrediction | tuple[np.ndarray, np.ndarray], compute_result: bool
    ) -> dict[str, float]:
        """Adds a batch of logits and labels. With `compute_result`, returns the metrics of all batches and removes them."""
        scores, labels = (torch.as_tensor(values).cpu() for values in (predictions[0], predictions[1]))
        label_sets = _label_sets(scores, self.taxonomy, self.decision())
        for name, sets in label_sets.items():
            self.label_sets.setdefault(name, []).extend(_as_ids(sets))
        references = _references(labels.numpy())
        self.references += list(_as_ids(references) if isinstance(references, np.ndarray) else references)
        rates: dict[str, Any] = violation_rates(label_sets[""], self.taxonomy, scores=torch.sigmoid(scores).numpy())
        self.violating_scores += rates["hvr_score"] * len(scores)
        if not compute_result:
            return {}
        metrics = _scores(self.label_sets, self.references, self.taxonomy, None)
        metrics["hvr_score"] = self.violating_scores / max(len(self.references), 1)
        self.start()
        return metrics


def _label_sets(scores: torch.Tensor, taxonomy: Taxonomy, decision: Decision) -> dict[str, np.ndarray]:
    """Decodes logits into label sets, bool [N, L].

    Returns:
        the decoded sets with the key `""`, the thresholded sets (method `raw`) with the key `"raw_"`, and for single_path
        the most probable label of each level with the key `"argmax"`.
    """
    label_sets = {
        "": decision.decode(scores, taxonomy).numpy(),
        "raw_": replace(decision, method="raw").decode(scores, taxonomy).numpy(),
    }
    if decision.label_mode == "single_path":
        label_sets["argmax"] = best_of_each_level(scores, taxonomy).numpy()
    return label_sets


def _scores(
    label_sets: Mapping[str, Any], references: Any, taxonomy: Taxonomy, probabilities: np.ndarray | None
) -> dict[str, float]:
    """Computes the metrics of [`compute_metrics`] from label sets.

    Args:
        label_sets: predictions with the keys of `_label_sets`, as bool matrices [N, L] or as lists of node indices.
        references: true label sets, in either form.
        taxonomy: the hierarchy.
        probabilities: [N, L]. With None, `hvr_score` is left out.
    """
    metrics: dict[str, float] = {}
    for prefix in ("", "raw_"):
        sets = label_sets[prefix]
        scores = classification_scores(sets, references, taxonomy)
        rates: dict[str, Any] = violation_rates(sets, taxonomy, scores=None if prefix else probabilities)
        if prefix:
            scores = {
                name: value
                for name, value in scores.items()
                if name in _RAW_SCORES or name.startswith("accuracy_level_")
            }
        elif probabilities is not None:
            metrics["hvr_score"] = rates.pop("hvr_score")
        for k, rate in enumerate(rates.pop("hvr_level")):
            rates[f"hvr_level_{k}"] = rate
        metrics.update({f"{prefix}{name}": value for name, value in {**scores, **rates}.items()})
    if "argmax" in label_sets:
        best: dict[str, Any] = violation_rates(label_sets["argmax"], taxonomy)
        metrics["hvr_argmax"] = best["hvr"]
    return metrics


def _references(labels: np.ndarray) -> Any:
    """Converts multi-hot labels [N, L] to bool, and padded node indices [N, K] to lists without padding."""
    return labels > 0 if np.issubdtype(labels.dtype, np.floating) else [row[row >= 0] for row in labels]


def _as_ids(sets: np.ndarray) -> list[np.ndarray]:
    """Lists the node indices of each row of a bool matrix [N, L]."""
    rows, nodes = np.nonzero(sets)
    return np.split(nodes, np.searchsorted(rows, np.arange(1, len(sets))))


def target_matrix(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Converts the labels of the Trainer, multi-hot [N, L] or padded node indices [N, K], to bool [N, L]."""
    if np.issubdtype(labels.dtype, np.floating):
        return labels > 0
    row, column = np.nonzero(labels >= 0)
    targets = np.zeros((len(labels), num_labels), dtype=bool)
    targets[row, labels[row, column]] = True
    return targets

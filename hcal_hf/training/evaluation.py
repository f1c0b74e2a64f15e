"""Metrics of a model's predictions, as the Trainer asks for them."""

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
    """[`compute_metrics`] of one batch after the other, for `batch_eval_metrics=True`: of a batch its label sets are kept,
    as lists of node indices, and not its logits, which would fill the memory where labels or documents are very many.

    Args:
        taxonomy ([`Taxonomy`]): the hierarchy.
        decision: returns the present [`Decision`]. It is called for each batch.
    """

    def __init__(self, taxonomy: Taxonomy, decision: Callable[[], Decision]):
        self.taxonomy, self.decision = taxonomy, decision
        self.start()

    def start(self) -> None:
        """Forgets all batches."""
        self.references: list[np.ndarray] = []
        self.decisions: dict[str, list[np.ndarray]] = {}
        self.violating = 0.0

    def __call__(
        self, predictions: EvalPrediction | tuple[np.ndarray, np.ndarray], compute_result: bool
    ) -> dict[str, float]:
        """Takes a batch in; with `compute_result`, the last one, the metrics of all, and the next batch is a first one."""
        scores, labels = (torch.as_tensor(values).cpu() for values in (predictions[0], predictions[1]))
        found = _label_sets(scores, self.taxonomy, self.decision())
        for name, sets in found.items():
            self.decisions.setdefault(name, []).extend(_as_ids(sets))
        references = _references(labels.numpy())
        self.references += list(_as_ids(references) if isinstance(references, np.ndarray) else references)
        rates: dict[str, Any] = violation_rates(found[""], self.taxonomy, scores=torch.sigmoid(scores).numpy())
        self.violating += rates["hvr_score"] * len(scores)
        if not compute_result:
            return {}
        metrics = _scores(self.decisions, self.references, self.taxonomy, None)
        metrics["hvr_score"] = self.violating / max(len(self.references), 1)
        self.start()
        return metrics


def _label_sets(scores: torch.Tensor, taxonomy: Taxonomy, decision: Decision) -> dict[str, np.ndarray]:
    """Decodes logits into label sets, bool [N, L].

    Returns:
        the decoded sets under `""`, the sets of the method `raw` under `"raw_"`, and in single_path the best label of each
        level under `"argmax"`.
    """
    label_sets = {
        "": decision.decode(scores, taxonomy).numpy(),
        "raw_": replace(decision, method="raw").decode(scores, taxonomy).numpy(),
    }
    if decision.label_mode == "single_path":
        label_sets["argmax"] = best_of_each_level(scores, taxonomy).numpy()
    return label_sets


def _scores(
    decisions: Mapping[str, Any], references: Any, taxonomy: Taxonomy, probabilities: np.ndarray | None
) -> dict[str, float]:
    """What [`compute_metrics`] returns, from label sets as bool matrices or id lists; `hvr_score` only of given
    probabilities [N, L]."""
    metrics: dict[str, float] = {}
    for prefix in ("", "raw_"):
        sets = decisions[prefix]
        found = classification_scores(sets, references, taxonomy)
        rates: dict[str, Any] = violation_rates(sets, taxonomy, scores=None if prefix else probabilities)
        if prefix:
            found = {
                name: value
                for name, value in found.items()
                if name in _RAW_SCORES or name.startswith("accuracy_level_")
            }
        elif probabilities is not None:
            metrics["hvr_score"] = rates.pop("hvr_score")
        for k, rate in enumerate(rates.pop("hvr_level")):
            rates[f"hvr_level_{k}"] = rate
        metrics.update({f"{prefix}{name}": value for name, value in {**found, **rates}.items()})
    if "argmax" in decisions:
        best: dict[str, Any] = violation_rates(decisions["argmax"], taxonomy)
        metrics["hvr_argmax"] = best["hvr"]
    return metrics


def _references(labels: np.ndarray) -> Any:
    """True sets as a bool matrix [N, L] or as lists of node indices, from multi-hot labels or padded indices."""
    return labels > 0 if np.issubdtype(labels.dtype, np.floating) else [row[row >= 0] for row in labels]


def _as_ids(sets: np.ndarray) -> list[np.ndarray]:
    """The node indices of each row of a bool matrix [N, L]."""
    rows, nodes = np.nonzero(sets)
    return np.split(nodes, np.searchsorted(rows, np.arange(1, len(sets))))


def target_matrix(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Labels as the Trainer gives them, multi-hot [N, L] or padded node indices [N, K], as bool [N, L]."""
    if np.issubdtype(labels.dtype, np.floating):
        return labels > 0
    row, column = np.nonzero(labels >= 0)
    targets = np.zeros((len(labels), num_labels), dtype=bool)
    targets[row, labels[row, column]] = True
    return targets

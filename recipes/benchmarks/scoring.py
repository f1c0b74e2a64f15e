"""Turns the outputs of a method into label sets, scores them, and tests differences of scores by the bootstrap."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hcal_hf import (
    Taxonomy,
    bootstrap_interval,
    classification_scores,
    decode,
    draw_documents,
    tune_for_decoding,
    tune_thresholds,
    violation_rates,
)

# Ways to tune thresholds. One is chosen for each method and metric by cross-validation on the validation split.
THRESHOLD_WAYS: tuple[dict[str, Any], ...] = (
    {"granularity": "global"},
    {"granularity": "level"},
    {"granularity": "label", "shrinkage": 0.0, "min_positives": 4},
    {"granularity": "label", "shrinkage": 30.0},
)
FOLDS = 5
# Thresholds are averaged (as logits) over this many bootstrap samples of the validation documents, because a rare label's
# best threshold depends on a few documents (Breiman, "Bagging predictors", 1996).
BAGS = 8
RESAMPLES = 2000
METRICS = ("micro_f1", "macro_f1", "leaf_macro_f1")


@dataclass
class Outputs:
    """The predictions of a method for the validation and test documents.

    Attributes:
        values (`dict`): logits [N, L] for "validation" and "test". If `head` is None, bool label sets [N, L].
        head (`str`, *optional*): the head that `decode` assumes for the logits.
        decision (`str`): `decoded` is the best path, or the labels above their thresholds with all ancestors. `levels` is
            the best label of each level (single_path). `thresholds` is the labels above their thresholds alone.
    """

    values: dict[str, Any]
    head: str | None = None
    decision: str = "decoded"


@dataclass
class LabelSets:
    """Predicted label sets, bool [N, L].

    Attributes:
        micro, macro, leaf (`np.ndarray`): with thresholds for micro-F1, macro-F1 and leaf macro-F1. They are equal if the
            method has no thresholds.
        raw (`np.ndarray`): with thresholds for micro-F1, before they are made coherent.
    """

    micro: np.ndarray
    macro: np.ndarray
    leaf: np.ndarray
    raw: np.ndarray


@dataclass
class Problem:
    """The facts about a data set that scoring needs. `truth` holds the labels of "validation" and "test", bool [N, L]."""

    taxonomy: Taxonomy
    label_mode: str
    partial_paths: bool
    truth: dict[str, np.ndarray]

    @classmethod
    def of(cls, task: Any) -> "Problem":
        """Returns the problem of a [`Task`]."""
        truth = {split: task.y[split].numpy() > 0 for split in ("validation", "test")}
        return cls(task.taxonomy, task.label_mode, task.partial_paths, truth)


def label_sets_of(outputs: Outputs, problem: Problem, split: str = "test", bags: int = BAGS) -> LabelSets:
    """Returns the label sets of a split. Thresholds are tuned on validation, with cross-validation for its own sets."""
    if outputs.head is None:
        sets = outputs.values[split]
        return LabelSets(sets, sets, sets, sets)
    taxonomy, mode, head = problem.taxonomy, problem.label_mode, outputs.head
    logits = {name: torch.as_tensor(values) for name, values in outputs.values.items()}
    if mode == "single_path" and outputs.decision != "thresholds":
        how: Any = {"partial_paths": problem.partial_paths, "head": head}
        raw = decode(logits[split], taxonomy, mode, "raw", **how).numpy()
        sets = raw if outputs.decision == "levels" else decode(logits[split], taxonomy, mode, **how).numpy()
        return LabelSets(sets, sets, sets, raw)
    closed = outputs.decision == "decoded"
    tuned = {metric: Thresholds(problem, head, closed, metric, bags).fit(logits["validation"]) for metric in METRICS}
    if split == "validation":
        sets = {metric: thresholds.held_out for metric, thresholds in tuned.items()}
    else:
        sets = {metric: thresholds.sets(logits[split]) for metric, thresholds in tuned.items()}
    raw = sets["micro_f1"]
    if closed:
        raw = torch.sigmoid(logits[split].double()).numpy() >= tuned["micro_f1"].values
    return LabelSets(sets["micro_f1"], sets["macro_f1"], sets["leaf_macro_f1"], raw)


class Thresholds:
    """Thresholds for a metric, tuned in the way that cross-validation selects."""

    def __init__(self, problem: Problem, head: str, closed: bool, metric: str, bags: int):
        self.problem, self.head, self.closed, self.metric, self.bags = problem, head, closed, metric, bags
        # Without edges, thresholds of children need not exceed those of their parents.
        self.taxonomy = problem.taxonomy if closed else Taxonomy.from_edges([], roots=problem.taxonomy.labels)

    def fit(self, logits: torch.Tensor) -> "Thresholds":
        """Chooses how to tune by cross-validation, then tunes the thresholds on all validation documents."""
        truth = self.problem.truth["validation"]
        fold = np.random.default_rng(0).permutation(len(truth)) % FOLDS
        best = -1.0
        for way in THRESHOLD_WAYS:
            sets = np.zeros_like(truth)
            for k in range(FOLDS):
                values = self._tune(logits[fold != k], truth[fold != k], way)
                sets[fold == k] = self._apply(logits[fold == k], values)
            score = self._score(sets, truth)
            if score > best:
                best, self.way, self.held_out = score, way, sets
        self.values = self._tune(logits, truth, self.way)
        return self

    def sets(self, logits: torch.Tensor) -> np.ndarray:
        """Returns the label sets of documents, bool [N, L]."""
        return self._apply(logits, self.values)

    def _score(self, sets: np.ndarray, truth: np.ndarray) -> float:
        if self.metric == "leaf_macro_f1":
            return leaf_macro_f1(sets, truth, self.problem.taxonomy)
        return classification_scores(sets, truth, self.problem.taxonomy)[self.metric]

    def _tune(self, logits: torch.Tensor, truth: np.ndarray, way: dict[str, Any]) -> np.ndarray:
        metric = "micro_f1" if self.metric == "micro_f1" else "macro_f1"
        how = {"metric": metric, "resamples": self.bags, **way}
        if self.closed:
            return tune_for_decoding(logits, truth, self.taxonomy, "multi_path", head=self.head, **how)
        return tune_thresholds(torch.sigmoid(logits.double()), truth, self.taxonomy, **how)

    def _apply(self, logits: torch.Tensor, values: np.ndarray) -> np.ndarray:
        if self.closed:
            limits = torch.from_numpy(values)
            return decode(logits, self.taxonomy, "multi_path", "closure", threshold=limits, head=self.head).numpy()
        return torch.sigmoid(logits.double()).numpy() >= values


def scores(label_sets: LabelSets, problem: Problem, split: str = "test") -> dict[str, float]:
    """Returns the scores in percent.

    `leaf_accuracy` exists for single_path only. `leaf_macro_f1` is the mean F1 of the labels without children that occur.
    """
    truth, taxonomy = problem.truth[split], problem.taxonomy
    micro = classification_scores(label_sets.micro, truth, taxonomy)
    macro = classification_scores(label_sets.macro, truth, taxonomy)
    values = {"micro_f1": micro["micro_f1"], "macro_f1": macro["macro_f1"]}
    if problem.label_mode == "single_path":
        values["leaf_accuracy"] = micro["leaf_accuracy"]
    values["leaf_macro_f1"] = leaf_macro_f1(label_sets.leaf, truth, taxonomy)
    values["hierarchical_f1"] = micro["hierarchical_f1"]
    for depth in range(len(taxonomy.levels)):
        values[f"micro_f1_level_{depth}"] = micro[f"micro_f1_level_{depth}"]
    for name, sets in (("hvr_raw", label_sets.raw), ("hvr_decoded", label_sets.micro)):
        rates: dict[str, Any] = dict(violation_rates(sets, taxonomy))
        values[name] = rates["hvr"]
    return {name: round(100 * float(value), 3) for name, value in values.items()}


def leaf_macro_f1(sets: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> float:
    """Returns the mean F1 of the labels without children that occur in the truth."""
    leaves = np.asarray(taxonomy.is_leaf) & truth.any(axis=0)
    hits = (sets & truth)[:, leaves].sum(axis=0)
    return float((2 * hits / (sets[:, leaves].sum(axis=0) + truth[:, leaves].sum(axis=0))).mean())


def selection_score(outputs: Outputs, problem: Problem) -> float:
    """Returns the score that settings are chosen by: the sum of micro-F1, macro-F1 and leaf accuracy on validation."""
    values = scores(label_sets_of(outputs, problem, "validation", bags=0), problem, "validation")
    return values["micro_f1"] + values["macro_f1"] + values.get("leaf_accuracy", 0.0)


def resampled_scores(
    label_sets: LabelSets, truth: np.ndarray, taxonomy: Taxonomy, seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns scores [RESAMPLES] in percent on documents drawn with replacement, the same draws for every method."""
    n = len(truth)
    counts = next(draw_documents(n, RESAMPLES, seed))
    weights = counts.astype(np.float32)
    hits, size = (label_sets.micro & truth).sum(axis=1), label_sets.micro.sum(axis=1) + truth.sum(axis=1)
    values = {"micro_f1": 2 * (weights @ hits) / (weights @ size)}
    occurring = truth.any(axis=0)
    true = truth[:, occurring].astype(np.float32)
    positives = weights @ true
    for name, predicted, labels in (
        ("macro_f1", label_sets.macro, np.ones_like(occurring)),
        ("leaf_macro_f1", label_sets.leaf, np.asarray(taxonomy.is_leaf)),
    ):
        sets = predicted[:, occurring].astype(np.float32)
        f1 = 2 * (weights @ (true * sets)) / np.maximum(positives + weights @ sets, 1)
        present = (positives > 0) & labels[occurring]
        values[name] = (f1 * present).sum(axis=1) / present.sum(axis=1)
    correct = (end_nodes(label_sets.micro, taxonomy) == end_nodes(truth, taxonomy)).all(axis=1)
    values["leaf_accuracy"] = weights @ correct.astype(np.float32) / n
    return {name: 100 * resampled for name, resampled in values.items()}


def end_nodes(sets: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns the nodes of each set without a child in it, bool [N, L]."""
    is_end = sets.copy()
    for parent, child in taxonomy.edges:
        is_end[:, parent] &= ~sets[:, child]
    return is_end


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, float]:
    """Computes the 95 % interval and the two-sided p of a difference of means over seeds, by the paired bootstrap."""
    gains = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    found = bootstrap_interval(gains)
    return {"low": round(found["low"], 2), "high": round(found["high"], 2), "p": round(found["p"], 4)}

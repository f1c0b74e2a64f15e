"""From what a method says of documents to label sets, their scores, and whether a difference of scores is chance."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hcal_hf import Taxonomy, decode
from hcal_hf.metrics import classification_scores, violation_rates
from hcal_hf.training.thresholds import tune_for_decoding, tune_thresholds

# How thresholds may be tuned; which way is cross-validated on the validation split, for each method and metric.
THRESHOLD_WAYS: tuple[dict[str, Any], ...] = (
    {"granularity": "global"},
    {"granularity": "level"},
    {"granularity": "label", "shrinkage": 0.0, "min_positives": 4},
    {"granularity": "label", "shrinkage": 30.0},
)
FOLDS = 5
# Thresholds of so many bootstrap samples of the validation documents are averaged, as logits (Breiman, "Bagging
# predictors", 1996): a rare label's best threshold hangs on a few documents.
BAGS = 8
RESAMPLES = 2000
METRICS = ("micro_f1", "macro_f1", "leaf_macro_f1")


@dataclass
class Outputs:
    """What a method says of the validation and test documents.

    Attributes:
        values (`dict`): for "validation" and "test" logits [N, L], or bool label sets [N, L] where `head` is None.
        head (`str`, *optional*): the head that `decode` is to take the logits for.
        decision (`str`): `decoded`: the best path, or labels above their thresholds with all ancestors. `levels`: the best
            label of each level (single_path). `thresholds`: labels above their thresholds as they are.
    """

    values: dict[str, Any]
    head: str | None = None
    decision: str = "decoded"


@dataclass
class Answers:
    """Label sets, bool [N, L], with thresholds for micro-F1, macro-F1 and leaf macro-F1 (equal where there are none), and
    `raw`, the decision for micro-F1 before anything is made to agree."""

    micro: np.ndarray
    macro: np.ndarray
    leaf: np.ndarray
    raw: np.ndarray


@dataclass
class Problem:
    """What scoring needs to know of a data set; `truth` holds bool [N, L] of "validation" and "test"."""

    taxonomy: Taxonomy
    label_mode: str
    partial_paths: bool
    truth: dict[str, np.ndarray]

    @classmethod
    def of(cls, task: Any) -> "Problem":
        truth = {split: task.y[split].numpy() > 0 for split in ("validation", "test")}
        return cls(task.taxonomy, task.label_mode, task.partial_paths, truth)


def answers_of(outputs: Outputs, problem: Problem, split: str = "test", bags: int = BAGS) -> Answers:
    """Label sets of a split. Thresholds are tuned on the validation split, whose own sets are those of cross-validation."""
    if outputs.head is None:
        sets = outputs.values[split]
        return Answers(sets, sets, sets, sets)
    taxonomy, mode, head = problem.taxonomy, problem.label_mode, outputs.head
    logits = {name: torch.as_tensor(values) for name, values in outputs.values.items()}
    if mode == "single_path" and outputs.decision != "thresholds":
        how: Any = {"partial_paths": problem.partial_paths, "head": head}
        raw = decode(logits[split], taxonomy, mode, "raw", **how).numpy()
        sets = raw if outputs.decision == "levels" else decode(logits[split], taxonomy, mode, **how).numpy()
        return Answers(sets, sets, sets, raw)
    closed = outputs.decision == "decoded"
    found = {metric: Thresholds(problem, head, closed, metric, bags).fit(logits["validation"]) for metric in METRICS}
    if split == "validation":
        sets = {metric: tuned.held_out for metric, tuned in found.items()}
    else:
        sets = {metric: tuned.sets(logits[split]) for metric, tuned in found.items()}
    raw = sets["micro_f1"]
    if closed:
        raw = torch.sigmoid(logits[split].double()).numpy() >= found["micro_f1"].values
    return Answers(sets["micro_f1"], sets["macro_f1"], sets["leaf_macro_f1"], raw)


class Thresholds:
    """Thresholds for a metric, tuned in the way that cross-validation prefers."""

    def __init__(self, problem: Problem, head: str, closed: bool, metric: str, bags: int):
        self.problem, self.head, self.closed, self.metric, self.bags = problem, head, closed, metric, bags
        # Without the hierarchy nothing orders the thresholds of children and parents.
        self.taxonomy = problem.taxonomy if closed else Taxonomy.from_edges([], roots=problem.taxonomy.labels)

    def fit(self, logits: torch.Tensor) -> "Thresholds":
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


def scores(answers: Answers, problem: Problem, split: str = "test") -> dict[str, float]:
    """Percentages. `leaf_accuracy`: single_path; `leaf_macro_f1`: mean F1 of the labels without children that occur."""
    truth, taxonomy = problem.truth[split], problem.taxonomy
    micro = classification_scores(answers.micro, truth, taxonomy)
    macro = classification_scores(answers.macro, truth, taxonomy)
    found = {"micro_f1": micro["micro_f1"], "macro_f1": macro["macro_f1"]}
    if problem.label_mode == "single_path":
        found["leaf_accuracy"] = micro["leaf_accuracy"]
    found["leaf_macro_f1"] = leaf_macro_f1(answers.leaf, truth, taxonomy)
    found["hierarchical_f1"] = micro["hierarchical_f1"]
    for depth in range(len(taxonomy.levels)):
        found[f"micro_f1_level_{depth}"] = micro[f"micro_f1_level_{depth}"]
    for name, sets in (("hvr_raw", answers.raw), ("hvr_decoded", answers.micro)):
        rates: dict[str, Any] = dict(violation_rates(sets, taxonomy))
        found[name] = rates["hvr"]
    return {name: round(100 * float(value), 3) for name, value in found.items()}


def leaf_macro_f1(sets: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> float:
    leaves = np.asarray(taxonomy.is_leaf) & truth.any(axis=0)
    hits = (sets & truth)[:, leaves].sum(axis=0)
    return float((2 * hits / (sets[:, leaves].sum(axis=0) + truth[:, leaves].sum(axis=0))).mean())


def selection_score(outputs: Outputs, problem: Problem) -> float:
    """What settings are chosen by: micro- and macro-F1 on the validation split."""
    found = scores(answers_of(outputs, problem, "validation", bags=0), problem, "validation")
    return found["micro_f1"] + found["macro_f1"] + found.get("leaf_accuracy", 0.0)


def resampled_scores(answers: Answers, truth: np.ndarray, taxonomy: Taxonomy, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores [RESAMPLES], percent, of random documents drawn with replacement, the same ones for every method."""
    n = len(truth)
    random = np.random.default_rng(seed)
    counts = np.stack([np.bincount(random.integers(n, size=n), minlength=n) for _ in range(RESAMPLES)])
    weights = counts.astype(np.float32)
    hits, size = (answers.micro & truth).sum(axis=1), answers.micro.sum(axis=1) + truth.sum(axis=1)
    found = {"micro_f1": 2 * (weights @ hits) / (weights @ size)}
    occurring = truth.any(axis=0)
    true = truth[:, occurring].astype(np.float32)
    positives = weights @ true
    for name, answer, labels in (
        ("macro_f1", answers.macro, np.ones_like(occurring)),
        ("leaf_macro_f1", answers.leaf, np.asarray(taxonomy.is_leaf)),
    ):
        sets = answer[:, occurring].astype(np.float32)
        f1 = 2 * (weights @ (true * sets)) / np.maximum(positives + weights @ sets, 1)
        present = (positives > 0) & labels[occurring]
        found[name] = (f1 * present).sum(axis=1) / present.sum(axis=1)
    correct = (end_nodes(answers.micro, taxonomy) == end_nodes(truth, taxonomy)).all(axis=1)
    found["leaf_accuracy"] = weights @ correct.astype(np.float32) / n
    return {name: 100 * values for name, values in found.items()}


def end_nodes(sets: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """The nodes [N, L] of each set none of whose children is in it."""
    is_end = sets.copy()
    for parent, child in taxonomy.edges:
        is_end[:, parent] &= ~sets[:, child]
    return is_end


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, float]:
    """The paired bootstrap over documents of a difference of means over seeds: its 95 % interval and two-sided p."""
    gains = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    low, high = np.percentile(gains, [2.5, 97.5])
    p = min(2 * min((gains <= 0).mean(), (gains >= 0).mean()), 1.0)
    return {"low": round(float(low), 2), "high": round(float(high), 2), "p": round(max(float(p), 1 / RESAMPLES), 4)}

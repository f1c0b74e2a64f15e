"""Compares two models on the same documents by the paired bootstrap."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..metrics import bootstrap_interval, draw_documents
from ..taxonomy import Taxonomy
from .label_scores import is_end
from .predictions import LabelPairs, Predictions, contains

# (resample, document or label) pairs at a time.
_PAIRS_PER_CHUNK = 4_000_000
# Whole numbers below this are exact in float32.
_EXACT = 2**24
TITLES = {
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "hierarchical_f1": "hierarchical F1",
    "exact_match": "all labels right",
    "leaf_accuracy": "end labels right",
    "hvr": "HVR",
}


@dataclass(frozen=True)
class MetricComparison:
    """One metric of two models.

    Attributes:
        name (`str`): as from [`hcal_hf.classification_scores`] and [`hcal_hf.violation_rates`].
        title (`str`): the name for people.
        first, second, difference (`float`): the metric of each model, and second - first.
        low, high (`float`): the 95 % interval of the difference.
        p (`float`): two-sided, at least 1 / number of resamples.
    """

    name: str
    title: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class DifferingDocument:
    """A document for which two models predict different labels.

    Attributes:
        row (`int`): its row in the table, from 1.
        text (`str`): the start of its text; empty if texts are left out.
        true, first, second (`list[str]`): the paths of the true end labels and of those that each model predicts.
    """

    row: int
    text: str
    true: list[str]
    first: list[str]
    second: list[str]


@dataclass
class Comparison:
    """The comparison of two models.

    Attributes:
        first, second (`str`): the names of the models.
        documents, resamples, seed (`int`): the number of documents, and the draws of the bootstrap.
        metrics (`list[MetricComparison]`): the metrics.
        first_right, second_right, both_wrong (int `np.ndarray`): the positions of the documents with different predictions:
            only the first model is right, only the second, or neither.
        examples (`dict[str, list[DifferingDocument]]`): a few documents of each of these kinds.
    """

    first: str
    second: str
    documents: int
    resamples: int
    seed: int
    metrics: list[MetricComparison]
    first_right: np.ndarray
    second_right: np.ndarray
    both_wrong: np.ndarray
    examples: dict[str, list[DifferingDocument]] = field(default_factory=dict)

    @property
    def has_texts(self) -> bool:
        """Whether an example has a text."""
        return any(document.text for documents in self.examples.values() for document in documents)


def compare_predictions(
    first: Predictions,
    second: Predictions,
    taxonomy: Taxonomy,
    names: Sequence[str] = ("A", "B"),
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares the predictions of two models for the same documents.

    The documents are drawn with replacement `resamples` times, and both models are scored on the same draws. The interval
    holds the middle 95 % of the differences, and p is twice the share of draws in which the difference is at most 0 or at
    least 0, whichever is smaller ([`hcal_hf.metrics.bootstrap_interval`]). The draws depend only on the number of documents
    and the seed.

    Args:
        first, second ([`Predictions`]): from [`collect_predictions`].
        taxonomy ([`Taxonomy`]): the hierarchy of both models.
        names: the names of the models.
        resamples: the number of draws.
        seed: the seed of the draws.

    Raises:
        ValueError: if the documents differ or there are none.
    """
    if not np.array_equal(first.true.keys, second.true.keys) or (
        first.true.num_documents != second.true.num_documents
    ):
        raise ValueError(
            f"The predictions are for different documents ({first.true.num_documents:,} and "
            f"{second.true.num_documents:,}, or with other labels): evaluate both models on the same rows."
        )
    number = first.true.num_documents
    models = [_Counts(predictions, taxonomy) for predictions in (first, second)]
    macro = _MacroF1(first, second)
    step = max(1, _PAIRS_PER_CHUNK // max(number, macro.num_rows, 1))
    parts: list[list[dict[str, np.ndarray]]] = [[], []]
    for weights in draw_documents(number, resamples, seed, step):
        for model, part, f1 in zip(models, parts, macro.scores(weights)):
            part.append({**model.scores(weights), "macro_f1": f1})
    draws = [{name: np.concatenate([chunk[name] for chunk in part]) for name in part[0]} for part in parts]
    once = np.ones((1, number), dtype=np.int64)
    values = [{**model.scores(once), "macro_f1": f1} for model, f1 in zip(models, macro.scores(once))]
    metrics = []
    labelled = [k for k, level in enumerate(taxonomy.levels) if _reaches(first.true, level)]
    for name in _names(labelled):
        a, b = float(values[0][name][0]), float(values[1][name][0])
        interval = bootstrap_interval(draws[1][name] - draws[0][name])
        metrics.append(MetricComparison(name, _title(name), a, b, b - a, **interval))
    right = [model.is_right for model in models]
    differs = _differs(first.predicted, second.predicted)
    return Comparison(
        first=names[0],
        second=names[1],
        documents=number,
        resamples=resamples,
        seed=seed,
        metrics=metrics,
        first_right=np.flatnonzero(differs & right[0]),
        second_right=np.flatnonzero(differs & right[1]),
        both_wrong=np.flatnonzero(differs & ~right[0] & ~right[1]),
    )


def _reaches(pairs: LabelPairs, level: slice) -> bool:
    """Returns whether a document has a label of the level."""
    return bool(((pairs.labels >= level.start) & (pairs.labels < level.stop)).any())


def _names(levels: Sequence[int]) -> list[str]:
    """Returns the names of the metrics. Levels that no document reaches have none."""
    return [*TITLES, *(f"accuracy_level_{k}" for k in levels), *(f"micro_f1_level_{k}" for k in levels)]


def _title(name: str) -> str:
    metric, _, level = name.partition("_level_")
    return TITLES[name] if name in TITLES else f"{TITLES.get(metric, metric)}, level {level}"


def _differs(first: LabelPairs, second: LabelPairs) -> np.ndarray:
    """Returns whether the label sets of each document differ, bool [N]."""
    differs = np.zeros(first.num_documents, dtype=bool)
    differs[first.documents[~first.is_in(second)]] = True
    differs[second.documents[~second.is_in(first)]] = True
    return differs


class _Counts:
    """The counts of each document from which all metrics but macro-F1 follow: sums [N] of numerators and denominators."""

    def __init__(self, predictions: Predictions, taxonomy: Taxonomy):
        predicted, true, number = predictions.predicted, predictions.true, predictions.true.num_documents
        self.ratios: dict[str, tuple[int, int]] = {}
        self._columns: list[np.ndarray] = []
        hit = predicted.is_in(true)
        ones = np.ones(number)

        def count(pairs: LabelPairs, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
            return np.bincount(pairs.documents[chosen], minlength=number)

        self._add("micro_f1", 2 * count(predicted, hit), predicted.sizes + true.sizes)
        closed = [_completed(pairs, taxonomy) for pairs in (predicted, true)]
        self._add(
            "hierarchical_f1", 2 * count(closed[0], closed[0].is_in(closed[1])), closed[0].sizes + closed[1].sizes
        )
        self.is_right = (count(predicted, hit) == true.sizes) & (predicted.sizes == true.sizes)
        self._add("exact_match", self.is_right, ones)
        ends = [_chosen(pairs, is_end(pairs, taxonomy)) for pairs in (predicted, true)]
        self._add("leaf_accuracy", ~_differs(*ends), ones)
        position, parents = taxonomy.parents_of(predicted.labels)
        lacks = ~contains(predicted.keys, predicted.documents[position] * predicted.num_labels + parents)
        self._add("hvr", np.bincount(predicted.documents[position[lacks]], minlength=number) > 0, ones)
        for k, level in enumerate(taxonomy.levels):
            here, there = ((pairs.labels >= level.start) & (pairs.labels < level.stop) for pairs in (predicted, true))
            hits, sizes, wanted = count(predicted, hit & here), count(predicted, here), count(true, there)
            self._add(f"accuracy_level_{k}", (wanted > 0) & (hits == sizes) & (hits == wanted), wanted > 0)
            self._add(f"micro_f1_level_{k}", 2 * hits, sizes + wanted)
        total = max((int(column.sum()) for column in self._columns), default=0)
        # Draws of one document many times can exceed the sum, hence the margin.
        self.matrix = np.stack(self._columns, axis=1).astype(np.float32 if 4 * total < _EXACT else np.float64)

    def _add(self, name: str, numerator: np.ndarray, denominator: np.ndarray) -> None:
        self.ratios[name] = (len(self._columns), len(self._columns) + 1)
        self._columns += [numerator, denominator]

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Computes the metrics [R] of documents that count as often as `weights` [R, N] says."""
        sums = (weights.astype(self.matrix.dtype) @ self.matrix).astype(np.float64)
        return {
            name: np.divide(sums[:, i], sums[:, j], out=np.zeros(len(sums)), where=sums[:, j] > 0)
            for name, (i, j) in self.ratios.items()
        }


class _MacroF1:
    """Macro-F1 of two models on resampled documents, from sparse counts of each label.

    The (document, label) pairs are sorted into seven groups: true labels that both, only the first, only the second or no
    model finds, and wrong labels that both, only the first or only the second predicts. So no pair is summed twice.
    """

    _TRUE, _FIRST, _SECOND = ([0, 1, 2, 3], [0, 1, 4, 5], [0, 2, 4, 6])

    def __init__(self, first: Predictions, second: Predictions):
        true, a, b = first.true, first.predicted, second.predicted
        occurring = np.unique(true.labels)  # macro-F1 is the mean over labels that occur
        row_of = np.full(true.num_labels, -1)
        row_of[occurring] = np.arange(len(occurring))
        self.num_labels, self.num_rows = len(occurring), 7 * len(occurring)
        wrong_a, wrong_b = _chosen(a, ~a.is_in(true)), _chosen(b, ~b.is_in(true))
        only_b = _chosen(wrong_b, ~wrong_b.is_in(wrong_a))
        groups = [
            (true, np.where(true.is_in(a), np.where(true.is_in(b), 0, 1), np.where(true.is_in(b), 2, 3))),
            (wrong_a, np.where(wrong_a.is_in(wrong_b), 4, 5)),
            (only_b, np.full(len(only_b.labels), 6)),
        ]
        labels = np.concatenate([row_of[pairs.labels] for pairs, _ in groups])
        rows = np.concatenate([group for _, group in groups]) * len(occurring) + labels
        documents = np.concatenate([pairs.documents for pairs, _ in groups])[labels >= 0]
        rows = rows[labels >= 0]
        order = np.argsort(rows, kind="stable")
        starts = np.searchsorted(rows[order], np.arange(self.num_rows + 1))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            self.matrix = torch.sparse_csr_tensor(
                torch.from_numpy(starts),
                torch.from_numpy(documents[order]),
                torch.ones(len(rows)),
                (self.num_rows, true.num_documents),
                check_invariants=False,
            )

    def scores(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes the macro-F1 [R] of both models, for weights [R, N]."""
        sums = self.matrix @ torch.from_numpy(np.ascontiguousarray(weights.T.astype(np.float32)))
        counts = sums.numpy().reshape(7, self.num_labels, len(weights))
        true = counts[self._TRUE].sum(axis=0)
        present = true > 0
        scores = []
        for predicted, hits in ((self._FIRST, [0, 1]), (self._SECOND, [0, 2])):
            f1 = 2 * counts[hits].sum(axis=0) / np.maximum(true + counts[predicted].sum(axis=0), 1)
            total = np.where(present, f1, 0).sum(axis=0, dtype=np.float64)
            scores.append(total / np.maximum(present.sum(axis=0), 1))
        return scores[0], scores[1]


def _chosen(pairs: LabelPairs, chosen: np.ndarray) -> LabelPairs:
    """Returns a part of the pairs."""
    return LabelPairs(pairs.documents[chosen], pairs.labels[chosen], pairs.num_documents, pairs.num_labels)


def _completed(pairs: LabelPairs, taxonomy: Taxonomy) -> LabelPairs:
    """Completes each label set with all ancestors."""
    documents, labels = taxonomy.complete_rows(pairs.documents, pairs.labels)
    return LabelPairs(documents, labels, pairs.num_documents, pairs.num_labels)


def as_dict(comparison: Comparison, rows: np.ndarray) -> Mapping[str, object]:
    """Returns a comparison as JSON holds it.

    Args:
        comparison: the comparison.
        rows (int `np.ndarray` of shape `[N]`): the row of each document in the table, from 1.
    """
    kinds = ("first_right", "second_right", "both_wrong")
    return {
        "models": [comparison.first, comparison.second],
        "documents": comparison.documents,
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "metrics": {
            metric.name: {
                name: getattr(metric, name) for name in ("first", "second", "difference", "low", "high", "p")
            }
            for metric in comparison.metrics
        },
        "differing_rows": {kind: rows[getattr(comparison, kind)].tolist() for kind in kinds},
        "examples": {
            kind: [vars(document) for document in documents] for kind, documents in comparison.examples.items()
        },
    }

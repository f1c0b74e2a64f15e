"""Collects the facts of a report."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..card_markdown import readable
from ..configuration_hcal import HcalConfig
from ..taxonomy import SEPARATOR, Taxonomy
from .confusion import Confusion, find_confusions
from .label_scores import LabelScores, is_end, score_labels
from .predictions import Predictions

# Longest text of an example, and longest name of a label, in characters.
LONGEST_TEXT = 300
LONGEST_NAME = 80
# Rows of the tables of the worst and the rarest labels.
TABLE_ROWS = 15
# Labels with fewer documents are not called worst: their F1 is chance.
FEWEST_FOR_WORST = 3
COVERAGE_POINTS = 100
_DIRECTIONS = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split.

    Attributes:
        name (`str`): the split.
        used (`int`): the number of encoded rows.
        unlabelled (`int`): rows that were left out because their labels are unknown.
        problems (`list[str]`): rows that were left out because they could not be read.
        truncated (`int`): encoded rows of which the end of the text was cut off.
    """

    name: str
    used: int
    unlabelled: int = 0
    problems: list[str] = field(default_factory=list)
    truncated: int = 0


@dataclass
class RunFacts:
    """What a run knows about itself.

    Attributes:
        title (`str`): the heading of the report.
        model, data (`str`): names or paths.
        split (`str`): the split that was evaluated.
        metrics (`dict[str, float]`): its metrics, without the prefix of the split.
        config ([`HcalConfig`]): the configuration of the model.
        rows (`list[SplitRows]`): the rows of each split.
        notes (`list[str]`): decisions of the run with their reasons, one sentence each.
        tuning (`list[tuple[str, str, str]]`): what was tuned, its value before and its value after.
        settings (`list[tuple[str, str]]`): further settings and their values.
        is_training (`bool`): whether the run trained the model.
        train_documents (int `np.ndarray` of shape `[L]`, *optional*): the number of training documents of each label.
    """

    title: str
    model: str
    data: str
    split: str
    metrics: Mapping[str, float]
    config: HcalConfig
    rows: list[SplitRows] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tuning: list[tuple[str, str, str]] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    is_training: bool = False
    train_documents: np.ndarray | None = None


@dataclass(frozen=True)
class Coverage:
    """What remains right if only the most confident documents are answered.

    Attributes:
        shares (`list[float]`): shares of the documents, ascending.
        confidences (`list[float]`): the lowest confidence among them.
        exact_match, micro_f1 (`list[float]`): the scores of them.
    """

    shares: list[float]
    confidences: list[float]
    exact_match: list[float]
    micro_f1: list[float]


@dataclass(frozen=True)
class ConfusedPair:
    """A pair of confused labels, with texts.

    Attributes:
        true, predicted (`str`): the paths of the labels.
        documents, of (`int`): the number of confused documents, and of all documents with the true label.
        texts (`list[str]`): examples.
    """

    true: str
    predicted: str
    documents: int
    of: int
    texts: list[str]


@dataclass(frozen=True)
class LabelRow:
    """One label in a table.

    Attributes:
        path (`str`): its path.
        train_documents (`int`, *optional*): its number of training documents.
        documents, predicted (`int`): the numbers of documents that have it and that it is predicted for.
        precision, recall, f1 (`float`): its scores.
    """

    path: str
    train_documents: int | None
    documents: int
    predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Summary:
    """The facts of a report that come from the predictions."""

    documents: int
    right: int
    labels: LabelScores
    names: list[str]
    confusions: list[ConfusedPair]
    bins: np.ndarray
    coverage: Coverage
    worst: list[LabelRow]
    rarest: list[LabelRow]


def summarize(
    facts: RunFacts,
    predictions: Predictions,
    taxonomy: Taxonomy,
    texts: Callable[[Sequence[int]], Sequence[str]] | None = None,
) -> Summary:
    """Aggregates the predictions of a run. The memory grows with the sizes of the label sets, not with N x L.

    Args:
        facts: the run.
        predictions: its predictions.
        taxonomy: the hierarchy.
        texts: returns the texts of documents. None leaves all texts out.
    """
    labels = score_labels(predictions, taxonomy)
    right = _is_right(predictions)
    names = [readable(name, LONGEST_NAME) for name in facts.config.shown_names]
    confusions = find_confusions(predictions, taxonomy, examples=3 if texts else 0)
    scored = np.flatnonzero(labels.documents > 0)
    f1 = labels.f1[scored]
    worst = np.lexsort((-labels.documents[scored], f1))
    worst = worst[labels.documents[scored[worst]] >= FEWEST_FOR_WORST][:TABLE_ROWS]
    known = labels.documents if facts.train_documents is None else facts.train_documents
    rarest = np.lexsort((f1, known[scored]))[:TABLE_ROWS]

    def rows(chosen: np.ndarray) -> list[LabelRow]:
        return [_label_row(int(node), facts, labels, names) for node in scored[chosen]]

    return Summary(
        documents=predictions.true.num_documents,
        right=int(right.sum()),
        labels=labels,
        names=names,
        confusions=[_with_texts(confusion, labels, names, texts) for confusion in confusions],
        bins=predictions.bins,
        coverage=cover(predictions, taxonomy, right),
        worst=rows(worst),
        rarest=rows(rarest),
    )


def cover(predictions: Predictions, taxonomy: Taxonomy, right: np.ndarray) -> Coverage:
    """Scores the most confident documents, for growing shares of all documents.

    The confidence of a document is the probability of its least probable predicted end label, as `hcal predict` gives it,
    and 0 if nothing is predicted. Documents of equal confidence are answered together.
    """
    predicted, true = predictions.predicted, predictions.true
    number = predicted.num_documents
    confidence = np.full(number, np.inf)
    ends = is_end(predicted, taxonomy)
    np.minimum.at(confidence, predicted.documents[ends], predictions.probabilities[ends])
    confidence[np.isinf(confidence)] = 0.0
    order = np.argsort(-confidence, kind="stable")
    hits = np.bincount(predicted.documents[predicted.is_in(true)], minlength=number)
    sizes = predicted.sizes + true.sizes
    exact, hits, sizes = (np.cumsum(values[order]) for values in (right, hits, sizes))
    last = np.flatnonzero(np.diff(confidence[order], append=-1.0) < 0)  # of each group of equal confidence
    wanted = np.linspace(0, number, COVERAGE_POINTS + 1)[1:]
    chosen = np.unique(last[np.minimum(np.searchsorted(last + 1, wanted), len(last) - 1)]) if len(last) else last
    return Coverage(
        shares=((chosen + 1) / max(number, 1)).tolist(),
        confidences=confidence[order][chosen].tolist(),
        exact_match=(exact[chosen] / (chosen + 1)).tolist(),
        micro_f1=(2 * hits[chosen] / np.maximum(sizes[chosen], 1)).tolist(),
    )


def _is_right(predictions: Predictions) -> np.ndarray:
    """Returns whether the predicted and the true label set of each document are equal, bool [N]."""
    predicted, true = predictions.predicted, predictions.true
    hits = np.bincount(predicted.documents[predicted.is_in(true)], minlength=true.num_documents)
    return (hits == true.sizes) & (hits == predicted.sizes)


def path_of(node: int, parents: np.ndarray, names: Sequence[str]) -> str:
    """Returns the path of a label in the tree of `parents`."""
    steps = []
    while node >= 0:
        steps.append(names[node])
        node = int(parents[node])
    return SEPARATOR.join(reversed(steps))


def shortened(text: str) -> str:
    """Returns the start of a text on one line, without invisible characters that set the direction of writing."""
    return readable(_DIRECTIONS.sub("", text[: 4 * LONGEST_TEXT]), LONGEST_TEXT)


def _label_row(node: int, facts: RunFacts, labels: LabelScores, names: Sequence[str]) -> LabelRow:
    documents, predicted, hits = (int(v[node]) for v in (labels.documents, labels.predicted, labels.hits))
    return LabelRow(
        path=path_of(node, labels.parents, names),
        train_documents=None if facts.train_documents is None else int(facts.train_documents[node]),
        documents=documents,
        predicted=predicted,
        precision=hits / max(predicted, 1),
        recall=hits / max(documents, 1),
        f1=2 * hits / max(documents + predicted, 1),
    )


def _with_texts(confusion: Confusion, labels: LabelScores, names: Sequence[str], texts: Any) -> ConfusedPair:
    shown = texts(confusion.examples) if texts and confusion.examples else ()
    return ConfusedPair(
        true=path_of(confusion.true, labels.parents, names),
        predicted=path_of(confusion.predicted, labels.parents, names),
        documents=confusion.documents,
        of=int(labels.documents[confusion.true]),
        texts=[shortened(text) for text in shown],
    )

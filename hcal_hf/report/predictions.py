"""Collects the predictions of an evaluation batch by batch, as sparse label sets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..decoding import PAIRS_PER_CHUNK, Decision
from ..taxonomy import Taxonomy
from ..training.calibration import path_confidence
from ..training.evaluation import BatchMetrics, target_matrix

BINS = 10


@dataclass(frozen=True)
class LabelPairs:
    """Holds one label set per document as (document, label) pairs, sorted by document and then by label.

    Attributes:
        documents, labels (int64 `np.ndarray` of shape `[n]`): the pairs.
        num_documents, num_labels (`int`): N and L.
    """

    documents: np.ndarray
    labels: np.ndarray
    num_documents: int
    num_labels: int

    @property
    def keys(self) -> np.ndarray:
        """One ascending integer for each pair: document * L + label."""
        return self.documents * self.num_labels + self.labels

    @property
    def sizes(self) -> np.ndarray:
        """The number of labels of each document, [N]."""
        return np.bincount(self.documents, minlength=self.num_documents)

    def is_in(self, other: "LabelPairs") -> np.ndarray:
        """Returns for each pair whether `other` has it, bool [n]."""
        return contains(other.keys, self.keys)

    def ids(self) -> list[np.ndarray]:
        """Returns the labels of each document."""
        return np.split(self.labels, np.cumsum(self.sizes)[:-1]) if self.num_documents else []

    def of(self, document: int) -> np.ndarray:
        """Returns the labels of one document."""
        start, stop = np.searchsorted(self.documents, [document, document + 1])
        return self.labels[start:stop]


def contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns for each of `keys` whether it is among `sorted_keys`."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=bool)
    position = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[position] == keys


@dataclass(frozen=True)
class Predictions:
    """The predictions of one evaluation, in the order of the documents.

    Attributes:
        predicted, true ([`LabelPairs`]): the decoded and the true label sets.
        probabilities (`np.ndarray` of shape `[n]`): the probability of each pair of `predicted`.
        bins (`np.ndarray` of shape `[3, BINS]`): for bins of equal width, the number of probabilities, their sum, and the
            number of true outcomes. With single_path the probabilities are those of the documents' paths, else those of all
            (document, label) pairs.
    """

    predicted: LabelPairs
    true: LabelPairs
    probabilities: np.ndarray
    bins: np.ndarray


class PredictionCollector:
    """Decodes logits batch by batch and keeps the label sets.

    The memory is proportional to the sizes of the label sets, apart from one chunk of `PAIRS_PER_CHUNK` probabilities.

    Args:
        taxonomy ([`Taxonomy`]): the hierarchy.
        decision: returns the decision of the model. It is called for each batch.
    """

    def __init__(self, taxonomy: Taxonomy, decision: Callable[[], Decision]):
        self.taxonomy, self.decision = taxonomy, decision
        self.start()

    def start(self) -> None:
        """Forgets all batches."""
        self._predicted: list[tuple[np.ndarray, np.ndarray]] = []
        self._true: list[tuple[np.ndarray, np.ndarray]] = []
        self._probabilities: list[np.ndarray] = []
        self._bins = np.zeros((3, BINS))
        self._num_documents = 0

    def add(self, logits: Any, labels: Any) -> None:
        """Adds a batch.

        Args:
            logits (array or tensor of shape `[B, L]`).
            labels: multi-hot (float) `[B, L]` or node indices `[B, K]` padded with a negative number.
        """
        scores = torch.as_tensor(logits).detach().cpu()
        references = np.asarray(labels)
        step = max(1, PAIRS_PER_CHUNK // self.taxonomy.num_labels)
        for start in range(0, len(scores), step):
            self._add_chunk(scores[start : start + step], references[start : start + step])

    def _add_chunk(self, logits: torch.Tensor, labels: np.ndarray) -> None:
        decision, first = self.decision(), self._num_documents
        rows, nodes = np.nonzero(decision.decode(logits, self.taxonomy).numpy())
        self._predicted.append((rows + first, nodes))
        chosen = logits[torch.from_numpy(rows), torch.from_numpy(nodes)]
        self._probabilities.append(torch.sigmoid(chosen.double()).numpy())
        positive = target_matrix(labels, self.taxonomy.num_labels)
        rows, nodes = np.nonzero(positive)
        self._true.append((rows + first, nodes))
        log_probs = torch.nn.functional.logsigmoid(logits.double())
        if decision.label_mode == "single_path":
            probabilities, outcomes = path_confidence(log_probs, positive, self.taxonomy, decision)
        else:
            probabilities, outcomes = log_probs.exp().numpy().ravel(), positive.ravel()
        index = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
        self._bins += [np.bincount(index, weights, BINS) for weights in (None, probabilities, outcomes)]
        self._num_documents += len(logits)

    def result(self) -> Predictions:
        """Returns the predictions of all batches."""
        predicted, true = (self._joined(parts) for parts in (self._predicted, self._true))
        probabilities = np.concatenate(self._probabilities) if self._probabilities else np.zeros(0)
        return Predictions(predicted, true, probabilities, self._bins.copy())

    def _joined(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> LabelPairs:
        documents, labels = (
            np.concatenate([part[i] for part in parts] or [np.zeros(0)]).astype(np.int64) for i in (0, 1)
        )
        return LabelPairs(documents, labels, self._num_documents, self.taxonomy.num_labels)


@contextmanager
def collect_predictions(trainer: Any, method: str | None = None) -> Iterator[PredictionCollector]:
    """Collects the predictions of the evaluations of a trainer within a `with` block. Its metrics are unchanged.

    Args:
        trainer ([`HcalTrainer`]): the trainer.
        method (`str`, *optional*): the decoder ([`hcal_hf.decode`]); that of the label mode by default.
    """
    model, original = trainer.unwrapped_model, trainer.compute_metrics
    collector = PredictionCollector(model.taxonomy, lambda: Decision.from_config(model.config, method=method))

    def compute_metrics(predictions: Any, *compute_result: Any, **options: Any) -> dict[str, float]:
        collector.add(predictions[0], predictions[1])
        return original(predictions, *compute_result, **options)

    if isinstance(original, BatchMetrics):
        original.start()
    trainer.compute_metrics = compute_metrics
    try:
        yield collector
    finally:
        trainer.compute_metrics = original

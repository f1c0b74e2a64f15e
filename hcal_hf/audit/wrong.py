"""Finds documents with a label that looks wrong, under single_path."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..decoding import PAIRS_PER_CHUNK, Decision, end_probabilities
from .annotations import Annotations


@dataclass
class WrongLabels:
    """Holds the documents for which another path is far more probable than the given one, the most surprising first.

    Attributes:
        documents (int64 `np.ndarray` of shape `[n]`): the documents.
        given, likelier (int64 `np.ndarray` of shape `[n]`): the end node of the given path, and of the most probable one.
        given_probabilities, likelier_probabilities (`np.ndarray` of shape `[n]`): P(the path of the document ends there).
        surprise (`np.ndarray` of shape `[n]`): -log P(given path).
        threshold (`float`): the quantile of the surprise over all documents.
    """

    documents: np.ndarray
    given: np.ndarray
    likelier: np.ndarray
    given_probabilities: np.ndarray
    likelier_probabilities: np.ndarray
    surprise: np.ndarray
    threshold: float

    def __len__(self) -> int:
        return len(self.documents)


def check_quantile(quantile: float) -> None:
    """Raises a ValueError if the quantile of [`wrong_labels`] is outside 0 to 1."""
    if not 0 <= quantile <= 1:
        raise ValueError(
            f"quantile must lie between 0 and 1, got {quantile}: 0.99 returns at most one document in 100."
        )


def wrong_labels(
    probabilities: Any,
    annotations: Annotations,
    *,
    partial_paths: bool = False,
    head: str = "lookahead_softmax",
    quantile: float = 0.99,
) -> WrongLabels:
    """Finds documents with an improbable path, of which -log P(given path) is above a quantile over all documents.

    These are wrong labels, not missing ones: another path is more probable, which does not continue the given one.

    Args:
        probabilities: out-of-fold P(node) [N, L], as for [`rank_missing`].
        annotations ([`Annotations`]): one path per document.
        partial_paths, head: see [`HcalConfig`].
        quantile (`float`): from 0 to 1. Only the documents above it, with another most probable path, are returned.

    Raises:
        ValueError: if the quantile is outside 0 to 1, or a document has no path or several.
    """
    check_quantile(quantile)
    taxonomy = annotations.taxonomy
    documents, given = annotations.ends()
    if len(documents) != len(annotations) or not np.array_equal(documents, np.arange(len(annotations))):
        counts = np.bincount(documents, minlength=len(annotations))
        document = int(np.flatnonzero(counts != 1)[0])
        raise ValueError(
            f"Wrong labels are found for documents with one path, but document {document} has {counts[document]}: use "
            'label_mode="multi_path".'
        )
    decision = Decision("single_path", partial_paths, head)
    step = max(PAIRS_PER_CHUNK // taxonomy.num_labels, 1)
    likelier = np.empty(len(given), dtype=np.int64)
    own, best = np.empty(len(given)), np.empty(len(given))
    for start in range(0, len(given), step):
        rows = slice(start, min(start + step, len(given)))
        log_probs = torch.from_numpy(np.asarray(probabilities[rows], dtype=np.float64)).log()
        paths = decision.best_path(log_probs, taxonomy)
        ends = paths.shape[1] - 1 - paths.flip(1).to(torch.uint8).argmax(dim=1)
        values = end_probabilities(log_probs, taxonomy, partial_paths and decision.is_coherent).clamp(0, 1).numpy()
        likelier[rows] = ends.numpy()
        index = np.arange(len(values))
        own[rows], best[rows] = values[index, given[rows]], values[index, likelier[rows]]
    surprise = -np.log(np.maximum(own, np.finfo(np.float64).tiny))
    threshold = float(np.quantile(surprise, quantile))
    found = np.flatnonzero((surprise > threshold) & (likelier != given) & (best > own))
    # A path that continues the given one would be a missing label.
    continues = [int(given[i]) in taxonomy.complete([likelier[i]]) for i in found]
    found = found[~np.array(continues, dtype=bool)]
    found = found[np.argsort(-surprise[found], kind="stable")]
    return WrongLabels(found, given[found], likelier[found], own[found], best[found], surprise[found], threshold)

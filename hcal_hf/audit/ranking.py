"""Ranks the labels that may be missing, in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..taxonomy import Taxonomy
from .annotations import Annotations
from .candidates import AGGREGATES, PathCandidates
from .context import PAIRS_PER_CHUNK, ContextModel, context_features, hide_each
from .posterior import check_method, label_frequencies, missing_probability

SCORES = ("context", "conditional", "probability", *AGGREGATES)
ORDERS = ("score", "missing")


@dataclass
class Ranking:
    """Holds the suspicions, the most probable first, and sums over all candidates.

    Attributes:
        documents, nodes (int64 `np.ndarray` of shape `[n]`): document and end node of each suspicion.
        probabilities (`np.ndarray` of shape `[n]`): the out-of-fold probability p of the end node.
        scores (`np.ndarray` of shape `[n]`): the score of [`rank_missing`].
        missing (`np.ndarray` of shape `[n]`): P(the label is missing).
        expected_missing (`np.ndarray` of shape `[L]`): the sum of P(missing) over all documents without the label.
        document_missing (`np.ndarray` of shape `[N]`): the probability that the document misses any label: one minus the
            product of 1 - P(missing) over the best path of each missing subtree.
        frequencies (`np.ndarray` of shape `[L]`): the share of the true documents of a label that carry it.
        candidates (`int`): the number of all (document, end node) pairs that were compared.
    """

    documents: np.ndarray
    nodes: np.ndarray
    probabilities: np.ndarray
    scores: np.ndarray
    missing: np.ndarray
    expected_missing: np.ndarray
    document_missing: np.ndarray
    frequencies: np.ndarray
    candidates: int

    def __len__(self) -> int:
        return len(self.documents)


def rank_missing(
    probabilities: Any,
    labels: Annotations | Sequence[Iterable[int]],
    taxonomy: Taxonomy,
    *,
    label_mode: str = "multi_path",
    partial_paths: bool = False,
    is_coherent: bool = True,
    score: str = "context",
    label_frequency: float | str = "certain",
    order: str = "score",
    top: int | None = 1000,
    seed: int = 0,
) -> Ranking:
    """Ranks the labels that documents do not have by how likely they are missing.

    A candidate is an absent end node with all its absent ancestors. Its score is one of:

    - `"context"` (default): the probability of the annotation given the text and all other labels of the document
      ([`ContextModel`], learned from annotations that are hidden one at a time). Under single_path it is `"conditional"`.
    - `"conditional"`: P(end node | present ancestors).
    - `"probability"`: P(end node), which ignores the other labels.
    - `"mean"`, `"sum"`, `"min"`: of P over the missing path, as in REASSIGN (Romero et al., arXiv 2207.06237).

    Memory is bounded: documents are read in chunks, and only the first `top` candidates are kept.

    Args:
        probabilities: P(node) of N documents [N, L], by models that were not trained on the document. Anything with a shape
            that can be indexed by slices and arrays of rows, such as a numpy array or a memory map.
        labels: the labels of the N documents: [`Annotations`], or one list of node indices per document.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode (`"multi_path"` or `"single_path"`): under single_path, candidates only continue the document's path.
        partial_paths (`bool`): whether paths may end at inner nodes. Candidates are then all absent nodes, and else leaves.
        is_coherent (`bool`): whether no node is more probable than its parents. Otherwise, conditional probabilities divide
            by the least probable present ancestor.
        score: see above.
        label_frequency (`float`, `"certain"` or `"mean"`): the share of the true labels that are annotated, if it is known,
            or how it is estimated for each label ([`label_frequencies`]). It gives P(missing), by Elkan and Noto (2008).
        order (`"score"` or `"missing"`): rank by the score, or by P(missing). P(missing) prefers labels that are annotated
            rarely, but also labels that are hard to predict, because both lower the estimated frequency.
        top (`int`, *optional*): how many suspicions are kept; all if None. Ties are broken by document, then by node.
        seed: draws the annotations and pairs that `"context"` is learned from, if there are many.

    Raises:
        ValueError: if shapes differ, a probability is outside 0 to 1 or NaN, no document has a label, or an option is
            unknown.
    """
    check_ranking(score=score, label_frequency=label_frequency, order=order, top=top)
    if label_mode not in ("single_path", "multi_path"):
        raise ValueError(f'label_mode must be "single_path" or "multi_path", got {label_mode!r}.')
    is_single = label_mode == "single_path"
    if is_single:
        taxonomy.check_single_path()
    annotations = labels if isinstance(labels, Annotations) else Annotations.from_rows(taxonomy, labels)
    if annotations.taxonomy != taxonomy:
        raise ValueError(
            "The labels were encoded with another taxonomy: encode them with the one of the probabilities."
        )
    if tuple(probabilities.shape) != (len(annotations), taxonomy.num_labels):
        raise ValueError(
            f"There are labels of {len(annotations):,} documents and {taxonomy.num_labels:,} nodes, but the probabilities "
            f"have the shape {tuple(probabilities.shape)}: give one row per document and one column per node."
        )
    if not len(annotations.nodes):
        raise ValueError("No document has a label, so nothing is known about the labels: give annotated documents.")
    candidates = PathCandidates(taxonomy, partial_paths, is_single)
    checked = _Checked(probabilities)
    scorer = _Scorer(candidates, "conditional" if is_single and score == "context" else score, is_coherent)
    frequencies = scorer.fit(checked, annotations, label_frequency, seed)
    return _rank(scorer, checked, annotations, frequencies, order, top)


def check_ranking(
    score: str = "context", label_frequency: float | str = "certain", order: str = "score", top: int | None = None
) -> None:
    """Checks options of [`rank_missing`], before models are trained for it.

    Raises:
        ValueError: if an option is unknown or out of range.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}.")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}.")
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, or None for all suspicions, got {top}.")
    if isinstance(label_frequency, str):
        check_method(label_frequency)
    elif not 0 < label_frequency <= 1:
        raise ValueError(
            f"label_frequency must be above 0 and at most 1, got {label_frequency}: 0.9 means that one true label in ten "
            "is missing."
        )


class _Checked:
    """Reads rows of probabilities as float64, and refuses numbers that are no probabilities."""

    def __init__(self, probabilities: Any):
        self.probabilities = probabilities
        self.shape = tuple(probabilities.shape)

    def __getitem__(self, rows: Any) -> np.ndarray:
        values = np.asarray(self.probabilities[rows], dtype=np.float64)
        is_bad = ~((values >= 0) & (values <= 1))  # also NaN
        if is_bad.any():
            row, node = (int(index[0]) for index in np.nonzero(is_bad))
            document = (rows.start or 0) + row if isinstance(rows, slice) else int(np.asarray(rows)[row])
            raise ValueError(
                f"The probability of node {node} for document {document} is {values[row, node]}, but it must lie between 0 "
                "and 1. Give probabilities and not logits or scores: torch.sigmoid(logits)."
            )
        return values


class _Scorer:
    """Computes the score of all candidates of a chunk of documents."""

    def __init__(self, candidates: PathCandidates, score: str, is_coherent: bool):
        self.candidates, self.score, self.by_steps = candidates, score, is_coherent
        self.context: ContextModel | None = None

    def fit(self, probabilities: _Checked, annotations: Annotations, label_frequency: Any, seed: int) -> np.ndarray:
        """Fits the context and the label frequencies [L] to annotations that are hidden one at a time."""
        num_labels = annotations.taxonomy.num_labels
        is_known = not isinstance(label_frequency, str)
        if is_known and self.score != "context":
            return np.full(num_labels, float(label_frequency))
        hidden = hide_each(self.candidates, probabilities, annotations, self.by_steps, seed)
        if self.score == "context":
            self.context = ContextModel.fit(self.candidates, probabilities, annotations, hidden, self.by_steps, seed)
        if is_known:
            return np.full(num_labels, float(label_frequency))
        values = hidden.conditional
        if self.context is not None:
            values = self.context(hidden.features)
        elif self.score not in ("context", "conditional"):
            values = hidden.probabilities
        return label_frequencies(hidden.nodes, values, annotations.taxonomy, label_frequency)

    def __call__(self, values: np.ndarray, present: np.ndarray, absent: np.ndarray) -> np.ndarray:
        """Computes the scores [P] of the pairs in `absent` [L, B], document by document."""
        if self.context is not None:
            return self.context(context_features(self.candidates, values, present, self.by_steps, absent))
        if self.score in AGGREGATES:
            scores = self.candidates.aggregate(self.score, values, present)
        elif self.score == "probability":
            scores = values
        else:
            scores = self.candidates.conditional(values, present, self.by_steps)
        return scores.T[absent.T]


def _rank(
    scorer: _Scorer,
    probabilities: _Checked,
    annotations: Annotations,
    frequencies: np.ndarray,
    order: str,
    top: int | None,
) -> Ranking:
    best = _Top(top)
    num_labels = annotations.taxonomy.num_labels
    expected, somewhere, number = np.zeros(num_labels), np.zeros(len(annotations)), 0
    for start, values, present in _read(probabilities, annotations):
        absent = scorer.candidates.absent(present)
        scores = scorer(values, present, absent)
        documents, nodes = np.nonzero(absent.T)
        # A sum over a path can be larger than 1.
        missing = missing_probability(np.minimum(scores, 1.0), frequencies[nodes])
        number += len(nodes)
        expected += np.bincount(nodes, missing, minlength=num_labels)
        dense = np.zeros(absent.shape)
        dense[nodes, documents] = missing
        subtrees = scorer.candidates.best_of_subtrees(dense, present)
        somewhere[start : start + absent.shape[1]] = 1 - np.prod(1 - subtrees, axis=0)
        keys = scores
        if order == "missing":  # beyond 1, so that the order of certain suspicions is that of their odds
            e = frequencies[nodes]
            keys = (1 - e) * scores / np.maximum(e * (1 - np.minimum(scores, 1.0)), np.finfo(np.float64).tiny)
        best.add(keys, documents + start, nodes, values[nodes, documents], scores, missing)
    ranked = dict(zip(("documents", "nodes", "probabilities", "scores", "missing"), best.columns()))
    return Ranking(
        **ranked,
        expected_missing=expected,
        document_missing=somewhere,
        frequencies=frequencies,
        candidates=number,
    )


def _read(probabilities: _Checked, annotations: Annotations) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields the first document, the probabilities [L, B] and the labels [L, B] of each chunk."""
    step = max(PAIRS_PER_CHUNK // annotations.taxonomy.num_labels, 1)
    for start in range(0, len(annotations), step):
        rows = slice(start, min(start + step, len(annotations)))
        present = annotations.multi_hot(rows.start, rows.stop)
        yield start, np.ascontiguousarray(probabilities[rows].T), np.ascontiguousarray(present.T)


class _Top:
    """Keeps the candidates with the largest keys. Among equal keys, the first document and then the first node wins."""

    def __init__(self, top: int | None):
        self.top = top
        self.lowest = -np.inf
        self.waiting: list[tuple[np.ndarray, ...]] = []
        self.size = 0

    def add(self, keys: np.ndarray, *columns: np.ndarray) -> None:
        """Adds candidates, sorted by document and node, with larger documents than before."""
        # Rounded, because the last bits depend on the position in a chunk.
        keys = np.minimum(keys, 1e30).astype(np.float32)
        is_kept = keys > self.lowest
        self.waiting.append((keys[is_kept], *(column[is_kept] for column in columns)))
        if self.top is not None:
            self.size += len(self.waiting[-1][0])
            if self.size >= max(2 * self.top, 100_000):
                self._cut()

    def _cut(self) -> None:
        parts = [np.concatenate(part) for part in zip(*self.waiting)]
        order = np.lexsort((parts[2], parts[1], -parts[0]))[: self.top]
        self.waiting = [tuple(part[order] for part in parts)]
        self.size = len(order)
        if self.top is not None and self.size == self.top:
            self.lowest = float(self.waiting[0][0][-1])

    def columns(self) -> tuple[np.ndarray, ...]:
        """Returns documents, nodes, probabilities, scores and P(missing), the best first."""
        self._cut()
        return self.waiting[0][1:]

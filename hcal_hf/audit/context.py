"""Estimates the probability of an annotation from the text and from all other labels of the document.

The out-of-fold probability of a label depends on the text alone. The other labels say more: a document that has no label at
all is more likely to miss one than a document with five, and a missing label is less likely next to a sibling if siblings
exclude each other. [`ContextModel`] learns this from the annotations that exist: it hides each one, so that it looks like a
missing one, and fits a logistic regression that tells hidden annotations from labels that are absent anyway.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import logging

from .annotations import Annotations
from .candidates import PathCandidates

logger = logging.get_logger(__name__)

# (node, document) pairs of the arrays that are processed at a time.
PAIRS_PER_CHUNK = 2**18
# At most so many annotations are hidden, and so many pairs serve for each side of the regression.
MOST_ANNOTATIONS = 50_000
MOST_HIDDEN_PAIRS = 400_000_000
MOST_ABSENT_PAIRS = 5_000_000
# With fewer hidden annotations, the conditional probability is used as it is.
FEWEST_ANNOTATIONS = 50
# An absent pair of more than FEW_PAIRS is drawn with a probability of RATE * (P + BASE), at most 1.
FEW_PAIRS = 200_000
RATE, BASE = 20.0, 0.005
# The ridge penalty on standardised features.
RIDGE = 1.0
_LARGEST_LOGIT = 14.0


@dataclass
class HiddenAnnotations:
    """Annotations of which each was hidden on its own, with all nodes that it alone supports.

    Attributes:
        nodes (int64 `np.ndarray` of shape `[P]`): the hidden nodes.
        features (`np.ndarray` of shape `[P, F]`): their features ([`context_features`]).
        weights (`np.ndarray` of shape `[P]`): how many annotations each one stands for.
    """

    nodes: np.ndarray
    features: np.ndarray
    weights: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """P of the text alone."""
        return _sigmoid(self.features[:, 0])

    @property
    def conditional(self) -> np.ndarray:
        """P given the present ancestors."""
        return _sigmoid(self.features[:, 1])


def context_features(
    candidates: PathCandidates, probabilities: np.ndarray, present: np.ndarray, by_steps: bool, pairs: np.ndarray
) -> np.ndarray:
    """Computes the features of (node, document) pairs.

    Args:
        candidates ([`PathCandidates`]): the paths.
        probabilities (`np.ndarray` of shape `[L, B]`): out-of-fold probabilities.
        present (bool, same shape): the nodes of the documents.
        by_steps: as in [`PathCandidates.conditional`].
        pairs (bool, same shape): the pairs.

    Returns:
        float64 `[P, 9]`, in the order of `np.nonzero(pairs.T)`, so document by document: logit of P; logit of P given the
        present ancestors; whether the document has no end node; log(1 + number of its end nodes); log of the sum of the
        conditional probabilities of its topmost missing nodes; whether there is a present sibling; log(1 + number of
        siblings); the length of the missing path; the depth.
    """
    conditional = candidates.conditional(probabilities, present, by_steps)
    ends = (present & (candidates.present_children(present) == 0) & candidates.is_end[:, None]).sum(axis=0)
    expected = np.where(candidates.topmost(present), conditional, 0.0).sum(axis=0)
    columns = [
        _logit(probabilities),
        _logit(conditional),
        ends == 0,
        np.log1p(ends),
        np.log(expected + 1e-6),
        (siblings := candidates.siblings(present)) > 0,
        np.log1p(siblings),
        candidates.missing_length(present),
        candidates.taxonomy.depths[:, None],
    ]
    documents, nodes = np.nonzero(pairs.T)
    return np.stack([_take(column, nodes, documents) for column in columns], axis=1)


def hide_each(
    candidates: PathCandidates,
    probabilities: Any,
    annotations: Annotations,
    by_steps: bool,
    seed: int = 0,
) -> HiddenAnnotations:
    """Hides annotations one at a time, at most 50,000, the rarest labels first.

    Args:
        candidates ([`PathCandidates`]): the paths.
        probabilities: out-of-fold probabilities [N, L], anything that can be indexed by rows.
        annotations ([`Annotations`]): the labels of the N documents.
        by_steps: as in [`PathCandidates.conditional`].
        seed: draws the annotations if there are more.
    """
    documents, nodes = annotations.ends()
    is_candidate = candidates.is_end[nodes]
    documents, nodes = documents[is_candidate], nodes[is_candidate]
    number = min(MOST_ANNOTATIONS, max(MOST_HIDDEN_PAIRS // len(candidates.is_end), 1000))
    # The k-th random annotation of each label comes before the (k + 1)-th of any label.
    order = np.random.default_rng(seed).permutation(len(nodes))
    order = order[np.argsort(nodes[order], kind="stable")]
    carriers = np.bincount(nodes, minlength=len(candidates.is_end))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(carriers) - carriers, carriers)
    chosen = np.sort(order[np.argsort(rank, kind="stable")[:number]])
    documents, nodes = documents[chosen], nodes[chosen]
    weights = carriers / np.maximum(np.bincount(nodes, minlength=len(carriers)), 1)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for rows in _chunks(len(nodes), len(carriers)):
        present = annotations.each_without_one(documents[rows], nodes[rows], candidates.single_path).multi_hot().T
        before = annotations.select(documents[rows]).multi_hot().T
        hidden = before & ~present & candidates.is_end[:, None]
        values = np.asarray(probabilities[documents[rows]], dtype=np.float64).T
        features = context_features(candidates, values, present, by_steps, hidden)
        owners, hidden_nodes = np.nonzero(hidden.T)
        found.append((hidden_nodes, features, weights[nodes[rows]][owners]))
    if not found:
        return HiddenAnnotations(np.zeros(0, dtype=np.int64), np.zeros((0, 9)), np.zeros(0))
    return HiddenAnnotations(*(np.concatenate(part) for part in zip(*found)))


@dataclass
class ContextModel:
    """A logistic regression on [`context_features`] and their products.

    Attributes:
        centre, scale (`np.ndarray` of shape `[F]`): standardise the features.
        intercept (`float`).
        linear (`np.ndarray` of shape `[F]`): coefficients of the standardised features.
        quadratic (`np.ndarray` of shape `[F, F]`): coefficients of their products, upper triangular.
    """

    centre: np.ndarray
    scale: np.ndarray
    intercept: float
    linear: np.ndarray
    quadratic: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Computes probabilities [P] from features [P, F]."""
        values = (features - self.centre) / self.scale
        logits = np.full(len(values), self.intercept)
        for i, row in enumerate(self.quadratic):
            # One column at a time, so that equal pairs have equal results wherever they stand.
            inner = np.full(len(values), self.linear[i])
            for j in range(i, len(row)):
                inner += row[j] * values[:, j]
            logits += inner * values[:, i]
        return _sigmoid(logits)

    @classmethod
    def fit(
        cls,
        candidates: PathCandidates,
        probabilities: Any,
        annotations: Annotations,
        hidden: HiddenAnnotations,
        by_steps: bool,
        seed: int = 0,
    ) -> "ContextModel | None":
        """Fits the regression to hidden annotations and to absent labels.

        Args:
            candidates, probabilities, annotations, by_steps, seed: as in [`hide_each`].
            hidden ([`HiddenAnnotations`]): the result of it.

        Returns:
            the model; None, with a warning, if there are fewer than 50 hidden annotations.
        """
        absent, weights = _absent_pairs(candidates, probabilities, annotations, by_steps, seed)
        if len(hidden.nodes) < FEWEST_ANNOTATIONS or not len(absent):
            logger.warning(
                f"Only {len(hidden.nodes):,} annotations can be hidden, and at least {FEWEST_ANNOTATIONS} are needed to "
                "learn from the other labels of a document: suspicions are ranked by the conditional probability alone."
            )
            return None
        features = np.concatenate([hidden.features, absent])
        is_positive = np.arange(len(features)) < len(hidden.nodes)
        return _fit_quadratic(features, is_positive, np.concatenate([hidden.weights, weights]))


def _absent_pairs(
    candidates: PathCandidates, probabilities: Any, annotations: Annotations, by_steps: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws absent pairs, the probable ones more often. Returns their features and the inverse of their probability."""
    random = np.random.default_rng(seed)
    num_labels = len(candidates.is_end)
    number = min(len(annotations), max(MOST_ABSENT_PAIRS // num_labels, 100))
    documents = np.sort(random.permutation(len(annotations))[:number])
    features, weights = [np.zeros((0, 9))], [np.zeros(0)]
    for rows in _chunks(number, num_labels):
        values = np.asarray(probabilities[documents[rows]], dtype=np.float64).T
        present = annotations.select(documents[rows]).multi_hot().T
        share = np.minimum(RATE * (values + BASE), 1.0) if number * num_labels > FEW_PAIRS else np.ones_like(values)
        drawn = candidates.absent(present) & (share > random.random(share.T.shape).T)
        features.append(context_features(candidates, values, present, by_steps, drawn))
        weights.append(len(annotations) / number / share.T[drawn.T])
    return np.concatenate(features), np.concatenate(weights)


def _fit_quadratic(features: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> ContextModel:
    """Fits the regression by Newton's method with a line search."""
    size = features.shape[1]
    centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-12
    scale[scale <= 1e-9] = 1.0  # a constant feature
    values = (features - centre) / scale
    pairs = [(i, j) for i in range(size) for j in range(i, size)]
    design = np.concatenate([values, np.stack([values[:, i] * values[:, j] for i, j in pairs], axis=1)], axis=1)
    centre_2, scale_2 = design.mean(axis=0), design.std(axis=0)
    scale_2[scale_2 <= 1e-9] = 1.0
    design = np.concatenate([np.ones((len(design), 1)), (design - centre_2) / scale_2], axis=1)
    ridge = np.r_[0.0, np.full(design.shape[1] - 1, RIDGE)]

    def loss(beta: np.ndarray) -> float:
        logits = design @ beta
        errors = np.logaddexp(0, logits) - is_positive * logits
        return float((weights * errors).sum() + (ridge * beta**2).sum() / 2)

    beta = np.zeros(design.shape[1])
    current = loss(beta)
    for _ in range(50):
        p = _sigmoid(design @ beta)
        gradient = design.T @ (weights * (p - is_positive)) + ridge * beta
        curvature = (design * (weights * p * (1 - p))[:, None]).T @ design + np.diag(ridge + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        length = 1.0
        while (new := loss(beta - length * step)) > current and length > 1e-6:
            length /= 2
        if not new < current:
            break
        beta, decrease, current = beta - length * step, current - new, new
        if decrease < 1e-8 * abs(current):
            break
    coefficients = beta[1:] / scale_2
    quadratic = np.zeros((size, size))
    for (i, j), value in zip(pairs, coefficients[size:]):
        quadratic[i, j] = value
    intercept = float(beta[0] - coefficients @ centre_2)
    return ContextModel(centre, scale, intercept, coefficients[:size], quadratic)


def _chunks(number: int, num_labels: int) -> Iterator[slice]:
    step = max(PAIRS_PER_CHUNK // max(num_labels, 1), 1)
    for start in range(0, number, step):
        yield slice(start, start + step)


def _take(column: np.ndarray, nodes: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Takes the values of pairs from an array [L, B], [B] or [L, 1]."""
    if column.ndim == 1:
        return column[documents].astype(np.float64)
    return column[nodes, documents if column.shape[1] > 1 else 0].astype(np.float64)


def _logit(probabilities: np.ndarray) -> np.ndarray:
    low = _sigmoid(np.array(-_LARGEST_LOGIT))
    clipped = np.clip(probabilities, low, 1 - low)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))

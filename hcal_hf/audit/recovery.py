"""Measures an audit: hides annotations, and counts how many of them it finds."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..taxonomy import Taxonomy
from .annotations import Annotations
from .auditing import audit_features
from .ranking import SCORES, rank_missing

MODES = ("uniform", "rare", "deepest")
METHODS = ("random", *SCORES)


def hide_annotations(
    labels: Annotations, rate: float, seed: int = 0, mode: str = "uniform", partial_paths: bool = False
) -> tuple[Annotations, np.ndarray]:
    """Hides a share of the (document, end node) annotations.

    Args:
        labels ([`Annotations`]): the labels.
        rate (`float`): the share of the annotations that is hidden, above 0 and below 1.
        seed (`int`): draws them.
        mode (`str`): `"uniform"` draws all annotations with equal probability, and `"rare"` those of a label in proportion
            to 1 / (number of its documents). Both also hide the ancestors that no other annotation supports. `"deepest"`
            hides only the end node, so that the path stops one step earlier.
        partial_paths (`bool`): whether annotations may end at inner nodes. Otherwise only those at leaves are hidden.

    Returns:
        the remaining labels, and the end nodes of the hidden annotations, int64.

    Raises:
        ValueError: for another mode or rate, if nothing can be hidden, or for `"deepest"` without partial paths.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie between 0 and 1, got {rate}: 0.1 hides one annotation in ten.")
    if mode == "deepest" and not partial_paths:
        raise ValueError('mode="deepest" leaves paths that end at inner nodes: give partial_paths=True.')
    documents, nodes = labels.ends()
    can_be_hidden = np.full(len(nodes), True) if partial_paths else labels.taxonomy.is_leaf[nodes]
    if mode == "deepest":  # a root alone has no step
        can_be_hidden &= labels.taxonomy.depths[nodes] > 0
    documents, nodes = documents[can_be_hidden], nodes[can_be_hidden]
    number = round(rate * len(nodes))
    if not number:
        raise ValueError(
            f"{rate:g} of {len(nodes):,} annotations is less than one: give a larger rate or more documents."
        )
    weights = None
    if mode == "rare":
        weights = 1 / np.bincount(nodes)[nodes]
        weights /= weights.sum()
    chosen = np.random.default_rng(seed).choice(len(nodes), number, replace=False, p=weights)
    if mode != "deepest":
        return labels.without(documents[chosen], nodes[chosen]), nodes[chosen]
    keys = labels.documents * labels.taxonomy.num_labels + labels.nodes
    is_kept = ~np.isin(keys, documents[chosen] * labels.taxonomy.num_labels + nodes[chosen])
    rest = Annotations.from_pairs(labels.taxonomy, len(labels), labels.documents[is_kept], labels.nodes[is_kept])
    return rest, nodes[chosen]


def audit_recovery(
    features: Any,
    labels: Annotations | Sequence[Sequence[int]],
    taxonomy: Taxonomy,
    *,
    rate: float = 0.1,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    mode: str = "uniform",
    methods: Sequence[str] = METHODS,
    label_mode: str = "multi_path",
    partial_paths: bool = False,
    strength: float | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Hides annotations, audits the rest, and measures how well the hidden ones are found.

    Models are trained, calibrated and chosen on the remaining labels only. A suspicion is right if the document had its end
    node. So labels that are really missing in the data count as wrong.

    Args:
        features (array of shape `[N, d]`): the features of the documents.
        labels, taxonomy, label_mode, partial_paths: as in [`audit_features`].
        rate, mode: as in [`hide_annotations`].
        seeds: of the hidden annotations. Each one gives one row per method.
        methods: the scores of [`rank_missing`], and `"random"`. All rank the same candidates by the same probabilities.
        strength (`float`, *optional*): C of the heads. By default, it is chosen with the first seed.
        options: `head`, `groups`, `folds`, `max_iterations` and `label_frequency` of [`audit_features`].

    Yields:
        `seed`, `method`, and the values of [`recovery_scores`]; `labelled`: the average precision among the documents that
        keep a label; `expected` (for all but random): the sum of P(missing).

    Raises:
        ValueError: as in [`hide_annotations`] and [`audit_features`], or for an unknown method.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"methods must be among {', '.join(METHODS)}, got {unknown[0]!r}.")
    original = labels if isinstance(labels, Annotations) else Annotations.from_rows(taxonomy, labels)
    ranking_options = {name: options.pop(name) for name in ("label_frequency", "order") if name in options}
    for seed in seeds:
        rest, hidden = hide_annotations(original, rate, seed, mode, partial_paths)
        report = audit_features(
            features,
            rest,
            taxonomy,
            label_mode=label_mode,
            partial_paths=partial_paths,
            strength=strength,
            seed=seed,
            score="probability",
            label_frequency=0.9,
            top=1,
            **options,
        )
        strength = report.out_of_fold.strength
        has_label = np.diff(rest.offsets) > 0
        for method in methods:
            ranking = rank_missing(
                report.out_of_fold,
                rest,
                taxonomy,
                label_mode=label_mode,
                partial_paths=partial_paths,
                is_coherent=options.get("head") != "independent",
                score="probability" if method == "random" else method,
                top=None,
                seed=seed,
                **ranking_options,
            )
            order = np.arange(len(ranking))
            if method == "random":
                order = np.random.default_rng(seed).permutation(len(ranking))
            documents, nodes = ranking.documents[order], ranking.nodes[order]
            is_hidden = _has(original, documents, nodes)
            row: dict[str, Any] = {"seed": seed, "method": method, "strength": strength}
            row |= recovery_scores(is_hidden, taxonomy.depths[nodes], taxonomy.depths[hidden])
            row["labelled"] = average_precision(is_hidden[has_label[documents]])
            if method != "random":
                row["expected"] = float(ranking.expected_missing.sum())
            yield row


def recovery_scores(is_hidden: np.ndarray, depths: np.ndarray, hidden_depths: np.ndarray) -> dict[str, Any]:
    """Scores a ranking of candidates, overall and by the depth of their end nodes.

    Args:
        is_hidden (bool `np.ndarray` of shape `[n]`): whether the document had the end node, in the order of the ranking.
        depths (int `np.ndarray` of shape `[n]`): the depth of each end node.
        hidden_depths (int `np.ndarray` of shape `[X]`): the depths of the hidden annotations.

    Returns:
        `hidden` (X), `candidates`, `positives` (the number of candidates that documents had), `average_precision`, and for
        the first X candidates `precision`, `recall` and `lift` (precision / share of positives). `by_depth` has the same
        values for each depth with positives.
    """
    scores = _scores_at(is_hidden, len(hidden_depths))
    scores["by_depth"] = {
        str(depth): _scores_at(is_hidden[depths == depth], int((hidden_depths == depth).sum()))
        for depth in np.unique(depths[is_hidden]).tolist()
    }
    return scores


def average_precision(is_positive: np.ndarray) -> float:
    """Computes the mean of the precision at each positive of a ranking. It is 0 without positives."""
    hits = np.cumsum(is_positive)
    ranks = np.flatnonzero(is_positive) + 1
    return float((hits[ranks - 1] / ranks).mean()) if len(ranks) else 0.0


def _scores_at(is_hidden: np.ndarray, number: int) -> dict[str, Any]:
    positives, hits = int(is_hidden.sum()), int(is_hidden[:number].sum())
    precision = hits / number if number else 0.0
    return {
        "hidden": number,
        "candidates": len(is_hidden),
        "positives": positives,
        "average_precision": average_precision(is_hidden),
        "precision": precision,
        "recall": hits / positives if positives else 0.0,
        "lift": precision * len(is_hidden) / positives if positives else 0.0,
    }


def _has(annotations: Annotations, documents: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Returns whether documents have nodes, bool."""
    number = annotations.taxonomy.num_labels
    return np.isin(documents * number + nodes, annotations.documents * number + annotations.nodes)


__all__ = ["audit_recovery", "average_precision", "hide_annotations", "recovery_scores"]

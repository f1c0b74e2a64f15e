"""Weights of labels in the training loss, with the names of scikit-learn."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..configuration_hcal import HcalConfig
from ..data.label_checks import label_column
from ..taxonomy import Taxonomy

BALANCED = "balanced"


def compute_class_weight(
    class_weight: Mapping[str, float] | str | None, taxonomy: Taxonomy, counts: np.ndarray | None = None
) -> np.ndarray:
    """Computes the weight of each label.

    Args:
        class_weight: `"balanced"`, or weights by label, path string or number, where other labels have 1, or None for 1.
            `balanced` is scikit-learn's, within each level: the weight of a label with n documents is N / (K n), where K
            labels of its level have N documents together. Labels without documents have 1.
        taxonomy: the hierarchy.
        counts (`np.ndarray` of shape `[L]`): the number of training documents of each label, for `"balanced"`.

    Returns:
        `np.ndarray` of shape `[L]`, float64, in the order of `taxonomy.labels`.

    Raises:
        ValueError: for another word, an unknown label, or a weight that is not a finite number of at least 0.
    """
    check_class_weight(class_weight)
    weights = np.ones(taxonomy.num_labels)
    if isinstance(class_weight, Mapping):
        for label, weight in class_weight.items():
            weights[taxonomy.index(str(label))] = weight
    elif class_weight == BALANCED:
        if counts is None:
            raise ValueError('class_weight="balanced" needs the number of documents of each label.')
        for level in taxonomy.levels:
            occurring = counts[level] > 0
            total, number = counts[level].sum(), occurring.sum()
            weights[level] = np.where(occurring, total / np.maximum(number * counts[level], 1), 1.0)
    return weights


def check_class_weight(class_weight: Any) -> None:
    """Checks the form of `class_weight`.

    Raises:
        ValueError: as [`compute_class_weight`], except for unknown labels.
    """
    if class_weight is None or class_weight == BALANCED:
        return
    if not isinstance(class_weight, Mapping):
        raise ValueError(
            f'class_weight must be "balanced" or weights by label such as {{"Hardware > Printer": 2}}, got '
            f"{class_weight!r}."
        )
    for label, weight in class_weight.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ValueError(f"class_weight[{label!r}] must be a number of at least 0, got {weight!r}.")


def label_weights_of(
    class_weight: Mapping[str, float] | str | None, dataset: Any, taxonomy: Taxonomy, config: HcalConfig
) -> torch.Tensor | None:
    """Computes the weights [L] of a model's training on a data set, float64. None without `class_weight`.

    Raises:
        ValueError: as in [`compute_class_weight`], for a loss without terms of single labels, and for `"balanced"` with a
            stream, because its labels cannot be counted before the training.
    """
    if class_weight is None:
        return None
    if config.objective == "aggregate" or config.classification_loss == "zlpr":
        reason = f"objective={config.objective!r}" if config.objective == "aggregate" else 'classification_loss="zlpr"'
        raise ValueError(
            f"class_weight multiplies the losses of single labels, which {reason} does not have: leave class_weight out."
        )
    counts = None
    if class_weight == BALANCED:
        if not isinstance(dataset, Dataset) or "labels" not in dataset.column_names:
            raise ValueError(
                'class_weight="balanced" counts the labels of the training documents before the training, which a stream '
                "does not allow: give weights by label."
            )
        _, nodes = label_column(dataset)
        counts = np.bincount(nodes, minlength=taxonomy.num_labels)
    return torch.from_numpy(compute_class_weight(class_weight, taxonomy, counts))


__all__ = ["check_class_weight", "compute_class_weight", "label_weights_of"]

"""Counts how often labels occur together in training rows, for the label loss of a hyperbolic geometry."""

from typing import Any

import numpy as np
from datasets import Dataset

from ..data.label_checks import label_column
from ..label_order import CooccurrenceCounts
from ..modeling_hcal import HcalForSequenceClassification


def count_cooccurrence(model: HcalForSequenceClassification, dataset: Any) -> None:
    """Gives the label loss of the model the co-occurrence counts of an encoded table, if its order needs them.

    The counts follow from the rows, so they are not saved: a run that resumes counts the same rows again. Without a table
    in memory, counts that are set already are kept.

    Raises:
        ValueError: if the order needs counts, and there is neither a table in memory with labels nor earlier counts.
    """
    penalty = model.label_penalty
    if penalty is None or not penalty.order.needs_counts:
        return
    if isinstance(dataset, Dataset) and "labels" in dataset.column_names:
        sizes, nodes = label_column(dataset)
        penalty.counts = CooccurrenceCounts(sizes.astype(np.int64), nodes, model.taxonomy.num_labels)
    if penalty.counts is None:
        raise ValueError(
            f'geometry_order="{penalty.order.order}" counts the labels of the training rows, but train_dataset is no table '
            'in memory: give one, set model.label_penalty.counts, or use geometry_order="hops".'
        )

"""Computes HVR, the share of documents with label sets that violate the hierarchy, as an `evaluate` module."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from .label_sets import flatten_ids, read_names
from .violations import violation_rates_from_edges

_DESCRIPTION = """
Hierarchical violation rate (HVR): the share of documents with a predicted label set that contains a label but not all of
its parents in the label hierarchy (a forest or a DAG). Needs no references. 0.0 means that all predictions are consistent,
and 1.0 that each document has a violation.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of list of int): the predicted node ids of each document, 0 to num_labels - 1. No multi-hot rows,
        no probabilities. With `labels`, also label names.
    edges (list of [parent, child]): the hierarchy, one pair of node ids (or names) per edge.
    num_labels (int): the number of labels. Not needed with `labels`.
    labels (list of str, optional): the name of each label, in the order of the node ids.
    depths (list of int, optional): the depth of each label, 0 = top level; default: longest path from a root.
    scores (array [N, L], optional): the probabilities of all labels; adds hvr_score.
Returns:
    hvr (float): share of documents with a predicted node that lacks a parent.
    hvr_node (float): predicted non-root nodes that lack a parent / predicted non-root nodes.
    hvr_level (list of float): share of documents with a violation at each depth.
    inconsistent_labels (float): predicted nodes that lack an ancestor / predicted nodes.
    hvr_score (float, with scores): share of (document, edge) pairs with P(child) > P(parent) + 1e-6.
Examples:
    >>> hvr = evaluate.load("hvr")
    >>> hvr.compute(predictions=[[0, 1], [1]], edges=[[0, 1]], num_labels=2)
    {'hvr': 0.5, 'hvr_node': 0.5, 'hvr_level': [0.0, 0.5], 'inconsistent_labels': 0.3333333333333333}
    >>> labels = ["Physics", "Quantum physics"]
    >>> hvr.compute(predictions=[labels, labels[1:]], edges=[labels], labels=labels)["hvr"]
    0.5
"""

_CITATION = """\
@inproceedings{jiang2025hcal,
    title = {Hierarchy-Consistent Learning and Adaptive Loss Balancing for Hierarchical Multi-Label Classification},
    author = {Jiang, Ruobing and Liu, Mengzhe and Liu, Haobing and Yu, Yanwei},
    booktitle = {Proceedings of the 34th ACM International Conference on Information and Knowledge Management},
    year = {2025},
    doi = {10.1145/3746252.3761241},
    note = {arXiv:2508.13452}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class HVR(evaluate.Metric):
    """Computes violation rates with `violations.py`. A single process keeps the predictions in memory, not in a file."""

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs: Any) -> None:
        # evaluate.load always passes keep_in_memory=False. Then processes and instances wait for the same file lock.
        keep_in_memory = kwargs.get("num_process", 1) == 1
        super().__init__(config_name=config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
            reference_urls=["https://arxiv.org/abs/2508.13452"],
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one document: its predicted node ids."""
        _check_ids([kwargs.get("predictions", prediction)])
        super().add(prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds several documents: a list of node ids for each."""
        _check_ids(predictions)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Computes the violation rates of all added documents. Needs `edges`, and `num_labels` or `labels`."""
        sets, kwargs = read_names({"predictions": predictions}, kwargs)
        predictions = sets["predictions"]
        # The base class empties its buffer, so missing arguments must be detected before it is called.
        missing = [name for name in ("edges", "num_labels") if kwargs.get(name) is None]
        if missing:
            raise ValueError(
                f"HVR needs {' and '.join(missing)}: compute(predictions=[[0, 1], ...], edges=[[0, 1], ...], "
                "num_labels=2), with one [parent, child] pair per edge ([] without edges)."
            )
        if predictions is None and self.writer is None:
            raise ValueError("HVR has no predictions: pass predictions=[[0, 1], ...], or call add_batch first.")
        rates: dict[str, Any] | None = super().compute(predictions=predictions, references=references, **kwargs)
        return rates

    def _compute(
        self, predictions: list[list[int]], edges: Any, num_labels: int, depths: Any = None, scores: Any = None
    ) -> dict[str, Any]:
        return violation_rates_from_edges(predictions, edges, num_labels, depths, scores)


def _check_ids(predictions: Any) -> None:
    # Without this check, the integer feature would truncate 0.7 to id 0 and read a row of bools as ids.
    if getattr(predictions, "ndim", 1) != 1:
        raise ValueError(
            f"predictions is an array of shape {tuple(predictions.shape)}; allowed: one list of node ids per document."
            " For multi-hot rows pass [row.nonzero()[0].tolist() for row in array], for rows of ids array.tolist()."
        )
    flatten_ids(predictions)

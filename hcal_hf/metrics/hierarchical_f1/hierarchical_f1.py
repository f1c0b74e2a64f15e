"""Computes hierarchical precision, recall and F1, as an `evaluate` module."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from .label_sets import flatten_ids, read_names
from .scores import hierarchical_scores_from_edges

_DESCRIPTION = """
Precision, recall and F1 of predicted label sets that take the label hierarchy into account: hierarchical F1 on sets
completed with all ancestors (hF1, pooled and per document), F1 on sets extended to lowest common ancestors (LCA-F1,
forests only), and constrained F1, for which a label is correct only if all its ancestors are correct too (C-F1).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of list of int): the predicted node ids of each document, 0 to num_labels - 1. No multi-hot rows,
        no probabilities. With `labels`, also label names.
    references (list of list of int): the true node ids of each document. With `labels`, also label names.
    edges (list of [parent, child]): the hierarchy, one pair of node ids (or names) per edge.
    num_labels (int): the number of labels. Not needed with `labels`.
    labels (list of str, optional): the name of each label, in the order of the node ids.
    depths (list of int, optional): the depth of each label, 0 = top level; default: longest path from a root.
    lca (bool, optional): whether to compute the lca_ scores; default: if no label has two parents.
Returns:
    hierarchical_precision, hierarchical_recall, hierarchical_f1 (float): on sets completed with all ancestors, pooled.
    hierarchical_precision_documents, hierarchical_recall_documents, hierarchical_f1_documents (float): the same,
        averaged over documents.
    c_micro_precision, c_micro_recall, c_micro_f1 (float): a label is correct only if all its ancestors are, pooled.
    c_macro_f1, c_macro_f1_all (float): the same per label, averaged over the labels in the references / all labels.
    inconsistent_paths (float): mean share of reference paths with a predicted label that lacks an ancestor (0 is best).
    lca_precision, lca_recall, lca_f1 (float): on sets extended to lowest common ancestors, averaged over documents.
Examples:
    >>> metric = evaluate.load("hierarchical_f1")
    >>> scores = metric.compute(predictions=[[0, 1]], references=[[0, 2]], edges=[[0, 1], [0, 2]], num_labels=3)
    >>> scores["hierarchical_f1"], scores["c_micro_f1"], scores["lca_f1"]
    (0.5, 0.5, 0.5)
"""

_CITATION = """\
@inproceedings{kiritchenko2006learning,
    title = {Learning and Evaluation in the Presence of Class Hierarchies: Application to Text Categorization},
    author = {Kiritchenko, Svetlana and Matwin, Stan and Nock, Richard and Famili, A. Fazel},
    booktitle = {Advances in Artificial Intelligence (Canadian AI)},
    year = {2006}
}
@article{kosmopoulos2015evaluation,
    title = {Evaluation measures for hierarchical classification: a unified view and novel approaches},
    author = {Kosmopoulos, Aris and Partalas, Ioannis and Gaussier, Eric and Paliouras, Georgios and
        Androutsopoulos, Ion},
    journal = {Data Mining and Knowledge Discovery},
    volume = {29},
    number = {3},
    pages = {820--865},
    year = {2015},
    doi = {10.1007/s10618-014-0382-x}
}
@inproceedings{ji2023hierarchical,
    title = {Hierarchical Verbalizer for Few-Shot Hierarchical Text Classification},
    author = {Ji, Ke and Lian, Yixin and Gao, Jingsheng and Wang, Baoyuan},
    booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics},
    year = {2023}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class HierarchicalF1(evaluate.Metric):
    """Computes hierarchical scores with `scores.py`. A single process keeps the predictions in memory, not in a file."""

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs: Any) -> None:
        # evaluate.load always passes keep_in_memory=False. Then processes and instances wait for the same file lock.
        keep_in_memory = kwargs.get("num_process", 1) == 1
        super().__init__(config_name=config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": ids, "references": ids}),
            reference_urls=["https://doi.org/10.1007/s10618-014-0382-x"],
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one document: its predicted and its true node ids."""
        _check_ids([kwargs.get("predictions", prediction)], "predictions")
        _check_ids([kwargs.get("references", reference)], "references")
        super().add(prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds several documents: a list of predicted and a list of true node ids for each."""
        sizes = _check_ids(predictions, "predictions"), _check_ids(references, "references")
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"predictions holds {sizes[0]} documents and references {sizes[1]}; give both for the same documents "
                "in the same order."
            )
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Computes the scores of all added documents. Needs `edges`, and `num_labels` or `labels`."""
        sets, kwargs = read_names({"predictions": predictions, "references": references}, kwargs)
        predictions, references = sets["predictions"], sets["references"]
        # The base class empties its buffer, so missing arguments must be detected before it is called.
        missing = [name for name in ("edges", "num_labels") if kwargs.get(name) is None]
        if missing:
            raise ValueError(
                f"HierarchicalF1 needs {' and '.join(missing)}: compute(predictions=[[0, 1], ...], "
                "references=[[0], ...], edges=[[0, 1], ...], num_labels=2), with one [parent, child] pair per edge "
                "([] without edges)."
            )
        if predictions is None and references is None and self.writer is None:
            raise ValueError(
                "HierarchicalF1 has no documents: pass predictions=[[0, 1], ...] and references=[[0], ...], or call "
                "add_batch first."
            )
        scores: dict[str, Any] | None = super().compute(predictions=predictions, references=references, **kwargs)
        return scores

    def _compute(
        self,
        predictions: list[list[int]],
        references: list[list[int]],
        edges: Any,
        num_labels: int,
        depths: Any = None,
        lca: bool | None = None,
    ) -> dict[str, float]:
        return hierarchical_scores_from_edges(predictions, references, edges, num_labels, depths, lca)


def _check_ids(rows: Any, name: str) -> int:
    # Without this check, the integer feature would truncate 0.7 to id 0 and read a row of bools as ids.
    if getattr(rows, "ndim", 1) != 1:
        raise ValueError(
            f"{name} is an array of shape {tuple(rows.shape)}; allowed: one list of node ids per document."
            " For multi-hot rows pass [row.nonzero()[0].tolist() for row in array], for rows of ids array.tolist()."
        )
    return len(flatten_ids(rows, name)[1])

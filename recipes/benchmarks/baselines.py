"""Classical baselines on features: each fits every setting that it tries, one after the other.

Args of all: x, features [N, h] of each split (tensors or sparse matrices), and y, multi-hot labels [N, L] of each split.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from hcal_hf import Taxonomy

STRENGTHS = (0.0625, 0.25, 1.0, 4.0, 16.0, 64.0)
TFIDF_STRENGTHS = (4.0, 64.0, 1024.0)
Splits = dict[str, Any]


@dataclass
class Attempt:
    """A fitted model.

    Attributes:
        setting (`dict`): what was tried.
        predict (`Callable`): from a split's name to logits, or bool label sets, [N, L].
        parameters (`int`): numbers that were learned.
    """

    setting: dict[str, Any]
    predict: Callable[[str], Any]
    parameters: int


def logistic_regressions(
    x: Splits, y: dict[str, torch.Tensor], taxonomy: Taxonomy, conditional: bool
) -> Iterator[Attempt]:
    """One logistic regression a label, on all documents, or (`conditional`) on those whose labels hold its parents, and
    multiplied along the path. A label without documents of both kinds gets the probability of the kind there is."""
    features = {s: x[s].double().numpy() for s in x}
    truth = y["train"].numpy() > 0
    for c in STRENGTHS:
        weight, bias = np.zeros((taxonomy.num_labels, features["train"].shape[1])), np.zeros(taxonomy.num_labels)
        for node in range(taxonomy.num_labels):
            above = taxonomy.parents(node)
            rows = truth[:, above].all(axis=1) if conditional else np.ones(len(truth), dtype=bool)
            positive = truth[rows, node]
            if 0 < positive.sum() < len(positive):
                model = LogisticRegression(C=c, max_iter=1000).fit(features["train"][rows], positive)
                weight[node], bias[node] = model.coef_[0], model.intercept_[0]
            else:
                bias[node] = np.inf if positive.any() else -np.inf

        def predict(split: str, weight: np.ndarray = weight, bias: np.ndarray = bias) -> torch.Tensor:
            p = torch.sigmoid(torch.from_numpy(features[split] @ weight.T + bias))
            if conditional:
                for node in range(taxonomy.num_labels):  # parents come first
                    if len(above := taxonomy.parents(node)):
                        p[:, node] *= p[:, above.tolist()].amin(dim=1)
            return torch.logit(p.clamp(1e-9, 1 - 1e-9))

        yield Attempt({"C": c}, predict, weight.size + bias.size)


def softmax_over_leaves(x: Splits, y: dict[str, torch.Tensor], taxonomy: Taxonomy) -> Iterator[Attempt]:
    """Multinomial logistic regression over the paths' ends, which bring their ancestors."""
    closure = closure_of(taxonomy)
    ends = np.array([row.nonzero()[-1].item() for row in y["train"]])
    for c in STRENGTHS:
        model = LogisticRegression(C=c, max_iter=1000).fit(x["train"].numpy(), ends)
        predict = lambda split, model=model: closure[model.predict(x[split].numpy())]  # noqa: E731
        yield Attempt({"C": c}, predict, model.coef_.size + model.intercept_.size)


def closure_of(taxonomy: Taxonomy) -> np.ndarray:
    """bool [L, L]: each label with its ancestors. For the few hundred labels of the benchmarks."""
    closure = np.zeros((taxonomy.num_labels, taxonomy.num_labels), dtype=bool)
    for node in range(taxonomy.num_labels):
        closure[node, node] = True
        for parent in taxonomy.parents(node):
            closure[node] |= closure[parent]
    return closure


def local_classifiers(
    x: Splits, y: dict[str, torch.Tensor], taxonomy: Taxonomy, strengths: Any = STRENGTHS
) -> Iterator[Attempt]:
    """hiclass's local classifier per parent node with logistic regression, for one path a document."""
    from hiclass import LocalClassifierPerParentNode

    features = {s: x[s].double().numpy() if isinstance(x[s], torch.Tensor) else x[s] for s in x}
    width = len(taxonomy.levels)
    paths = [taxonomy.decode(row.nonzero()[:, 0].tolist())[0] for row in y["train"]]
    padded = [path + [""] * (width - len(path)) for path in paths]
    for c in strengths:
        model = LocalClassifierPerParentNode(local_classifier=LogisticRegression(C=c, max_iter=1000))
        model.fit(features["train"], padded)

        def predict(split: str, model: Any = model) -> np.ndarray:
            found = np.zeros(y[split].shape, dtype=bool)
            for row, path in enumerate(model.predict(features[split])):
                found[row, taxonomy.encode([[step for step in path if step]])] = True
            return found

        local = [model.hierarchy_.nodes[node].get("classifier") for node in model.hierarchy_.nodes]
        yield Attempt({"C": c}, predict, sum(m.coef_.size + m.intercept_.size for m in local if hasattr(m, "coef_")))


def tfidf(texts: dict[str, list[str]]) -> Splits:
    """TF-IDF of words and pairs of words."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000)
    vectorizer.fit(texts["train"])
    return {s: vectorizer.transform(values) for s, values in texts.items()}

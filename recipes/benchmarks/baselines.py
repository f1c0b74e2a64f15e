"""Baselines: classical classifiers on features, and a flat classifier on an encoder.

Each classical baseline is a generator that fits its settings one after the other. Its arguments are `x`, the features
[N, h] of each split (tensors or sparse matrices), `y`, the multi-hot labels [N, L] of each split, and the taxonomy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from data import Tokens
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import AutoModel

from hcal_hf import HcalDataCollator, Taxonomy

STRENGTHS = (0.0625, 0.25, 1.0, 4.0, 16.0, 64.0)
TFIDF_STRENGTHS = (4.0, 64.0, 1024.0)
Splits = dict[str, Any]


@dataclass
class Attempt:
    """A model fitted with one setting.

    Attributes:
        setting (`dict`): the values of its tuned settings.
        predict (`Callable`): returns the logits or the bool label sets [N, L] of a split, given its name.
        parameters (`int`): number of learned parameters.
    """

    setting: dict[str, Any]
    predict: Callable[[str], Any]
    parameters: int


def logistic_regressions(
    x: Splits, y: dict[str, torch.Tensor], taxonomy: Taxonomy, conditional: bool
) -> Iterator[Attempt]:
    """Fits one logistic regression per label.

    With `conditional`, each one is fitted only on documents that have the label's parents, and the probabilities are
    multiplied along the path. A label that all documents have, or none, gets a probability of 1 or 0.
    """
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
    """Fits multinomial logistic regression over the end nodes of paths. Ancestors are added to the prediction."""
    closure = closure_of(taxonomy)
    ends = np.array([row.nonzero()[-1].item() for row in y["train"]])
    for c in STRENGTHS:
        model = LogisticRegression(C=c, max_iter=1000).fit(x["train"].numpy(), ends)
        predict = lambda split, model=model: closure[model.predict(x[split].numpy())]  # noqa: E731
        yield Attempt({"C": c}, predict, model.coef_.size + model.intercept_.size)


def closure_of(taxonomy: Taxonomy) -> np.ndarray:
    """Returns each label with its ancestors, bool [L, L]. Meant for the few hundred labels of the benchmarks."""
    closure = np.zeros((taxonomy.num_labels, taxonomy.num_labels), dtype=bool)
    for node in range(taxonomy.num_labels):
        closure[node, node] = True
        for parent in taxonomy.parents(node):
            closure[node] |= closure[parent]
    return closure


def local_classifiers(
    x: Splits, y: dict[str, torch.Tensor], taxonomy: Taxonomy, strengths: Any = STRENGTHS
) -> Iterator[Attempt]:
    """Fits hiclass's local classifier per parent node with logistic regression. Documents have one path each."""
    from hiclass import LocalClassifierPerParentNode

    features = {s: x[s].double().numpy() if isinstance(x[s], torch.Tensor) else x[s] for s in x}
    width = len(taxonomy.levels)
    paths = [taxonomy.decode(row.nonzero()[:, 0].tolist())[0] for row in y["train"]]
    padded = [path + [""] * (width - len(path)) for path in paths]
    for c in strengths:
        model = LocalClassifierPerParentNode(local_classifier=LogisticRegression(C=c, max_iter=1000))
        model.fit(features["train"], padded)

        def predict(split: str, model: Any = model) -> np.ndarray:
            sets = np.zeros(y[split].shape, dtype=bool)
            for row, path in enumerate(model.predict(features[split])):
                sets[row, taxonomy.encode([[step for step in path if step]])] = True
            return sets

        local = [model.hierarchy_.nodes[node].get("classifier") for node in model.hierarchy_.nodes]
        yield Attempt({"C": c}, predict, sum(m.coef_.size + m.intercept_.size for m in local if hasattr(m, "coef_")))


def tfidf(texts: dict[str, list[str]]) -> Splits:
    """Computes TF-IDF features of words and word pairs."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=50_000)
    vectorizer.fit(texts["train"])
    return {s: vectorizer.transform(values) for s, values in texts.items()}


class FlatCollator:
    """Builds batches for transformers' own classifier. Labels are multi-hot, or leaf indices if `leaves` is given."""

    def __init__(self, tokens: Tokens, leaves: np.ndarray | None):
        self.inner = HcalDataCollator(tokens.tokenizer, tokens.taxonomy)
        self.leaf_index = None
        if leaves is not None:
            self.leaf_index = torch.zeros(tokens.taxonomy.num_labels, dtype=torch.long)
            self.leaf_index[torch.from_numpy(leaves)] = torch.arange(len(leaves))
            self.leaves = torch.from_numpy(leaves)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = dict(self.inner(rows))
        batch = {
            name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "labels") if name in batch
        }
        batch["labels"] = batch["labels"].float()
        if self.leaf_index is not None:
            batch["labels"] = batch["labels"][:, self.leaves].argmax(dim=1)
        return batch


class FlatClassifier(nn.Module):
    """A flat classifier with the same encoder and mean pooling as our model, and one linear layer.

    The loss is binary cross-entropy over all labels, or cross-entropy over the leaves if `over_leaves` is set.
    """

    def __init__(self, encoder: str, num_labels: int, over_leaves: bool):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(encoder)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(self.encoder.config.hidden_size, num_labels)
        self.loss: nn.Module = nn.CrossEntropyLoss() if over_leaves else nn.BCEWithLogitsLoss()

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(states.dtype)
        logits = self.classifier(self.dropout((states * mask).sum(dim=1) / mask.sum(dim=1))).float()
        return {"logits": logits} if labels is None else {"loss": self.loss(logits, labels), "logits": logits}

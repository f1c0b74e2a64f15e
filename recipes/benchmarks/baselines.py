"""Baselines: classical classifiers on features, and a flat classifier on an encoder.

Each classical baseline is a generator that fits its settings one after the other. Its arguments are `x`, the features
[N, h] of each split (tensors or sparse matrices), `y`, the multi-hot labels [N, L] of each split, and the taxonomy.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from data import Tokens
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion
from sklearn.svm import LinearSVC
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from hcal_hf import HcalDataCollator, Taxonomy

STRENGTHS = (0.0625, 0.25, 1.0, 4.0, 16.0, 64.0)
TFIDF_STRENGTHS = (4.0, 64.0, 1024.0)
SVM_STRENGTHS = (0.0625, 0.25, 1.0)
# C of the softmax on unit features.
SOFTMAX_STRENGTHS = (4.0, 16.0, 64.0, 256.0)
NEIGHBOURS = (1, 3, 10, 30)
# Weights of neighbours are exp(cosine / temperature).
NEIGHBOUR_TEMPERATURE = 0.07
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


def end_nodes_of(y: torch.Tensor) -> np.ndarray:
    """Returns the end node [N] of each document with one path. Deeper nodes have higher indices."""
    return (y.shape[1] - 1 - (y.numpy() > 0)[:, ::-1].argmax(axis=1)).astype(np.int64)


def path_sets(ends: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns the end nodes [N] with their ancestors, bool [N, L]."""
    sets = np.zeros((len(ends), taxonomy.num_labels), dtype=bool)
    unique, inverse = np.unique(ends, return_inverse=True)
    paths = [taxonomy.complete([int(end)]) for end in unique]
    for row, index in enumerate(inverse):
        sets[row, paths[index]] = True
    return sets


def softmax_over_leaves(x: Splits, y: dict[str, torch.Tensor], taxonomy: Taxonomy) -> Iterator[Attempt]:
    """Fits multinomial logistic regression over the end nodes of paths. Ancestors are added to the prediction."""
    ends = end_nodes_of(y["train"])
    for c in STRENGTHS:
        model = LogisticRegression(C=c, max_iter=1000).fit(x["train"].numpy(), ends)
        predict = lambda split, model=model: path_sets(model.predict(x[split].numpy()), taxonomy)  # noqa: E731
        yield Attempt({"C": c}, predict, model.coef_.size + model.intercept_.size)


def softmax_over_many_leaves(x: Splits, y: dict[str, torch.Tensor], taxonomy: Taxonomy) -> Iterator[Attempt]:
    """Fits a softmax over the end nodes of training documents on unit features, by L-BFGS with warm starts.

    scikit-learn's takes minutes per strength with a thousand end nodes.
    """
    known, ends = np.unique(end_nodes_of(y["train"]), return_inverse=True)
    weights = fit_softmax(x["train"], torch.from_numpy(ends), len(known), SOFTMAX_STRENGTHS)
    for c, weight in weights:
        predict = lambda split, weight=weight: path_sets(  # noqa: E731
            known[(x[split] @ weight.T).argmax(dim=1).numpy()], taxonomy
        )
        yield Attempt({"C": c}, predict, weight.numel())


def fit_softmax(
    features: torch.Tensor, ends: torch.Tensor, number: int, strengths: Sequence[float]
) -> Iterator[tuple[float, torch.Tensor]]:
    """Fits a softmax over `number` classes with L2 by L-BFGS, for each strength C from the previous one's weights.

    Args:
        features: unit features [N, D].
        ends: the class [N] of each.

    Yields:
        C, which means the same as for our heads, and the weights [number, D].
    """
    weight = torch.zeros(number, features.shape[1], requires_grad=True)
    for strength in sorted(strengths):
        optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

        def evaluate(strength: float = strength) -> float:
            values = weight.detach()
            gradient, total = values / strength, float(values.square().sum()) / (2 * strength)
            for rows, classes in zip(features.split(2000), ends.split(2000)):
                log_p = F.log_softmax(rows @ values.T, dim=1)
                total -= float(log_p.gather(1, classes[:, None]).sum())
                p = log_p.exp_()
                p[torch.arange(len(classes)), classes] -= 1
                gradient.addmm_(p.T, rows)
            weight.grad = gradient / len(ends)
            return total / len(ends)

        optimizer.step(evaluate)
        yield strength, weight.detach().clone()


def linear_svms(x: Splits, y: dict[str, torch.Tensor], taxonomy: Taxonomy, over_leaves: bool) -> Iterator[Attempt]:
    """Fits linear support vector machines, one per end node (the best one is predicted) or one per label.

    Those per label have their margins as logits, so their thresholds are tuned like all others. A label that all documents
    have, or none, has a margin of 10 or -10.
    """
    ends, truth = end_nodes_of(y["train"]), y["train"].numpy() > 0
    for c in SVM_STRENGTHS:
        if over_leaves:
            model = LinearSVC(C=c).fit(x["train"], ends)
            predict = lambda split, model=model: path_sets(model.predict(x[split]), taxonomy)  # noqa: E731
            yield Attempt({"C": c}, predict, model.coef_.size + model.intercept_.size)
            continue
        yield _per_label(partial(LinearSVC, C=c), c, x, truth)


def tfidf_logistic_regressions(x: Splits, y: dict[str, torch.Tensor]) -> Iterator[Attempt]:
    """Fits one logistic regression per label on sparse features."""
    for c in TFIDF_STRENGTHS:
        yield _per_label(partial(LogisticRegression, C=c, solver="liblinear"), c, x, y["train"].numpy() > 0)


def _per_label(make: Callable[[], Any], c: float, x: Splits, truth: np.ndarray) -> Attempt:
    weight, bias = np.zeros((truth.shape[1], x["train"].shape[1]), dtype=np.float32), np.zeros(truth.shape[1])
    for node, positive in enumerate(truth.T):
        if 0 < positive.sum() < len(positive):
            model = make().fit(x["train"], positive)
            weight[node], bias[node] = model.coef_[0], model.intercept_[0]
        else:
            bias[node] = 10 if positive.any() else -10

    def predict(split: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(x[split] @ weight.T) + bias)

    return Attempt({"C": c}, predict, weight.size + bias.size)


def nearest_documents(
    x: dict[str, torch.Tensor], y: dict[str, torch.Tensor], taxonomy: Taxonomy, one_path: bool
) -> Iterator[Attempt]:
    """Lets the nearest training documents by cosine vote: for an end node, or for each label with thresholds."""
    units = {split: F.normalize(states.float(), dim=1) for split, states in x.items()}
    ends = end_nodes_of(y["train"])
    known, classes = np.unique(ends, return_inverse=True)
    for k in NEIGHBOURS:

        def predict(split: str, k: int = k) -> Any:
            parts = []
            for rows in units[split].split(1000):
                near = (rows @ units["train"].T).topk(k, dim=1)
                votes = (near.values / NEIGHBOUR_TEMPERATURE).softmax(dim=1)
                if one_path:
                    sums = torch.zeros(len(rows), len(known))
                    sums.scatter_add_(1, torch.from_numpy(classes)[near.indices], votes)
                    parts.append(torch.from_numpy(known[sums.argmax(dim=1).numpy()]))
                else:
                    parts.append(torch.einsum("bk,bkl->bl", votes, y["train"][near.indices]))
            values = torch.cat(parts)
            return path_sets(values.numpy(), taxonomy) if one_path else torch.logit(values, eps=1e-4)

        yield Attempt({"neighbours": k}, predict, 0)


def nearest_label_text(
    x: dict[str, torch.Tensor], anchors: torch.Tensor, taxonomy: Taxonomy, one_path: bool, partial_paths: bool
) -> Iterator[Attempt]:
    """Compares documents with the text of each label by cosine: the best end node, or each label with thresholds."""
    leaves = np.arange(taxonomy.num_labels) if partial_paths else np.flatnonzero(taxonomy.is_leaf)
    texts = F.normalize(anchors.float(), dim=1)

    def predict(split: str) -> Any:
        units = F.normalize(x[split].float(), dim=1)
        if one_path:
            return path_sets(leaves[(units @ texts[leaves].T).argmax(dim=1).numpy()], taxonomy)
        return 10 * (units @ texts.T)

    yield Attempt({}, predict, 0)


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


def words_and_characters(texts: dict[str, list[str]]) -> Splits:
    """Computes TF-IDF features of words, word pairs and the characters of words."""
    union = FeatureUnion(
        [
            ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=100_000)),
            (
                "characters",
                TfidfVectorizer(
                    analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2, max_features=100_000
                ),
            ),
        ]
    )
    union.fit(texts["train"])
    return {s: sparse.csr_matrix(union.transform(values)) for s, values in texts.items()}


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

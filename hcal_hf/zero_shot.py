"""Builds models that predict before the first label: each label is described by the embedding of its text."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from .configuration_hcal import display_names
from .taxonomy import Taxonomy

# tau of the softmax over end nodes. Fixed on the validation split of clinc150 and on hwv_part's (recipes/benchmarks).
TEMPERATURE = 0.05
# The expected number of end labels of a document with several paths.
EXPECTED_LABELS = 1.5
_HEADS = ("path_softmax", "conditional_sigmoid")
# Biases are fitted to at most this many documents.
_MOST_DOCUMENTS = 4096
_BISECTIONS = 40


@torch.no_grad()
def build_zero_shot(
    cls: Any, encoder: Any, taxonomy: Taxonomy, descriptions: Mapping[str, str] | None = None, **kwargs: Any
) -> Any:
    """Implements [`HcalForSequenceClassification.zero_shot`]."""
    names = kwargs.get("label_names") or getattr(taxonomy, "label_names", None)
    if isinstance(names, Mapping):
        names = display_names(taxonomy, names) if names else None
    texts = {
        label: name.replace("_", " ") for label, name in zip(taxonomy.labels, names or taxonomy.names, strict=True)
    }
    for label, text in (descriptions or {}).items():
        texts[taxonomy.labels[taxonomy.index(label)]] = text
    label_mode = kwargs.get("label_mode") or ("single_path" if taxonomy.is_forest else "multi_path")
    settings = {
        "head": "path_softmax" if label_mode == "single_path" else "conditional_sigmoid",
        "score_function": "linear",
        "prototype_anchor": "label_text",
        "prototype_temperature": TEMPERATURE,
        "projection_bias": True,
        "perturbation": 0.0,
        **kwargs,
        "label_mode": label_mode,
    }
    if settings["head"] not in _HEADS:
        raise ValueError(
            f"A zero-shot model has the head {' or '.join(_HEADS)}, got {settings['head']!r}: leave head out."
        )
    if settings.get("geometry") == "hyperbolic":
        raise ValueError(
            'A zero-shot model compares documents with label texts by their cosine, so it has no geometry="hyperbolic": '
            "leave geometry out."
        )
    model = cls.from_encoder(encoder, taxonomy, descriptions=texts, **settings).eval()
    vectors = label_vectors(model)
    place_prototypes(model, vectors)
    if label_mode == "multi_path":
        fit_biases(model, vectors, EXPECTED_LABELS, are_labels=True)
    return model


def label_vectors(model: Any) -> torch.Tensor:
    """Returns the unit vectors [L, d] of the label texts, in the space of the document features."""
    anchors = model.prototypes.anchors.to(model.projection.weight)
    return F.normalize(model.projection(anchors).float(), dim=-1)


@torch.no_grad()
def place_prototypes(model: Any, vectors: torch.Tensor) -> None:
    """Sets the prototypes so that the score of a path is the cosine of the document with the vector of its end node.

    Under single_path, the head `path_softmax` adds up the scores on a path. Without partial paths only leaves can be ends,
    so the prototypes of inner nodes are 0, and the probability of an inner node is the sum over its leaves. With partial
    paths every node can be an end, so each prototype is the difference from its parent's vector. Under multi_path each
    label has its own score, and an inner node has the mean vector of the leaves below it, because the names of inner nodes
    mislead.

    Args:
        model: a model with anchored linear prototypes.
        vectors (`torch.Tensor` of shape `[L, d]`): a unit vector for each label. Those of inner nodes are used with partial
            paths only.
    """
    taxonomy, config, prototypes = model.taxonomy, model.config, model.prototypes
    is_leaf = torch.from_numpy(taxonomy.is_leaf.copy()).to(vectors.device)
    edges = torch.from_numpy(taxonomy.edges.copy()).to(vectors.device)
    if config.label_mode == "multi_path":
        # The mean of all leaves is subtracted, so that texts that resemble every label do not have all of them.
        target = F.normalize(_sum_over_leaves(vectors - vectors[is_leaf].mean(dim=0), taxonomy), dim=-1)
    elif config.partial_paths:
        target = vectors.clone()
        target[edges[:, 1]] -= vectors[edges[:, 0]]
    else:
        target = torch.where(is_leaf[:, None], vectors, 0.0)
    scale = prototypes.anchor_scale[prototypes.depths][:, None]
    prototypes.weight.copy_(target - scale * label_vectors(model))
    prototypes.trained.fill_(True)


@torch.no_grad()
def fit_biases(
    model: Any, features: torch.Tensor, expected_labels: float = EXPECTED_LABELS, *, are_labels: bool = False
) -> None:
    """Sets the biases and the threshold of a multi_path model so that documents have the expected number of labels.

    Each leaf gets the same mean probability over the documents, expected_labels / leaves, and each inner node that of
    independent leaves. So a score counts relative to the label's scores on these documents. The threshold then predicts
    as many labels on average as these probabilities expect.

    Args:
        model: a multi_path model with the head `conditional_sigmoid`.
        features (`torch.Tensor` of shape `[N, d]`): unit features of documents without labels. At most 4,096 are used.
        expected_labels (`float`): the mean number of end labels of a document.
        are_labels (`bool`): the features are the vectors of the L labels, each of which leaves out its own label.

    Raises:
        ValueError: if the number is not above 0 and below the number of leaves.
    """
    taxonomy, prototypes = model.taxonomy, model.prototypes
    leaves = torch.from_numpy(taxonomy.is_leaf.copy())
    if not 0 < expected_labels < max(int(leaves.sum()), 2):
        raise ValueError(
            f"expected_labels must be above 0 and below the number of leaves, {int(leaves.sum())}, got {expected_labels}."
        )
    step = -(-len(features) // _MOST_DOCUMENTS)
    features = features[::step].to(prototypes.weight)
    products = features @ prototypes.vectors(model.projection).T / model.head.temperature
    if are_labels:
        products[torch.arange(len(features)), torch.arange(0, len(model.taxonomy), step)] = -1e4
    share = leaves.to(torch.float64) * expected_labels / leaves.sum()
    rates = 1 - _sum_over_leaves(torch.log1p(-share)[:, None], taxonomy)[:, 0].exp().to(products)
    # The parents of a node of a DAG lie on any levels above it.
    probabilities = torch.ones_like(products)
    for level, edges in zip(taxonomy.levels, taxonomy.edge_slices):
        parents = taxonomy.edges[edges]
        above = torch.ones_like(products[:, level])
        if len(parents):
            children = torch.from_numpy(parents[:, 1] - level.start).to(products.device)
            values = probabilities[:, torch.from_numpy(parents[:, 0].copy()).to(products.device)]
            above = above.scatter_reduce(1, children.expand(len(products), -1), values, reduce="amin")
        bias = _bias_for_rate(products[:, level], above, rates[level])
        probabilities[:, level] = above * torch.sigmoid(products[:, level] + bias)
        prototypes.bias[level] = bias * model.head.temperature
    number = min(max(round(float(rates.sum()) * len(features)), 1), probabilities.numel())
    threshold = float(probabilities.flatten().topk(number).values[-1])
    model.config.thresholds = [min(max(threshold, 0.0), 1.0)] * taxonomy.num_labels


def _bias_for_rate(products: torch.Tensor, above: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """Finds the bias b [n] for which the mean over the documents of above * sigmoid(products + b) is the rate [n]."""
    rates = torch.minimum(rates, 0.99 * above.mean(dim=0))
    low, high = torch.full_like(rates, -200.0), torch.full_like(rates, 200.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_low = (above * torch.sigmoid(products + middle)).mean(dim=0) < rates
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return (low + high) / 2


def _sum_over_leaves(vectors: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Sums the vectors [L, d] of the leaves below each node, along all paths of a DAG."""
    sums = torch.where(torch.from_numpy(taxonomy.is_leaf.copy()).to(vectors.device)[:, None], vectors, 0.0)
    edges = torch.from_numpy(taxonomy.edges.copy()).to(vectors.device)
    depths = torch.from_numpy(taxonomy.depths.copy()).to(vectors.device)
    # Nodes are sorted by depth: all children of a node are deeper.
    for depth in range(len(taxonomy.levels) - 2, -1, -1):
        chosen = edges[depths[edges[:, 0]] == depth]
        sums.index_add_(0, chosen[:, 0], sums[chosen[:, 1]])
    return sums


__all__ = ["EXPECTED_LABELS", "TEMPERATURE", "build_zero_shot", "fit_biases", "label_vectors", "place_prototypes"]

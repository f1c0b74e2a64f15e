"""Prototypes anchored in the words of their labels, and labels added to a trained model by their words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .configuration_hcal import HcalConfig
from .taxonomy import SEPARATOR, Taxonomy


@torch.no_grad()
def embed_texts(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
    """Pooled encoder states [n, hidden_size] of texts, float32, on the model's device, without dropout."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    states = torch.empty(len(texts), model.projection.in_features, device=model.device)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer([texts[i] for i in rows], padding=True, truncation=True, return_tensors="pt").to(
            model.device
        )
        hidden = model.encoder(**batch, return_dict=True).last_hidden_state
        states[rows] = model.pool(hidden, batch["attention_mask"]).float()
    model.train(was_training)
    return states


def label_texts(taxonomy: Taxonomy, descriptions: Mapping[str, str] | None = None) -> list[str]:
    """The words of each label: its description, or its name after its parents' names.

    Raises:
        ValueError: for a description of an unknown label (with the closest known ones).
    """
    texts = taxonomy.texts()
    for label, text in (descriptions or {}).items():
        texts[taxonomy.index(label)] = text
    return texts


def extended_config(
    config: HcalConfig, paths: Sequence[Sequence[str]], descriptions: Mapping[str, str] | None
) -> tuple[HcalConfig, np.ndarray]:
    """The configuration with more labels, and for each of its L' labels the old index, -1 for a new one [L'].

    Thresholds of new labels are their siblings' mean, but at least their parents'; the risk calibration is dropped.
    """
    old = config.to_taxonomy()
    labels, edges = list(old.labels), old.edges.tolist()
    for path in paths:
        *above, name = path
        parent = old.index_path(above) if above else -1
        label = name if name not in labels else SEPARATOR.join([*above, name])
        if label in labels:
            raise ValueError(f"{label!r} is already a label of the model.")
        if parent >= 0:
            edges.append([parent, len(labels)])
        labels.append(label)
    grown = Taxonomy.from_edges(
        [(labels[parent], labels[child]) for parent, child in edges],
        roots=[n for i, n in enumerate(labels) if i not in {c for _, c in edges}],
    )
    before = {label: i for i, label in enumerate(old.labels)}
    source = np.array([before.get(label, -1) for label in grown.labels])
    texts = label_texts(grown, descriptions)
    if config.label_texts is not None:
        texts = [texts[i] if j < 0 else config.label_texts[j] for i, j in enumerate(source.tolist())]
    values = config.to_dict()
    for name in (
        "id2label",
        "label2id",
        "labels",
        "edges",
        "label_texts",
        "risk_alpha",
        "risk_threshold",
        "thresholds",
    ):
        values.pop(name, None)
    values["encoder_config"] = config.encoder_config
    thresholds = None
    if config.thresholds is not None:
        thresholds = [0.0] * grown.num_labels
        for node, j in enumerate(source.tolist()):
            parents = grown.parents(node).tolist()
            own = (
                config.thresholds[j] if j >= 0 else mean_of_siblings(np.array(config.thresholds), grown, source, node)
            )
            thresholds[node] = max([float(own), *(thresholds[p] for p in parents)])
    new = type(config)(
        labels=list(grown.labels), edges=grown.edges.tolist(), label_texts=texts, thresholds=thresholds, **values
    )
    return new, source


def mean_of_siblings(values: np.ndarray, taxonomy: Taxonomy, source: np.ndarray, node: int) -> np.ndarray:
    """Mean of `values` [old L] over the old labels that share a parent with `node`; over all where there are none."""
    parents = set(taxonomy.parents(node).tolist())
    siblings = [
        int(source[other])
        for other in np.flatnonzero((taxonomy.depths == taxonomy.depths[node]) & (source >= 0)).tolist()
        if set(taxonomy.parents(other).tolist()) & parents or not parents
    ]
    return values[siblings].mean(axis=0) if siblings else values.mean(axis=0)

"""Adds labels to a trained model from their text, without training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import logging

from .anchors import embed_texts, label_texts
from .configuration_hcal import HcalConfig
from .node_names import SEPARATOR
from .taxonomy import Taxonomy

logger = logging.get_logger(__name__)


@torch.no_grad()
def add_labels(
    model: Any,
    paths: Sequence[Sequence[str]],
    tokenizer: Any,
    descriptions: Mapping[str, str] | None = None,
    *,
    to_be_trained: bool = False,
) -> list[str]:
    """Implements [`HcalForSequenceClassification.add_labels`].

    With `to_be_trained`, the model need not be anchored, because training follows. The prototypes of new labels then start
    at the projected label text, with the mean length of the others, or at 0 if scores are linear.

    Builds prototypes and a head for the extended taxonomy, copies the old values into them, and replaces those of the
    model. Encoder, projection and hooks of the model are not touched. New parameters keep dtype, device and
    `requires_grad` of the old ones.
    """
    if not to_be_trained:
        _check_anchored(model)
    config, source = extend_config(model.config, paths, descriptions)
    extended = type(model)(config, encoder=model.encoder)
    _copy_tensor_settings(extended.prototypes, model.prototypes)
    _copy_tensor_settings(extended.head, model.head)
    _copy_prototypes(extended.prototypes, model.prototypes, source)
    _copy_head(extended, model, source)
    _copy_biases(extended, model, source)

    model.config, model.taxonomy, model.task_names = config, extended.taxonomy, extended.task_names
    model.prototypes, model.head = extended.prototypes, extended.head
    model.prototypes.train(model.training)
    model.head.train(model.training)

    new = np.flatnonzero(source < 0)
    texts = config.label_texts or label_texts(extended.taxonomy, descriptions, config.label_names)
    embeddings = embed_texts(model, tokenizer, [texts[i] for i in new])
    if model.prototypes.is_anchored:
        model.prototypes.anchors[new] = embeddings.to(model.prototypes.anchors)
    elif config.score_function == "cosine":
        weight = model.prototypes.weight
        units = F.normalize(model.projection(embeddings.to(model.projection.weight)), dim=-1)
        old_length = torch.linalg.vector_norm(weight[np.flatnonzero(source >= 0)], dim=-1).mean()
        weight[new] = (units * old_length).to(weight)
    added = [config.labels[i] for i in new]
    if to_be_trained:
        return added
    logger.warning(
        f"{len(added)} label(s) added from their label text, without training: {', '.join(added[:5])}. Measure the model "
        "before use. A risk calibration must be repeated."
    )
    return added


def _check_anchored(model: Any) -> None:
    if not model.prototypes.is_anchored:
        raise ValueError(
            "Labels can only be added from their text if the prototypes are anchored to label embeddings. Build and "
            'train the model with prototype_anchor="label_text".'
        )
    scale = model.prototypes.anchor_scale
    if scale is not None and not scale.any():
        raise ValueError(
            "The head was fitted without label text: anchor_scale is 0 at every level, because that was best on the "
            "validation documents. The text of a new label would have no effect. Train the model again with the new "
            "labels in the taxonomy, or first fit the head with hcal_hf.fit_head(..., anchored=True)."
        )


def extend_config(
    config: HcalConfig, paths: Sequence[Sequence[str]], descriptions: Mapping[str, str] | None
) -> tuple[HcalConfig, np.ndarray]:
    """Builds the configuration with more labels.

    The threshold of a new label is the mean of its siblings' thresholds, but at least its parents' thresholds. The risk
    calibration is dropped, because it holds for the old label set only.

    Returns:
        The new configuration, and an int array `[L']` with the old index of each of its labels, -1 for new ones.

    Raises:
        ValueError: if all steps but the last of a path are not a path of the taxonomy, or the label exists.
    """
    old = config.to_taxonomy()
    extended = _extend_taxonomy(old, paths)
    source = np.array([old.label_index.get(label, -1) for label in extended.labels])
    names = None
    if config.label_names is not None:
        names = [extended.names[i] if j < 0 else config.label_names[j] for i, j in enumerate(source.tolist())]
    texts: list[str] | None = None
    if config.prototype_anchor:
        texts = label_texts(extended, descriptions, names)
    if texts is not None and config.label_texts is not None:
        texts = [texts[i] if j < 0 else config.label_texts[j] for i, j in enumerate(source.tolist())]
    replaced = {"id2label", "label2id", "labels", "edges", "label_texts", "label_names", "thresholds"}
    replaced |= {"risk_alpha", "risk_threshold"}
    fields = {name: value for name, value in config.to_dict().items() if name not in replaced}
    # A new configuration sets the attention of its sub-configurations too.
    encoder_config: Any = config.encoder_config
    fields |= {"encoder_config": encoder_config, "attn_implementation": encoder_config._attn_implementation}
    new = type(config)(
        labels=list(extended.labels),
        edges=extended.edges.tolist(),
        label_texts=texts,
        label_names=names,
        thresholds=_extend_thresholds(config.thresholds, extended, source),
        **fields,
    )
    return new, source


def _extend_taxonomy(old: Taxonomy, paths: Sequence[Sequence[str]]) -> Taxonomy:
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
    children = {child for _, child in edges}
    return Taxonomy.from_edges(
        [(labels[parent], labels[child]) for parent, child in edges],
        roots=[label for i, label in enumerate(labels) if i not in children],
    )


def _extend_thresholds(
    thresholds: Sequence[float] | None, taxonomy: Taxonomy, source: np.ndarray
) -> list[float] | None:
    if thresholds is None:
        return None
    extended: list[float] = []
    for node, j in enumerate(source.tolist()):
        own = thresholds[j] if j >= 0 else mean_of_siblings(np.array(thresholds), taxonomy, source, node)
        extended.append(max([float(own), *(extended[parent] for parent in taxonomy.parents(node).tolist())]))
    return extended


def mean_of_siblings(values: np.ndarray, taxonomy: Taxonomy, source: np.ndarray, node: int) -> np.ndarray:
    """Averages `values` [old L] over the old labels that share a parent with `node`, or over all if there are none."""
    parents = set(taxonomy.parents(node).tolist())
    siblings = [
        int(source[other])
        for other in np.flatnonzero((taxonomy.depths == taxonomy.depths[node]) & (source >= 0)).tolist()
        if set(taxonomy.parents(other).tolist()) & parents or not parents
    ]
    return values[siblings].mean(axis=0) if siblings else values.mean(axis=0)


def _copy_tensor_settings(target: nn.Module, reference: nn.Module) -> None:
    """Gives parameters and buffers the dtype, device and `requires_grad` of those with the same names."""
    for get_named in (nn.Module.named_parameters, nn.Module.named_buffers):
        references = dict(get_named(reference))
        for name, tensor in get_named(target):
            tensor.data = tensor.data.to(references[name])
            tensor.requires_grad_(references[name].requires_grad)


def _copy_prototypes(target: Any, reference: Any, source: np.ndarray) -> None:
    old, new = np.flatnonzero(source >= 0), np.flatnonzero(source < 0)
    for name in ("weight", "anchors", "trained"):
        if getattr(reference, name, None) is not None:
            getattr(target, name)[old] = getattr(reference, name)[source[old]]
    target.weight[new] = 0.0
    if reference.is_anchored:
        target.trained[new] = False
    if (scale := reference.anchor_scale) is not None:
        target.anchor_scale[: len(scale)] = scale
        target.anchor_scale[len(scale) :] = scale[-1]  # a new level gets the scale of the deepest old one


def _copy_head(target: Any, reference: Any, source: np.ndarray) -> None:
    """Copies the scale and the stop scores. An inner node that was a leaf starts with a stop score of 0."""
    if getattr(reference.head, "scale", None) is not None:
        target.head.scale.copy_(reference.head.scale)
    if getattr(reference.head, "stop", None) is not None:
        old_inner = np.flatnonzero(~reference.taxonomy.is_leaf).tolist()
        position = {node: i for i, node in enumerate(old_inner)}
        for i, node in enumerate(np.flatnonzero(~target.taxonomy.is_leaf).tolist()):
            if int(source[node]) in position:
                target.head.stop[i] = reference.head.stop[position[int(source[node])]]


def _copy_biases(target: Any, reference: Any, source: np.ndarray) -> None:
    """Copies the biases of head or prototypes. The bias of a new label is the mean of its siblings' biases."""
    for name in ("head", "prototypes"):
        bias = getattr(getattr(reference, name), "bias", None)
        if bias is None:
            continue
        values = bias.float().cpu().numpy()
        rows = [
            values[j] if j >= 0 else mean_of_siblings(values, target.taxonomy, source, i)
            for i, j in enumerate(source.tolist())
        ]
        getattr(target, name).bias.copy_(torch.tensor(np.array(rows)))


__all__ = ["add_labels", "extend_config", "mean_of_siblings"]

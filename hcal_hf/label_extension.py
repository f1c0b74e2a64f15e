"""Adds labels to a trained model from their text, without training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from .anchors import embed_texts, label_texts
from .configuration_hcal import HcalConfig
from .label_map import LabelMap, map_config, map_model, sorted_taxonomy
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
    """
    if not to_be_trained:
        _check_anchored(model)
    config, label_map = extend_config(model.config, paths, descriptions)
    map_model(model, config, label_map)
    texts = config.label_texts or label_texts(model.taxonomy, descriptions, config.label_names)
    added = start_from_texts(model, tokenizer, np.flatnonzero(label_map.is_new), texts)
    if to_be_trained:
        return added
    logger.warning(
        f"{len(added)} label(s) added from their label text, without training: {', '.join(added[:5])}. Measure the model "
        "before use. A risk calibration must be repeated."
    )
    return added


@torch.no_grad()
def start_from_texts(model: Any, tokenizer: Any, new: np.ndarray, texts: Sequence[str]) -> list[str]:
    """Initialises the prototypes of added labels, which are 0, from their label text.

    Args:
        model: the model, which has these labels already.
        tokenizer: the tokenizer of the encoder.
        new (`np.ndarray` of shape `[N]`): the indices of the added labels.
        texts: the text of each of the L labels.

    Returns:
        the added labels.
    """
    if not len(new):
        return []
    embeddings = embed_texts(model, tokenizer, [texts[i] for i in new])
    if model.prototypes.is_anchored:
        model.prototypes.anchors[new] = embeddings.to(model.prototypes.anchors)
    elif model.config.score_function == "cosine":
        weight = model.prototypes.weight
        units = F.normalize(model.projection(embeddings.to(model.projection.weight)), dim=-1)
        is_old = np.ones(len(weight), dtype=bool)
        is_old[new] = False
        old_length = torch.linalg.vector_norm(weight[np.flatnonzero(is_old)], dim=-1).mean()
        weight[new] = (units * old_length).to(weight)
    return [model.config.labels[i] for i in new]


def uses_label_text(model: Any) -> bool:
    """Returns whether the text of a new label has an effect on its score."""
    scale = model.prototypes.anchor_scale
    return bool(model.prototypes.is_anchored and (scale is None or scale.any()))


def _check_anchored(model: Any) -> None:
    if not model.prototypes.is_anchored:
        raise ValueError(
            "Labels can only be added from their text if the prototypes are anchored to label embeddings. Build and "
            'train the model with prototype_anchor="label_text".'
        )
    if not uses_label_text(model):
        raise ValueError(
            "The head was fitted without label text: anchor_scale is 0 at every level, because that was best on the "
            "validation documents. The text of a new label would have no effect. Train the model again with the new "
            "labels in the taxonomy, or first fit the head with hcal_hf.fit_head(..., anchored=True)."
        )


def extend_config(
    config: HcalConfig, paths: Sequence[Sequence[str]], descriptions: Mapping[str, str] | None
) -> tuple[HcalConfig, LabelMap]:
    """Builds the configuration with more labels. The risk calibration is dropped, because it holds for the old label set.

    Returns:
        The new configuration, and the old label of each of its labels.

    Raises:
        ValueError: if all steps but the last of a path are not a path of the taxonomy, or the label exists.
    """
    label_map = _extend_taxonomy(config.to_taxonomy(), paths)
    names = texts = None
    if config.label_names is not None:
        names = label_map.carry(config.label_names, label_map.new.names)
    if config.prototype_anchor:
        texts = label_texts(label_map.new, descriptions, names)
        texts = label_map.carry(config.label_texts, texts) if config.label_texts is not None else texts
    return map_config(config, label_map, texts, names), label_map


def _extend_taxonomy(old: Taxonomy, paths: Sequence[Sequence[str]]) -> LabelMap:
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
    extended, order = sorted_taxonomy(labels, edges)
    return LabelMap(old, extended, np.where(order < old.num_labels, order, -1))


__all__ = ["add_labels", "extend_config", "start_from_texts", "uses_label_text"]

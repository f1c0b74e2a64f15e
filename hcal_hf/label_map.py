"""Carries what a model has learned about its labels over to another taxonomy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .configuration_hcal import HcalConfig
from .node_depths import node_depths
from .taxonomy import Taxonomy

# Fields of the configuration that hold one value per label or that depend on the set of labels.
_OF_LABELS = {"id2label", "label2id", "labels", "edges", "label_texts", "label_names", "thresholds"}
_OF_RISK = {"risk_alpha", "risk_threshold"}


@dataclass(frozen=True)
class LabelMap:
    """Maps each label of a new taxonomy to the old labels that it stands for.

    Attributes:
        old, new ([`Taxonomy`]): both taxonomies, with L and L' labels.
        source (`np.ndarray` of shape `[L']`): the old label of each new one, -1 for an added label. Of a merged label, it
            is the one that gives its text.
        merged (`dict[int, dict[int, float]]`): the old labels of each merged label with their weights, which sum to 1.
    """

    old: Taxonomy
    new: Taxonomy
    source: np.ndarray
    merged: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    @cached_property
    def is_new(self) -> np.ndarray:
        """Bool array [L'], True for added labels."""
        return self.source < 0

    @cached_property
    def is_merged(self) -> np.ndarray:
        """Bool array [L'], True for merged labels."""
        merged = np.zeros(len(self.source), dtype=bool)
        merged[list(self.merged)] = True
        return merged

    @cached_property
    def depth_changed(self) -> np.ndarray:
        """Bool array [L'], True for labels that are at another depth than before."""
        return ~self.is_new & (self.new.depths != self.old.depths[self.source])

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The (new label, old label, weight) triples of merged labels, as three arrays."""
        triples = [(new, old, weight) for new, parts in self.merged.items() for old, weight in parts.items()]
        new, old, weights = zip(*triples) if triples else ((), (), ())
        return np.array(new, dtype=np.int64), np.array(old, dtype=np.int64), np.array(weights, dtype=np.float64)

    def mean(self, values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
        """Carries values over: copies them, averages those of merged labels, and leaves 0 for added labels.

        Args:
            values (`np.ndarray` of shape `[L, ...]`): one value or vector per old label.
            counted (`np.ndarray` of shape `[L]`, bool, *optional*): the old labels that have a value. All by default.

        Returns:
            `np.ndarray` of shape `[L', ...]`.
        """
        carried = np.zeros((len(self.source), *values.shape[1:]), dtype=values.dtype)
        kept = np.flatnonzero(~self.is_new & ~self.is_merged)
        carried[kept] = values[self.source[kept]]
        new, old, weights = self.pairs
        weights = weights if counted is None else weights * counted[old]
        totals = np.bincount(new, weights, minlength=len(carried))
        weights = weights / np.where(totals > 0, totals, 1.0)[new]
        np.add.at(carried, new, (values[old].T * weights).T.astype(values.dtype))
        return carried

    def fill_added(self, values: np.ndarray) -> np.ndarray:
        """Sets the values [L', ...] of added labels to the mean of their siblings' values.

        The siblings of a label are the labels at its depth that share a parent with it. Without siblings, it gets the mean
        over all labels that are not added.
        """
        taxonomy, has_value = self.new, ~self.is_new
        children: dict[int, list[int]] = {}
        parents_of_added = set(taxonomy.edges[np.isin(taxonomy.edges[:, 1], np.flatnonzero(self.is_new)), 0].tolist())
        for parent, child in taxonomy.edges[has_value[taxonomy.edges[:, 1]]].tolist():
            if parent in parents_of_added:
                children.setdefault(parent, []).append(child)
        means: dict[tuple[int, ...], np.ndarray] = {}  # labels with the same parents are at the same depth
        for node in np.flatnonzero(self.is_new).tolist():
            parents = tuple(taxonomy.parent_lists[node])
            if parents not in means:
                near = {child for parent in parents for child in children.get(parent, ())}
                if not parents:
                    near = set(np.flatnonzero(has_value[: taxonomy.levels[0].stop]).tolist())
                same = [child for child in sorted(near) if taxonomy.depths[child] == taxonomy.depths[node]]
                means[parents] = values[same].mean(axis=0) if same else values[has_value].mean(axis=0)
            values[node] = means[parents]
        return values

    def carry(self, texts: Sequence[str], added: Sequence[str]) -> list[str]:
        """Returns the text of each new label: that of its source, or its entry in `added` [L'] for an added label."""
        return [added[i] if j < 0 else texts[j] for i, j in enumerate(self.source.tolist())]


def sorted_taxonomy(labels: Sequence[str], edges: Sequence[Sequence[int]] | np.ndarray) -> tuple[Taxonomy, np.ndarray]:
    """Builds a taxonomy from labels in any order. Labels of one depth keep the order that they have.

    Args:
        labels: the L labels.
        edges (`np.ndarray` of shape `[E, 2]`): (parent, child) as indices into `labels`.

    Returns:
        the taxonomy, and the position [L] of each of its labels in `labels`.
    """
    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    order = np.argsort(node_depths(pairs, labels), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return Taxonomy([labels[i] for i in order.tolist()], rank[pairs]), order


def map_config(
    config: HcalConfig,
    label_map: LabelMap,
    texts: list[str] | None,
    names: list[str] | None,
    *,
    keep_risk: bool = False,
) -> HcalConfig:
    """Builds the configuration of a model with the new labels.

    The threshold of a merged label is the weighted mean of its sources', and that of an added label the mean of its
    siblings'. Thresholds are then raised to at least those of their parents.

    Args:
        config: the configuration with the old labels.
        label_map: the old labels of each new one.
        texts, names: `label_texts` and `label_names` of the new labels.
        keep_risk: keeps the risk calibration, which holds only if no probability changes.

    Raises:
        ValueError: if the new hierarchy does not fit the label mode or the objective.
    """
    replaced = _OF_LABELS if keep_risk else _OF_LABELS | _OF_RISK
    fields = {name: value for name, value in config.to_dict().items() if name not in replaced}
    # A new configuration sets the attention of its sub-configurations too.
    encoder_config: Any = config.encoder_config
    fields |= {"encoder_config": encoder_config, "attn_implementation": encoder_config._attn_implementation}
    return type(config)(
        labels=list(label_map.new.labels),
        edges=label_map.new.edges.tolist(),
        label_texts=texts,
        label_names=names,
        thresholds=_map_thresholds(config.thresholds, label_map),
        **fields,
    )


def _map_thresholds(thresholds: Sequence[float] | None, label_map: LabelMap) -> list[float] | None:
    if thresholds is None:
        return None
    mapped = label_map.fill_added(label_map.mean(np.array(thresholds, dtype=np.float64)))
    for edges in label_map.new.edge_slices:  # parents first
        parents, children = label_map.new.edges[edges].T
        np.maximum.at(mapped, children, mapped[parents])
    return mapped.tolist()


@torch.no_grad()
def map_model(model: Any, config: HcalConfig, label_map: LabelMap) -> None:
    """Replaces the configuration, prototypes and head of a model by those of the new labels.

    This is the only place that reorders what is stored by label. Encoder, projection and hooks of the model are not
    touched. New parameters keep dtype, device and `requires_grad` of the old ones. Added labels have the weight 0.

    Args:
        model: the model with the old labels.
        config: from [`map_config`].
        label_map: the old labels of each new one.
    """
    mapped = type(model)(config, encoder=model.encoder)
    _copy_tensor_settings(mapped.prototypes, model.prototypes)
    _copy_tensor_settings(mapped.head, model.head)
    _map_prototypes(mapped.prototypes, model.prototypes, model.projection, label_map)
    if getattr(model.head, "scale", None) is not None:
        mapped.head.scale.copy_(model.head.scale)
    if (gammas := getattr(model.head, "gamma_negative", None)) is not None:
        levels = min(len(gammas), mapped.head.num_tasks)
        mapped.head.gamma_negative[:levels] = gammas[:levels]
        mapped.head.gamma_negative[levels:] = gammas[-1]  # a new level gets that of the deepest old one
    if getattr(model.head, "stop", None) is not None:
        _map_stop_scores(mapped.head.stop, model.head.stop, label_map)
    for target, reference in ((mapped.head, model.head), (mapped.prototypes, model.prototypes)):
        bias = getattr(reference, "bias", None)
        if bias is not None:
            values = label_map.fill_added(label_map.mean(bias.float().cpu().numpy()))
            target.bias.copy_(torch.from_numpy(values))

    model.config, model.taxonomy, model.task_names = config, mapped.taxonomy, mapped.task_names
    model.prototypes, model.head, model.label_penalty = mapped.prototypes, mapped.head, mapped.label_penalty
    model.prototypes.train(model.training)
    model.head.train(model.training)


def _copy_tensor_settings(target: nn.Module, reference: nn.Module) -> None:
    """Gives parameters and buffers the dtype, device and `requires_grad` of those with the same names."""
    for get_named in (nn.Module.named_parameters, nn.Module.named_buffers):
        references = dict(get_named(reference))
        for name, tensor in get_named(target):
            tensor.data = tensor.data.to(references[name])
            tensor.requires_grad_(references[name].requires_grad)


def _map_prototypes(target: Any, reference: Any, projection: nn.Module, label_map: LabelMap) -> None:
    """Copies the prototypes, and averages those of merged labels.

    A label that is at another depth, where anchors have another weight, keeps its vector: the learned difference from the
    anchor is adjusted.
    """
    device = reference.weight.device
    kept, source = np.flatnonzero(~label_map.is_new), label_map.source
    target.weight.zero_()
    for name in ("weight", "anchors"):
        if getattr(reference, name, None) is not None:
            getattr(target, name)[kept] = getattr(reference, name)[source[kept]]
    if reference.is_anchored:
        trained = reference.trained.cpu().numpy().astype(np.float64)
        target.trained.copy_(torch.from_numpy(label_map.mean(trained) > 0))
    if reference.radius is not None:
        target.radius.copy_(reference.radius)
    scale = reference.anchor_scale
    if scale is not None:
        levels = min(len(scale), len(target.anchor_scale))
        target.anchor_scale[:levels] = scale[:levels]
        target.anchor_scale[levels:] = scale[-1]  # a new level gets the scale of the deepest old one

    rescaled = label_map.depth_changed & (scale is not None)
    rows = torch.from_numpy(np.flatnonzero(rescaled | label_map.is_merged)).to(device)
    if not len(rows):
        return
    vectors = reference.vectors(projection)
    means = vectors.new_zeros(len(source), vectors.shape[1])
    means[kept] = vectors[source[kept]]
    if label_map.merged:
        new, old, weights = (torch.from_numpy(values).to(device) for values in label_map.pairs)
        lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        # Only the directions of prototypes count under cosine scores.
        parts = vectors if reference.is_linear else F.normalize(vectors, dim=-1)
        merged = torch.zeros_like(means).index_add(0, new, parts[old] * weights.to(vectors)[:, None])
        if not reference.is_linear:
            mean_lengths = lengths.new_zeros(len(source), 1).index_add(
                0, new, lengths[old] * weights.to(vectors)[:, None]
            )
            merged = F.normalize(merged, dim=-1) * mean_lengths
        means[new] = merged[new]
    target.weight[rows] = 0.0
    offsets = target.vectors(projection)[rows] if reference.is_anchored else 0.0
    target.weight[rows] = (means[rows] - offsets).to(target.weight)


def _map_stop_scores(target: nn.Parameter, reference: nn.Parameter, label_map: LabelMap) -> None:
    """Copies the stop scores of inner nodes. An inner node that was a leaf starts with a stop score of 0."""
    was_inner = ~label_map.old.is_leaf
    values = np.zeros(label_map.old.num_labels)
    values[was_inner] = reference.double().cpu().numpy()
    mapped = label_map.mean(values, counted=was_inner)
    target.copy_(torch.from_numpy(mapped[~label_map.new.is_leaf]))


__all__ = ["LabelMap", "map_config", "map_model", "sorted_taxonomy"]

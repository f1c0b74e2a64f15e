"""Finds the labels that keep their probabilities when the taxonomy of a model changes."""

import numpy as np

from ..configuration_hcal import HcalConfig
from ..label_map import LabelMap

# The heads in which the scores of the children of a label influence its own probability.
_LOOKAHEAD = ("path_softmax", "lookahead_softmax", "lookahead_sigmoid")

ADDED = "added from the label text, without training"
MERGED = "merged: the prototype is the mean of those of the merged labels"
EMBEDDED = "the prototype starts from the new label text"
MOVED = "has other parents or another depth"
SIBLINGS = "competes with other labels, or with changed ones"
BELOW = "the labels below it have changed, which its probability depends on"
ABOVE = "the probability of a label above it has changed"


def changed_probabilities(config: HcalConfig, label_map: LabelMap, embedded: np.ndarray) -> dict[int, str]:
    """Returns the new labels with another probability than before, with the reason. All others keep theirs.

    Args:
        config: the configuration of the model; the head and the label mode are used.
        label_map: both taxonomies.
        embedded (`np.ndarray` of shape `[L']`, bool): the labels with a new text embedding.
    """
    new = label_map.new
    own = label_map.is_new | label_map.is_merged | embedded
    kept = ~label_map.is_new & ~label_map.is_merged
    is_softmax = config.label_mode == "single_path"
    family, moved, top_changed = _structural_changes(label_map, kept)
    value = own.copy()
    if config.head in _LOOKAHEAD:
        value |= family
        for edges in reversed(new.edge_slices):  # children first
            parents, children = new.edges[edges].T
            np.logical_or.at(value, parents, value[children])
    if config.head == "independent":
        conditional = _changed_levels(label_map, kept, own) if is_softmax else own
        probability = conditional
    else:
        conditional = value | moved
        if is_softmax:
            conditional = _competing(new.edges, value, family, top_changed | bool(value[: new.levels[0].stop].any()))
        probability = conditional.copy()
        for edges in new.edge_slices:  # parents first
            parents, children = new.edges[edges].T
            np.logical_or.at(probability, children, probability[parents])

    def reason(i: int) -> str:
        if label_map.is_new[i]:
            return ADDED
        if label_map.is_merged[i]:
            return MERGED
        if embedded[i]:
            return EMBEDDED
        if moved[i] or (config.head == "independent" and label_map.depth_changed[i]):
            return MOVED
        if not conditional[i]:
            return ABOVE
        return SIBLINGS if is_softmax else BELOW

    return {i: reason(i) for i in np.flatnonzero(probability).tolist()}


def _structural_changes(label_map: LabelMap, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Returns the labels [L'] with other children, those with other parents, and whether the top labels have changed."""
    old, new, source = label_map.old, label_map.new, label_map.source
    parents, children = new.edges.T
    keys = source[parents] * max(old.num_labels, 1) + source[children]
    old_keys = old.edges[:, 0] * max(old.num_labels, 1) + old.edges[:, 1]
    same = kept[parents] & kept[children] & np.isin(keys, old_keys)

    def differs(ends: np.ndarray, old_ends: np.ndarray) -> np.ndarray:
        matched = np.bincount(ends[same], minlength=len(source))
        now = np.bincount(ends, minlength=len(source))
        before = np.bincount(old_ends, minlength=old.num_labels)[source]
        return ~kept | (matched != now) | (matched != before)

    tops, old_tops = new.levels[0].stop, old.levels[0].stop
    top_changed = tops != old_tops or not (kept[:tops] & (source[:tops] < old_tops)).all()
    return differs(parents, old.edges[:, 0]), differs(children, old.edges[:, 1]), top_changed


def _competing(edges: np.ndarray, value: np.ndarray, family: np.ndarray, top_changed: bool) -> np.ndarray:
    """Returns the labels of a forest with another share among their siblings."""
    parents, children = edges.T
    changed = family.copy()
    np.logical_or.at(changed, parents, value[children])
    competing = np.full(len(value), top_changed)
    competing[children] = changed[parents]
    return competing


def _changed_levels(label_map: LabelMap, kept: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Returns the labels of levels with other labels or another prototype, for one softmax per level."""
    changed = np.zeros(len(kept), dtype=bool)
    for depth, level in enumerate(label_map.new.levels):
        levels = label_map.old.levels
        before = levels[depth].stop - levels[depth].start if depth < len(levels) else 0
        stays = kept[level] & ~label_map.depth_changed[level]
        changed[level] = own[level].any() or before != len(stays) or not stays.all()
    return changed


__all__ = ["changed_probabilities"]

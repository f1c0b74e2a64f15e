"""Decodes node probabilities into sets of labels.

Decoders take logits [N, L] (sigmoid(logits) is the probability of each node) and return bool masks [N, L]. They work level
by level on edge lists, for all documents at once. Every decoder except `raw` returns sets that are consistent with the
hierarchy, whatever the probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .taxonomy import Taxonomy

METHODS = ("raw", "closure", "prune", "path", "top_down", "expected_f1", "risk")
# These methods choose the size of the set themselves and take no thresholds.
UNTHRESHOLDED = ("expected_f1", "risk")
# (document, label) pairs per chunk of documents in a head, to bound the memory: 32 MB per float64 tensor.
PAIRS_PER_CHUNK = 4_000_000
# Pairs that are decoded at a time on a CPU. They stay in its caches, so `expected_f1` takes half the time of larger chunks.
_CACHED_PAIRS = 2**18


def default_method(label_mode: str) -> str:
    """Returns `"path"` for single_path and `"closure"` for multi_path."""
    return "path" if label_mode == "single_path" else "closure"


@dataclass(frozen=True)
class Decision:
    """Describes how node probabilities become label sets.

    Attributes:
        label_mode (`"single_path"` or `"multi_path"`).
        partial_paths (`bool`): whether a path may end at an inner node.
        head (`str`): the model's head. All heads except `independent` are coherent.
        thresholds: as `threshold` of [`decode`]. Methods without thresholds ignore them.
        method (`str`, *optional*): as in [`decode`].
        risk_threshold (`float`, *optional*): as in [`decode`]. Methods other than `risk` ignore it.
    """

    label_mode: str
    partial_paths: bool = False
    head: str = "independent"
    thresholds: float | Sequence[float] | torch.Tensor | None = None
    method: str | None = None
    risk_threshold: float | None = None

    @classmethod
    def from_config(cls, config: Any, **changes: Any) -> "Decision":
        """Reads the decision from an [`HcalConfig`]. `changes` replace single attributes."""
        names = ("label_mode", "partial_paths", "head", "thresholds", "risk_threshold")
        return cls(**{name: getattr(config, name) for name in names} | changes)

    @property
    def model_options(self) -> dict[str, Any]:
        """The options that belong to the model: `label_mode`, `partial_paths` and `head`."""
        return {"label_mode": self.label_mode, "partial_paths": self.partial_paths, "head": self.head}

    @property
    def is_coherent(self) -> bool:
        """Whether the head gives no node a larger probability than its parents."""
        return self.head != "independent"

    def decode(self, logits: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
        """Decodes logits [N, L] into label sets, bool [N, L]."""
        return decode(
            logits,
            taxonomy,
            method=self.method,
            threshold=None if self.method in UNTHRESHOLDED else self.thresholds,
            risk_threshold=self.risk_threshold if self.method == "risk" else None,
            **self.model_options,
        )

    def best_path(self, log_probs: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
        """Finds the paths [N, L] of the method `path`.

        For a coherent head it is the most probable path, for `independent` the one with the best mean log-probability.
        """
        find = most_probable_path if self.is_coherent else best_mean_path
        return find(log_probs, taxonomy, self.partial_paths)


def decode(
    logits: torch.Tensor,
    taxonomy: Taxonomy,
    label_mode: str,
    method: str | None = None,
    threshold: float | Sequence[float] | torch.Tensor | None = None,
    partial_paths: bool = False,
    head: str = "independent",
    risk_threshold: float | None = None,
) -> torch.Tensor:
    """Decodes logits into label sets.

    Args:
        logits (`torch.Tensor` of shape `[N, L]`): logit(p) of each node's probability.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode (`"single_path"` or `"multi_path"`).
        method (*optional*): `path` for single_path and `closure` for multi_path by default.

            - `"raw"` applies no correction. multi_path: all labels with p >= threshold. single_path with a coherent head:
              the path to the end node with the largest probability of being the end. single_path with `independent`: the
              best label of each level, cut after the first leaf of the taxonomy. It may contradict the hierarchy.
            - `"closure"`: raw, with all missing ancestors added.
            - `"prune"`: raw, without the labels that lack an ancestor.
            - `"path"` (single_path): the path to the best end node. With a coherent head it equals raw. With
              `independent`, the best end node has the largest mean log-probability over the levels of its path.
            - `"top_down"`. single_path: goes from the best root to its best child, and so on. The path ends at a leaf. With
              `partial_paths` and a coherent head, it also ends where ending is more probable than the best child.
              multi_path: as prune.
            - `"expected_f1"`: the most probable labels, as many as maximise
              2 * (sum of p over the set) / (size of the set + sum of all p). Each p is first lowered to the smallest
              probability of its ancestors.
            - `"risk"`: the labels with p >= `risk_threshold`, after each p is lowered to the smallest probability of its
              ancestors. In single_path, only labels of the path that `path` finds. A larger `risk_threshold` gives a subset
              ([`hcal_hf.calibrate_risk`] computes it).
        threshold (`float`, or a sequence or tensor of shape `[L]`, *optional*): the lowest probability of a predicted
            label, one for all labels or one per label. It is compared as log p >= log t, so 0 lets every label pass. The
            default is 0.5 for multi_path and none for single_path. With `path` and `top_down`, the path ends before its
            first label below the threshold. `expected_f1` and `risk` take none.
        partial_paths (`bool`): whether a path may end at an inner node.
        head (`str`): the model's head. All heads except `independent` are coherent.
        risk_threshold (`float`): for `"risk"` alone. If it is above 1, every set is empty.

    Returns:
        bool `torch.Tensor` of shape `[N, L]`.

    Raises:
        ValueError: for logits that are NaN or not floating-point numbers (the message names document and label), an unknown
            method or label_mode, `path` with multi_path, a threshold outside 0 to 1 or of another shape, a
            threshold with `expected_f1` or `risk`, `risk` without `risk_threshold`, or another method with one.
    """
    if label_mode not in ("single_path", "multi_path"):
        raise ValueError(f'label_mode must be "single_path" or "multi_path", got {label_mode!r}.')
    check_scores(logits, taxonomy)
    method = default_method(label_mode) if method is None else method
    if method not in METHODS:
        raise ValueError(f"decode must be one of {', '.join(METHODS)}, got {method!r}.")
    if (method == "risk") != (risk_threshold is not None):
        raise ValueError(
            f'decode="risk" and risk_threshold belong together, got decode={method!r} and risk_threshold={risk_threshold}:'
            " calibrate_risk gives the threshold for a risk level."
        )
    if method in UNTHRESHOLDED and threshold is not None:
        raise ValueError(f'decode="{method}" chooses its own size of the set: leave threshold out.')
    single = label_mode == "single_path"
    if method == "path" and not single:
        raise ValueError('decode="path" needs label_mode="single_path"; use "closure" or "raw" with multi_path.')
    if threshold is None and not single and method not in UNTHRESHOLDED:
        threshold = 0.5
    working = torch.promote_types(logits.dtype, torch.float32)
    lowest = None
    if threshold is not None:
        lowest = log_thresholds(threshold, logits.new_empty(0, logits.shape[-1], dtype=working))
    decision = Decision(label_mode, partial_paths, head, None, method, risk_threshold)
    logits = logits.detach()
    documents = max(_CACHED_PAIRS // max(logits.shape[-1], 1), 1)
    if logits.device.type != "cpu" or len(logits) <= documents:
        return _decode_log_probs(F.logsigmoid(logits.to(working)), taxonomy, decision, lowest)
    label_sets = torch.empty(logits.shape, dtype=torch.bool)
    for chunk, target in zip(logits.split(documents), label_sets.split(documents)):
        target.copy_(_decode_log_probs(F.logsigmoid(chunk.to(working)), taxonomy, decision, lowest))
    return label_sets


def check_scores(scores: torch.Tensor, taxonomy: Taxonomy, what: str = "logits") -> None:
    """Checks that the scores of N documents are numbers.

    Args:
        scores (`torch.Tensor` of shape `[N, L]`): logits or other scores of the labels.
        taxonomy ([`Taxonomy`]): the hierarchy.
        what: the name of the scores in the message.

    Raises:
        ValueError: for the first score that is NaN, with its document and label, for integers, and for another shape.
    """
    if not isinstance(scores, torch.Tensor):
        raise ValueError(f"{what} must be a torch.Tensor, got {type(scores).__name__}: use torch.as_tensor.")
    if not hasattr(taxonomy, "num_labels"):  # a model repository has a class of its own
        raise ValueError(f"taxonomy must be a Taxonomy, got {type(taxonomy).__name__}.")
    if scores.dim() != 2 or scores.shape[1] != taxonomy.num_labels:
        raise ValueError(
            f"{what} must have the shape [documents, {taxonomy.num_labels}], one per label, got {list(scores.shape)}."
        )
    if not scores.is_floating_point():
        raise ValueError(f"{what} must be floating-point numbers, got {scores.dtype}.")
    bad = torch.isnan(scores)
    if bad.any():
        row, node = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{what}: document {row} has NaN for the label {taxonomy.labels[node]!r}, and {int(bad.any(dim=1).sum()):,} of "
            f"{len(scores):,} documents have NaN for a label. Check the weights of the model, or compute in a wider dtype."
        )


def _decode_log_probs(
    log_probs: torch.Tensor, taxonomy: Taxonomy, decision: Decision, lowest: torch.Tensor | None
) -> torch.Tensor:
    """Decodes log-probabilities [N, L] by a decision with a valid method. `lowest` holds its log-thresholds, [] or [L]."""
    method = decision.method
    if method == "expected_f1":
        return best_expected_f1(log_probs, taxonomy)
    if method == "risk":
        return risk_answers(log_probs, taxonomy, decision)
    single, coherent = decision.label_mode == "single_path", decision.is_coherent
    if single and method == "top_down":
        label_sets = greedy_path(log_probs, taxonomy, decision.partial_paths and coherent)
    elif single and (coherent or method == "path"):
        label_sets = decision.best_path(log_probs, taxonomy)
    elif single:
        label_sets = best_of_each_level(log_probs, taxonomy)
    else:
        label_sets = torch.ones_like(log_probs, dtype=torch.bool)
    if lowest is not None:
        label_sets = label_sets & (log_probs >= lowest)
    if method == "closure":
        return add_ancestors(label_sets, taxonomy)
    return label_sets if method == "raw" else cut_incoherent(label_sets, taxonomy)


def log_thresholds(threshold: float | Sequence[float] | torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Computes log t of shape `[]` or `[L]`, in the dtype and on the device of log-probabilities [N, L].

    Raises:
        ValueError: for a threshold outside 0 to 1, and for a shape other than `[]` and `[L]`.
    """
    try:
        values = torch.as_tensor(threshold, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"threshold must be a number, or one number for each label, got {threshold!r}.") from None
    if values.ndim and values.shape != log_probs.shape[1:]:
        raise ValueError(
            f"threshold must be one number, or one for each of the {log_probs.shape[1]} labels, got shape "
            f"{tuple(values.shape)}."
        )
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise ValueError(f"threshold must lie between 0 and 1, got {values[outside].flatten()[0].item()}.")
    return values.log().to(log_probs)


def risk_answers(log_probs: torch.Tensor, taxonomy: Taxonomy, decision: Decision) -> torch.Tensor:
    """Computes the label sets [N, L] of the method `risk` ([`decode`]).

    Raises:
        ValueError: for a risk threshold that is negative, nan or None.
    """
    threshold = decision.risk_threshold
    if threshold is None or not threshold >= 0:
        raise ValueError(f"risk_threshold must be 0 or above (above 1: no answers), got {threshold}.")
    answers = lower_to_ancestors(log_probs, taxonomy) >= torch.tensor(threshold, dtype=torch.float64).log().item()
    return answers & decision.best_path(log_probs, taxonomy) if decision.label_mode == "single_path" else answers


def best_of_each_level(log_probs: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Picks the best label of each level [N, L], down to the first that is a leaf of the taxonomy."""
    chosen = torch.zeros_like(log_probs, dtype=torch.bool)
    is_leaf = _indices(taxonomy, log_probs.device).is_leaf
    goes_on = torch.ones(len(log_probs), 1, dtype=torch.bool, device=log_probs.device)
    for level in taxonomy.levels:
        best = log_probs[:, level].argmax(dim=1, keepdim=True)
        chosen[:, level] = torch.zeros_like(chosen[:, level]).scatter(1, best, goes_on)
        goes_on = goes_on & ~is_leaf[level][best]
    return chosen


def best_mean_path(log_probs: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool = False) -> torch.Tensor:
    """Finds the path [N, L] with the largest mean log-probability over its levels.

    A path ends at a leaf or, with `partial_paths`, at any node. The taxonomy must be a forest.
    """
    sums = log_probs.clone()
    for parents, children in _edges_by_level(taxonomy, log_probs.device):
        sums[:, children] += sums[:, parents]
    lengths = _indices(taxonomy, log_probs.device).path_lengths.to(sums)
    return _path_to_best(sums / lengths, taxonomy, partial_paths)


def most_probable_path(log_probs: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool = False) -> torch.Tensor:
    """Finds the path [N, L] to the most probable end node, for coherent probabilities of a forest."""
    return _path_to_best(end_probabilities(log_probs, taxonomy, partial_paths), taxonomy, partial_paths)


def end_probabilities(log_probs: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool) -> torch.Tensor:
    """Computes the probability [N, L] that a path ends at a node.

    It is the probability of the node. With `partial_paths`, the probabilities of its children are subtracted.
    """
    probabilities = log_probs.exp()
    if not partial_paths:
        return probabilities
    indices = _indices(taxonomy, log_probs.device)
    children = probabilities[:, indices.edge_children]
    return probabilities.index_add(1, indices.edge_parents, children, alpha=-1)


def _path_to_best(values: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool) -> torch.Tensor:
    """Finds the path [N, L] to the end node with the largest value, in a forest."""
    if not partial_paths:
        values = values.masked_fill(~_indices(taxonomy, values.device).is_leaf, float("-inf"))
    parents = _indices(taxonomy, values.device).parents
    node = values.argmax(dim=1, keepdim=True)
    chosen = torch.zeros_like(values, dtype=torch.bool).scatter_(1, node, True)
    for _ in taxonomy.levels[1:]:
        above = parents[node]
        node = torch.where(above < 0, node, above)
        chosen.scatter_(1, node, True)
    return chosen


def greedy_path(log_probs: torch.Tensor, taxonomy: Taxonomy, may_stop: bool = False) -> torch.Tensor:
    """Goes from the best root to its best child, and so on [N, L], in a forest.

    With `may_stop`, which needs coherent probabilities, a path ends where ending is more probable than the best child.
    """
    chosen = torch.zeros_like(log_probs, dtype=torch.bool)
    ends = end_probabilities(log_probs, taxonomy, partial_paths=True) if may_stop else None
    parents = _indices(taxonomy, log_probs.device).parents
    current = parents.new_full((len(log_probs), 1), -1)
    for k, level in enumerate(taxonomy.levels):
        below = log_probs[:, level].masked_fill(parents[level] != current, float("-inf"))
        value, best = below.max(dim=1, keepdim=True)
        goes_on = value > float("-inf")
        if ends is not None and k:
            goes_on &= value.exp() >= ends.gather(1, current.clamp(min=0))
        chosen[:, level] = torch.zeros_like(chosen[:, level]).scatter(1, best, goes_on)
        # No node has the parent -2, so a path that has ended cannot continue.
        current = torch.where(goes_on, best + level.start, -2)
    return chosen


def best_expected_f1(log_probs: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Finds the sets [N, L] that maximise 2 * (sum of p over the set) / (size of the set + sum of all p).

    Each p is first lowered to the smallest probability of its ancestors. The best set is then a prefix of the labels sorted
    by p, and every prefix contains all ancestors of its labels.
    """
    p = lower_to_ancestors(log_probs, taxonomy).exp()
    total = p.sum(dim=1, keepdim=True)
    most, best = p.max(dim=1, keepdim=True)
    # Dinkelbach's iteration: the best set for a value F is {p > F / 2}, and F rises to its maximum in a few rounds.
    half = most / (1 + total)
    while True:
        label_sets = p > half
        value = (p * label_sets).sum(dim=1, keepdim=True) / (label_sets.sum(dim=1, keepdim=True) + total)
        if not (value > half).any():
            break
        half = torch.maximum(value, half)
    return label_sets.scatter_(1, best, True)


def lower_to_ancestors(values: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Lowers the value of each node [N, L] to the smallest value of its ancestors, so that no child is above a parent."""
    lowest = values.clone()
    for level, (parents, children) in zip(taxonomy.levels[1:], _edges_by_level(taxonomy, values.device)):
        if taxonomy.is_forest:  # the children are the nodes of the level, each once and in order
            lowest[:, level] = torch.minimum(lowest[:, level], lowest[:, parents])
            continue
        lowest.scatter_reduce_(1, children.expand(len(lowest), -1), lowest[:, parents], reduce="amin")
    return lowest


def raise_to_descendants(values: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Raises the value of each node [N, L] to the largest value of its descendants, so that no child is above a parent."""
    highest = values.clone()
    for parents, children in reversed(_edges_by_level(taxonomy, values.device)):
        highest.scatter_reduce_(1, parents.expand(len(highest), -1), highest[:, children], reduce="amax")
    return highest


def add_ancestors(label_sets: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Adds all missing ancestors to label sets [N, L]."""
    closed = label_sets.to(torch.uint8)
    for parents, children in reversed(_edges_by_level(taxonomy, label_sets.device)):
        closed.scatter_reduce_(1, parents.expand(len(closed), -1), closed[:, children], reduce="amax")
    return closed.bool()


def cut_incoherent(label_sets: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Removes the labels that lack an ancestor from label sets [N, L]."""
    kept = label_sets.to(torch.uint8)
    for parents, children in _edges_by_level(taxonomy, label_sets.device):
        kept.scatter_reduce_(1, children.expand(len(kept), -1), kept[:, parents], reduce="amin")
    return kept.bool()


class _Indices(NamedTuple):
    """Holds the index tensors of a taxonomy on one device. `parents` [L] is -1 for roots and valid for a forest only."""

    edge_parents: torch.Tensor
    edge_children: torch.Tensor
    parents: torch.Tensor
    is_leaf: torch.Tensor
    path_lengths: torch.Tensor


def _indices(taxonomy: Taxonomy, device: torch.device) -> _Indices:
    """Copies the index tensors of a taxonomy to a device once. They are freed together with the taxonomy."""
    cache: dict[torch.device, _Indices] = vars(taxonomy).setdefault("_index_tensors", {})
    if device not in cache:
        parents = np.full(taxonomy.num_labels, -1)
        parents[taxonomy.edges[:, 1]] = taxonomy.edges[:, 0]
        arrays = (*taxonomy.edges.T, parents, taxonomy.is_leaf, taxonomy.depths + 1)
        with torch.inference_mode(False):  # tensors made in inference mode would fail in a later backward pass
            cache[device] = _Indices(*(torch.from_numpy(array.copy()).to(device) for array in arrays))
    return cache[device]


def _edges_by_level(taxonomy: Taxonomy, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Lists (parents, children) of the edges into each level below the roots. Edges are sorted by child, hence by level."""
    indices = _indices(taxonomy, device)
    return [(indices.edge_parents[part], indices.edge_children[part]) for part in taxonomy.edge_slices[1:]]

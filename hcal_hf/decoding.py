"""From node probabilities to sets of labels.

Decoders take logits [N, L] (sigmoid(logits) is each node's probability) and return bool masks [N, L]. They work level
by level on edge lists, for all documents at once.
"""

import torch
from torch.nn import functional as F

from .taxonomy import Taxonomy

METHODS = ("raw", "closure", "path")


def default_method(label_mode: str) -> str:
    """`path` for single_path, `closure` for multi_path."""
    return "path" if label_mode == "single_path" else "closure"


def decode(
    logits: torch.Tensor,
    taxonomy: Taxonomy,
    label_mode: str,
    method: str | None = None,
    threshold: float | None = None,
    partial_paths: bool = False,
) -> torch.Tensor:
    """The predicted label sets.

    Args:
        logits (`torch.Tensor` of shape `[N, L]`): logit(p) of each node's probability.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode (`"single_path"` or `"multi_path"`).
        method (*optional*):
            `"raw"`: the model's own decision. multi_path: p >= threshold. single_path: the best label of each level, cut
            after the first that is a leaf of the taxonomy; it may contradict the hierarchy.
            `"closure"`: raw, with all missing ancestors added; never contradicts.
            `"path"` (single_path): the path with the best mean log-probability over its levels, among the paths to all
            end nodes; never contradicts.
            Default: `path` for single_path, `closure` for multi_path.
        threshold (`float`, *optional*): lowest probability of a predicted label; 0.5 for multi_path, none for
            single_path. With `path`, the path ends before its first label below the threshold.
        partial_paths (`bool`): whether a path may end at an inner node (only `path` asks).

    Returns:
        bool `torch.Tensor` of shape `[N, L]`.

    Raises:
        ValueError: for an unknown method, `path` with multi_path, or a threshold outside 0 to 1.
    """
    method = default_method(label_mode) if method is None else method
    if method not in METHODS:
        raise ValueError(f"decode must be one of {', '.join(METHODS)}, got {method!r}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
    log_probs = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    if method == "path":
        if label_mode != "single_path":
            raise ValueError('decode="path" needs label_mode="single_path"; use "closure" or "raw" with multi_path.')
        chosen = best_path(log_probs, taxonomy, partial_paths)
        if threshold is not None:
            chosen = _cut_incoherent(chosen & (log_probs.exp() >= threshold), taxonomy)
        return chosen
    if label_mode == "multi_path":
        chosen = log_probs.exp() >= (0.5 if threshold is None else threshold)
    else:
        chosen = best_of_each_level(log_probs, taxonomy)
        if threshold is not None:
            chosen &= log_probs.exp() >= threshold
    return add_ancestors(chosen, taxonomy) if method == "closure" else chosen


def best_of_each_level(log_probs: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """The best label of each level [N, L], cut after the first predicted label that is a leaf of the taxonomy."""
    chosen = torch.zeros_like(log_probs, dtype=torch.bool)
    is_leaf = torch.from_numpy(taxonomy.is_leaf).to(log_probs.device)
    goes_on = torch.ones(len(log_probs), 1, dtype=torch.bool, device=log_probs.device)
    for level in taxonomy.levels:
        best = log_probs[:, level].argmax(dim=1, keepdim=True)
        chosen[:, level] = torch.zeros_like(chosen[:, level]).scatter(1, best, goes_on)
        goes_on = goes_on & ~is_leaf[level][best]
    return chosen


def best_path(log_probs: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool = False) -> torch.Tensor:
    """The path [N, L] whose mean log-probability over its levels is best, among the paths to all end nodes: the leaves,
    or with `partial_paths` every node. For a forest."""
    sums = log_probs.clone()
    for parents, children in _edges_by_level(taxonomy, log_probs.device):
        sums[:, children] += sums[:, parents]
    lengths = torch.from_numpy(taxonomy.depths + 1).to(sums)
    means = sums / lengths
    if not partial_paths:
        inner = torch.from_numpy(~taxonomy.is_leaf).to(sums.device)
        means = means.masked_fill(inner, float("-inf"))
    ends = torch.zeros_like(log_probs, dtype=torch.bool).scatter_(1, means.argmax(dim=1, keepdim=True), True)
    return add_ancestors(ends, taxonomy)


def add_ancestors(chosen: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """The sets [N, L] with all missing ancestors added, from the deepest level up."""
    closed = chosen.to(torch.uint8)
    for parents, children in reversed(_edges_by_level(taxonomy, chosen.device)):
        closed.scatter_reduce_(1, parents.expand(len(closed), -1), closed[:, children], reduce="amax")
    return closed.bool()


def _cut_incoherent(chosen: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """The sets [N, L] without the labels that lack an ancestor."""
    kept = chosen.to(torch.uint8)
    for parents, children in _edges_by_level(taxonomy, chosen.device):
        kept.scatter_reduce_(1, children.expand(len(kept), -1), kept[:, parents], reduce="amin")
    return kept.bool()


def _edges_by_level(taxonomy: Taxonomy, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(parents, children) of the edges into each level below the roots. Edges are sorted by child, hence by level."""
    edges = torch.from_numpy(taxonomy.edges.copy()).to(device)
    starts = [level.start for level in taxonomy.levels[1:]] + [taxonomy.num_labels]
    cuts = torch.searchsorted(edges[:, 1].contiguous(), torch.tensor(starts, device=device)).tolist()
    return [(edges[low:high, 0], edges[low:high, 1]) for low, high in zip(cuts, cuts[1:])]

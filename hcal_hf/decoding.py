"""From node probabilities to sets of labels.

Decoders take logits [N, L] (sigmoid(logits) is each node's probability) and return bool masks [N, L]. They work level
by level on edge lists, for all documents at once. Whatever the probabilities, every decoder but `raw` returns sets that
agree with the hierarchy.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .taxonomy import Taxonomy

METHODS = ("raw", "closure", "prune", "path", "top_down", "expected_f1", "risk")
# These choose the size of the set themselves and take no thresholds.
UNTHRESHOLDED = ("expected_f1", "risk")
# Cells (document x label) that are decoded at a time on a CPU: what its caches hold, so that memory is read once.
_CELLS = 2**18


def default_method(label_mode: str) -> str:
    """`path` for single_path, `closure` for multi_path."""
    return "path" if label_mode == "single_path" else "closure"


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
    """The predicted label sets.

    Args:
        logits (`torch.Tensor` of shape `[N, L]`): logit(p) of each node's probability.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode (`"single_path"` or `"multi_path"`).
        method (*optional*):
            `"raw"`: the model's own decision. multi_path: p >= threshold. single_path, coherent head: the path to the end
            node with the largest probability of being the end. single_path, `independent`: the best label of each level,
            cut after the first that is a leaf of the taxonomy; it may contradict the hierarchy.
            `"closure"`: raw, with all missing ancestors added.
            `"prune"`: raw, without the labels that lack an ancestor.
            `"path"` (single_path): the path to the best end node. Coherent head: as raw. `independent`: by the mean
            log-probability over the path's levels.
            `"top_down"`: single_path: from the best root to the best child, and so on; ends at a leaf, or with
            `partial_paths` and a coherent head where ending is more probable than the best child. multi_path: as prune.
            `"expected_f1"`: the labels with the largest p, as many as maximise 2 * sum of p over the set / (its size +
            sum of all p), with p first lowered to its ancestors' smallest.
            `"risk"`: the labels whose p, lowered to its ancestors' smallest, is at least `risk_threshold`; in single_path
            only those of the path that `path` finds. The sets are nested in `risk_threshold`
            ([`hcal_hf.calibrate_risk`] finds it).
            Default: `path` for single_path, `closure` for multi_path.
        threshold (`float`, or a sequence or tensor of shape `[L]`, *optional*): lowest probability of a predicted label,
            for all or for each, compared as log p >= log t (0 lets every label pass); 0.5 for multi_path, none for
            single_path. With `path` and `top_down`, the path ends before its first label below its threshold;
            `expected_f1` and `risk` have none.
        partial_paths (`bool`): whether a path may end at an inner node.
        head (`str`): the model's head; all but `independent` are coherent.
        risk_threshold (`float`): for `"risk"` alone; above 1 every answer is empty.

    Returns:
        bool `torch.Tensor` of shape `[N, L]`.

    Raises:
        ValueError: for an unknown method, `path` with multi_path, a threshold outside 0 to 1, of another shape, or one for
            `expected_f1` or `risk`, and for `risk` without `risk_threshold` or any other method with one.
    """
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
    lowest = (
        None if threshold is None else log_thresholds(threshold, logits.new_empty(0, logits.shape[-1], dtype=working))
    )
    how = (taxonomy, label_mode, method, lowest, partial_paths, head, risk_threshold)
    logits = logits.detach()
    documents = max(_CELLS // max(logits.shape[-1], 1), 1)
    if logits.device.type != "cpu" or len(logits) <= documents:
        return _decode_log_probs(F.logsigmoid(logits.to(working)), *how)
    chosen = torch.empty(logits.shape, dtype=torch.bool)
    for some, part in zip(logits.split(documents), chosen.split(documents)):
        part.copy_(_decode_log_probs(F.logsigmoid(some.to(working)), *how))
    return chosen


def _decode_log_probs(
    log_probs: torch.Tensor,
    taxonomy: Taxonomy,
    label_mode: str,
    method: str,
    lowest: torch.Tensor | None,
    partial_paths: bool,
    head: str,
    risk_threshold: float | None,
) -> torch.Tensor:
    """[`decode`] of log-probabilities [N, L], with log-thresholds, of arguments that have been checked."""
    if method == "expected_f1":
        return best_expected_f1(log_probs, taxonomy)
    if risk_threshold is not None:
        return risk_answers(log_probs, taxonomy, label_mode, risk_threshold, partial_paths, head)
    single, coherent = label_mode == "single_path", head != "independent"
    if single and method == "top_down":
        chosen = greedy_path(log_probs, taxonomy, partial_paths and coherent)
    elif single and (coherent or method == "path"):
        chosen = best_path(log_probs, taxonomy, partial_paths, head)
    elif single:
        chosen = best_of_each_level(log_probs, taxonomy)
    else:
        chosen = torch.ones_like(log_probs, dtype=torch.bool)
    if lowest is not None:
        chosen = chosen & (log_probs >= lowest)
    if method == "closure":
        return add_ancestors(chosen, taxonomy)
    return chosen if method == "raw" else cut_incoherent(chosen, taxonomy)


def log_thresholds(threshold: float | Sequence[float] | torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """log t, of shape `[]` or `[L]`, to be compared with log-probabilities [N, L], in their dtype and on their device.

    Raises:
        ValueError: for a threshold outside 0 to 1, or neither one number nor one for each label.
    """
    values = torch.as_tensor(threshold, dtype=torch.float64, device="cpu").detach()
    if values.ndim and values.shape != log_probs.shape[1:]:
        raise ValueError(
            f"threshold must be one number, or one for each of the {log_probs.shape[1]} labels, got shape "
            f"{tuple(values.shape)}."
        )
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise ValueError(f"threshold must lie between 0 and 1, got {values[outside].flatten()[0].item()}.")
    return values.log().to(log_probs)


def best_path(log_probs: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool, head: str) -> torch.Tensor:
    """What `path` decides [N, L]: the most probable path for a coherent head, that of the best mean for `independent`."""
    find = best_mean_path if head == "independent" else most_probable_path
    return find(log_probs, taxonomy, partial_paths)


def risk_answers(
    log_probs: torch.Tensor,
    taxonomy: Taxonomy,
    label_mode: str,
    risk_threshold: float,
    partial_paths: bool = False,
    head: str = "independent",
) -> torch.Tensor:
    """What `risk` decides [N, L]; see [`decode`].

    Raises:
        ValueError: for a negative threshold or nan.
    """
    if not risk_threshold >= 0:
        raise ValueError(f"risk_threshold must be 0 or above (above 1: no answers), got {risk_threshold}.")
    answers = lower_to_ancestors(log_probs, taxonomy) >= torch.tensor(risk_threshold, dtype=torch.float64).log().item()
    return answers & best_path(log_probs, taxonomy, partial_paths, head) if label_mode == "single_path" else answers


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


def best_mean_path(log_probs: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool = False) -> torch.Tensor:
    """The path [N, L] whose mean log-probability over its levels is best, among the paths to all end nodes: the leaves,
    or with `partial_paths` every node. For a forest."""
    sums = log_probs.clone()
    for parents, children in _edges_by_level(taxonomy, log_probs.device):
        sums[:, children] += sums[:, parents]
    lengths = torch.from_numpy(taxonomy.depths + 1).to(sums)
    return _path_to_best(sums / lengths, taxonomy, partial_paths)


def most_probable_path(log_probs: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool = False) -> torch.Tensor:
    """The path [N, L] to the node that is most probably the end, for coherent probabilities of a forest."""
    return _path_to_best(end_probabilities(log_probs, taxonomy, partial_paths), taxonomy, partial_paths)


def end_probabilities(log_probs: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool) -> torch.Tensor:
    """The probability [N, L] that the path ends at a node: its own, less with `partial_paths` those of its children."""
    probabilities = log_probs.exp()
    if not partial_paths:
        return probabilities
    edges = torch.from_numpy(taxonomy.edges.copy()).to(log_probs.device)
    return probabilities.index_add(1, edges[:, 0], probabilities[:, edges[:, 1]], alpha=-1)


def _path_to_best(values: torch.Tensor, taxonomy: Taxonomy, partial_paths: bool) -> torch.Tensor:
    """The path to the end node of the largest value. For a forest."""
    if not partial_paths:
        inner = torch.from_numpy(~taxonomy.is_leaf).to(values.device)
        values = values.masked_fill(inner, float("-inf"))
    parents = _parents(taxonomy, values.device)
    node = values.argmax(dim=1, keepdim=True)
    chosen = torch.zeros_like(values, dtype=torch.bool).scatter_(1, node, True)
    for _ in taxonomy.levels[1:]:
        above = parents[node]
        node = torch.where(above < 0, node, above)
        chosen.scatter_(1, node, True)
    return chosen


def _parents(taxonomy: Taxonomy, device: torch.device) -> torch.Tensor:
    """The parent [L] of each node of a forest, -1 for roots."""
    parents = torch.full((taxonomy.num_labels,), -1, device=device)
    edges = torch.from_numpy(taxonomy.edges.copy()).to(device)
    parents[edges[:, 1]] = edges[:, 0]
    return parents


def greedy_path(log_probs: torch.Tensor, taxonomy: Taxonomy, may_stop: bool = False) -> torch.Tensor:
    """The best root, its best child, and so on [N, L]; with `may_stop` (coherent probabilities) the path ends where that
    is more probable than the best child. For a forest."""
    chosen = torch.zeros_like(log_probs, dtype=torch.bool)
    ends = end_probabilities(log_probs, taxonomy, partial_paths=True) if may_stop else None
    parents = _parents(taxonomy, log_probs.device)
    current = parents.new_full((len(log_probs), 1), -1)
    for k, level in enumerate(taxonomy.levels):
        below = log_probs[:, level].masked_fill(parents[level] != current, float("-inf"))
        value, best = below.max(dim=1, keepdim=True)
        goes_on = value > float("-inf")
        if ends is not None and k:
            goes_on &= value.exp() >= ends.gather(1, current.clamp(min=0))
        chosen[:, level] = torch.zeros_like(chosen[:, level]).scatter(1, best, goes_on)
        # No node has the parent -2: a path that has ended stays so.
        current = torch.where(goes_on, best + level.start, -2)
    return chosen


def best_expected_f1(log_probs: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """The sets [N, L] that maximise 2 * sum of p over the set / (its size + sum of all p), among the prefixes of the
    labels sorted by p; p is first lowered to the smallest of its ancestors', so that the prefixes hold all ancestors."""
    p = lower_to_ancestors(log_probs, taxonomy).exp()
    total = p.sum(dim=1, keepdim=True)
    most, best = p.max(dim=1, keepdim=True)
    # Dinkelbach's iteration: of value F, the best set is {p > F / 2}; from below, F rises to the maximum in a few rounds.
    half = most / (1 + total)
    while True:
        chosen = p > half
        found = (p * chosen).sum(dim=1, keepdim=True) / (chosen.sum(dim=1, keepdim=True) + total)
        if not (found > half).any():
            break
        half = torch.maximum(found, half)
    return chosen.scatter_(1, best, True)


def lower_to_ancestors(values: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Each node's value [N, L] lowered to the smallest of its ancestors': no child is above a parent."""
    lowest = values.clone()
    for parents, children in _edges_by_level(taxonomy, values.device):
        if taxonomy.is_forest:  # each node of the level once, in order
            level = slice(int(children[0]), int(children[-1]) + 1)
            lowest[:, level] = torch.minimum(lowest[:, level], lowest[:, parents])
            continue
        lowest.scatter_reduce_(1, children.expand(len(lowest), -1), lowest[:, parents], reduce="amin")
    return lowest


def raise_to_descendants(values: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Each node's value [N, L] raised to the largest of its descendants': no child is above a parent."""
    highest = values.clone()
    for parents, children in reversed(_edges_by_level(taxonomy, values.device)):
        highest.scatter_reduce_(1, parents.expand(len(highest), -1), highest[:, children], reduce="amax")
    return highest


def add_ancestors(chosen: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """The sets [N, L] with all missing ancestors added, from the deepest level up."""
    closed = chosen.to(torch.uint8)
    for parents, children in reversed(_edges_by_level(taxonomy, chosen.device)):
        closed.scatter_reduce_(1, parents.expand(len(closed), -1), closed[:, children], reduce="amax")
    return closed.bool()


def cut_incoherent(chosen: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """The sets [N, L] without the labels that lack an ancestor."""
    kept = chosen.to(torch.uint8)
    for parents, children in _edges_by_level(taxonomy, chosen.device):
        kept.scatter_reduce_(1, children.expand(len(kept), -1), kept[:, parents], reduce="amin")
    return kept.bool()


def _edges_by_level(taxonomy: Taxonomy, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(parents, children) of the edges into each level below the roots. Edges are sorted by child, hence by level."""
    edges = torch.from_numpy(taxonomy.edges.copy()).to(device)
    return [(edges[part, 0], edges[part, 1]) for part in taxonomy.edge_slices[1:]]

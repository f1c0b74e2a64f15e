"""Heads turn label scores into node probabilities and per-level losses.

A head works in log space and in at least float32. Level k of the hierarchy is task k. Heads loop over levels and work on
edges, so the largest tensors are [B, L]. Scores are stored label by label, with the documents of one label in a row, so
that sums over children and copies from parents move whole rows.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .configuration_hcal import HcalConfig
from .log_space import clamp_log_probs, segment_logsumexp, tempered
from .targets import Targets
from .taxonomy import Taxonomy


class HierarchicalHead(nn.Module):
    """Base class of the heads.

    Args:
        config ([`HcalConfig`]): its label_mode, partial_paths and prototype_temperature are used.
        taxonomy ([`Taxonomy`]): the hierarchy that `config` holds.
    """

    depths: torch.Tensor
    starts: torch.Tensor
    widths: torch.Tensor
    offsets: torch.Tensor

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__()
        self.taxonomy = taxonomy
        self.temperature = float(config.prototype_temperature)
        self.num_tasks = len(taxonomy.levels)
        self.level_sizes = [level.stop - level.start for level in taxonomy.levels]
        for name, value in self.hierarchy_buffers().items():
            self.register_buffer(name, value, persistent=False)

    def hierarchy_buffers(self) -> dict[str, torch.Tensor]:
        """Builds the buffers that follow from the hierarchy. They are not saved; loading a model builds them again.

        `depths` [L]: the depth of each node; `offsets` [L]: its index within its level; `starts` [D] and `widths` [D]: the
        first node and the number of nodes of each level.
        """
        depths = torch.from_numpy(self.taxonomy.depths.copy())
        starts = torch.tensor([level.start for level in self.taxonomy.levels], dtype=torch.int64)
        widths = torch.tensor([level.stop - level.start for level in self.taxonomy.levels], dtype=torch.int64)
        offsets = torch.arange(self.taxonomy.num_labels) - starts[depths]
        return {"depths": depths, "offsets": offsets, "starts": starts, "widths": widths}

    def initial_values(self) -> dict[str, float]:
        """Returns the initial value of each parameter of the head."""
        return {}

    def scores(self, products: torch.Tensor) -> torch.Tensor:
        """Computes label scores [B, L] from the cosines or, with linear scores, the inner products [B, L] of the
        prototypes."""
        return products / self.temperature

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        """Computes the log-probabilities [B, L] of the nodes, at most -1e-7.

        All scores, also those for stopping, are first divided by `score_temperature`.
        """
        raise NotImplementedError

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Computes the mean loss of each level [T]. It is 0 for a level that no document of the batch reaches."""
        raise NotImplementedError

    def counts(self, targets: Targets) -> torch.Tensor:
        """Computes the denominators [T] of `losses`, int64. They depend only on the labels."""
        raise NotImplementedError

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        """Computes -log P(labels), summed over the documents.

        Scores are first divided by `score_temperature`. The result is convex in 1 / temperature, except for
        `lookahead_sigmoid`. A coherent single_path head gives the likelihood of the end nodes. The other heads give each
        level or label its own probability; their result is the sum over the levels or over the (document, label) pairs
        that `losses` uses.
        """
        losses = self.losses(tempered(scores, score_temperature), targets)
        return (losses * self.counts(targets)).sum()


class LevelSoftmaxHead(HierarchicalHead):
    """The head `independent` for single_path: one softmax per level over cosine / tau, as in HCAL.

    A document contributes to the levels that its path reaches. The levels may contradict each other.
    """

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        scores = tempered(scores, score_temperature)
        by_level = [F.log_softmax(scores[:, level], dim=1) for level in self.taxonomy.levels]
        return clamp_log_probs(torch.cat(by_level, dim=1))

    def _at_levels(self, targets: Targets) -> torch.Tensor:
        return targets.derived("at_levels", lambda: targets.at_levels(self.taxonomy.levels, self.depths, self.offsets))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        at_levels = self._at_levels(targets)
        sums = [
            F.cross_entropy(scores[:, level], at_levels[:, k], ignore_index=-100, reduction="sum")
            for k, level in enumerate(self.taxonomy.levels)
        ]
        return torch.stack(sums) / self.counts(targets).clamp(min=1)

    def counts(self, targets: Targets) -> torch.Tensor:
        return (self._at_levels(targets) >= 0).sum(dim=0)


# The weight of a node's children in the score of a lookahead head.
_FADING = 0.5
# The weights of the children of top-level nodes and of all other nodes, by head.
_CARRIES = {"conditional_softmax": (0.0, 0.0), "lookahead_softmax": (1.0, _FADING), "path_softmax": (1.0, 1.0)}


class PathSteps(NamedTuple):
    """The steps of single-path documents, each [D, B].

    Attributes:
        nodes (int64): the index of the document's node within each level; any index where there is none.
        families (int64): the index of the siblings among which the step is made, within the level.
        ends (bool): the path stops at an inner node of the level above.
        taken (bool): the document makes a step into this level, or stops just above it.
    """

    nodes: torch.Tensor
    families: torch.Tensor
    ends: torch.Tensor
    taken: torch.Tensor


class SiblingSoftmaxHead(HierarchicalHead):
    """The heads `conditional_softmax`, `path_softmax` and `lookahead_softmax` for single_path.

    The probability of a node is the probability of its parent times a softmax among the node and its siblings. Each node
    v has a value u_v = s_v + carry * lse_v. Here lse_v is the log-sum-exp of the values of its children and, with
    partial_paths, of its stop score. The softmax runs over the values of siblings.

    - carry = 0, `conditional_softmax`: a softmax over the siblings' own scores. The loss of level k is the cross-entropy
      among siblings, over the documents whose path reaches a node of depth k - 1 with children.
    - carry = 1, `path_softmax`: equal to one softmax over all end nodes, where the score of an end node is the sum of s
      over its path. The loss of level k is -log of the true node's probability.
    - carry = 1 at the top level and 1/2 below it, `lookahead_softmax`: the scores of the children influence the choice of
      a node, by half as much with each further level, so that the many scores of a deep branch do not outweigh the node's
      own. With two levels it equals `path_softmax`. It has the losses of `path_softmax`.

    With partial_paths each inner node has a learned stop score, initially 0, that competes with its children. A document
    that ends at an inner node has "stop" as its target at the next level.
    """

    parents: torch.Tensor
    rank: torch.Tensor
    segments: torch.Tensor
    inner: torch.Tensor
    inner_starts: torch.Tensor

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        # The inner nodes of each level among all inner nodes, as sizes that tracers know in advance.
        inner_sizes = [int((~taxonomy.is_leaf[level]).sum()) for level in taxonomy.levels]
        super().__init__(config, taxonomy)
        self.inner_slices = _slices_of(inner_sizes)
        top, below = _CARRIES[config.head]
        self.carries = [top] + [below] * (self.num_tasks - 1)
        self.stop = nn.Parameter(torch.empty(int((~taxonomy.is_leaf).sum()))) if config.partial_paths else None

    def hierarchy_buffers(self) -> dict[str, torch.Tensor]:
        taxonomy = self.taxonomy
        shared = super().hierarchy_buffers()
        starts = shared["starts"]
        parents = torch.full((taxonomy.num_labels,), -1)
        parents[torch.from_numpy(taxonomy.edges[:, 1].copy())] = torch.from_numpy(taxonomy.edges[:, 0].copy())
        inner = torch.from_numpy(~taxonomy.is_leaf)
        # The position of each inner node among all inner nodes; -1 for leaves.
        rank = torch.where(inner, inner.cumsum(0) - 1, -1)
        # segments: the position of each node's parent among the inner nodes of its level, -1 for roots.
        # positions: the index of each inner node within its level.
        segments, positions = np.full(taxonomy.num_labels, -1), [np.zeros(0, dtype=np.int64)]
        for level, into in zip(taxonomy.levels, taxonomy.edge_slices[1:]):
            positions.append(np.flatnonzero(~taxonomy.is_leaf[level]))
            above, nodes = taxonomy.edges[into].T
            segments[nodes] = np.searchsorted(positions[-1] + level.start, above)
        return {
            **shared,
            "parents": parents,
            "rank": rank,
            "segments": torch.from_numpy(segments),
            "inner": torch.from_numpy(np.concatenate(positions)),
            "inner_starts": inner.cumsum(0)[starts] - inner[starts].long(),
        }

    def initial_values(self) -> dict[str, float]:
        return {"stop": 0.0}

    def _values(
        self, scores: torch.Tensor, score_temperature: float = 1.0
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Computes the values u of each level [n_k, B] and the log-sum-exp of the siblings in each level.

        The log-sum-exp is [1, B] for the roots and [I, B] for the children, with the stop scores, of the I inner nodes of
        the level above.
        """
        levels = self.taxonomy.levels
        scores = tempered(scores, score_temperature)
        stop_scores = self._stop_scores(score_temperature)
        values = list(scores.T.split(self.level_sizes))
        sums: list[torch.Tensor] = []
        for k in range(len(levels) - 2, -1, -1):
            inner = self.inner[self.inner_slices[k]]
            lse = segment_logsumexp(values[k + 1], self.segments[levels[k + 1]], len(inner))
            if stop_scores is not None:
                lse = torch.logaddexp(lse, stop_scores[self.inner_slices[k]].to(lse)[:, None])
            sums.append(lse)
            if self.carries[k]:
                values[k] = values[k].index_add(0, inner, lse, alpha=self.carries[k])
        return values, [values[0].logsumexp(dim=0, keepdim=True), *reversed(sums)]

    def _stop_scores(self, score_temperature: float) -> torch.Tensor | None:
        return None if self.stop is None else tempered(self.stop, score_temperature)

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        values, sums = self._values(scores, score_temperature)
        log_probs = [values[0] - sums[0]]
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            # log P(child | parent) of an only child is 0 and must not become positive by rounding.
            conditional = (values[k] - sums[k].index_select(0, self.segments[level])).clamp(max=0)
            parents = self.parents[level] - self.taxonomy.levels[k - 1].start
            log_probs.append(log_probs[-1].index_select(0, parents) + conditional)
        return clamp_log_probs(torch.cat(log_probs)).T.contiguous()

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        steps, taken = self._steps(scores, targets)
        if any(self.carries):  # log P(node) instead of log P(node | parent)
            steps = torch.where(taken, steps.cumsum(dim=1), 0.0)
        return -steps.sum(dim=0) / taken.sum(dim=0).clamp(min=1)

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        # The probabilities of the steps of a path multiply to the probability of its end node.
        return -self._steps(scores, targets, score_temperature)[0].sum()

    def _steps(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the log-probability of each step of the true paths [B, D], and which steps are taken [B, D], bool.

        A step has log P(node at level k | its parent), or that of stopping where the path ends at an inner node, and 0
        below the end.
        """
        values, sums = self._values(scores, score_temperature)
        stop_scores = self._stop_scores(score_temperature)
        steps = self._path_steps(targets)
        chosen, totals = [], []
        for k in range(self.num_tasks):
            family = steps.families[k][None]
            value = values[k].gather(0, steps.nodes[k][None])
            if k and stop_scores is not None:
                value = torch.where(steps.ends[k], stop_scores[self.inner_slices[k - 1]][family].to(value), value)
            chosen.append(value)
            totals.append(sums[k].gather(0, family))
        log_probs = torch.where(steps.taken, torch.cat(chosen) - torch.cat(totals), 0.0)
        return log_probs.T, steps.taken.T

    def _path_steps(self, targets: Targets) -> PathSteps:
        return targets.derived("path_steps", lambda: self._make_path_steps(targets))

    def _make_path_steps(self, targets: Targets) -> PathSteps:
        at_levels = targets.at_levels(self.taxonomy.levels, self.depths, self.offsets).T
        nodes = at_levels.clamp(min=0)
        is_node = at_levels >= 0
        families = self.segments[nodes + self.starts[:, None]].clamp(min=0)
        ends = torch.zeros_like(is_node)
        if self.stop is not None and self.num_tasks > 1:
            # The position of the node above among all inner nodes, -1 if it is a leaf.
            rank = self.rank[nodes[:-1] + self.starts[:-1, None]]
            ends[1:] = is_node[:-1] & ~is_node[1:] & (rank >= 0)
            families[1:] = torch.where(ends[1:], rank - self.inner_starts[:-1, None], families[1:])
        return PathSteps(nodes, families, ends, is_node | ends)

    def counts(self, targets: Targets) -> torch.Tensor:
        return self._path_steps(targets).taken.sum(dim=1)


class SigmoidHead(HierarchicalHead):
    """Base class of the multi_path heads.

    With cosines, scores are a * cosine + b with a learned scale a, initially 1 / tau, and learned biases b. Linear scores
    already contain both.
    """

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__(config, taxonomy)
        is_cosine = config.score_function == "cosine"
        self.scale = nn.Parameter(torch.empty(())) if is_cosine else None
        self.bias = nn.Parameter(torch.empty(taxonomy.num_labels)) if is_cosine else None

    def initial_values(self) -> dict[str, float]:
        return {"scale": 1.0 / self.temperature, "bias": 0.0}

    def scores(self, products: torch.Tensor) -> torch.Tensor:
        if self.scale is None or self.bias is None:
            return super().scores(products)
        return self.scale.to(products) * products + self.bias.to(products)


class LabelSigmoidHead(SigmoidHead):
    """The head `independent` for multi_path: one sigmoid per label.

    The loss of level k is the binary cross-entropy, averaged over its (document, label) pairs.
    """

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        return clamp_log_probs(F.logsigmoid(tempered(scores, score_temperature)))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        losses = F.binary_cross_entropy_with_logits(scores, targets.multi_hot.to(scores), reduction="none")
        sums = [losses[:, level].sum() for level in self.taxonomy.levels]
        return torch.stack(sums) / self.counts(targets).clamp(min=1)

    def counts(self, targets: Targets) -> torch.Tensor:
        return len(targets.labels) * self.widths


class ConditionalSigmoidHead(SigmoidHead):
    """The head `conditional_sigmoid` for multi_path: P(c) = min over the parents p of P(p) * sigmoid(s_c).

    The loss of level k is the binary cross-entropy, averaged over the (document, label) pairs whose parents are all true.
    On a forest, siblings are independent given their parent. On a DAG, P(c) is an upper bound (comonotone parents) and not
    a joint distribution.
    """

    edges: torch.Tensor

    def hierarchy_buffers(self) -> dict[str, torch.Tensor]:
        edges = torch.from_numpy(self.taxonomy.edges.copy())
        return {**super().hierarchy_buffers(), "edges": edges}

    def _edges_into(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (parents, index of the child within its level) of the edges into level k, sorted by child."""
        level = self.taxonomy.levels[k]
        edges = self.edges[self.taxonomy.edge_slices[k]]
        return edges[:, 0], edges[:, 1] - level.start

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        own = F.logsigmoid(tempered(scores, score_temperature)).T
        log_probs = clamp_log_probs(own[self.taxonomy.levels[0]])
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            parents, children = self._edges_into(k)
            lowest = self._lowest(log_probs.index_select(0, parents), children, level.stop - level.start)
            log_probs = torch.cat([log_probs, lowest + own[level]])
        return log_probs.T.contiguous()

    def _lowest(self, values: torch.Tensor, children: torch.Tensor, size: int) -> torch.Tensor:
        """Computes the lowest value [size, B] over the edges of each child.

        `values` [E, B] holds a value of at most 1 for each edge, sorted by child.
        """
        if len(children) == size:  # one parent each
            return values
        columns = values.shape[1]  # len() would be a constant to torch.export
        ones = values.new_ones((size, columns))
        return ones.scatter_reduce(0, children[:, None].expand(-1, columns), values, reduce="amin")

    def _has_true_parents(self, targets: Targets) -> torch.Tensor:
        """Returns 1.0 for the pairs whose parents are all true and 0.0 elsewhere, [L, B]."""

        def compute() -> torch.Tensor:
            roots, columns = self.taxonomy.levels[0].stop, targets.multi_hot.T
            parents, children = self.edges[:, 0], self.edges[:, 1] - roots
            below = self._lowest(columns.index_select(0, parents), children, len(columns) - roots)
            return torch.cat([torch.ones_like(columns[:roots]), below])

        return targets.derived("has_true_parents", compute)

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        multi_hot, counted = (pairs.to(scores) for pairs in (targets.multi_hot.T, self._has_true_parents(targets)))
        # Binary cross-entropy in fewer passes over memory than torch's own.
        losses = torch.addcmul(F.softplus(scores.T), multi_hot, scores.T, value=-1) * counted
        sums = torch.stack([level.sum() for level in losses.split(self.level_sizes)])
        return sums / self.counts(targets).clamp(min=1)

    def counts(self, targets: Targets) -> torch.Tensor:
        by_label = self._has_true_parents(targets).sum(dim=1).long()
        return torch.stack([level.sum() for level in by_label.split(self.level_sizes)])


class LookaheadSigmoidHead(ConditionalSigmoidHead):
    """The head `lookahead_sigmoid` for multi_path: `conditional_sigmoid` on values u_v instead of scores s_v.

    u_v = s_v + log(1 + sum_c exp(u_c)) / 2 with the sum over the children c of v. As in `lookahead_softmax`, the scores of
    the children influence the choice of a node, by half as much with each further level. The value of a leaf is its
    score. It has the losses of `conditional_sigmoid`.
    """

    inner: torch.Tensor
    below: torch.Tensor
    families: torch.Tensor

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__(config, taxonomy)
        # The inner nodes and the edges to children of each level except the last, as sizes that tracers know in advance,
        # and whether the children are the whole next level in its order.
        parts = [self._below(k) for k in range(self.num_tasks - 1)]
        self.inner_slices = _slices_of([len(inner) for inner, _, _ in parts])
        self.edge_slices = _slices_of([len(children) for _, children, _ in parts])
        self.is_whole_level = [
            # A compiler treats numpy's bool as data and Python's as a constant.
            bool(len(children) == size and (np.diff(children) > 0).all() and children[-1] == size - 1)
            for (_, children, _), size in zip(parts, self.level_sizes[1:])
        ]

    def _below(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the index of each inner node of level k within the level and, for each edge to a child, sorted by child,
        the child counted from the first node of the next level and the position of its parent among the inner nodes."""
        level, edges = self.taxonomy.levels[k], self.taxonomy.edges
        edges = edges[(edges[:, 0] >= level.start) & (edges[:, 0] < level.stop)]
        inner, families = np.unique(edges[:, 0], return_inverse=True)
        return inner - level.start, edges[:, 1] - level.stop, families

    def hierarchy_buffers(self) -> dict[str, torch.Tensor]:
        parts = [self._below(k) for k in range(self.num_tasks - 1)]
        none = [np.zeros(0, dtype=np.int64)]
        joined = (np.concatenate([*column, *none]) for column in (zip(*parts) if parts else ((), (), ())))
        named = zip(("inner", "below", "families"), joined)
        return {**super().hierarchy_buffers(), **{name: torch.from_numpy(values) for name, values in named}}

    def _values(self, scores: torch.Tensor) -> torch.Tensor:
        """Computes the values u [B, L] of scores [B, L], stored label by label."""
        values = list(scores.T.split(self.level_sizes))
        for k in range(self.num_tasks - 2, -1, -1):
            inner, edges = self.inner[self.inner_slices[k]], self.edge_slices[k]
            if self.is_whole_level[k]:
                children = values[k + 1]
            else:
                children = torch.cat(values[k + 1 :]).index_select(0, self.below[edges])
            lse = segment_logsumexp(
                children, self.families[edges], self.inner_slices[k].stop - self.inner_slices[k].start
            )
            values[k] = values[k].index_add(0, inner, F.softplus(lse), alpha=_FADING)
        return torch.cat(values).T

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        return super().log_probs(self._values(tempered(scores, score_temperature)))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        return super().losses(self._values(scores), targets)


def _slices_of(sizes: list[int]) -> list[slice]:
    """Returns consecutive slices of these sizes."""
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


HEADS: dict[tuple[str, str], type[HierarchicalHead]] = {
    ("independent", "single_path"): LevelSoftmaxHead,
    ("independent", "multi_path"): LabelSigmoidHead,
    ("path_softmax", "single_path"): SiblingSoftmaxHead,
    ("lookahead_softmax", "single_path"): SiblingSoftmaxHead,
    ("conditional_softmax", "single_path"): SiblingSoftmaxHead,
    ("conditional_sigmoid", "multi_path"): ConditionalSigmoidHead,
    ("lookahead_sigmoid", "multi_path"): LookaheadSigmoidHead,
}


def build_head(config: HcalConfig, taxonomy: Taxonomy) -> HierarchicalHead:
    """Builds the head that `config.head` and `config.label_mode` name."""
    return HEADS[config.head, config.label_mode](config, taxonomy)

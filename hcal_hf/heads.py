"""Heads: from cosines between features and prototypes to node probabilities and per-level losses.

A head works in log space and in at least float32. Level k of the hierarchy is task k. All work is done on edges, level by
level; the largest tensors are [B, L]. Scores come stored label by label, all documents' scores of a label side by side, so
that what goes from children to parents moves whole rows.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .configuration_hcal import HcalConfig
from .targets import Targets
from .taxonomy import Taxonomy

# log p is kept below 0 by this much, so that logit(p) = log p - log(1 - p) is finite in float32.
MAX_LOG_PROB = -1e-7


def clamp_log_probs(log_probs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of at most -1e-7, so that their logits are finite."""
    return log_probs.clamp(max=MAX_LOG_PROB)


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler, "Accurately computing log(1 - exp(-|a|))", 2012)."""
    near_zero = x > -math.log(2)
    # Each branch sees a harmless value where the other one is taken, so that no gradient becomes NaN.
    small = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, small, large)


def log_probs_to_logits(log_probs: torch.Tensor) -> torch.Tensor:
    """logit(p) = log p - log(1 - p) of log-probabilities below 0, any shape."""
    return log_probs - log1mexp(log_probs)


def tempered(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """scores / T, any shape; the scores themselves, without a copy, where T is 1."""
    return scores if temperature == 1 else scores / temperature


def segment_logsumexp(values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
    """Log-sum-exp over the rows of each segment. Differentiable once.

    Args:
        values (`torch.Tensor` of shape `[n, B]`).
        segments (`torch.Tensor` of shape `[n]`, int64): the segment of each row; none may be empty.

    Returns:
        `torch.Tensor` of shape `[num_segments, B]`.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # tracers must see the operations
        top = _segment_maxima(values, segments, num_segments)
        shares = (values - top.index_select(0, segments)).exp()
        return top + values.new_zeros(top.shape).index_add(0, segments, shares).log()
    found: torch.Tensor = _SegmentLogSumExp.apply(values, segments, num_segments)
    return found


def _segment_maxima(values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
    """The largest of each segment [num_segments, B], without gradient."""
    columns = values.shape[1]  # len() would be a constant to torch.export
    top = values.new_full((num_segments, columns), -torch.inf)
    return top.scatter_reduce(0, segments[:, None].expand(-1, columns), values.detach(), reduce="amax")


class _SegmentLogSumExp(torch.autograd.Function):
    """`segment_logsumexp`, whose backward pass needs one tensor of the values' size: their shares of the sums."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
        top = _segment_maxima(values, segments, num_segments)
        shares = top.index_select(0, segments)
        torch.sub(values, shares, out=shares).exp_()
        sums = torch.zeros_like(top).index_add_(0, segments, shares)
        ctx.save_for_backward(shares, sums, segments)
        return top.add_(sums.log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        shares, sums, segments = ctx.saved_tensors
        return (gradients[0] / sums).index_select(0, segments).mul_(shares), None, None


class HierarchicalHead(nn.Module):
    """Base class of the heads.

    Args:
        config ([`HcalConfig`]): label_mode, partial_paths and temperature are read.
        taxonomy ([`Taxonomy`]): the hierarchy that `config` holds.
    """

    depths: torch.Tensor

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__()
        self.taxonomy = taxonomy
        self.temperature = float(config.prototype_temperature)
        self.num_tasks = len(taxonomy.levels)
        self.level_sizes = [level.stop - level.start for level in taxonomy.levels]
        for name, value in self.hierarchy_buffers().items():
            self.register_buffer(name, value, persistent=False)

    def hierarchy_buffers(self) -> dict[str, torch.Tensor]:
        """The buffers that the hierarchy alone determines; loading a model makes them anew."""
        return {"depths": torch.from_numpy(self.taxonomy.depths.copy())}

    def initial_values(self) -> dict[str, float]:
        """The value that each parameter of the head itself starts from."""
        return {}

    def scores(self, products: torch.Tensor) -> torch.Tensor:
        """Label scores [B, L] from what the prototypes make of the features [B, L]: cosines, or with linear scores inner
        products."""
        return products / self.temperature

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        """Log-probabilities [B, L] of the nodes, at most -1e-7, from all scores (also those for stopping) divided by
        `score_temperature`."""
        raise NotImplementedError

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Mean loss of each level, [T]; 0 for a level that no document of the batch reaches."""
        raise NotImplementedError

    def counts(self, targets: Targets) -> torch.Tensor:
        """The denominators [T] of `losses`, int64: they depend on the labels alone."""
        raise NotImplementedError

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        """-log P(labels), summed over the documents, from all scores divided by `score_temperature`; convex in its
        inverse, but for `lookahead_sigmoid`. Of a coherent single_path head it is that of the end nodes; of the others,
        which give each level or label a probability of its own, the sum over the levels or the label cells that `losses`
        takes."""
        losses = self.losses(tempered(scores, score_temperature), targets)
        return (losses * self.counts(targets)).sum()


class LevelSoftmaxHead(HierarchicalHead):
    """`independent`, single_path: one softmax a level over cosine / tau; a document takes part in the levels that its
    path reaches. Nothing makes the levels agree (HCAL)."""

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        scores = tempered(scores, score_temperature)
        by_level = [F.log_softmax(scores[:, level], dim=1) for level in self.taxonomy.levels]
        return clamp_log_probs(torch.cat(by_level, dim=1))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        at_levels = targets.at_levels(self.taxonomy.levels, self.depths)
        sums = [
            F.cross_entropy(scores[:, level], at_levels[:, k], ignore_index=-100, reduction="sum")
            for k, level in enumerate(self.taxonomy.levels)
        ]
        return torch.stack(sums) / self.counts(targets).clamp(min=1)

    def counts(self, targets: Targets) -> torch.Tensor:
        return (targets.at_levels(self.taxonomy.levels, self.depths) >= 0).sum(dim=0)


# How much of what lies below a node a lookahead head adds to its score.
_FADING = 0.5
# The same by the softmax heads, of a node of the top level and of any other level.
_CARRIES = {"conditional_softmax": (0.0, 0.0), "lookahead_softmax": (1.0, _FADING), "path_softmax": (1.0, 1.0)}


class SiblingSoftmaxHead(HierarchicalHead):
    """`conditional_softmax`, `path_softmax` and `lookahead_softmax`, single_path: the probability of a node is its parent's
    times a softmax among its siblings.

    Each node v has a value u_v = s_v + carry * lse_v, where lse_v is the log-sum-exp of its children's values (and of
    its stop score, with partial_paths); a softmax of u over siblings divides the parent's probability.

    - carry = 0, `conditional_softmax`: a softmax of the siblings' own scores. Level k's loss is the cross-entropy among
      siblings, over the documents whose path reaches a node of depth k - 1 that has children.
    - carry = 1, `path_softmax`: the same as one softmax over all end nodes, whose score is the sum of s over the path.
      Level k's loss is -log of the true node's probability.
    - carry = 1 at the top level and 1/2 below it, `lookahead_softmax`: a node is chosen also by what its children would
      say, which fades by half with each level, so that the many scores of a deep branch do not outweigh the node's own.
      With two levels it is `path_softmax`. Losses as there.

    With partial_paths each inner node has a learned stop score, initially 0, that competes with its children; a document
    that ends there has "stop" as its target at the next level.
    """

    parents: torch.Tensor
    rank: torch.Tensor
    segments: torch.Tensor
    inner: torch.Tensor

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__(config, taxonomy)
        # Which of all inner nodes lie at each level, as sizes that tracers know beforehand.
        self.inner_slices = _slices_of([int((~taxonomy.is_leaf[level]).sum()) for level in taxonomy.levels])
        top, below = _CARRIES[config.head]
        self.carries = [top] + [below] * (self.num_tasks - 1)
        self.stop = nn.Parameter(torch.empty(int((~taxonomy.is_leaf).sum()))) if config.partial_paths else None

    def hierarchy_buffers(self) -> dict[str, torch.Tensor]:
        taxonomy = self.taxonomy
        parents = torch.full((taxonomy.num_labels,), -1)
        parents[torch.from_numpy(taxonomy.edges[:, 1].copy())] = torch.from_numpy(taxonomy.edges[:, 0].copy())
        inner = torch.from_numpy(~taxonomy.is_leaf)
        # The number of each inner node among the inner nodes; -1 for leaves.
        rank = torch.where(inner, inner.cumsum(0) - 1, -1)
        # Of each node: the number of its parent among the inner nodes of the parent's level; -1 for roots. Of each inner
        # node: its position in its level.
        segments, positions = np.full(taxonomy.num_labels, -1), [np.zeros(0, dtype=np.int64)]
        for level, into in zip(taxonomy.levels, taxonomy.edge_slices[1:]):
            positions.append(np.flatnonzero(~taxonomy.is_leaf[level]))
            above, nodes = taxonomy.edges[into].T
            segments[nodes] = np.searchsorted(positions[-1] + level.start, above)
        return {
            **super().hierarchy_buffers(),
            "parents": parents,
            "rank": rank,
            "segments": torch.from_numpy(segments),
            "inner": torch.from_numpy(np.concatenate(positions)),
        }

    def initial_values(self) -> dict[str, float]:
        return {"stop": 0.0}

    def _values(
        self, scores: torch.Tensor, score_temperature: float = 1.0
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The values u of each level [n_k, B], and the log-sum-exp in the families of each level: of all roots [1, B], then
        below the inner nodes of the level above [I, B], with their stop scores."""
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
        found = [values[0] - sums[0]]
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            # An only child's log P(child | parent) is 0, and must not become positive by rounding.
            conditional = (values[k] - sums[k].index_select(0, self.segments[level])).clamp(max=0)
            parents = self.parents[level] - self.taxonomy.levels[k - 1].start
            found.append(found[-1].index_select(0, parents) + conditional)
        return clamp_log_probs(torch.cat(found)).T.contiguous()

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        steps, taken = self._steps(scores, targets)
        if any(self.carries):  # of the nodes themselves, not given their parents
            steps = torch.where(taken, steps.cumsum(dim=1), 0.0)
        return -steps.sum(dim=0) / taken.sum(dim=0).clamp(min=1)

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        # The steps of a path multiply to the probability of its end, whatever the losses of the levels are.
        return -self._steps(scores, targets, score_temperature)[0].sum()

    def _steps(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log P(the path's node at level k | the one above) [B, D], where the path ends at an inner node that of stopping
        there, and 0 below; and which of these steps are taken [B, D], bool."""
        values, sums = self._values(scores, score_temperature)
        stop_scores = self._stop_scores(score_temperature)
        at_levels, ends = self._targets(targets)
        rows = torch.arange(len(at_levels), device=at_levels.device)
        taken, steps = (at_levels >= 0) | ends, []
        for k, level in enumerate(self.taxonomy.levels):
            node = at_levels[:, k].clamp(min=0)
            value = values[k][node, rows]
            family = torch.zeros_like(node) if k == 0 else self.segments[level][node]
            if k and stop_scores is not None:
                above = self.rank[self.taxonomy.levels[k - 1]][at_levels[:, k - 1].clamp(min=0)]
                among = self.inner_slices[k - 1]
                family = torch.where(ends[:, k], above - among.start, family)
                value = torch.where(ends[:, k], stop_scores[among][family].to(value), value)
            steps.append(torch.where(taken[:, k], value - sums[k][family, rows], 0.0))
        return torch.stack(steps, dim=1), taken

    def _targets(self, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        """The label of each document at each level [B, D] (-100: none), and whether it stops just above it [B, D]."""
        at_levels = targets.at_levels(self.taxonomy.levels, self.depths)
        ends = torch.zeros_like(at_levels, dtype=torch.bool)
        if self.stop is not None:
            for k in range(1, self.num_tasks):
                above = self.taxonomy.levels[k - 1]
                is_inner = self.rank[above][at_levels[:, k - 1].clamp(min=0)] >= 0
                ends[:, k] = (at_levels[:, k - 1] >= 0) & (at_levels[:, k] < 0) & is_inner
        return at_levels, ends

    def counts(self, targets: Targets) -> torch.Tensor:
        at_levels, ends = self._targets(targets)
        return ((at_levels >= 0) | ends).sum(dim=0)


class SigmoidHead(HierarchicalHead):
    """Base of the multi_path heads: from cosines, scores are a * cosine + b with a learned scale a (initially 1 / tau) and
    biases b; linear scores hold both already."""

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
    """`independent`, multi_path: one sigmoid a label; level k's loss is the binary cross-entropy averaged over its
    (document, label) cells."""

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        return clamp_log_probs(F.logsigmoid(tempered(scores, score_temperature)))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        cells = F.binary_cross_entropy_with_logits(scores, targets.multi_hot.to(scores), reduction="none")
        sums = [cells[:, level].sum() for level in self.taxonomy.levels]
        return torch.stack(sums) / self.counts(targets).clamp(min=1)

    def counts(self, targets: Targets) -> torch.Tensor:
        sizes = [level.stop - level.start for level in self.taxonomy.levels]
        return len(targets.labels) * torch.tensor(sizes, device=targets.labels.device)


class ConditionalSigmoidHead(SigmoidHead):
    """`conditional_sigmoid`, multi_path: P(c) = min over the parents p of P(p) * sigmoid(s_c).

    Level k's loss is the binary cross-entropy over the (document, label) cells whose parents are all true, averaged over
    those cells. On a DAG P(c) is an upper bound (comonotone parents), not a joint distribution; on a forest siblings are
    independent given their parent.
    """

    edges: torch.Tensor

    def hierarchy_buffers(self) -> dict[str, torch.Tensor]:
        edges = torch.from_numpy(self.taxonomy.edges.copy())
        return {**super().hierarchy_buffers(), "edges": edges}

    def _edges_into(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(parents, position of the child in its level) of the edges into level k; they are sorted by child."""
        level = self.taxonomy.levels[k]
        edges = self.edges[self.taxonomy.edge_slices[k]]
        return edges[:, 0], edges[:, 1] - level.start

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        own = F.logsigmoid(tempered(scores, score_temperature)).T
        found = clamp_log_probs(own[self.taxonomy.levels[0]])
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            parents, children = self._edges_into(k)
            lowest = self._lowest(found.index_select(0, parents), children, level.stop - level.start)
            found = torch.cat([found, lowest + own[level]])
        return found.T.contiguous()

    def _lowest(self, values: torch.Tensor, children: torch.Tensor, size: int) -> torch.Tensor:
        """The lowest value [size, B] of each child's edges, from the values [E, B], at most 1, of all edges, sorted by
        child."""
        if len(children) == size:  # one parent each
            return values
        columns = values.shape[1]  # len() would be a constant to torch.export
        found = values.new_ones((size, columns))
        return found.scatter_reduce(0, children[:, None].expand(-1, columns), values, reduce="amin")

    def _open_cells(self, targets: Targets) -> torch.Tensor:
        """1.0 for the cells whose parents are all true, 0.0 elsewhere, [L, B]."""
        if targets.open_cells is None:
            roots, columns = self.taxonomy.levels[0].stop, targets.multi_hot.T
            parents, children = self.edges[:, 0], self.edges[:, 1] - roots
            below = self._lowest(columns.index_select(0, parents), children, len(columns) - roots)
            targets.open_cells = torch.cat([torch.ones_like(columns[:roots]), below])
        return targets.open_cells

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        multi_hot, is_open = (cells.to(scores) for cells in (targets.multi_hot.T, self._open_cells(targets)))
        # Binary cross-entropy, in fewer passes than torch's own.
        cells = torch.addcmul(F.softplus(scores.T), multi_hot, scores.T, value=-1) * is_open
        sums = torch.stack([level.sum() for level in cells.split(self.level_sizes)])
        return sums / self.counts(targets).clamp(min=1)

    def counts(self, targets: Targets) -> torch.Tensor:
        by_label = self._open_cells(targets).sum(dim=1).long()
        return torch.stack([level.sum() for level in by_label.split(self.level_sizes)])


class LookaheadSigmoidHead(ConditionalSigmoidHead):
    """`lookahead_sigmoid`, multi_path: `conditional_sigmoid` of the values u_v = s_v + log(1 + sum_c exp(u_c)) / 2 of the
    nodes instead of their scores, with the sum over the children c of v.

    A node is chosen also by what its children would say, which fades by half with each level, as in
    `lookahead_softmax`. A leaf's value is its score. Losses as there.
    """

    inner: torch.Tensor
    below: torch.Tensor
    families: torch.Tensor

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__(config, taxonomy)
        # Which of all inner nodes, and of all edges to children, lie at each level but the last, as sizes that tracers know
        # beforehand; and whether the children are the next level as it stands.
        parts = [self._below(k) for k in range(self.num_tasks - 1)]
        self.inner_slices = _slices_of([len(inner) for inner, _, _ in parts])
        self.edge_slices = _slices_of([len(children) for _, children, _ in parts])
        self.is_whole_level = [
            # To a compiler numpy's bool is data, and Python's is not.
            bool(len(children) == size and (np.diff(children) > 0).all() and children[-1] == size - 1)
            for (_, children, _), size in zip(parts, self.level_sizes[1:])
        ]

    def _below(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the inner nodes of level k: their positions in the level; and of each edge to a child, sorted by child: the
        child, counted from the next level's first node on, and the number of its parent among the inner nodes."""
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
        """The values [B, L] of scores [B, L], stored label by label."""
        values = list(scores.T.split(self.level_sizes))
        for k in range(self.num_tasks - 2, -1, -1):
            inner, edges = self.inner[self.inner_slices[k]], self.edge_slices[k]
            if self.is_whole_level[k]:
                found = values[k + 1]
            else:
                found = torch.cat(values[k + 1 :]).index_select(0, self.below[edges])
            lse = segment_logsumexp(
                found, self.families[edges], self.inner_slices[k].stop - self.inner_slices[k].start
            )
            values[k] = values[k].index_add(0, inner, F.softplus(lse), alpha=_FADING)
        return torch.cat(values).T

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        return super().log_probs(self._values(tempered(scores, score_temperature)))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        return super().losses(self._values(scores), targets)


def _slices_of(sizes: list[int]) -> list[slice]:
    """Slices of these sizes, one after the other."""
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
    """The head that `config.head` and `config.label_mode` name."""
    return HEADS[config.head, config.label_mode](config, taxonomy)

"""Heads: from cosines between features and prototypes to node probabilities and per-level losses.

A head works in log space and in at least float32. Level k of the hierarchy is task k. All work is done on edges, level by
level; the largest tensors are [B, L].
"""

import math

import numpy as np
import torch
from torch import nn
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
    """Log-sum-exp over the columns of each segment.

    Args:
        values (`torch.Tensor` of shape `[B, n]`).
        segments (`torch.Tensor` of shape `[n]`, int64): the segment of each column; none may be empty.

    Returns:
        `torch.Tensor` of shape `[B, num_segments]`.
    """
    rows = values.shape[0]  # len() would be a constant to torch.export
    index = segments.expand(rows, -1)
    top = values.new_full((rows, num_segments), -torch.inf)
    top = top.scatter_reduce(1, index, values.detach(), reduce="amax")
    sums = values.new_zeros(top.shape).index_add(1, segments, (values - top[:, segments]).exp())
    return top + sums.log()


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
        inverse. Of a coherent single_path head it is that of the end nodes; of the others, which give each level or label
        a probability of its own, the sum over the levels or the label cells that `losses` takes."""
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


# How much of what lies below a node of the top level, and of any other level, is added to its score.
_CARRIES = {"conditional_softmax": (0.0, 0.0), "lookahead_softmax": (1.0, 0.5), "path_softmax": (1.0, 1.0)}


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
        ends = np.cumsum([int((~taxonomy.is_leaf[level]).sum()) for level in taxonomy.levels]).tolist()
        self.inner_slices = [slice(start, end) for start, end in zip([0, *ends], ends)]
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

    def _conditionals(
        self, scores: torch.Tensor, score_temperature: float = 1.0
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """log P(node | parent) of each level [B, n_k], and log P(stop | inner node) [B, I] (-inf without stops)."""
        levels = self.taxonomy.levels
        scores = tempered(scores, score_temperature)
        stop_scores = None if self.stop is None else tempered(self.stop, score_temperature)
        values: list[torch.Tensor] = [scores[:, level] for level in levels]
        below: list[torch.Tensor] = []  # lse of the inner nodes of each level, from the leaves up
        for k in range(len(levels) - 2, -1, -1):
            segments, inner = self._family(k)
            lse = segment_logsumexp(values[k + 1], segments, len(inner))
            if stop_scores is not None:
                lse = torch.logaddexp(lse, stop_scores[self.inner_slices[k]].to(lse))
            below.append(lse)
            if self.carries[k]:
                values[k] = values[k].index_add(1, inner, lse, alpha=self.carries[k])
        below.reverse()
        conditionals = [F.log_softmax(values[0], dim=1)]
        for k, lse in enumerate(below):
            segments, _ = self._family(k)
            conditionals.append(values[k + 1] - lse[:, segments])
        everything = torch.cat(below, dim=1) if below else scores[:, :0]
        if stop_scores is None:
            return conditionals, torch.full_like(everything, -torch.inf)
        return conditionals, stop_scores.to(everything) - everything

    def _family(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For the nodes of level k + 1 the number of their parent among the inner nodes of level k, and those nodes'
        positions in level k."""
        return self.segments[self.taxonomy.levels[k + 1]], self.inner[self.inner_slices[k]]

    def _accumulate(self, conditionals: list[torch.Tensor]) -> list[torch.Tensor]:
        found = [conditionals[0]]
        for level, above, conditional in zip(self.taxonomy.levels[1:], self.taxonomy.levels, conditionals[1:]):
            found.append(found[-1][:, self.parents[level] - above.start] + conditional)
        return found

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        # An only child's log P(child | parent) is 0, and must not become positive by rounding.
        conditionals = [c.clamp(max=0) for c in self._conditionals(scores, score_temperature)[0]]
        return clamp_log_probs(torch.cat(self._accumulate(conditionals), dim=1))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        conditionals, stops = self._conditionals(scores)
        joint = any(self.carries)
        terms = self._accumulate(conditionals) if joint else conditionals
        return self._loss_sums(terms, stops, targets, joint) / self.counts(targets).clamp(min=1)

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        # The conditionals of a path multiply to the probability of its end, whatever the losses of the levels are.
        return self._loss_sums(*self._conditionals(scores, score_temperature), targets, False).sum()

    def _loss_sums(
        self, terms: list[torch.Tensor], stops: torch.Tensor, targets: Targets, joint: bool
    ) -> torch.Tensor:
        """Minus the documents' terms [B, n_k] at their own nodes, summed in each level [T]; `joint`: the terms are of the
        nodes themselves, not given their parents."""
        at_levels, ends = self._targets(targets)
        rows = torch.arange(len(terms[0]), device=terms[0].device)
        sums = []
        for k in range(self.num_tasks):
            here = at_levels[:, k]
            found = torch.where(here >= 0, terms[k][rows, here.clamp(min=0)], 0.0).sum()
            if k and self.stop is not None:
                above = self.taxonomy.levels[k - 1]
                node = at_levels[:, k - 1].clamp(min=0)
                stop = stops[rows, self.rank[above][node].clamp(min=0)]
                if joint:
                    stop = stop + terms[k - 1][rows, node]
                found = found + torch.where(ends[:, k], stop, 0.0).sum()
            sums.append(-found)
        return torch.stack(sums)

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
        own = F.logsigmoid(tempered(scores, score_temperature))
        found = clamp_log_probs(own[:, self.taxonomy.levels[0]])
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            parents, children = self._edges_into(k)
            rows = found.shape[0]  # len() would be a constant to torch.export
            lowest = found.new_zeros((rows, level.stop - level.start))
            lowest = lowest.scatter_reduce(1, children.expand(rows, -1), found[:, parents], reduce="amin")
            found = torch.cat([found, lowest + own[:, level]], dim=1)
        return found

    def _open_cells(self, targets: Targets, multi_hot: torch.Tensor) -> torch.Tensor:
        """Bool [B, L]: the cells whose parents are all true."""
        parents, children = self.edges[:, 0], self.edges[:, 1]
        is_open = torch.ones_like(multi_hot)
        index = children.expand(len(multi_hot), -1)
        return is_open.scatter_reduce(1, index, multi_hot[:, parents], reduce="amin") > 0

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        multi_hot = targets.multi_hot.to(scores)
        is_open = self._open_cells(targets, multi_hot)
        cells = F.binary_cross_entropy_with_logits(scores, multi_hot, reduction="none")
        cells = torch.where(is_open, cells, 0.0)
        sums = torch.stack([cells[:, level].sum() for level in self.taxonomy.levels])
        return sums / self._level_sums(is_open).clamp(min=1)

    def counts(self, targets: Targets) -> torch.Tensor:
        return self._level_sums(self._open_cells(targets, targets.multi_hot))

    def _level_sums(self, is_open: torch.Tensor) -> torch.Tensor:
        return torch.stack([is_open[:, level].sum() for level in self.taxonomy.levels])


HEADS: dict[tuple[str, str], type[HierarchicalHead]] = {
    ("independent", "single_path"): LevelSoftmaxHead,
    ("independent", "multi_path"): LabelSigmoidHead,
    ("path_softmax", "single_path"): SiblingSoftmaxHead,
    ("lookahead_softmax", "single_path"): SiblingSoftmaxHead,
    ("conditional_softmax", "single_path"): SiblingSoftmaxHead,
    ("conditional_sigmoid", "multi_path"): ConditionalSigmoidHead,
}


def build_head(config: HcalConfig, taxonomy: Taxonomy) -> HierarchicalHead:
    """The head that `config.head` and `config.label_mode` name."""
    return HEADS[config.head, config.label_mode](config, taxonomy)

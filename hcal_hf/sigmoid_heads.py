"""The heads of multi_path models, which apply one sigmoid per label."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .configuration_hcal import HcalConfig
from .hierarchical_head import FADING, HierarchicalHead, slices_of
from .log_space import clamp_log_probs, segment_logsumexp, tempered
from .targets import Targets
from .taxonomy import Taxonomy


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
        self.inner_slices = slices_of([len(inner) for inner, _, _ in parts])
        self.edge_slices = slices_of([len(children) for _, children, _ in parts])
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
            values[k] = values[k].index_add(0, inner, F.softplus(lse), alpha=FADING)
        return torch.cat(values).T

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        return super().log_probs(self._values(tempered(scores, score_temperature)))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        return super().losses(self._values(scores), targets)

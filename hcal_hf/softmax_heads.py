"""The heads of single_path models, which apply one softmax per level or per family of siblings."""

from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .asymmetric_loss import focal_losses, log_shares
from .configuration_hcal import HcalConfig
from .hierarchical_head import FADING, HierarchicalHead, slices_of
from .log_space import clamp_log_probs, segment_logsumexp, tempered
from .targets import Targets
from .taxonomy import Taxonomy


class LevelSoftmaxHead(HierarchicalHead):
    """The head `independent` for single_path: one softmax per level over cosine / tau, as in HCAL.

    A document contributes to the levels that its path reaches. The levels may contradict each other. With
    `classification_loss="asl"`, the loss is the focal loss of each level's softmax, and the probabilities are those after
    [`hcal_hf.asymmetric_loss.log_shares`].
    """

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        return clamp_log_probs(torch.cat(self._calibrated(tempered(scores, score_temperature)), dim=1))

    def _calibrated(self, scores: torch.Tensor) -> list[torch.Tensor]:
        """Computes the log-probabilities [B, n_k] of each level."""
        by_level = [F.log_softmax(scores[:, level], dim=1) for level in self.taxonomy.levels]
        if (focal := self.focal) is None:
            return by_level
        return [F.log_softmax(log_shares(log_p, *focal), dim=1) for log_p in by_level]

    def _at_levels(self, targets: Targets) -> torch.Tensor:
        return targets.derived("at_levels", lambda: targets.at_levels(self.taxonomy.levels, self.depths, self.offsets))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        by_level = [scores[:, level] for level in self.taxonomy.levels]
        return self._cross_entropies(by_level, targets, self.focal) / self.counts(targets).clamp(min=1)

    def _cross_entropies(
        self, by_level: list[torch.Tensor], targets: Targets, focal: tuple[float, bool] | None = None
    ) -> torch.Tensor:
        """Sums the cross-entropies or focal losses [D] of the scores [B, n_k] of each level."""
        at_levels, sums = self._at_levels(targets), []
        weights = targets.label_weights
        for k, (scores, level) in enumerate(zip(by_level, self.taxonomy.levels)):
            reduction = "sum" if focal is None and weights is None else "none"
            losses = F.cross_entropy(scores, at_levels[:, k], ignore_index=-100, reduction=reduction)
            if focal is not None:
                losses = focal_losses(-losses, *focal)
            if weights is not None:
                losses = losses * weights.to(losses)[level][at_levels[:, k].clamp(min=0)]
            sums.append(losses.sum())
        return torch.stack(sums)

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        if self.focal is None:
            return super().negative_log_likelihood(scores, targets, score_temperature)
        return self._cross_entropies(self._calibrated(tempered(scores, score_temperature)), targets).sum()

    def counts(self, targets: Targets) -> torch.Tensor:
        return (self._at_levels(targets) >= 0).sum(dim=0)


# The weights of the children of top-level nodes and of all other nodes, by head.
_CARRIES = {"conditional_softmax": (0.0, 0.0), "lookahead_softmax": (1.0, FADING), "path_softmax": (1.0, 1.0)}


class PathSteps(NamedTuple):
    """The steps of single-path documents, each [D, B].

    Attributes:
        nodes (int64): the index of the document's node within each level; any index where there is none.
        labels (int64): the label of the step: that node, or the node at which the path stops.
        families (int64): the index of the siblings among which the step is made, within the level.
        ends (bool): the path stops at an inner node of the level above.
        taken (bool): the document makes a step into this level, or stops just above it.
    """

    nodes: torch.Tensor
    labels: torch.Tensor
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

    With `classification_loss="asl"`, each softmax among siblings has the focal loss. The losses of `path_softmax` and
    `lookahead_softmax` sum it over the path down to the level, as their cross-entropy is the sum over these steps. The
    probabilities among siblings are those after [`hcal_hf.asymmetric_loss.log_shares`].
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
        self.inner_slices = slices_of(inner_sizes)
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
        stops = self._stop_scores(score_temperature)
        values = list(scores.T.split(self.level_sizes))
        sums: list[torch.Tensor] = []
        for k in range(len(levels) - 2, -1, -1):
            inner = self.inner[self.inner_slices[k]]
            lse = segment_logsumexp(values[k + 1], self.segments[levels[k + 1]], len(inner))
            if stops is not None:
                lse = torch.logaddexp(lse, stops[k].to(lse))
            sums.append(lse)
            if self.carries[k]:
                values[k] = values[k].index_add(0, inner, lse, alpha=self.carries[k])
        return values, [values[0].logsumexp(dim=0, keepdim=True), *reversed(sums)]

    def _stop_scores(self, score_temperature: float = 1.0) -> list[torch.Tensor] | None:
        """Returns the stop scores [I, 1] of the inner nodes of each level except the last."""
        if self.stop is None:
            return None
        return [tempered(self.stop, score_temperature)[inner][:, None] for inner in self.inner_slices[:-1]]

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        values, sums, _ = self._calibrated(scores, score_temperature)
        log_probs = [values[0] - sums[0]]
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            # log P(child | parent) of an only child is 0 and must not become positive by rounding.
            conditional = (values[k] - sums[k].index_select(0, self.segments[level])).clamp(max=0)
            parents = self.parents[level] - self.taxonomy.levels[k - 1].start
            log_probs.append(log_probs[-1].index_select(0, parents) + conditional)
        return clamp_log_probs(torch.cat(log_probs)).T.contiguous()

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        steps, taken = self._steps(*self._values(scores), self._stop_scores(), targets)
        if self.focal is not None:
            steps = torch.where(taken, -focal_losses(steps, *self.focal), 0.0)
        if any(self.carries):  # log P(node) instead of log P(node | parent)
            # The sum of the levels above; `cumsum` of floats has no deterministic kernel on CUDA.
            above = torch.stack(list(accumulate(steps.unbind(dim=1))), dim=1)
            steps = torch.where(taken, above, 0.0)
        if targets.label_weights is not None:
            steps = steps * targets.label_weights.to(steps)[self._path_steps(targets).labels.T]
        return -steps.sum(dim=0) / taken.sum(dim=0).clamp(min=1)

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        # The probabilities of the steps of a path multiply to the probability of its end node.
        return -self._steps(*self._calibrated(scores, score_temperature), targets)[0].sum()

    def _calibrated(
        self, scores: torch.Tensor, score_temperature: float
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor] | None]:
        """Computes values, log-sum-exps and stop scores as for `_steps`. Their softmax is the calibrated probability."""
        values, sums = self._values(scores, score_temperature)
        stops = self._stop_scores(score_temperature)
        if (focal := self.focal) is None:
            return values, sums, stops
        shares = [log_shares(values[0] - sums[0], *focal)]
        totals = [shares[0].logsumexp(dim=0, keepdim=True)]
        stop_shares = []
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            segments = self.segments[level]
            shares.append(log_shares(values[k] - sums[k].index_select(0, segments), *focal))
            totals.append(
                segment_logsumexp(shares[k], segments, self.inner_slices[k - 1].stop - self.inner_slices[k - 1].start)
            )
            if stops is not None:
                stop_shares.append(log_shares(stops[k - 1] - sums[k], *focal))
                totals[k] = torch.logaddexp(totals[k], stop_shares[-1])
        return shares, totals, None if stops is None else stop_shares

    def _steps(
        self,
        values: list[torch.Tensor],
        sums: list[torch.Tensor],
        stops: list[torch.Tensor] | None,
        targets: Targets,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the log-probability of each step of the true paths [B, D], and which steps are taken [B, D], bool.

        `values` and `sums` are those of `_values`. `stops` holds the stop scores [I, 1] or [I, B] of the inner nodes of
        each level except the last. A step has log P(node at level k | its parent), or that of stopping where the path ends
        at an inner node, and 0 below the end.
        """
        steps = self._path_steps(targets)
        chosen, totals = [], []
        for k in range(self.num_tasks):
            family = steps.families[k][None]
            value = values[k].gather(0, steps.nodes[k][None])
            if k and stops is not None:
                stop = stops[k - 1].expand(-1, family.shape[1]).gather(0, family)
                value = torch.where(steps.ends[k], stop.to(value), value)
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
        labels = nodes + self.starts[:, None]
        labels[1:] = torch.where(ends[1:], labels[:-1], labels[1:])
        return PathSteps(nodes, labels, families, ends, is_node | ends)

    def counts(self, targets: Targets) -> torch.Tensor:
        return self._path_steps(targets).taken.sum(dim=1)

"""The heads of multi_path models, which apply one sigmoid per label."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .asymmetric_loss import Shape, asymmetric_losses, calibrated_logits, moved_gamma, sums_by_label
from .classification_loss import is_joint_zlpr, zlpr_losses
from .configuration_hcal import HcalConfig
from .hierarchical_head import FADING, HierarchicalHead, slices_of
from .log_space import clamp_log_probs, log1mexp, segment_logsumexp, tempered
from .targets import Targets
from .taxonomy import Taxonomy


class SigmoidHead(HierarchicalHead):
    """Base class of the multi_path heads.

    With cosines, scores are a * cosine + b with a learned scale a, initially 1 / tau, and learned biases b. Linear scores
    already contain both.

    With `classification_loss="asl"`, the loss of a (document, label) pair is [`hcal_hf.asymmetric_loss.asymmetric_losses`],
    averaged over the same pairs. The probabilities are those after [`hcal_hf.asymmetric_loss.calibrated_logits`].
    """

    gamma_negative: torch.Tensor

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__(config, taxonomy)
        is_cosine = config.score_function == "cosine"
        self.scale = nn.Parameter(torch.empty(())) if is_cosine else None
        self.bias = nn.Parameter(torch.empty(taxonomy.num_labels)) if is_cosine else None
        self.is_zlpr = config.classification_loss == "zlpr"
        self.is_adaptive = self.asymmetric is not None and self.asymmetric.gap is not None
        if self.is_adaptive:  # saved with the model, because predictions depend on it
            self.register_buffer("gamma_negative", torch.empty(self.num_tasks))
        self._observed: torch.Tensor | None = None

    def initial_values(self) -> dict[str, float]:
        values = {"scale": 1.0 / self.temperature, "bias": 0.0}
        if self.asymmetric is not None and self.is_adaptive:
            values["gamma_negative"] = float(self.asymmetric.gamma_negative)
        return values

    def scores(self, products: torch.Tensor) -> torch.Tensor:
        if self.scale is None or self.bias is None:
            return super().scores(products)
        return self.scale.to(products) * products + self.bias.to(products)

    def _values(self, scores: torch.Tensor) -> torch.Tensor:
        """Computes the values [B, L] that the sigmoids take from scores [B, L]."""
        return scores

    def _counted(self, targets: Targets) -> torch.Tensor:
        """Returns 1.0 for the pairs that have a loss and 0.0 elsewhere, [L, B]."""
        return torch.ones_like(targets.multi_hot.T)

    def _pair_weights(self, targets: Targets) -> torch.Tensor:
        """Returns the weights [L, B] of the pairs: label_weights for positives, 1 for negatives, 0 without a loss."""
        counted, weights = self._counted(targets), targets.label_weights
        if weights is None:
            return counted
        return counted * torch.where(targets.multi_hot.T > 0, weights.to(counted)[:, None], 1.0)

    def _cross_entropies(self, values: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Sums the binary cross-entropies [D] of each level."""
        multi_hot, counted = (pairs.to(values) for pairs in (targets.multi_hot.T, self._pair_weights(targets)))
        # Binary cross-entropy in fewer passes over memory than torch's own.
        losses = torch.addcmul(F.softplus(values.T), multi_hot, values.T, value=-1) * counted
        return torch.stack([level.sum() for level in losses.split(self.level_sizes)])

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        values = self._values(scores)
        sums = self._cross_entropies if self.asymmetric is None else self._asymmetric
        return sums(values, targets) / self.counts(targets).clamp(min=1)

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        if self.asymmetric is None and not self.is_zlpr:
            return super().negative_log_likelihood(scores, targets, score_temperature)
        values = self._values(tempered(scores, score_temperature))
        return self._cross_entropies(self.calibrated(values), targets).sum()

    # ---- The asymmetric loss ----

    def shape(self, nodes: torch.Tensor | None = None) -> Shape:
        """Returns the parameters of the asymmetric loss, with gamma- of each of `nodes` (all labels by default)."""
        options = self.asymmetric
        assert options is not None
        gamma: float | torch.Tensor = options.gamma_negative
        if self.is_adaptive:
            gamma = self.gamma_negative[self.depths if nodes is None else self.depths[nodes]].detach()
        return Shape(gamma, options.gamma_positive, options.margin, options.detach)

    def calibrated(self, values: torch.Tensor, nodes: torch.Tensor | None = None) -> torch.Tensor:
        """Maps the values of sigmoids to logits of probabilities. Returns the same tensor without the asymmetric loss.

        Args:
            values (`torch.Tensor` of shape `[..., n]`): the values.
            nodes (`torch.Tensor` of shape `[n]`, int64, *optional*): their labels; all labels by default.
        """
        if self.asymmetric is None or self.asymmetric.is_cross_entropy:
            return values
        return calibrated_logits(-F.softplus(-values), -F.softplus(values), self.shape(nodes))

    def _pair_log_probs(self, values: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes log p and log(1 - p) [B, L] of the pairs from the values [B, L] of the sigmoids."""
        return F.logsigmoid(values), F.logsigmoid(-values)

    def _asymmetric(self, values: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Sums the asymmetric losses [D] of each level, and observes p if gamma- is adaptive."""
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        counted = self._counted(targets).T.to(values)
        log_p, log_not = self._pair_log_probs(values, targets)
        losses = asymmetric_losses(log_p, log_not, targets.multi_hot > 0, self.shape())
        losses = losses * self._pair_weights(targets).T.to(values)
        if self.is_adaptive and self.training:
            sums = sums_by_label(log_p, targets.multi_hot.to(values), counted)
            observed = torch.stack([level.sum(dim=1) for level in sums.split(self.level_sizes, dim=1)], dim=1)
            self._observed = observed if self._observed is None else self._observed + observed
        return torch.stack([level.sum() for level in losses.T.split(self.level_sizes)])

    def start_step(self) -> None:
        self._observed = None

    @torch.no_grad()
    def after_step(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        options = self.asymmetric
        if options is None or options.gap is None:
            return
        if self._observed is None:
            raise RuntimeError(
                "An adaptive gamma_negative needs the probabilities of the step, which torch.nn.DataParallel drops: start "
                "one process per GPU with accelerate launch, or leave gap out of classification_loss_kwargs."
            )
        sums = reduce(self._observed)
        self.gamma_negative.copy_(
            moved_gamma(self.gamma_negative, sums, options.gap, options.rate, options.gamma_positive)
        )
        self._observed = None

    def report(self) -> dict[str, torch.Tensor]:
        return {"gamma": self.gamma_negative} if self.is_adaptive else {}


class LabelSigmoidHead(SigmoidHead):
    """The head `independent` for multi_path: one sigmoid per label.

    The loss of level k is the binary cross-entropy, averaged over its (document, label) pairs. With
    `classification_loss="zlpr"`, it is [`hcal_hf.classification_loss.zlpr_losses`] of the labels of the level, averaged
    over the documents. With `released=True` it is the loss of the labels of all levels together, the same for each level.
    """

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__(config, taxonomy)
        self.is_joint = self.is_zlpr and is_joint_zlpr(config)

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        return clamp_log_probs(F.logsigmoid(self.calibrated(tempered(scores, score_temperature))))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        if self.is_zlpr:
            return self._zlpr(scores, targets)
        return super().losses(scores, targets)

    def _cross_entropies(self, values: torch.Tensor, targets: Targets) -> torch.Tensor:
        losses = F.binary_cross_entropy_with_logits(values, targets.multi_hot.to(values), reduction="none")
        if targets.label_weights is not None:
            losses = losses * self._pair_weights(targets).T.to(values)
        return torch.stack([losses[:, level].sum() for level in self.taxonomy.levels])

    def _zlpr(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        is_positive = targets.multi_hot > 0
        if self.is_joint:
            sums = zlpr_losses(scores, is_positive).sum().expand(self.num_tasks)
        else:
            levels = self.taxonomy.levels
            sums = torch.stack([zlpr_losses(scores[:, level], is_positive[:, level]).sum() for level in levels])
        return sums / self.counts(targets).clamp(min=1)

    def counts(self, targets: Targets) -> torch.Tensor:
        return len(targets.labels) * (torch.ones_like(self.widths) if self.is_zlpr else self.widths)


class ConditionalSigmoidHead(SigmoidHead):
    """The head `conditional_sigmoid` for multi_path: P(c) = min over the parents p of P(p) * sigmoid(s_c).

    The loss of level k is the binary cross-entropy, averaged over the (document, label) pairs whose parents are all true.
    On a forest, siblings are independent given their parent. On a DAG, P(c) is an upper bound (comonotone parents) and not
    a joint distribution.
    """

    edges: torch.Tensor

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__(config, taxonomy)
        self.is_marginal = self.asymmetric is not None and self.asymmetric.pairs == "marginal"

    def hierarchy_buffers(self) -> dict[str, torch.Tensor]:
        edges = torch.from_numpy(self.taxonomy.edges.copy())
        return {**super().hierarchy_buffers(), "edges": edges}

    def _edges_into(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (parents, index of the child within its level) of the edges into level k, sorted by child."""
        level = self.taxonomy.levels[k]
        edges = self.edges[self.taxonomy.edge_slices[k]]
        return edges[:, 0], edges[:, 1] - level.start

    def log_probs(self, scores: torch.Tensor, score_temperature: float = 1.0) -> torch.Tensor:
        values = self._values(tempered(scores, score_temperature))
        if self.is_marginal:
            return self._coherent(F.logsigmoid(calibrated_logits(*self._path_log_probs(values), self.shape())))
        own = F.logsigmoid(self.calibrated(values)).T
        log_probs = clamp_log_probs(own[self.taxonomy.levels[0]])
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            parents, children = self._edges_into(k)
            lowest = self._lowest(log_probs.index_select(0, parents), children, level.stop - level.start)
            log_probs = torch.cat([log_probs, lowest + own[level]])
        return log_probs.T.contiguous()

    def _coherent(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Limits log-probabilities [B, L] to those of the parents: gamma- may differ between levels, and numbers round."""
        columns = log_probs.T
        limited = clamp_log_probs(columns[self.taxonomy.levels[0]])
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            parents, children = self._edges_into(k)
            lowest = self._lowest(limited.index_select(0, parents), children, level.stop - level.start)
            limited = torch.cat([limited, torch.minimum(lowest, columns[level])])
        return limited.T.contiguous()

    def _path_log_probs(
        self, values: torch.Tensor, targets: Targets | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes log P and log(1 - P) [B, L], where P is the product along the path, from the values of the sigmoids.

        With `targets`, negative pairs get no gradient to true parents of their label, unless the loss is as released.
        """
        own, own_not = -F.softplus(-values).T, -F.softplus(values).T
        detaches = targets is not None and self.asymmetric is not None and not self.asymmetric.released
        log_p, log_not = own[self.taxonomy.levels[0]], own_not[self.taxonomy.levels[0]]
        for k, level in enumerate(self.taxonomy.levels[1:], start=1):
            parents, children = self._edges_into(k)
            above, above_not = log_p.index_select(0, parents), log_not.index_select(0, parents)
            if detaches and targets is not None:
                is_true = targets.multi_hot.T > 0
                is_cut = is_true.index_select(0, parents) & ~is_true[level].index_select(0, children)
                above = torch.where(is_cut, above.detach(), above)
                above_not = torch.where(is_cut, above_not.detach(), above_not)
            size = level.stop - level.start
            lowest = self._lowest(above, children, size)
            # The parent with the lowest P has the highest 1 - P.
            highest_not = -self._lowest(-above_not, children, size, torch.inf)
            # 1 - P(parent) p = (1 - P(parent)) + P(parent) (1 - p)
            either = lowest + own_not[level]
            log_p = torch.cat([log_p, lowest + own[level]])
            apart = -(highest_not - either).abs()
            log_not = torch.cat([log_not, torch.maximum(highest_not, either) + F.softplus(apart)])
        return log_p.T, log_not.T

    def _pair_log_probs(self, values: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        if self.is_marginal:
            return self._path_log_probs(values, targets)
        return super()._pair_log_probs(values, targets)

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        if not self.is_marginal:
            return super().negative_log_likelihood(scores, targets, score_temperature)
        log_probs = self.log_probs(scores, score_temperature).T
        roots, (parents, children) = self.taxonomy.levels[0].stop, self.edges.T
        above = self._lowest(log_probs.index_select(0, parents), children - roots, len(log_probs) - roots)
        given_parents = clamp_log_probs(torch.cat([log_probs[:roots], log_probs[roots:] - above]))
        losses = -torch.where(targets.multi_hot.T > 0, given_parents, log1mexp(given_parents))
        return (losses * self._has_true_parents(targets).to(losses)).sum()

    def _lowest(self, values: torch.Tensor, children: torch.Tensor, size: int, highest: float = 1.0) -> torch.Tensor:
        """Computes the lowest value [size, B] over the edges of each child.

        `values` [E, B] holds a value of at most `highest` for each edge, sorted by child.
        """
        if len(children) == size:  # one parent each
            return values
        columns = values.shape[1]  # len() would be a constant to torch.export
        start = values.new_full((size, columns), highest)
        return start.scatter_reduce(0, children[:, None].expand(-1, columns), values, reduce="amin")

    def _has_true_parents(self, targets: Targets) -> torch.Tensor:
        """Returns 1.0 for the pairs whose parents are all true and 0.0 elsewhere, [L, B]."""

        def compute() -> torch.Tensor:
            roots, columns = self.taxonomy.levels[0].stop, targets.multi_hot.T
            parents, children = self.edges[:, 0], self.edges[:, 1] - roots
            below = self._lowest(columns.index_select(0, parents), children, len(columns) - roots)
            return torch.cat([torch.ones_like(columns[:roots]), below])

        return targets.derived("has_true_parents", compute)

    def _counted(self, targets: Targets) -> torch.Tensor:
        return super()._counted(targets) if self.is_marginal else self._has_true_parents(targets)

    def counts(self, targets: Targets) -> torch.Tensor:
        if self.is_marginal:
            return len(targets.labels) * self.widths
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

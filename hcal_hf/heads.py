"""Heads: from cosines between features and prototypes to node probabilities and per-level losses.

A head works in log space and in at least float32. Level k of the hierarchy is task k.
"""

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
    near_zero = x > -0.6931471805599453
    # Each branch sees a harmless value where the other one is taken, so that no gradient becomes NaN.
    small = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, small, large)


def log_probs_to_logits(log_probs: torch.Tensor) -> torch.Tensor:
    """logit(p) = log p - log(1 - p) of log-probabilities below 0, any shape."""
    return log_probs - log1mexp(log_probs)


class HierarchicalHead(nn.Module):
    """Base class of the heads.

    Args:
        config ([`HcalConfig`]): label_mode, partial_paths and temperature are read.
        taxonomy ([`Taxonomy`]): the hierarchy that `config` holds.
    """

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

    def scores(self, cosines: torch.Tensor) -> torch.Tensor:
        """Label scores [B, L] from cosines [B, L]."""
        raise NotImplementedError

    def log_probs(self, scores: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, L] of the nodes, at most -1e-7."""
        raise NotImplementedError

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Mean loss of each level, [T]; 0 for a level that no document of the batch reaches."""
        raise NotImplementedError

    def counts(self, targets: Targets) -> torch.Tensor:
        """The denominators [T] of `losses`, int64: they depend on the labels alone."""
        raise NotImplementedError


class LevelSoftmaxHead(HierarchicalHead):
    """`independent`, single_path: one softmax a level over cosine / tau; a document takes part in the levels that its
    path reaches. Nothing makes the levels agree (HCAL)."""

    depths: torch.Tensor

    def scores(self, cosines: torch.Tensor) -> torch.Tensor:
        return cosines / self.temperature

    def log_probs(self, scores: torch.Tensor) -> torch.Tensor:
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


class LabelSigmoidHead(HierarchicalHead):
    """`independent`, multi_path: one sigmoid a label over a * cosine + b with learned scale a and biases b; level k's
    loss is the binary cross-entropy averaged over its (document, label) cells."""

    def __init__(self, config: HcalConfig, taxonomy: Taxonomy):
        super().__init__(config, taxonomy)
        self.scale = nn.Parameter(torch.empty(()))
        self.bias = nn.Parameter(torch.empty(taxonomy.num_labels))

    def scores(self, cosines: torch.Tensor) -> torch.Tensor:
        return self.scale.to(cosines) * cosines + self.bias.to(cosines)

    def log_probs(self, scores: torch.Tensor) -> torch.Tensor:
        return clamp_log_probs(F.logsigmoid(scores))

    def losses(self, scores: torch.Tensor, targets: Targets) -> torch.Tensor:
        cells = F.binary_cross_entropy_with_logits(scores, targets.multi_hot.to(scores), reduction="none")
        sums = [cells[:, level].sum() for level in self.taxonomy.levels]
        return torch.stack(sums) / self.counts(targets).clamp(min=1)

    def counts(self, targets: Targets) -> torch.Tensor:
        sizes = [level.stop - level.start for level in self.taxonomy.levels]
        return len(targets.labels) * torch.tensor(sizes, device=targets.labels.device)


def build_head(config: HcalConfig, taxonomy: Taxonomy) -> HierarchicalHead:
    """The head that `config.head` and `config.label_mode` name."""
    heads = {
        ("independent", "single_path"): LevelSoftmaxHead,
        ("independent", "multi_path"): LabelSigmoidHead,
    }
    return heads[config.head, config.label_mode](config, taxonomy)

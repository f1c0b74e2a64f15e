"""Defines the interface of the heads.

A head works in log space and in at least float32. Level k of the hierarchy is task k. Heads loop over levels and work on
edges, so the largest tensors are [B, L]. Scores are stored label by label, with the documents of one label in a row, so
that sums over children and copies from parents move whole rows.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from .classification_loss import asymmetric_options
from .configuration_hcal import HcalConfig
from .log_space import tempered
from .targets import Targets
from .taxonomy import Taxonomy

# The weight of a node's children in the score of a lookahead head.
FADING = 0.5


class HierarchicalHead(nn.Module):
    """Base class of the heads.

    Args:
        config ([`HcalConfig`]): its label_mode, partial_paths, prototype_temperature and classification loss are used.
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
        self.asymmetric = asymmetric_options(config)
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

    @property
    def focal(self) -> tuple[float, bool] | None:
        """The gamma of the focal loss of a softmax head, and whether its factor is detached. None without it."""
        options = self.asymmetric
        return None if options is None or options.is_cross_entropy else (options.gamma_positive, options.detach)

    @property
    def sums_losses(self) -> bool:
        """Whether the model is trained on sums of losses instead of means, as ASL was released."""
        return self.asymmetric is not None and self.asymmetric.released

    def start_step(self) -> None:
        """Forgets what was observed for an optimiser step, before its first micro-batch."""

    def after_step(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Updates the state of the loss, once per optimiser step, after all its micro-batches.

        Args:
            reduce: sums a tensor over all processes.
        """

    def report(self) -> dict[str, torch.Tensor]:
        """Returns further values `[D]` for the training log, by name, one for each level."""
        return {}

    def negative_log_likelihood(
        self, scores: torch.Tensor, targets: Targets, score_temperature: float = 1.0
    ) -> torch.Tensor:
        """Computes -log P(labels), summed over the documents.

        Scores are first divided by `score_temperature`. The result is convex in 1 / temperature, except for
        `lookahead_sigmoid` and for the asymmetric loss, where P is the mapped probability. A coherent single_path head
        gives the likelihood of the end nodes. The other heads give each level or label its own probability; their result is
        the sum over the levels or over the (document, label) pairs that have a cross-entropy.
        """
        losses = self.losses(tempered(scores, score_temperature), targets)
        return (losses * self.counts(targets)).sum()


def slices_of(sizes: list[int]) -> list[slice]:
    """Returns consecutive slices of these sizes."""
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends)]

"""The tasks of a model: one classification task per level, and the tasks that a contrast adds."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_hcal import HcalConfig
from .heads import HierarchicalHead
from .objectives import aggregate_losses, num_processes
from .prototypes import LabelPrototypes
from .targets import Targets
from .taxonomy import Taxonomy


def task_names(config: HcalConfig, num_levels: int) -> list[str]:
    """Returns the names of the T tasks, in the order of `task_losses`."""
    names = [f"level_{k}" for k in range(num_levels)]
    if config.contrast:
        names += [f"contrast_{k}" for k in range(num_levels)]
    return names


class TaskMixin:
    """Adds to a model the losses, counts and weights of its tasks."""

    config: HcalConfig
    taxonomy: Taxonomy
    projection: nn.Linear
    prototypes: LabelPrototypes
    head: HierarchicalHead
    task_names: list[str]
    training: bool

    def compute_task_losses(
        self, features: torch.Tensor, noise: torch.Tensor | None, scores: torch.Tensor, targets: Targets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes `task_losses` [T] and `task_counts` [T] of a batch.

        Args:
            features (`torch.Tensor` of shape `[B, d]`): unit document features.
            noise (`torch.Tensor` of shape `[L, d]`, *optional*): the perturbation of the prototypes.
            scores (`torch.Tensor` of shape `[B, L]`): the scores of the head.
            targets ([`Targets`]): the labels.
        """
        losses, counts = self.head.losses(scores, targets), self.head.counts(targets)
        if self.config.objective == "document" and not self.config.contrast:
            return losses, counts
        prototypes = self.prototypes(self.projection, noise).to(features)
        # In evaluation, other processes may have no batch left to gather.
        gather = self.training and num_processes() > 1
        means, classes = aggregate_losses(
            features, prototypes, targets, self.taxonomy, self.config.prototype_temperature, gather
        )
        if self.config.objective == "aggregate":
            # HCAL trains the leaf level on documents and every level above on class means.
            losses = torch.cat([means[:-1], losses[-1:]])
            counts = torch.cat([classes[:-1], counts[-1:]])
        if self.config.contrast:
            losses, counts = torch.cat([losses, means]), torch.cat([counts, classes])
        return losses, counts

    @property
    def num_levels(self) -> int:
        """Number D of levels. Each has one classification task, which a loss weighter weighs."""
        return self.head.num_tasks

    def weigh_contrast(self, weights: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Extends the weights of the D classification tasks to all T tasks.

        The task contrast_k gets contrast_alpha times the weight of level k.

        Args:
            weights (`torch.Tensor` of shape `[D]`): weights of the classification tasks.
            present (`torch.Tensor` of shape `[T]`, bool): the tasks that occur in the batch.
        """
        if not self.config.contrast:
            return weights
        return torch.cat([weights, self.config.contrast_alpha * weights * present[self.num_levels :]])

    @property
    def document_tasks(self) -> list[bool]:
        """For each task, True if its loss is a mean over documents, False if it is a mean over the classes of a batch.

        Only sums over documents can be added over batches.
        """
        per_document = [True] * len(self.task_names)
        if self.config.objective == "aggregate":
            per_document[: self.num_levels - 1] = [False] * (self.num_levels - 1)
        if self.config.contrast:
            per_document[self.num_levels :] = [False] * self.num_levels
        return per_document

    def count_tasks(self, labels: torch.Tensor) -> torch.Tensor:
        """Computes `task_counts` [T] from `labels` (as in `forward`) alone. 0 for contrast tasks, which count classes."""
        counts = self.head.counts(Targets(labels, self.taxonomy.num_labels))
        return F.pad(counts, (0, len(self.task_names) - len(counts)))

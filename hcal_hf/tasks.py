"""The tasks of a model: one classification task per level, and the tasks that a contrast adds."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_hcal import HcalConfig
from .geometry import PENALTY_TASK, LabelPenalty
from .heads import HierarchicalHead
from .joint_contrast import JointContrastOptions, attend, joint_contrast_losses, pair_embeddings
from .objectives import aggregate_losses, num_processes
from .prototypes import LabelPrototypes
from .targets import Targets
from .taxonomy import Taxonomy


def task_names(config: HcalConfig, num_levels: int) -> list[str]:
    """Returns the names of the T tasks, in the order of `task_losses`."""
    names = [f"level_{k}" for k in range(num_levels)]
    if config.contrast == "aggregate":
        names += [f"contrast_{k}" for k in range(num_levels)]
    if config.joint_contrast is not None:
        names += config.joint_contrast.weights
    if config.geometry != "euclidean" and config.geometry_weight:
        names.append(PENALTY_TASK)
    return names


class TaskMixin:
    """Adds to a model the losses, counts and weights of its tasks."""

    config: HcalConfig
    taxonomy: Taxonomy
    projection: nn.Linear
    prototypes: LabelPrototypes
    label_penalty: LabelPenalty | None
    head: HierarchicalHead
    task_names: list[str]
    training: bool
    # Weights [L] of the labels in the training loss. They are not saved with the model.
    label_weights: torch.Tensor | None = None

    @property
    def num_labels(self) -> int:
        """The number of labels L, inner nodes included."""
        return self.taxonomy.num_labels

    def compute_task_losses(
        self,
        features: torch.Tensor,
        noise: torch.Tensor | None,
        scores: torch.Tensor,
        targets: Targets,
        token_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes `task_losses` [T] and `task_counts` [T] of a batch.

        Args:
            features (`torch.Tensor` of shape `[B, d]`): unit document features.
            noise (`torch.Tensor` of shape `[L, d]`, *optional*): the perturbation of the prototypes.
            scores (`torch.Tensor` of shape `[B, L]`): the scores of the head.
            targets ([`Targets`]): the labels.
            token_states (`torch.Tensor` of shape `[B, S, hidden_size]`, *optional*): for `contrast="hjcl"`.
            attention_mask (`torch.Tensor` of shape `[B, S]`, *optional*): 1 for tokens, 0 for padding.

        Raises:
            ValueError: if the contrast needs token states and there are none.
        """
        losses, counts = self.head.losses(scores, targets), self.head.counts(targets)
        # In evaluation, other processes may have no batch left to gather.
        gather = self.training and num_processes() > 1
        extra = []
        if (joint := self.config.joint_contrast) is not None:
            embeddings = self._label_embeddings(joint, features, noise, targets, token_states, attention_mask)
            extra.append(joint_contrast_losses(joint, features, embeddings, targets, self.head.depths, gather))
        if self.config.objective == "document" and self.config.contrast != "aggregate":
            return _joined((losses, counts), *extra)
        prototypes = self.prototypes(self.projection, noise).to(features)
        means, classes = aggregate_losses(
            features, prototypes, targets, self.taxonomy, self.config.prototype_temperature, gather
        )
        if self.config.objective == "aggregate":
            # HCAL trains the leaf level on documents and every level above on class means.
            losses = torch.cat([means[:-1], losses[-1:]])
            counts = torch.cat([classes[:-1], counts[-1:]])
        if self.config.contrast == "aggregate":
            extra.append((means, classes))
        return _joined((losses, counts), *extra)

    def _label_embeddings(
        self,
        options: JointContrastOptions,
        features: torch.Tensor,
        noise: torch.Tensor | None,
        targets: Targets,
        token_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Computes the embeddings that [`joint_contrast_losses`] needs, by attention of prototypes to projected tokens."""
        if not options.needs_tokens:
            return None
        if token_states is None:
            options.check_pooled()
        assert token_states is not None
        tokens = self.projection(token_states.to(self.projection.weight.dtype)).to(features)
        temperature = float(self.config.prototype_temperature)
        if options.variant != "shared":
            queries = self.prototypes(self.projection, noise).to(features)
            return attend(queries.expand(len(tokens), -1, -1), tokens, attention_mask, temperature)
        documents, nodes = targets.positives
        classes, group = torch.unique(nodes, return_inverse=True)
        prototypes = self.prototypes(self.projection, noise, classes).to(features)
        return pair_embeddings(prototypes, group, documents, tokens, attention_mask, temperature)

    def add_label_penalty(
        self, losses: torch.Tensor, counts: torch.Tensor, seed: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends the label loss to task losses and counts [T - 1], and the number of labels that it compares.

        Both are 0 in evaluation mode, because the label loss does not depend on documents. `seed` draws the labels.
        """
        if self.label_penalty is None:
            return losses, counts
        penalty, number = losses.new_zeros(()), 0
        if self.training:
            penalty, number = self.label_penalty(self.prototypes.vectors(self.projection), seed)
        return torch.cat([losses, penalty.to(losses)[None]]), F.pad(counts, (0, 1), value=number)

    @property
    def num_levels(self) -> int:
        """Number D of levels. Each has one classification task, which a loss weighter weighs."""
        return self.head.num_tasks

    def weigh_contrast(self, weights: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Extends the weights of the D classification tasks to all T tasks.

        The task contrast_k gets contrast_alpha times the weight of level k. The tasks of `contrast="hjcl"` and
        label_penalty have fixed weights.

        Args:
            weights (`torch.Tensor` of shape `[D]`): weights of the classification tasks.
            present (`torch.Tensor` of shape `[T]`, bool): the tasks that occur in the batch.
        """
        if self.label_penalty is not None:
            penalty = self.config.geometry_weight * present[-1:].to(weights)
            return torch.cat([self._weigh_contrast(weights, present[:-1]), penalty])
        return self._weigh_contrast(weights, present)

    def _weigh_contrast(self, weights: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        present = present[self.num_levels :]
        if (joint := self.config.joint_contrast) is not None:
            return torch.cat([weights, weights.new_tensor(list(joint.weights.values())) * present])
        if not self.config.contrast:
            return weights
        return torch.cat([weights, self.config.contrast_alpha * weights * present])

    def weigh_sums(self, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Turns the weights of mean losses into weights of sums, for a loss that is summed as released.

        With equal weights, the weighted mean losses then add up to the sum over all levels. All other losses keep their
        weights.

        Args:
            weights (`torch.Tensor` of shape `[D]`): weights of the classification tasks.
            counts (`torch.Tensor` of shape `[D]`, int64): the denominators of the mean losses.
        """
        return weights * (counts > 0).sum() * counts if self.head.sums_losses else weights

    @property
    def document_tasks(self) -> list[bool]:
        """For each task, True if its loss is a mean over documents, False if it compares the labels, classes or pairs of a
        batch.

        Only sums over documents can be added over batches.
        """
        per_document = [True] * len(self.task_names)
        if self.config.objective == "aggregate":
            per_document[: self.num_levels - 1] = [False] * (self.num_levels - 1)
        per_document[self.num_levels :] = [False] * (len(self.task_names) - self.num_levels)
        return per_document

    def count_tasks(self, labels: torch.Tensor) -> torch.Tensor:
        """Computes `task_counts` [T] from `labels` (as in `forward`) alone. 0 for contrast tasks, which count classes or
        pairs."""
        counts = self.head.counts(Targets(labels, self.taxonomy.num_labels))
        return F.pad(counts, (0, len(self.task_names) - len(counts)))


def _joined(*tasks: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Concatenates the losses and the counts of several groups of tasks."""
    losses, counts = zip(*tasks)
    return torch.cat(losses), torch.cat(counts)

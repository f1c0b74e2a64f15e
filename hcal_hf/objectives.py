"""Losses that are taken on the mean features of classes instead of on documents."""

import torch
from torch.nn import functional as F

from .targets import Targets
from .taxonomy import Taxonomy


def class_means(features: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean feature of each class that occurs in the batch (child-to-parent aggregation, HCAL).

    Args:
        features (`torch.Tensor` of shape `[B, d]`).
        targets ([`Targets`]): the labels of the same documents.

    Returns:
        the C distinct classes as sorted node indices [C], and their means [C, d]: each document counts once for each
        class it carries, the mean is not normalised again, and the gradient flows to the features.
    """
    documents, nodes = targets.positives
    classes, group = torch.unique(nodes, return_inverse=True)
    sums = features.new_zeros((len(classes), features.shape[1])).index_add(0, group, features[documents])
    sizes = torch.bincount(group, minlength=len(classes)).to(features)
    return classes, sums / sizes[:, None]


def aggregate_losses(
    features: torch.Tensor,
    prototypes: torch.Tensor,
    targets: Targets,
    taxonomy: Taxonomy,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of class means against the prototypes of their level (HCAL's loss above the leaves).

    L_k = mean over the classes c of level k that occur in the batch of CE(F_c P^T / tau, c), over that level's labels.

    Args:
        features (`torch.Tensor` of shape `[B, d]`): unit document features.
        prototypes (`torch.Tensor` of shape `[L, d]`): unit prototypes, perturbed in training.

    Returns:
        the loss of each of the D levels [D], 0 where no class occurs, and the number of distinct classes [D].
    """
    classes, means = class_means(features, targets)
    bounds = torch.tensor([level.start for level in taxonomy.levels] + [taxonomy.num_labels], device=classes.device)
    cuts = torch.searchsorted(classes, bounds).tolist()
    losses, counts = [], []
    for level, low, high in zip(taxonomy.levels, cuts, cuts[1:]):
        scores = means[low:high] @ prototypes[level].T / temperature
        total = F.cross_entropy(scores, classes[low:high] - level.start, reduction="sum")
        losses.append(total / max(high - low, 1))
        counts.append(high - low)
    return torch.stack(losses), torch.tensor(counts, device=features.device)

"""Losses that are taken on the mean features of classes instead of on documents."""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from .targets import Targets
from .taxonomy import Taxonomy


def class_means(features: torch.Tensor, targets: Targets, gather: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean feature of each class that occurs in the batch (child-to-parent aggregation, HCAL).

    Args:
        features (`torch.Tensor` of shape `[B, d]`).
        targets ([`Targets`]): the labels of the same documents.
        gather (`bool`): takes the means over the batches of all processes, of any sizes, with gradient to all of them.
            Every process must take part.

    Returns:
        the C distinct classes as sorted node indices [C], and their means [C, d]: each document counts once for each
        class it carries, the mean is not normalised again, and the gradient flows to the features.
    """
    documents, nodes = targets.positives
    if gather:
        features, documents, nodes = _over_processes(features, documents, nodes)
    classes, group = torch.unique(nodes, return_inverse=True)
    sums = features.new_zeros((len(classes), features.shape[1])).index_add(0, group, features[documents])
    sizes = torch.bincount(group, minlength=len(classes)).to(features)
    return classes, sums / sizes[:, None]


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _over_processes(
    features: torch.Tensor, documents: torch.Tensor, nodes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [B, d] and positive cells [P], [P] of all processes one after the other, documents renumbered."""
    size = torch.tensor([len(features), len(nodes)], device=features.device)
    sizes = [size.new_empty(2) for _ in range(num_processes())]
    dist.all_gather(sizes, size)
    rows, cells = torch.stack(sizes).T.tolist()
    cells_of_all = _concatenate(torch.stack([documents + sum(rows[: dist.get_rank()]), nodes], dim=1), cells)
    return _Gather.apply(features, rows), cells_of_all[:, 0], cells_of_all[:, 1]


def _concatenate(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """The rows [n_r, m] of all processes r, one after the other; `sizes` holds every n_r."""
    # Collectives want one size.
    padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows))).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


class _Gather(torch.autograd.Function):
    """Rows of all processes; a process's own rows get the sum of all processes' gradients, so that DDP's mean over
    processes is the gradient of a loss that each of them takes of the same rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        return _concatenate(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        return gradient[start : start + ctx.sizes[rank]], None


def feature_gradient_norms(losses: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The norm [T] of the gradient of each loss [T] with respect to the features [B, d]; the backward pass stops there.

    Raises:
        ValueError: for features without gradient.
    """
    if not features.requires_grad:
        raise ValueError("The norms of gradients need features with gradient: encoder and projection are both frozen.")
    norms = []
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, features, retain_graph=True)
        norms.append(torch.linalg.vector_norm(gradient))
    return torch.stack(norms)


def aggregate_losses(
    features: torch.Tensor,
    prototypes: torch.Tensor,
    targets: Targets,
    taxonomy: Taxonomy,
    temperature: float,
    gather: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of class means against the prototypes of their level (HCAL's loss above the leaves).

    L_k = mean over the classes c of level k that occur in the batch of CE(F_c P^T / tau, c), over that level's labels.

    Args:
        features (`torch.Tensor` of shape `[B, d]`): unit document features.
        prototypes (`torch.Tensor` of shape `[L, d]`): unit prototypes, perturbed in training.
        gather (`bool`): takes the class means over all processes ([`class_means`]); losses and numbers are then the same
            on each of them.

    Returns:
        the loss of each of the D levels [D], 0 where no class occurs, and the number of distinct classes [D].
    """
    classes, means = class_means(features, targets, gather)
    bounds = torch.tensor([level.start for level in taxonomy.levels] + [taxonomy.num_labels], device=classes.device)
    cuts = torch.searchsorted(classes, bounds).tolist()
    losses, counts = [], []
    for level, low, high in zip(taxonomy.levels, cuts, cuts[1:]):
        scores = means[low:high] @ prototypes[level].T / temperature
        total = F.cross_entropy(scores, classes[low:high] - level.start, reduction="sum")
        losses.append(total / max(high - low, 1))
        counts.append(high - low)
    return torch.stack(losses), torch.tensor(counts, device=features.device)

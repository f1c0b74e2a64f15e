"""Losses on the mean features of classes instead of on documents."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

from .targets import Targets
from .taxonomy import Taxonomy


def class_means(features: torch.Tensor, targets: Targets, gather: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the mean feature of each class that occurs in the batch (child-to-parent aggregation, HCAL).

    Args:
        features (`torch.Tensor` of shape `[B, d]`).
        targets ([`Targets`]): the labels of the same documents.
        gather (`bool`): computes the means over the batches of all processes, which may differ in size, with gradient to
            all of them. Every process must call the function.

    Returns:
        the C distinct classes as sorted node indices [C], and their means [C, d]. A document counts once for each of its
        classes, the mean is not normalised again, and the gradient flows to the features.
    """
    documents, nodes = targets.positives
    if gather:
        (features,), documents, nodes, _ = over_processes([features], documents, nodes)
    classes, group, sizes = torch.unique(nodes, return_inverse=True, return_counts=True)
    sums = features.new_zeros((len(classes), features.shape[1])).index_add(0, group, features[documents])
    return classes, sums / sizes.to(features)[:, None]


def num_processes() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_processes(
    by_document: Sequence[torch.Tensor],
    documents: torch.Tensor,
    nodes: torch.Tensor,
    by_pair: Sequence[torch.Tensor] = (),
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Concatenates tensors of all processes, with gradient, and renumbers the documents. Every process must call it.

    Args:
        by_document: tensors [B, ...] with one row per document. B may differ between processes.
        documents, nodes (`torch.Tensor` of shape `[M]`, int64): the positive pairs.
        by_pair: tensors [M, ...] with one row per positive pair.

    Returns:
        the same four values for the documents of all processes.
    """
    size = torch.tensor([len(by_document[0]), len(nodes)], device=nodes.device)
    sizes = [size.new_empty(2) for _ in range(num_processes())]
    dist.all_gather(sizes, size)
    rows, pairs = torch.stack(sizes).T.tolist()
    all_pairs = _concatenate(torch.stack([documents + sum(rows[: dist.get_rank()]), nodes], dim=1), pairs)
    return (
        [_gather(tensor, rows) for tensor in by_document],
        all_pairs[:, 0],
        all_pairs[:, 1],
        [_gather(tensor, pairs) for tensor in by_pair],
    )


def _gather(tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Concatenates the rows of a tensor [n, ...] of all processes, with gradient."""
    gathered: torch.Tensor = _Gather.apply(tensor.flatten(1), sizes)
    return gathered.unflatten(1, tensor.shape[1:])


def _concatenate(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Concatenates the rows [n_r, m] of all processes r. `sizes` holds every n_r."""
    # Collectives need one size.
    padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows))).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


class _Gather(torch.autograd.Function):
    """Concatenates the rows of all processes, with gradient.

    The rows of a process get the sum of the gradients of all processes. DDP then averages over processes, which gives the
    gradient of a loss that every process computes on the same rows.
    """

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
    """Computes the norm [T] of the gradient of each loss [T] with respect to the features [B, d].

    Raises:
        ValueError: for features without gradient.
    """
    if not features.requires_grad:
        raise ValueError(
            "Gradient norms need features with gradient, but encoder and projection are both frozen. Unfreeze one of them."
        )
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
    """Computes the cross-entropy of class means against the prototypes of their level (HCAL's loss above the leaves).

    L_k = mean over the classes c of level k that occur in the batch of CE(F_c P^T / tau, c), over that level's labels.

    Args:
        features (`torch.Tensor` of shape `[B, d]`): unit document features.
        prototypes (`torch.Tensor` of shape `[L, d]`): unit prototypes, perturbed in training.
        gather (`bool`): computes the class means over all processes ([`class_means`]). Losses and counts are then equal on
            all of them.

    Returns:
        the loss of each of the D levels [D], 0 where no class occurs, and the number of distinct classes [D].
    """
    classes, means = class_means(features, targets, gather)
    # The number of classes of each level decides the shapes, so it is read back from the device, once.
    bounds = [level.start for level in taxonomy.levels] + [taxonomy.num_labels]
    cuts = np.searchsorted(classes.cpu().numpy(), bounds).tolist()
    losses, counts = [], []
    for level, low, high in zip(taxonomy.levels, cuts, cuts[1:]):
        scores = means[low:high] @ prototypes[level].T / temperature
        total = F.cross_entropy(scores, classes[low:high] - level.start, reduction="sum")
        losses.append(total / max(high - low, 1))
        counts.append(high - low)
    return torch.stack(losses), torch.tensor(counts).to(features.device, non_blocking=True)

"""Hyperbolic geometry of label prototypes: distances, points of documents, and the label loss.

A vector e [d] stands for the point (sqrt(1 + |e|^2), e) of the hyperboloid in the Lorentz model, so prototypes stay
Euclidean parameters that any optimiser can train. All functions compute in at least float32.

Source: Chatterjee et al., "Joint Learning of Hyperbolic Label Embeddings for Hierarchical Multi-label Classification",
EACL 2021 (arXiv 2101.04997).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .label_order import CooccurrenceCounts, LabelOrder
from .taxonomy import Taxonomy

# The name of the task of the label loss.
PENALTY_TASK = "label_penalty"
# Points of documents lie within this distance of the origin, in units of 1 / sqrt(curvature). sinh(10) is 11,013.
LARGEST_RADIUS = 10.0
# The label loss compares all labels with all others up to this number of labels, and this many with all others above it.
MOST_LABELS = 5_000
SAMPLED_LABELS = 1_000
# (label, label) pairs that are compared at a time.
PAIRS = 2**20
# The release: negatives per pair, dropout and longest length of the prototypes, and half-width of their initial values.
RELEASED_NEGATIVES, RELEASED_DROPOUT, RELEASED_LENGTH, RELEASED_WIDTH = 5, 0.6, 1.0, 1e-4


def lorentz_distance(a: torch.Tensor, b: torch.Tensor, curvature: float = 1.0) -> torch.Tensor:
    """Computes the hyperbolic distance of pairs of points, exactly also for points that are very close.

    d(a, b) = 2 / sqrt(c) asinh(sqrt(q) / 2), q = c |a - b|^2 - (a0 - b0)^2, a0 = sqrt(1 + c |a|^2). Equal points have the
    distance 0 and the gradient 0.

    Args:
        a, b (`torch.Tensor` of shape `[..., d]`): the points, broadcast against each other.
        curvature (`float`): c > 0, for the curvature -c.

    Returns:
        `torch.Tensor` of shape `[...]`, at least float32.
    """
    a, b = (math.sqrt(curvature) * _promoted(x) for x in (a, b))
    times = [(1 + x.square().sum(dim=-1)).sqrt() for x in (a, b)]
    # a0 - b0 = (|a|^2 - |b|^2) / (a0 + b0), without the cancellation of the left side.
    gap = ((a - b) * (a + b)).sum(dim=-1) / (times[0] + times[1])
    return _arc((a - b).square().sum(dim=-1) - gap.square(), curvature)


def lorentz_distances(a: torch.Tensor, b: torch.Tensor, curvature: float = 1.0) -> torch.Tensor:
    """Computes the hyperbolic distances [n, m] of all pairs of points `a` [n, d] and `b` [m, d] by one matrix product.

    q = 2 (a0 b0 - <a, b> - 1) is computed in float64 (in float32 on Apple's devices, which lack float64), because it
    cancels for close points. Points that are closer than the rounding errors have the distance 0 and the gradient 0.

    Returns:
        `torch.Tensor` of shape `[n, m]`, of the dtype of `a`, at least float32.
    """
    dtype = _promoted(a).dtype
    wide = dtype if a.device.type == "mps" else torch.float64
    a, b = (math.sqrt(curvature) * x.to(wide) for x in (a, b))
    times = [(1 + x.square().sum(dim=-1, keepdim=True)).sqrt() for x in (a, b)]
    q = 2 * (torch.cat([times[0], a], dim=-1) @ torch.cat([times[1], -b], dim=-1).T - 1)
    smallest = 16 * torch.finfo(wide).eps * times[0].detach().square()
    return _arc(torch.where(q > smallest, q, 0.0).to(dtype), curvature)


def _promoted(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _arc(q: torch.Tensor, curvature: float) -> torch.Tensor:
    """Computes 2 / sqrt(c) asinh(sqrt(q) / 2), with gradient 0 where q is 0."""
    is_positive = q > 0
    arcs = torch.asinh(torch.where(is_positive, q, 1.0).sqrt() / 2)
    return torch.where(is_positive, arcs, 0.0) * (2 / math.sqrt(curvature))


def exponential_map(tangents: torch.Tensor, curvature: float = 1.0) -> torch.Tensor:
    """Maps tangent vectors x at the origin to points, exp_0(x) = sinh(sqrt(c) |x|) / (sqrt(c) |x|) x.

    The point lies at distance |x| from the origin, but at most at 10 / sqrt(c), so that float32 does not overflow.

    Args:
        tangents (`torch.Tensor` of shape `[..., d]`).
        curvature (`float`): c > 0.

    Returns:
        `torch.Tensor` of shape `[..., d]`, at least float32.
    """
    tangents = _promoted(tangents)
    squares = tangents.square().sum(dim=-1, keepdim=True) * curvature
    lengths = torch.where(squares > 0, squares, 1.0).sqrt()
    return tangents * torch.where(squares > 0, lengths.clamp(max=LARGEST_RADIUS).sinh() / lengths, 1.0)


def row_losses(near: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
    """Computes the cross-entropy of one near label against K far ones, -log(e^-near / (e^-near + sum_k e^-far_k)).

    Args:
        near (`torch.Tensor` of shape `[...]`): the distances d(t, h).
        far (`torch.Tensor` of shape `[..., K]`): the distances d(t, k).
    """
    return torch.cat([-near[..., None], -far], dim=-1).logsumexp(dim=-1) + near


def label_losses(distances: torch.Tensor, ranks: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Computes the label loss of each label t: the mean of `row_losses` over the labels h that have farther labels.

    The far labels of (t, h) are all k with rank(t, k) < rank(t, h). Their sum is cumulative over the ranks, so that all h
    of one t cost O(L).

    Args:
        distances (`torch.Tensor` of shape `[n, L]`): d(t, c).
        ranks (`torch.Tensor` of shape `[n, L]`, int64): larger for labels c that should be closer to t, at least 0.
        labels (`torch.Tensor` of shape `[n]`, int64): the labels t, which are no pairs of themselves.

    Returns:
        `torch.Tensor` of shape `[n]`; 0 for a label t without pairs.
    """
    is_self = labels[:, None] == torch.arange(ranks.shape[1], device=ranks.device)
    others = torch.where(is_self, -torch.inf, -distances)
    top = others.detach().amax(dim=1, keepdim=True).clamp(min=torch.finfo(others.dtype).min)
    sums = distances.new_zeros(len(ranks), int(ranks.max()) + 1).scatter_add(1, ranks, (others - top).exp())
    lower = F.pad(sums.cumsum(dim=1)[:, :-1], (1, 0)).gather(1, ranks)
    is_pair = (lower > 0) & ~is_self
    losses = F.softplus(torch.where(is_pair, lower, 1.0).log() + top + distances)
    return torch.where(is_pair, losses, 0.0).sum(dim=1) / is_pair.sum(dim=1).clamp(min=1)


def sampled_label_losses(distances: torch.Tensor, ranks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Computes the label loss of each label t as the release does: all pairs (t, h), each against five drawn labels.

    The far labels of (t, h) are drawn with replacement from all k with rank(t, k) <= rank(t, h), which include h itself.

    Args:
        distances, ranks (`torch.Tensor` of shape `[n, L]`): as for `label_losses`.
        generator (`torch.Generator`): on the CPU, so that all devices draw the same labels.

    Returns:
        `torch.Tensor` of shape `[n]`.
    """
    by_rank, order = ranks.sort(dim=1)
    sizes = torch.searchsorted(by_rank, ranks.contiguous(), right=True)
    draws = torch.rand(*ranks.shape, RELEASED_NEGATIVES, generator=generator, dtype=torch.float64).to(sizes.device)
    positions = (draws * sizes[..., None]).long()
    far = distances.gather(1, order.gather(1, positions.flatten(1))).view(positions.shape)
    return row_losses(distances, far).mean(dim=1)


class LabelPenalty:
    """Computes the label loss: labels that belong together should be closer than labels that do not.

    L = mean over the labels t of the mean over the labels h of
    -log( e^-d(t,h) / (e^-d(t,h) + sum over the labels k that are farther from t than h of e^-d(t,k)) )

    `farther` is strict, and pairs without a farther label are left out. The loss depends on the prototypes only.

    Args:
        taxonomy ([`Taxonomy`]): the hierarchy.
        order (`str`): which labels are close to t ([`LabelOrder`]).
        curvature (`float`): c > 0, for the curvature -c.
        num_rows (`int`, *optional*): the number of labels t of a step, drawn without replacement. By default all of up to
            5,000 labels, and 1,000 of more labels.
        is_released (`bool`): computes the loss as the release does, with dropout on the prototypes
            (`sampled_label_losses`).

    Attributes:
        counts ([`CooccurrenceCounts`], *optional*): the co-occurrence of labels in the training rows, for an `order` that
            needs it. [`HcalTrainer`] sets it.
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        order: str,
        curvature: float = 1.0,
        num_rows: int | None = None,
        is_released: bool = False,
    ):
        self.order = LabelOrder(taxonomy, order)
        self.curvature, self.num_rows, self.is_released = float(curvature), num_rows, is_released
        self.counts: CooccurrenceCounts | None = None

    def draw_labels(self, generator: torch.Generator) -> torch.Tensor:
        """Draws the labels t of a step, int64 [n], in rising order. The same generator draws the same labels."""
        candidates = self.order.candidates(self.counts)
        most = self.num_rows or (SAMPLED_LABELS if len(candidates) > MOST_LABELS else len(candidates))
        if most >= len(candidates):
            return candidates
        return candidates[torch.randperm(len(candidates), generator=generator)[:most].sort().values]

    @torch.compiler.disable
    def __call__(self, vectors: torch.Tensor, seed: int | None = None) -> tuple[torch.Tensor, int]:
        """Computes the label loss of the prototypes, with gradient.

        Args:
            vectors (`torch.Tensor` of shape `[L, d]`): the prototypes.
            seed (`int`, *optional*): draws the labels t; from torch's global generator by default.

        Returns:
            the mean over the labels t of their losses, and their number n.

        Raises:
            ValueError: if the order needs the co-occurrence of labels and `counts` is not set.
        """
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        generator = torch.Generator().manual_seed(seed)
        labels = self.draw_labels(generator).to(vectors.device)
        if not len(labels):
            return vectors.sum() * 0, 0
        if self.is_released:
            kept = torch.rand(vectors.shape, generator=generator).to(vectors.device) >= RELEASED_DROPOUT
            vectors = torch.where(kept, vectors / (1 - RELEASED_DROPOUT), 0.0)

        def total(vectors: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
            distances = lorentz_distances(vectors[chunk], vectors, self.curvature)
            ranks = self.order.ranks(chunk, self.counts)
            if self.is_released:
                return sampled_label_losses(distances, ranks, generator).sum()
            return label_losses(distances, ranks, chunk).sum()

        chunks = labels.split(max(PAIRS // len(vectors), 1))
        return _SumOverChunks.apply(vectors, total, chunks) / len(labels), len(labels)


class _SumOverChunks(torch.autograd.Function):
    """Sums a function of the vectors over chunks of labels, and computes the gradient of each chunk at once.

    So the largest tensors are those of one chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: torch.Tensor,
        function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        chunks: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        leaf = vectors.detach().requires_grad_(ctx.needs_input_grad[0])
        total = vectors.new_zeros(())
        gradient = torch.zeros_like(leaf) if leaf.requires_grad else None
        for chunk in chunks:
            with torch.set_grad_enabled(leaf.requires_grad):
                loss = function(leaf, chunk)
            if gradient is not None:
                gradient += torch.autograd.grad(loss, leaf)[0]
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else gradients[0] * gradient), None, None


def build_penalty(config: Any, taxonomy: Taxonomy) -> LabelPenalty | None:
    """Builds the label loss that a configuration names. Returns None without one."""
    if config.geometry == "euclidean" or not config.geometry_weight:
        return None
    return LabelPenalty(
        taxonomy, config.geometry_order, config.geometry_curvature, config.geometry_rows, config.geometry_released
    )


def check_geometry(config: Any) -> None:
    """Checks that the fields of the geometry are in range and fit the other fields of an [`HcalConfig`].

    Raises:
        ValueError: with the pair of fields that do not fit, and the values that do.
    """
    if not 0 <= config.geometry_weight < math.inf:
        raise ValueError(f"geometry_weight must be a finite number of at least 0, got {config.geometry_weight}.")
    if not 0 < config.geometry_curvature < math.inf:
        raise ValueError(f"geometry_curvature must be a finite number above 0, got {config.geometry_curvature}.")
    if config.geometry_rows is not None and config.geometry_rows < 1:
        raise ValueError(f"geometry_rows must be at least 1, or None (automatic), got {config.geometry_rows}.")
    for name, value, needed, reason in _misfits(config):
        raise ValueError(f"{name} does not fit {value}, {reason}: use {needed}.")


def _misfits(config: Any) -> Iterator[tuple[str, str, str, str]]:
    """Yields (the setting of the geometry, the setting that does not fit it, what to use, the reason)."""
    name = f"geometry={config.geometry!r}"
    if config.geometry_released and config.geometry != "hyperbolic_penalty":
        yield "geometry_released=True", name, 'geometry="hyperbolic_penalty"', "because the release has inner products"
    if config.geometry == "euclidean":
        return
    if config.score_function != "linear":
        reason = "because unit prototypes cannot lie at different distances from the origin"
        yield name, f"score_function={config.score_function!r}", 'score_function="linear"', reason
    if config.objective != "document":
        reason = "because class means are compared by cosines"
        yield name, f"objective={config.objective!r}", 'objective="document"', reason
    if config.contrast and (config.geometry == "hyperbolic" or config.geometry_released):
        reason = "because contrasts compare class means by cosines"
        yield name, f"contrast={config.contrast!r}", 'contrast=None, or geometry="hyperbolic_penalty"', reason
    if not config.geometry_released:
        return
    fitting = {
        "label_mode": "multi_path",
        "head": "independent",
        "prototype_temperature": 1,
        "perturbation": 0,
        "prototype_anchor": None,
        "geometry_order": "cooccurrence",
    }
    for field, value in fitting.items():
        if getattr(config, field) != value:
            needed = ", ".join(f"{field}={value!r}" for field, value in fitting.items())
            reason = "because the release has plain inner products of free prototypes and one sigmoid per label"
            yield "geometry_released=True", f"{field}={getattr(config, field)!r}", needed, reason

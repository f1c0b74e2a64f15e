"""Label prototypes: one learned vector per label, compared with document features by cosine, inner product or distance."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

from .geometry import RELEASED_DROPOUT, RELEASED_LENGTH, exponential_map, lorentz_distance, lorentz_distances

# Numbers in the rows of prototypes that are processed together on a CPU: 2 MiB in float32, which stays in the caches.
CHUNK = 2**19
# The same on other devices, where launching a kernel costs more than a cache miss: 256 MiB in float32.
DEVICE_CHUNK = 2**26
# Vectors shorter than this have no direction, as in torch.nn.functional.normalize.
_SHORTEST = 1e-12


def perturbed(vectors: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Computes normalize(normalize(P) + U) [n, d] of P [n, d] and U [n, d], or normalize(P) without U (HCAL)."""
    units = F.normalize(vectors, dim=-1)
    return units if noise is None else F.normalize(units + noise.detach().to(units), dim=-1)


def inner_products(
    features: torch.Tensor, vectors: torch.Tensor, noise: torch.Tensor | None, is_linear: bool
) -> torch.Tensor:
    """Multiplies features [B, d] with `perturbed` P [n, d], and with the lengths of P if `is_linear`.

    Returns:
        `torch.Tensor` of shape `[B, n]`, stored label by label.
    """
    if is_linear and noise is None:  # also defined for P = 0, which has no direction
        return (vectors @ features.T).T
    products = (perturbed(vectors, noise) @ features.T).T
    return products * torch.linalg.vector_norm(vectors, dim=-1) if is_linear else products


def negative_distances(
    points: torch.Tensor, vectors: torch.Tensor, noise: torch.Tensor | None, curvature: float
) -> torch.Tensor:
    """Computes minus the hyperbolic distance between points [B, d] and P [n, d]. Noise turns P and keeps its length.

    Returns:
        `torch.Tensor` of shape `[B, n]`, stored label by label.
    """
    if noise is not None:
        vectors = perturbed(vectors, noise) * torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return -lorentz_distances(vectors, points, curvature).T


class _ChunkedProducts(torch.autograd.Function):
    """Compares features with a chunk of prototypes at a time and recomputes each chunk in the backward pass.

    Like `torch.utils.checkpoint` over chunks, but the gradients of all chunks are written into one tensor: with 10^6 labels
    the gradient of the weight is the only [L, d] tensor that a backward pass allocates.

    Args:
        vectors: computes P [n, d] from a slice of the rows, these rows of the weight, and `parameters`.
        compare: computes the products [B, n] from features, P and noise.
        features (`torch.Tensor` of shape `[B, d]`).
        noise (`torch.Tensor` of shape `[L, d]`, *optional*): U, without gradient.
        weight (`torch.Tensor` of shape `[L, d]`).
        parameters: the other tensors, of any shapes, on which P depends.

    Returns:
        `torch.Tensor` of shape `[B, L]`, stored label by label.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Callable[..., torch.Tensor],
        compare: Callable[..., torch.Tensor],
        features: torch.Tensor,
        noise: torch.Tensor | None,
        weight: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        ctx.vectors, ctx.compare = vectors, compare
        ctx.save_for_backward(features, noise, weight, *parameters)
        products = features.new_empty(len(weight), len(features)).T
        for rows in _chunks(weight):
            chunk = vectors(rows, weight[rows], *parameters).to(features)
            products[:, rows] = compare(features, chunk, None if noise is None else noise[rows])
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, noise, weight, *parameters = ctx.saved_tensors
        weight_gradient = torch.empty_like(weight)
        shared = [features, *parameters]
        # Sums over chunks, in at least float32.
        sums = [torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in shared]
        # A caller who runs backward() under autocast gets the precision of the forward pass.
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            for rows in _chunks(weight):
                leaves = [tensor.detach().requires_grad_() for tensor in (weight[rows], *shared)]
                chunk = ctx.vectors(rows, leaves[0], *leaves[2:]).to(features)
                products = ctx.compare(leaves[1], chunk, None if noise is None else noise[rows])
                weight_gradient[rows], *others = torch.autograd.grad(
                    products, leaves, gradients[0][:, rows], allow_unused=True, materialize_grads=True
                )
                for total, gradient in zip(sums, others):
                    total += gradient
        return None, None, sums[0].to(features), None, weight_gradient, *sums[1:]


class _Cosines(torch.autograd.Function):
    """Computes the cosines of features [B, d] with prototypes P [L, d], `perturbed` by U [L, d] or clean.

    Forward and backward pass take 0.3 to 0.5 of the time of `_ChunkedProducts` (1,000 to 100,000 labels of width 256, 32
    documents, one CPU thread), because no unit prototypes are made: with u = P / |P| and m = u + U,

        <f, m / |m|> = (<f, P> / |P| + <f, U>) / |m|,   |m|^2 = |u|^2 + 2 <u, U> + |U|^2.

    The only [L, d] tensor of the backward pass is the gradient with respect to P,

        (sum_b s_b f_b - (a U + c P)) / |P|,   s_b = g_b / |m|,   a = sum_b s_b cos_b / |m|,

    where c makes it orthogonal to P.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        cosines = features.new_empty(len(weight), len(features))
        lengths = weight.new_empty(len(weight))
        # <u, U>, |U|^2 and the cosines before perturbation, which the backward pass needs as well.
        along = None if noise is None else torch.empty_like(lengths)
        squares = None if noise is None else torch.empty_like(lengths)
        clean = cosines if noise is None else torch.empty_like(cosines)
        for rows in _chunks(weight):
            length = torch.linalg.vector_norm(weight[rows], dim=-1, out=lengths[rows]).clamp_(min=_SHORTEST)
            torch.mm(weight[rows], features.T, out=clean[rows]).div_(length[:, None])
            if noise is not None and along is not None and squares is not None:
                torch.linalg.vecdot(weight[rows], noise[rows], out=along[rows]).div_(length)
                torch.linalg.vector_norm(noise[rows], dim=-1, out=squares[rows]).square_()
                torch.addmm(clean[rows], noise[rows], features.T, out=cosines[rows])
        perturbed_lengths = None
        if along is not None and squares is not None:
            perturbed_lengths = ((lengths > _SHORTEST) + 2 * along + squares).clamp_(min=0).sqrt_()
            perturbed_lengths.clamp_(min=_SHORTEST)
            cosines.div_(perturbed_lengths[:, None])
        ctx.save_for_backward(features, weight, noise, lengths, clean, along, perturbed_lengths, cosines)
        return cosines.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, weight, noise, lengths, clean, along, perturbed_lengths, cosines = ctx.saved_tensors
        gradient = gradients[0].T
        features_gradient = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(gradient.device.type, enabled=False):
            for rows in _chunks(weight):
                length, by_cosine = lengths[rows, None], gradient[rows]
                if noise is not None:
                    by_cosine = by_cosine / perturbed_lengths[rows, None]
                by_product = by_cosine / length
                if features_gradient is not None:
                    features_gradient.addmm_(by_product.T, weight[rows])
                    if noise is not None:
                        features_gradient.addmm_(by_cosine.T, noise[rows])
                if weight_gradient is None:
                    continue
                by_length = (by_product * clean[rows]).sum(dim=1, keepdim=True)
                if noise is not None:
                    by_noise = (by_product * cosines[rows]).sum(dim=1, keepdim=True) / perturbed_lengths[rows, None]
                    # Removes the part of the step along U that lies in the direction of u.
                    by_length -= by_noise * along[rows, None]
                by_length = torch.where(length > _SHORTEST, by_length / length, 0.0)
                torch.mul(weight[rows], -by_length, out=weight_gradient[rows]).addmm_(by_product, features)
                if noise is not None:
                    weight_gradient[rows].addcmul_(noise[rows], by_noise, value=-1)
        return features_gradient, weight_gradient, None


def _chunks(weight: torch.Tensor) -> Iterator[slice]:
    numbers = CHUNK if weight.device.type == "cpu" else DEVICE_CHUNK
    size = max(1, numbers // weight.shape[1])
    return (slice(start, start + size) for start in range(0, len(weight), size))


class LabelPrototypes(nn.Module):
    """Holds one prototype per label.

    Prototypes are L2-normalised at each use, unless they are linear: then their length counts.

    Args:
        num_labels (`int`): L.
        dim (`int`): d.
        perturbation (`float`): half-width eps of the uniform noise at d = 256. eps * sqrt(256 / d) is used, so that the
            noise keeps its length relative to a unit prototype (HCAL's released width is 0.01 at d = 256).
        anchor_size (`int`, *optional*): size of the label embeddings to which the prototypes are anchored; None for free
            prototypes.
        depths (`torch.Tensor` of shape `[L]`, *optional*): makes the prototypes linear; the depth of each label. Anchors
            then have a learned weight for each depth.
        has_bias (`bool`): whether linear prototypes have a bias.
        curvature (`float`, *optional*): makes linear prototypes points of a hyperbolic space of curvature -c, which are
            compared by their distance ([`hcal_hf.geometry`]); None for inner products.
        is_released (`bool`): limits the length of the prototypes to 1 and applies dropout to them, as the release of joint
            hyperbolic label embeddings does.

    Attributes:
        weight (`nn.Parameter` of shape `[L, d]`): the prototypes in label order, initialised from N(0, 0.01^2). Anchored
            prototypes: the learned difference from the anchor, initially 0.
        anchors (`torch.Tensor` of shape `[L, anchor_size]`): pooled encoder states of the label texts; anchored only.
        bias (`nn.Parameter` of shape `[L]`): added to the inner products, initially 0; only with `has_bias`. With
            `curvature`, added to minus the distance, initially 1, so that the first scores are about 0.
        radius (`nn.Parameter` of shape `()`): the distance of documents from the origin, initially 1; only with
            `curvature`.
        anchor_scale (`nn.Parameter` of shape `[D]`): the weight of the anchors of each level, initially 1; linear and
            anchored only.
        trained (`torch.Tensor` of shape `[L]`, bool): the labels that occur in the training documents, all by default;
            anchored only. The rows of `weight` of other labels get no gradient. Otherwise these labels, which are negative
            in every document, would be pushed away from their label text.
    """

    anchors: torch.Tensor
    trained: torch.Tensor
    depths: torch.Tensor

    def __init__(
        self,
        num_labels: int,
        dim: int,
        perturbation: float = 0.0,
        anchor_size: int | None = None,
        depths: torch.Tensor | None = None,
        has_bias: bool = False,
        curvature: float | None = None,
        is_released: bool = False,
    ):
        super().__init__()
        self.shape = (num_labels, dim)
        self.weight = nn.Parameter(torch.empty(num_labels, dim))
        self.noise_width = perturbation * math.sqrt(256 / dim)
        self.is_anchored = anchor_size is not None
        self.init_std = 0.0 if self.is_anchored else 0.01
        self.is_linear = depths is not None
        self.curvature, self.is_released = curvature, is_released
        self.bias = self.anchor_scale = None
        self.radius = None if curvature is None else nn.Parameter(torch.empty(()))
        if depths is not None:
            self.bias = nn.Parameter(torch.empty(num_labels)) if has_bias else None
            self.register_buffer("depths", depths.clone(), persistent=False)
            if self.is_anchored:
                self.anchor_scale = nn.Parameter(torch.empty(int(depths.max()) + 1))
        if anchor_size is not None:
            self.register_buffer("anchors", torch.zeros(num_labels, anchor_size))
            self.register_buffer("trained", torch.ones(num_labels, dtype=torch.bool))

    def sample_noise(self, seed: int | None = None) -> torch.Tensor | None:
        """Draws U [L, d], iid Uniform(-eps, eps), at least float32. Returns None if eps is 0.

        Args:
            seed (`int`, *optional*): draws from a new generator with this seed, so that processes on the same kind of
                device draw the same noise; from torch's global generator by default.
        """
        if not self.noise_width:
            return None
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        # The whole shape, because the weight may be sharded over processes.
        noise = torch.empty(self.shape, dtype=dtype, device=device)
        return noise.uniform_(-self.noise_width, self.noise_width, generator=generator)

    def vectors(self, projection: nn.Module) -> torch.Tensor:
        """Computes the prototypes P [L, d] before any normalisation, at least float32.

        Free prototypes are the weight itself. Anchored ones are scale * normalize(g(e)) + delta, where `anchor_scale`
        holds the scale of each level for linear prototypes and the scale is 1 otherwise.
        """
        return self._vectors(projection, slice(None), self.weight, self.anchor_scale)

    def _vectors(
        self,
        projection: Callable[[torch.Tensor], torch.Tensor],
        rows: slice | torch.Tensor,
        weight: torch.Tensor,
        anchor_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes some rows [n, d] of `vectors` from the same rows [n, d] of the weight."""
        anchors = None if not self.is_anchored else self._unit_anchors(projection, rows, weight.dtype)
        return self._add_anchors(rows, weight, anchors, anchor_scale)

    def unit_anchors(self, projection: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor | None:
        """Computes normalize(g(e)) [L, d], the directions of the label texts. Returns None for free prototypes."""
        return self._unit_anchors(projection, slice(None), self.weight.dtype) if self.is_anchored else None

    def vectors_from(self, unit_anchors: torch.Tensor | None) -> torch.Tensor:
        """Computes `vectors` [L, d] from `unit_anchors` [L, d] that were computed before."""
        return self._add_anchors(slice(None), self.weight, unit_anchors, self.anchor_scale)

    def _unit_anchors(
        self, projection: Callable[[torch.Tensor], torch.Tensor], rows: slice | torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        projected = projection(self.anchors[rows].to(dtype))
        return F.normalize(projected.to(torch.promote_types(dtype, torch.float32)), dim=-1)

    def _add_anchors(
        self,
        rows: slice | torch.Tensor,
        weight: torch.Tensor,
        unit_anchors: torch.Tensor | None,
        anchor_scale: torch.Tensor | None,
    ) -> torch.Tensor:
        learned = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if unit_anchors is None:
            return learned
        learned = torch.where(self.trained[rows, None], learned, learned.detach())
        if anchor_scale is not None:
            unit_anchors = anchor_scale.to(learned)[self.depths[rows]][:, None] * unit_anchors
        return learned + unit_anchors

    def forward(
        self, projection: nn.Module, noise: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes the unit prototypes, or with `noise` the perturbed ones, normalize(normalize(P) + U) (HCAL).

        Args:
            projection (`nn.Module`): g, which maps pooled encoder states to features, the same as for documents.
            noise (`torch.Tensor` of shape `[L, d]`, *optional*): U, a constant for the gradient.
            labels (`torch.Tensor` of shape `[C]`, int64, *optional*): computes only the prototypes of these labels.

        Returns:
            `torch.Tensor` of shape `[L, d]`, or `[C, d]` with `labels`, at least float32.
        """
        rows = slice(None) if labels is None else labels
        vectors = self._vectors(projection, rows, self.weight[rows], self.anchor_scale)
        return perturbed(vectors, None if noise is None else noise[rows])

    def features(self, projected: torch.Tensor) -> torch.Tensor:
        """Computes the features [B, d] from projected states [B, d]: unit vectors, except as in the release."""
        return projected if self.is_released else F.normalize(projected, dim=-1)

    def points(self, features: torch.Tensor) -> torch.Tensor:
        """Places features [B, d] where `compare` expects them: with `curvature`, at distance `radius` from the origin."""
        if self.radius is None or self.curvature is None:
            return features
        return exponential_map(self.radius.to(features) * features, self.curvature)

    def compare(self, points: torch.Tensor, vectors: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Compares points [B, d] with P [n, d]: inner products, or minus the distance with `curvature`, [B, n]."""
        if self.curvature is None:
            return inner_products(points, vectors, noise, self.is_linear)
        return negative_distances(points, vectors, noise, self.curvature)

    def compare_pairs(self, points: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Compares each of C points [C, d] with its own vector [C, d], as `compare` does. Returns [C]."""
        if self.curvature is None:
            return torch.linalg.vecdot(points, vectors)
        return -lorentz_distance(points, vectors, self.curvature)

    @torch.no_grad()
    def limit_lengths(self) -> None:
        """Shortens prototypes that are longer than 1, in place, as the release does at each use."""
        if self.is_released:
            self.weight.copy_(self.weight.renorm(2, 0, RELEASED_LENGTH))

    def products(
        self, features: torch.Tensor, projection: nn.Module, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compares unit features [B, d] with all prototypes, for a head to compute its scores from.

        Noise turns a linear prototype and keeps its length. The result can be differentiated once.

        Returns:
            `torch.Tensor` of shape `[B, L]`, stored label by label: cosines, or for linear prototypes inner products or
            minus distances, plus biases.
        """
        products = self._products(self.points(features), projection, noise)
        return products if self.bias is None else products + self.bias.to(features)

    def _products(self, features: torch.Tensor, projection: nn.Module, noise: torch.Tensor | None) -> torch.Tensor:
        """Computes `products` of points without biases."""
        if self.is_released and self.training:
            return self.compare(features, F.dropout(self.vectors(projection), RELEASED_DROPOUT).to(features))
        named = dict(projection.named_parameters()) if self.is_anchored else {}
        # Compilers plan memory themselves, tracers must see the operations, and replicas of torch.nn.DataParallel list no
        # parameters. A single chunk saves nothing.
        is_captured = torch.compiler.is_compiling() or torch.jit.is_tracing()
        is_plain = not self.is_anchored and not self.is_linear
        if is_plain and not is_captured and self.weight.dtype == features.dtype:
            cosines: torch.Tensor = _Cosines.apply(
                features, self.weight, None if noise is None else noise.detach().to(features)
            )
            return cosines
        is_single_chunk = next(_chunks(self.weight)).stop >= len(self.weight)
        if is_captured or is_single_chunk or (self.is_anchored and not named):
            return self.compare(features, self.vectors(projection).to(features), noise)
        scales = [] if self.anchor_scale is None else [self.anchor_scale]

        def vectors(rows: slice, weight: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
            project = lambda states: functional_call(projection, dict(zip(named, values)), states)  # noqa: E731
            return self._vectors(project, rows, weight, *values[len(named) :])

        return _ChunkedProducts.apply(vectors, self.compare, features, noise, self.weight, *named.values(), *scales)

"""Label prototypes: one learned vector a label, compared with document features by cosine or by inner product."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

# About how many numbers the rows that are worked on at one time hold: 4 MiB in float32, so that they stay in caches.
CHUNK = 2**20
# The same for work without autograd, whose chunks cost less to begin: 2 MiB.
_CACHED = 2**19
# Vectors shorter than this have no direction, as in torch.nn.functional.normalize.
_SHORTEST = 1e-12


def perturbed(vectors: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """normalize(normalize(P) + U) [n, d] of P [n, d] and U [n, d], or normalize(P) without U (HCAL)."""
    units = F.normalize(vectors, dim=-1)
    return units if noise is None else F.normalize(units + noise.detach().to(units), dim=-1)


def inner_products(
    features: torch.Tensor, vectors: torch.Tensor, noise: torch.Tensor | None, is_linear: bool
) -> torch.Tensor:
    """Features [B, d] times `perturbed` P [n, d], and times the lengths of P if `is_linear`: [B, n], stored label by
    label."""
    if is_linear and noise is None:  # also where P is 0, which has no direction
        return (vectors @ features.T).T
    products = (perturbed(vectors, noise) @ features.T).T
    return products * torch.linalg.vector_norm(vectors, dim=-1) if is_linear else products


class _Products(torch.autograd.Function):
    """`inner_products` with a chunk of P's rows at a time. Autograd would keep and make many [L, d] tensors; here the
    backward pass computes P again, and the weight's gradient is the only one.

    Args:
        vectors: gives P [n, d] of the rows in a slice, from the slice, these rows of the weight, and the parameters.
        is_linear (`bool`).
        features (`torch.Tensor` of shape `[B, d]`).
        noise (`torch.Tensor` of shape `[L, d]`, *optional*): U, without gradient.
        weight (`torch.Tensor` of shape `[L, d]`).
        parameters: what else P depends on, tensors of any shapes.

    Returns:
        `torch.Tensor` of shape `[B, L]`, stored label by label.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Callable[..., torch.Tensor],
        is_linear: bool,
        features: torch.Tensor,
        noise: torch.Tensor | None,
        weight: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        ctx.vectors, ctx.is_linear = vectors, is_linear
        ctx.save_for_backward(features, noise, weight, *parameters)
        products = features.new_empty(len(weight), len(features)).T
        for rows in _chunks(weight):
            found = vectors(rows, weight[rows], *parameters).to(features)
            products[:, rows] = inner_products(features, found, None if noise is None else noise[rows], is_linear)
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, noise, weight, *parameters = ctx.saved_tensors
        to_features, to_weight = torch.zeros_like(features), torch.empty_like(weight)
        # Sums over chunks, in at least float32.
        sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        # Whoever calls backward() under autocast still gets the precision of the forward pass.
        with torch.autocast(features.device.type, enabled=False):
            for rows in _chunks(weight):
                leaves = [tensor.detach().requires_grad_() for tensor in (weight[rows], *parameters)]
                with torch.enable_grad():
                    found = ctx.vectors(rows, *leaves).to(features)
                rows_noise = None if noise is None else noise[rows]
                to_rows, to_found = _gradients(
                    gradients[0][:, rows], features, found.detach(), rows_noise, ctx.is_linear
                )
                to_features += to_rows
                to_weight[rows], *others = torch.autograd.grad(
                    found, leaves, to_found, allow_unused=True, materialize_grads=True
                )
                for total, part in zip(sums, others):
                    total += part
        return None, None, to_features, None, to_weight, *sums


class _Cosines(torch.autograd.Function):
    """Features [B, d] times the directions of prototypes P [L, d] of any length, `perturbed` by U [L, d] or as they are,
    and the gradients.

    With u = P / |P| and m = u + U, <f, m / |m|> = (<f, P> / |P| + <f, U>) / |m| and |m|^2 = |u|^2 + 2 <u, U> + |U|^2:
    products are divided by lengths, so that no unit prototypes are made and the only [L, d] tensor is the gradient,

        (sum_b s_b f_b - (a U + c P)) / |P|,  s_b = g_b / |m|,  a = sum_b s_b cos_b / |m|,

    with c such that it is orthogonal to P. What is done to some rows of prototypes is done while they are in the caches.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        cosines = features.new_empty(len(weight), len(features))
        lengths = weight.new_empty(len(weight))
        # <u, U> and |U|^2, and the cosines before perturbation: the backward pass needs them too.
        along = None if noise is None else torch.empty_like(lengths)
        squares = None if noise is None else torch.empty_like(lengths)
        clean = cosines if noise is None else torch.empty_like(cosines)
        for rows in _chunks(weight, _CACHED):
            length = torch.linalg.vector_norm(weight[rows], dim=-1, out=lengths[rows]).clamp_(min=_SHORTEST)
            torch.mm(weight[rows], features.T, out=clean[rows]).div_(length[:, None])
            if noise is not None and along is not None and squares is not None:
                torch.linalg.vecdot(weight[rows], noise[rows], out=along[rows]).div_(length)
                torch.linalg.vector_norm(noise[rows], dim=-1, out=squares[rows]).square_()
                torch.addmm(clean[rows], noise[rows], features.T, out=cosines[rows])
        moved = None
        if along is not None and squares is not None:
            moved = ((lengths > _SHORTEST) + 2 * along + squares).clamp_(min=0).sqrt_().clamp_(min=_SHORTEST)
            cosines.div_(moved[:, None])
        ctx.save_for_backward(features, weight, noise, lengths, clean, along, moved, cosines)
        return cosines.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, weight, noise, lengths, clean, along, moved, cosines = ctx.saved_tensors
        gradient = gradients[0].T
        of_features = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(gradient.device.type, enabled=False):
            for rows in _chunks(weight, _CACHED):
                length, part = lengths[rows, None], gradient[rows]
                if noise is not None:
                    part = part / moved[rows, None]
                scaled = part / length
                if of_features is not None:
                    of_features.addmm_(scaled.T, weight[rows])
                    if noise is not None:
                        of_features.addmm_(part.T, noise[rows])
                if of_weight is None:
                    continue
                of_length = (scaled * clean[rows]).sum(dim=1, keepdim=True)
                if noise is not None:
                    of_noise = (scaled * cosines[rows]).sum(dim=1, keepdim=True) / moved[rows, None]
                    # What the step along U adds to the part along u, by which m has length |m|.
                    of_length -= of_noise * along[rows, None]
                of_length = torch.where(length > _SHORTEST, of_length / length, 0.0)
                torch.mul(weight[rows], -of_length, out=of_weight[rows]).addmm_(scaled, features)
                if noise is not None:
                    of_weight[rows].addcmul_(noise[rows], of_noise, value=-1)
        return of_features, of_weight, None


def _gradients(
    gradient: torch.Tensor, features: torch.Tensor, vectors: torch.Tensor, noise: torch.Tensor | None, is_linear: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `inner_products` [B, n], with respect to the features [B, d] and to P [n, d], from that of the products."""
    if is_linear and noise is None:
        return gradient @ vectors, gradient.T @ features
    lengths, units = _normalized(vectors)
    moved_lengths, moved = (None, units) if noise is None else _normalized(units + noise.to(units))
    to_cosines = gradient * lengths.T if is_linear else gradient
    to_vectors = to_cosines.T @ features
    # Of a linear prototype, with respect to the logarithm of its length.
    to_log_lengths = torch.linalg.vecdot(to_vectors, moved)[:, None] if is_linear else None
    if moved_lengths is not None:
        to_vectors = _through_normalized(to_vectors, moved_lengths, moved)
    to_vectors = _through_normalized(to_vectors, lengths, units)
    if to_log_lengths is not None:
        to_vectors.addcmul_(to_log_lengths / lengths, units)
    return to_cosines @ moved, to_vectors


def _chunks(weight: torch.Tensor, numbers: int | None = None) -> Iterator[slice]:
    size = max(1, (CHUNK if numbers is None else numbers) // weight.shape[1])
    return (slice(start, start + size) for start in range(0, len(weight), size))


def _normalized(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengths [n, 1] and the vectors [n, d] divided by them, as in `F.normalize`."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-12)
    return lengths, vectors / lengths


def _through_normalized(gradient: torch.Tensor, lengths: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """The gradient [n, d] with respect to vectors from that with respect to their units: what is orthogonal to these,
    divided by the lengths. Changes `gradient` in place."""
    along = torch.linalg.vecdot(gradient, units)[:, None]
    return gradient.addcmul_(along, units, value=-1).div_(lengths)


class LabelPrototypes(nn.Module):
    """One prototype a label, L2-normalised at each use; of any length with `linear`.

    Args:
        num_labels (`int`): L.
        dim (`int`): d.
        perturbation (`float`): half-width eps of the uniform noise at d = 256; eps * sqrt(256 / d) is used, so that
            the noise keeps its length relative to a unit prototype (HCAL's released width is 0.01 at d = 256).
        anchor_size (`int`, *optional*): size of the text embeddings that the prototypes are anchored in; None for free
            prototypes.
        depths (`torch.Tensor` of shape `[L]`, *optional*): for linear prototypes, whose length counts; the depth of
            each label. Anchors then have a learned weight for each depth.
        has_bias (`bool`): whether linear prototypes have a bias.

    Attributes:
        weight (`nn.Parameter` of shape `[L, d]`): the prototypes in label order, initialised from N(0, 0.01^2). Anchored:
            what is learned beside the anchor, initially 0.
        anchors (`torch.Tensor` of shape `[L, anchor_size]`): pooled encoder states of the labels' words; anchored only.
        bias (`nn.Parameter` of shape `[L]`): what is added to the inner products, initially 0; only with
            `has_bias`.
        anchor_scale (`nn.Parameter` of shape `[D]`): the weight of the anchors of each level, initially 1; linear and
            anchored only.
        trained (`torch.Tensor` of shape `[L]`, bool): the labels that training documents carry, all by default; anchored
            only. The others' rows of `weight` get no gradient, so that being a negative everywhere does not push them away
            from their words.
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
    ):
        super().__init__()
        self.shape = (num_labels, dim)
        self.weight = nn.Parameter(torch.empty(num_labels, dim))
        self.noise_width = perturbation * math.sqrt(256 / dim)
        self.is_anchored = anchor_size is not None
        self.init_std = 0.0 if self.is_anchored else 0.01
        self.is_linear = depths is not None
        self.bias = self.anchor_scale = None
        if depths is not None:
            self.bias = nn.Parameter(torch.empty(num_labels)) if has_bias else None
            self.register_buffer("depths", depths.clone(), persistent=False)
            if self.is_anchored:
                self.anchor_scale = nn.Parameter(torch.empty(int(depths.max()) + 1))
        if anchor_size is not None:
            self.register_buffer("anchors", torch.zeros(num_labels, anchor_size))
            self.register_buffer("trained", torch.ones(num_labels, dtype=torch.bool))

    def sample_noise(self, seed: int | None = None) -> torch.Tensor | None:
        """U of shape [L, d], iid Uniform(-eps, eps), at least float32; None where eps is 0.

        Args:
            seed (`int`, *optional*): draws from a generator of its own, so that processes with devices of one kind draw
                the same; from torch's generator by default.
        """
        if not self.noise_width:
            return None
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        # The shape as it was given: the weight itself may be sharded over processes.
        noise = torch.empty(self.shape, dtype=dtype, device=device)
        return noise.uniform_(-self.noise_width, self.noise_width, generator=generator)

    def vectors(self, projection: nn.Module) -> torch.Tensor:
        """The prototypes [L, d] as they are learned, before any normalisation, at least float32: P itself, or
        normalize(g(e)) + delta with the first term times its level's `anchor_scale` where that is learned."""
        return self._vectors(projection, slice(None), self.weight, self.anchor_scale)

    def _vectors(
        self,
        projection: Callable[[torch.Tensor], torch.Tensor],
        rows: slice,
        weight: torch.Tensor,
        anchor_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Some rows [n, d] of `vectors`, from the same rows [n, d] of the weight."""
        found = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if not self.is_anchored:
            return found
        found = torch.where(self.trained[rows, None], found, found.detach())
        anchors = F.normalize(projection(self.anchors[rows].to(weight.dtype)).to(found), dim=-1)
        if anchor_scale is not None:
            anchors = anchor_scale.to(found)[self.depths[rows]][:, None] * anchors
        return found + anchors

    def forward(self, projection: nn.Module, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The unit prototypes, perturbed where `noise` is given: normalize(normalize(P) + U) (HCAL). Anchored, P is
        normalize(g(e)) + delta.

        Args:
            projection (`nn.Module`): g, from pooled encoder states to features; the documents' own.
            noise (`torch.Tensor` of shape `[L, d]`, *optional*): U, a constant for the gradient.

        Returns:
            `torch.Tensor` of shape `[L, d]`, at least float32.
        """
        return perturbed(self.vectors(projection), noise)

    def products(
        self, features: torch.Tensor, projection: nn.Module, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What a head makes its scores of, [B, L], stored label by label, from unit features [B, d]: cosines with the
        prototypes, or, linear, inner products plus biases. Noise turns a linear prototype and leaves its length.
        Differentiable once."""
        products = self._inner_products(features, projection, noise)
        return products if self.bias is None else products + self.bias.to(features)

    def _inner_products(
        self, features: torch.Tensor, projection: nn.Module, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """`products` without biases."""
        named = dict(projection.named_parameters()) if self.is_anchored else {}
        # Compilers plan memory themselves, tracers must see the operations, and replicas of torch.nn.DataParallel have no
        # parameters that could be listed. One chunk has nothing to save.
        is_captured = torch.compiler.is_compiling() or torch.jit.is_tracing()
        is_plain = not self.is_anchored and not self.is_linear
        if is_plain and not is_captured and self.weight.dtype == features.dtype:
            cosines: torch.Tensor = _Cosines.apply(
                features, self.weight, None if noise is None else noise.detach().to(features)
            )
            return cosines
        if is_captured or (self.is_anchored and not named) or self.weight.numel() <= CHUNK:
            return inner_products(features, self.vectors(projection).to(features), noise, self.is_linear)
        scales = [] if self.anchor_scale is None else [self.anchor_scale]

        def vectors(rows: slice, weight: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
            project = lambda states: functional_call(projection, dict(zip(named, values)), states)  # noqa: E731
            return self._vectors(project, rows, weight, *values[len(named) :])

        return _Products.apply(vectors, self.is_linear, features, noise, self.weight, *named.values(), *scales)

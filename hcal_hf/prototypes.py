"""Label prototypes: one learned direction a label, compared with document features by cosine."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class LabelPrototypes(nn.Module):
    """One prototype a label, L2-normalised at each use.

    Args:
        num_labels (`int`): L.
        dim (`int`): d.
        perturbation (`float`): half-width eps of the uniform noise at d = 256; eps * sqrt(256 / d) is used, so that
            the noise keeps its length relative to a unit prototype (HCAL's released width is 0.01 at d = 256).
        anchor_size (`int`, *optional*): size of the text embeddings that the prototypes are anchored in; None for free
            prototypes.

    Attributes:
        weight (`nn.Parameter` of shape `[L, d]`): the prototypes in label order, initialised from N(0, 0.01^2). Anchored:
            what is learned beside the anchor, initially 0.
        anchors (`torch.Tensor` of shape `[L, anchor_size]`): pooled encoder states of the labels' words; anchored only.
        trained (`torch.Tensor` of shape `[L]`, bool): the labels that training documents carry, all by default; anchored
            only. The others' rows of `weight` get no gradient, so that being a negative everywhere does not push them away
            from their words.
    """

    anchors: torch.Tensor
    trained: torch.Tensor

    def __init__(self, num_labels: int, dim: int, perturbation: float = 0.0, anchor_size: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_labels, dim))
        self.noise_width = perturbation * math.sqrt(256 / dim)
        self.is_anchored = anchor_size is not None
        self.init_std = 0.0 if self.is_anchored else 0.01
        if anchor_size is not None:
            self.register_buffer("anchors", torch.zeros(num_labels, anchor_size))
            self.register_buffer("trained", torch.ones(num_labels, dtype=torch.bool))

    def sample_noise(self) -> torch.Tensor | None:
        """U of shape [L, d], iid Uniform(-eps, eps) from torch's generator, at least float32; None where eps is 0."""
        if not self.noise_width:
            return None
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return torch.empty_like(self.weight, dtype=dtype).uniform_(-self.noise_width, self.noise_width)

    def forward(self, projection: nn.Module, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The unit prototypes, perturbed where `noise` is given: normalize(normalize(P) + U) (HCAL). Anchored, P is
        normalize(g(e)) + delta.

        Args:
            projection (`nn.Module`): g, from pooled encoder states to features; the documents' own.
            noise (`torch.Tensor` of shape `[L, d]`, *optional*): U, a constant for the gradient.

        Returns:
            `torch.Tensor` of shape `[L, d]`, at least float32.
        """
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if self.is_anchored:
            weight = torch.where(self.trained[:, None], weight, weight.detach())
            weight = weight + F.normalize(projection(self.anchors.to(self.weight.dtype)).to(weight), dim=-1)
        unit = F.normalize(weight, dim=-1)
        if noise is None:
            return unit
        return F.normalize(unit + noise.detach().to(unit), dim=-1)

    def cosines(
        self, features: torch.Tensor, projection: nn.Module, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cosines [B, L] of unit features [B, d] with the prototypes that `forward` returns.

        Free prototypes are not normalised one by one, which would copy [L, d] several times over: their inner products are
        divided by their norms instead, with |normalize(P) + U|^2 = 1 + 2 <P, U> / |P| + |U|^2.
        """
        if self.is_anchored:
            return features @ self(projection, noise).to(features).T
        weight = self.weight.to(features)
        norms = torch.linalg.vector_norm(weight, dim=-1).clamp(min=1e-12)
        cosines = features @ weight.T / norms
        if noise is None:
            return cosines
        noise = noise.detach().to(features)
        along = torch.linalg.vecdot(weight, noise) / norms
        lengths = (1 + 2 * along + torch.linalg.vecdot(noise, noise)).sqrt()
        return (cosines + features @ noise.T) / lengths

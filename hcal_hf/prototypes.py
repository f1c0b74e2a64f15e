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

    Attributes:
        weight (`nn.Parameter` of shape `[L, d]`): the prototypes in label order, initialised from N(0, 0.01^2).
    """

    init_std = 0.01

    def __init__(self, num_labels: int, dim: int, perturbation: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_labels, dim))
        self.noise_width = perturbation * math.sqrt(256 / dim)

    def sample_noise(self) -> torch.Tensor | None:
        """U of shape [L, d], iid Uniform(-eps, eps) from torch's generator, at least float32; None where eps is 0."""
        if not self.noise_width:
            return None
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return torch.empty_like(self.weight, dtype=dtype).uniform_(-self.noise_width, self.noise_width)

    def forward(self, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The unit prototypes, perturbed where `noise` is given: normalize(normalize(P) + U) (HCAL).

        Args:
            noise (`torch.Tensor` of shape `[L, d]`, *optional*): U, a constant for the gradient.

        Returns:
            `torch.Tensor` of shape `[L, d]`, at least float32.
        """
        unit = F.normalize(self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)), dim=-1)
        if noise is None:
            return unit
        return F.normalize(unit + noise.detach().to(unit), dim=-1)

import pytest
import torch
from torch.nn import functional as F

from hcal_hf.prototypes import LabelPrototypes


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_cosines_are_inner_products_with_the_unit_prototypes_gradients_too(anchored, noisy):
    torch.manual_seed(0)
    prototypes = LabelPrototypes(7, 5, perturbation=0.5, anchor_size=4 if anchored else None).double()
    projection = torch.nn.Linear(4, 5, bias=False).double()
    with torch.no_grad():
        prototypes.weight.normal_(std=0.1)
        if anchored:
            prototypes.anchors.normal_()
    noise = prototypes.sample_noise() if noisy else None
    features = F.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1).requires_grad_()
    factors = torch.randn(6, 7, dtype=torch.float64)
    found = prototypes.cosines(features, projection, noise)
    expected = features @ prototypes(projection, noise).T
    torch.testing.assert_close(found, expected)
    parameters = [features, prototypes.weight, *([projection.weight] if anchored else [])]
    gradients = torch.autograd.grad((found * factors).sum(), parameters)
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * factors).sum(), parameters)):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_prototypes_are_compared_in_float32():
    prototypes = LabelPrototypes(3, 4).bfloat16()
    with torch.no_grad():
        prototypes.weight.normal_()
    features = F.normalize(torch.randn(2, 4), dim=1)
    found = prototypes.cosines(features, torch.nn.Identity())
    assert found.dtype == prototypes(torch.nn.Identity()).dtype == torch.float32
    torch.testing.assert_close(found, features @ F.normalize(prototypes.weight.float(), dim=1).T)

import math

import pytest
import torch

from hcal_hf.weighting import WEIGHTERS, HcalWeighter, LossWeighter, UniformWeighter, build_weighter


@pytest.mark.parametrize("gamma", [0.1, 0.5, 3.0])
def test_hcal_is_a_softmax_of_the_losses(gamma):
    losses = torch.tensor([0.2, 1.5, 0.9], dtype=torch.float64, requires_grad=True)
    exponentials = [math.exp(loss / gamma) for loss in losses.tolist()]
    weights = HcalWeighter(3, gamma=gamma)(losses)
    assert weights.tolist() == pytest.approx([e / sum(exponentials) for e in exponentials])
    assert not weights.requires_grad


def test_hcal_descends_the_gamma_logsumexp():
    losses = torch.tensor([0.2, 1.5, 0.9], dtype=torch.float64, requires_grad=True)
    (HcalWeighter(3, gamma=0.5)(losses) * losses).sum().backward()
    gradient = losses.grad.clone()
    losses.grad = None
    (0.5 * torch.logsumexp(losses / 0.5, dim=0)).backward()
    torch.testing.assert_close(gradient, losses.grad)


@pytest.mark.parametrize("name", WEIGHTERS)
def test_absent_tasks_have_no_weight_and_the_present_sum_to_one(name):
    weighter = build_weighter(name, 4)
    losses = torch.tensor([1.0, 0.0, 2.0, 100.0])
    present = torch.tensor([True, False, True, False])
    weights = weighter(losses, present)
    assert weights[[1, 3]].tolist() == [0, 0]
    assert (weights[[0, 2]] > 0).all()
    assert weights.sum().item() == pytest.approx(1)
    assert weights[[0, 2]].tolist() == pytest.approx(build_weighter(name, 2)(losses[[0, 2]]).tolist())
    assert weighter(losses, torch.zeros(4, dtype=torch.bool)).tolist() == [0, 0, 0, 0]
    assert weighter(losses).sum().item() == pytest.approx(1)


def test_uniform():
    assert UniformWeighter(4)(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [0.25] * 4


def test_unknown_names_and_arguments_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"one of \['hcal', 'uniform'\], got 'hcl'"):
        build_weighter("hcl", 2)
    with pytest.raises(ValueError, match="temperature"):
        build_weighter("hcal", 2, temperature=1)
    with pytest.raises(ValueError, match="gamma must be above 0, got 0"):
        build_weighter("hcal", 2, gamma=0)

    class Mine(LossWeighter):
        def forward(self, losses, present=None):
            return torch.ones_like(losses)

    monkeypatch.setitem(WEIGHTERS, "mine", Mine)
    assert isinstance(build_weighter("mine", 2), Mine)

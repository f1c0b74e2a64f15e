"""Compares the memory-saving products of features and prototypes with plain PyTorch: values, gradients and precision."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hcal_hf import prototypes as module
from hcal_hf.prototypes import LabelPrototypes
from tests.builders import import_benchmarks, random_forest, random_multi_hot


def make_prototypes(anchored=False, linear=False):
    """Returns 7 prototypes of size 5, a projection from size 4, features and all trainable tensors."""
    torch.manual_seed(0)
    depths = torch.tensor([0, 0, 1, 1, 1, 2, 2]) if linear else None
    prototypes = LabelPrototypes(7, 5, 0.5, anchor_size=4 if anchored else None, depths=depths, has_bias=True).double()
    projection = torch.nn.Linear(4, 5, bias=False).double()
    learned = [*prototypes.parameters(), *(projection.parameters() if anchored else [])]
    with torch.no_grad():
        for parameter in learned:
            parameter.normal_(std=0.3)
        if anchored:
            prototypes.anchors.normal_()
            prototypes.trained[3] = False
    features = F.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1).requires_grad_()
    return prototypes, projection, features, learned


def written_out(prototypes, projection, features, noise):
    """Computes `products` by its definition, label by label."""
    columns = []
    for i, row in enumerate(prototypes.weight):
        if prototypes.is_anchored:
            row = row if prototypes.trained[i] else row.detach()
            anchor = projection(prototypes.anchors[i])
            anchor = anchor / anchor.square().sum().sqrt()
            row = row + (anchor * prototypes.anchor_scale[prototypes.depths[i]] if prototypes.is_linear else anchor)
        length = row.square().sum().sqrt()
        unit = row / length
        if noise is not None:
            unit = unit + noise[i]
            unit = unit / unit.square().sum().sqrt()
        column = features @ unit
        columns.append(column * length + prototypes.bias[i] if prototypes.is_linear else column)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("chunk", [10, 20, 2**20])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_products_and_their_gradients_match_a_slow_reference(monkeypatch, noisy, anchored, linear, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)  # 2 labels per chunk, 4 labels per chunk, or all with autograd
    prototypes, projection, features, learned = make_prototypes(anchored, linear)
    noise = prototypes.sample_noise() if noisy else None
    factors = torch.randn(6, 7, dtype=torch.float64)
    found = prototypes.products(features, projection, noise)
    expected = written_out(prototypes, projection, features, noise)
    torch.testing.assert_close(found, expected)
    if not linear:
        torch.testing.assert_close(found, features @ prototypes(projection, noise).T)
    gradients = torch.autograd.grad((found * factors).sum(), [features, *learned])
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * factors).sum(), [features, *learned])):
        torch.testing.assert_close(ours, theirs)


def test_gradients_equal_finite_differences(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    prototypes, projection, features, learned = make_prototypes(anchored=True, linear=True)
    prototypes.trained[:] = True
    noise = prototypes.sample_noise()
    # gradcheck perturbs the inputs in place, and `products` reads them from the modules.
    assert torch.autograd.gradcheck(lambda *_: prototypes.products(features, projection, noise), (features, *learned))


@pytest.mark.parametrize("width", [0.0, 0.1, 2.0])
def test_gradients_of_cosines_equal_finite_differences_also_for_zero_prototypes(width):
    prototypes, projection, features, learned = make_prototypes(anchored=False)
    noise = width * torch.rand_like(prototypes.weight) if width else None
    assert torch.autograd.gradcheck(lambda *_: prototypes.products(features, projection, noise), (features, *learned))
    with torch.no_grad():
        prototypes.weight[1] = 0
    found = prototypes.products(features, projection, noise)
    assert noise is not None or (found[:, 1] == 0).all()
    expected = features @ prototypes(projection, noise).T
    torch.testing.assert_close(found, expected)
    factors = torch.randn_like(found)
    inputs = [features, prototypes.weight]
    for ours, theirs in zip(*(torch.autograd.grad((way * factors).sum(), inputs) for way in (found, expected))):
        torch.testing.assert_close(ours, theirs)


def test_cosines_keep_their_precision_under_autocast():
    prototypes, projection, features, _ = make_prototypes(anchored=False)
    prototypes, features = prototypes.float(), features.detach().float().requires_grad_()
    found = prototypes.products(features, projection)
    expected = torch.autograd.grad(found.square().sum(), [features, prototypes.weight], retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = torch.autograd.grad(found.square().sum(), [features, prototypes.weight])
    torch.testing.assert_close(cast, expected, rtol=0, atol=0)


def test_compiled_products_and_gradients_are_the_same(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    prototypes, projection, features, learned = make_prototypes(anchored=True)
    noise, factors = prototypes.sample_noise(), torch.randn(6, 7, dtype=torch.float64)
    compiled = torch.compile(prototypes.products, backend="eager", fullgraph=True)
    found = [function(features, projection, noise) for function in (prototypes.products, compiled)]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*[torch.autograd.grad((f * factors).sum(), [features, *learned]) for f in found])


def test_the_projection_receives_gradients_in_data_parallel_replicas(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    prototypes, projection, features, _ = make_prototypes(anchored=True)
    # A replica as torch.nn.DataParallel makes it, which lists no parameters.
    replica = projection._replicate_for_data_parallel()
    replica.weight, replica.bias = projection.weight * 1, None
    assert not list(replica.parameters())
    found = [prototypes.products(features, g).square() for g in (replica, projection)]
    torch.testing.assert_close(*[torch.autograd.grad(f.sum(), projection.weight) for f in found])


def test_gradients_are_exact_under_autocast_and_keep_the_dtype_of_parameters(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    prototypes, projection, features, learned = make_prototypes(anchored=True)
    prototypes, projection, features = prototypes.float(), projection.float(), features.float()
    noise = prototypes.sample_noise()
    found = prototypes.products(features, projection, noise)
    expected = torch.autograd.grad(found.square().sum(), learned, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = torch.autograd.grad(found.square().sum(), learned)
    torch.testing.assert_close(cast, expected)
    prototypes.bfloat16(), projection.bfloat16()
    prototypes.products(features, projection, noise).square().sum().backward()
    for parameter, gradient in zip(learned, expected):
        assert parameter.grad.dtype == torch.bfloat16
        torch.testing.assert_close(parameter.grad.float(), gradient, atol=0.05, rtol=0.05)


def test_frozen_weights_get_no_gradient_and_second_derivatives_are_refused(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    prototypes, projection, features, _ = make_prototypes(anchored=True)
    prototypes.weight.requires_grad_(False)
    found = prototypes.products(features, projection)
    (gradient,) = torch.autograd.grad(found.square().sum(), projection.weight, create_graph=True)
    assert prototypes.weight.grad is None
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("label_mode", "config"),
    [
        ("single_path", {"head": "independent"}),
        ("single_path", {"head": "conditional_softmax"}),
        ("single_path", {"head": "path_softmax"}),
        ("multi_path", {"head": "independent"}),
        ("multi_path", {"head": "conditional_sigmoid"}),
        ("multi_path", {"head": "conditional_sigmoid", "score_function": "linear"}),
        ("multi_path", {"head": "lookahead_sigmoid"}),
        ("single_path", {"head": "path_softmax", "prototype_anchor": "label_text"}),
        (
            "single_path",
            {"head": "path_softmax", "prototype_anchor": "label_text", "score_function": "linear"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value.values()),
)
def test_memory_of_a_training_step_is_bounded_by_the_size_of_the_prototypes(
    make_model, monkeypatch, label_mode, config
):
    monkeypatch.setattr(module, "CHUNK", 2**14)
    rng = np.random.default_rng(0)
    taxonomy = random_forest(rng, 5_000, max_depth=8)
    model = make_model(taxonomy, label_mode=label_mode, projection_dim=256, partial_paths=True, **config).train()
    labels = random_multi_hot(rng, taxonomy, 2, single_path=True)

    def step():
        outputs = model(pooled_states=torch.randn(2, 16), labels=labels)
        outputs.loss.backward()

    step()  # allocates the gradients, which the measured step then reuses
    assert import_benchmarks("timing").timing.peak_bytes(step) < 2.5 * model.prototypes.weight.nbytes


def test_half_precision_prototypes_are_compared_in_float32():
    prototypes = LabelPrototypes(3, 4).bfloat16()
    with torch.no_grad():
        prototypes.weight.normal_()
    features = F.normalize(torch.randn(2, 4), dim=1)
    found = prototypes.products(features, torch.nn.Identity())
    assert found.dtype == prototypes(torch.nn.Identity()).dtype == torch.float32
    torch.testing.assert_close(found, features @ F.normalize(prototypes.weight.float(), dim=1).T)

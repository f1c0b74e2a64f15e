"""Heads against slow loops written from their definitions."""

import math

import numpy as np
import pytest
import torch
from conftest import random_forest, random_multi_hot, tiny_bert

from hcal_hf import HcalConfig, Taxonomy
from hcal_hf.heads import build_head, log1mexp, log_probs_to_logits
from hcal_hf.targets import Targets


def make_head(taxonomy, label_mode):
    config = HcalConfig.from_taxonomy(taxonomy, tiny_bert(), label_mode=label_mode)
    head = build_head(config, taxonomy)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(torch.tensor(7.0) if name == "scale" else torch.randn(parameter.shape))
    return head.double()


def as_indices(multi_hot):
    rows = [row.nonzero()[:, 0] for row in multi_hot]
    width = max(1, *(len(row) for row in rows))
    return torch.stack([torch.cat([row, row.new_full((width - len(row),), -100)]) for row in rows])


@pytest.mark.parametrize("seed", range(3))
def test_level_softmax_equals_a_slow_twin(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    taxonomy = random_forest(rng, 25)
    head = make_head(taxonomy, "single_path")
    cosines = torch.rand(6, 25, dtype=torch.float64) * 2 - 1
    labels = random_multi_hot(rng, taxonomy, 6, single_path=True)
    scores = head.scores(cosines)
    expected = torch.zeros(6, 25, dtype=torch.float64)
    sums, counts = [0.0] * len(taxonomy.levels), [0] * len(taxonomy.levels)
    for i in range(6):
        for k, level in enumerate(taxonomy.levels):
            total = sum(math.exp(cosines[i, c] / 0.1) for c in range(level.start, level.stop))
            for c in range(level.start, level.stop):
                expected[i, c] = math.log(math.exp(cosines[i, c] / 0.1) / total)
                if labels[i, c]:
                    sums[k] -= expected[i, c].item()
                    counts[k] += 1
    torch.testing.assert_close(head.log_probs(scores), expected.clamp(max=-1e-7))
    means = torch.tensor([s / max(n, 1) for s, n in zip(sums, counts)], dtype=torch.float64)
    for given in (labels, labels.bool(), as_indices(labels)):
        targets = Targets(given, 25)
        torch.testing.assert_close(head.losses(scores, targets), means)
        assert head.counts(targets).tolist() == counts


@pytest.mark.parametrize("seed", range(3))
def test_label_sigmoid_equals_a_slow_twin(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    taxonomy = random_forest(rng, 20)
    head = make_head(taxonomy, "multi_path")
    cosines = torch.rand(5, 20, dtype=torch.float64) * 2 - 1
    labels = random_multi_hot(rng, taxonomy, 5, single_path=False)
    scores = head.scores(cosines)
    sums = [0.0] * len(taxonomy.levels)
    for i in range(5):
        for c in range(20):
            p = 1 / (1 + math.exp(-(7.0 * cosines[i, c].item() + head.bias[c].item())))
            assert head.log_probs(scores)[i, c].item() == pytest.approx(min(math.log(p), -1e-7), abs=1e-9)
            sums[taxonomy.depths[c]] -= math.log(p) if labels[i, c] else math.log(1 - p)
    sizes = [level.stop - level.start for level in taxonomy.levels]
    for given in (labels, as_indices(labels)):
        losses = head.losses(scores, Targets(given, 20)).tolist()
        assert losses == pytest.approx([s / (5 * n) for s, n in zip(sums, sizes)])
        assert head.counts(Targets(given, 20)).tolist() == [5 * n for n in sizes]


def test_log1mexp_is_exact_and_its_gradient_finite():
    x = torch.tensor([-1e-7, -1e-3, -0.5, -0.6931, -0.7, -5.0, -50.0, -1e4], dtype=torch.float64, requires_grad=True)
    y = log1mexp(x)
    assert y.tolist() == pytest.approx([math.log(-math.expm1(v)) if v > -30 else -math.exp(v) for v in x.tolist()])
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid_of_the_logits_is_the_probability(dtype):
    log_probs = torch.tensor([-1e-7, -1e-4, -0.1, -0.69, -3.0, -80.0], dtype=dtype)
    logits = log_probs_to_logits(log_probs)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(torch.sigmoid(logits), log_probs.exp(), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("label_mode", ["single_path", "multi_path"])
@pytest.mark.parametrize(
    "taxonomy",
    [
        Taxonomy.from_edges([], roots=["only"]),
        Taxonomy.from_edges([("root", "a"), ("root", "b")]),
        Taxonomy.from_edges([("a", "only child"), ("b", "c"), ("b", "d")]),
    ],
    ids=["single root", "level of one class", "only child"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_degenerate_levels_stay_finite(make_model, label_mode, taxonomy, dtype):
    model = make_model(taxonomy, label_mode=label_mode, dtype=dtype)
    path = taxonomy.complete([taxonomy.num_labels - 1])
    output = model(input_ids=torch.tensor([[2, 3, 4]]), labels=torch.from_numpy(path)[None])
    output.loss.backward()
    assert output.logits.dtype == torch.float32
    assert torch.isfinite(output.logits).all()
    assert torch.isfinite(output.task_losses).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert (model.probabilities(output) <= 1).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3), "two dimensions"),
        (torch.zeros(3, 4), "one column for each of the 5 labels, got 4"),
        (torch.zeros(3, 2, dtype=torch.int32), "got torch.int32"),
    ],
)
def test_targets_of_a_wrong_form_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        Targets(labels, 5)

"""Compares class means and contrast losses with slow loops."""

import numpy as np
import pytest
import torch

from hcal_hf import HcalTrainer, HcalTrainingArguments
from hcal_hf.objectives import aggregate_losses, class_means
from hcal_hf.targets import Targets
from hcal_hf.training.weighting import UniformWeighter
from tests.builders import random_dag, random_forest, random_multi_hot


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("seed", range(3))
def test_aggregate_losses_match_a_slow_reference_for_any_label_sets(make, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    taxonomy = make(rng, 18)
    labels = random_multi_hot(rng, taxonomy, 9, single_path=False)
    features = torch.nn.functional.normalize(torch.randn(9, 5, dtype=torch.float64), dim=1)
    prototypes = torch.nn.functional.normalize(torch.randn(18, 5, dtype=torch.float64), dim=1)
    losses, counts = aggregate_losses(features, prototypes, Targets(labels, 18), taxonomy, 0.1)
    for k, level in enumerate(taxonomy.levels):
        terms = []
        for c in range(level.start, level.stop):
            members = [features[i] for i in range(9) if labels[i, c]]
            if members:
                mean = sum(members) / len(members)
                scores = [torch.exp(mean @ prototypes[other] / 0.1) for other in range(level.start, level.stop)]
                terms.append(-torch.log(scores[c - level.start] / sum(scores)).item())
        assert counts[k] == len(terms)
        assert losses[k].item() == pytest.approx(sum(terms) / max(len(terms), 1))


def test_class_means_are_differentiable_and_not_normalised():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    classes, means = class_means(features, Targets(torch.tensor([[0, 1], [0, 2], [-100, -100]]), 4))
    assert classes.tolist() == [0, 1, 2]
    assert means.tolist() == [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]
    means[0].sum().backward()
    assert features.grad.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_contrast_losses_are_extra_tasks_weighted_by_alpha(make_model, taxonomy, mode, tmp_path):
    plain = make_model(taxonomy, label_mode=mode).eval()
    model = make_model(taxonomy, label_mode=mode, contrast="aggregate", contrast_alpha=0.3).eval()
    assert model.task_names == ["level_0", "level_1", "level_2", "contrast_0", "contrast_1", "contrast_2"]
    labels = torch.tensor([[0, 2, 6], [0, 3, 8], [1, 5, 12]])
    ids = torch.tensor([[2, 3], [4, 5], [6, 7]])
    output, alone = model(input_ids=ids, labels=labels), plain(input_ids=ids, labels=labels)
    assert torch.equal(output.task_losses[:3], alone.task_losses)
    expected, classes = aggregate_losses(
        output.features, model.prototypes(model.projection), Targets(labels, 13), taxonomy, 0.1
    )
    torch.testing.assert_close(output.task_losses[3:], expected)
    assert output.task_counts[3:].tolist() == classes.tolist() == [2, 3, 3]
    torch.testing.assert_close(output.loss, alone.loss + 0.3 * expected.mean())
    weights = torch.tensor([0.2, 0.5, 0.3])
    present = torch.tensor([True, True, True, True, False, True])
    assert model.weigh_contrast(weights, present).tolist() == pytest.approx([0.2, 0.5, 0.3, 0.06, 0.0, 0.09])

    args = HcalTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = HcalTrainer(model, args, loss_weighter=UniformWeighter(3))
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    noise = torch.zeros(13, 8)
    loss = trainer.compute_loss(model, {"input_ids": ids, "labels": labels, "noise": noise})
    torch.testing.assert_close(loss, output.loss)
    logs = trainer._task_logs()
    assert logs["weight_contrast_1"] == pytest.approx(0.1)
    assert logs["loss_contrast_2"] == pytest.approx(expected[2].item(), abs=1e-6)


def test_the_paper_preset_has_no_contrast_tasks(make_model, taxonomy):
    model = make_model(taxonomy, preset="paper")
    assert model.config.contrast is None
    assert model.task_names == ["level_0", "level_1", "level_2"]
    assert model.document_tasks == [False, False, True]

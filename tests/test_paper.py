"""Compares the paper preset with a slow implementation of the formulas of HCAL, in float64."""

import math

import numpy as np
import pytest
import torch

from hcal_hf import HcalTrainer, HcalTrainingArguments, Taxonomy
from hcal_hf.decoding import decode
from hcal_hf.metrics import violation_rates
from hcal_hf.training.weighting import HcalWeighter, UniformWeighter
from tests.builders import WORDS

TWO_LEVELS = Taxonomy.from_paths([[f"c{i // 3}", f"f{i}"] for i in range(12)])
THREE_LEVELS = Taxonomy.from_paths([[f"a{i // 6}", f"b{i // 2}", f"f{i}"] for i in range(12)])


def unit(vector):
    return vector / torch.sqrt((vector * vector).sum())


def reference(pooled, projection, prototypes, noise, paths, taxonomy, tau=0.1, gamma=0.5):
    """Computes (losses per level, weights per level, total loss) from the formulas of the paper.

    paths[i][k] is the node of document i at depth k.
    """
    depths = len(taxonomy.levels)
    features = [unit(projection @ x) for x in pooled]
    perturbed = [unit(unit(p) + u) for p, u in zip(prototypes, noise)]

    def cross_entropy(vector, node, k):
        logits = {c: vector @ perturbed[c] / tau for c in range(taxonomy.levels[k].start, taxonomy.levels[k].stop)}
        return -torch.log(torch.exp(logits[node]) / sum(torch.exp(value) for value in logits.values()))

    losses = []
    for k in range(depths):
        if k == depths - 1:
            terms = [cross_entropy(f, path[k], k) for f, path in zip(features, paths)]
        else:
            terms = []
            for c in sorted({path[k] for path in paths}):
                members = [f for f, path in zip(features, paths) if path[k] == c]
                terms.append(cross_entropy(sum(members) / len(members), c, k))
        losses.append(sum(terms) / len(terms))
    exponentials = [math.exp(loss.item() / gamma) for loss in losses]
    weights = [e / sum(exponentials) for e in exponentials]
    return losses, weights, sum(w * loss for w, loss in zip(weights, losses))


@pytest.mark.parametrize("taxonomy", [TWO_LEVELS, THREE_LEVELS], ids=["two levels", "three levels"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["multi_hot", "indices"])
def test_losses_weights_and_gradients_match_the_formulas_of_the_paper(make_model, taxonomy, seed, form):
    model = make_model(taxonomy, seed=seed, preset="paper", dtype=torch.float64).train()
    torch.manual_seed(100 + seed)
    pooled = torch.randn(9, 16, dtype=torch.float64)
    width = 0.01 * math.sqrt(256 / 256)
    noise = (torch.rand(taxonomy.num_labels, 256, dtype=torch.float64) * 2 - 1) * width
    leaves = torch.randint(taxonomy.levels[-1].start, taxonomy.levels[-1].stop, (9,)).tolist()
    paths = [taxonomy.complete([leaf]).tolist() for leaf in leaves]
    labels = torch.tensor(paths)
    if form == "multi_hot":
        labels = torch.zeros(9, taxonomy.num_labels).scatter(1, labels, 1.0)

    output = model(pooled_states=pooled, labels=labels, noise=noise)
    weights = HcalWeighter(len(taxonomy.levels), gamma=0.5)(output.task_losses, output.task_counts > 0)
    total = (weights * output.task_losses).sum()
    total.backward()

    projection = model.projection.weight.detach().clone().requires_grad_()
    prototypes = model.prototypes.weight.detach().clone().requires_grad_()
    losses, expected_weights, expected = reference(pooled, projection, prototypes, noise, paths, taxonomy)
    expected.backward()
    torch.testing.assert_close(output.task_losses, torch.stack(losses), atol=1e-6, rtol=0)
    assert weights.tolist() == pytest.approx(expected_weights, abs=1e-6)
    torch.testing.assert_close(total, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.projection.weight.grad, projection.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.prototypes.weight.grad, prototypes.grad, atol=1e-6, rtol=0)
    assert output.task_counts.tolist() == [
        *(len({path[k] for path in paths}) for k in range(len(taxonomy.levels) - 1)),
        9,
    ]


def test_every_encoder_parameter_receives_a_gradient(make_model):
    model = make_model(THREE_LEVELS, preset="paper").train()
    model(input_ids=torch.tensor([[2, 3], [4, 5]]), labels=torch.tensor([[0, 2, 8], [1, 5, 14]])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.encoder.encoder.parameters())


def test_prototype_noise_is_uniform_and_drawn_again_for_each_training_step_only(make_model, taxonomy):
    model = make_model(taxonomy, projection_dim=64, perturbation=0.01)
    noise = model.prototypes.sample_noise()
    width = 0.01 * math.sqrt(256 / 64)
    assert noise.shape == (13, 64)
    assert noise.abs().max() <= width
    assert noise.abs().max() > 0.95 * width
    assert not torch.equal(noise, model.prototypes.sample_noise())
    batch = {"input_ids": torch.tensor([[2, 3]]), "labels": torch.tensor([[0, 2, 6]])}
    model.train()
    assert model(**batch).loss != model(**batch).loss
    model.eval()
    assert model(**batch).loss == model(**batch).loss
    model = make_model(taxonomy, perturbation=0.0).train()
    assert model(**batch).loss == model(**batch).loss


def test_prototype_gradients_include_the_normalisation_but_not_the_noise(make_model, taxonomy):
    prototypes = make_model(taxonomy, dtype=torch.float64).prototypes
    noise = torch.full((13, 8), 0.1, dtype=torch.float64, requires_grad=True)
    prototypes(torch.nn.Identity(), noise).pow(3).sum().backward()
    assert noise.grad is None
    unit_rows = torch.nn.functional.normalize(prototypes.weight.detach(), dim=1)
    # The length of a prototype has no effect, so its gradient is orthogonal to it.
    assert (prototypes.weight.grad * unit_rows).sum(dim=1).abs().max() < 1e-8
    assert prototypes.weight.grad.abs().max() > 1e-3


def test_raw_predictions_are_the_nearest_prototype_of_each_level_without_noise(make_model):
    model = make_model(THREE_LEVELS, preset="paper").eval()
    with torch.no_grad():
        output = model(input_ids=torch.randint(2, len(WORDS), (20, 5)))
    clean = torch.nn.functional.normalize(model.prototypes.weight, dim=1)
    cosines = output.features @ clean.T
    raw = decode(output.logits, THREE_LEVELS, "single_path", "raw")
    for level in THREE_LEVELS.levels:
        assert torch.equal(raw[:, level].float().argmax(1), cosines[:, level].argmax(1))
        assert (raw[:, level].sum(1) == 1).all()


def test_violation_rate_equals_the_definition_of_the_paper_on_full_paths():
    rng = np.random.default_rng(0)
    chosen = [[int(rng.integers(level.start, level.stop)) for level in THREE_LEVELS.levels] for _ in range(200)]
    chosen += [THREE_LEVELS.complete([leaf]).tolist() for leaf in range(8, 20)]
    agree = [all(THREE_LEVELS.parents(row[k + 1]).tolist() == [row[k]] for k in range(2)) for row in chosen]
    assert 0 < sum(agree) < len(agree)
    assert violation_rates(chosen, THREE_LEVELS)["hvr"] == pytest.approx(1 - sum(agree) / len(agree))


def test_the_paper_training_arguments_have_the_values_of_the_paper(tmp_path):
    args = HcalTrainingArguments.paper(str(tmp_path), report_to="none")
    assert (args.optim, args.learning_rate, args.weight_decay) == ("sgd", 0.01, 1e-4)
    assert args.prototype_lr_multipliers == [5.0, 10.0, 20.0]
    assert (args.max_grad_norm, args.lr_scheduler_type) == (0.0, "constant")
    assert (args.loss_weighting, args.loss_weighting_kwargs) == ("hcal", {"gamma": 0.5})
    with pytest.raises(ValueError, match='need optim="sgd", got \'adamw'):
        HcalTrainingArguments(str(tmp_path), prototype_lr_multipliers=[5.0], report_to="none")


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_prototype_lr_multipliers_equal_one_parameter_group_per_level(make_model, tmp_path, levels):
    """Compares 20 steps with momentum and weight decay. The factors are 5, 10 and 20 from the deepest level upwards."""
    paths = [[f"n{k}.{i // 2 ** (levels - 1 - k)}" for k in range(levels)] for i in range(2**levels)]
    taxonomy = Taxonomy.from_paths(paths)
    model = make_model(taxonomy, preset="paper", dtype=torch.float64)
    args = HcalTrainingArguments.paper(str(tmp_path), learning_rate=0.01, report_to="none", use_cpu=True)
    trainer = HcalTrainer(model, args, loss_weighter=UniformWeighter(levels))
    optimizer = trainer.create_optimizer()
    (group,) = (g for g in optimizer.param_groups if any(p is model.prototypes.weight for p in g["params"]))
    assert group["lr"] == 0.01
    assert group["momentum"] == 0.9

    start = model.prototypes.weight.detach().clone()
    parts = [start[level].clone().requires_grad_() for level in taxonomy.levels]
    rates = {levels - 1: 0.05, levels - 2: 0.1}
    separate = torch.optim.SGD(
        [{"params": [part], "lr": rates.get(k, 0.2)} for k, part in enumerate(parts)], lr=1.0, momentum=0.9,
        weight_decay=1e-4,
    )  # fmt: skip
    for step in range(20):
        gradient = torch.randn(start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model.prototypes.weight.grad = gradient.clone()
        for part, level in zip(parts, taxonomy.levels):
            part.grad = gradient[level].clone()
        optimizer.step()
        separate.step()
    torch.testing.assert_close(model.prototypes.weight.detach(), torch.cat(parts).detach(), atol=1e-12, rtol=0)
    assert (model.prototypes.weight.detach() - start).abs().max() > 0.1

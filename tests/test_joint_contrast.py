"""HJCL: the figures of the released code, slow references, and the contrast as tasks of a model and of the Trainer."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy
from hcal_hf.encoder_inputs import run_encoder
from hcal_hf.joint_contrast import (
    JointContrastOptions,
    attend,
    instance_contrast,
    joint_contrast_losses,
    label_contrast,
    pair_embeddings,
    released_instance_contrast,
)
from hcal_hf.targets import Targets
from tests.builders import random_dag, random_forest, random_multi_hot

# Labels A, B, a1, a2 (below A) and b1 (below B).
DEPTHS = torch.tensor([0, 0, 1, 1, 1])
DOCUMENTS = [[0, 2], [0, 3], [0, 1, 2, 4]]


def pairs_of(sets):
    documents = [i for i, labels in enumerate(sets) for _ in labels]
    return torch.tensor(documents), torch.tensor([label for labels in sets for label in labels])


def angles(num_documents):
    """Returns z_ij = (cos t, sin t) with t = 0.3 i + 0.5 j, [documents, 5, 2]."""
    t = 0.3 * torch.arange(num_documents, dtype=torch.float64)[:, None] + 0.5 * torch.arange(5, dtype=torch.float64)
    return torch.stack([t.cos(), t.sin()], dim=-1)


def released_label_contrast(sets, temperature=1.0):
    documents, nodes = pairs_of(sets)
    embeddings = angles(len(sets)).requires_grad_()
    loss, _ = label_contrast(
        embeddings[documents, nodes], documents, nodes, len(sets), DEPTHS, temperature, released=True
    )
    (gradient,) = torch.autograd.grad(loss, embeddings)
    return loss.item(), gradient


# Figures of the released code


def test_the_released_label_contrast_has_the_figures_of_the_released_code():
    assert released_label_contrast(DOCUMENTS)[0] == pytest.approx(0.505553623, abs=1e-9)
    assert released_label_contrast(DOCUMENTS, temperature=0.1)[0] == pytest.approx(-0.566424628, abs=1e-9)
    by_label, rho = slow_label_contrast(angles(3), DOCUMENTS, DEPTHS.tolist(), 1.0, released=True)
    assert rho == [[0, 2, 3], [2, 0, 5], [3, 5, 0]]
    figures = [0.590630063, 0.513293416, 0.707617341, 0.824785801, -0.108558507]
    assert [by_label[c] for c in range(5)] == pytest.approx(figures, abs=1e-9)


@pytest.mark.parametrize(("copies", "loss"), [(1, -2 / 5 * math.log(2)), (2, -2 / 5 * math.log(3))])
def test_documents_with_equal_labels_give_a_constant_without_gradient(copies, loss):
    value, gradient = released_label_contrast([[0, 2]] * copies)
    assert value == pytest.approx(loss, abs=1e-12)
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize(
    ("sets", "at_least_finer", "loss"),
    [
        (DOCUMENTS, False, 7.641755612),
        (DOCUMENTS, True, 7.775368516),
        ([[0, 2], [0, 2], [0, 3]], False, 7.234435479),
    ],
)
def test_the_released_instance_contrast_has_the_figures_of_the_released_code(sets, at_least_finer, loss):
    value, count = released_instance_contrast(angles(3), *pairs_of(sets), DEPTHS, 0.1, at_least_finer)
    assert (value.item(), count) == (pytest.approx(loss, abs=1e-9), 5)


def test_the_levels_of_the_released_instance_contrast_have_the_figures_of_the_released_code():
    levels, kept = slow_released_instance_contrast(angles(3), DOCUMENTS, DEPTHS.tolist(), 0.1)
    assert levels == pytest.approx([8.902407829, 8.497206216], abs=1e-9)
    levels, kept = slow_released_instance_contrast(angles(3), [[0, 2], [0, 2], [0, 3]], DEPTHS.tolist(), 0.1)
    assert levels == pytest.approx([8.497206216, 7.930010006], abs=1e-7)
    assert kept == [3, 2]


# Slow references


def slow_rho(sets, depths):
    v = [max(depths) - depth + 1 for depth in depths]
    return [[sum(v[c] for c in set(a) ^ set(b)) for b in sets] for a in sets], v


def slow_label_contrast(z, sets, depths, temperature, released):
    """Returns the loss of each label that has negatives, by label, and rho. `z` is [B, L, d]."""
    rho, v = slow_rho(sets, depths)
    pairs = [(i, c) for i, labels in enumerate(sets) for c in labels]

    def e(a, b):
        return math.exp(F.cosine_similarity(z[a], z[b], dim=0).item() / temperature)

    by_label = {}
    for c in sorted({c for _, c in pairs}):
        positives, negatives = [p for p in pairs if p[1] == c], [p for p in pairs if p[1] != c]
        terms = []
        for a in positives:
            for p in positives:
                if not released and a == p and len(positives) > 1:
                    continue
                sigma = 1 - rho[a[0]][p[0]] / sum(v)
                total = sum(rho[a[0]][n[0]] * e(a, n) for n in negatives) + sigma * e(a, p)
                terms.append(math.log(total / ((len(negatives) + 1) * sigma * e(a, p))))
        if negatives:
            by_label[c] = sum(terms) / len(terms)
    return by_label, rho


def slow_instance_contrast(features, sets, depths, temperature):
    _, v = slow_rho(sets, depths)
    losses = []
    for i, own in enumerate(sets):
        others = [j for j in range(len(sets)) if j != i]
        weights = {j: sum(v[c] for c in set(own) & set(sets[j])) for j in others}
        weights = {j: w / sum(v[c] for c in set(own) | set(sets[j])) for j, w in weights.items() if w}
        if weights:
            scores = {j: (features[i] @ features[j]).item() / temperature for j in others}
            bottom = math.log(sum(math.exp(score) for score in scores.values()))
            losses.append(sum(w * (bottom - scores[j]) for j, w in weights.items()) / sum(weights.values()))
    return losses


def slow_released_instance_contrast(z, sets, depths, temperature):
    """Returns S of each level, and the number of documents of each level."""
    num_levels, num_labels = max(depths) + 1, z.shape[1]
    documents, by_level, kept = list(range(len(sets))), [], []
    for level in range(1, num_levels + 1):
        own = {i: frozenset(c for c in sets[i] if depths[c] <= num_levels - level) for i in documents}
        views, terms = [(i, c) for i in documents for c in range(num_labels)], []
        for a in views:
            scores = {b: (z[a] @ z[b]).item() / temperature for b in views if b != a}
            bottom = math.log(sum(math.exp(score) for score in scores.values()))
            positives = [b for b in scores if own[b[0]] == own[a[0]]]
            terms.append(-temperature / 0.07 * sum(scores[b] - bottom for b in positives) / len(positives))
        by_level.append(sum(terms) / len(terms))
        kept.append(len(documents))
        first = {}
        for i in documents:
            first.setdefault(own[i], i)
        documents = sorted(first.values())
    return by_level, kept


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("single_path", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_losses_match_slow_references_for_any_label_sets(make, single_path, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    taxonomy = make(rng, 12)
    labels = random_multi_hot(rng, taxonomy, 7, single_path=single_path)
    depths = torch.from_numpy(taxonomy.depths.copy())
    sets = [row.nonzero()[:, 0].tolist() for row in labels]
    documents, nodes = Targets(labels, 12).positives
    z = torch.randn(7, 12, 4, dtype=torch.float64)
    for temperature in (1.0, 0.1):
        for released in (True, False):
            loss, count = label_contrast(z[documents, nodes], documents, nodes, 7, depths, temperature, released)
            by_label, _ = slow_label_contrast(z, sets, depths.tolist(), temperature, released)
            assert count == (12 if released else len(by_label))
            assert loss.item() == pytest.approx(sum(by_label.values()) / count.item(), abs=1e-10)
    features = F.normalize(z[:, 0], dim=1)
    expected = slow_instance_contrast(features, sets, depths.tolist(), 0.1)
    loss, count = instance_contrast(features, documents, nodes, depths, 0.1)
    assert count == len(expected)
    assert loss.item() == pytest.approx(sum(expected) / max(len(expected), 1), abs=1e-10)
    levels, _ = slow_released_instance_contrast(z, sets, depths.tolist(), 0.5)
    for at_least_finer in (False, True):
        terms = [max(levels[: k + 1]) if at_least_finer else level for k, level in enumerate(levels)]
        expected = sum(math.exp(1 / (k + 1)) * term for k, term in enumerate(terms)) / 12
        loss, _ = released_instance_contrast(z, documents, nodes, depths, 0.5, at_least_finer)
        assert loss.item() == pytest.approx(expected, abs=1e-10)


def test_views_in_chunks_give_the_same_loss_and_gradient(monkeypatch):
    results = []
    for number in (2**22, 40):
        monkeypatch.setattr("hcal_hf.joint_contrast.VIEW_PAIRS_PER_CHUNK", number)
        z = angles(3).requires_grad_()
        loss, _ = released_instance_contrast(z, *pairs_of(DOCUMENTS), DEPTHS)
        results.append((loss, *torch.autograd.grad(loss, z)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sets", [[], [[]], [[], []], [[0]], [[0], [0]], [[0, 2], []], [[0], [1]]])
@pytest.mark.parametrize("variant", ["shared", "released", "released_max"])
def test_degenerate_batches_have_finite_losses_and_gradients(sets, variant, dtype):
    torch.manual_seed(0)
    labels = torch.tensor([[float(c in labels) for c in range(5)] for labels in sets], dtype=dtype).reshape(-1, 5)
    targets = Targets(labels, 5)
    documents, nodes = targets.positives
    z = torch.randn(len(sets), 5, 3, dtype=dtype, requires_grad=True)
    options = JointContrastOptions(variant=variant, label_temperature=0.05)
    features = F.normalize(z.sum(dim=1), dim=-1)
    embeddings = z[documents, nodes] if variant == "shared" else z
    losses, counts = joint_contrast_losses(options, features, embeddings, targets, DEPTHS)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert z.grad.isfinite().all()
    assert not losses[counts == 0].any()


def test_a_label_with_a_single_pair_has_a_loss_and_documents_with_nothing_in_common_have_none():
    documents, nodes = pairs_of([[0], [1]])
    embeddings = torch.eye(2, dtype=torch.float64, requires_grad=True)
    loss, count = label_contrast(embeddings, documents, nodes, 2, DEPTHS)
    assert count == 2
    assert torch.autograd.grad(loss, embeddings)[0].abs().sum() > 0
    _, count = instance_contrast(embeddings.detach(), documents, nodes, DEPTHS)
    assert count == 0


# Embeddings of pairs


def test_pair_embeddings_match_a_slow_loop_and_padding_changes_nothing():
    torch.manual_seed(0)
    tokens, prototypes = torch.randn(3, 4, 5), F.normalize(torch.randn(6, 5), dim=1)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
    documents, nodes = pairs_of([[0, 3, 5], [], [1, 3]])
    found = pair_embeddings(prototypes, nodes, documents, tokens, mask, 0.3)
    for (i, c), z in zip(zip(documents.tolist(), nodes.tolist()), found):
        real = [h for h, is_token in zip(tokens[i], mask[i]) if is_token]
        weights = [torch.exp(F.cosine_similarity(prototypes[c], h, dim=0) / 0.3) for h in real]
        expected = sum(w * h for w, h in zip(weights, real)) / sum(weights) if real else torch.zeros(5)
        torch.testing.assert_close(z, expected)
    other = torch.where(mask[:, :, None] > 0, tokens, 1000.0)
    longer = torch.cat([other, torch.full((3, 7, 5), -50.0)], dim=1)
    longer_mask = torch.cat([mask, torch.zeros(3, 7, dtype=torch.int64)], dim=1)
    again = pair_embeddings(prototypes, nodes, documents, longer, longer_mask, 0.3)
    torch.testing.assert_close(again, found)


def test_equal_attention_gives_the_mean_of_the_tokens():
    tokens = torch.randn(2, 4, 5)
    everywhere = attend(torch.randn(2, 3, 5), tokens, None, 1e9)
    torch.testing.assert_close(everywhere, tokens.mean(dim=1, keepdim=True).expand(-1, 3, -1))


class Shapes(TorchDispatchMode):
    """Records the shapes of all results."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.shapes |= {tuple(value.shape) for value in tree_leaves(result) if isinstance(value, torch.Tensor)}
        return result


def test_the_contrast_holds_tensors_of_pairs_and_not_of_all_labels(make_model):
    num_labels = 3001
    taxonomy = Taxonomy.from_edges([("root", f"leaf {i:04}") for i in range(num_labels - 1)])
    model = make_model(taxonomy, label_mode="multi_path", contrast="hjcl", perturbation=0.0)
    labels = torch.full((4, 4), -100)
    labels[0, :2], labels[1, :4], labels[2, :2] = (
        torch.tensor([0, 7]),
        torch.tensor([0, 7, 9, 2000]),
        torch.tensor([0, 9]),
    )
    targets, states = Targets(labels, num_labels), torch.randn(4, 6, 16)
    features = F.normalize(torch.randn(4, 8), dim=1)
    options = model.config.joint_contrast
    with Shapes() as recorded:
        embeddings = model._label_embeddings(options, features, None, targets, states, torch.ones(4, 6))
        joint_contrast_losses(options, features, embeddings, targets, model.head.depths)
    assert embeddings.shape == (8, 8)
    assert (4, 4, 6) in recorded.shapes  # documents, labels of the largest set, tokens
    assert (8, 8) in recorded.shapes  # pairs
    # The weights of the hierarchy need one number per label.
    assert {shape for shape in recorded.shapes if num_labels in shape} == {(num_labels,)}


# Tasks of a model


def batch_of(taxonomy, mode="multi_path"):
    torch.manual_seed(1)
    rng = np.random.default_rng(4)
    labels = random_multi_hot(rng, taxonomy, 6, single_path=mode == "single_path")
    mask = torch.ones(6, 7, dtype=torch.int64)
    mask[2, 4:], mask[3, 2:], mask[5, :3] = 0, 0, 0
    return {"input_ids": torch.randint(2, 22, (6, 7)), "attention_mask": mask, "labels": labels}


def states_of(model, batch):
    return run_encoder(
        model.encoder, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_the_contrasts_are_two_tasks_with_fixed_weights(make_model, taxonomy, mode):
    config = {"label_mode": mode, "partial_paths": True}
    plain = make_model(taxonomy, **config).eval()
    kwargs = {"label_weight": 0.3, "instance_weight": 0.2, "label_temperature": 0.5}
    model = make_model(taxonomy, contrast="hjcl", contrast_kwargs=kwargs, **config).eval()
    assert model.task_names == ["level_0", "level_1", "level_2", "contrast_label", "contrast_instance"]
    assert model.document_tasks == [True, True, True, False, False]
    batch = batch_of(taxonomy, mode)
    output, alone = model(**batch), plain(**batch)
    assert torch.equal(output.task_losses[:3], alone.task_losses)
    targets = Targets(batch["labels"], taxonomy.num_labels)
    documents, nodes = targets.positives
    states = states_of(model, batch)
    tokens, prototypes = model.projection(states), model.prototypes(model.projection)
    embeddings = pair_embeddings(prototypes, nodes, documents, tokens, batch["attention_mask"], 0.1)
    by_label = label_contrast(embeddings, documents, nodes, 6, model.head.depths, 0.5)
    by_instance = instance_contrast(output.features, documents, nodes, model.head.depths, 0.1)
    torch.testing.assert_close(output.task_losses[3:], torch.stack([by_label[0], by_instance[0]]))
    assert output.task_counts[3:].tolist() == [by_label[1], by_instance[1]]
    torch.testing.assert_close(output.loss, alone.loss + 0.3 * by_label[0] + 0.2 * by_instance[0])
    # A weighter's weights of the levels do not change those of the contrasts.
    present = torch.tensor([True, True, True, True, False])
    weights = model.weigh_contrast(torch.tensor([0.2, 5.0, 0.3]), present)
    assert weights.tolist() == pytest.approx([0.2, 5.0, 0.3, 0.3, 0.0])


@pytest.mark.parametrize("variant", ["released", "released_max"])
def test_the_released_variants_attend_with_all_prototypes(make_model, taxonomy, variant):
    kwargs = {"variant": variant, "instance_temperature": 2.0}
    model = make_model(taxonomy, label_mode="multi_path", contrast="hjcl", contrast_kwargs=kwargs).eval()
    batch = batch_of(taxonomy)
    output = model(**batch)
    documents, nodes = Targets(batch["labels"], taxonomy.num_labels).positives
    states = states_of(model, batch)
    tokens, prototypes = model.projection(states), model.prototypes(model.projection)
    z = attend(prototypes.expand(6, -1, -1), tokens, batch["attention_mask"], 0.1)
    depths = model.head.depths
    by_label, _ = label_contrast(z[documents, nodes], documents, nodes, 6, depths, 1.0, released=True)
    by_view, _ = released_instance_contrast(z, documents, nodes, depths, 2.0, variant == "released_max")
    torch.testing.assert_close(output.task_losses[3:], torch.stack([by_label, by_view]))


def test_one_of_the_contrasts_can_be_left_out(make_model, taxonomy):
    batch = batch_of(taxonomy)
    both = make_model(taxonomy, label_mode="multi_path", contrast="hjcl")(**batch).task_losses
    for left_out, name, position in (
        ("label_weight", "contrast_instance", 4),
        ("instance_weight", "contrast_label", 3),
    ):
        kwargs = {"contrast": "hjcl", "contrast_kwargs": {left_out: 0}}
        model = make_model(taxonomy, label_mode="multi_path", **kwargs)
        assert model.task_names[3:] == [name]
        torch.manual_seed(0)
        torch.testing.assert_close(model(**batch).task_losses[3:], both[position : position + 1], rtol=0.05, atol=0.05)


def test_the_gradient_reaches_encoder_projection_and_prototypes(make_model, taxonomy):
    model = make_model(taxonomy, label_mode="multi_path", contrast="hjcl").train()
    model(**batch_of(taxonomy)).task_losses[3].backward()
    for parameter in (model.encoder.get_input_embeddings().weight, model.projection.weight, model.prototypes.weight):
        assert parameter.grad.abs().sum() > 0


def test_padding_does_not_change_the_losses(make_model, taxonomy):
    for variant in ("shared", "released"):
        kwargs = {"contrast": "hjcl", "contrast_kwargs": {"variant": variant}}
        model = make_model(taxonomy, label_mode="multi_path", dtype=torch.float64, **kwargs).eval()
        batch = batch_of(taxonomy)
        longer = {name: batch[name] for name in ("input_ids", "attention_mask")}
        longer = {name: F.pad(value, (0, 5)) for name, value in longer.items()}
        found, padded = model(**batch).task_losses, model(**{**batch, **longer}).task_losses
        torch.testing.assert_close(padded, found)


def test_the_contrasts_are_computed_in_float32_under_autocast(make_model, taxonomy):
    model = make_model(taxonomy, label_mode="multi_path", contrast="hjcl").eval()
    batch, seen = batch_of(taxonomy), []
    with torch.autocast("cpu", torch.bfloat16):
        model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output.last_hidden_state))
        with Shapes() as recorded:
            losses = model(**batch).task_losses
    assert recorded.shapes
    assert losses.dtype == torch.float32
    # The same bfloat16 states, without autocast.
    targets = Targets(batch["labels"], taxonomy.num_labels)
    states = seen[0].float()
    features = F.normalize(model.projection(model.pool(seen[0], batch["attention_mask"]).float()), dim=-1)
    options, mask = model.config.joint_contrast, batch["attention_mask"]
    embeddings = model._label_embeddings(options, features, None, targets, states, mask)
    expected, _ = joint_contrast_losses(options, features, embeddings, targets, model.head.depths)
    torch.testing.assert_close(losses[3:], expected, rtol=1e-6, atol=1e-6)


def test_frozen_features_refuse_the_label_contrast(make_model, taxonomy):
    states, labels = torch.randn(6, 16), batch_of(taxonomy)["labels"]
    for kwargs in (None, {"label_weight": 0, "variant": "released"}):
        model = make_model(taxonomy, label_mode="multi_path", contrast="hjcl", contrast_kwargs=kwargs)
        with pytest.raises(ValueError, match=r'set contrast_kwargs=\{"label_weight": 0\}'):
            model(pooled_states=states, labels=labels)
        assert model(pooled_states=states).logits.shape == (6, 13)  # predictions need no contrast
    model = make_model(taxonomy, label_mode="multi_path", contrast="hjcl", contrast_kwargs={"label_weight": 0})
    output = model(pooled_states=states, labels=labels)
    assert model.task_names[3:] == ["contrast_instance"]
    documents, nodes = Targets(labels, 13).positives
    expected, _ = instance_contrast(output.features, documents, nodes, model.head.depths)
    torch.testing.assert_close(output.task_losses[3], expected)


def test_a_saved_model_has_the_same_losses(make_model, taxonomy, tmp_path):
    kwargs = {"variant": "released", "label_temperature": 0.2}
    model = make_model(taxonomy, label_mode="multi_path", contrast="hjcl", contrast_kwargs=kwargs).eval()
    model.save_pretrained(tmp_path)
    again = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    assert again.config.contrast_kwargs == kwargs
    batch = batch_of(taxonomy)
    assert torch.equal(model(**batch).task_losses[3:], again(**batch).task_losses[3:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"contrast": "hjcl", "contrast_kwargs": {"labelweight": 1}},
            "no option 'labelweight'.*label_weight, instance",
        ),
        (
            {"contrast": "hjcl", "contrast_kwargs": {"label_weight": -1}},
            "label_weight must be a number, 0 .off. or above",
        ),
        (
            {"contrast": "hjcl", "contrast_kwargs": {"label_temperature": 0}},
            "label_temperature must be a number, above 0",
        ),
        ({"contrast": "hjcl", "contrast_kwargs": {"label_temperature": "1"}}, "must be a number.*got '1'"),
        (
            {"contrast": "hjcl", "contrast_kwargs": {"variant": "best"}},
            "one of shared, released, released_max, got 'best'",
        ),
        ({"contrast": "hjcl", "contrast_kwargs": {"label_weight": 0, "instance_weight": 0}}, "are both 0"),
        (
            {"contrast": "aggregate", "contrast_kwargs": {"label_weight": 1}},
            "options of contrast=\"hjcl\".*'aggregate'",
        ),
        ({"contrast": "hjcl-like"}, "contrast"),
    ],
)
def test_invalid_options_are_refused(taxonomy, fields, message):
    with pytest.raises(ValueError, match=message):
        HcalConfig.from_taxonomy(taxonomy, **fields)

"""The choice of the classification loss: options, refused combinations, saving, ZLPR."""

import math

import numpy as np
import pytest
import torch

from hcal_hf import HcalConfig, HcalForSequenceClassification, HierarchicalTextClassificationPipeline, PathSearch
from hcal_hf.classification_loss import asymmetric_options, zlpr_losses
from hcal_hf.targets import Targets
from tests.builders import build_model, build_taxonomy, random_forest, random_multi_hot, tiny_bert
from tests.test_heads import as_indices, make_head

MULTI = {"label_mode": "multi_path", "classification_loss": "asl"}


def config_of(taxonomy, **fields):
    return HcalConfig.from_taxonomy(taxonomy, tiny_bert(), **fields)


# ---- Options ----


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (MULTI, (2.0, 0.0, 0.0, False)),
        ({**MULTI, "classification_loss_kwargs": {"released": True}}, (4.0, 1.0, 0.05, True)),
        ({**MULTI, "classification_loss_kwargs": {"released": True, "detach": False}}, (4.0, 1.0, 0.05, False)),
        ({"classification_loss": "asl"}, (0.0, 2.0, 0.0, False)),
    ],
)
def test_defaults_depend_on_the_head_and_on_released(taxonomy, fields, expected):
    options = asymmetric_options(config_of(taxonomy, **fields))
    assert (options.gamma_negative, options.gamma_positive, options.margin, options.detach) == expected


def test_the_cross_entropy_is_the_default(taxonomy):
    for fields in ({}, {"label_mode": "multi_path"}, {"label_mode": "multi_path", "classification_loss": "bce"}):
        assert asymmetric_options(config_of(taxonomy, **fields)) is None


@pytest.mark.parametrize(
    ("fields", "kwargs", "message"),
    [
        (MULTI, {"gamma_negative": -1}, r"gamma_negative must be a number from 0 .* upwards, got -1"),
        (MULTI, {"gamma_positive": math.inf}, r"gamma_positive must be .*, got inf"),
        (MULTI, {"gamma_positive": True}, r"gamma_positive must be .*, got True"),
        (MULTI, {"margin": 1.0}, r"margin must be a number from 0 \(no margin\) to below 1, got 1.0"),
        (MULTI, {"margin": "0.05"}, "margin must be"),
        (MULTI, {"gama_negative": 4}, r"has 'gama_negative', but .* Closest: 'gamma_negative'"),
        (MULTI, {"pairs": "all"}, 'pairs must be "conditional" or "marginal", got \'all\''),
        (MULTI, {"gap": 1}, "gap must be a number between -1 and 1, got 1"),
        (MULTI, {"gap": 0, "rate": 0}, "rate must be a number above 0, got 0"),
        (MULTI, {"released": 1}, "released must be true or false, got 1"),
        ({**MULTI, "head": "independent"}, {"pairs": "marginal"}, "already has one probability per label"),
        ({**MULTI, "contrast": "aggregate"}, {"released": True}, "released=True sums the loss"),
        ({"classification_loss": "asl"}, {"gamma_negative": 4}, "gamma_negative has no effect .* only the true class"),
        ({"classification_loss": "asl"}, {"margin": 0.05}, "margin has no effect .* Use gamma_positive"),
        ({"classification_loss": "asl"}, {"gap": 0.1}, "gap has no effect"),
        ({"classification_loss": "asl"}, {"pairs": "marginal"}, 'pairs="marginal" has no effect'),
        (
            {"classification_loss": "asl"},
            {"released": True},
            "released=True is the sum over the sigmoids .* leave released out",
        ),
        (
            {"classification_loss": "bce"},
            None,
            'is for the sigmoid heads .* leave classification_loss out \\("auto"\\)',
        ),
        ({"label_mode": "multi_path"}, {"margin": 0.1}, "are options of another loss than classification_loss='auto'"),
        ({"label_mode": "multi_path", "classification_loss": "zlpr"}, None, "ZLPR ranks scores against 0"),
        ({"head": "independent", "classification_loss": "zlpr"}, None, "got label_mode='single_path'"),
        (
            {"label_mode": "multi_path", "head": "independent", "classification_loss": "zlpr"},
            {"margin": 0.1},
            "classification_loss='zlpr' takes released",
        ),
        ({"objective": "aggregate", "classification_loss": "asl"}, None, 'class means of objective="aggregate"'),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_reason(fields, kwargs, message):
    with pytest.raises(ValueError, match=message):
        config_of(build_taxonomy(), **fields, classification_loss_kwargs=kwargs)
    with pytest.raises(ValueError, match="classification_loss"):
        config_of(build_taxonomy(), classification_loss="focal")


# ---- Models ----


@pytest.mark.parametrize(
    "fields",
    [
        {**MULTI, "classification_loss_kwargs": {"gap": 0.1, "margin": 0.05}},
        {**MULTI, "head": "conditional_sigmoid", "classification_loss_kwargs": {"pairs": "marginal"}},
        {"classification_loss": "asl", "partial_paths": True},
        {"label_mode": "multi_path", "head": "independent", "classification_loss": "zlpr"},
    ],
)
def test_a_saved_model_predicts_the_same(fields, tmp_path, tokenizer):
    model = build_model(build_taxonomy(), **fields).eval()
    if hasattr(model.head, "gamma_negative"):
        assert model.head.gamma_negative.tolist() == [2.0, 2.0, 2.0]
        model.head.gamma_negative.copy_(torch.tensor([0.5, 3.0, 1.0]))
    inputs = {"input_ids": torch.tensor([[2, 3, 4], [5, 6, 7]])}
    with torch.no_grad():
        expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.classification_loss_kwargs == model.config.classification_loss_kwargs
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    found = HierarchicalTextClassificationPipeline(loaded, tokenizer)("stars atoms energy", top_k=None, threshold=0.0)
    scores = {item["label"]: item["score"] for item in found}
    labels = model.config.labels
    for label, p in zip(labels, expected[0].sigmoid().tolist()):
        assert scores.get(label, p) == pytest.approx(p, abs=1e-6)
    # The same weights with another loss predict other probabilities, except for ZLPR, which has no map.
    plain = build_model(
        build_taxonomy(), **{**fields, "classification_loss": "auto", "classification_loss_kwargs": None}
    )
    with torch.no_grad():
        is_same = torch.allclose(plain.eval()(**inputs).logits, expected, atol=1e-3)
    assert is_same == (fields["classification_loss"] == "zlpr")


def test_added_labels_keep_the_loss_and_its_state(encoder_dir, tokenizer):
    kwargs = {"gap": 0.1, "gamma_positive": 0.5}
    model = HcalForSequenceClassification.from_encoder(
        encoder_dir,
        build_taxonomy(),
        **MULTI,
        classification_loss_kwargs=kwargs,
        head="conditional_sigmoid",
        prototype_anchor="label_text",
    ).eval()
    model.head.gamma_negative.copy_(torch.tensor([0.5, 3.0, 1.0]))
    with torch.no_grad():
        before = model(input_ids=torch.tensor([[2, 3, 4]])).logits[0]
    old = list(model.config.labels)
    model.add_labels([["science", "physics", "quantum", "spin"]], tokenizer)
    assert model.config.classification_loss_kwargs == kwargs
    assert model.head.gamma_negative.tolist() == [0.5, 3.0, 1.0, 1.0]
    with torch.no_grad():
        after = model(input_ids=torch.tensor([[2, 3, 4]])).logits[0]
    for label in old:  # under conditional_sigmoid, a new child changes no other label
        assert after[model.config.labels.index(label)].item() == pytest.approx(
            before[old.index(label)].item(), abs=1e-5
        )


def test_the_released_loss_is_the_sum_over_all_levels():
    model = build_model(
        build_taxonomy(),
        dtype=torch.float64,
        head="independent",
        **MULTI,
        classification_loss_kwargs={"released": True},
    )
    labels = random_multi_hot(np.random.default_rng(0), model.taxonomy, 3, single_path=False)
    output = model.eval()(input_ids=torch.tensor([[2, 3], [4, 5], [6, 7]]), labels=labels)
    scores = model.head.scores(model.prototypes.products(output.features, model.projection))
    total = 0.0
    for row, truth in zip(scores.tolist(), labels.tolist()):
        for s, y in zip(row, truth):
            p = 1 / (1 + math.exp(-s))
            excess = max(p - 0.05, 0)
            total += -(1 - p) * math.log(p) if y else -(excess**4) * math.log(1 - excess)
    assert output.loss.item() == pytest.approx(total)


def test_path_search_refuses_marginal_pairs():
    model = build_model(
        build_taxonomy(), head="conditional_sigmoid", **MULTI, classification_loss_kwargs={"pairs": "marginal"}
    )
    with pytest.raises(ValueError, match="asymmetric loss of marginal pairs"):
        PathSearch(model)


# ---- ZLPR ----


def slow_zlpr(row, truth):
    below = sum(math.exp(s) for s, y in zip(row, truth) if not y)
    above = sum(math.exp(-s) for s, y in zip(row, truth) if y)
    return math.log(1 + below) + math.log(1 + above)


def test_zlpr_has_the_values_of_the_specification():
    scores = torch.tensor([[2, -1, 0.5], [-0.3, 0.8, -2]], dtype=torch.float64)
    losses = zlpr_losses(scores, torch.tensor([[True, False, True], [False, True, False]]))
    assert losses.tolist() == pytest.approx([0.868218607, 1.000324338], abs=1e-9)
    assert losses.mean().item() == pytest.approx(0.934271473, abs=1e-9)


@pytest.mark.parametrize("released", [False, True])
def test_zlpr_matches_a_slow_loop(released):
    rng = np.random.default_rng(0)
    taxonomy = random_forest(rng, 20)
    kwargs = {"released": released}
    head = make_head(
        taxonomy, "multi_path", head="independent", classification_loss="zlpr", classification_loss_kwargs=kwargs
    )
    scores = torch.randn(6, 20, dtype=torch.float64) * 2
    labels = random_multi_hot(rng, taxonomy, 6, single_path=False)
    levels = [slice(0, 20)] * len(taxonomy.levels) if released else taxonomy.levels
    expected = [
        sum(slow_zlpr(row[level], truth[level]) for row, truth in zip(scores.tolist(), labels.tolist())) / 6
        for level in levels
    ]
    for form in (labels, as_indices(labels)):
        targets = Targets(form, 20)
        assert head.losses(scores, targets).tolist() == pytest.approx(expected)
        assert head.counts(targets).tolist() == [6] * len(taxonomy.levels)
    # The threshold of the scores is 0, which is the probability 1/2.
    assert torch.equal(head.log_probs(scores).exp() > 0.5, scores > 0)


def test_zlpr_is_finite_for_extreme_scores_and_empty_label_sets():
    taxonomy = build_taxonomy()
    head = make_head(taxonomy, "multi_path", head="independent", classification_loss="zlpr").float()
    scores = (torch.randn(4, taxonomy.num_labels) * 100).bfloat16().requires_grad_()
    labels = torch.zeros(4, taxonomy.num_labels)
    labels[0] = 1
    losses = head.losses(scores, Targets(labels, taxonomy.num_labels))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(scores.grad).all()

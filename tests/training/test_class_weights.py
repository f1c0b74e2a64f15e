"""Weights of labels in the training loss: heads against loops, the balanced weights, training, and errors."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight as sklearn_class_weight
from torch.nn import functional as F

from hcal_hf import HcalClassifier, HcalTrainingArguments, compute_class_weight, solve
from hcal_hf.targets import Targets
from hcal_hf.training.class_weights import label_weights_of
from tests.builders import build_model, build_ragged, random_multi_hot

SOFTMAX = ("independent", "conditional_softmax", "path_softmax", "lookahead_softmax")
SIGMOID = ("independent", "conditional_sigmoid", "lookahead_sigmoid")


def parts(head, mode, seed=0, **config):
    taxonomy = build_ragged()
    model = build_model(taxonomy, head=head, label_mode=mode, partial_paths=True, dtype=torch.float64, **config)
    rng = np.random.default_rng(seed)
    labels = random_multi_hot(rng, taxonomy, 6, mode == "single_path")
    scores = torch.randn(6, taxonomy.num_labels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weights = torch.from_numpy(rng.uniform(0.2, 5.0, taxonomy.num_labels))
    return model.head, taxonomy, labels, scores, weights


def losses(head, labels, scores, weights=None):
    return head.losses(scores, Targets(labels, labels.shape[1], weights))


@pytest.mark.parametrize(
    ("mode", "head"), [("single_path", h) for h in SOFTMAX] + [("multi_path", h) for h in SIGMOID]
)
def test_the_loss_of_each_document_is_weighted_by_its_true_label(mode, head):
    head, taxonomy, labels, scores, weights = parts(head, mode)
    found = losses(head, labels, scores, weights)
    counts = head.counts(Targets(labels, taxonomy.num_labels))
    # A weight of 1 + e for one label adds e times the terms in which it is true: the loss is linear in the weights.
    ones = torch.ones(taxonomy.num_labels, dtype=torch.float64)
    base = losses(head, labels, scores, ones)
    torch.testing.assert_close(base, losses(head, labels, scores))
    total = base.clone()
    for node in range(taxonomy.num_labels):
        alone = ones.clone()
        alone[node] = 0.0
        total = total + (weights[node] - 1) * (base - losses(head, labels, scores, alone))
    torch.testing.assert_close(found, total)
    # Documents without the label do not change with its weight.
    for node in range(taxonomy.num_labels):
        without = labels[:, node] == 0
        double = ones.clone()
        double[node] = 2.0
        if without.any():
            kept = labels[without], scores[without]
            torch.testing.assert_close(losses(head, *kept, double), losses(head, *kept, ones))
    assert torch.equal(counts, head.counts(Targets(labels, taxonomy.num_labels, weights)))


def test_binary_cross_entropies_have_the_values_of_torch():
    head, taxonomy, labels, scores, weights = parts("independent", "multi_path")
    # torch's pos_weight is the weight of the positive terms.
    whole = F.binary_cross_entropy_with_logits(scores, labels.double(), pos_weight=weights, reduction="none")
    expected = torch.stack([whole[:, level].mean() for level in taxonomy.levels])
    torch.testing.assert_close(losses(head, labels, scores, weights), expected)


def test_a_document_that_stops_early_has_the_weight_of_its_end():
    head, taxonomy, _, scores, _ = parts("conditional_softmax", "single_path")
    labels = torch.zeros(6, taxonomy.num_labels)
    labels[:, taxonomy.index("a")] = 1.0  # stops at a, which has children
    weights = torch.ones(taxonomy.num_labels, dtype=torch.float64)
    weights[taxonomy.index("a")] = 3.0
    torch.testing.assert_close(losses(head, labels, scores, weights), 3 * losses(head, labels, scores))


@pytest.mark.parametrize(
    "loss", [{"gamma_positive": 2.0}, {"gamma_positive": 1.0, "gamma_negative": 3.0, "margin": 0.05}]
)
def test_asymmetric_losses_are_weighted_too(loss):
    mode, name = ("single_path", "independent") if len(loss) == 1 else ("multi_path", "conditional_sigmoid")
    options = {"classification_loss": "asl", "classification_loss_kwargs": loss}
    head, taxonomy, labels, scores, _ = parts(name, mode, **options)
    three = torch.full((taxonomy.num_labels,), 3.0, dtype=torch.float64)
    if mode == "single_path":
        torch.testing.assert_close(losses(head, labels, scores, three), 3 * losses(head, labels, scores))
    else:
        assert (losses(head, labels, scores, three) > losses(head, labels, scores)).any()


def test_balanced_weights_are_those_of_scikit_learn_on_each_level(taxonomy):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, taxonomy.num_labels)
    found = compute_class_weight("balanced", taxonomy, counts)
    for level in taxonomy.levels:
        rows = np.repeat(np.arange(level.start, level.stop), counts[level])
        classes = np.unique(rows)
        np.testing.assert_allclose(found[classes], sklearn_class_weight("balanced", classes=classes, y=rows))
    assert (found[counts == 0] == 1).all()
    given = compute_class_weight({"science > physics": 2, "opera": 0.5}, taxonomy)
    assert given[taxonomy.index("physics")] == 2
    assert given.sum() == taxonomy.num_labels + 0.5


def test_accumulated_batches_give_the_step_of_one_batch(make_trainer, taxonomy, data):
    weights = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            taxonomy, data, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=2,
            class_weight="balanced", loss_weighting="uniform", train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer.train()
        weights.append(trainer.model.prototypes.weight.detach())
    torch.testing.assert_close(*weights)
    plain = make_trainer(
        taxonomy, data, per_device_train_batch_size=8, max_steps=2, loss_weighting="uniform",
        train_sampling_strategy="sequential", class_weight={"astronomy": 3.0},
    )  # fmt: skip
    plain.train()
    assert not torch.allclose(weights[0], plain.model.prototypes.weight)
    assert plain.model.label_weights[taxonomy.index("astronomy")] == 3.0
    # The evaluation loss has no weights.
    with_weights = plain.evaluate(data)["eval_loss"]
    plain.model.label_weights = None
    assert plain.evaluate(data)["eval_loss"] == with_weights


def test_the_solver_fits_weighted_losses(taxonomy):
    model = build_model(taxonomy, score_function="linear", label_mode="multi_path", head="independent")
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(60, 16, generator=generator)
    labels = random_multi_hot(np.random.default_rng(0), taxonomy, 60, False)
    rare = int(labels.sum(dim=0).argmin())

    def fitted(weight):
        model.label_weights = torch.ones(taxonomy.num_labels)
        model.label_weights[rare] = weight
        solve(model, (states, labels), (states, labels), strengths=[16.0])
        with torch.no_grad():
            return torch.sigmoid(model.eval()(pooled_states=states).logits)[:, rare].mean()

    assert fitted(20.0) > 1.5 * fitted(1.0)


def test_wrong_weights_are_refused(taxonomy, tmp_path):
    def arguments(class_weight):
        return HcalTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", class_weight=class_weight)

    assert arguments('{"opera": 2}').class_weight == {"opera": 2}
    with pytest.raises(ValueError, match=r"must be \"balanced\" or weights by label .* got 'even'"):
        arguments("even")
    with pytest.raises(ValueError, match=r"class_weight\['opera'\] must be a number of at least 0, got -1"):
        arguments({"opera": -1})
    with pytest.raises(ValueError, match="'oprea'"):
        compute_class_weight({"oprea": 2}, taxonomy)
    paper = build_model(taxonomy, preset="paper").config
    with pytest.raises(ValueError, match="objective='aggregate'"):
        label_weights_of("balanced", None, taxonomy, paper)
    with pytest.raises(ValueError, match="a stream does not allow: give weights"):
        label_weights_of("balanced", iter(()), taxonomy, build_model(taxonomy).config)


@pytest.mark.parametrize("training", [{}, {"score_function": "cosine", "head_learning_rate": 0.05}])
def test_the_estimator_takes_class_weights(training):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8))
    y = [["a", "x"] if row[0] > 1.2 else ["a", "y"] for row in features]

    def share(class_weight):
        classifier = HcalClassifier(encoder=None, C=1.0, class_weight=class_weight, random_state=0, **training)
        return float((classifier.fit(features, y).predict(features)[:, 1] == "x").mean())

    assert share("balanced") > share(None)
    assert share({"x": 0.0}) == 0
    with pytest.raises(ValueError, match="class_weight must be"):
        share("even")

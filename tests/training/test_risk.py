"""Compares conformal risk control with slow loops, and checks its guarantee on random data."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from hcal_hf import Taxonomy, decode
from hcal_hf.metrics import violation_rates
from hcal_hf.training.risk import NEVER, calibrate_risk, describe_answers
from tests.builders import random_dag, random_forest, random_multi_hot


def draw(make, seed, documents, labels, single=False, grid=None):
    rng = np.random.default_rng(seed)
    taxonomy = make(rng, labels)
    targets = random_multi_hot(rng, taxonomy, documents, single).numpy() > 0
    p = 1 / (1 + np.exp(-rng.normal(4.0 * targets - 2.5, 1.5)))
    return taxonomy, p if grid is None else np.clip(np.round(p * grid), 1, grid - 1) / grid, targets


def ancestors(taxonomy, node):
    return set(taxonomy.complete([node]).tolist())


def slow_answer(p, path, threshold, taxonomy):
    return {c for c in path if min(p[a] for a in ancestors(taxonomy, c)) >= threshold}


def slow_losses(p, path, true, thresholds, taxonomy):
    """Computes the monotone loss at each threshold, from the highest to the lowest."""
    losses, worst = [], Fraction(0)
    for threshold in thresholds:
        answer = slow_answer(p, path, threshold, taxonomy)
        if answer:
            worst = max(worst, Fraction(len(answer - true), len(answer)))
        losses.append(worst)
    return losses


@pytest.mark.parametrize(
    ("mode", "make"), [("single_path", random_forest), ("multi_path", random_forest), ("multi_path", random_dag)]
)
@pytest.mark.parametrize("head", ["independent", "coherent"])
@pytest.mark.parametrize(("seed", "grid"), [(0, None), (1, 8), (2, 8)])
def test_calibrated_thresholds_match_a_slow_reference(mode, make, head, seed, grid):
    taxonomy, p, targets = draw(make, seed, 19, 10, mode == "single_path", grid)
    logits = torch.logit(torch.from_numpy(p))
    paths = torch.ones_like(logits, dtype=torch.bool)
    if mode == "single_path":
        paths = decode(logits, taxonomy, mode, "path", partial_paths=True, head=head)
    sets = [set(row.nonzero()[:, 0].tolist()) for row in paths]
    true = [set(np.flatnonzero(row).tolist()) for row in targets]
    lowest = [[min(row[a] for a in ancestors(taxonomy, c)) for c in path] for row, path in zip(p, sets)]
    thresholds = sorted({value for row in lowest for value in row}, reverse=True)
    losses = [slow_losses(*document, thresholds, taxonomy) for document in zip(p, sets, true)]
    means = [sum(column) / len(column) for column in zip(*losses)]
    seen = set()
    for alpha in (0.04, *np.linspace(0.051, 0.9, 40).tolist()):
        allowed = [t for t, mean in zip(thresholds, means) if (19 * mean + 1) / 20 <= alpha]
        found = calibrate_risk(p, targets, taxonomy, mode, alpha, partial_paths=True, head=head)
        if alpha < 1 / 20:
            assert found == NEVER
        elif len(allowed) == len(thresholds):
            assert found == 0
        else:
            passed, refused = (min(allowed) if allowed else 1.0), thresholds[len(allowed)]
            assert refused < found <= passed
            assert found == pytest.approx((refused * passed) ** 0.5)
        expected = [slow_answer(*document, found, taxonomy) for document in zip(p, sets)]
        answers = decode(logits, taxonomy, mode, "risk", partial_paths=True, head=head, risk_threshold=found)
        assert [set(row.nonzero()[:, 0].tolist()) for row in answers] == expected
        assert violation_rates(answers.numpy(), taxonomy)["hvr"] == 0
        seen.add(found)
    assert len(seen) >= 3


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_a_higher_threshold_predicts_a_subset_of_the_labels(make, mode):
    make = random_forest if mode == "single_path" else make
    taxonomy, p, _ = draw(make, 5, 30, 20)
    logits = torch.logit(torch.from_numpy(p))
    larger = decode(logits, taxonomy, mode, "risk", risk_threshold=0.0)
    assert larger.any(dim=1).all()
    for threshold in (0.05, 0.1, 0.3, 0.6, 0.9, 1.0, NEVER):
        smaller = decode(logits, taxonomy, mode, "risk", risk_threshold=threshold)
        assert not (smaller & ~larger).any()
        assert violation_rates(smaller.numpy(), taxonomy)["hvr"] == 0
        larger = smaller
    assert not larger.any()


@pytest.mark.parametrize(
    ("mode", "make"), [("single_path", random_forest), ("multi_path", random_forest), ("multi_path", random_dag)]
)
@pytest.mark.parametrize("alpha", [0.1, 0.25])
def test_the_mean_risk_over_random_splits_is_below_alpha(mode, make, alpha):
    """Calibrates on 40 documents and predicts the other 160, for 100 random splits."""
    taxonomy, p, targets = draw(make, 11, 200, 8, mode == "single_path")
    logits = torch.logit(torch.from_numpy(p))
    rng = np.random.default_rng(0)
    risks, answered = [], []
    for _ in range(100):
        order = rng.permutation(200)
        here, there = order[:40], order[40:]
        threshold = calibrate_risk(p[here], targets[here], taxonomy, mode, alpha, partial_paths=True)
        answers = decode(logits[there], taxonomy, mode, "risk", partial_paths=True, risk_threshold=threshold)
        found = describe_answers(answers, targets[there], taxonomy)
        risks.append(found["risk"])
        answered.append(found["answered"])
    assert np.mean(risks) <= alpha + 0.005, np.mean(risks)
    assert np.mean(answered) > 0.2, np.mean(answered)  # empty predictions would satisfy the guarantee trivially


def test_a_higher_risk_gives_a_lower_threshold():
    taxonomy, p, targets = draw(random_forest, 3, 300, 12)
    found = [calibrate_risk(p, targets, taxonomy, "multi_path", alpha) for alpha in (0.02, 0.05, 0.1, 0.2, 0.4)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 5


def test_thresholds_of_special_cases_unlabelled_perfect_and_tied():
    taxonomy = Taxonomy.from_edges([("a", "b")])
    p = np.tile([0.8, 0.4], (99, 1))
    assert calibrate_risk(p, np.ones((99, 2), dtype=bool), taxonomy, "multi_path", 0.01) == 0  # 1 / 100 <= 0.01
    # All labels are wrong, so the threshold is above the largest probability. Empty predictions have no risk.
    nothing = np.zeros((99, 2), dtype=bool)
    threshold = calibrate_risk(p, nothing, taxonomy, "multi_path", 0.1)
    assert 0.8 < threshold < 1
    assert calibrate_risk(np.ones((99, 2)), nothing, taxonomy, "multi_path", 0.1) == NEVER
    assert calibrate_risk(np.zeros((99, 2)), nothing, taxonomy, "multi_path", 0.1) > 0
    # Both labels are predicted together, and one of them is wrong.
    half = np.tile([True, False], (99, 1))
    tied = np.full((99, 2), 0.5)
    roots = Taxonomy.from_edges([], roots=["a", "b"])
    for true in (half, ~half):
        assert calibrate_risk(tied, true, roots, "multi_path", 0.505) == 0  # (99 / 2 + 1) / 100 exactly
        assert calibrate_risk(tied, true, roots, "multi_path", 0.504) > 0.5


def test_too_few_documents_for_the_risk_level_predict_no_labels(caplog):
    taxonomy = Taxonomy.from_edges([("a", "b")])
    p, targets = np.full((8, 2), 0.9), np.ones((8, 2), dtype=bool)
    assert calibrate_risk(p, targets, taxonomy, "multi_path", 0.1) == NEVER
    assert calibrate_risk(p, targets, taxonomy, "multi_path", 0.12) == 0
    answers = decode(torch.logit(torch.from_numpy(p)), taxonomy, "multi_path", "risk", risk_threshold=NEVER)
    assert describe_answers(answers, targets, taxonomy) == {
        "risk": 0.0, "answered": 0.0, "levels": 0.0, "completeness": 0.0, "empty": 1.0,
    }  # fmt: skip


def test_describe_answers_counts_wrong_missing_and_empty_predictions():
    taxonomy = Taxonomy.from_edges([("a", "b"), ("b", "c"), ("a", "d")])
    answers = np.zeros((4, 4), dtype=bool)
    targets = answers.copy()
    answers[0, :2] = targets[0] = True  # two of the four true labels, all correct
    answers[1, [0, 1]] = targets[1, [0, 2]] = True  # one of two labels is wrong
    targets[2, 0] = True  # document 3 has neither predicted nor true labels
    found = describe_answers(answers, targets, taxonomy)
    assert found == {"risk": 0.125, "answered": 1.0, "levels": 1.0, "completeness": 0.5, "empty": 0.5}
    assert set(describe_answers(answers[:0], targets[:0], taxonomy).values()) == {0.0}


@pytest.mark.parametrize("alpha", [0, 1, -0.1, float("nan")])
def test_a_risk_outside_0_to_1_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        calibrate_risk(np.zeros((2, 2)), np.zeros((2, 2)), Taxonomy.from_edges([("a", "b")]), "multi_path", alpha)


def test_no_documents_and_bad_thresholds_are_refused():
    taxonomy = Taxonomy.from_edges([("a", "b")])
    with pytest.raises(ValueError, match="held-out documents with labels, got none"):
        calibrate_risk(np.zeros((0, 2)), np.zeros((0, 2)), taxonomy, "multi_path")
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="risk_threshold must be 0 or above"):
            decode(torch.zeros(1, 2), taxonomy, "multi_path", "risk", risk_threshold=bad)
    with pytest.raises(ValueError, match="decode='risk' and risk_threshold=None"):
        decode(torch.zeros(1, 2), taxonomy, "multi_path", "risk")
    with pytest.raises(ValueError, match=r"decode='closure' and risk_threshold=0\.5"):
        decode(torch.zeros(1, 2), taxonomy, "multi_path", "closure", risk_threshold=0.5)
    with pytest.raises(ValueError, match="leave threshold out"):
        decode(torch.zeros(1, 2), taxonomy, "multi_path", "risk", threshold=0.5, risk_threshold=0.5)

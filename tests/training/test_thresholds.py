"""Compares tuned thresholds with slow loops over documents and candidate thresholds."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from hcal_hf import Taxonomy, decode
from hcal_hf.metrics import violation_rates
from hcal_hf.training.thresholds import _best_logs, tune_for_decoding, tune_thresholds
from tests.builders import random_dag, random_forest, random_multi_hot


def draw(make, seed, documents=40, labels=12, grid=None):
    """Returns (taxonomy, probabilities, targets). True labels are more probable. `grid` rounds to produce ties."""
    rng = np.random.default_rng(seed)
    taxonomy = make(rng, labels)
    targets = random_multi_hot(rng, taxonomy, documents, single_path=False).numpy() > 0
    p = 1 / (1 + np.exp(-rng.normal(2.0 * targets - 1.5, 1.3)))
    return taxonomy, p if grid is None else np.round(p * grid) / grid, targets


def f1(hits, predicted, true):
    return 2 * hits / (predicted + true) if predicted + true else 0.0


def slow_score(p, targets, thresholds, metric):
    counts = []
    for label in range(p.shape[1]):
        chosen = [bool(row[label] >= thresholds[label]) for row in p]
        true = [bool(row[label]) for row in targets]
        counts.append((sum(c and t for c, t in zip(chosen, true)), sum(chosen), sum(true)))
    if metric == "micro_f1":
        return f1(*map(sum, zip(*counts)))
    present = [f1(*count) for count in counts if count[2]]
    return sum(present) / len(present)


def candidates(values):
    return [*sorted(set(np.asarray(values).ravel().tolist())), 1.5]


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1"])
@pytest.mark.parametrize(("seed", "grid"), [(0, None), (1, None), (2, 6), (3, 6)])
def test_the_global_threshold_is_the_best_of_all_candidates(make, metric, seed, grid):
    taxonomy, p, targets = draw(make, seed, documents=15, labels=8, grid=grid)
    tuned = tune_thresholds(p, targets, taxonomy, metric=metric)
    assert len(set(tuned.tolist())) == 1
    best = max(slow_score(p, targets, [t] * 8, metric) for t in candidates(p))
    assert slow_score(p, targets, tuned, metric) == pytest.approx(best, abs=1e-12)
    # The threshold is halfway in log space between two probabilities.
    below, above = p[(p < tuned[0]) & (p > 0)].max(), p[p >= tuned[0]].min()
    assert math.log(tuned[0]) == pytest.approx((math.log(below) + math.log(above)) / 2)


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("granularity", ["level", "label"])
@pytest.mark.parametrize(("seed", "grid"), [(0, None), (1, 6)])
def test_the_threshold_of_each_group_has_the_best_macro_f1(make, granularity, seed, grid):
    taxonomy, p, targets = draw(make, seed, documents=20, labels=8, grid=grid)
    groups = taxonomy.levels if granularity == "level" else [slice(i, i + 1) for i in range(8)]
    with np.errstate(divide="ignore"):
        values = np.maximum(np.log(p), -1e4)
    logs = _best_logs(values.T.copy(), targets.T.copy(), groups, "macro_f1")
    for group, log_t in zip(groups, logs):
        if targets[:, group].any():
            size = group.stop - group.start
            part = p[:, group], targets[:, group]
            best = max(slow_score(*part, [t] * size, "macro_f1") for t in candidates(p[:, group]))
            assert slow_score(*part, [math.exp(log_t)] * size, "macro_f1") == pytest.approx(best, abs=1e-12)


def test_the_highest_of_equally_good_thresholds_is_used():
    """Compares exact fractions, because rounding errors could make one of two equal F1 scores larger."""
    rng = np.random.default_rng(0)
    p, targets = np.ceil(rng.random((12, 400)) * 12) / 12, rng.random((12, 400)) < 0.4
    targets[0] = True
    logs = _best_logs(np.log(p).T.copy(), targets.T.copy(), [slice(i, i + 1) for i in range(400)], "macro_f1")
    num_ties = 0
    for label, log_t in enumerate(logs):
        values = sorted(set(p[:, label]), reverse=True)
        scores = []
        for t in values:
            passes = p[:, label] >= t
            hits = int((passes & targets[:, label]).sum())
            scores.append(Fraction(2 * hits, int(passes.sum() + targets[:, label].sum())))
        num_ties += scores.count(max(scores)) > 1
        value, below = [*values, values[-1] / 2][scores.index(max(scores)) :][:2]
        assert log_t == pytest.approx((math.log(value) + math.log(below)) / 2)
    assert num_ties > 20, "the test needs labels with equally good thresholds"


@pytest.mark.parametrize("grid", [None, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_thresholds_of_all_groups_have_the_best_micro_f1_together(seed, grid):
    """Enumerates all combinations of thresholds."""
    rng = np.random.default_rng(seed)
    p, targets = rng.random((6, 3)), rng.random((6, 3)) < 0.4
    targets[0, 0] = True
    p = p if grid is None else np.ceil(p * grid) / grid
    logs = _best_logs(np.log(p).T.copy(), targets.T.copy(), [slice(i, i + 1) for i in range(3)], "micro_f1")
    every = [candidates(p[:, i]) for i in range(3)]
    best = max(slow_score(p, targets, (a, b, c), "micro_f1") for a in every[0] for b in every[1] for c in every[2])
    # A log threshold of 0 means that no label is predicted, while a threshold of 1 would accept p = 1.
    assert slow_score(p, targets, np.where(logs < 0, np.exp(logs), 1.5), "micro_f1") == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1"])
@pytest.mark.parametrize("granularity", ["level", "label"])
def test_rare_labels_use_the_shared_threshold(metric, granularity):
    taxonomy = Taxonomy.from_edges([("a", "b"), ("b", "c")])  # each level has one label
    rng = np.random.default_rng(0)
    targets = np.zeros((60, 3), dtype=bool)
    targets[:30, 0] = targets[:12, 1] = targets[:3, 2] = True
    p = 1 / (1 + np.exp(-rng.normal(2 * targets - [0.0, 1.0, 2.5], 1.0)))
    (shared,) = set(tune_thresholds(p, targets, taxonomy, metric=metric).tolist())
    assert sum(targets[:, 2]) == 3
    kwargs = {"granularity": granularity, "metric": metric}
    for least in (4, 13):
        tuned = tune_thresholds(p, targets, taxonomy, min_positives=least, **kwargs)
        assert tuned[2] in (shared, tuned[1])  # with 3 positives it has the shared threshold or that of its parent
        assert least < 13 or tuned[1] in (shared, tuned[0])
    assert set(tune_thresholds(p, targets, taxonomy, min_positives=31, **kwargs).tolist()) == {shared}


def test_shrinkage_averages_the_logits_of_own_and_shared_threshold():
    taxonomy = Taxonomy.from_edges([], roots=["a", "b"])
    _, p, targets = draw(random_forest, 3, documents=200, labels=2)
    own = tune_thresholds(p, targets, taxonomy, "label", "macro_f1", shrinkage=0)
    base = tune_thresholds(p, targets, taxonomy, metric="macro_f1")[0]
    assert abs(own - base).max() > 0.01
    mixed = tune_thresholds(p, targets, taxonomy, "label", "macro_f1", shrinkage=7.0)
    logit = lambda t: math.log(t / (1 - t))  # noqa: E731
    for label, count in enumerate(targets.sum(axis=0)):
        weight = count / (count + 7)
        assert logit(mixed[label]) == pytest.approx(weight * logit(own[label]) + (1 - weight) * logit(base))


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("granularity", ["global", "level", "label"])
@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1"])
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_never_fall_from_parent_to_child_so_predictions_are_consistent(make, granularity, metric, seed):
    taxonomy, p, targets = draw(make, seed, documents=80, labels=25)
    for node in range(taxonomy.num_labels):
        for parent in taxonomy.parents(node):
            p[:, node] = np.minimum(p[:, node], p[:, parent])
    tuned = tune_thresholds(p, targets, taxonomy, granularity, metric, min_positives=4, shrinkage=1.0)
    assert ((tuned >= 0) & (tuned <= 1)).all()
    assert (tuned[taxonomy.edges[:, 1]] >= tuned[taxonomy.edges[:, 0]]).all()
    logits = torch.logit(torch.from_numpy(p))
    raw = decode(logits, taxonomy, "multi_path", "raw", tuned)
    assert violation_rates(raw.numpy(), taxonomy)["hvr"] == 0
    for method in ("prune", "closure"):
        assert torch.equal(decode(logits, taxonomy, "multi_path", method, tuned), raw)
    assert 0 < raw.sum() < raw.numel()


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
@pytest.mark.parametrize("head", ["independent", "coherent"])
@pytest.mark.parametrize("seed", range(3))
def test_the_global_threshold_is_the_best_for_the_default_decoder(mode, head, seed):
    rng = np.random.default_rng(seed)
    taxonomy = random_forest(rng, 10)
    targets = random_multi_hot(rng, taxonomy, 15, mode == "single_path").numpy() > 0
    logits = torch.from_numpy(rng.normal(3.0 * targets - 1.5, 1.5))
    tuned = tune_for_decoding(logits, targets, taxonomy, mode, True, head)

    def score(threshold):
        sets = decode(logits, taxonomy, mode, None, threshold, True, head).numpy()
        return f1(int((sets & targets).sum()), int(sets.sum()), int(targets.sum()))

    best = max(map(score, [0.0, 1.0, *torch.sigmoid(logits).flatten().tolist()]))
    assert score(tuned) >= best - 1e-12


@pytest.mark.parametrize("granularity", ["global", "label"])
def test_resampled_thresholds_are_the_mean_logits_over_bootstrap_samples(granularity):
    taxonomy, p, targets = draw(random_forest, 1, documents=60)
    how = {"granularity": granularity, "metric": "macro_f1", "min_positives": 4}
    found = tune_thresholds(p, targets, taxonomy, resamples=5, **how)
    random, logits = np.random.default_rng(0), []
    for _ in range(5):
        rows = random.integers(60, size=60)
        values = tune_thresholds(p[rows], targets[rows], taxonomy, **how)
        logits.append(np.log(values / (1 - values)))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.mean(logits, axis=0))), rtol=1e-6)
    parents, children = taxonomy.edges.T
    assert (found[children] >= found[parents] * (1 - 1e-12)).all()
    assert not np.array_equal(found, tune_thresholds(p, targets, taxonomy, **how))


def test_thresholds_are_one_half_without_positive_labels_or_candidates():
    taxonomy = Taxonomy.from_edges([("a", "b")])
    for documents in (0, 5):
        p, targets = np.full((documents, 2), 0.3), np.zeros((documents, 2), dtype=bool)
        assert tune_thresholds(p, targets, taxonomy, "label").tolist() == [0.5, 0.5]
    p, targets = np.full((5, 2), 0.3), np.ones((5, 2), dtype=bool)
    none = np.zeros_like(targets)
    assert tune_thresholds(p, targets, taxonomy, candidates=none).tolist() == [0.5, 0.5]


def test_constant_labels_and_probabilities_of_0_and_1_give_finite_thresholds():
    taxonomy = Taxonomy.from_edges([], roots=["always", "never", "mixed"])
    p = np.array([[0.4, 0.9, 1.0], [0.2, 0.9, 0.0]] * 10)
    targets = np.array([[1, 0, 1], [1, 0, 0]] * 10) > 0
    for granularity in ("global", "level", "label"):
        for metric in ("micro_f1", "macro_f1"):
            tuned = tune_thresholds(p, targets, taxonomy, granularity, metric, min_positives=4, shrinkage=0)
            assert np.isfinite(tuned).all()
            assert tuned[0] < 0.2
    assert tuned[2] == pytest.approx(0.1)
    everything = np.ones_like(targets)
    assert tune_thresholds(np.zeros((20, 3)), everything, taxonomy).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"granularity": "leaf"}, "granularity must be one of global, level, label, got 'leaf'"),
        ({"metric": "f1"}, "metric must be one of micro_f1, macro_f1, got 'f1'"),
        ({"min_positives": 3}, "min_positives must be at least 4, got 3"),
        ({"shrinkage": -1.0}, "shrinkage must be 0 .* got -1.0"),
        ({"probabilities": np.zeros((2, 3))}, r"shape \[documents, 2\], got \[2, 3\]"),
        ({"probabilities": np.full((2, 2), 4.0)}, "got 4.0: give sigmoid"),
        ({"targets": np.zeros((3, 2), dtype=bool)}, r"targets must have the shape .* \[2, 2\], got \[3, 2\]"),
        ({"candidates": np.zeros((3, 2), dtype=bool)}, "candidates must have the shape"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    given = {"probabilities": np.full((2, 2), 0.5), "targets": np.ones((2, 2), dtype=bool), **kwargs}
    with pytest.raises(ValueError, match=message):
        tune_thresholds(taxonomy=Taxonomy.from_edges([("a", "b")]), **given)

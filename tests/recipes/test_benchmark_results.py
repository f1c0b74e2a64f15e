"""The modules behind the tables of recipes/benchmarks: data sets, scores, the bootstrap, baselines and the page."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hcal_hf import Taxonomy
from hcal_hf.metrics import classification_scores
from tests.builders import import_benchmarks


@pytest.fixture(scope="module")
def modules():
    pytest.importorskip("hiclass", reason="the baselines need hiclass")
    return import_benchmarks("baselines", "data", "result_rows", "results", "scoring", "setfit_rows", "tables")


@pytest.fixture
def taxonomy():
    return Taxonomy.from_edges([("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2")], roots=["a", "b", "c"])


def single_paths(taxonomy, count, seed):
    leaves = np.flatnonzero(taxonomy.is_leaf)
    ends = np.random.default_rng(seed).choice(leaves, size=count)
    truth = np.zeros((count, taxonomy.num_labels), dtype=bool)
    for row, end in enumerate(ends):
        truth[row, [end, *taxonomy.parents(end)]] = True
    return truth


def noisy_logits(truth, seed, noise=1.5):
    return torch.from_numpy(4.0 * truth - 2 + np.random.default_rng(seed).normal(size=truth.shape) * noise)


def problem_of(modules, taxonomy, mode, count=400):
    truth = {split: single_paths(taxonomy, count, seed) for seed, split in enumerate(("validation", "test"))}
    logits = {split: noisy_logits(values, seed) for seed, (split, values) in enumerate(truth.items())}
    return modules.scoring.Problem(taxonomy, mode, False, truth), logits


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_decoded_label_sets_are_consistent_and_thresholded_ones_are_not(modules, taxonomy, mode):
    scoring = modules.scoring
    problem, logits = problem_of(modules, taxonomy, mode)
    raw = scoring.label_sets_of(scoring.Outputs(logits, "independent", "thresholds"), problem)
    closed = scoring.label_sets_of(scoring.Outputs(logits, "independent", "decoded"), problem)
    for sets in (closed.micro, closed.macro):
        assert (sets[:, taxonomy.edges[:, 0]] | ~sets[:, taxonomy.edges[:, 1]]).all()
    found = scoring.scores(raw, problem)
    assert found["hvr_raw"] == found["hvr_decoded"] > 0
    found = scoring.scores(closed, problem)
    assert found["hvr_decoded"] == 0 < found["hvr_raw"]
    if mode == "single_path":
        assert (closed.micro == closed.macro).all()
        assert (closed.micro[:, taxonomy.is_leaf].sum(axis=1) == 1).all()


def test_thresholds_of_independent_labels_ignore_the_hierarchy(modules, taxonomy):
    """A child may have a lower threshold than its parent, because independent probabilities are not ordered."""
    problem, logits = problem_of(modules, taxonomy, "multi_path", 2000)
    parents = taxonomy.edges[:, 0]
    for values in logits.values():
        values[:, np.unique(parents)] += 3
    found = modules.scoring.Thresholds(problem, "independent", False, "macro_f1", 4).fit(logits["validation"])
    assert (found.values[taxonomy.edges[:, 1]] < found.values[parents]).all()
    assert found.way["granularity"] in ("level", "label")


def test_validation_label_sets_use_cross_validated_thresholds(modules, taxonomy):
    """On noise, thresholds fitted on all validation documents score better there than cross-validated ones."""
    problem, _ = problem_of(modules, taxonomy, "multi_path", 60)
    noise = {
        split: torch.randn(60, taxonomy.num_labels, generator=torch.Generator().manual_seed(3))
        for split in problem.truth
    }
    outputs = modules.scoring.Outputs(noise, "independent", "thresholds")
    found = modules.scoring.label_sets_of(outputs, problem, "validation", bags=0)
    fitted = modules.scoring.Thresholds(problem, "independent", False, "micro_f1", 0).fit(noise["validation"])
    own = fitted.sets(noise["validation"])
    score = [
        classification_scores(sets, problem.truth["validation"], taxonomy)["micro_f1"] for sets in (found.micro, own)
    ]
    assert score[0] < score[1]


@pytest.mark.parametrize("decision", ["decoded", "levels", "thresholds"])
def test_bootstrap_scores_equal_the_scores_of_the_drawn_documents(modules, taxonomy, monkeypatch, decision):
    scoring = modules.scoring
    monkeypatch.setattr(scoring, "RESAMPLES", 3)
    problem, logits = problem_of(modules, taxonomy, "single_path", 150)
    answers = scoring.label_sets_of(scoring.Outputs(logits, "independent", decision), problem)
    truth = problem.truth["test"]
    found = scoring.resampled_scores(answers, truth, taxonomy, seed=7)
    random = np.random.default_rng(7)
    for draw in range(3):
        rows = random.integers(150, size=150)
        for name, sets in (
            ("micro_f1", answers.micro), ("leaf_accuracy", answers.micro), ("macro_f1", answers.macro)
        ):  # fmt: skip
            expected = classification_scores(sets[rows], truth[rows], taxonomy)[name]
            assert found[name][draw] == pytest.approx(100 * expected, abs=1e-3), name
        leaf = scoring.leaf_macro_f1(answers.leaf[rows], truth[rows], taxonomy)
        assert found["leaf_macro_f1"][draw] == pytest.approx(100 * leaf, abs=1e-3)


def test_the_bootstrap_finds_a_large_difference_significant_and_not_a_small_one(modules, taxonomy):
    scoring = modules.scoring
    problem, _ = problem_of(modules, taxonomy, "single_path", 600)
    truth = problem.truth["test"]

    def drawn(seed, noise):
        outputs = scoring.Outputs({"test": noisy_logits(truth, seed, noise)}, "path_softmax", "decoded")
        return scoring.resampled_scores(scoring.label_sets_of(outputs, problem), truth, taxonomy)["micro_f1"]

    better, worse, as_good = drawn(1, 1.0), drawn(2, 3.0), drawn(3, 1.0)
    found = scoring.difference([better], [worse])
    assert 0 < found["low"] < found["high"]
    assert found["p"] < 0.01
    found = scoring.difference([better], [as_good])
    assert found["low"] < 0 < found["high"]
    assert found["p"] > 0.05
    assert scoring.difference([better], [better]) == {"low": 0.0, "high": 0.0, "p": 1.0}


def row_of(modules, method, seed, ours, f1, **fields):
    return modules.result_rows.Row(
        dataset="set",
        method=method,
        regime="frozen",
        seed=seed,
        ours=ours,
        metrics={"micro_f1": f1, "macro_f1": f1, "hvr_raw": 0.0, "micro_f1_level_0": f1},
        facts={
            "chosen": {"C": 1.0},
            "train_seconds": 2.0,
            "documents_per_second": 1000,
            "parameters": 12345,
            "device": "CPU",
            "threads": 1,
        },
        **fields,
    )


def test_a_rerun_replaces_the_stored_row(modules, tmp_path):
    sets = np.eye(3, dtype=bool)
    answers = modules.scoring.LabelSets(sets, ~sets, ~sets, sets)
    for f1 in (50.0, 60.0):
        modules.result_rows.store(row_of(modules, "one", 0, True, f1), answers, tmp_path / "r.json", tmp_path)
    modules.result_rows.store(row_of(modules, "one", 1, True, 70.0), answers, tmp_path / "r.json", tmp_path)
    rows = modules.result_rows.read(tmp_path / "r.json")
    assert [(row.seed, row.metrics["micro_f1"]) for row in rows] == [(0, 60.0), (1, 70.0)]
    assert len({row.config_hash for row in rows}) == 1
    assert rows[0].versions["torch"] == torch.__version__
    kept = modules.result_rows.stored_label_sets(rows[0], tmp_path)
    assert (kept.micro == sets).all()
    assert (kept.macro == ~sets).all()


def test_methods_are_compared_with_the_best_baseline_only(modules, taxonomy, tmp_path):
    results, scoring = modules.results, modules.scoring
    truth = single_paths(taxonomy, 40, 0)
    rows = []
    for method, ours, f1 in (("mine", True, 80.0), ("good", False, 70.0), ("poor", False, 60.0)):
        rows.append(row_of(modules, method, 0, ours, f1))
        modules.result_rows.store(
            rows[-1], scoring.LabelSets(truth, truth, truth, truth), tmp_path / "r.json", tmp_path
        )
    mine, good, poor = rows
    poor.label_sets_path(tmp_path).unlink()
    results.compare(rows, truth, taxonomy, tmp_path)
    assert mine.against_best_baseline["micro_f1"] == {
        "baseline": "good", "difference": 10.0, "low": 0.0, "high": 0.0, "p": 1.0,
    }  # fmt: skip
    assert good.against_best_baseline == poor.against_best_baseline == {}
    # Without the label sets of the best baseline, the stored result is kept. A method without label sets has no result.
    mine.against_best_baseline["micro_f1"]["difference"] = 5.0
    good.label_sets_path(tmp_path).rename(tmp_path / "elsewhere.npz")
    results.compare(rows, truth, taxonomy, tmp_path)
    assert mine.against_best_baseline["micro_f1"]["difference"] == 5.0
    (tmp_path / "elsewhere.npz").rename(good.label_sets_path(tmp_path))
    mine.label_sets_path(tmp_path).unlink()
    results.compare(rows, truth, taxonomy, tmp_path)
    assert mine.against_best_baseline == {}


def test_the_page_shows_means_deviations_and_significant_gains_in_bold(modules):
    gain = {"micro_f1": {"baseline": "theirs", "difference": 6.0, "low": 4.0, "high": 8.0, "p": 0.001}}
    chance = {"macro_f1": {"baseline": "theirs", "difference": 6.0, "low": -1.0, "high": 13.0, "p": 0.1}}
    rows = [row_of(modules, "theirs", seed, False, 50.0 + seed) for seed in range(2)]
    rows += [
        row_of(modules, "mine", seed, True, 56.0 + seed, against_best_baseline=gain | chance) for seed in range(2)
    ]
    page = modules.results.tables(rows, {("fine-tuned", "other"): "python run.py"})
    assert "| **mine** | **56.5 ± 0.7** | 56.5 ± 0.7 | 0.0 ± 0.0 | 56.5 | 2 | 1,000 | 12,345 | 2 |" in page
    assert "| theirs | 50.5 ± 0.7 | 50.5 ± 0.7 |" in page
    assert (
        "| mine | +6.0 (+4.0 to +8.0), p 0.001, against theirs | +6.0 (-1.0 to +13.0), p 0.100, against theirs |"
        in page
    )
    assert "| fine-tuned | other | `python run.py` |" in page


def test_the_page_agrees_with_its_rows(modules):
    rows = modules.result_rows.read(modules.result_rows.RESULTS)
    assert rows, "results.json has no rows"
    page = modules.results.PAGE.read_text(encoding="utf-8")
    assert page == modules.tables.filled(page, {"tables": modules.results.tables(rows, modules.results.expected())})
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        assert row.metrics["micro_f1"] > 0
        assert row.facts["train_seconds"] >= 0  # neighbours are not trained
        assert row.config_hash
        assert set(row.versions) >= {"python", "torch", "transformers"}


def test_sample_each_leaf_draws_the_same_number_of_documents_per_leaf(modules, taxonomy):
    truth = single_paths(taxonomy, 300, 0)
    rows = modules.data.sample_each_leaf(truth, taxonomy, 5, 0)
    assert (truth[rows][:, taxonomy.is_leaf].sum(axis=0) == 5).all()
    assert len(np.intersect1d(rows, modules.data.sample_each_leaf(truth, taxonomy, 5, 1))) < len(rows)


def test_conditional_logistic_regression_is_a_product_of_scikit_learn_models(modules, taxonomy):
    from sklearn.linear_model import LogisticRegression

    y = {
        split: torch.from_numpy(single_paths(taxonomy, 80, seed)).float()
        for seed, split in enumerate(("train", "test"))
    }
    noise = torch.Generator().manual_seed(0)
    mixing = torch.randn(taxonomy.num_labels, 6, generator=noise)
    x = {split: values @ mixing + torch.randn(80, 6, generator=noise) for split, values in y.items()}
    attempt = next(iter(modules.baselines.logistic_regressions(x, y, taxonomy, conditional=True)))
    p = torch.sigmoid(attempt.predict("test")).numpy()
    truth, c = y["train"].numpy() > 0, attempt.setting["C"]
    for parent, child in taxonomy.edges:
        rows = truth[:, parent]
        models = [
            LogisticRegression(C=c, max_iter=1000).fit(x["train"].double().numpy()[of], truth[of, node])
            for of, node in ((slice(None), parent), (rows, child))
        ]
        expected = np.prod([model.predict_proba(x["test"].double().numpy())[:, 1] for model in models], axis=0)
        np.testing.assert_allclose(p[:, child], expected, atol=1e-6)


@pytest.mark.parametrize("method", ["softmax_over_leaves", "local_classifiers"])
def test_classical_baselines_learn_an_easy_hierarchy(modules, taxonomy, method):
    y = {
        split: torch.from_numpy(single_paths(taxonomy, 200, seed)).float()
        for seed, split in enumerate(("train", "validation", "test"))
    }
    x = {
        split: values + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
        for split, values in y.items()
    }
    attempts = list(getattr(modules.baselines, method)(x, y, taxonomy))
    assert len(attempts) == len(modules.baselines.STRENGTHS)
    assert (attempts[-1].predict("test") == (y["test"].numpy() > 0)).mean() > 0.99
    assert attempts[-1].parameters > 0


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_setfit_predictions_include_ancestors(modules, taxonomy, mode):
    truth = {split: single_paths(taxonomy, 200, seed) for seed, split in enumerate(("train", "validation", "test"))}
    x = {
        split: torch.from_numpy(values).float()
        + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
        for split, values in truth.items()
    }
    tokens = SimpleNamespace(taxonomy=taxonomy, label_mode=mode)
    attempts = list(modules.setfit_rows.attempts(x, truth, tokens))
    assert [attempt.setting["C"] for attempt, _ in attempts] == list(modules.baselines.STRENGTHS)
    problem = modules.scoring.Problem(taxonomy, mode, False, truth)
    answers = modules.scoring.label_sets_of(attempts[-1][1], problem)
    found = modules.scoring.scores(answers, problem)
    assert found["micro_f1"] > 99
    assert found["hvr_raw"] == 0


def test_with_ancestors_gives_each_label_the_maximum_logit_below_it(modules):
    taxonomy = Taxonomy.from_edges([("a", "a1"), ("a", "a2"), ("a1", "a11"), ("b", "b1")])
    named = {"a": -3.0, "b": 2.0, "a1": -4.0, "a2": -5.0, "b1": 1.0, "a11": -1.0}
    logits = torch.tensor([[named[label] for label in taxonomy.labels]])
    found = dict(zip(taxonomy.labels, modules.setfit_rows.with_ancestors(logits, taxonomy)[0].tolist()))
    assert found == {"a": -1.0, "b": 2.0, "a1": -1.0, "a2": -5.0, "b1": 1.0, "a11": -1.0}


def test_the_learning_curve_has_a_row_per_method_and_a_column_per_size(modules):
    rows = []
    for method, ours, found in (("one", True, {1: [50.0, 60.0], 5: [80.0]}), ("two", False, {1: [40.0]})):
        for per_leaf, values in found.items():
            for seed, value in enumerate(values):
                row = row_of(modules, method, seed, ours, 0.0)
                row.per_leaf, row.metrics = per_leaf, {"leaf_accuracy": value}
                rows.append(row)
    assert modules.tables.learning_curve(rows) == [
        "| method | 1 | 5 | seeds |",
        "|---|---|---|---|",
        "| two | 40.0 |  | 1 |",
        "| **one** | 55.0 ± 7.1 | 80.0 | 2 |",
    ]

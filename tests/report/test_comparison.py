"""The comparison of two models equals a slow bootstrap, and refuses what cannot be compared."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from hcal_hf import (
    Taxonomy,
    bootstrap_interval,
    classification_scores,
    compare_predictions,
    draw_documents,
    violation_rates,
    write_report,
)
from hcal_hf.commands import main as cli
from hcal_hf.commands.comparison_run import p_value
from hcal_hf.report import comparison as module
from hcal_hf.report.predictions import LabelPairs, Predictions
from tests.builders import build_model, random_dag, random_forest
from tests.report.builders import collect, facts_of
from tests.report.test_page import EVIL, Page


def with_violations(predictions, seed):
    """Removes every tenth predicted label, so that some sets contradict the hierarchy."""
    kept = np.random.default_rng(seed).random(len(predictions.predicted.labels)) > 0.1
    p = predictions.predicted
    pairs = LabelPairs(p.documents[kept], p.labels[kept], p.num_documents, p.num_labels)
    return Predictions(pairs, predictions.true, predictions.probabilities[kept], predictions.bins)


def two_models(taxonomy, documents=30, noise=(1.0, 2.5)):
    # Equal seeds make equal documents.
    return [with_violations(collect(taxonomy, documents=documents, noise=n)[0], i) for i, n in enumerate(noise)]


def slow_scores(predictions, rows, taxonomy):
    predicted, true = predictions.predicted.ids(), predictions.true.ids()
    sets = [predicted[row] for row in rows], [true[row] for row in rows]
    return classification_scores(*sets, taxonomy) | {"hvr": violation_rates(sets[0], taxonomy)["hvr"]}


@pytest.mark.parametrize("chunk", [4_000_000, 1])
@pytest.mark.parametrize("is_dag", [False, True])
def test_the_comparison_equals_a_slow_bootstrap(is_dag, chunk, monkeypatch):
    monkeypatch.setattr(module, "_PAIRS_PER_CHUNK", chunk)
    rng = np.random.default_rng(2)
    taxonomy = random_dag(rng, 20) if is_dag else random_forest(rng, 20)
    first, second = two_models(taxonomy)
    found = compare_predictions(first, second, taxonomy, resamples=25, seed=3)
    rows = np.random.default_rng(3).integers(30, size=(25, 30))
    draws = [[slow_scores(model, drawn, taxonomy) for drawn in rows] for model in (first, second)]
    whole = [slow_scores(model, range(30), taxonomy) for model in (first, second)]
    assert {"micro_f1", "macro_f1", "hvr", "leaf_accuracy", "accuracy_level_1"} <= {m.name for m in found.metrics}
    assert whole[0]["hvr"] > 0
    for metric in found.metrics:
        name = metric.name
        assert (metric.first, metric.second) == pytest.approx([scores[name] for scores in whole]), name
        differences = [b[name] - a[name] for a, b in zip(*draws)]
        low, high = np.percentile(differences, [2.5, 97.5])
        assert (metric.difference, metric.low, metric.high) == pytest.approx(
            (whole[1][name] - whole[0][name], low, high), abs=1e-6
        ), name
    kinds = {"first_right": [], "second_right": [], "both_wrong": []}
    sets = [[set(ids) for ids in p.ids()] for p in (first.true, first.predicted, second.predicted)]
    for document, (true, a, b) in enumerate(zip(*sets)):
        if a != b:
            kinds["first_right" if a == true else "second_right" if b == true else "both_wrong"].append(document)
    assert {kind: getattr(found, kind).tolist() for kind in kinds} == kinds


def test_a_better_model_differs_beyond_chance_and_an_equal_one_does_not(taxonomy):
    good, poor = (collect(taxonomy, documents=400, noise=noise)[0] for noise in (0.5, 3.0))
    metrics = {m.name: m for m in compare_predictions(poor, good, taxonomy, resamples=500).metrics}
    assert metrics["micro_f1"].low > 0
    assert metrics["micro_f1"].p == 1 / 500
    for metric in compare_predictions(good, good, taxonomy, resamples=50).metrics:
        assert (metric.difference, metric.low, metric.high, metric.p) == (0, 0, 0, 1)


def test_levels_without_documents_have_no_metrics(ragged):
    top = LabelPairs(np.arange(4), np.arange(4) % 3, 4, ragged.num_labels)
    same = Predictions(top, top, np.ones(4), np.zeros((3, 10)))
    names = {metric.name for metric in compare_predictions(same, same, ragged, resamples=5).metrics}
    assert "accuracy_level_0" in names
    assert not {"accuracy_level_1", "micro_f1_level_2"} & names


def test_draws_depend_on_the_seed_alone():
    whole = next(draw_documents(50, 30, 7))
    parts = np.concatenate(list(draw_documents(50, 30, 7, chunk=4)))
    assert (whole == parts).all()
    assert (whole.sum(axis=1) == 50).all()
    assert (whole != next(draw_documents(50, 30, 8))).any()
    assert whole.mean() == 1
    with pytest.raises(ValueError, match="at least one document and one resample, got 0 and 5"):
        next(draw_documents(0, 5))


def test_the_interval_of_known_differences():
    found = bootstrap_interval(np.arange(-10, 91))
    assert (found["low"], found["high"]) == (-7.5, 87.5)
    assert found["p"] == pytest.approx(22 / 101)
    assert bootstrap_interval([1.0] * 40)["p"] == 1 / 40
    assert p_value(1 / 40, 40) == "<0.03"
    assert p_value(0.25, 40) == "0.250"


def test_10000_resamples_of_10000_documents_take_seconds():
    """Macro-F1 is computed from sparse counts, so the time grows with the pairs and not with documents x labels."""
    rng = np.random.default_rng(0)
    taxonomy = Taxonomy([f"n{i}" for i in range(5000)])
    pairs = [LabelPairs(np.arange(10_000), rng.integers(5000, size=10_000), 10_000, 5000) for _ in range(3)]
    first, second = (Predictions(p, pairs[2], np.ones(10_000), np.zeros((3, 10))) for p in pairs[:2])
    start = time.perf_counter()
    compare_predictions(first, second, taxonomy, resamples=200)
    assert time.perf_counter() - start < 10  # 50 times as many take as many times as long


def test_other_documents_are_refused(taxonomy):
    first, _, _ = collect(taxonomy, documents=20)
    other, _, _ = collect(taxonomy, documents=21)
    with pytest.raises(ValueError, match="different documents"):
        compare_predictions(first, other, taxonomy)


def save(folder, taxonomy, tokenizer, **config):
    build_model(taxonomy, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory, taxonomy, tokenizer):
    """(first model, second model, table)."""
    folder = tmp_path_factory.mktemp("models")
    leaves = [taxonomy.paths(node)[0] for node in np.flatnonzero(taxonomy.is_leaf)]
    words = ["stars", "atoms", "genes", "plants", "poems", "novels", "music"]
    rows = [{"text": f"{words[i % 7]} of {words[i % 5]} {EVIL}", "labels": [leaves[i % 7]]} for i in range(60)]
    rows[2]["labels"] = None
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second = (save(folder / f"m{i}", taxonomy, tokenizer, seed=i, head="path_softmax") for i in (1, 2))
    return first, second, str(folder / "test.jsonl")


def test_hcal_evaluate_compares_two_models(models, taxonomy, tmp_path, capsys):
    words = ["evaluate", *models, "--cpu", "--resamples", "100", "--seed", "5"]
    assert cli.main([*words, "--json", "--report", str(tmp_path / "report.html")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["models"] == list(models[:2])
    assert (result["documents"], result["resamples"], result["seed"]) == (59, 100, 5)
    for i, key in enumerate(("first", "second")):
        assert cli.main(["evaluate", models[i], models[2], "--cpu", "--json"]) == 0
        alone = json.loads(capsys.readouterr().out)["metrics"]
        for name in ("micro_f1", "macro_f1", "hierarchical_f1", "exact_match", "leaf_accuracy", "hvr"):
            assert result["metrics"][name][key] == pytest.approx(alone[f"test_{name}"])
    rows = result["differing_rows"]
    assert sum(map(len, rows.values())) > 0
    assert 3 not in [row for kind in rows.values() for row in kind]  # its labels are unknown
    table = [json.loads(line) for line in Path(models[2]).read_text(encoding="utf-8").splitlines()]
    for kind, documents in result["examples"].items():
        assert [document["row"] for document in documents] == rows[kind][:10]
        for document in documents:
            row = table[document["row"] - 1]
            assert document["text"] == row["text"]
            assert document["true"] == [" > ".join(row["labels"][0])]
            assert (document["first"] == document["true"]) == (kind == "first_right")
            assert (document["second"] == document["true"]) == (kind == "second_right")
    read = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    metric = result["metrics"]["micro_f1"]
    text = " ".join(read.text.split())
    assert (
        f"micro-F1 {100 * metric['first']:.1f} {100 * metric['second']:.1f} {100 * metric['difference']:+.1f} "
        f"{100 * metric['low']:+.1f} to {100 * metric['high']:+.1f}" in text
    )
    assert EVIL in text
    assert "Comparison of two models" in text

    assert cli.main([*words, "--no-texts", "--report", str(tmp_path / "report.html")]) == 0
    out = capsys.readouterr().out
    assert f"{100 * metric['difference']:+6.1f}" in out
    assert "100 resamples, seed 5" in out
    assert f"{len(rows['both_wrong']):6,d}  both are wrong" in out
    assert "alert" not in out
    assert "alert" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_cannot_be_compared_is_refused(models, ragged, taxonomy, tokenizer, tmp_path, capsys):
    other = save(tmp_path / "other", ragged, tokenizer, partial_paths=True)
    assert cli.main(["evaluate", models[0], other, models[2], "--cpu"]) == 1
    err = capsys.readouterr().err
    assert "different taxonomies, 13 and 9 labels" in err
    assert "--taxonomy FILE" in err
    assert cli.main(["evaluate", *models, "--cpu", "--temperature"]) == 1
    assert "A comparison fits nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", models[0], *models, "--cpu"])
    assert stopped.value.code == 2
    assert "compare two models at a time, got 3" in capsys.readouterr().err


def test_models_of_other_label_modes_are_compared_on_common_rows(models, taxonomy, tokenizer, tmp_path, capsys):
    multi = save(tmp_path / "multi", taxonomy, tokenizer, label_mode="multi_path")
    assert cli.main(["evaluate", models[0], multi, models[2], "--cpu", "--json", "--resamples", "10"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 59
    lines = Path(models[2]).read_text(encoding="utf-8").splitlines()
    lines.append(
        json.dumps({"text": "two", "labels": [["science", "physics", "quantum"], ["arts", "stage", "opera"]]})
    )
    (tmp_path / "two.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = ["evaluate", models[0], multi, str(tmp_path / "two.jsonl"), "--cpu", "--on-bad-row", "drop"]
    assert cli.main(words) == 1
    assert "on 59 rows and" in capsys.readouterr().err


def test_markup_in_a_comparison_is_shown_and_not_run(tmp_path):
    taxonomy = Taxonomy.from_paths([["top", EVIL], ["top", "b"], ["other", "c"]])
    first, second = two_models(taxonomy)
    found = compare_predictions(first, second, taxonomy, (EVIL, EVIL), resamples=10)
    found.examples = {"both_wrong": [module.DifferingDocument(1, EVIL, [EVIL], [EVIL], [])]}
    path = tmp_path / "report.html"
    write_report(path, facts_of(taxonomy, first), first, comparison=found)
    assert "<script>alert" not in path.read_text(encoding="utf-8")
    read = Page(path.read_text(encoding="utf-8"))
    assert read.text.count("alert('x')") >= 5
    assert "(nothing)" in read.text
    if read.data["figures"]:
        assert len(read.data["figures"]["comparison"]["data"][0]["x"]) == len(found.metrics)

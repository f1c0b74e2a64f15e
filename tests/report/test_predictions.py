"""Collected predictions equal those of the whole matrix, and counts equal slow loops."""

import numpy as np
import pytest
import torch

from hcal_hf import HcalTrainer, HcalTrainingArguments, encode_dataset
from hcal_hf.commands.prediction_formats import confidence
from hcal_hf.decoding import Decision
from hcal_hf.report import confusion, predictions
from hcal_hf.report.confusion import find_confusions
from hcal_hf.report.label_scores import score_labels
from hcal_hf.report.summary import cover
from tests.builders import build_model, random_dag, random_forest
from tests.report.builders import collect

CASES = [("multi_path", False), ("multi_path", True), ("single_path", False)]


def taxonomy_of(is_dag, seed):
    rng = np.random.default_rng(seed)
    return random_dag(rng, 25) if is_dag else random_forest(rng, 25)


@pytest.mark.parametrize(("mode", "is_dag"), CASES)
def test_batches_and_chunks_collect_what_the_whole_matrix_has(mode, is_dag, monkeypatch):
    taxonomy = taxonomy_of(is_dag, 3)
    whole, logits, truth = collect(taxonomy, mode=mode, batch=60)
    monkeypatch.setattr(predictions, "PAIRS_PER_CHUNK", 3 * taxonomy.num_labels)
    found, _, _ = collect(taxonomy, mode=mode, batch=7)
    head = "lookahead_softmax" if mode == "single_path" else "lookahead_sigmoid"
    sets = Decision(mode, True, head).decode(logits, taxonomy).numpy()
    for got in (whole, found):
        assert [list(ids) for ids in got.predicted.ids()] == [list(np.flatnonzero(row)) for row in sets]
        assert [list(ids) for ids in got.true.ids()] == [list(np.flatnonzero(row)) for row in truth]
        np.testing.assert_allclose(got.probabilities, torch.sigmoid(logits.double()).numpy()[sets])
        assert list(got.predicted.of(5)) == list(np.flatnonzero(sets[5]))
    np.testing.assert_allclose(whole.bins, found.bins)
    if mode == "multi_path":
        p = torch.sigmoid(logits.double()).numpy()
        for i in range(predictions.BINS):
            at = (p * predictions.BINS).astype(int) == i
            np.testing.assert_allclose(found.bins[:, i], [at.sum(), p[at].sum(), truth[at].sum()])
    else:
        assert found.bins[0].sum() == len(truth)
        assert found.bins[2].sum() == (sets == truth).all(axis=1).sum()


@pytest.mark.parametrize(("mode", "is_dag"), CASES)
def test_label_counts_equal_a_slow_loop(mode, is_dag):
    taxonomy = taxonomy_of(is_dag, 5)
    found, _, truth = collect(taxonomy, mode=mode)
    scores = score_labels(found, taxonomy)
    sets = np.zeros_like(truth)
    sets[found.predicted.documents, found.predicted.labels] = True
    for node in range(taxonomy.num_labels):
        parents = taxonomy.parents(node)
        assert scores.parents[node] in (parents if len(parents) else [-1])
        below = np.flatnonzero(scores.parents == node)
        assert scores.documents[node] == truth[:, node].sum()
        assert scores.predicted[node] == sets[:, node].sum()
        assert scores.hits[node] == (truth & sets)[:, node].sum()
        assert scores.ends[node] == (truth[:, node] & ~truth[:, below].any(axis=1)).sum()
        if truth[:, node].any():
            total = truth[:, node].sum() + sets[:, node].sum()
            assert scores.f1[node] == pytest.approx(2 * (truth & sets)[:, node].sum() / total)
        else:
            assert np.isnan(scores.f1[node])


@pytest.mark.parametrize("pairs", [2_000_000, 1])
@pytest.mark.parametrize(("mode", "is_dag"), CASES)
def test_confusions_equal_a_slow_loop(mode, is_dag, pairs, monkeypatch):
    monkeypatch.setattr(confusion, "_PAIRS_PER_CHUNK", pairs)
    taxonomy = taxonomy_of(is_dag, 7)
    found, _, truth = collect(taxonomy, documents=80, mode=mode, noise=2.5)
    expected = {}
    for document in range(80):
        predicted = set(found.predicted.of(document).tolist())
        true = set(np.flatnonzero(truth[document]).tolist())
        for a in true - predicted:
            for b in predicted - true:
                above_a, above_b = (set(taxonomy.parents(node).tolist()) for node in (a, b))
                if (not above_a and not above_b) or above_a & above_b & true & predicted:
                    expected.setdefault((a, b), []).append(document)
    got = find_confusions(found, taxonomy, most=1000, examples=2)
    if sum(len(rows) > 1 for rows in expected.values()) >= 5:
        expected = {pair: rows for pair, rows in expected.items() if len(rows) > 1}
    assert {(c.true, c.predicted): c.documents for c in got} == {pair: len(rows) for pair, rows in expected.items()}
    assert {(c.true, c.predicted): c.examples for c in got} == {pair: rows[:2] for pair, rows in expected.items()}
    assert [c.documents for c in got] == sorted((c.documents for c in got), reverse=True)
    assert find_confusions(found, taxonomy, most=3, examples=0) == [
        confusion.Confusion(c.true, c.predicted, c.documents, []) for c in got[:3]
    ]


@pytest.mark.parametrize(("mode", "is_dag"), CASES)
def test_coverage_equals_a_slow_loop_with_the_confidence_of_hcal_predict(mode, is_dag):
    taxonomy = taxonomy_of(is_dag, 9)
    found, logits, truth = collect(taxonomy, documents=40, mode=mode, noise=2.0)
    p = torch.sigmoid(logits.double()).numpy()
    sets = [found.predicted.of(document) for document in range(40)]
    confidences = []
    for document, ids in enumerate(sets):
        paths = [(path, p[document, node]) for node in ids for path in taxonomy.paths(node)]
        confidences.append(confidence([path for path, _ in paths], [score for _, score in paths]))
    right = np.array([set(ids) == set(np.flatnonzero(row)) for ids, row in zip(sets, truth)])
    got = cover(found, taxonomy, right)
    assert got.shares[-1] == 1
    for share, lowest, exact, f1 in zip(got.shares, got.confidences, got.exact_match, got.micro_f1):
        answered = [i for i in range(40) if confidences[i] >= lowest - 1e-12]
        assert len(answered) == round(40 * share)
        assert exact == pytest.approx(right[answered].mean())
        hits = sum(len(set(sets[i]) & set(np.flatnonzero(truth[i]))) for i in answered)
        total = sum(len(sets[i]) + truth[i].sum() for i in answered)
        assert f1 == pytest.approx(2 * hits / max(total, 1))


def test_documents_of_equal_confidence_are_answered_together(taxonomy):
    found, _, _ = collect(taxonomy, documents=12)
    same = predictions.Predictions(found.predicted, found.true, np.full_like(found.probabilities, 0.5), found.bins)
    coverage = cover(same, taxonomy, np.ones(12, dtype=bool))
    predicted = (same.predicted.sizes > 0).mean()
    assert coverage.shares == sorted({predicted, 1.0})


@pytest.mark.parametrize("batches", [False, True])
def test_collecting_does_not_change_the_metrics(taxonomy, tokenizer, tmp_path, batches):
    texts = ["stars of the study", "genes", "poems", "music of atoms", "plants and genes"]
    leaves = [label for label, leaf in zip(taxonomy.labels, taxonomy.is_leaf) if leaf]
    from datasets import Dataset

    rows = encode_dataset(
        Dataset.from_list([{"text": text, "labels": [leaves[i]]} for i, text in enumerate(texts)]),
        taxonomy, tokenizer, label_mode="single_path",
    )  # fmt: skip
    args = HcalTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, per_device_eval_batch_size=2, batch_eval_metrics=batches
    )
    trainer = HcalTrainer(build_model(taxonomy), args, eval_dataset=rows, processing_class=tokenizer)
    expected = trainer.evaluate()
    original = trainer.compute_metrics
    with predictions.collect_predictions(trainer) as collector:
        got = trainer.evaluate()
    assert trainer.compute_metrics is original
    assert {k: v for k, v in got.items() if "time" not in k and "second" not in k} == {
        k: v for k, v in expected.items() if "time" not in k and "second" not in k
    }
    found = collector.result()
    assert [list(ids) for ids in found.true.ids()] == [list(row) for row in rows["labels"]]
    hits = [set(a) == set(b) for a, b in zip(found.true.ids(), found.predicted.ids())]
    assert np.mean(hits) == pytest.approx(got["eval_exact_match"])


def test_no_document_makes_empty_results(taxonomy):
    empty = predictions.PredictionCollector(taxonomy, lambda: Decision("multi_path")).result()
    assert empty.predicted.ids() == []
    assert find_confusions(empty, taxonomy) == []
    assert cover(empty, taxonomy, np.zeros(0, dtype=bool)).shares == []

"""The ranking of given probabilities: figures of the specification, order, invariance, bounded memory, bad input."""

import numpy as np
import pytest

from hcal_hf import Annotations, Taxonomy, rank_missing, wrong_labels
from hcal_hf.audit import context as context_module
from hcal_hf.audit import ranking as module
from tests.builders import random_forest, random_multi_hot

TAXONOMY = Taxonomy.from_paths([["A", "a1"], ["A", "a2"], ["B", "b1"]])
NAMES = ["A", "B", "a1", "a2", "b1"]
P = np.array([[0.9, 0.6, 0.8, 0.7, 0.3], [0.2, 0.9, 0.1, 0.15, 0.55], [0.5, 0.4, 0.45, 0.05, 0.35]])
OLD = [["A", "a1"], ["B"], []]
NEW = [["A", "a1", "a2"], ["B", "b1"], ["A"]]


def as_nodes(rows):
    return [[NAMES.index(name) for name in row] for row in rows]


def ranked(probabilities=P, labels=OLD, **kwargs):
    options = {"label_frequency": 0.9, "top": None, **kwargs}
    return rank_missing(probabilities, as_nodes(labels), TAXONOMY, **options)


def random_case(seed=0, documents=60, num_labels=12):
    rng = np.random.default_rng(seed)
    taxonomy = random_forest(rng, num_labels)
    labels = random_multi_hot(rng, taxonomy, documents, single_path=False).numpy() > 0
    values = rng.random((documents, num_labels)) * 0.8 + 0.15 * labels
    for node in range(num_labels):
        for parent in taxonomy.parent_lists[node]:
            values[:, node] = np.minimum(values[:, node], values[:, parent])
    return taxonomy, values, [np.flatnonzero(row) for row in labels]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("mean", [0.7, 0.45, 0.15, 0.175, 0.55, 0.475, 0.275, 0.375]),
        ("sum", [0.7, 0.9, 0.3, 0.35, 0.55, 0.95, 0.55, 0.75]),
        ("min", [0.7, 0.3, 0.1, 0.15, 0.55, 0.45, 0.05, 0.35]),
        ("conditional", [0.777778, 0.3, 0.1, 0.15, 0.611111, 0.45, 0.05, 0.35]),
    ],
)
def test_scores_of_the_specification(score, expected):
    ranking = ranked(score=score)
    pairs = [(0, "a2"), (0, "b1"), (1, "a1"), (1, "a2"), (1, "b1"), (2, "a1"), (2, "a2"), (2, "b1")]
    found = {(d, NAMES[n]): s for d, n, s in zip(ranking.documents, ranking.nodes, ranking.scores)}
    assert found.keys() == set(pairs)
    np.testing.assert_allclose([found[pair] for pair in pairs], expected, atol=1e-6)


@pytest.mark.parametrize(("score", "cells", "hits"), [("mean", 4, 3), ("min", 4, 3), ("sum", 4, 1)])
def test_precision_of_the_release(score, cells, hits):
    """The missing nodes of the first three paths, cut at X = 4 (document, node) pairs, compared with the later labels."""
    ranking = ranked(score=score)
    taken = []
    for document, node in zip(ranking.documents[:3].tolist(), ranking.nodes[:3].tolist()):
        present = as_nodes(OLD)[document]
        taken += [(document, n) for n in TAXONOMY.complete([node]).tolist()[::-1] if n not in present]
    taken = list(dict.fromkeys(taken))[:cells]
    assert len(taken) == 4
    assert sum(node in as_nodes(NEW)[document] for document, node in taken) == hits


def test_flat_ranking_of_the_specification():
    ranking = ranked(score="probability", partial_paths=True, top=4)
    found = [(d, NAMES[n]) for d, n in zip(ranking.documents.tolist(), ranking.nodes.tolist())]
    assert found == [(0, "a2"), (0, "B"), (1, "b1"), (2, "A")]


def test_columns_and_sums_agree():
    ranking = ranked(score="conditional")
    missing = ranking.missing
    assert missing[0] == pytest.approx(0.1 / 0.9 * 0.7777778 / 0.2222222, rel=1e-5)
    assert ranking.probabilities[0] == 0.7
    for node in range(5):
        assert ranking.expected_missing[node] == pytest.approx(missing[ranking.nodes == node].sum())
    # Document 2 misses the best of a1 and a2, or b1.
    rows = {NAMES[n]: m for d, n, m in zip(ranking.documents, ranking.nodes, missing) if d == 2}
    assert ranking.document_missing[2] == pytest.approx(1 - (1 - max(rows["a1"], rows["a2"])) * (1 - rows["b1"]))


def test_complete_labels_have_no_suspicion():
    ranking = ranked(labels=[NAMES] * 3, partial_paths=True)
    assert len(ranking) == ranking.candidates == 0
    assert not ranking.document_missing.any()


@pytest.mark.parametrize("score", ["context", "conditional", "mean", "sum", "min", "probability"])
def test_the_score_rises_with_the_probability(score):
    taxonomy, values, labels = random_case()
    low = rank_missing(values, labels, taxonomy, score="conditional", label_frequency=0.9, top=None)
    document, node = next((d, n) for d, n in zip(low.documents, low.nodes) if not taxonomy.depths[n])
    scores = []
    for p in (0.1, 0.4, 0.7):
        changed = values.copy()
        changed[document, node] = p
        ranking = rank_missing(
            changed, labels, taxonomy, score=score, label_frequency=0.9, top=None, partial_paths=True
        )
        scores.append(ranking.scores[(ranking.documents == document) & (ranking.nodes == node)][0])
    assert scores == sorted(scores)
    assert scores[0] < scores[2]


@pytest.mark.parametrize("score", ["context", "conditional", "mean"])
def test_permuted_documents_and_labels_give_the_permuted_answer(score):
    taxonomy, values, labels = random_case(1)
    options = {"score": score, "partial_paths": True, "top": None}
    plain = rank_missing(values, labels, taxonomy, **options)
    order = np.random.default_rng(2).permutation(len(values))
    moved = rank_missing(values[order], [labels[i] for i in order], taxonomy, **options)
    one = {(d, n): s for d, n, s in zip(plain.documents, plain.nodes, plain.scores)}
    two = {(order[d], n): s for d, n, s in zip(moved.documents, moved.nodes, moved.scores)}
    assert one.keys() == two.keys()
    np.testing.assert_allclose([two[key] for key in one], list(one.values()), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moved.document_missing, plain.document_missing[order], rtol=1e-6)
    # Another order of the siblings.
    names = [taxonomy.labels[i] for i in np.random.default_rng(3).permutation(len(taxonomy))]
    edges = [(taxonomy.labels[p], taxonomy.labels[c]) for p, c in taxonomy.edges]
    roots = [name for name in names if not taxonomy.depths[taxonomy.label_index[name]]]
    other = Taxonomy.from_edges(edges[::-1], roots=roots)
    position = [taxonomy.label_index[label] for label in other.labels]
    back = {old: new for new, old in enumerate(position)}
    third = rank_missing(values[:, position], [[back[n] for n in row] for row in labels], other, **options)
    three = {(d, position[n]): s for d, n, s in zip(third.documents, third.nodes, third.scores)}
    np.testing.assert_allclose([three[key] for key in one], list(one.values()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("score", ["context", "conditional", "sum"])
def test_small_chunks_and_a_small_top_change_nothing(score, monkeypatch):
    taxonomy, values, labels = random_case(4, documents=80)
    values = np.round(values, 1)  # many ties
    plain = rank_missing(values, labels, taxonomy, score=score, top=None, label_frequency=0.8)
    monkeypatch.setattr(module, "PAIRS_PER_CHUNK", 40)
    monkeypatch.setattr(module._Top, "add", eager_add)
    parts = rank_missing(values, labels, taxonomy, score=score, top=17, label_frequency=0.8)
    for name in ("documents", "nodes", "scores", "missing"):
        np.testing.assert_allclose(getattr(parts, name), getattr(plain, name)[:17], rtol=1e-9)
    np.testing.assert_allclose(parts.expected_missing, plain.expected_missing)
    keys = list(zip(-plain.scores.astype(np.float32), plain.documents, plain.nodes))
    assert keys == sorted(keys)


def eager_add(self, keys, *columns, add=module._Top.add):
    """Sorts and cuts after each chunk."""
    add(self, keys, *columns)
    self._cut()


def test_the_context_learns_that_documents_without_labels_miss_one():
    """Each document has one label, and a tenth of them has lost it."""
    rng = np.random.default_rng(0)
    taxonomy = Taxonomy.from_paths([[f"label {i}"] for i in range(6)])
    true = rng.integers(6, size=2000)
    values = np.full((2000, 6), 0.06)
    values[np.arange(2000), true] = 0.6
    wrong = rng.random(2000) < 0.3  # the text suggests another label
    values[wrong, true[wrong]], values[wrong, (true[wrong] + 1) % 6] = 0.06, 0.6
    is_hidden = rng.random(2000) < 0.1
    labels = [[] if hidden else [label] for hidden, label in zip(is_hidden, true.tolist())]
    top = int(is_hidden.sum())
    found = {}
    for score in ("context", "conditional"):
        ranking = rank_missing(values, labels, taxonomy, score=score, top=top)
        found[score] = is_hidden[ranking.documents].mean()
    assert found["context"] == 1
    assert found["conditional"] < 0.5
    ranking = rank_missing(values, labels, taxonomy, label_frequency=0.9)
    assert ranking.expected_missing.sum() == pytest.approx(top, rel=0.15)
    assert ranking.document_missing[is_hidden].min() > ranking.document_missing[~is_hidden].max()


def test_few_annotations_give_the_conditional_probability(caplog):
    ranking = ranked(score="context")
    assert ranking.scores[0] == pytest.approx(0.777778, abs=1e-6)
    assert "Only 1 annotations can be hidden, and at least 50 are needed" in caplog.text  # B is no leaf


def test_the_order_by_missing_prefers_rarely_annotated_labels():
    taxonomy, values, labels = random_case(5, documents=200)
    ranking = rank_missing(values, labels, taxonomy, score="conditional", order="missing", top=None)
    assert (np.diff(ranking.missing) <= 1e-6).all()
    assert not (np.diff(ranking.scores) <= 0).all()


def test_samples_of_many_annotations_are_weighted(monkeypatch):
    taxonomy, values, labels = random_case(6, documents=400)
    plain = rank_missing(values, labels, taxonomy, top=None)
    monkeypatch.setattr(context_module, "MOST_ANNOTATIONS", 200)
    monkeypatch.setattr(context_module, "MOST_ABSENT_PAIRS", 2000)
    monkeypatch.setattr(context_module, "FEW_PAIRS", 500)
    monkeypatch.setattr(context_module, "PAIRS_PER_CHUNK", 100)
    sampled = rank_missing(values, labels, taxonomy, top=None)
    assert sampled.expected_missing.sum() == pytest.approx(plain.expected_missing.sum(), rel=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": P * 2}, "document 0 is 1.8, but it must lie between 0 and 1"),
        ({"probabilities": np.where(P == 0.05, np.nan, P)}, "node 3 for document 2 is nan"),
        (
            {"probabilities": P[:2]},
            r"labels of 3 documents and 5 nodes, but the probabilities have the shape \(2, 5\)",
        ),
        ({"labels": [[], [], []]}, "No document has a label"),
        ({"score": "best"}, "score must be one of context, conditional"),
        ({"order": "p"}, "order must be one of score, missing"),
        ({"label_mode": "paths"}, "label_mode must be"),
        ({"label_frequency": 0}, "label_frequency must be above 0"),
        ({"label_frequency": "median"}, "one of certain, mean"),
        ({"top": 0}, "top must be at least 1"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ranked(**change)


def test_labels_of_another_taxonomy_are_refused(taxonomy):
    with pytest.raises(ValueError, match="another taxonomy"):
        rank_missing(P, Annotations.from_rows(taxonomy, [[0]] * 3), TAXONOMY)


def test_wrong_labels_are_surprising_and_have_a_likelier_path():
    values = np.tile([0.7, 0.3, 0.2, 0.5, 0.3], (50, 1))
    labels = Annotations.from_rows(TAXONOMY, [[NAMES.index("a2")]] * 48 + [[NAMES.index("b1")], [NAMES.index("a1")]])
    found = wrong_labels(values, labels, quantile=0.9)
    assert found.documents.tolist() == [49, 48]
    assert [NAMES[n] for n in found.given] == ["a1", "b1"]
    assert [NAMES[n] for n in found.likelier] == ["a2", "a2"]
    np.testing.assert_allclose(found.surprise, -np.log([0.2, 0.3]))
    assert len(wrong_labels(values, labels, quantile=1.0)) == 0
    # With partial paths, the path of a document that ends at A has the rest of its probability.
    values[:, 3] = 0.1
    partial = Annotations.from_rows(TAXONOMY, [[NAMES.index("A")]] * 49 + [[NAMES.index("B")]])
    found = wrong_labels(values, partial, partial_paths=True, quantile=0.5)
    assert found.documents.tolist() == [49]
    np.testing.assert_allclose((found.given_probabilities, found.likelier_probabilities), [[0.0], [0.4]], atol=1e-12)


def test_wrong_labels_need_one_path_and_a_quantile():
    with pytest.raises(ValueError, match="document 1 has 2"):
        wrong_labels(P, Annotations.from_rows(TAXONOMY, [[2], [2, 4], [3]]))
    with pytest.raises(ValueError, match="quantile must lie between 0 and 1, got 2"):
        wrong_labels(P, Annotations.from_rows(TAXONOMY, [[2], [2], [3]]), quantile=2)

"""Hierarchical F1, constrained F1 and LCA-F1: the function and the `evaluate` module."""

import ast
import re
import socket
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import hcal_hf.metrics
from hcal_hf.metrics import classification_scores, hierarchical_scores
from hcal_hf.metrics.copy_label_sets import copied_text
from hcal_hf.metrics.hierarchical_f1 import scores as scores_module
from hcal_hf.metrics.hierarchical_f1.label_sets import Hierarchy, LabelSets, PackedSets
from hcal_hf.metrics.hierarchical_f1.scores import hierarchical_scores_from_edges
from tests.metrics.test_metrics import (
    FORMS,
    as_form,
    make_taxonomy,
    random_sets,
    random_taxonomy,
    ratio,
    slow_complete,
    slow_f1,
)

METRICS = Path(hcal_hf.metrics.__file__).parent


# Slow references, written from the definitions


def average(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def three_means(pattern, pairs):
    """Returns the mean precision, recall and F1 over (predicted, expected) pairs of sets."""
    pairs = list(pairs)
    return {
        pattern.format("precision"): average(ratio(len(z & y), len(z)) for z, y in pairs),
        pattern.format("recall"): average(ratio(len(z & y), len(y)) for z, y in pairs),
        pattern.format("f1"): average(slow_f1(z, y) for z, y in pairs),
    }


def slow_hierarchical_scores(predictions, references, taxonomy, lca):
    labels = range(taxonomy.num_labels)
    complete = [[slow_complete(s, taxonomy) for s in sets] for sets in (predictions, references)]
    pooled = [{(i, n) for i, s in enumerate(sets) for n in s} for sets in complete]
    scores = three_means("hierarchical_{}", [pooled])
    scores |= three_means("hierarchical_{}_documents", zip(*complete))

    right, predicted, expected = (dict.fromkeys(labels, 0) for _ in range(3))
    for z, y in zip(predictions, references):
        for n in labels:
            predicted[n] += n in z
            expected[n] += n in y
            right[n] += all(a in z and a in y for a in slow_complete({n}, taxonomy))
    f1 = {n: ratio(2 * right[n], predicted[n] + expected[n]) for n in labels}
    total_right, total_predicted, total_expected = (sum(counts.values()) for counts in (right, predicted, expected))
    scores |= {
        "c_micro_precision": ratio(total_right, total_predicted),
        "c_micro_recall": ratio(total_right, total_expected),
        "c_micro_f1": ratio(2 * total_right, total_predicted + total_expected),
        "c_macro_f1": average(f1[n] for n in labels if expected[n]),
        "c_macro_f1_all": average(f1.values()),
    }
    shares = []
    for z, y in zip(predictions, complete[1]):
        ends = [n for n in y if not any(n in taxonomy.parents[m] for m in y)]
        paths = [slow_complete({n}, taxonomy) for n in ends]
        broken = [any(n in z and not slow_complete({n}, taxonomy) <= set(z) for n in path) for path in paths]
        shares += [sum(broken) / len(broken)] if broken else []
    scores["inconsistent_paths"] = average(shares)
    if lca:
        scores |= three_means("lca_{}", [slow_lca_sets(z, y, taxonomy) for z, y in zip(predictions, references)])
    return scores


ROOT = -1


def way_up(node, taxonomy):
    """Returns the nodes from `node` up to the artificial root of a forest."""
    return (
        [node, *way_up(taxonomy.parents[node][0] if taxonomy.parents[node] else ROOT, taxonomy)]
        if node >= 0
        else [ROOT]
    )


def slow_lca_sets(predicted, expected, taxonomy):
    def most_specific(members):
        return {n for n in members if not any(n in way_up(m, taxonomy)[1:] for m in members)}

    def extended(members, others):
        nodes = set()
        for n in members:
            up = way_up(n, taxonomy)
            found = []
            for other in others:
                other_up = way_up(other, taxonomy)
                lca = next(a for a in up if a in other_up)
                found.append((up.index(lca) + other_up.index(lca), up.index(lca)))  # nearest, then deepest
            if found:
                nodes.update(up[: min(found)[1] + 1])
        return nodes

    z, y = most_specific(predicted), most_specific(expected)
    return extended(z, y), extended(y, z)


# Scores


def random_pair(rng, taxonomy, num_documents):
    references = random_sets(rng, taxonomy, num_documents)
    others = random_sets(rng, taxonomy, num_documents)
    return [z if rng.random() < 0.6 else y for z, y in zip(others, references)], references


@pytest.mark.parametrize("max_parents", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_scores_match_a_slow_reference(seed, max_parents):
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, int(rng.integers(1, 16)), max_parents)
    predictions, references = random_pair(rng, taxonomy, int(rng.integers(0, 150)))
    forest = all(len(above) < 2 for above in taxonomy.parents.values())
    expected = slow_hierarchical_scores(predictions, references, taxonomy, lca=forest)
    for first, second in zip(FORMS, FORMS[2:] + FORMS[:2]):
        given = as_form(predictions, taxonomy.num_labels, first), as_form(references, taxonomy.num_labels, second)
        scores = hierarchical_scores(*given, taxonomy)
        assert scores == pytest.approx(expected, abs=1e-12), (first, second)
        assert {type(value) for value in scores.values()} == {float}
    assert hierarchical_scores_from_edges(predictions, references, taxonomy.edges, taxonomy.num_labels) == scores


@pytest.mark.parametrize("max_parents", [1, 2])
def test_scores_of_few_labels_out_of_many_match_a_slow_reference(max_parents, monkeypatch):
    rng = np.random.default_rng(max_parents)
    taxonomy = random_taxonomy(rng, 2500, max_parents)
    predictions, references = random_pair(rng, taxonomy, 70)
    cells = PackedSets(Hierarchy(taxonomy.edges, 2500), *(LabelSets(s, 2500) for s in (predictions, references)))
    assert not cells.full
    expected = slow_hierarchical_scores(predictions, references, taxonomy, lca=max_parents == 1)
    for words_per_chunk in (2**20, 100):
        monkeypatch.setattr(scores_module, "WORDS_PER_CHUNK", words_per_chunk)
        for form in ("bool", "lists"):
            scores = hierarchical_scores(as_form(predictions, 2500, form), references, taxonomy)
            assert scores == pytest.approx(expected, abs=1e-12)


def test_large_sets_are_counted_per_document():
    # More than 255 labels per document, which a byte cannot count, in both memory layouts.
    taxonomy = make_taxonomy(700, [(0, n) for n in range(1, 650)])
    references = [set(range(size)) for size in (700, 255, 256, 257, 511, 1) * 12]
    predictions = [set(range(size)) for size in (600, 700, 10, 257, 300, 2) * 12]
    pairs = list(zip(predictions, references))
    expected = three_means("hierarchical_{}_documents", pairs)
    sparse = SimpleNamespace(edges=taxonomy.edges, num_labels=10**6, depths=np.pad(taxonomy.depths, (0, 10**6 - 700)))
    for given in (taxonomy, sparse):
        scores = hierarchical_scores(list(map(list, predictions)), list(map(list, references)), given, lca=False)
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_scores_of_a_small_example():
    taxonomy = make_taxonomy(7, [(0, 2), (0, 3), (2, 4), (2, 5), (1, 6)])
    predictions = [[0, 2, 4], [3], [1, 6], []]
    references = [[0, 2, 5], [0, 3], [1], []]
    assert hierarchical_scores(predictions, references, taxonomy) == pytest.approx(
        {
            "hierarchical_precision": 5 / 7,
            "hierarchical_recall": 5 / 6,
            "hierarchical_f1": 10 / 13,
            "hierarchical_precision_documents": (2 / 3 + 1 + 1 / 2 + 0) / 4,
            "hierarchical_recall_documents": (2 / 3 + 1 + 1 + 0) / 4,
            "hierarchical_f1_documents": (2 / 3 + 1 + 2 / 3 + 0) / 4,
            # Hits: 0 and 2 of the first document, and 1 of the third. 3 is predicted without its parent.
            "c_micro_precision": 3 / 6,
            "c_micro_recall": 3 / 6,
            "c_micro_f1": 1 / 2,
            "c_macro_f1": (2 / 3 + 1 + 1 + 0 + 0) / 5,  # labels 0, 1, 2, 3 and 5 occur in the references
            "c_macro_f1_all": (2 / 3 + 1 + 1) / 7,
            # The path of the second document is broken: 3 is predicted without 0. The last document has no path.
            "inconsistent_paths": 1 / 3,
            "lca_precision": (1 / 2 + 1 + 1 / 2 + 0) / 4,
            "lca_recall": (1 / 2 + 1 + 1 + 0) / 4,
            "lca_f1": (1 / 2 + 1 + 2 / 3 + 0) / 4,
        },
        abs=1e-12,
    )


def test_inconsistent_paths_are_the_inconsistency_path_score_of_hjcl():
    # A, B; a1 and a2 below A, b1 below B. The second prediction breaks the path to a1, and b1 is not predicted at all.
    taxonomy = make_taxonomy(5, [(0, 2), (0, 3), (1, 4)])
    predictions, references = [[0, 2, 4], [2, 1], [0, 1, 4]], [[0, 2], [0, 2, 1, 4], [1, 4]]
    assert hierarchical_scores(predictions, references, taxonomy)["inconsistent_paths"] == (0 + 1 / 2 + 0) / 3
    # A gap within a path breaks it, a path that is predicted to its middle is not broken.
    path = make_taxonomy(3, [(0, 1), (1, 2)])
    for predicted, share in (([0, 2], 1.0), ([0, 1], 0.0), ([1], 1.0), ([], 0.0)):
        assert hierarchical_scores([predicted], [[0, 1, 2]], path)["inconsistent_paths"] == share


# 0 -> {1, 2}, 1 -> {3, 4}, 3 -> {5, 6}; 7 -> 8
LCA_TREE = make_taxonomy(9, [(0, 1), (0, 2), (1, 3), (1, 4), (3, 5), (3, 6), (7, 8)])


@pytest.mark.parametrize(
    ("predicted", "expected", "precision", "recall"),
    [
        ([5], [6], 1 / 2, 1 / 2),  # {5, 3} and {6, 3}
        ([4], [6], 1 / 2, 1 / 3),  # {4, 1} and {6, 3, 1}
        ([2], [6], 1 / 2, 1 / 4),  # {2, 0} and {6, 3, 1, 0}
        ([8], [2], 1 / 3, 1 / 3),  # {8, 7, root} and {2, 0, root}
        ([0], [7], 1 / 2, 1 / 2),  # {0, root} and {7, root}
        ([3], [5], 1, 1 / 2),  # {3} and {5, 3}
        ([5], [5, 8], 1, 1 / 4),  # {5} and {5, 8, 7, root}
        ([5, 2], [6], 1 / 4, 1 / 2),  # {5, 3, 2, 0} and {6, 3}
        ([0, 1, 3, 5], [0, 1, 3, 6], 1 / 2, 1 / 2),  # listing the ancestors does not change the scores
        ([5], [4, 8, 3], 1 / 2, 1 / 6),  # {5, 3}, because 3 is nearest, and {4, 1, 8, 7, root, 3}
        # {5, 3, 1, 2, 0} and {4, 1}: 5 and 2 are equally near to 4, and 5 has the deeper common ancestor
        ([5, 2], [4], 1 / 5, 1 / 2),
        ([], [4], 0, 0),
        ([], [], 0, 0),
    ],
)
def test_lca_scores_of_small_examples(predicted, expected, precision, recall):
    scores = hierarchical_scores([predicted], [expected], LCA_TREE)
    assert (scores["lca_precision"], scores["lca_recall"]) == pytest.approx((precision, recall), abs=1e-12)
    exchanged = hierarchical_scores([expected], [predicted], LCA_TREE)
    assert (exchanged["lca_recall"], exchanged["lca_precision"]) == pytest.approx((precision, recall), abs=1e-12)


def test_lca_scores_are_the_same_with_an_explicit_root():
    rng = np.random.default_rng(0)
    taxonomy = random_taxonomy(rng, 12)
    rooted = make_taxonomy(13, [*taxonomy.edges.tolist(), *((12, n) for n in range(12) if not taxonomy.parents[n])])
    predictions, references = random_pair(rng, taxonomy, 100)
    scores, same = (hierarchical_scores(predictions, references, t) for t in (taxonomy, rooted))
    for name in ("lca_precision", "lca_recall", "lca_f1"):
        assert scores[name] == pytest.approx(same[name], abs=1e-12)
    assert 0.1 < scores["lca_f1"] < 0.9


def test_lca_scores_are_left_out_or_refused_on_a_dag():
    dag = make_taxonomy(3, [(0, 2), (1, 2)])
    with pytest.raises(ValueError, match="lca=True, but label 2 has 2 parents; allowed: a forest"):
        hierarchical_scores([[2]], [[2]], dag, lca=True)
    without = hierarchical_scores([[0, 2]], [[0, 1, 2]], dag)
    assert without == hierarchical_scores([[0, 2]], [[0, 1, 2]], dag, lca=False)
    assert not any(name.startswith("lca_") for name in without)
    assert without["c_micro_f1"] == 2 / 5  # 2 is predicted without one of its two parents
    forest = hierarchical_scores([[2]], [[2]], make_taxonomy(3, [(0, 2)]), lca=False)
    assert set(forest) == set(without)


def test_pooled_scores_equal_classification_scores():
    rng = np.random.default_rng(0)
    taxonomy = random_taxonomy(rng, 30, 2)
    predictions, references = random_pair(rng, taxonomy, 100)
    expected = classification_scores(predictions, references, taxonomy)
    scores = hierarchical_scores(predictions, references, taxonomy)
    for name in ("hierarchical_precision", "hierarchical_recall", "hierarchical_f1"):
        assert scores[name] == expected[name]
    # If the sets contain all ancestors, the constrained scores equal the flat scores.
    closed = [[slow_complete(s, taxonomy) for s in sets] for sets in (predictions, references)]
    expected, scores = classification_scores(*closed, taxonomy), hierarchical_scores(*closed, taxonomy)
    for name in ("micro_precision", "micro_recall", "micro_f1", "macro_f1", "macro_f1_all"):
        assert scores["c_" + name] == expected[name]


def test_empty_input_scores_zero():
    tree = make_taxonomy(3, [(0, 1), (0, 2)])
    for empty in ([], np.zeros((0, 3), dtype=bool), [[], [], []], np.zeros((70, 3), dtype=bool)):
        scores = hierarchical_scores(empty, empty, tree)
        assert len(scores) == 15
        assert set(scores.values()) == {0.0}
    assert set(hierarchical_scores([[]], [[0, 1]], tree).values()) == {0.0}
    assert set(hierarchical_scores([[], []], [[], []], make_taxonomy(0, [])).values()) == {0.0}
    scores = hierarchical_scores([[0]], [[0]], make_taxonomy(1, []))
    assert scores.pop("inconsistent_paths") == 0.0
    assert set(scores.values()) == {1.0}


def test_a_million_labels_need_little_memory():
    num_labels, num_documents = 1_000_000, 1000
    child = np.arange(10, num_labels)
    depths = np.zeros(num_labels, dtype=np.int64)
    for k, start in enumerate((10, 110, 1110, 11110, 111110), start=1):
        depths[start:] = k
    taxonomy = SimpleNamespace(edges=np.stack([child // 10 - 1, child], axis=1), depths=depths, num_labels=num_labels)

    def path(node):
        return [node, *path(node // 10 - 1)] if node >= 10 else [node]

    rng = np.random.default_rng(0)
    leaves, shifts = rng.integers(111110, num_labels, num_documents), rng.integers(0, 50, num_documents)
    pairs = [(path(z), path(y)) for z, y in zip(leaves.tolist(), np.minimum(leaves + shifts, num_labels - 1).tolist())]
    tracemalloc.start()
    scores = hierarchical_scores([z[:1] for z, _ in pairs], [y for _, y in pairs], taxonomy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6  # a bool matrix would take 1,000e6 bytes
    hits = [len({*z} & {*y}) for z, y in pairs]
    f1 = [ratio(2 * count, len(z) + len(y)) for count, (z, y) in zip(hits, pairs)]
    assert scores["hierarchical_f1_documents"] == pytest.approx(average(f1), abs=1e-12)
    # Both paths have 6 nodes. They meet in their LCA (or the root) and share no node below it.
    lca_f1 = [1 / (7 - count) for count in hits]
    assert scores["lca_f1"] == pytest.approx(average(lca_f1), abs=1e-12)
    assert scores["c_micro_recall"] == 0.0  # the predictions contain no ancestors


@pytest.mark.filterwarnings("ignore:F-score is ill-defined")
@pytest.mark.parametrize("how", ["micro", "macro"])
def test_hierarchical_scores_equal_hiclass_on_single_paths(how):
    metrics = pytest.importorskip("hiclass.metrics")
    rng = np.random.default_rng(0)
    taxonomy = random_taxonomy(rng, 30)
    predictions, references = (
        [slow_complete({node}, taxonomy) for node in rng.integers(0, 30, 200).tolist()] for _ in range(2)
    )
    predictions[::3] = references[::3]
    num_levels = int(taxonomy.depths.max()) + 1

    def table(sets):  # one column per level, "" after the end of a path
        rows = [sorted(s, key=lambda node: taxonomy.depths[node]) for s in sets]
        return np.array([[*map(str, row), *[""] * (num_levels - len(row))] for row in rows])

    scores = hierarchical_scores(
        [[max(s, key=lambda n: taxonomy.depths[n])] for s in predictions], references, taxonomy
    )
    for name in ("precision", "recall", "f1"):
        expected = getattr(metrics, name)(table(references), table(predictions), average=how)
        key = f"hierarchical_{name}" + ("_documents" if how == "macro" else "")
        assert scores[key] == pytest.approx(expected, abs=1e-12), name


# Errors


TREE = make_taxonomy(3, [(0, 1), (0, 2)])


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([[0], [1, 7]], r"predictions\[1\] holds node id 7; allowed: 0 to 2 \(num_labels=3\)"),
        ([[0], [1, 0.7]], r"predictions\[1\] is \[1, 0.7\]; allowed: .*node ids.*np.flatnonzero\(row >= 0.5\)"),
        (None, r"predictions is None; allowed: a sequence of integer node ids"),
        (np.full((2, 3), 0.5), r"predictions is an array of float64; .*predictions=probabilities >= 0.5"),
        (np.zeros((2, 4), dtype=bool), r"predictions has shape \(2, 4\); allowed: \[N, 3\]"),
    ],
)
def test_invalid_label_sets_are_refused(predictions, message):
    with pytest.raises(ValueError, match=message):
        hierarchical_scores(predictions, [[0], [1]], TREE)
    with pytest.raises(ValueError, match=message.replace("predictions", "references")):
        hierarchical_scores([[0], [1]], predictions, TREE)


def test_invalid_hierarchies_and_lengths_are_refused():
    with pytest.raises(ValueError, match="predictions holds 2 documents and references 3"):
        hierarchical_scores([[0], [1]], [[0], [1], [2]], TREE)
    with pytest.raises(ValueError, match="edges holds a cycle: "):
        hierarchical_scores_from_edges([], [], [[0, 1], [1, 0]], 2)
    with pytest.raises(ValueError, match=r"depths\[1\] is 0, not larger than depths\[0\] = 0"):
        hierarchical_scores_from_edges([], [], [[0, 1]], 2, depths=[0, 0])


# The evaluate module


ARGS = {"edges": [[0, 1], [0, 2], [1, 3]], "num_labels": 4}


@pytest.fixture
def offline(monkeypatch):
    evaluate = pytest.importorskip("evaluate")

    def refuse(*args, **kwargs):
        raise AssertionError("network access")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return evaluate


@pytest.fixture(params=["class", "path"])
def load(request, offline, tmp_path):
    def load():
        if request.param == "path":
            return offline.load(str(METRICS / "hierarchical_f1"), cache_dir=str(tmp_path))
        from hcal_hf.metrics.hierarchical_f1.hierarchical_f1 import HierarchicalF1

        return HierarchicalF1(cache_dir=str(tmp_path))

    return load


def test_evaluate_module_gives_the_scores_of_the_function(load):
    metric = load()
    assert set(metric.features) == {"predictions", "references"}
    rng = np.random.default_rng(0)
    for max_parents in (1, 2):
        taxonomy = random_taxonomy(rng, 10, max_parents)
        predictions, references = random_pair(rng, taxonomy, 100)
        args = {"edges": taxonomy.edges.tolist(), "num_labels": 10}
        expected = slow_hierarchical_scores(predictions, references, taxonomy, lca=max_parents == 1)
        for form in ("lists", "arrays"):
            scores = metric.compute(predictions=as_form(predictions, 10, form), references=references, **args)
            assert scores == pytest.approx(expected, abs=1e-12)
            assert scores == hierarchical_scores(predictions, references, taxonomy)
        assert "lca_f1" not in metric.compute(predictions=predictions, references=references, lca=False, **args)
    assert set(metric.compute(predictions=[], references=[], **ARGS).values()) == {0.0}
    with pytest.raises(ValueError, match=r"depths\[3\] is 1, not larger"):
        metric.compute(predictions=[[0]], references=[[0]], depths=[0, 1, 1, 1], **ARGS)


def test_two_instances_of_the_evaluate_module_can_be_used_at_the_same_time(load, tmp_path):
    first, second = load(), load()
    first.add_batch(predictions=[[0, 1], [0]], references=[[0, 1], [0, 2]])
    second.add_batch(predictions=[[0]], references=[[2]])
    first.add(prediction=[3], reference=[3])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # no lock file
    assert second.compute(**ARGS)["hierarchical_recall"] == 1 / 2
    assert first.compute(**ARGS)["c_micro_precision"] == 3 / 4


def test_evaluate_module_refuses_floats_and_bools_that_would_be_truncated(load):
    metric = load()
    good = [[0]]
    for bad in ([[0.7, 1]], [[True, False]], [np.array([0.2, 0.9])]):
        for name, given in (("predictions", (bad, good)), ("references", (good, bad))):
            message = rf"{name}\[0\] is .*integer node ids"
            with pytest.raises(ValueError, match=message):
                metric.compute(predictions=given[0], references=given[1], **ARGS)
            with pytest.raises(ValueError, match=message):
                metric.add_batch(predictions=given[0], references=given[1])
            with pytest.raises(ValueError, match=message):
                metric.add(prediction=given[0][0], reference=given[1][0])
    with pytest.raises(ValueError, match=r"references is an array of shape \(4, 4\); allowed: one list of node ids"):
        metric.compute(predictions=good * 4, references=np.eye(4, dtype=int), **ARGS)
    with pytest.raises(ValueError, match="predictions holds 2 documents and references 1;"):
        metric.compute(predictions=[[0], [1]], references=good, **ARGS)
    # The refused calls added nothing.
    assert metric.compute(predictions=good, references=good, **ARGS)["lca_f1"] == 1.0


def test_evaluate_module_reports_missing_arguments(load):
    metric = load()
    with pytest.raises(ValueError, match="no documents"):
        metric.compute(**ARGS)
    metric.add_batch(predictions=[[1]], references=[[1]])
    with pytest.raises(ValueError, match="HierarchicalF1 needs edges and num_labels: compute"):
        metric.compute()
    with pytest.raises(ValueError, match="HierarchicalF1 needs num_labels: compute"):
        metric.compute(edges=[])
    with pytest.raises(ValueError, match="references is None; allowed: a sequence"):
        metric.add_batch(predictions=[[1]])
    assert metric.compute(**ARGS)["hierarchical_f1"] == 1.0  # the batch was kept


def test_the_examples_of_the_documentation_are_correct(offline, tmp_path):
    metric = offline.load(str(METRICS / "hierarchical_f1"), cache_dir=str(tmp_path))
    card = (METRICS / "hierarchical_f1" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    edges = ast.literal_eval(re.search(r"edges = (.*)", code)[1])
    call = ast.parse(code[code.index("metric.compute(") :].split("\n# {")[0], mode="eval").body
    given = {k.arg: edges if k.arg == "edges" else ast.literal_eval(k.value) for k in call.keywords}
    printed = ast.literal_eval(" ".join(line.lstrip("# ") for line in code[code.index("# {") :].splitlines()))
    assert metric.compute(**given) == pytest.approx(printed, abs=1e-12)
    for name in printed:
        assert f"`{name}`" in card.split("### Output values")[1]
    scores = metric.compute(predictions=[[0, 1]], references=[[0, 2]], edges=[[0, 1], [0, 2]], num_labels=3)
    assert (scores["hierarchical_f1"], scores["c_micro_f1"], scores["lca_f1"]) == (0.5, 0.5, 0.5)
    assert "(0.5, 0.5, 0.5)" in metric.inputs_description


# Imports


def test_the_folder_imports_only_itself_and_allowed_packages():
    allowed = {*sys.stdlib_module_names, "numpy", "datasets", "evaluate"}
    siblings = {"hierarchical_f1.py": {"label_sets", "scores"}, "scores.py": {"label_sets"}}
    files = sorted((METRICS / "hierarchical_f1").rglob("*.py"))
    assert [file.name for file in files] == ["__init__.py", "hierarchical_f1.py", "label_sets.py", "scores.py"]
    for file in files:
        found = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                found.add(node.module)
                if file.name == "hierarchical_f1.py":
                    assert node.lineno == node.end_lineno  # evaluate parses imports line by line
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed, file
        # evaluate copies only the files that the module imports directly.
        assert found == siblings.get(file.name, set())


def test_the_copy_of_label_sets_is_up_to_date():
    copy = (METRICS / "hvr" / "label_sets.py").read_text(encoding="utf-8")
    header, original = copy.split("\n", 1)
    assert header == "# Copied from hierarchical_f1/label_sets.py by copy_label_sets.py. Edit the original."
    expected = (METRICS / "hierarchical_f1" / "label_sets.py").read_text(encoding="utf-8")
    assert original == expected, "run python hcal_hf/metrics/copy_label_sets.py"
    assert copy == copied_text()

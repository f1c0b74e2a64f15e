import re
import tracemalloc
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import hcal_hf.metrics
from hcal_hf.metrics import classification_scores, violation_rates
from hcal_hf.metrics.hvr.label_sets import Hierarchy, LabelSets, PackedSets
from hcal_hf.metrics.hvr.violations import violation_rates_from_edges

METRICS = Path(hcal_hf.metrics.__file__).parent


# Hierarchies and label sets


def make_taxonomy(num_labels, edges):
    edges = np.array(edges, dtype=np.int64).reshape(-1, 2)
    parents = {node: [] for node in range(num_labels)}
    for parent, child in edges.tolist():
        parents[child].append(parent)
    depths = dict.fromkeys(parents, -1)
    while -1 in depths.values():
        for node, above in parents.items():
            if all(depths[parent] >= 0 for parent in above):
                depths[node] = max((depths[parent] + 1 for parent in above), default=0)
    array = np.array([*depths.values()], dtype=np.int64)
    return SimpleNamespace(edges=edges, depths=array, num_labels=num_labels, parents=parents)


def random_taxonomy(rng, num_labels, max_parents=1):
    """Returns a random forest (max_parents=1) or DAG with shuffled node ids."""
    name = rng.permutation(num_labels)
    edges = []
    for node in range(1, num_labels):
        count = min(node, rng.integers(0, max_parents + 1)) if node > 2 else 0
        edges += [(name[p], name[node]) for p in rng.choice(node, size=count, replace=False)]
    rng.shuffle(edges)
    return make_taxonomy(num_labels, edges)


def random_sets(rng, taxonomy, num_documents):
    """Returns a mix of empty sets, random sets, sets with all ancestors and single nodes."""
    sets = []
    for _ in range(num_documents):
        size = int(rng.integers(0, min(4, taxonomy.num_labels) + 1))
        members = set(rng.choice(taxonomy.num_labels, size=size, replace=False).tolist())
        sets.append(slow_complete(members, taxonomy) if rng.random() < 0.5 else members)
    return sets


def as_form(sets, num_labels, form):
    matrix = np.zeros((len(sets), num_labels), dtype=bool)
    for row, members in enumerate(sets):
        matrix[row, list(members)] = True
    return {
        "bool": lambda: matrix,
        "fortran": lambda: np.asfortranarray(matrix),
        "int": lambda: matrix.astype(np.int64),
        "lists": lambda: [sorted(members) + sorted(members)[:2] for members in sets],  # with duplicates
        "arrays": lambda: [np.array(sorted(members)[::-1], dtype=np.int32) for members in sets],
        "objects": lambda: np.array([*map(tuple, sets), None], dtype=object)[:-1],
    }[form]()


FORMS = ["bool", "fortran", "int", "lists", "arrays", "objects"]


# Slow references, written from the definitions


def slow_complete(members, taxonomy):
    complete, todo = set(), list(members)
    while todo:
        node = todo.pop()
        complete.add(node)
        todo += taxonomy.parents[node]
    return complete


def ratio(count, total):
    return float(Fraction(int(count), int(total))) if total else 0.0


def slow_violation_rates(sets, taxonomy, scores=None):
    levels = range(max(taxonomy.depths.tolist(), default=-1) + 1)
    lacking = [{n for n in s if any(p not in s for p in taxonomy.parents[n])} for s in sets]
    non_root = sum(1 for s in sets for n in s if taxonomy.parents[n])
    rates = {
        "hvr": ratio(sum(1 for bad in lacking if bad), len(sets)),
        "hvr_node": ratio(sum(map(len, lacking)), non_root),
        "hvr_level": [
            ratio(sum(1 for bad in lacking if any(taxonomy.depths[n] == k for n in bad)), len(sets)) for k in levels
        ],
        "inconsistent_labels": ratio(
            sum(1 for s in sets for n in s if not slow_complete({n}, taxonomy) <= set(s)),
            sum(map(len, map(set, sets))),
        ),
    }
    if scores is not None:
        edges = taxonomy.edges.tolist()
        found = sum(1 for row in scores for p, c in edges if row[c] > row[p] + 1e-6)
        rates["hvr_score"] = ratio(found, len(scores) * len(edges))
    return rates


def slow_f1(predicted, expected):
    """Computes F1 of two sets of (document, label) pairs."""
    return ratio(2 * len(predicted & expected), len(predicted) + len(expected))


def slow_classification_scores(predictions, references, taxonomy):
    def decisions(sets, labels):
        return {(i, n) for i, s in enumerate(sets) for n in s if n in labels}

    def micro_f1(labels):
        return slow_f1(decisions(predictions, labels), decisions(references, labels))

    def macro_f1(labels):
        values = [micro_f1({n}) for n in labels]
        return sum(values) / len(values) if values else 0.0

    def end_nodes(members):
        return {n for n in members if not any(n in taxonomy.parents[m] for m in members)}

    labels = set(range(taxonomy.num_labels))
    occurring = set().union(*references)
    p, r = decisions(predictions, labels), decisions(references, labels)
    complete_p = decisions([slow_complete(s, taxonomy) for s in predictions], labels)
    complete_r = decisions([slow_complete(s, taxonomy) for s in references], labels)
    pairs = list(zip(predictions, references))
    scores = {
        "micro_precision": ratio(len(p & r), len(p)),
        "micro_recall": ratio(len(p & r), len(r)),
        "micro_f1": slow_f1(p, r),
        "macro_f1": macro_f1(occurring),
        "macro_f1_all": macro_f1(labels),
        "hierarchical_precision": ratio(len(complete_p & complete_r), len(complete_p)),
        "hierarchical_recall": ratio(len(complete_p & complete_r), len(complete_r)),
        "hierarchical_f1": slow_f1(complete_p, complete_r),
        "exact_match": ratio(sum(1 for a, b in pairs if a == b), len(pairs)),
        "leaf_accuracy": ratio(sum(1 for a, b in pairs if end_nodes(a) == end_nodes(b)), len(pairs)),
    }
    for k in range(max(taxonomy.depths.tolist(), default=-1) + 1):
        level = {n for n in labels if taxonomy.depths[n] == k}
        labelled = [(a & level, b & level) for a, b in pairs if b & level]
        scores[f"accuracy_level_{k}"] = ratio(sum(1 for a, b in labelled if a == b), len(labelled))
        scores[f"micro_f1_level_{k}"] = micro_f1(level)
        scores[f"macro_f1_level_{k}"] = macro_f1(level & occurring)
    return scores


# Violation rates


@pytest.mark.parametrize("max_parents", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_violation_rates_match_a_slow_reference(seed, max_parents):
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, int(rng.integers(1, 12)), max_parents)
    sets = random_sets(rng, taxonomy, int(rng.integers(0, 150)))
    scores = rng.integers(0, 4, size=(len(sets), taxonomy.num_labels)) / 4
    expected = slow_violation_rates(sets, taxonomy, scores)
    for form in FORMS:
        assert violation_rates(as_form(sets, taxonomy.num_labels, form), taxonomy, scores) == expected, form
    lists = as_form(sets, taxonomy.num_labels, "lists")
    if sum(map(len, lists)) > 100:  # few labels, for which a dense layout without sorting is used
        assert PackedSets(Hierarchy(taxonomy.edges, taxonomy.num_labels), LabelSets(lists, taxonomy.num_labels)).full
    del expected["hvr_score"]
    assert violation_rates(lists, taxonomy) == expected


@pytest.mark.parametrize("max_parents", [1, 2])
def test_metrics_of_few_labels_out_of_many_match_a_slow_reference(max_parents):
    rng = np.random.default_rng(max_parents)
    taxonomy = random_taxonomy(rng, 2500, max_parents)
    sets = random_sets(rng, taxonomy, 70)
    references = random_sets(rng, taxonomy, 35) + sets[35:]
    lists = as_form(sets, 2500, "lists")
    cells = PackedSets(Hierarchy(taxonomy.edges, 2500), LabelSets(lists, 2500), LabelSets(references, 2500))
    assert not cells.full
    assert (np.diff(cells.keys) > 0).all()
    expected = slow_classification_scores(sets, references, taxonomy)
    for form in ("bool", "lists"):
        assert violation_rates(as_form(sets, 2500, form), taxonomy) == slow_violation_rates(sets, taxonomy)
        scores = classification_scores(as_form(sets, 2500, form), as_form(references, 2500, "lists"), taxonomy)
        assert scores == pytest.approx(expected, abs=1e-12)


def test_violation_rates_of_a_small_example():
    # 0 -> {2, 3}, 1 -> 3 (3 has two parents), 3 -> 4
    taxonomy = make_taxonomy(5, [(0, 2), (0, 3), (1, 3), (3, 4)])
    assert taxonomy.depths.tolist() == [0, 0, 1, 1, 2]
    # Consistent; 1 is missing; consistent; empty; 0 and 3 are missing.
    predictions = [[0, 2], [0, 3], [0, 1, 3, 4], [], [2, 4]]
    assert violation_rates(predictions, taxonomy) == {
        "hvr": 2 / 5,
        "hvr_node": 3 / 6,
        "hvr_level": [0.0, 2 / 5, 1 / 5],
        # 3 lacks 1; 2 lacks 0; 4 lacks 0, 1 and 3.
        "inconsistent_labels": 3 / 10,
    }


def test_inconsistent_labels_count_labels_whose_parent_is_inconsistent():
    # Label 2 has its parent 1, which lacks its parent 0. The rates of parents count 1 only.
    rates = violation_rates([[1, 2]], make_taxonomy(3, [(0, 1), (1, 2)]))
    assert (rates["hvr_node"], rates["inconsistent_labels"]) == (1 / 2, 1.0)


def test_inconsistent_labels_are_the_inconsistency_score_of_hjcl():
    # A, B; a1 and a2 below A, b1 below B
    rates = violation_rates([[0, 2, 4], [2, 1], [0, 1, 4]], make_taxonomy(5, [(0, 2), (0, 3), (1, 4)]))
    assert (rates["inconsistent_labels"], rates["hvr"], rates["hvr_node"]) == (2 / 8, 2 / 3, 2 / 4)


def test_levels_follow_the_depths_of_the_taxonomy():
    taxonomy = SimpleNamespace(edges=np.array([[0, 1]]), depths=np.array([0, 2]), num_labels=2)
    assert violation_rates([[1]], taxonomy)["hvr_level"] == [0.0, 0.0, 1.0]


def test_hvr_equals_the_definition_of_hcal_on_full_single_paths():
    rng = np.random.default_rng(0)
    sizes = (3, 6, 12)  # node j // 2 of the level above is the parent of node j
    first = np.cumsum((0, *sizes))
    edges = [(first[k] + j // 2, first[k + 1] + j) for k in (0, 1) for j in range(sizes[k + 1])]
    taxonomy = make_taxonomy(sum(sizes), edges)
    argmax = np.stack([rng.integers(0, size, 500) for size in sizes], axis=1)
    argmax[::2, 1:] = np.stack([argmax[::2, 0] * 2, argmax[::2, 0] * 4 + 1], axis=1)
    agrees = (argmax[:, 1] // 2 == argmax[:, 0]) & (argmax[:, 2] // 2 == argmax[:, 1])
    ids = (argmax + first[:-1]).tolist()
    assert violation_rates(ids, taxonomy)["hvr"] == pytest.approx(1 - agrees.mean(), abs=1e-12)
    assert 0.1 < agrees.mean() < 0.9


def test_score_violations_match_numpy_for_all_float_types():
    rng = np.random.default_rng(0)
    taxonomy = random_taxonomy(rng, 300, 2)
    parent, child = taxonomy.edges.T
    empty = [[] for _ in range(5000)]
    scores = rng.random((5000, 300))
    for dtype, exact in ((np.float64, np.float64), (np.float32, np.float32), (np.float16, np.float32)):
        given = scores.astype(dtype)
        widened = given.astype(exact)
        expected = (widened[:, child] > widened[:, parent] + exact(1e-6)).mean()
        assert violation_rates(empty, taxonomy, given)["hvr_score"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("excess", "expected"), [(0.0, 0.0), (5e-7, 0.0), (2e-6, 1.0)])
def test_scores_within_the_tolerance_are_not_violations(excess, expected):
    taxonomy = make_taxonomy(2, [(0, 1)])
    assert violation_rates([[]], taxonomy, [[0.5, 0.5 + excess]])["hvr_score"] == expected
    # In half precision, the tolerance would round up to this score.
    assert violation_rates([[]], taxonomy, np.array([[0, 1.01e-6]], dtype=np.float16))["hvr_score"] == 1.0


def test_empty_input_gives_zero_rates():
    tree = make_taxonomy(3, [(0, 1), (0, 2)])
    zero = {"hvr": 0.0, "hvr_node": 0.0, "hvr_level": [0.0, 0.0], "inconsistent_labels": 0.0, "hvr_score": 0.0}
    for predictions in ([], np.zeros((0, 3), dtype=bool), np.zeros((0, 3), dtype=int)):
        assert violation_rates(predictions, tree, np.zeros((0, 3))) == zero
        assert set(classification_scores(predictions, predictions, tree).values()) == {0.0}
    for predictions in ([[], [], []], np.zeros((3, 3), dtype=bool), [np.array([])] * 3):
        assert violation_rates(predictions, tree, np.zeros((3, 3))) == zero
        scores = classification_scores(predictions, predictions, tree)
        assert {name for name, value in scores.items() if value} == {"exact_match", "leaf_accuracy"}
        assert scores["exact_match"] == scores["leaf_accuracy"] == 1.0
    one = make_taxonomy(1, [])
    assert violation_rates([[0], []], one, [[0.5], [0.5]]) == {
        "hvr": 0.0,
        "hvr_node": 0.0,
        "hvr_level": [0.0],
        "inconsistent_labels": 0.0,
        "hvr_score": 0.0,
    }
    nothing = {"hvr": 0.0, "hvr_node": 0.0, "hvr_level": [], "inconsistent_labels": 0.0}
    assert violation_rates([[], []], make_taxonomy(0, [])) == nothing


def test_results_are_python_floats():
    tree = make_taxonomy(3, [(0, 1), (0, 2)])
    rates = violation_rates([[1], [0]], tree, np.full((2, 3), 0.5, dtype=np.float32))
    level = rates.pop("hvr_level")
    assert type(level) is list
    values = [*level, *rates.values(), *classification_scores([[1]], [[0]], tree).values()]
    assert {type(value) for value in values} == {float}


@pytest.mark.parametrize("seed", range(10))
def test_depths_are_longest_paths(seed):
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, 15, 3)
    assert Hierarchy(taxonomy.edges, 15).depths.tolist() == taxonomy.depths.tolist()


def test_a_million_labels_need_little_memory():
    num_labels, num_documents = 1_000_000, 2000
    child = np.arange(10, num_labels)
    depths = np.zeros(num_labels, dtype=np.int64)
    for k, start in enumerate((10, 110, 1110, 11110, 111110), start=1):
        depths[start:] = k
    taxonomy = SimpleNamespace(edges=np.stack([child // 10 - 1, child], axis=1), depths=depths, num_labels=num_labels)

    def path(node):
        return {node} | (path(node // 10 - 1) if node >= 10 else set())

    rng = np.random.default_rng(0)
    references = [path(node) for node in rng.integers(0, num_labels, num_documents).tolist()]
    predictions = [
        path(node) if i % 2 else {node} for i, node in enumerate(rng.integers(0, num_labels, num_documents).tolist())
    ]
    predictions[::5] = references[::5]
    tracemalloc.start()
    rates = violation_rates(list(map(list, predictions)), taxonomy)
    scores = classification_scores(list(map(list, predictions)), list(map(list, references)), taxonomy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6  # a bool matrix would take 2,000e6 bytes

    violating = [any(n >= 10 and n // 10 - 1 not in s for n in s) for s in predictions]
    assert rates["hvr"] == ratio(sum(violating), num_documents)
    complete = [set().union(*map(path, s)) for s in predictions]
    hits = sum(len(a & b) for a, b in zip(complete, references))
    total = sum(map(len, complete)) + sum(map(len, references))
    assert scores["hierarchical_f1"] == ratio(2 * hits, total)
    hits = sum(len(a & b) for a, b in zip(predictions, references))
    assert scores["micro_precision"] == ratio(hits, sum(map(len, predictions)))
    assert scores["exact_match"] == ratio(sum(a == b for a, b in zip(predictions, references)), num_documents)
    ends = sum(max(a) == max(b) for a, b in zip(predictions, references))
    assert scores["leaf_accuracy"] == ratio(ends, num_documents)


# Classification scores


@pytest.mark.parametrize("max_parents", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_classification_scores_match_a_slow_reference(seed, max_parents):
    rng = np.random.default_rng(100 + seed)
    taxonomy = random_taxonomy(rng, int(rng.integers(1, 12)), max_parents)
    references = random_sets(rng, taxonomy, int(rng.integers(1, 150)))
    predictions = [
        other if rng.random() < 0.5 else same
        for other, same in zip(random_sets(rng, taxonomy, len(references)), references)
    ]
    expected = slow_classification_scores(predictions, references, taxonomy)
    for first, second in zip(FORMS, FORMS[2:] + FORMS[:2]):
        given = as_form(predictions, taxonomy.num_labels, first), as_form(references, taxonomy.num_labels, second)
        assert classification_scores(*given, taxonomy) == pytest.approx(expected, abs=1e-12), (first, second)


def test_classification_scores_of_a_small_example():
    taxonomy = make_taxonomy(4, [(0, 2), (0, 3)])  # 0 -> {2, 3}, 1 alone
    predictions = [[0, 2], [2], [0, 3], []]
    references = [[0, 2], [0, 2], [1], []]
    assert classification_scores(predictions, references, taxonomy) == pytest.approx(
        {
            "micro_precision": 3 / 5,
            "micro_recall": 3 / 5,
            "micro_f1": 3 / 5,
            "macro_f1": (1 / 2 + 0 + 1) / 3,  # labels 0, 1, 2 occur in the references, 3 does not
            "macro_f1_all": (1 / 2 + 0 + 1 + 0) / 4,
            "hierarchical_precision": 4 / 6,
            "hierarchical_recall": 4 / 5,
            "hierarchical_f1": 8 / 11,
            "exact_match": 2 / 4,
            "leaf_accuracy": 3 / 4,
            "accuracy_level_0": 1 / 3,
            "micro_f1_level_0": 2 / 5,
            "macro_f1_level_0": 1 / 4,
            "accuracy_level_1": 2 / 2,
            "micro_f1_level_1": 4 / 5,
            "macro_f1_level_1": 1.0,
        },
        abs=1e-12,
    )


def test_level_without_reference_labels_scores_zero():
    taxonomy = make_taxonomy(2, [(0, 1)])
    scores = classification_scores([[0], [0, 1]], [[0], [0]], taxonomy)
    assert scores["accuracy_level_1"] == scores["micro_f1_level_1"] == scores["macro_f1_level_1"] == 0.0
    assert scores["accuracy_level_0"] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_f1_equals_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    taxonomy = random_taxonomy(rng, 20, 2)
    predictions, references = rng.random((2, 200, 20)) < 0.1
    predictions[:, :2] = references[:, 1:3] = False
    scores = classification_scores(predictions, references, taxonomy)
    occurring = references.any(axis=0).nonzero()[0]
    assert len(occurring) == 18
    for name, kwargs in {
        "micro_f1": {"average": "micro"},
        "macro_f1_all": {"average": "macro"},
        "macro_f1": {"average": "macro", "labels": occurring},
        "micro_f1_level_1": {"average": "micro", "labels": (taxonomy.depths == 1).nonzero()[0]},
    }.items():
        expected = metrics.f1_score(references, predictions, zero_division=0, **kwargs)
        assert scores[name] == pytest.approx(expected, abs=1e-12), name
    for name, function, kwargs in (
        ("micro_precision", metrics.precision_score, {"average": "micro"}),
        ("micro_recall", metrics.recall_score, {"average": "micro"}),
        ("exact_match", metrics.accuracy_score, {}),
    ):
        assert scores[name] == pytest.approx(function(references, predictions, **kwargs), abs=1e-12), name


def test_hierarchical_scores_equal_hiclass_on_single_paths():
    metrics = pytest.importorskip("hiclass.metrics")
    rng = np.random.default_rng(0)
    taxonomy = random_taxonomy(rng, 30)
    predictions, references = (
        [slow_complete({node}, taxonomy) for node in rng.integers(0, 30, 300).tolist()] for _ in range(2)
    )
    predictions[::3] = references[::3]
    num_levels = int(taxonomy.depths.max()) + 1

    def table(sets):  # one column per level, "" after the end of a path
        rows = [sorted(s, key=lambda node: taxonomy.depths[node]) for s in sets]
        return np.array([[*map(str, row), *[""] * (num_levels - len(row))] for row in rows])

    scores = classification_scores(
        [[max(s, key=lambda n: taxonomy.depths[n])] for s in predictions], references, taxonomy
    )
    for name in ("precision", "recall", "f1"):
        expected = getattr(metrics, name)(table(references), table(predictions))
        assert scores[f"hierarchical_{name}"] == pytest.approx(expected, abs=1e-12)


# Errors


TREE = make_taxonomy(3, [(0, 1), (0, 2)])


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([[0], [1, 7]], r"predictions\[1\] holds node id 7; allowed: 0 to 2 \(num_labels=3\)"),
        ([[], [], [-1]], r"predictions\[2\] holds node id -1; allowed: 0 to 2"),
        ([[0], [1, 0.7]], r"predictions\[1\] is \[1, 0.7\]; allowed: .*node ids.*np.flatnonzero\(row >= 0.5\)"),
        ([[0], [0, True]], r"predictions\[1\] is \[0, True\]; .*np.flatnonzero\(row >= 0.5\)"),
        ([[0], np.array([True, False, True])], r"predictions\[1\] is .*np.flatnonzero\(row >= 0.5\)"),
        ([[0], 1], r"predictions\[1\] is 1; allowed: a sequence"),
        ([[0], "12"], r"predictions\[1\] is '12'; allowed: a sequence"),
        ([[0], [[1], [2, 0]]], r"predictions\[1\] is \[\[1\], \[2, 0\]\]; allowed"),
        ([[0], np.array(1)], r"predictions\[1\] is array\(1\); allowed"),
        ([[2**70]], r"predictions holds a node id outside the 64-bit integers"),
        ("012", r"predictions is '012'; allowed: a sequence of integer node ids"),
        (None, r"predictions is None; allowed: a sequence of integer node ids"),
        (np.full((2, 3), 0.5), r"predictions is an array of float64; .*predictions=probabilities >= 0.5"),
        (np.zeros((2, 4), dtype=bool), r"predictions has shape \(2, 4\); allowed: \[N, 3\]"),
        (np.array([0, 1, 2]), r"predictions has shape \(3,\); allowed: \[N, 3\].*predictions=array.tolist\(\)"),
        (
            np.array([[0, 1, 2]]),
            r"predictions is an integer matrix with values 0 to 2; .*predictions=array.tolist\(\)",
        ),
        (np.array([[0, -1, 1]]), r"predictions is an integer matrix with values -1 to 1; allowed: 0 and 1"),
    ],
)
def test_invalid_label_sets_are_refused(predictions, message):
    with pytest.raises(ValueError, match=message):
        violation_rates(predictions, TREE)
    with pytest.raises(ValueError, match=message.replace("predictions", "references")):
        classification_scores([[0], [1]], predictions, TREE)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((2, 2)), r"scores has shape \(2, 2\) and type float64; allowed: .*\[2, 3\]"),
        ([["a", "b", "c"]] * 2, r"scores has shape \(2, 3\) and type <U1; allowed: probabilities"),
        (np.array([[0, 0, 0], [0, np.nan, 0]]), r"scores\[1, 1\] is nan; allowed: probabilities in \[0, 1\]"),
        (np.array([[0, 0, -2.5], [0, 0, 0]]), r"scores\[0, 2\] is -2.5; allowed: probabilities in \[0, 1\]"),
        (np.array([[0, 0, 0], [np.inf, 0, 0]]), r"scores\[1, 0\] is inf; allowed: probabilities in \[0, 1\]"),
    ],
)
def test_invalid_scores_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        violation_rates([[0], [1]], TREE, scores)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"edges": [[0, 1, 2]]}, r"edges has shape \(1, 3\) and type int64; allowed: integers of shape \[E, 2\]"),
        ({"edges": [[0.0, 1.0]]}, r"edges has shape \(1, 2\) and type float64"),
        ({"edges": [[0, 1], [0, 3]]}, r"edges\[1\] is \[0, 3\]; allowed node ids: 0 to 2 \(num_labels=3\)"),
        ({"edges": [[-1, 1]]}, r"edges\[0\] is \[-1, 1\]; allowed node ids: 0 to 2"),
        ({"edges": [[0, 1], [0, 2], [0, 1]]}, r"edges holds \[0, 1\] twice"),
        ({"edges": [[1, 1]]}, r"edges holds a cycle: 1 -> 1;"),
        ({"depths": [0, 1]}, r"depths has shape \(2,\) and type int64; allowed: integers >= 0 of shape \[3\]"),
        ({"depths": [0.0, 1.0, 1.0]}, r"depths has shape \(3,\) and type float64"),
        ({"depths": [-1, 1, 1]}, r"depths has shape \(3,\) .*allowed: integers >= 0"),
        ({"depths": [1, 1, 2]}, r"depths\[1\] is 1, not larger than depths\[0\] = 1 of its parent"),
        ({"num_labels": -1}, r"num_labels is -1"),
    ],
)
def test_invalid_hierarchies_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        violation_rates_from_edges([], **{"edges": [[0, 1], [0, 2]], "num_labels": 3, **kwargs})


def test_the_error_for_a_cycle_lists_only_the_nodes_of_the_cycle():
    edges = [(0, 1), (1, 2), (2, 3), (3, 1), (3, 4), (4, 5)]  # 0 above the cycle 1 -> 2 -> 3 -> 1, 4 and 5 below
    with pytest.raises(ValueError, match="cycle") as error:
        violation_rates_from_edges([], edges, 6)
    walk = [int(node) for node in re.findall(r"\d+", str(error.value).split(";")[0])]
    assert walk[0] == walk[-1]
    assert sorted(walk[:-1]) == [1, 2, 3]
    assert set(pairwise(walk)) <= set(edges)


def test_different_numbers_of_documents_are_refused():
    with pytest.raises(ValueError, match="predictions holds 2 documents and references 3"):
        classification_scores([[0], [1]], [[0], [1], [2]], TREE)

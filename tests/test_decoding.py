"""Compares the decoders with slow loops over documents and nodes."""

import numpy as np
import pytest
import torch

from hcal_hf import decode
from hcal_hf.metrics import violation_rates
from tests.builders import random_dag, random_forest


def ancestors(taxonomy, node):
    found = {node}
    for parent in taxonomy.parents(node).tolist():
        found |= ancestors(taxonomy, parent)
    return found


def as_sets(mask):
    return [set(row.nonzero()[:, 0].tolist()) for row in mask]


def slow_raw(row, taxonomy):
    chosen = set()
    for level in taxonomy.levels:
        best = max(range(level.start, level.stop), key=lambda c: row[c])
        chosen.add(best)
        if taxonomy.is_leaf[best]:
            break
    return chosen


def slow_path(row, taxonomy, partial):
    ends = [c for c in range(taxonomy.num_labels) if partial or taxonomy.is_leaf[c]]
    paths = [ancestors(taxonomy, c) for c in ends]
    return max(paths, key=lambda path: sum(row[c] for c in path) / len(path))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("partial", [False, True])
def test_single_path_decoders_match_slow_references(seed, partial):
    taxonomy = random_forest(np.random.default_rng(seed), 30)
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    rows = torch.nn.functional.logsigmoid(logits).tolist()
    raw = as_sets(decode(logits, taxonomy, "single_path", "raw"))
    assert raw == [slow_raw(row, taxonomy) for row in rows]
    closed = as_sets(decode(logits, taxonomy, "single_path", "closure"))
    assert closed == [set().union(*(ancestors(taxonomy, c) for c in slow_raw(row, taxonomy))) for row in rows]
    path = decode(logits, taxonomy, "single_path", "path", partial_paths=partial)
    assert as_sets(path) == [slow_path(row, taxonomy, partial) for row in rows]
    assert torch.equal(path, decode(logits, taxonomy, "single_path", partial_paths=partial))
    for threshold in (0.2, 0.6):
        cut = as_sets(decode(logits, taxonomy, "single_path", threshold=threshold, partial_paths=partial))
        probabilities = torch.sigmoid(logits).tolist()
        for row, found in zip(range(20), cut):
            expected = set()
            for node in sorted(slow_path(rows[row], taxonomy, partial)):
                if probabilities[row][node] < threshold:
                    break
                expected.add(node)
            assert found == expected


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_multi_path_decoders_match_slow_references(make, seed, threshold):
    taxonomy = make(np.random.default_rng(seed), 25)
    logits = torch.randn(30, 25, generator=torch.Generator().manual_seed(seed)) - 1
    above = torch.sigmoid(logits) >= (0.5 if threshold is None else threshold)
    assert torch.equal(decode(logits, taxonomy, "multi_path", "raw", threshold), above)
    closed = decode(logits, taxonomy, "multi_path", threshold=threshold)
    expected = [set().union(*(ancestors(taxonomy, c) for c in chosen)) for chosen in as_sets(above)]
    assert as_sets(closed) == expected
    assert violation_rates(closed.numpy(), taxonomy)["hvr"] == 0
    assert violation_rates(above.numpy(), taxonomy)["hvr"] > 0


def test_raw_single_path_predictions_stop_after_the_first_leaf(ragged):
    logits = torch.full((1, ragged.num_labels), -3.0)
    logits[0, ragged.index("c")] = 3.0  # a leaf at the top level: no deeper label may be predicted
    assert as_sets(decode(logits, ragged, "single_path", "raw")) == [{ragged.index("c")}]
    logits[0, ragged.index("a")] = 5.0
    logits[0, ragged.index("b2")] = 3.0
    chosen = decode(logits, ragged, "single_path", "raw")
    assert as_sets(chosen) == [{ragged.index("a"), ragged.index("b2")}]
    assert violation_rates(chosen.numpy(), ragged)["hvr"] == 1


def test_many_children_of_one_parent_do_not_overflow():
    from hcal_hf import Taxonomy

    taxonomy = Taxonomy.from_edges([("root", f"leaf {i}") for i in range(512)])
    logits = torch.full((2, 513), 3.0)
    logits[:, 0] = -3.0
    assert decode(logits, taxonomy, "multi_path").all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "beam"}, "one of raw, closure, prune, path, top_down, expected_f1, risk, got 'beam'"),
        ({"threshold": 1.5}, "between 0 and 1, got 1.5"),
        ({"method": "path", "label_mode": "multi_path"}, 'needs label_mode="single_path"'),
    ],
)
def test_bad_arguments_are_refused(taxonomy, kwargs, message):
    with pytest.raises(ValueError, match=message):
        decode(torch.zeros(1, 13), taxonomy, **{"label_mode": "single_path", **kwargs})


def test_no_documents(taxonomy):
    for mode in ("single_path", "multi_path"):
        for method in ("raw", "closure"):
            assert decode(torch.zeros(0, 13), taxonomy, mode, method).shape == (0, 13)
    assert decode(torch.zeros(0, 13), taxonomy, "single_path").shape == (0, 13)


# ---- Coherent heads, and decoders with consistent predictions for any input ----


def coherent_logits(rng, taxonomy, documents, partial):
    """Draws coherent node probabilities of a forest.

    The end probabilities (of the leaves, or of all nodes with `partial`) sum to 1. Returns (logits, ends, nodes).
    """
    ends = rng.dirichlet(np.full(taxonomy.num_labels, 0.3), size=documents)
    if not partial:
        ends = ends * taxonomy.is_leaf
        ends /= ends.sum(axis=1, keepdims=True)
    nodes = ends.copy()
    for node in range(taxonomy.num_labels - 1, -1, -1):
        for parent in taxonomy.parents(node):
            nodes[:, parent] += nodes[:, node]
    nodes = torch.from_numpy(nodes).clamp(1e-9, 1 - 1e-9)
    return torch.logit(nodes), ends, nodes


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_single_path_decoders_of_coherent_heads_match_slow_references(seed, partial):
    rng = np.random.default_rng(seed)
    taxonomy = random_forest(rng, 20)
    logits, ends, nodes = coherent_logits(rng, taxonomy, 30, partial)
    expected = [ancestors(taxonomy, int(row.argmax())) for row in ends]
    for method in (None, "raw", "path", "closure", "prune"):
        chosen = decode(logits, taxonomy, "single_path", method, partial_paths=partial, head="path_softmax")
        assert as_sets(chosen) == expected, method
    children = {node: [c for c in range(20) if node in taxonomy.parents(c)] for node in range(20)}
    greedy = decode(logits, taxonomy, "single_path", "top_down", partial_paths=partial, head="path_softmax")
    for i, found in enumerate(as_sets(greedy)):
        best = max(range(taxonomy.levels[0].stop), key=lambda c: nodes[i, c])
        path = {best}
        while children[best]:
            child = max(children[best], key=lambda c: nodes[i, c])
            if partial and nodes[i, child] < ends[i, best]:
                break
            best = child
            path.add(best)
        assert found == path


def slow_expected_f1(row, taxonomy):
    p = list(row)
    for node in range(len(p)):
        p[node] = min([p[node], *(p[a] for a in taxonomy.parents(node).tolist())])
    best, chosen = -1.0, set()
    order = sorted(range(len(p)), key=lambda c: (-p[c], c))
    for size in range(1, len(p) + 1):
        gain = 2 * sum(p[c] for c in order[:size]) / (size + sum(p))
        if gain > best + 1e-12:
            best, chosen = gain, set(order[:size])
    return chosen


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("seed", range(4))
def test_expected_f1_matches_a_slow_reference(make, seed):
    taxonomy = make(np.random.default_rng(seed), 15)
    logits = torch.randn(25, 15, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    found = decode(logits, taxonomy, "multi_path", "expected_f1")
    assert as_sets(found) == [slow_expected_f1(row, taxonomy) for row in torch.sigmoid(logits).tolist()]


def test_expected_f1_finds_the_best_of_all_label_sets_for_coherent_probabilities(ragged):
    """Enumerates all label sets and compares the value that the decoder maximises."""
    rng = np.random.default_rng(0)
    logits, _, nodes = coherent_logits(rng, ragged, 10, partial=True)
    size = ragged.num_labels
    found = decode(logits, ragged, "multi_path", "expected_f1")
    for i in range(10):
        p = nodes[i].numpy()
        value = lambda chosen, p=p: 2 * sum(p[c] for c in chosen) / (len(chosen) + p.sum())  # noqa: E731
        every = ([c for c in range(size) if mask >> c & 1] for mask in range(1, 2**size))
        assert value(as_sets(found)[i]) == pytest.approx(max(map(value, every)))


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("method", ["prune", "top_down"])
def test_prune_keeps_a_label_only_with_all_its_ancestors(make, method):
    taxonomy = make(np.random.default_rng(1), 25)
    logits = torch.randn(30, 25, generator=torch.Generator().manual_seed(1)) + 0.5
    above = as_sets(torch.sigmoid(logits) >= 0.5)
    expected = [{c for c in chosen if ancestors(taxonomy, c) <= chosen} for chosen in above]
    assert as_sets(decode(logits, taxonomy, "multi_path", method)) == expected


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
@pytest.mark.parametrize("head", ["independent", "coherent"])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("method", "threshold"),
    [*((m, t) for m in ("closure", "prune", "path", "top_down") for t in (None, 0.4)), ("expected_f1", None)],
)
def test_all_decoders_except_raw_agree_with_the_hierarchy_for_any_input(mode, head, method, threshold, partial):
    method = "closure" if (mode, method) == ("multi_path", "path") else method  # multi_path refuses decode="path"
    for seed in range(3):
        make = random_dag if mode == "multi_path" else random_forest
        taxonomy = make(np.random.default_rng(seed), 40)
        logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(seed)) * 3
        chosen = decode(logits, taxonomy, mode, method, threshold, partial, head)
        assert violation_rates(chosen.numpy(), taxonomy)["hvr"] == 0
        if mode == "single_path" and method in ("path", "top_down"):
            assert (chosen[:, taxonomy.levels[0]].sum(1) <= 1).all()


@pytest.mark.parametrize(
    ("mode", "method"),
    [*(("single_path", m) for m in ("raw", "path", "top_down", "risk")),
     *(("multi_path", m) for m in ("raw", "closure", "prune", "expected_f1", "risk"))],
)  # fmt: skip
def test_predictions_do_not_depend_on_the_number_of_documents_decoded_together(mode, method, monkeypatch):
    make = random_dag if mode == "multi_path" else random_forest
    taxonomy = make(np.random.default_rng(0), 40)
    logits = torch.randn(53, 40, generator=torch.Generator().manual_seed(0)) * 3
    options = {"risk_threshold": 0.3} if method == "risk" else {}
    whole = decode(logits, taxonomy, mode, method, **options)
    monkeypatch.setattr("hcal_hf.decoding._CACHED_PAIRS", 10 * 40 + 7)
    assert torch.equal(decode(logits, taxonomy, mode, method, **options), whole)
    assert decode(logits[:0], taxonomy, mode, method, **options).shape == (0, 40)
    assert torch.equal(decode(logits.requires_grad_(), taxonomy, mode, method, **options), whole)


def test_expected_f1_refuses_a_threshold(taxonomy):
    with pytest.raises(ValueError, match="leave threshold out"):
        decode(torch.zeros(1, 13), taxonomy, "multi_path", "expected_f1", threshold=0.5)


# ---- One threshold per label ----


@pytest.mark.parametrize("form", ["list", "array", "tensor"])
@pytest.mark.parametrize("make", [random_forest, random_dag])
def test_each_label_may_have_its_own_threshold(make, form):
    taxonomy = make(np.random.default_rng(3), 20)
    generator = torch.Generator().manual_seed(3)
    logits, limits = torch.randn(30, 20, generator=generator), torch.rand(20, generator=generator)
    given = {"list": limits.tolist(), "array": limits.numpy(), "tensor": limits}[form]
    probabilities = torch.sigmoid(logits).tolist()
    above = [{c for c in range(20) if row[c] >= limits[c].item()} for row in probabilities]
    assert as_sets(decode(logits, taxonomy, "multi_path", "raw", given)) == above
    closed = as_sets(decode(logits, taxonomy, "multi_path", threshold=given))
    assert closed == [set().union(*(ancestors(taxonomy, c) for c in chosen)) for chosen in above]
    pruned = as_sets(decode(logits, taxonomy, "multi_path", "prune", threshold=given))
    assert pruned == [{c for c in chosen if ancestors(taxonomy, c) <= chosen} for chosen in above]
    if make is random_forest:
        paths = as_sets(decode(logits, taxonomy, "single_path"))
        cut = as_sets(decode(logits, taxonomy, "single_path", threshold=given))
        assert cut == [{c for c in path if ancestors(taxonomy, c) <= some} for path, some in zip(paths, above)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_thresholds_are_compared_in_log_space(ragged, dtype):
    """exp(-200) is 0 in float32. Only in log space can it be compared with thresholds such as 1e-80 and 1e-90."""
    logits = torch.full((1, ragged.num_labels), -200.0, dtype=dtype)
    assert not decode(logits, ragged, "multi_path", "raw", 1e-80).any()
    assert decode(logits, ragged, "multi_path", "raw", 1e-90).all()
    assert decode(-1e4 * torch.ones_like(logits), ragged, "multi_path", "raw", 0.0).all()
    assert decode(torch.zeros_like(logits), ragged, "multi_path", "raw", 0.5).all()
    assert not decode(torch.full_like(logits, 16.0), ragged, "multi_path", "raw", 1.0).any()


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ([0.5] * 12, r"one for each of the 13 labels, got shape \(12,\)"),
        (torch.full((1, 13), 0.5), r"got shape \(1, 13\)"),
        ([0.5] * 12 + [1.5], "between 0 and 1, got 1.5"),
        (float("nan"), "between 0 and 1, got nan"),
    ],
)
def test_bad_thresholds_are_refused(taxonomy, threshold, message):
    with pytest.raises(ValueError, match=message):
        decode(torch.zeros(1, 13), taxonomy, "multi_path", threshold=threshold)

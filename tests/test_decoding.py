"""Decoders against slow loops over documents and nodes."""

import numpy as np
import pytest
import torch
from conftest import random_dag, random_forest

from hcal_hf import decode
from hcal_hf.metrics import violation_rates


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
def test_single_path_decoders_equal_slow_twins(seed, partial):
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
def test_multi_path_decoders_equal_slow_twins(make, seed, threshold):
    taxonomy = make(np.random.default_rng(seed), 25)
    logits = torch.randn(30, 25, generator=torch.Generator().manual_seed(seed)) - 1
    above = torch.sigmoid(logits) >= (0.5 if threshold is None else threshold)
    assert torch.equal(decode(logits, taxonomy, "multi_path", "raw", threshold), above)
    closed = decode(logits, taxonomy, "multi_path", threshold=threshold)
    expected = [set().union(*(ancestors(taxonomy, c) for c in chosen)) for chosen in as_sets(above)]
    assert as_sets(closed) == expected
    assert violation_rates(closed.numpy(), taxonomy)["hvr"] == 0
    assert violation_rates(above.numpy(), taxonomy)["hvr"] > 0


def test_raw_is_cut_after_a_leaf_and_not_by_the_truth(ragged):
    logits = torch.full((1, ragged.num_labels), -3.0)
    logits[0, ragged.index("c")] = 3.0  # a leaf at the top: nothing may follow
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
        ({"method": "beam"}, "one of raw, closure, path, got 'beam'"),
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

"""Splitting one table into training, validation and test documents."""

import numpy as np
import pytest

from hcal_hf.data.split import split_rows


def table(rng, documents, labels, multi=False):
    """Returns random texts, about 10 percent of them repeated, and labels with a skewed distribution."""
    texts = [f"text {rng.integers(0, documents)}" if rng.random() < 0.1 else f"own text {i}" for i in range(documents)]
    weights = 1.0 / np.arange(1, labels + 1)
    sets = [
        sorted(set(rng.choice(labels, size=rng.integers(1, 4) if multi else 1, p=weights / weights.sum()).tolist()))
        for _ in range(documents)
    ]
    return texts, sets


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_splits_are_disjoint_stratified_reproducible_and_keep_equal_texts_together(seed, multi):
    rng = np.random.default_rng(seed)
    texts, labels = table(rng, 2000, 60, multi)
    parts = split_rows(texts, labels, seed)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(2000))
    assert 0.75 < len(parts["train"]) / 2000 < 0.85
    assert all(0.08 < len(parts[name]) / 2000 < 0.15 for name in ("validation", "test"))
    texts_of = {name: {texts[i].strip() for i in rows} for name, rows in parts.items()}
    assert not texts_of["train"] & (texts_of["validation"] | texts_of["test"])
    assert not texts_of["validation"] & texts_of["test"]
    found = {name: {node for i in rows for node in labels[i]} for name, rows in parts.items()}
    groups = {}
    for text, nodes in zip(texts, labels):
        for node in nodes:
            groups.setdefault(node, set()).add(text)
    for node, members in groups.items():
        assert node in found["train"]
        if len(members) < 3:
            assert node not in found["validation"] | found["test"]
        else:
            assert node in found["validation"] & found["test"]
    again = split_rows(texts, labels, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    assert not np.array_equal(parts["test"], split_rows(texts, labels, seed + 1)["test"])


def test_many_rare_labels_still_leave_enough_training_documents():
    labels = [[i // 3] for i in range(900)]  # three documents per label
    parts = split_rows([f"t{i}" for i in range(900)], labels)
    assert len(parts["train"]) >= 0.7 * 900
    assert {labels[i][0] for i in parts["train"]} == set(range(300))


def test_rows_without_labels_are_distributed_over_the_splits():
    parts = split_rows([f"t{i}" for i in range(1000)], [[]] * 1000)
    assert all(60 < len(parts[name]) < 140 for name in ("validation", "test"))


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match=r"2 different text\(s\)"):
        split_rows(["a", "b", "a "], [[0], [0], [0]])

"""Scores of absent end nodes, and the labels of many documents."""

import numpy as np
import pytest

from hcal_hf import Annotations, Taxonomy, label_frequencies, missing_probability
from hcal_hf.audit.candidates import AGGREGATES, PathCandidates
from hcal_hf.audit.context import context_features, hide_each
from tests.audit import references
from tests.builders import random_dag, random_forest, random_multi_hot


def random_case(seed, is_forest):
    """Returns a taxonomy, coherent probabilities [L, B] and label sets [L, B]."""
    rng = np.random.default_rng(seed)
    taxonomy = random_forest(rng, 14) if is_forest else random_dag(rng, 12)
    present = random_multi_hot(rng, taxonomy, 9, single_path=False).numpy().T > 0
    values = rng.random((taxonomy.num_labels, 9))
    for node in range(taxonomy.num_labels):
        for parent in taxonomy.parent_lists[node]:
            values[node] = np.minimum(values[node], values[parent])
    return taxonomy, values, present


@pytest.mark.parametrize("is_forest", [True, False], ids=["forest", "dag"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_match_slow_loops(seed, is_forest):
    taxonomy, values, present = random_case(seed, is_forest)
    candidates = PathCandidates(taxonomy, partial_paths=True)
    steps, ratio = (candidates.conditional(values, present, by_steps=how) for how in (True, False))
    sums = {name: candidates.aggregate(name, values, present) for name in AGGREGATES}
    any_missing = 1 - np.prod(1 - candidates.best_of_subtrees(np.where(present, 0, values), present), axis=0)
    for document in range(values.shape[1]):
        p, has = values[:, document], present[:, document]
        for node in np.flatnonzero(~has):
            assert steps[node, document] == pytest.approx(references.by_steps(taxonomy, p, has, node))
            assert ratio[node, document] == pytest.approx(references.conditional(taxonomy, p, has, node))
            for name in AGGREGATES:
                expected = references.aggregate(taxonomy, p, has, node, name)
                assert sums[name][node, document] == pytest.approx(expected)
        assert any_missing[document] == pytest.approx(references.probability_of_any(taxonomy, p, has))
    if is_forest:
        np.testing.assert_allclose(steps, ratio)
    is_absent = candidates.absent(present)
    np.testing.assert_allclose(sums["min"][is_absent], values[is_absent])  # of a coherent head


def test_incoherent_probabilities_are_at_most_1_and_zeros_give_0():
    taxonomy = Taxonomy.from_paths([["A", "a"]])
    present = np.array([[True, True], [False, False]])
    values = np.array([[0.2, 0.0], [0.5, 0.0]])
    for by_steps in (True, False):
        assert PathCandidates(taxonomy).conditional(values, present, by_steps)[1].tolist() == [1.0, 0.0]


def test_complete_labels_have_no_candidates(taxonomy):
    present = np.ones((taxonomy.num_labels, 3), dtype=bool)
    assert not PathCandidates(taxonomy).absent(present).any()
    assert not PathCandidates(taxonomy, partial_paths=True).absent(present).any()


def test_under_single_path_candidates_continue_the_path(ragged):
    labels = Annotations.from_rows(ragged, [[ragged.index("a")], [ragged.index("a1")], [ragged.index("b1")], []])
    absent = PathCandidates(ragged, True, single_path=True).absent(labels.multi_hot().T)
    names = [{ragged.labels[n] for n in np.flatnonzero(column)} for column in absent.T]
    assert names == [{"a1", "a2", "a11", "a12"}, {"a11", "a12"}, set(), set(ragged.labels)]


@pytest.mark.parametrize("is_forest", [True, False], ids=["forest", "dag"])
def test_label_sets_match_slow_loops(is_forest):
    taxonomy, _, present = random_case(5, is_forest)
    labels = Annotations.from_rows(taxonomy, [np.flatnonzero(column) for column in present.T])
    assert (labels.multi_hot() == present.T).all()
    assert (labels.multi_hot(2, 5) == present.T[2:5]).all()
    assert (labels.select(np.array([4, 0, 4])).multi_hot() == present.T[[4, 0, 4]]).all()
    documents, ends = labels.ends()
    alone = labels.each_without_one(documents, ends).multi_hot()
    for row, document, end in zip(alone, documents, ends):
        assert set(np.flatnonzero(present[:, document] & ~row)) == references.hidden_alone(
            taxonomy, present[:, document], end
        )
    kept = labels.each_without_one(documents, ends, keep_ancestors=True).multi_hot()
    assert all((present[:, d] & ~row).nonzero()[0].tolist() == [e] for row, d, e in zip(kept, documents, ends))
    assert not labels.without(documents, ends).multi_hot().any()


def test_nodes_outside_the_taxonomy_are_refused(taxonomy):
    with pytest.raises(ValueError, match="Document 1 has the node 99, outside the"):
        Annotations.from_rows(taxonomy, [[0], [99]])


def test_posterior_values_of_the_specification():
    values = missing_probability([0.7, 0.3, 0.7, 1.0, 0.0], [0.9, 0.9, 0.5, 0.9, 0.9])
    np.testing.assert_allclose(values, [0.2592593, 0.0476190, 1.0, 1.0, 0.0], atol=1e-6)
    p = np.linspace(0, 1, 101)
    assert (np.diff(missing_probability(p, 0.8)) >= 0).all()


@pytest.mark.parametrize(
    ("p", "e", "message"), [(1.2, 0.5, "got 1.2"), (np.nan, 0.5, "got nan"), (0.5, 0.0, "above 0")]
)
def test_posterior_refuses_impossible_values(p, e, message):
    with pytest.raises(ValueError, match=message):
        missing_probability(p, e)


def test_frequencies_match_a_slow_loop():
    rng = np.random.default_rng(0)
    taxonomy = Taxonomy.from_paths([["A", "a"], ["A", "b"], ["B"]])
    labels = np.repeat([taxonomy.index(name) for name in ("a", "b", "B")], [40, 5, 25])
    values = rng.random(len(labels))
    for method in ("mean", "certain"):
        found = label_frequencies(labels, values, taxonomy, method)
        for name, number in (("a", 4), ("B", 3)):
            own = np.sort(values[labels == taxonomy.index(name)])[::-1]
            assert found[taxonomy.index(name)] == pytest.approx((own if method == "mean" else own[:number]).mean())
        assert found[taxonomy.index("b")] == found[taxonomy.index("a")]  # the mean of its level
        assert found[taxonomy.index("A")] == found[taxonomy.index("B")]
    with pytest.raises(ValueError, match="one of certain, mean, got 'max'"):
        label_frequencies(labels, values, taxonomy, "max")


@pytest.mark.parametrize("is_forest", [True, False], ids=["forest", "dag"])
def test_context_features_match_a_slow_loop(is_forest):
    taxonomy, values, present = random_case(6, is_forest)
    candidates = PathCandidates(taxonomy, partial_paths=True)
    absent = candidates.absent(present)
    features = context_features(candidates, values, present, True, absent)
    given = candidates.conditional(values, present)
    for row, (document, node) in zip(features, zip(*np.nonzero(absent.T))):
        has, parents = present[:, document], taxonomy.parent_lists
        children = [[c for c in range(len(has)) if n in parents[c] and has[c]] for n in range(len(has))]
        ends = [n for n in np.flatnonzero(has) if not children[n]]
        top = [n for n in np.flatnonzero(~has) if all(has[p] for p in parents[n])]

        def length(n, has=has, parents=parents):
            return 0 if has[n] else 1 + max((length(p) for p in parents[n]), default=0)

        def siblings(n, has=has, parents=parents, children=children):
            if not parents[n]:
                return sum(has[r] for r in range(len(has)) if not parents[r])
            return max(len(children[p]) if has[p] else siblings(p) for p in parents[n])

        p, q = values[node, document], given[node, document]
        expected = [
            np.log(p / (1 - p)), np.log(q / (1 - q)) if q < 1 else 14.0, not ends, np.log1p(len(ends)),
            np.log(sum(given[n, document] for n in top) + 1e-6), siblings(node) > 0, np.log1p(siblings(node)),
            length(node), taxonomy.depths[node],
        ]  # fmt: skip
        np.testing.assert_allclose(row, np.array(expected, dtype=float), rtol=1e-6, atol=1e-6)


def test_each_annotation_is_hidden_once():
    taxonomy, values, present = random_case(7, True)
    labels = Annotations.from_rows(taxonomy, [np.flatnonzero(column) for column in present.T])
    hidden = hide_each(PathCandidates(taxonomy, True), values.T, labels, by_steps=True)
    expected = sorted(
        node for d, end in zip(*labels.ends()) for node in references.hidden_alone(taxonomy, present[:, d], end)
    )
    assert sorted(hidden.nodes.tolist()) == expected
    assert (hidden.weights == 1).all()

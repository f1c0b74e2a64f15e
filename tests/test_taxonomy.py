"""The taxonomy: construction, order of nodes, encoding of labels, and error messages."""

import json
import pickle
import re

import numpy as np
import pytest

from hcal_hf import Taxonomy
from hcal_hf.node_names import split_path
from tests.builders import random_dag, random_forest


def slow_depth(node, parents):
    return 0 if not parents[node] else 1 + max(slow_depth(p, parents) for p in parents[node])


def slow_ancestors(node, parents):
    found = {node}
    for parent in parents[node]:
        found |= slow_ancestors(parent, parents)
    return found


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("seed", range(5))
def test_depths_levels_parents_and_ancestors_match_a_slow_reference(make, seed):
    rng = np.random.default_rng(seed)
    taxonomy = make(rng, 40)
    parents = {node: [] for node in range(40)}
    for parent, child in taxonomy.edges.tolist():
        parents[child].append(parent)
    assert [slow_depth(node, parents) for node in range(40)] == taxonomy.depths.tolist()
    assert (np.diff(taxonomy.depths) >= 0).all()
    for depth, level in enumerate(taxonomy.levels):
        assert (taxonomy.depths[level] == depth).all()
    assert sum(level.stop - level.start for level in taxonomy.levels) == 40
    assert taxonomy.is_leaf.tolist() == [all(node not in p for p in parents.values()) for node in range(40)]
    for node in range(40):
        assert taxonomy.parents(node).tolist() == sorted(parents[node])
    many = rng.choice(40, size=60)
    owners, above = taxonomy.parents_of(many)
    assert list(zip(owners, above)) == [(i, p) for i, node in enumerate(many) for p in sorted(parents[node])]
    for _ in range(10):
        nodes = rng.choice(40, size=3)
        assert taxonomy.complete(nodes).tolist() == sorted(set().union(*(slow_ancestors(n, parents) for n in nodes)))


def test_nodes_are_ordered_by_depth_then_first_appearance():
    taxonomy = Taxonomy.from_edges([("b", "b2"), ("a", "a1"), ("a1", "deep"), ("b", "b1")], roots=["c"])
    assert taxonomy.labels == ("c", "b", "a", "b2", "a1", "b1", "deep")
    assert taxonomy.levels == (slice(0, 3), slice(3, 6), slice(6, 7))


def test_depth_is_the_length_of_the_longest_path_from_a_root(dag):
    assert dict(zip(dag.labels, dag.depths.tolist())) == {"a": 0, "b": 0, "c": 0, "x": 1, "y": 1, "z": 2}


def test_a_name_under_two_parents_makes_two_nodes_by_default():
    paths = [["Books", "Other"], ["Books", "Poetry"], ["Toys", "Other"], ["Toys", "Other", "Poetry"]]
    tree = Taxonomy.from_paths(paths)
    assert tree.labels == ("Books", "Toys", "Books > Other", "Books > Poetry", "Toys > Other", "Toys > Other > Poetry")
    assert tree.is_forest
    assert tree.paths(5) == [["Toys", "Other", "Poetry"]]
    assert [tree.index_path(path) for path in paths] == [2, 3, 4, 5]
    assert tree.index("Toys > Other") == tree.index("Toys>Other") == 4
    with pytest.raises(ValueError, match="'Other' is the name of 2 nodes"):
        tree.encode("Other")


def test_identity_name_merges_nodes_of_one_name_and_warns(caplog):
    with caplog.at_level("WARNING", logger="hcal_hf.taxonomy"):
        dag = Taxonomy.from_paths([["Books", "Other"], ["Toys", "Other"]], identity="name")
    assert dag.labels == ("Books", "Toys", "Other")
    assert dag.parents(2).tolist() == [0, 1]
    assert dag.paths(2) == [["Books", "Other"], ["Toys", "Other"]]
    assert "merged 1 node" in caplog.text
    assert "'Other'" in caplog.text


def test_a_child_may_have_the_name_of_its_parent():
    tree = Taxonomy.from_paths([["Rock", "Rock"], ["A", "C"], ["D", "C"]])
    assert [tree.paths(i)[0] for i in range(3, 6)] == [["Rock", "Rock"], ["A", "C"], ["D", "C"]]
    assert tree.encode([["Rock", "Rock"]]).tolist() == [0, 3]


def test_encode_accepts_paths_names_and_strings(taxonomy):
    expected = taxonomy.encode([["science", "physics", "quantum"]])
    assert [taxonomy.labels[i] for i in expected] == ["science", "physics", "quantum"]
    for labels in (["quantum"], "quantum", "science > physics > quantum", ["science>physics>quantum"],
                   ["science", "physics", "quantum"]):  # fmt: skip
        assert taxonomy.encode(labels).tolist() == expected.tolist()
    both = taxonomy.encode(["quantum", ["arts", "stage"]])
    assert [taxonomy.labels[i] for i in both] == ["science", "arts", "physics", "stage", "quantum"]
    assert taxonomy.encode([]).tolist() == []
    assert taxonomy.decode(both) == [["arts", "stage"], ["science", "physics", "quantum"]]


def test_a_flat_list_of_names_may_be_a_path_and_is_refused_if_ambiguous():
    tree = Taxonomy.from_paths([["A", "Other"], ["B", "Other"]])
    assert tree.encode(["A", "Other"]).tolist() == tree.encode([["A", "Other"]]).tolist()
    tree = Taxonomy.from_paths([["A", "Other"], ["B", "Other"], ["Other"]])
    with pytest.raises(ValueError, match=r"can be read as 2 labels or as one path"):
        tree.encode(["A", "Other"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Taxonomy.from_edges([("r", "a"), ("a", "b"), ("b", "c"), ("c", "a")]),
         r"has a cycle: ('[abc]') -> '[abc]' -> '[abc]' -> \1"),
        (lambda: Taxonomy.from_edges([("a", "a")]), "'a' is its own parent"),
        (lambda: Taxonomy(["a", "b", "a"]), "'a' occur more than once"),
        (lambda: Taxonomy.from_edges([("a", "b")], roots=["c", "c"]), "Roots must be unique, but 'c'"),
        (lambda: Taxonomy.from_edges([("a", "")]), "must not be empty"),
        (lambda: Taxonomy.from_paths([["a", "  "]]), "must not be empty"),
        (lambda: Taxonomy.from_paths([["a", None]]), "must be a string, got None"),
        (lambda: Taxonomy.from_paths([["a", "b "]]), "use 'b'"),
        (lambda: Taxonomy.from_paths([[]]), "at least one step"),
        (lambda: Taxonomy.from_paths(["a > b"]), "must be a sequence of names"),
        (lambda: Taxonomy.from_edges([("a", "b", "c")]), r"\('a', 'b', 'c'\)"),
        (lambda: Taxonomy.from_edges([("a", "b")], roots=["b"]), "'b' is given as a root but is also a child of 'a'"),
        (lambda: Taxonomy(["a", "b"], [(1, 0)]), "sorted by depth"),
        (lambda: Taxonomy(["a", "b"], [(0, 2)]), r"Edge \[0, 2\] points outside"),
        (lambda: Taxonomy.from_paths([["a"]], identity="both"), "'both'"),
        (lambda: Taxonomy.from_paths([["a", "b > c"]]), "'b > c' holds ' > '.*such as 'b - c'"),
        (lambda: Taxonomy.from_edges([("X", "X > Y"), ("X", "Y")]).names, "'X > Y' and 'Y' are both 'Y' inside a path"),
    ],
)  # fmt: skip
def test_invalid_hierarchies_are_refused_with_the_offending_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("quantom", "Unknown label 'quantom'. Closest known: 'quantum', "),
        ([["science", "stage"]], "'stage' exists, but not below 'science'. Closest known: 'physics', 'biology'"),
        ([["physics", "quantum"]], "'physics' exists, but not among the roots"),
        ([["science", "chemistry"]], "Unknown label 'chemistry' below 'science'"),
        ([["science", None]], "must be a string, got None"),
        (3, "got 3 of type int"),
        ([None], "got None in [None]"),
        (["opera", 3], "got 3 in ['opera', 3]"),
        ([[]], "non-empty sequence"),
        ("science > opera", "'opera' exists, but not below 'science'"),
    ],
)
def test_unknown_labels_are_refused_with_the_closest_known_labels(taxonomy, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        taxonomy.encode(labels)


def test_errors_suggest_at_most_three_labels(taxonomy):
    with pytest.raises(ValueError, match=r"Closest known: '[a-z]+', '[a-z]+', '[a-z]+'\."):
        taxonomy.encode("astro")


def test_check_single_path_refuses_labels_with_two_parents(dag, ragged):
    with pytest.raises(ValueError, match="'x' has 2 parents, 'a' and 'b'"):
        dag.check_single_path()
    ragged.check_single_path()


def test_json_files_are_read_and_written(tmp_path, dag, taxonomy):
    for made in (dag, taxonomy):
        made.to_json(tmp_path / "t.json")
        assert Taxonomy.from_json(tmp_path / "t.json") == made
    (tmp_path / "edges.json").write_text(json.dumps({"edges": [["a", "b"]], "roots": ["a", "c"]}), encoding="utf-8")
    assert Taxonomy.from_json(tmp_path / "edges.json").labels == ("a", "c", "b")
    (tmp_path / "paths.json").write_text(
        json.dumps({"paths": [["a", "b"], ["c", "b"]], "identity": "name"}), encoding="utf-8"
    )
    assert Taxonomy.from_json(tmp_path / "paths.json").parents(2).tolist() == [0, 1]
    (tmp_path / "bad.json").write_text(json.dumps({"nodes": []}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"found \['nodes'\]"):
        Taxonomy.from_json(tmp_path / "bad.json")


def test_repeated_edges_are_merged_with_a_warning(caplog):
    with caplog.at_level("WARNING", logger="hcal_hf.taxonomy"):
        taxonomy = Taxonomy.from_edges([("a", "b"), ("a", "b")])
    assert taxonomy.edges.tolist() == [[0, 1]]
    assert "1 edge(s) are given more than once" in caplog.text


def test_pickled_taxonomies_are_equal_and_have_a_readable_repr(dag, taxonomy):
    copy = pickle.loads(pickle.dumps(dag))
    assert copy == dag
    assert hash(copy) == hash(dag)
    assert copy.encode("z").tolist() == dag.encode("z").tolist()
    assert dag != taxonomy
    assert repr(dag) == "Taxonomy(DAG, 6 labels on 3 levels: 3 + 2 + 1)"


def test_an_empty_taxonomy_has_no_levels():
    empty = Taxonomy.from_edges([])
    assert (empty.num_labels, empty.levels, repr(empty)) == (0, (), "Taxonomy(forest, 0 labels on 0 levels: 0)")


def test_wide_levels_and_long_chains_work():
    wide = Taxonomy.from_edges([("root", f"leaf {i}") for i in range(50_000)])
    assert wide.levels[1] == slice(1, 50_001)
    chain = Taxonomy.from_paths([[f"step {i}" for i in range(300)]])
    assert chain.depths.tolist() == list(range(300))
    assert len(chain.paths(299)[0]) == 300


def test_split_path_splits_at_the_separator():
    assert split_path("A > B>C") == ["A", "B", "C"]
    assert split_path("A/B", "/") == ["A", "B"]


def test_suggestions_are_fast_with_many_labels():
    taxonomy = Taxonomy.from_edges([("root", f"label number {i}") for i in range(20_000)])
    with pytest.raises(ValueError, match="Closest known: 'label number 1234'"):
        taxonomy.encode("lable number 1234")
    for i in range(300):  # comparing each with all labels would take seconds
        with pytest.raises(ValueError, match="Closest known"):
            taxonomy.encode(f"unknown {i}")

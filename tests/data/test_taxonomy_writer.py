"""What is written is read again as the same taxonomy, and random edits of a taxonomy are found."""

import importlib.util
import random

import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hcal_hf import DescribedTaxonomy, Taxonomy, diff_taxonomies, read_taxonomy, write_taxonomy
from hcal_hf.data.taxonomy_writer import ENDINGS

HAS_RDFLIB = importlib.util.find_spec("rdflib") is not None
# Without surrogates and control characters, which no text file holds, and without white space at the ends.
WILD = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
TAME = st.from_regex(r"[A-Z][a-z]{1,5}( [a-z]{2,4})?", fullmatch=True)
slow_machines = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def trees(draw, names=TAME, least=2):
    """A forest in which names may occur below several parents."""
    paths = []
    for _ in range(draw(st.integers(least, 15))):
        above = draw(st.sampled_from([(), *paths]))
        name = draw(names)
        paths.append((*above, name))
    return Taxonomy.from_paths(paths)


@st.composite
def dags(draw, names=TAME):
    """A DAG with different names."""
    unique = draw(st.lists(names, min_size=2, max_size=15, unique=True))
    edges, roots = [], []
    for i, name in enumerate(unique):
        parents = draw(st.lists(st.sampled_from(unique[:i]), max_size=3, unique=True)) if i else []
        edges += [(parent, name) for parent in parents]
        roots += [] if parents else [name]
    return Taxonomy.from_edges(edges, roots=roots)


def shape(taxonomy):
    return {
        label: {taxonomy.labels[parent] for parent in taxonomy.parents(node).tolist()}
        for node, label in enumerate(taxonomy.labels)
    }


def written_and_read(taxonomy, tmp_path, name, to=None, **kwargs):
    write_taxonomy(taxonomy, tmp_path / name, to)
    return read_taxonomy(tmp_path / name, **kwargs)


@slow_machines
@given(taxonomy=st.one_of(trees(), dags()))
@pytest.mark.parametrize("ending", [".json", ".csv", ".tsv", ".ttl"])
def test_trees_and_dags_are_the_same_after_conversion(taxonomy, ending, tmp_path):
    if ending == ".ttl" and not HAS_RDFLIB:
        pytest.skip("needs the extra skos")
    if taxonomy.num_labels > 1:
        assert written_and_read(taxonomy, tmp_path, f"t{ending}") == taxonomy


@slow_machines
@given(taxonomy=trees())
def test_trees_are_the_same_after_conversion_to_paths_and_indented_text(taxonomy, tmp_path):
    if len(taxonomy.levels) > 1:  # a flat list has no hierarchy that could be detected
        assert written_and_read(taxonomy, tmp_path, "t.txt") == taxonomy
        assert shape(written_and_read(taxonomy, tmp_path, "i.txt", "indented")) == shape(taxonomy)
    assert written_and_read(taxonomy, tmp_path, "t.txt", format="paths") == taxonomy


@slow_machines
@given(taxonomy=st.one_of(trees(WILD), dags(WILD)))
def test_any_name_survives_conversion(taxonomy, tmp_path):
    for name in ("t.json", "t.csv", *(["t.ttl"] if HAS_RDFLIB else [])):
        assert written_and_read(taxonomy, tmp_path, name) == taxonomy


@slow_machines
@given(taxonomy=st.one_of(trees(), dags()), kind=st.sampled_from(["names", "ids"]))
def test_ids_names_and_descriptions_survive_conversion(taxonomy, kind, tmp_path):
    of_label = {label: f"{i} {label}" for i, label in enumerate(taxonomy.labels)}
    described = DescribedTaxonomy(
        taxonomy.labels,
        taxonomy.edges,
        ids=of_label if kind == "names" else {},
        label_names=of_label if kind == "ids" else {},
        descriptions={taxonomy.labels[0]: 'A "quoted", text; of\ntwo lines'},
    )
    for ending in (".json", ".csv", *([".ttl"] if HAS_RDFLIB else [])):
        again = written_and_read(described, tmp_path, f"t{ending}")
        assert again == described
        assert (again.ids, again.label_names, again.descriptions) == (
            described.ids, described.label_names, described.descriptions
        )  # fmt: skip


def test_every_ending_is_written_and_others_are_refused(tmp_path):
    taxonomy = Taxonomy.from_paths([["A", "B"]])
    for ending in ENDINGS:
        write_taxonomy(taxonomy, tmp_path / f"t{ending}")
        assert (tmp_path / f"t{ending}").stat().st_size
    with pytest.raises(ValueError, match=r"must end in .json, .csv, .tsv, .ttl, .txt, or give the format"):
        write_taxonomy(taxonomy, tmp_path / "t.xyz")


# ---- Differences ----


@slow_machines
@given(taxonomy=st.one_of(trees(), dags()))
def test_a_taxonomy_does_not_differ_from_itself(taxonomy):
    assert diff_taxonomies(taxonomy, taxonomy).changes == []


@slow_machines
@given(old=st.one_of(trees(), dags()), new=st.one_of(trees(), dags()))
def test_the_numbers_of_labels_add_up(old, new):
    diff = diff_taxonomies(old, new)
    assert old.num_labels - diff.number("remove") + diff.number("add") == new.num_labels


@slow_machines
@given(old=trees(), seed=st.integers(0, 1000))
def test_with_ids_any_edit_is_found_exactly(old, seed):
    """Renames, moves, adds and removes leaves at random, and compares the changes with those that were made."""
    rng = random.Random(seed)
    nodes = {str(i): [name, str(old.parents(i)[0]) if len(old.parents(i)) else ""] for i, name in enumerate(old.names)}
    leaves = [i for i in nodes if i not in {parent for _, parent in nodes.values()}]
    removed = set(rng.sample(leaves, k=len(leaves) // 3))
    new = {i: list(values) for i, values in nodes.items() if i not in removed}
    renamed = set(rng.sample(sorted(new), k=len(new) // 3))
    for i in renamed:
        new[i][0] += " renamed"
    new["added"] = ["Added", rng.choice(["", *new])]
    diff = diff_taxonomies(of_ids(nodes), of_ids(new))
    assert {c.path[-1] for c in diff.changes if c.action == "remove"} == {f"id{i}" for i in removed}
    assert {c.path[-1] for c in diff.changes if c.action == "rename"} == {f"id{i}" for i in renamed}
    assert [c.new_path[-1] for c in diff.changes if c.action == "add"] == ["idadded"]
    assert diff.number("move") == 0
    assert all(change.certain for change in diff.changes)


def of_ids(nodes):
    rows = [{"parent": f"id{parent}" if parent else "", "id": f"id{i}", "name": name}
            for i, (name, parent) in nodes.items()]  # fmt: skip
    return read_taxonomy(rows)


def changes(old, new):
    return [(c.action, "/".join(c.path), "/".join(c.new_path), c.reason) for c in diff_taxonomies(old, new).changes]


def test_the_same_id_is_a_certain_rename_or_move():
    old = read_taxonomy(["1 - A", "2 - B", "3 - A > C", "4 - A > C > D"])
    new = read_taxonomy(["1 - A", "2 - B", "3 - B > See", "4 - B > See > D", "5 - B > C"])
    assert changes(old, new) == [("move", "A/C", "B/See", ""), ("add", "", "B/C", "")]


def test_probable_renames_give_their_reason():
    paths = [
        ["A", "Printers", "Jam"],
        ["A", "Printers", "Ink"],
        ["B", "Wireles"],
        ["B", "Cable"],
        ["C", "Old"],
        ["C", "Kept"],
    ]
    new = [
        ["A", "Devices", "Jam"],
        ["A", "Devices", "Ink"],
        ["B", "Wireless"],
        ["B", "Cable"],
        ["C", "Now"],
        ["C", "Kept"],
    ]
    assert changes(Taxonomy.from_paths(paths), Taxonomy.from_paths(new)) == [
        ("rename", "A/Printers", "A/Devices", "same children"),
        ("rename", "B/Wireles", "B/Wireless", "similar names"),
        ("rename", "C/Old", "C/Now", "only change"),
    ]
    old = DescribedTaxonomy(["A", "x", "y"], [[0, 1], [0, 2]], descriptions={"x": "one", "y": "two"})
    new = DescribedTaxonomy(["A", "p", "q"], [[0, 1], [0, 2]], descriptions={"p": "two", "q": "one"})
    assert changes(old, new) == [
        ("rename", "A/x", "A/q", "same description"), ("rename", "A/y", "A/p", "same description")]  # fmt: skip


def test_a_name_that_is_shared_moves_only_probably():
    old = Taxonomy.from_paths([["Books", "Other"], ["Toys", "Other"], ["Games"]])
    new = Taxonomy.from_paths([["Books", "Other"], ["Toys"], ["Games", "Other"]])
    assert changes(old, new) == [("move", "Toys/Other", "Games/Other", "same name")]
    old, new = Taxonomy.from_paths([["A", "x"], ["B"]]), Taxonomy.from_paths([["A"], ["B", "x"]])
    assert changes(old, new) == [("move", "A/x", "B/x", "")]


def test_parents_in_a_dag_are_added_and_removed(tmp_path):
    old = Taxonomy.from_edges([("a", "x"), ("b", "x"), ("a", "y")], roots=["c"])
    new = Taxonomy.from_edges([("a", "x"), ("a", "y"), ("c", "y"), ("b", "z > w")])
    diff = diff_taxonomies(old, new)
    assert [(c.action, c.path, c.new_path) for c in diff.changes] == [
        ("remove_parent", ["b", "x"], ["a", "x"]),
        ("add_parent", ["a", "y"], ["c", "y"]),
        ("add", [], ["b", "z > w"]),
    ]
    assert "1 with another parent, 1 with a parent less" in str(diff)
    diff.to_csv(tmp_path / "d.csv")
    assert (tmp_path / "d.csv").read_text(encoding="utf-8-sig").splitlines() == [
        "action,path,new_path,certain,reason",
        "remove_parent,b > x,a > x,yes,",
        "add_parent,a > y,c > y,yes,",
        'add,,"[""b"", ""z > w""]",yes,',
    ]

"""Changes of a taxonomy: files of changes, the resulting hierarchy, and refused changes."""

import json

import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from hcal_hf import Change, Taxonomy, diff_taxonomies, read_changes
from hcal_hf.data.taxonomy_plan import plan_changes
from tests.builders import build_taxonomy, random_dag, random_forest
from tests.data.test_taxonomy_writer import slow_machines

NAMES = ["a", "b", "c", "d", "e"]
PATHS = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4), min_size=1, max_size=12)


def change(text):
    """Returns the change of a line such as "rename: A > B -> A > C"."""
    action, _, rest = text.partition(": ")
    old, _, new = rest.partition(" -> ")
    old, new = ([step for step in side.split(" > ") if step] for side in (old, new))
    return Change(action, [], old) if action == "add" else Change(action, old, new)


def plan(taxonomy, *lines, **options):
    return plan_changes(taxonomy, [change(line) for line in lines], **options)


def paths_of(taxonomy):
    return {" > ".join(path) for node in range(len(taxonomy)) for path in taxonomy.paths(node)}


@slow_machines
@given(old=PATHS, new=PATHS)
def test_the_diff_of_two_trees_leads_from_one_to_the_other(old, new):
    old, new = Taxonomy.from_paths(old), Taxonomy.from_paths(new)
    planned = plan_changes(old, diff_taxonomies(old, new).changes, single_path=True)
    assert paths_of(planned.label_map.new) == paths_of(new)


@slow_machines
@given(seed=st.integers(0, 10**6))
def test_the_diff_of_two_dags_leads_from_one_to_the_other(seed):
    rng = np.random.default_rng(seed)
    old, new = (random_dag(rng, int(rng.integers(1, 14))) for _ in range(2))
    planned = plan_changes(old, diff_taxonomies(old, new).changes).label_map.new
    assert set(planned.labels) == set(new.labels)
    assert paths_of(planned) == paths_of(new)


@slow_machines
@given(seed=st.integers(0, 10**6))
def test_a_written_diff_is_read_and_applied(seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    old, new = (random_forest(rng, int(rng.integers(1, 14))) for _ in range(2))
    diff = diff_taxonomies(old, new)
    path = tmp_path_factory.mktemp("diff") / "diff.csv"
    diff.to_csv(path)
    table = read_changes(path)
    assert table.changes == diff.changes
    assert plan_changes(old, table.changes, table.places).label_map.new.num_labels == new.num_labels


def test_labels_keep_their_order_and_their_index_is_known():
    old = build_taxonomy()
    planned = plan(old, "rename: arts -> culture", "remove: botany", "add: culture > film")
    label_map = planned.label_map
    assert label_map.new.labels[:2] == ("science", "culture")
    assert label_map.new.labels[-6:] == ("astronomy", "quantum", "genetics", "poetry", "fiction", "opera")
    assert [old.labels[j] for j in label_map.source[:2]] == ["science", "arts"]
    assert label_map.new.labels[np.flatnonzero(label_map.is_new)[0]] == "film"
    assert planned.removed == ["botany"]
    assert {old.labels[i]: label_map.new.labels[j] for i, j in enumerate(planned.fate) if j >= 0}["arts"] == "culture"


def test_names_can_be_exchanged_and_paths_may_use_old_or_new_names_of_parents():
    old = Taxonomy.from_paths([["A", "x"], ["A", "y"], ["B", "z"]])
    assert paths_of(plan(old, "rename: A > x -> y", "rename: A > y -> A > x").label_map.new) == paths_of(old)
    for parent in ("B", "New"):
        planned = plan(old, "rename: B -> New", f"move: A > x -> {parent} > x")
        assert paths_of(planned.label_map.new) == {"A", "A > y", "New", "New > z", "New > x"}
    swapped = plan(old, "rename: A -> B", "rename: B -> A", "add: A > n").label_map.new
    assert paths_of(swapped) == {"A", "B", "B > x", "B > y", "A > z", "A > n"}


def test_a_label_that_is_a_path_follows_its_parent():
    old = Taxonomy.from_paths([["Books", "Other"], ["Toys", "Other"], ["Games"]])
    planned = plan(old, "rename: Books -> Literature", "move: Toys > Other -> Games > Other", "add: Toys > Other")
    assert set(planned.label_map.new.labels) == {
        "Literature", "Toys", "Games", "Literature > Other", "Games > Other", "Toys > Other"
    }  # fmt: skip


def test_merged_labels_get_the_children_and_weights_by_documents():
    old = Taxonomy.from_paths([["A", "x", "x1"], ["A", "y", "y1"], ["B", "z"]])
    documents = np.zeros(len(old))
    documents[[old.index("x"), old.index("y")]] = [3, 1]
    planned = plan(old, "merge: x -> B > w", "merge: y -> B > w", documents=documents)
    new = planned.label_map.new
    assert paths_of(new) == {"A", "B", "B > w", "B > z", "B > w > x1", "B > w > y1"}
    assert planned.label_map.merged == {new.index("w"): {old.index("x"): 0.75, old.index("y"): 0.25}}
    assert planned.label_map.source[new.index("w")] == old.index("x")
    planned = plan(old, "merge: x -> A > y", "merge: x1 -> A > y")
    new = planned.label_map.new
    assert paths_of(new) == {"A", "A > y", "A > y > y1", "B", "B > z"}
    assert planned.label_map.merged[new.index("y")] == pytest.approx(
        dict.fromkeys(map(old.index, ["y", "x", "x1"]), 1 / 3)
    )
    # Labels below merged ones are merged as well, although they have the same names.
    old = Taxonomy.from_paths([["A", "x", "c"], ["A", "y", "c"]])
    lines = ["merge: A > x -> A > y", "merge: A > x > c -> A > y > c"]
    for order in (lines, lines[::-1]):
        assert paths_of(plan(old, *order).label_map.new) == {"A", "A > y", "A > y > c"}


def test_a_subtree_is_removed_except_for_labels_that_move_or_have_other_parents():
    old = Taxonomy.from_paths([["A", "x", "x1"], ["A", "x", "x2"], ["B"]])
    planned = plan(old, "remove_subtree: A", "move: x2 -> B > x2")
    assert paths_of(planned.label_map.new) == {"B", "B > x2"}
    dag = Taxonomy.from_edges([("a", "x"), ("b", "x"), ("a", "y")])
    assert paths_of(plan(dag, "remove_subtree: a").label_map.new) == {"b", "b > x"}
    assert paths_of(plan(dag, "remove: a", "remove: y").label_map.new) == {"b", "b > x"}


def test_parents_of_a_dag_are_added_and_removed():
    dag = Taxonomy.from_edges([("a", "x"), ("b", "x"), ("c", "y")])
    planned = plan(dag, "remove_parent: b > x", "add_parent: x -> c > x", "add: a > n", "add_parent: a > n -> b > n")
    assert paths_of(planned.label_map.new) == {"a", "b", "c", "a > x", "c > x", "c > y", "a > n", "b > n"}
    assert paths_of(plan(dag, "move: b > x -> c > x").label_map.new) >= {"a > x", "c > x"}


TREE = Taxonomy.from_paths([["A", "x", "x1"], ["A", "y"], ["B", "z"]])
DAG = Taxonomy.from_edges([("a", "x"), ("b", "x"), ("x", "z")])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["rename: A > xx -> A > w"], r"Change 1 \(rename\): Unknown label 'xx' below 'A'.* Closest known: 'x'"),
        (["rename: qq -> w"], r"Unknown label 'qq'. Closest known: "),
        (
            ["rename: A > x -> A > y"],
            "there is a label 'y' below 'A' already. To unite both, write .* the action merge",
        ),
        (["rename: A > x -> B > w"], "'A > w' is not below 'B'. Write move instead of rename"),
        (["rename: A > x -> w ", "rename: A > x -> v"], "must not start or end with white space"),
        (["rename: A > x -> w", "rename: A > x -> v"], r"it names 'x' 'v', but change 1 \(rename\) names it 'w'"),
        (["add: A > x"], "there is a label 'x' below 'A' already"),
        (["add: C > n"], "nothing can be below 'C', which is no label of the new taxonomy. Unknown label 'C'"),
        (["remove_subtree: A", "add: A > n"], r"nothing can be below 'A', which change 1 \(remove_subtree\) removes"),
        (["move: A -> A > x > A"], "would be below itself after these changes.*'A' -> 'x' -> 'A'"),
        (["move: A > x -> A > x > x1 > x"], r"would be below itself.*Change one of these rows: change 1 \(move\)"),
        (["move: A > x -> B > z"], "there is a label 'z' below 'B' already"),
        (
            ["remove: A > x"],
            "'x1' would have no parent. Move or remove the labels below 'A > x' too, or write",
        ),
        (["remove_subtree: A", "remove_subtree: B"], "The changes remove every label"),
        (
            ["remove: y", "rename: y -> w"],
            r"Change 2 \(rename\): 'y' is also changed by change 1 \(remove\), which excl",
        ),
        (["remove: y", "remove: A > y"], "'y' is also changed by change 1"),
        (["remove: y", "remove: y"], r"Change 2 \(remove\): it repeats change 1"),
        (["merge: y -> B > w"], "'B > w' does not exist and nothing else is merged into it. Write rename or move"),
        (["merge: y -> A > y"], "a label cannot be merged into itself"),
        (["merge: y -> z", "merge: y -> x"], "'y' is also changed by"),
        (["merge: A -> A > y"], "'A > y' is below 'A'. Merge the lower label into the upper one"),
        (["merge: y -> B > z", "merge: z -> A > x"], "other labels are merged into this label"),
        (
            ["add_parent: y -> B > y"],
            "'y' would have 2 parents .'A', 'B'., but the model has label_mode=\"single_path\"",
        ),
        (["remove_parent: y"], "remove_parent needs the whole path"),
        (["remove_parent: A > y -> y"], "'y' would have no parent. Write move"),
        (["split: y -> A > w"], "the action 'split' is unknown: use one of add, remove, rename, move"),
        (["rename: y"], "rename needs new_path"),
        (["add_parent: y -> B > w"], "the path must end in the name of the label, 'y'"),
    ],
)
def test_impossible_changes_are_refused(lines, message):
    with pytest.raises(ValueError, match=message):
        plan(TREE, *lines, single_path=True)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["move: x -> x"], r"the label has 2 parents \('a', 'b'\). Give the path through one of them"),
        (["move: a > x -> x"], "a top label has no parent, but this label keeps one: remove it with remove_parent"),
        (["add_parent: a -> z > a"], "would be below itself"),
        (["merge: a -> x"], "'b > x' is below 'a'|'a > x' is below 'a'"),
    ],
)
def test_impossible_changes_of_a_dag_are_refused(lines, message):
    with pytest.raises(ValueError, match=message):
        plan(DAG, *lines)


# ---- Files ----


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.jsonl", "c.xlsx"])
def test_changes_are_read_from_every_format_with_other_names_of_columns(tmp_path, name):
    rows = [("Change", "Label", "New"), ("Rename", "A>x", "A > w"), ("add", "B > n", ""), ("remove subtree", "B", "")]
    path = tmp_path / name
    if name == "c.xlsx":
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(path)
    elif name == "c.jsonl":
        lines = [json.dumps(dict(zip(rows[0], row))) for row in rows[1:]]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text("\n".join(("," if name == "c.csv" else "\t").join(row) for row in rows), encoding="utf-8")
    table = read_changes(path)
    assert table.changes == [
        Change("rename", ["A", "x"], ["A", "w"]), Change("add", [], ["B", "n"]), Change("remove_subtree", ["B"])
    ]  # fmt: skip
    assert table.places[0] == f"Row {1 if name == 'c.jsonl' else 2} of {name}"


def test_uncertain_rows_names_and_descriptions_are_read(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text(
        "action,path,new_path,certain,reason,name,description\n,,,,,,\nadd,,1,yes,,Farming,Crops and animals\n"
        'rename,2,"[""3 > 4""]",no,similar names,Fishing,\n',
        encoding="utf-8",
    )
    table = read_changes(path)
    assert table.changes == [
        Change("add", [], ["1"], True, "", "Farming", "Crops and animals"),
        Change("rename", ["2"], ["3 > 4"], False, "similar names", "Fishing"),
    ]
    assert table.uncertain == ["Row 4 of c.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "path,new_path\nA,B\n",
            "has no column 'action'. A table of changes has the columns action, path and new_path",
        ),
        ("action,path\nsplit,A\n", "Row 2 of c.csv: the action 'split' is unknown. Use one of add, remove"),
        ("action,path,certain\nremove,A,maybe\n", "Row 2 of c.csv: certain must be yes or no, got 'maybe'"),
    ],
)
def test_files_that_are_no_tables_of_changes_are_refused(tmp_path, content, message):
    path = tmp_path / "c.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_changes(path)

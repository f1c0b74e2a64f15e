"""`hcal taxonomy check` reports each kind of problem with its location, and no problem in clean tables."""

import json
import random
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from hcal_hf import Taxonomy
from hcal_hf.data.document_check import READ_AS_MISSING
from hcal_hf.data.hierarchy_check import find_cycles, loosely, same_to_the_eye
from hcal_hf.data.taxonomy_check import check_file

CLEAN = """text,area,product,problem
a,Hardware,Printer,Paper jam
b,Hardware,Printer,Toner
c,Hardware,Screen,Black
d,Hardware,Screen,Flicker
e,Network,VPN,Slow
f,Network,VPN,Login
g,Network,Wi-Fi,Slow
h,Network,Wi-Fi,Weak
"""
LEVELS = ["area", "product", "problem"]


@pytest.fixture
def check(tmp_path):
    def run(content, name="table.csv", **kwargs):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        report = check_file(path, **kwargs)
        assert str(report)
        json.dumps(report.to_dict())
        return report, {problem.kind: problem for problem in report.problems}

    return run


def test_a_clean_table_has_no_problem_but_a_name_below_two_parents(check):
    report, found = check(CLEAN, labels=LEVELS, min_documents=1)
    assert list(found) == ["same-name"]
    assert found["same-name"].examples == ["'Slow': 'Network > VPN > Slow', 'Network > Wi-Fi > Slow'"]
    assert (report.documents, report.number("error"), report.number("warning")) == (8, 0, 1)
    assert report.to_dict()["levels"] == [2, 4, 8]
    assert str(report).startswith(report.source + ": 8 documents; 14 labels on 3 levels (2 + 4 + 8), 8 of them leaves")
    assert "warning: names that occur below several parents: 1" in str(report)
    report, found = check(CLEAN, labels=LEVELS, min_documents=0)
    assert report.documents is None


def test_bad_rows_are_reported_with_their_row_number_in_a_spreadsheet(check):
    table = CLEAN + "i,Hardware,,Toner\nj,,,\n,Network,VPN,Slow\nk,Network,VPN\n,,Screen,Black\n"
    _, found = check(table, labels=LEVELS, min_documents=1)
    assert found["empty-level"].examples == [
        "row 10: column 'product' is empty, but the deeper 'problem' is not",
        "row 14: column 'area' is empty, but the deeper 'problem' is not",
    ]
    assert (found["empty-level"].severity, found["empty-level"].rows) == ("error", 2)
    assert (found["no-labels"].severity, found["no-labels"].examples) == ("warning", ["row 11: no label"])
    assert found["empty-text"].rows == 2
    assert found["unreadable"].examples[0].startswith("row 13: the row has 3 cells, the header 4")


def test_different_spellings_of_a_label_are_reported_among_siblings(check):
    decomposed = unicodedata.normalize("NFD", "Büro")
    rows = ["text,a,b", "x,Büro,One", f"x,{decomposed},One", "x,Büro\u200b,Two", "x,Haus,E-Mail", "x,Haus,email",
            "x,Haus,e  mail", "x,Haus,C", "x,Haus,C++"]  # fmt: skip
    _, found = check("\n".join(rows), labels=["a", "b"], min_documents=1)
    same = found["same-to-the-eye"]
    assert (same.severity, same.count) == ("error", 1)
    assert same.examples == [r"'B\xfcro' (row 2) / 'Bu\u0308ro' (row 3) / 'B\xfcro\u200b' (row 4)"]
    assert found["similar"].severity == "warning"
    assert found["similar"].examples == ["'E-Mail' (row 5) / 'email' (row 6) / 'e  mail' (row 7), below 'Haus'"]


@pytest.mark.parametrize(
    ("a", "b", "eye", "loose"),
    [
        ("Printer", "Printer\u00a0", True, True),
        ("Printer", "printer", False, True),
        ("log in", "login", False, True),
        ("café", "cafe", False, True),
        ("\uff21\uff22", "AB", False, True),  # full-width letters
        ("C", "C#", False, False),
        ("किताब", "कताब", False, False),  # a vowel sign is not an accent
        ("---", "...", False, False),
    ],
)
def test_names_are_compared_by_appearance_and_loosely(a, b, eye, loose):
    assert (same_to_the_eye(a) == same_to_the_eye(b)) is eye
    assert (loosely(a) == loosely(b)) is loose


def test_single_children_rare_labels_and_inner_ends_are_reported(check):
    rows = ["labels", "A > A1 > A11", "A > A2", "A > A2", "A", "B > B1", "B > B1", "C > C1", "C", "D > D", "D > E"]
    report, found = check("\n".join(rows), min_documents=2)
    # C also has a single child, but some paths end at C.
    assert found["single-child"].examples == ["'A > A1' -> 'A > A1 > A11'", "'B' -> 'B > B1'"]
    assert found["few-documents"].examples == [
        "'A > A1': 1", "'A > A1 > A11': 1", "'C > C1': 1", "'D > D': 1", "'D > E': 1"
    ]  # fmt: skip
    assert (found["inner-ends"].rows, found["inner-ends"].count) == (2, 2)
    assert found["repeats-parent"].examples == ["'D > D'"]
    assert report.number("error") == 0
    assert report.taxonomy == Taxonomy.from_paths([row.split(" > ") for row in rows[1:]])


def test_several_paths_per_document_and_lists_are_checked(check):
    rows = [{"labels": [["A", "A1"], ["B", "B1"]]}, {"labels": [["A"], ["A", "A2"]]}, {"labels": ["A", "B"]},
            {"labels": [["A", 3]]}, {"labels": None}, {"labels": [["A", {}]]}, {"labels": [[]]}]  # fmt: skip
    _, found = check("\n".join(map(json.dumps, rows)), "a.jsonl", min_documents=1)
    assert found["several-paths"].examples == ["row 1"]
    assert "inner-ends" not in found
    assert sorted(example[:5] for example in found["unreadable"].examples) == ["row 3", "row 6", "row 7"]
    assert "empty-name" not in found  # a number in a list is a code, as in a separate column
    assert found["no-labels"].rows == 1


def test_names_that_contain_the_separator_are_errors(check):
    _, found = check("a,b\nHardware,In > Out\nHardware,Screen\n", labels=["a", "b"], min_documents=1)
    assert (found["separator"].severity, found["separator"].examples) == ("error", ["row 2: 'In > Out'"])


def test_labels_are_compared_with_a_given_taxonomy(check, tmp_path):
    taxonomy = tmp_path / "taxonomy.json"
    Taxonomy.from_paths([["Hardware", "Printer"], ["Hardware", "Screen"], ["Network", "VPN"]]).to_json(taxonomy)
    table = "labels\nHardware > Printer\nPrintr\nPrintr\nHardware\n"
    report, found = check(table, taxonomy=taxonomy, min_documents=1)
    assert found["unknown-label"].rows == 2
    assert found["unknown-label"].examples[0].startswith("2 rows, first row 3: Unknown label 'Printr'")
    assert "'Printer'" in found["unknown-label"].examples[0]
    assert found["no-documents"].examples == ["'Screen'", "'VPN'"]
    assert found["inner-ends"].examples == ["'Hardware': 1 documents"]
    assert report.number("error") == 1


def test_cells_that_load_dataset_would_change_are_reported(check, tmp_path):
    table = "text,a,b\nx,Region,NA\ny,Region,EU\n"
    _, found = check(table, labels=["a", "b"], min_documents=1)
    assert found["read-as-missing"].examples == ["row 2: 'NA' in column 'b'"]
    names = sorted(READ_AS_MISSING)
    lines = "".join(f'x,"{name}"\n' for name in [*names, "EU", "none", "null value"])
    (tmp_path / "b.csv").write_text("text,a\n" + lines, encoding="utf-8")
    read = load_dataset("csv", data_files=str(tmp_path / "b.csv"), cache_dir=str(tmp_path / "cache"))["train"]["a"]
    assert list(read) == [None] * len(names) + ["EU", "none", "null value"]
    _, found = check("a,b\n007,x1\n12,x2\n", labels=["a", "b"], min_documents=1)
    assert found["numbers"].examples == ["column 'a': 007"]
    _, found = check("a,b\n007,x1\nB12,x2\n", labels=["a", "b"], min_documents=1)
    assert "numbers" not in found


def test_edge_lists_are_checked(check):
    rows = ["parent,child", ",A", "A,B", "A,C", "A,C", "X,C", "C,D", "D,E", "E,C", "F,F", "A,", "b,G", ",D"]
    report, found = check("\n".join(rows))
    assert found["cycle"].examples == ["'C' -> 'D' -> 'E' -> 'C'", "'F' -> 'F'"]
    assert found["repeated-edge"].examples == ["'A' -> 'C', 2 times"]
    assert found["several-parents"].examples == ["'C': 'A', 'X', 'E'"]
    assert found["empty-name"].examples == ["row 11: the cell of 'child' is empty"]
    assert found["similar"].examples == ["'B' (row 3) / 'b' (row 12)"]
    assert found["root-with-parent"].examples == ["'D'"]
    assert report.taxonomy is None
    report, found = check("Over;Under\n;Z\nA;B\nA;C\nX;C > D\n", edges=["Over", "Under"])
    assert report.taxonomy == Taxonomy.from_edges([("A", "B"), ("A", "C"), ("X", "C > D")], roots=["Z"])
    assert set(found) == {"single-child", "separator"}
    assert report.number("error") == 0


def test_a_parent_with_code_0_is_not_missing(check):
    rows = [{"parent": None, "child": 0}, {"parent": 0, "child": 1}, {"parent": 0, "child": 2}]
    report, found = check("\n".join(map(json.dumps, rows)), "edges.jsonl", edges=["parent", "child"])
    assert report.taxonomy == Taxonomy.from_edges([("0", "1"), ("0", "2")])
    assert not found


def test_exactly_the_cycles_of_random_graphs_are_reported():
    draw = random.Random(0)
    with_cycles = 0
    for _ in range(200):
        edges = list({(draw.randrange(8), draw.randrange(8)) for _ in range(draw.randrange(12))})
        cycles = find_cycles(edges)
        for cycle in cycles:
            assert cycle[0] == cycle[-1]
            assert set(zip(cycle, cycle[1:])) <= set(edges)
        try:
            Taxonomy.from_edges([(f"n{a}", f"n{b}") for a, b in edges])
        except ValueError:
            with_cycles += 1
            assert cycles
        else:
            assert not cycles
    assert 20 < with_cycles < 180
    assert find_cycles([(i, i + 1) for i in range(50_000)]) == []  # longer than the recursion limit of Python


@pytest.mark.parametrize("form", ["labels", "edges", "paths"])
def test_taxonomy_json_is_accepted_in_three_forms(check, form):
    paths = [["Books", "Other"], ["Books", "New"], ["Toys", "Other"], ["Toys", "Red"]]
    taxonomy = Taxonomy.from_paths(paths)
    data = {
        "labels": {"labels": list(taxonomy.labels), "edges": taxonomy.edges.tolist()},
        "edges": {"edges": [[taxonomy.labels[a], taxonomy.labels[b]] for a, b in taxonomy.edges.tolist()]},
        "paths": {"paths": paths},
    }[form]
    report, found = check(json.dumps(data), "taxonomy.json")
    assert report.taxonomy == taxonomy
    assert list(found) == (["same-name"] if form == "paths" else [])


def test_mistakes_in_taxonomy_json_are_reported(check):
    _, found = check('{"edges": [["A", "B "], ["B", "A"], ["A", ""], ["A", 3], ["A", "B"]]}', "taxonomy.json")
    assert {kind: finding.count for kind, finding in found.items() if finding.severity == "error"} == {
        "white-space": 1, "empty-name": 2, "same-to-the-eye": 1, "cycle": 1
    }  # fmt: skip
    _, found = check('{"labels": ["A", "B", "C"], "edges": [[2, 1]]}', "taxonomy.json")
    assert "must be sorted by depth" in found["hierarchy"].examples[0]
    with pytest.raises(ValueError, match="is not JSON"):
        check("{", "taxonomy.json")
    with pytest.raises(ValueError, match=r"has no hierarchy: it is an object with the keys"):
        check('{"nodes": []}', "taxonomy.json")
    with pytest.raises(ValueError, match=r"edge \[0, 9\] does not point to two of the 1 labels"):
        check('{"labels": ["A"], "edges": [[0, 9]]}', "taxonomy.json")


def test_identity_name_reports_labels_with_several_parents(check):
    report, found = check(CLEAN, labels=LEVELS, min_documents=1, identity="name")
    assert found["several-parents"].examples == ["'Slow': 'VPN', 'Wi-Fi'"]
    assert "same-name" not in found
    assert report.taxonomy.num_labels == 13
    _, found = check("a,b\nA,B\nB,A\n", labels=["a", "b"], min_documents=1, identity="name")
    assert found["cycle"].examples == ["'A' -> 'B' -> 'A'"]


def test_files_that_cannot_be_checked_are_refused_with_a_suggestion(check, tmp_path):
    with pytest.raises(ValueError, match=r"--labels A B C.*--edges A B.*\['text', 'area'"):
        check(CLEAN)
    with pytest.raises(ValueError, match="no column 'produkt', but 'product'"):
        check(CLEAN, labels=["area", "produkt"])
    with pytest.raises(ValueError, match=r"save the sheet as \.xlsx or as CSV UTF-8"):
        check(b"PK", "tickets.xls")
    with pytest.raises(ValueError, match="the list of columns is empty"):
        check(CLEAN.replace("area", "labels"), labels=[])
    with pytest.raises(FileNotFoundError):
        check_file(tmp_path / "no.json")
    pq.write_table(pa.table({"labels": [[["A", "B"]], [["A", "C"]]]}), tmp_path / "a.parquet")
    assert check_file(tmp_path / "a.parquet", min_documents=1).problems == []

"""Hierarchies in the formats in which people have them: reading, writing, comparing."""

import gzip
import json

import numpy as np
import pytest
from openpyxl import Workbook

from hcal_hf import Taxonomy, diff_taxonomies, read_named_taxonomy, read_taxonomy, write_taxonomy
from hcal_hf.commands import main as cli

PATHS = [["Animals", "Live Animals"], ["Animals", "Pet Supplies", "Bird Supplies"], ["Hardware"]]


def paths_of(taxonomy):
    """All paths of a taxonomy, sorted."""
    return sorted(path for node in range(len(taxonomy)) for path in taxonomy.paths(node))


EXPECTED = paths_of(Taxonomy.from_paths(PATHS))


def write(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


TEXTS = {
    "paths": "Animals > Live Animals\nAnimals > Pet Supplies > Bird Supplies\nHardware\n",
    "paths with a slash, CRLF and a byte-order mark": "\ufeffAnimals/Live Animals\r\n"
    "Animals/Pet Supplies/Bird Supplies\r\n\r\nHardware\r\n",
    "paths with a double colon": "Animals::Live Animals\nAnimals::Pet Supplies::Bird Supplies\nHardware",
    "paths with tabs": "Animals\tLive Animals\nAnimals\tPet Supplies\tBird Supplies\nAnimals\tPet Supplies\nHardware\n",
    "codes before paths": "# Google_Product_Taxonomy_Version: 2021-09-21\n1 - Animals\n3237 - Animals > Live Animals\n"
    "2 - Animals > Pet Supplies\n3 - Animals > Pet Supplies > Bird Supplies\n632 - Hardware\n",
    "indented by spaces": "Animals\n  Live Animals\n  Pet Supplies\n    Bird Supplies\nHardware\n",
    "indented by tabs": "Animals\n\tLive Animals\n\tPet Supplies\n\t\tBird Supplies\nHardware\n",
    "an indented list": "- Animals\n  - Live Animals\n  - Pet Supplies\n    - Bird Supplies\n- Hardware\n",
    "parents with children": "Root\tAnimals\tHardware\nAnimals\tLive Animals\tPet Supplies\nPet Supplies\tBird Supplies\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_is_recognised(tmp_path, text):
    assert paths_of(read_taxonomy(write(tmp_path, "taxonomy.txt", text))) == EXPECTED
    assert paths_of(read_taxonomy(write(tmp_path, "taxonomy.txt.gz", gzip.compress(text.encode())))) == EXPECTED


TABLES = {
    "edges": "parent,child\n,Animals\nAnimals,Live Animals\nAnimals,Pet Supplies\nPet Supplies,Bird Supplies\n,Hardware\n",
    "levels": "a;b;c\nAnimals;Live Animals;\nAnimals;Pet Supplies;Bird Supplies\nHardware;;\n",
    "paths": "Path,Count\nAnimals > Live Animals,3\nAnimals > Pet Supplies > Bird Supplies,1\nHardware,2\n",
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables_are_recognised(tmp_path, table):
    assert paths_of(read_taxonomy(write(tmp_path, "taxonomy.csv", table))) == EXPECTED
    book = Workbook()
    for line in table.splitlines():
        book.active.append(line.split(";" if ";" in line else ","))
    book.save(tmp_path / "taxonomy.xlsx")
    assert paths_of(read_taxonomy(tmp_path / "taxonomy.xlsx")) == EXPECTED


OBJECTS = {
    "nested": {"Animals": {"Live Animals": {}, "Pet Supplies": {"Bird Supplies": None}}, "Hardware": []},
    "nested with lists": {"Animals": ["Live Animals", {"Pet Supplies": ["Bird Supplies"]}], "Hardware": ""},
    "children": {"Animals": ["Live Animals", "Pet Supplies"], "Pet Supplies": ["Bird Supplies"], "Hardware": []},
    "children below a root": {"Root": ["Animals", "Hardware"], "Animals": ["Live Animals", "Pet Supplies"],
                              "Pet Supplies": ["Bird Supplies"]},
    "paths": PATHS,
    "path strings": [" > ".join(path) for path in PATHS],
    "an object of paths": {"paths": PATHS},
    "edges": {"edges": [["Animals", "Live Animals"], ["Animals", "Pet Supplies"], ["Pet Supplies", "Bird Supplies"]],
              "roots": ["Hardware"]},
}  # fmt: skip


@pytest.mark.parametrize("data", OBJECTS.values(), ids=OBJECTS)
def test_objects_and_json_are_recognised(tmp_path, data):
    assert paths_of(read_taxonomy(data)) == EXPECTED
    assert paths_of(read_taxonomy(write(tmp_path, "taxonomy.json", data))) == EXPECTED


def test_codes_before_paths_can_be_the_labels(tmp_path):
    path = write(tmp_path, "google.txt", TEXTS["codes before paths"])
    found = read_named_taxonomy(path, label_by="id")
    assert paths_of(found.taxonomy) == [["1"], ["1", "2"], ["1", "2", "3"], ["1", "3237"], ["632"]]
    assert found.names["3237"] == "Live Animals"
    path = write(tmp_path, "google.txt", "3237 - Animals > Live Animals\n632 - Hardware\n")
    with pytest.raises(ValueError, match="line 1: 'Animals' has no id"):
        read_named_taxonomy(path, label_by="id")


def test_dotted_codes_lie_below_their_prefixes(tmp_path):
    text = (
        "E11 Type 2 diabetes\nE11.6 With other complications\nE11.65 With hyperglycemia\nE11.9 Without complications\n"
    )
    found = read_named_taxonomy(write(tmp_path, "icd.txt", text))
    assert paths_of(found.taxonomy) == [["E11"], ["E11", "E11.6"], ["E11", "E11.6", "E11.65"], ["E11", "E11.9"]]
    assert found.names["E11.65"] == "With hyperglycemia"
    table = write(tmp_path, "icd.csv", "code;title\nE11;Type 2 diabetes\nE11.9;Without\n")
    assert read_named_taxonomy(table).names == {"E11": "Type 2 diabetes", "E11.9": "Without"}


@pytest.mark.parametrize(
    ("codes", "rule", "edges"),
    [
        (["C04", "C04.557", "C04.557.337"], ".", [("C04", "C04.557"), ("C04.557", "C04.557.337")]),
        (["11", "111", "1111"], [2, 3, 4], [("11", "111"), ("111", "1111")]),
        (["11", "1111"], [2, 3, 4], [("11", "1111")]),  # a level is missing
        (["A", "A1", "A12"], r"(.+).$", [("A", "A1"), ("A1", "A12")]),
    ],
)
def test_the_rule_of_codes_can_be_given(tmp_path, codes, rule, edges):
    taxonomy = read_taxonomy(write(tmp_path, "codes.txt", "\n".join(codes)), format="codes", code_rule=rule)
    assert [(taxonomy.labels[a], taxonomy.labels[b]) for a, b in taxonomy.edges.tolist()] == edges
    assert taxonomy.labels[0] == codes[0]


def test_a_table_of_ids_has_names(tmp_path):
    path = write(tmp_path, "nodes.csv", "id,parent_id,name\n1,,Farming\n2,1,Crops\n")
    found = read_named_taxonomy(path)
    assert (found.taxonomy.labels, found.names) == (("1", "2"), {"1": "Farming", "2": "Crops"})


def test_skos_keeps_several_parents(tmp_path):
    turtle = """@prefix skos: <http://www.w3.org/2004/02/skos/core#> . @prefix : <http://example.org/> .
:a a skos:Concept ; skos:prefLabel "Science"@en, "Wissenschaft"@de .
:b a skos:Concept ; skos:prefLabel "Arts"@en, "Kunst"@de .
:c a skos:Concept ; skos:prefLabel "Acoustics"@en, "Akustik"@de ; skos:broader :a, :b .
:b skos:narrower :d . :d a skos:Concept ; skos:prefLabel "Music"@en, "Musik"@de ."""
    path = write(tmp_path, "topics.ttl", turtle)
    taxonomy = read_taxonomy(path)
    assert sorted(taxonomy.paths(taxonomy.index("Acoustics"))) == [["Arts", "Acoustics"], ["Science", "Acoustics"]]
    assert sorted(read_taxonomy(path, language="de").labels) == ["Akustik", "Kunst", "Musik", "Wissenschaft"]
    with pytest.raises(ValueError, match="cannot be read as SKOS in the format turtle"):
        read_taxonomy(write(tmp_path, "broken.ttl", "no turtle"))
    with pytest.raises(ValueError, match=r"has no concepts of SKOS"):
        read_taxonomy(write(tmp_path, "empty.ttl", ""))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", "A > B\nA >  > C\n", r"line 2: the path .* has an empty step"),
        ("a.txt", "  A\nB\n", r"line 2: 'B' is indented by ''"),
        ("a.txt", "A\tB\tE\nC\tD\n", "can be read in several ways: lines have three or more cells"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "3", "cannot be read as a taxonomy"),
        ("a.json", {"A": {"B": 3}}, "the value of 'B' must be a dictionary"),
        ("a.json", "[" * 100_000 + "]" * 100_000, "nested deeper than the JSON reader"),
        ("a.csv", "a,b,c\nA,,C\n", "row 2: column 'b' is empty, but the deeper 'c' is not"),
        ("a.csv", "parent,child\nA,B\nB,A\n", "cycle"),
        ("a.csv", "parent,child\nA,\n", "row 2: the cell of 'child' is empty"),
        ("a.csv", "code,name\nA1,x\nA1,y\n", "row 3: the code 'A1' is described as 'y', but in row 2 as 'x'"),
    ],
)
def test_what_cannot_be_read_says_where(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_taxonomy(write(tmp_path, name, content))


def test_ambiguous_tabs_are_read_as_the_format_says(tmp_path):
    path = write(tmp_path, "a.txt", "A\tB\tE\nC\tD\n")
    paths = read_taxonomy(path, format="paths", separator="\t")
    assert paths_of(paths) == [["A"], ["A", "B"], ["A", "B", "E"], ["C"], ["C", "D"]]
    children = read_taxonomy(path, format="parent-children")
    assert paths_of(children) == [["A"], ["A", "B"], ["A", "E"], ["C"], ["C", "D"]]
    with pytest.raises(ValueError, match="format must be one of None, 'json', 'paths'"):
        read_taxonomy(path, format="tree")


def test_3000_levels_are_read_and_written(tmp_path):
    deep = "".join("  " * level + f"n{level}\n" for level in range(3000))
    taxonomy = read_taxonomy(write(tmp_path, "deep.txt", deep))
    assert len(taxonomy.levels) == 3000
    write_taxonomy(taxonomy, tmp_path / "again.txt", "indented")
    assert (tmp_path / "again.txt").read_text(encoding="utf-8") == deep


SUFFIXES = {"json": ".json", "csv": ".csv", "paths": ".txt", "indented": ".txt", "skos": ".ttl"}


def random_taxonomy(seed, is_forest):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 30))
    edges = []
    for child in range(1, size):
        number = 1 if is_forest else int(rng.integers(1, min(child, 3) + 1))
        edges += [(f"n{parent} &", f"n{child} &") for parent in rng.choice(child, number, replace=False)]
    return Taxonomy.from_edges(edges, roots=["n0 &"] if not edges else ())


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("to", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path, seed, to):
    taxonomy = random_taxonomy(seed, is_forest=to in ("paths", "indented") or seed % 2 == 0)
    path = tmp_path / f"taxonomy{SUFFIXES[to]}"
    write_taxonomy(taxonomy, path, to)
    assert paths_of(read_taxonomy(path)) == paths_of(taxonomy)


def test_text_cannot_show_several_parents_or_separators(tmp_path):
    dag = Taxonomy.from_edges([("a", "c"), ("b", "c")])
    with pytest.raises(ValueError, match="Some labels have several parents, which paths text cannot show"):
        write_taxonomy(dag, tmp_path / "a.txt", "paths")
    with pytest.raises(ValueError, match="The name 'a>b' cannot be read back"):
        write_taxonomy(Taxonomy.from_edges([("a>b", "c")]), tmp_path / "a.txt", "indented")
    with pytest.raises(ValueError, match="to must be json, csv, paths, indented or skos, got 'xml'"):
        write_taxonomy(dag, tmp_path / "a.xml", "xml")


# ---- Differences ----

OLD = [["A", "B", "C"], ["A", "B", "D"], ["A", "E"], ["F", "G"], ["F", "H"], ["I"]]


def changes(old, new):
    diff = diff_taxonomies(Taxonomy.from_paths(old), Taxonomy.from_paths(new))
    return [(c.action, "/".join(c.path), "/".join(c.new_path)) for c in diff.changes]


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (OLD, []),
        ([*OLD, ["A", "X"]], [("add", "", "A/X")]),
        (OLD[:-1], [("remove", "I", "")]),
        # A renamed branch is one change, and so is a moved one.
        ([["A", "Y", "C"], ["A", "Y", "D"], *OLD[2:]], [("rename", "A/B", "A/Y")]),
        ([*OLD[2:], ["F", "B", "C"], ["F", "B", "D"]], [("move", "A/B", "F/B")]),
        ([*OLD[:3], ["F", "G2"], *OLD[4:]], [("rename", "F/G", "F/G2")]),
        ([*OLD[:3], ["F", "G2"], ["F", "H2"], OLD[5]],
         [("remove", "F/G", ""), ("remove", "F/H", ""), ("add", "", "F/G2"), ("add", "", "F/H2")]),
    ],
)  # fmt: skip
def test_changes_between_two_versions(new, expected):
    assert changes(OLD, new) == expected


def test_commands_convert_and_compare(tmp_path, capsys):
    old = write(tmp_path, "old.txt", TEXTS["paths"])
    assert cli.main(["taxonomy", "convert", str(old), "--out", str(tmp_path / "old.json")]) == 0
    assert "5 labels written as json" in capsys.readouterr().out
    assert paths_of(Taxonomy.from_json(tmp_path / "old.json")) == EXPECTED
    new = write(tmp_path, "new.txt", TEXTS["paths"] + "Toys > Games\n")
    out = tmp_path / "diff.csv"
    assert cli.main(["taxonomy", "diff", str(tmp_path / "old.json"), str(new), "--out", str(out)]) == 0
    assert "5 labels before and 7 after: 2 added, 0 removed" in capsys.readouterr().out
    assert out.read_text(encoding="utf-8-sig").splitlines() == [
        "action,path,new_path,certain,reason", "add,,Toys,yes,", "add,,Toys > Games,yes,"]  # fmt: skip
    with pytest.raises(SystemExit):
        cli.main(["taxonomy", "convert", str(old), "--out", str(tmp_path / "old.xyz")])
    assert "--out must end in .json, .csv, .tsv, .ttl, .txt, or give --to" in capsys.readouterr().err

"""`read_taxonomy` reads every form of a taxonomy, and names the line of every mistake."""

import gzip
import importlib.util
import json
import pickle
import re

import pandas as pd
import pytest
from datasets import Dataset
from openpyxl import Workbook

from hcal_hf import (
    DescribedTaxonomy,
    HcalConfig,
    HcalForSequenceClassification,
    Taxonomy,
    build_taxonomy,
    read_taxonomy,
)
from hcal_hf.data.code_rules import ancestors, parse_rule
from hcal_hf.data.taxonomy_check import check_file

PATHS = [["Hardware", "Printer", "Paper jam"], ["Hardware", "Screen"], ["Network", "VPN"]]
TREE = Taxonomy.from_paths([["Hardware"], ["Network"], *PATHS])
needs_rdflib = pytest.mark.skipif(importlib.util.find_spec("rdflib") is None, reason="needs the extra skos")
GOOGLE = """# Google_Product_Taxonomy_Version: 2021-09-21
1 - Animals & Pet Supplies
3237 - Animals & Pet Supplies > Live Animals
2 - Animals & Pet Supplies > Pet Supplies
3 - Animals & Pet Supplies > Pet Supplies > Bird Supplies
166 - Apparel & Accessories
"""
SKOS = """@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
<urn:x:s> a skos:ConceptScheme ; skos:hasTopConcept <urn:x:1> .
<urn:x:1> a skos:Concept ; skos:prefLabel "science"@en, "sciences"@fr ; skos:notation "1" ; skos:narrower <urn:x:2> .
<urn:x:2> a skos:Concept ; skos:prefLabel "physics"@en, "physique"@fr ; skos:notation "1.1" ;
    skos:definition "Matter and energy."@en .
<urn:x:3> a skos:Concept ; skos:prefLabel "logic"@en ; skos:notation "2.1" ; skos:broader <urn:x:1>, <urn:x:4> .
<urn:x:4> a skos:Concept ; skos:prefLabel "philosophy"@en, "philosophie"@fr ; skos:notation "2" ;
    skos:topConceptOf <urn:x:s> .
"""


@pytest.fixture
def read(tmp_path):
    def run(content, name="taxonomy.txt", **kwargs):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_taxonomy(path, **kwargs)

    return run


def shape(taxonomy):
    """The labels with their parents' labels, without an order."""
    return {
        label: {taxonomy.labels[parent] for parent in taxonomy.parents(node).tolist()}
        for node, label in enumerate(taxonomy.labels)
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("paths.txt", "Hardware > Printer > Paper jam\nHardware > Screen\nNetwork > VPN\n"),
        ("tight.txt", "Hardware>Printer>Paper jam\nHardware>Screen\nNetwork>VPN\n"),
        ("arrows.txt", "Hardware -> Printer -> Paper jam\nHardware -> Screen\nNetwork -> VPN\n"),
        ("slashes.txt", "/Hardware/Printer/Paper jam\n/Hardware/Screen\n/Network/VPN\n"),
        ("bars.taxonomy", "Hardware | Printer | Paper jam\nHardware | Screen\nNetwork | VPN\n"),
        ("tabs.txt", "Hardware\n\tPrinter\n\t\tPaper jam\n\tScreen\nNetwork\n\tVPN\n"),
        ("spaces.txt", "Hardware\n  Printer\n      Paper jam\n  Screen\nNetwork\n   VPN\n"),
        ("list.md", "- Hardware\n  - Printer\n    - Paper jam\n  - Screen\n- Network\n  - VPN\n"),
        ("children.taxonomy", "Root\tHardware\tNetwork\nHardware\tPrinter\tScreen\nPrinter\tPaper jam\nNetwork\tVPN\n"),
        ("edges.csv", "parent,child\n,Hardware\nHardware,Printer\nPrinter,Paper jam\nHardware,Screen\nNetwork,VPN\n"),
        ("edges.tsv", "Parent\tChild\nHardware\tPrinter\nPrinter\tPaper jam\nHardware\tScreen\nNetwork\tVPN\n"),
        ("levels.csv", "level 1;level 2;level 3\nHardware;Printer;Paper jam\nHardware;Screen;\nNetwork;VPN;\n"),
        ("unknown.csv", "area,product,problem\nHardware,Printer,Paper jam\nHardware,Screen,\nNetwork,VPN,\n"),
        ("path_column.csv", "path\nHardware > Printer > Paper jam\nHardware > Screen\nNetwork > VPN\n"),
        ("nested.json", '{"Hardware": {"Printer": {"Paper jam": {}}, "Screen": null}, "Network": ["VPN"]}'),
        ("lists.json", '{"Hardware": ["Printer", "Screen"], "Printer": ["Paper jam"], "Network": ["VPN"]}'),
        ("paths.json", json.dumps(PATHS)),
        ("strings.json", json.dumps([" > ".join(path) for path in PATHS])),
        ("rows.json", '[{"parent": "Hardware", "child": "Printer"}, {"parent": "Printer", "child": "Paper jam"}, '
         '{"parent": "Hardware", "child": "Screen"}, {"parent": "Network", "child": "VPN"}]'),
        ("objects.json", '[{"name": "Hardware", "children": [{"name": "Printer", "children": [{"name": "Paper jam"}]}, '
         '"Screen"]}, {"name": "Network", "children": [{"name": "VPN"}]}]'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["as it is", "BOM and CRLF", "gzip", "cp1252"])
def test_each_form_gives_the_same_tree(read, name, content, form):
    if form == "BOM and CRLF":
        content = b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode()
    elif form == "gzip":
        content, name = gzip.compress(content.encode()), name + ".gz"
    elif form == "cp1252":
        content = content.replace("Screen", "Écran").encode("cp1252")
    found = shape(read(content, name))
    expected = shape(TREE)
    if form == "cp1252":
        expected["Écran"] = expected.pop("Screen")
    assert found == expected


def test_objects_are_read(tmp_path):
    rows = [{"parent": None, "child": "Hardware"}, *({"parent": a, "child": b} for a, b in TREE_EDGES)]
    book = Workbook()
    for row in [["parent", "child"], *TREE_EDGES]:
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    for source in (
        {"Hardware": {"Printer": ["Paper jam"], "Screen": []}, "Network": "VPN"},
        PATHS,
        [tuple(path) for path in PATHS],
        [" > ".join(path) for path in PATHS],
        [{"Hardware": [{"Printer": ["Paper jam"]}, "Screen"]}, {"Network": ["VPN"]}],
        pd.DataFrame(rows),
        Dataset.from_list(rows),
        tmp_path / "t.xlsx",
        str(tmp_path / "t.xlsx"),
    ):
        assert shape(read_taxonomy(source)) == shape(TREE), source
    assert read_taxonomy(TREE) is TREE
    assert shape(read_taxonomy([list(edge) for edge in TREE_EDGES], format="edges")) == shape(TREE)


TREE_EDGES = [("Hardware", "Printer"), ("Printer", "Paper jam"), ("Hardware", "Screen"), ("Network", "VPN")]


def test_taxonomy_json_keeps_its_forms(tmp_path):
    TREE.to_json(tmp_path / "t.json")
    assert read_taxonomy(tmp_path / "t.json") == TREE
    (tmp_path / "e.json").write_text('{"edges": [["a", "c"], ["b", "c"]], "roots": ["d"]}', encoding="utf-8")
    assert read_taxonomy(tmp_path / "e.json") == Taxonomy.from_json(tmp_path / "e.json")
    (tmp_path / "p.json").write_text('{"paths": [["a", "c"], ["b", "c"]], "identity": "name"}', encoding="utf-8")
    assert read_taxonomy(tmp_path / "p.json") == Taxonomy.from_json(tmp_path / "p.json")


# ---- Ids, names and descriptions ----


def test_the_id_before_a_path_belongs_to_its_last_node(read):
    taxonomy = read(GOOGLE)
    assert taxonomy == Taxonomy.from_paths(
        [["Animals & Pet Supplies"], ["Apparel & Accessories"], ["Animals & Pet Supplies", "Live Animals"],
         ["Animals & Pet Supplies", "Pet Supplies", "Bird Supplies"]]
    )  # fmt: skip
    assert taxonomy.ids == {
        "Animals & Pet Supplies": "1", "Apparel & Accessories": "166", "Live Animals": "3237", "Pet Supplies": "2",
        "Bird Supplies": "3",
    }  # fmt: skip
    of_ids = read(GOOGLE, label_by="id")
    assert of_ids.labels == ("1", "166", "3237", "2", "3")
    assert of_ids.label_names["3237"] == "Live Animals"
    assert of_ids.texts() == taxonomy.texts()
    shopify = (
        "gid://shopify/TaxonomyCategory/ap   : Animals\ngid://shopify/TaxonomyCategory/ap-1 : Animals > Dogs/Cats\n"
    )
    assert read(shopify).ids["Dogs/Cats"] == "gid://shopify/TaxonomyCategory/ap-1"


def test_a_table_of_ids_gives_names_or_ids(read):
    table = "id,parent_id,name,description\n1,0,Books,All books\n2,0,Toys,\n3,1,Other,\n4,2,Other,Not a puzzle\n"
    taxonomy = read(table, "t.csv", label_by="name")
    assert taxonomy.labels == ("Books", "Toys", "Books > Other", "Toys > Other")
    assert taxonomy.names[3] == "Other"
    assert taxonomy.ids == {"Books": "1", "Toys": "2", "Books > Other": "3", "Toys > Other": "4"}
    assert taxonomy.texts() == ["Books. All books", "Toys", "Books: Other", "Toys: Other. Not a puzzle"]
    of_ids = read(table, "t.csv")
    assert of_ids.labels == ("1", "2", "3", "4")
    assert of_ids.label_names == {"1": "Books", "2": "Toys", "3": "Other", "4": "Other"}
    by_name = "id,parent,name\n1,,Books\n2,Books,Novels\n"
    assert read(by_name, "t.csv", label_by="name").labels == ("Books", "Novels")
    assert read(by_name, "t.csv").label_names == {"1": "Books", "2": "Novels"}
    chosen = read(
        "a,b,c\nBooks,,x\nNovels,Books,y\n", "t.csv", columns={"parent": "b", "child": "a", "description": "c"}
    )
    assert (chosen.labels, chosen.descriptions) == (("Books", "Novels"), {"Books": "x", "Novels": "y"})


def test_ids_are_read_as_numbers_of_a_frame_with_missing_cells():
    frame = pd.DataFrame({"id": [1, 2], "parent_id": [None, 1.0], "name": ["A", "B"]})
    assert read_taxonomy(frame).edges.tolist() == [[0, 1]]


def test_a_described_taxonomy_survives_json_and_pickle(read, tmp_path):
    taxonomy = read(GOOGLE, label_by="id")
    taxonomy.to_json(tmp_path / "t.json")
    for again in (read_taxonomy(tmp_path / "t.json"), pickle.loads(pickle.dumps(taxonomy))):
        assert isinstance(again, DescribedTaxonomy)
        assert again == taxonomy
        assert again.label_names == taxonomy.label_names
    assert Taxonomy.from_json(tmp_path / "t.json") == taxonomy
    with pytest.raises(ValueError, match="ids has 1 keys that are not labels, first 'x'"):
        DescribedTaxonomy(["a"], ids={"x": "1"})


def test_a_model_shows_and_embeds_the_names_of_ids(read, encoder_dir):
    taxonomy = read(GOOGLE, label_by="id")
    config = HcalConfig.from_taxonomy(taxonomy)
    assert config.shown_names[2] == "3237 Live Animals"
    assert HcalConfig.from_taxonomy(taxonomy, label_names={"1": "x"}).label_names[0] == "x"
    model = HcalForSequenceClassification.from_encoder(
        encoder_dir, read(GOOGLE, label_by="id"), prototype_anchor="label_text"
    )
    assert model.config.label_texts[2] == "Animals & Pet Supplies: Live Animals"
    assert HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy).config.label_texts[2] == "Live Animals"


# ---- Codes ----


def test_dotted_codes_are_below_their_prefix(read):
    taxonomy = read("E11\tType 2 diabetes\nE11.9\tWithout complications\nI10\tHypertension\n")
    assert (taxonomy.labels, taxonomy.edges.tolist()) == (("E11", "I10", "E11.9"), [[0, 2]])
    assert taxonomy.label_names["E11.9"] == "Without complications"
    names = read("E11 Type 2 diabetes\nE11.9 Without complications\nI10 Hypertension\n", label_by="name")
    assert (names.labels, names.ids["Hypertension"]) == (
        ("Type 2 diabetes", "Hypertension", "Without complications"),
        "I10",
    )
    table = read("code,description\nE11,Type 2 diabetes\nE11.9,Without complications\nI10,Hypertension\n", "t.csv")
    assert table == taxonomy


def test_parents_that_are_not_listed_are_added_and_reported(read, caplog):
    taxonomy = read("Body Regions;A01\nAbdomen;A01.923.047\n", "mtrees.bin")
    assert taxonomy.edges.tolist() == [[0, 1]]  # below the nearest code that is listed
    assert not [record for record in caplog.records if "added" in record.message]
    taxonomy = read("Abdomen;A01.923.047\nGroin;A01.923.047.365\n", "mtrees.bin")
    assert taxonomy.labels == ("A01", "A01.923", "A01.923.047", "A01.923.047.365")
    assert "2 parent code(s) are not listed and are added, first 'A01' above 'A01.923.047'" in caplog.text


@pytest.mark.parametrize(
    ("rule", "code", "expected"),
    [
        (".", "C04.557.337", ["C04", "C04.557"]),
        ([2, 4, 6], "010121", ["01", "0101"]),
        ([2, 4, 6], "01", []),
        ("2,4,5", "01.11", ["01", "01.1"]),
        (r"([A-Z])(\d\d)(\.\d)?(\d)?", "E11.65", ["E", "E11", "E11.6"]),
        ("-", "a-1-2", ["a", "a-1"]),
    ],
)
def test_a_rule_gives_the_ancestors_of_a_code(rule, code, expected):
    assert ancestors(code, parse_rule(rule) if isinstance(rule, str) else rule) == expected


def test_a_rule_is_given_to_the_reader(read, caplog):
    codes = "01 Crops\n0111 Rice\n011101 White rice\n"
    assert read(codes, code_rule=[2, 4, 6]).edges.tolist() == [[0, 1], [1, 2]]
    assert read(codes, code_rule=re.compile(r"(\d\d)(\d\d)?(\d\d)?")).edges.tolist() == [[0, 1], [1, 2]]
    assert read(codes, code_rule=re.compile(r"(\d\d)\d\d")).edges.tolist() == [[0, 2]]
    assert "2 code(s) do not match the code rule and are roots: '01', '011101'" in caplog.text
    with pytest.raises(ValueError, match="has no groups"):
        read(codes, code_rule=re.compile(r"\d\d"))
    with pytest.raises(ValueError, match=r"must be at least 1 and increase, as in \[2, 4, 6\]; got \[4, 2\]"):
        read(codes, code_rule=[4, 2])
    with pytest.raises(ValueError, match=r"line 2: the code 'E11' is described as 'b', but in line 1 as 'a'"):
        read("E11\ta\nE11\tb\n", format="codes")


# ---- SKOS ----


@needs_rdflib
def test_skos_gives_a_dag_with_labels_of_a_language(read, caplog):
    taxonomy = read(SKOS, "t.ttl", label_by="name")
    assert shape(taxonomy) == {
        "science": set(), "philosophy": set(), "physics": {"science"}, "logic": {"science", "philosophy"}
    }  # fmt: skip
    assert taxonomy.ids["logic"] == "2.1"
    assert taxonomy.descriptions == {"physics": "Matter and energy."}
    assert "labels in the language 'en' are read. There are en (4), fr (3)" in caplog.text
    assert "1 label(s) have several parents ('logic'): a DAG" in caplog.text
    french = read(SKOS, "t.ttl", language="fr", label_by="name")
    assert set(french.labels) == {"sciences", "physique", "philosophie", "logic"}
    assert "1 concept(s) have no skos:prefLabel in the language 'fr'" in caplog.text
    of_ids = read(SKOS, "t.ttl")  # all concepts have different notations
    assert of_ids.label_names["1.1"] == "physics"
    assert shape(of_ids) == {"1": set(), "2": set(), "1.1": {"1"}, "2.1": {"1", "2"}}
    with pytest.raises(ValueError, match=r"no skos:prefLabel in the language 'de'. There are en \(4\), fr \(3\)"):
        read(SKOS, "t.ttl", language="de")


@needs_rdflib
@pytest.mark.parametrize(("form", "name"), [("xml", "t.rdf"), ("json-ld", "t.jsonld"), ("json-ld", "t.json"),
                                            ("nt", "t.nt"), ("xml", "t.unknown"), ("turtle", "t.txt")])  # fmt: skip
def test_skos_is_read_in_each_format_of_rdf(read, form, name):
    from rdflib import Graph

    graph = Graph().parse(data=SKOS, format="turtle")
    expected = shape(read(SKOS, "expected.ttl"))
    assert shape(read(graph.serialize(format=form), name)) == expected
    assert shape(read_taxonomy(graph)) == expected


@needs_rdflib
def test_mistakes_in_skos_are_reported(read):
    with pytest.raises(ValueError, match="cannot be read as SKOS in the format turtle"):
        read("<a", "t.ttl")
    with pytest.raises(ValueError, match="has no concepts of SKOS"):
        read("<urn:a> <urn:b> <urn:c> .", "t.ttl")
    cycle = SKOS + "<urn:x:1> skos:broader <urn:x:2> ."
    with pytest.raises(ValueError, match=r"has a cycle: .*'physics' -> 'science'"):
        read(cycle, "t.ttl")
    with pytest.raises(ValueError, match="is its own skos:broader concept"):
        read(SKOS + "<urn:x:1> skos:broader <urn:x:1> .", "t.ttl")


def test_skos_without_rdflib_names_the_extra(read, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rdflib", None)
    with pytest.raises(ImportError, match=r'pip install "hcal-hf\[skos\]"'):
        read(SKOS, "t.ttl")


# ---- Shapes ----


@pytest.mark.parametrize("form", ["indented", "paths", "children", "edges", "nested"])
def test_3000_levels_are_read(read, form):
    names = [f"n{i}" for i in range(3000)]
    if form == "indented":
        taxonomy = read("".join("\t" * i + name + "\n" for i, name in enumerate(names)))
    elif form == "paths":
        taxonomy = read(" > ".join(names))
    elif form == "children":
        taxonomy = read("".join(f"{a}\t{b}\n" for a, b in zip(names, names[1:])))
    elif form == "edges":
        taxonomy = read("parent,child\n" + "".join(f"{a},{b}\n" for a, b in zip(names, names[1:])), "t.csv")
    else:
        nested = {}
        for name in reversed(names):
            nested = {name: nested}
        taxonomy = read_taxonomy(nested)
    assert (len(taxonomy.levels), taxonomy.labels) == (3000, tuple(names))


def test_json_that_is_nested_too_deeply_is_refused(read):
    with pytest.raises(ValueError, match="nested deeper than the JSON reader"):
        read('{"a":' * 200_000 + "{}" + "}" * 200_000, "t.json")


def test_equal_names_below_different_parents_stay_apart(read):
    for content in ("Books > Other\nToys > Other\n", "Books\n\tOther\nToys\n\tOther\n"):
        assert read(content).labels == ("Books", "Toys", "Books > Other", "Toys > Other")
        merged = read(content, identity="name")
        assert shape(merged) == {"Books": set(), "Toys": set(), "Other": {"Books", "Toys"}}


def test_repeated_lines_count_once_and_are_logged(read, caplog):
    for content in ("A > B\nC\nA > B\n", "A\n\tB\nC\nA\n", "A\tB\nC\tD\nA\tB\n"):
        assert "A" in read(content, f"{hash(content)}.txt").labels
        assert "1 line(s) repeat an earlier one and count once, first line" in caplog.text
        caplog.clear()


def test_the_virtual_root_is_no_label(read):
    content = "Root\tA\tB\nA\tC\n"
    assert read(content).labels == ("A", "B", "C")
    assert read(content, root="").labels == ("Root", "A", "B", "C")
    assert read("Top\tA\tB\nA\tC\n", root="Top").labels == ("A", "B", "C")
    assert read_taxonomy({"Root": ["A", "B"], "A": ["C"]}).labels == ("A", "B", "C")
    assert read("parent,child\nRoot,A\nA,B\n", "t.csv").labels == ("Root", "A", "B")
    assert read("parent,child\nRoot,A\nA,B\n", "t.csv", root="Root").labels == ("A", "B")


def test_the_format_is_logged(read, caplog):
    read("A > B\n", "log.txt")
    assert "log.txt is read as one path per line with the separator ' > ': Taxonomy(forest, 2 labels" in caplog.text


# ---- Mistakes ----


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"is empty"),
        ("\n \n", r"is empty"),
        ("# only a comment\n", r"is empty"),
        ("Foo\nBar\n", r"no hierarchy that can be detected.*separator=.*format=\"paths\" if all lines are roots"),
        ("A > B\nC > > D\n", r"line 2: the path \['C', '', 'D'\] has an empty step"),
        ("A\n    B\n  C\n", r"line 3: 'C' is indented by '  '"),
        ("  A\nB\n", r"line 2: 'B' is indented by ''"),
        ("A\n\tB\n        C\n", r"line 3: 'C' is indented by '        '"),
        ("A\tB\nB\tC\nC\tA\n", r"has a cycle: .*'A' -> 'B' in line 1; 'B' -> 'C' in line 2; 'C' -> 'A' in line 3"),
        ("A\tB\nB\tB\n", r"line 2: 'B' is its own parent"),
        ("A\tB\nB\t\tC\n", r"line 2: a name between two separators is empty"),
        ("A\tRoot\n", r"line 1: 'Root' is the virtual root and cannot be a child"),
        ("A > B\nC / D / E\nF > G / H\n", r"can be read in several ways: lines contain '>' and"),
        ("A/B\nC|D\nE/F\nG|H\n", r"can be read in several ways: lines contain '/' and '|'"),
        ("A\nB\nC\nD/E\n", r"only 1 of 4 lines contain '/'.*separator='/'"),
        ("1 - A > B\n1 - A > C\n", r"line 2: the id '1' belongs to two labels, 'B' \(line 1\) and 'C'"),
        ("1 - A > B\n2 - A > B\n", r"line 2: 'B' has the id '2', but line 1 gives it '1'"),
    ],
)
def test_mistakes_in_text_are_reported_with_their_line(read, content, message):
    if "C / D" in content:
        content = "A / B\n" * 4 + content
        message = "can be read in several ways"
    with pytest.raises(ValueError, match=message):
        read(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("parent,child\n", r"has no rows"),
        ("parent,child\nA,B\nA,\n", r"row 3: the cell of 'child' is empty"),
        ("parent,child\nA,B\n,B\n", r"row 3: 'B' has a parent in one row and none in another \(row 2\)"),
        ("parent,child\nA,B\nB,A\n", r"has a cycle.*in row"),
        ("parent,child\nA,A\n", r"row 2: 'A' is its own parent"),
        (
            "x,y\nA,B\nB,C\n",
            r"several ways: labels of column 'x' occur in 'y' too. Give columns=\{'parent': 'x', 'child': 'y'\}",
        ),
        ("A,B\nA,C\nD,E\n", r"seems to have no header: its first line contains 'A'"),
        ("text,area,product\na,B,C\n", r"seems to be a table of documents"),
        ("level1,level2,level3\nA,,C\n", r"row 2: column 'level2' is empty, but the deeper 'level3' is not"),
        ("id,parent_id,name\n1,,A\n1,,B\n", r"row 3: '1' is named 'B', but 'A' in an earlier row"),
        ("a\nx\ny\n", r"has no hierarchy that can be detected|has one column"),
        ("parent,child\nA,B,C\n", r"row 2: the row has 3 cells.*format=\"parent-children\""),
    ],
)
def test_mistakes_in_tables_are_reported_with_their_row(read, content, message):
    with pytest.raises(ValueError, match=message):
        read(content, "t.csv")


@pytest.mark.parametrize(
    ("source", "kwargs", "message"),
    [
        ([("A", "B"), ("B", "C")], {}, r"list of pairs that can be read in several ways: 'B' is at both places"),
        ({"A": {"B": 3}}, {}, r"the value of 'B' must be a dictionary"),
        ({"A": {"": {}}}, {}, r"a name below 'A' must be a text"),
        ({}, {}, r"has no hierarchy|has no labels"),
        ([], {}, r"is empty"),
        ([3], {}, r"cannot be read as a taxonomy"),
        (3, {}, r"cannot be read as a taxonomy"),
        (["A > B"], {"format": "yaml"}, r"format must be one of None, 'json', 'paths'"),
        (["A > B"], {"label_by": "both"}, r"label_by must be one of"),
        (["A > B"], {"label_by": "id"}, r"'A' has no id. Use label_by=\"name\""),
        ([["A", "x > y"]], {}, r"contains ' > ', which separates the steps"),
    ],
)
def test_mistakes_in_objects_and_arguments_are_reported(source, kwargs, message):
    with pytest.raises(ValueError, match=message):
        read_taxonomy(source, **kwargs)


def test_names_of_a_table_of_ids_must_differ_to_be_labels(read):
    table = "id,parent_id,name\n1,,A\n2,1,B\n3,1,B\n"
    assert read(table, "t.csv").labels == ("1", "2", "3")
    with pytest.raises(ValueError, match=r"row 4: 'A > B' is also the label of row 3 \(ids '2' and '3'\)"):
        read(table, "t.csv", label_by="name")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_taxonomy(tmp_path / "no.txt")


# ---- Other readers ----


def test_build_taxonomy_and_check_read_the_same_files(tmp_path):
    path = tmp_path / "google.txt"
    path.write_text(GOOGLE, encoding="utf-8")
    assert build_taxonomy(path) == read_taxonomy(path)
    report = check_file(path)
    assert report.taxonomy == read_taxonomy(path)
    assert [problem.kind for problem in report.problems] == ["single-child"]
    nested = tmp_path / "t.json"
    nested.write_text('{"A": {"Printer": [], "printer": []}}', encoding="utf-8")
    assert [problem.kind for problem in check_file(nested).problems] == ["similar"]
    table = tmp_path / "documents.csv"
    table.write_text("text,labels\na,Bird Supplies\nb,Fish\n", encoding="utf-8")
    found = check_file(table, taxonomy=path, min_documents=1).problems
    assert any(problem.kind == "unknown-label" for problem in found)

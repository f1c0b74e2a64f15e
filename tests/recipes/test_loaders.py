"""The loaders of recipes/loaders, with a few synthetic documents in the format of each data set."""

import gzip
import importlib
import io
import json
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hcal_hf import Taxonomy
from hcal_hf.commands.run_arguments import DataArguments
from hcal_hf.commands.run_data import encode_splits, load_data

LOADERS = Path(__file__).parents[2] / "recipes" / "loaders"
NAMES = ("wos", "bgc", "rcv1", "nyt", "aapd", "eurlex57k")


@pytest.fixture(scope="module", autouse=True)
def modules():
    """Imports the scripts. They import each other as top-level modules, so their folder must be in sys.path."""
    sys.path.insert(0, str(LOADERS))
    yield {name: importlib.import_module(name) for name in (*NAMES, "shared")}
    sys.path.remove(str(LOADERS))
    for name in (*NAMES, "shared"):
        del sys.modules[name]


def rows(folder, split):
    with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def labels(folder, split):
    return [row["labels"] for row in rows(folder, split)]


def check_usable(folder, tokenizer, label_mode, partial_paths):
    """Checks that the runner reads the files of a loader and encodes every row to its labels."""
    arguments = DataArguments(data_dir=str(folder), taxonomy=str(folder / "taxonomy.json"))
    raw = load_data(arguments)
    taxonomy = Taxonomy.from_json(arguments.taxonomy)
    encoded = encode_splits(raw, taxonomy, tokenizer, arguments, label_mode, partial_paths)
    assert set(encoded) == {"train", "validation", "test"}
    for split in encoded:
        assert len(encoded[split]) == len(raw[split]) > 0
        for nodes, row in zip(encoded[split]["labels"], raw[split]):
            assert taxonomy.decode(nodes) == row["labels"]
            assert nodes == taxonomy.complete(nodes).tolist()
    return taxonomy


# ---- WOS ----

WOS_HEADER = "Y1\tY2\tY\tDomain\tarea\tkeywords\tAbstract"


def wos_line(code, domain, area, text="an abstract"):
    return f"{code[0]}\t{code[1]}\t0\t{domain}\t{area}\tkey; words\t{text}"


@pytest.fixture
def wos_dir(tmp_path, modules, monkeypatch):
    lines = [WOS_HEADER]
    lines += [wos_line((0, 1), "CS ", f" Computer vision{' ' * (i % 2)}", f"vision {i}") for i in range(12)]
    lines += [wos_line((5, 10), "Medical ", " Depression", f'"low, ""{i}"" mood"') for i in range(8)]
    lines += [wos_line((6, 3), "Psychology ", " Depression", f"mood {i}") for i in range(8)]
    lines += [wos_line((4, 4), "Civil ", " Underwater Windmill", "before")]  # no earlier document has this code
    lines += [wos_line((4, 4), "Civil ", " Water Pollution", f"water {i}") for i in range(10)]
    lines += [wos_line((4, 4), "Civil ", " Underwater Windmill", "after"), wos_line((0, 1), "CS ", " Vision", " ")]
    (tmp_path / "Meta-data").mkdir()
    (tmp_path / "Meta-data" / "Data.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(modules["wos"], "DOCUMENTS", len(lines) - 1)
    monkeypatch.setattr(modules["wos"], "PUBLISHED", {"train": 25, "validation": 7, "test": 9})
    return tmp_path


def test_wos_is_converted(wos_dir, tmp_path, modules, tokenizer, capsys):
    modules["wos"].main(
        modules["wos"].load, None, [str(wos_dir), str(tmp_path / "out")], {"encoding": {"default": "utf-8"}}
    )
    out = tmp_path / "out"
    taxonomy = check_usable(out, tokenizer, "single_path", False)
    assert sorted(taxonomy.labels) == sorted(
        ["CS", "Civil", "Medical", "Psychology", "Computer vision", "Water Pollution", "Underwater Windmill",
         "Medical > Depression", "Psychology > Depression"]
    )  # fmt: skip
    written = [row for split in ("train", "validation", "test") for row in rows(out, split)]
    by_text = {row["text"]: row["labels"] for row in written}
    assert by_text['low, "3" mood'] == [["Medical", "Depression"]]
    assert by_text["mood 3"] == [["Psychology", "Depression"]]
    # As in HiAGM, an area is corrected to that of earlier documents with the same code only.
    assert by_text["before"] == [["Civil", "Underwater Windmill"]]
    assert by_text["after"] == [["Civil", "Water Pollution"]]
    printed = capsys.readouterr().out
    assert "1 dropped (no text)" in printed
    assert "documents whose area is that of a more frequent one with its code: 2" in printed
    assert printed.count("warning") == 1  # for the split with the document without text


def test_wos_is_split_as_published(modules):
    """The sizes are those of the papers, and the split equals a loop over scikit-learn's permutations."""
    wos = modules["wos"]
    assert Counter(wos.split_of(46_985)) == Counter(wos.PUBLISHED)
    state = np.random.RandomState(7)
    order = list(range(103))
    state.shuffle(order)

    def cut(items, share):
        drawn = np.random.RandomState(0).permutation(len(items))
        held_out = -(-len(items) * share // 10)
        return [items[i] for i in drawn[held_out:]], [items[i] for i in drawn[:held_out]]

    rest, test = cut(order, 2)
    train, validation = cut(rest, 2)
    expected = {
        **dict.fromkeys(train, "train"),
        **dict.fromkeys(validation, "validation"),
        **dict.fromkeys(test, "test"),
    }
    assert wos.split_of(103) == [expected[row] for row in range(103)]


def test_wos_errors_name_the_line(wos_dir, tmp_path, modules, monkeypatch):
    path = wos_dir / "Meta-data" / "Data.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([*lines[:4], "a\tb", *lines[5:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"Data\.txt, line 5: 7 cells between tabs are needed, got 2"):
        modules["wos"].load(wos_dir, tmp_path / "out")
    path.write_text("\n".join(["a\tb", *lines[1:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: the header must be \['y1', .* got \['a', 'b'\]"):
        modules["wos"].load(wos_dir, tmp_path / "out")
    path.write_text("\n".join(lines[:9]), encoding="utf-8")
    with pytest.raises(ValueError, match="has 8 documents; the published split is of 41"):
        modules["wos"].load(wos_dir, tmp_path / "out")
    path.write_bytes("\n".join(lines[:3]).encode() + b"\nna\xefve")
    with pytest.raises(ValueError, match=r"Data\.txt, line \d+: 'utf-8' codec .*save the file as UTF-8"):
        modules["wos"].load(wos_dir, tmp_path / "out", "utf-8")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no Meta-data/Data\.txt or Data\.txt \(the documents"):
        modules["wos"].load(wos_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- BGC ----


def book(body, *genres, title="A & B"):
    topics = "".join(f"<d{level}>{name}</d{level}>" for level, name in genres)
    return (
        f'<book date="2018-08-18" xml:lang="en">\n<title>{title}</title>\n<body>{body}</body>\n'
        "<copyright>(c) Penguin Random House</copyright>\n<metadata>\n<author>N. N.</author>\n"
        f"<topics>{topics}</topics>\n<isbn>9780804115827</isbn>\n</metadata>\n</book>\n"
    )


@pytest.fixture
def bgc_dir(tmp_path):
    (tmp_path / "hierarchy.txt").write_text(
        "Fiction\tMystery & Suspense\nMystery & Suspense\tCozy Mysteries\nNonfiction\tHistory\nPoetry\n"
        "History\tMilitary History\nMilitary History\tWorld War II Military History\nNonfiction\n",
        encoding="utf-8",
    )
    deep = [(0, "Nonfiction"), (1, "History"), (2, "Military History"), (3, "World War II Military History")]
    train = book("Cats & <i>crimes</i>,\n2 < 3.", (0, "Fiction"), (1, "Mystery & Suspense"), (2, "Cozy Mysteries"))
    train += book("Wars\u2019 end", *deep, (0, "Fiction"), (1, "Mystery &amp; Suspense")) + book(
        "Lines", (0, "Poetry")
    )
    dev = book("Only a leaf", (1, "Cozy Mysteries"), title="") + book("Nothing") + book(" ", (0, "Poetry"))
    for name, content in {"train": train, "dev": dev, "test": book("Songs", (0, "Poetry"))}.items():
        (tmp_path / f"BlurbGenreCollection_EN_{name}.txt").write_text(content, encoding="utf-8")
    return tmp_path


def test_bgc_is_converted(bgc_dir, tmp_path, modules, tokenizer, capsys):
    out = tmp_path / "out"
    modules["bgc"].load(bgc_dir, out)
    taxonomy = check_usable(out, tokenizer, "multi_path", True)
    assert [level.stop - level.start for level in taxonomy.levels] == [3, 2, 2, 1]
    assert [row["text"] for row in rows(out, "train")] == ["Cats & crimes, 2 < 3.", "Wars\u2019 end", "Lines"]
    deep = ["Nonfiction", "History", "Military History", "World War II Military History"]
    assert labels(out, "train")[0] == [["Fiction", "Mystery & Suspense", "Cozy Mysteries"]]
    assert sorted(labels(out, "train")[1]) == [["Fiction", "Mystery & Suspense"], deep]
    assert labels(out, "validation") == [[["Fiction", "Mystery & Suspense", "Cozy Mysteries"]]]
    printed = capsys.readouterr().out
    assert "validation: 1 documents; 1 dropped (no label); 1 dropped (no text)" in printed
    assert "warning: 58,715 were published; results on 3 are not comparable" in printed
    assert "labels added as ancestors of others: 2" in printed
    assert "genres on another level than in hierarchy.txt, which counts: 1" in printed


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (book("a", (0, "Ficton")), r"line 1: Unknown label 'Ficton'.*Fiction.*not in hierarchy\.txt"),
        (book("a", (0, "Fiction"))[:-8] + book("b"), r"line 10: <book> within the book of line 1"),
        (book("a", (0, "Fiction")) + "<book>\n<body>b", r"line 11: <book> is not closed before the end"),
        (book("a", (0, "Fiction")).replace("</topics>", ""), r"line 10: <topics> of the book of line 1 is not closed"),
        ("<book><topics><d0>Fiction</d0></topics></book>", r"line 1: a book needs one <body>, this has 0"),
    ],
)
def test_bgc_errors_name_the_line(bgc_dir, tmp_path, modules, content, problem):
    (bgc_dir / "BlurbGenreCollection_EN_train.txt").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        modules["bgc"].load(bgc_dir, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# ---- RCV1-v2 ----

RCV1_HIERARCHY = """\
parent: None                       child: Root      child-description: Root
parent: Root                       child: CCAT      child-description: CORPORATE/INDUSTRIAL
parent: CCAT                       child: C15       child-description: PERFORMANCE
parent: C15                        child: C151      child-description: ACCOUNTS/EARNINGS
parent: Root                       child: GCAT      child-description: GOVERNMENT/SOCIAL
parent: GCAT                       child: G15       child-description: PERFORMANCE
parent: C15                        child: GX        child-description: TWO PARENTS
parent: GCAT                       child: GX        child-description: TWO PARENTS
"""


def story(number, *paragraphs, headline="Head &amp; line"):
    body = "".join(f"<p>{paragraph}</p>\n" for paragraph in paragraphs)
    return (
        f'<?xml version="1.0" encoding="iso-8859-1" ?>\n<newsitem itemid="{number}" id="root" xml:lang="en">\n'
        f"<title>USA: {headline}</title>\n<headline>{headline}</headline>\n<text>\n{body}</text>\n<metadata/>\n"
        "</newsitem>\n"
    ).encode("iso-8859-1")


@pytest.fixture
def rcv1_dir(tmp_path):
    (tmp_path / "rcv1.topics.hier.orig").write_text(RCV1_HIERARCHY, encoding="utf-8")
    topics = {
        **{number: ["CCAT", "C15", "C151"] for number in range(2286, 2296)},
        26150: ["C15"],
        26151: ["GCAT", "G15"],
    }
    topics |= {26152: ["CCAT"], 26153: ["GX"], 26154: ["GCAT"], 26155: ["GCAT"]}
    lines = [f"{code} {number} 1" for number, codes in topics.items() for code in codes]
    with gzip.open(tmp_path / "rcv1-v2.topics.qrels.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(reversed(lines)) + "\n")
    folder = tmp_path / "rcv1" / "19960820"
    folder.mkdir(parents=True)
    for number in range(2286, 2296):
        (folder / f"{number}newsML.xml").write_bytes(story(number, "caf\xe9", f"story {number}"))
    (folder / "1newsML.xml").write_bytes(b"of RCV1, but not of RCV1-v2")
    with zipfile.ZipFile(tmp_path / "19970101.zip", "w") as zipped:
        zipped.writestr("26150newsML.xml", story(26150, "last of training"))
        zipped.writestr("19970101/26151newsML.xml", story(26151, "first of the test"))
        zipped.writestr("2286newsML.xml", story(2286, "again"))
        zipped.writestr("26154newsML.xml", story(26154, headline=""))
    with tarfile.open(tmp_path / "rest.tar.xz", "w:xz") as tarred:
        for number in (26152, 26153):
            content = story(number, "in a tar file")
            entry = tarfile.TarInfo(f"rcv1/{number}newsML.xml")
            entry.size = len(content)
            tarred.addfile(entry, io.BytesIO(content))
    return tmp_path


def test_rcv1_is_converted(rcv1_dir, tmp_path, modules, tokenizer, capsys):
    out = tmp_path / "out"
    modules["rcv1"].load(rcv1_dir, out)
    taxonomy = check_usable(out, tokenizer, "multi_path", True)
    assert set(taxonomy.labels) == {"CORPORATE/INDUSTRIAL", "PERFORMANCE (C15)", "ACCOUNTS/EARNINGS", "GOVERNMENT/SOCIAL",
                                    "PERFORMANCE (G15)", "TWO PARENTS"}  # fmt: skip
    assert json.loads((out / "taxonomy.json").read_text(encoding="utf-8"))["codes"]["PERFORMANCE (G15)"] == "G15"
    test = {row["text"]: row["labels"] for row in rows(out, "test")}
    assert test["Head & line\nfirst of the test"] == [["GOVERNMENT/SOCIAL", "PERFORMANCE (G15)"]]
    training = rows(out, "train") + rows(out, "validation")
    assert (len(training), len(rows(out, "validation")), len(test)) == (11, 2, 2)
    texts = [row["text"] for row in training]
    assert "Head & line\ncafé\nstory 2287" in texts
    assert "Head & line\nagain" in texts  # story 2286, first found in the zip file
    assert len(set(texts)) == len(texts)
    # A topic with two parents has one path through each.
    of_dag = [sorted(row["labels"]) for row in rows(out, "test") if len(row["labels"]) == 2]
    through = [["CORPORATE/INDUSTRIAL", "PERFORMANCE (C15)", "TWO PARENTS"], ["GOVERNMENT/SOCIAL", "TWO PARENTS"]]
    assert of_dag == [through]
    printed = capsys.readouterr().out
    assert "test: 3 documents; 1 dropped (no file); 1 dropped (no text)" in printed
    assert "stories found more than once, taken once: 1" in printed


def test_rcv1_is_split_as_published(modules):
    ids = list(range(26150 - 23148, 26151)) + list(range(26151, 26151 + 781_265))
    assert Counter(modules["rcv1"].split_of(ids).values()) == Counter(modules["rcv1"].PUBLISHED)


def test_rcv1_errors_name_the_line(rcv1_dir, tmp_path, modules):
    load, hierarchy = modules["rcv1"].load, rcv1_dir / "rcv1.topics.hier.orig"
    (rcv1_dir / "19970101.zip").unlink()
    (rcv1_dir / "19960820newsML.xml").touch()
    broken = rcv1_dir / "rcv1" / "19960820" / "2290newsML.xml"
    broken.write_bytes(b"<newsitem>\n<text>")
    with pytest.raises(ValueError, match=r"2290newsML\.xml, line 2: no XML"):
        load(rcv1_dir, tmp_path / "out")
    topics = rcv1_dir / "rcv1-v2.topics.qrels"  # preferred to the file with .gz
    topics.write_text("CCAT 2286 1\nC16 2287 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"qrels, line 2: topic 'C16' is not in the hierarchy"):
        load(rcv1_dir, tmp_path / "out")
    topics.write_text("CCAT 2286\n", encoding="utf-8")
    with pytest.raises(ValueError, match='qrels, line 1: "<topic> <story id> 1" is needed'):
        load(rcv1_dir, tmp_path / "out")
    topics.write_text("CCAT 2286 1\nCCAT 2287 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="2 of 2 stories have ids up to 26150"):
        load(rcv1_dir, tmp_path / "out")
    hierarchy.write_text("Root CCAT\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r'hier\.orig, line 1: "parent: \.\.\.'):
        load(rcv1_dir, tmp_path / "out")
    hierarchy.write_text("parent: X child: CCAT child-description: A\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'X' is a parent, but no line has it as a child"):
        load(rcv1_dir, tmp_path / "out")
    hierarchy.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no rcv1\.topics\.hier\.orig or .*appendix 2"):
        load(rcv1_dir, tmp_path / "out")


# ---- NYT ----

NYT_LABELS = ["Root", "Top/Features", "Top/News", "Top/News/Sports", "Top/News/Sports/Hockey", "Top/Features/Travel",
              "Top/Features/Travel/Guides", "Top/News/Sports/Columns", "Top/News/Business",
              "Top/News/Business/Columns"]  # fmt: skip


def article(text, *classifiers, kind="full_text"):
    found = "".join(
        f'<classifier class="online_producer" type="taxonomic_classifier">{c}</classifier>' for c in classifiers
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE nitf SYSTEM "http://www.nitf.org/nitf-3-3.dtd">\n<nitf>\n'
        f'<head><docdata><identified-content><classifier type="descriptor">Hockey</classifier>{found}</identified-content>'
        "</docdata></head>\n<body><body.head><abstract><p>An abstract</p></abstract></body.head><body.content>\n"
        f'<block class="lead_paragraph"><p>LEAD</p></block>\n<block class="{kind}">{text}</block>\n'
        "</body.content></body></nitf>"
    ).encode()


@pytest.fixture
def nyt_dir(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "nyt_label.vocab").write_text("\n".join(NYT_LABELS) + "\n", encoding="utf-8")
    for name, ids in {"train": ("2001/0000001", "2001/0000002", "1999/0000005"), "val": ("1987/0000003",),
                      "test": ("2006/0000004", "2006/0000009")}.items():  # fmt: skip
        (lists / f"idnewnyt_{name}.json").write_text(
            "".join(f"Nytimes/{path}.xml\n" for path in ids), encoding="utf-8"
        )
    data = tmp_path / "corpus" / "data"
    (data / "2001").mkdir(parents=True)
    with tarfile.open(data / "2001" / "01.tgz", "w:gz") as tarred:
        for name, content in {
            "0000001": article(
                "<p>Goal</p> <p>after <b>goal</b></p>", "Top/News/Sports/Hockey/NHL", "Top/News", "Top/Opinion/X"
            ),
            "0000002": article("<p>Both</p>", "Top/Features/Travel/Guides/Nowhere", "Top/News/Sports"),
            "0000077": b"not on a list",
        }.items():
            entry = tarfile.TarInfo(f"01/02/{name}.xml")
            entry.size = len(content)
            tarred.addfile(entry, io.BytesIO(content))
    for place, content in {
        "1987/01/01/0000003.xml": article("<p>Short</p>", "Top/News/Business/Columns", kind="other"),
        "Nytimes/2006/0000004.xml": article("<p>Last</p>", "Top/News/Sports/Columns"),
        "1999/0000005.xml": article("<p>Two steps</p>", "Top/News"),
    }.items():
        path = data / place
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return tmp_path


def test_nyt_is_converted(nyt_dir, tmp_path, modules, tokenizer, capsys):
    out = tmp_path / "out"
    modules["nyt"].main(
        modules["nyt"].load,
        None,
        [str(nyt_dir / "corpus"), str(out), "--lists", str(nyt_dir / "lists")],
        {"lists": {"type": Path}},
    )
    taxonomy = check_usable(out, tokenizer, "multi_path", True)
    assert taxonomy.num_labels == len(NYT_LABELS) - 1
    assert {"Sports > Columns", "Business > Columns"} <= {" > ".join(taxonomy.paths(node)[0][1:]) for node in range(9)}
    train = {row["text"]: sorted(row["labels"]) for row in rows(out, "train")}
    assert train == {
        "Goal\nafter goal": [["News", "Sports", "Hockey"]],
        "Both": [["Features", "Travel", "Guides"], ["News", "Sports"]],
    }
    assert rows(out, "validation") == [
        {"text": "An abstract\nLEAD\nShort", "labels": [["News", "Business", "Columns"]]}
    ]
    assert labels(out, "test") == [[["News", "Sports", "Columns"]]]
    printed = capsys.readouterr().out
    assert "train: 2 documents; 1 dropped (no label)" in printed
    assert "test: 1 documents; 1 dropped (no file)" in printed


def test_nyt_errors_name_the_line(nyt_dir, tmp_path, modules):
    load, lists = modules["nyt"].load, nyt_dir / "lists"
    with pytest.raises(FileNotFoundError, match=r"corpus has no nyt_label\.vocab \(the labels, from HiAGM"):
        load(nyt_dir / "corpus", tmp_path / "out")
    (lists / "idnewnyt_val.json").write_text("\nNytimes/2001/0000001.xml\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"val\.json, line 2: 0000001\.xml is listed twice, first for train"):
        load(nyt_dir / "corpus", tmp_path / "out", lists)
    (lists / "idnewnyt_val.json").write_text("0000001\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"val\.json, line 1: \"Nytimes/<year>/<id>\.xml\" is needed, got '0000001'"):
        load(nyt_dir / "corpus", tmp_path / "out", lists)
    (lists / "nyt_label.vocab").write_text("Root\nTop/News/Sports\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab, line 2: the parent of 'Top/News/Sports' is not in the list"):
        load(nyt_dir / "corpus", tmp_path / "out", lists)
    (lists / "nyt_label.vocab").write_text("News\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab, line 1: \"Top/<label>/<label>\" is needed, got 'News'"):
        load(nyt_dir / "corpus", tmp_path / "out", lists)


# ---- AAPD ----


@pytest.fixture
def aapd_dir(tmp_path):
    documents = {
        "train": [
            ("we study codes", "cs.it math.it"),
            ("spins", "cond-mat.stat-mech quant-ph"),
            ("words", "cmp-lg cs.cl"),
        ],
        "val": [("new plants", "cs.ai")],
        "test": [("old energy", "quant-ph"), ("", "cs.it"), ("none", "")],
    }
    for name, found in documents.items():
        (tmp_path / f"text_{name}").write_text("".join(f"{text}\n" for text, _ in found), encoding="utf-8")
        (tmp_path / f"label_{name}").write_text("".join(f"{label}\n" for _, label in found), encoding="utf-8")
    return tmp_path


def test_aapd_is_converted(aapd_dir, tmp_path, modules, tokenizer, capsys):
    out = tmp_path / "out"
    modules["aapd"].load(aapd_dir, out)
    taxonomy = check_usable(out, tokenizer, "multi_path", False)
    assert taxonomy.labels[: taxonomy.levels[0].stop] == ("cmp-lg", "cond-mat", "cs", "math", "quant-ph")
    assert labels(out, "train")[0] == [["cs", "cs.it"], ["math", "math.it"]]
    assert labels(out, "train")[1] == [["quant-ph"], ["cond-mat", "cond-mat.stat-mech"]]
    assert labels(out, "test") == [[["quant-ph"]]]
    assert "test: 1 documents; 1 dropped (no label); 1 dropped (no text)" in capsys.readouterr().out


def test_aapd_errors_name_the_line(aapd_dir, tmp_path, modules):
    (aapd_dir / "label_val").write_text("cs.ai\ncs.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"label_val has more lines than .*text_val, 1"):
        modules["aapd"].load(aapd_dir, tmp_path / "out")
    (aapd_dir / "label_val").write_text("cs.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"label_val, line 1: a subject needs words around its dot, got 'cs\.'"):
        modules["aapd"].load(aapd_dir, tmp_path / "out")
    (aapd_dir / "label_val").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text_val has more lines than .*label_val, 0"):
        modules["aapd"].load(aapd_dir, tmp_path / "out")


# ---- EURLEX57K ----


@pytest.fixture
def eurlex_dir(tmp_path):
    entries = {
        "1": ("agriculture", []),
        "2": ("health", []),
        "3": ("animal disease", ["1", "2", "2"]),
        "4": ("swine fever", ["3"]),
        "5": ("trade", ["9999"]),
        "6": ("trade", ["2"]),
        "7": ("never used", ["1"]),
    }
    descriptors = {
        key: {"label": title, "alt_labels": [], "parents": above} for key, (title, above) in entries.items()
    }
    (tmp_path / "EURLEX57K.json").write_text(json.dumps(descriptors), encoding="utf-8")
    laws = {"train": [["4", "5"], ["6", "8888"], ["8888"]], "dev": [["1"]], "test": [["3"], []]}
    for folder, found in laws.items():
        (tmp_path / folder).mkdir()
        for number, concepts in enumerate(found):
            law = {"celex_id": f"3{number}", "uri": "u", "type": "Decision", "concepts": concepts, "title": "A law",
                   "header": "HEADER ", "recitals": f",\nHaving regard {number}",
                   "main_body": ["Article 1", "Article 2"], "attachments": "Done at Brussels"}  # fmt: skip
            (tmp_path / folder / f"3{number}.json").write_text(json.dumps(law), encoding="utf-8")
    return tmp_path


def test_eurlex57k_is_converted(eurlex_dir, tmp_path, modules, tokenizer, capsys):
    out = tmp_path / "out"
    modules["eurlex57k"].load(eurlex_dir, out)
    taxonomy = check_usable(out, tokenizer, "multi_path", True)
    assert set(taxonomy.labels) == {"agriculture", "health", "animal disease", "swine fever", "trade (5)", "trade (6)"}
    assert sorted(labels(out, "train")[0]) == [
        ["agriculture", "animal disease", "swine fever"],
        ["health", "animal disease", "swine fever"],
        ["trade (5)"],
    ]
    assert labels(out, "train")[1:] == [[["health", "trade (6)"]]]
    assert rows(out, "validation")[0]["text"] == "HEADER\n,\nHaving regard 0\nArticle 1\nArticle 2"
    assert json.loads((out / "taxonomy.json").read_text(encoding="utf-8"))["codes"]["trade (5)"] == "5"
    printed = capsys.readouterr().out
    assert "train: 2 documents; 1 dropped (no label)" in printed
    assert "concepts of laws without a descriptor, left out: 2" in printed
    assert "parents without a descriptor, left out: 1" in printed
    assert "1 of them occur in no document, left out" in printed


def test_eurlex57k_errors_name_the_file(eurlex_dir, tmp_path, modules):
    load, law = modules["eurlex57k"].load, eurlex_dir / "dev" / "30.json"
    law.write_text('{"concepts":\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"30\.json, line 2: no JSON"):
        load(eurlex_dir, tmp_path / "out")
    law.write_text('{"concepts": [], "header": ""}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"30\.json has no 'recitals', only \['concepts', 'header'\]"):
        load(eurlex_dir, tmp_path / "out")
    law.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"30\.json must hold an object, got list"):
        load(eurlex_dir, tmp_path / "out")
    law.unlink()
    with pytest.raises(FileNotFoundError, match=r"dev has no \.json files"):
        load(eurlex_dir, tmp_path / "out")
    (eurlex_dir / "EURLEX57K.json").write_text('{"1": {"label": "a"}}', encoding="utf-8")
    with pytest.raises(ValueError, match='concept \'1\' needs "label" and "parents"'):
        load(eurlex_dir, tmp_path / "out")


# ---- All loaders ----


def test_a_failed_run_leaves_no_files_and_keeps_earlier_ones(aapd_dir, tmp_path, modules):
    out = tmp_path / "out"
    modules["aapd"].load(aapd_dir, out)
    first = (out / "train.jsonl.gz").read_bytes()
    (aapd_dir / "text_test").write_text("\n\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"No document for test \(dropped: \{'no text': 3\}\): nothing is written"):
        modules["aapd"].load(aapd_dir, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "taxonomy.json",
        "test.jsonl.gz",
        "train.jsonl.gz",
        "validation.jsonl.gz",
    ]
    assert (out / "train.jsonl.gz").read_bytes() == first
    (out / "test.csv").touch()
    with pytest.raises(ValueError, match=r"already has test\.csv: give a folder of its own"):
        modules["aapd"].load(aapd_dir, out)


def test_converting_the_same_data_gives_identical_files(aapd_dir, tmp_path, modules, monkeypatch):
    for name, now in {"one": 1.0, "two": 2e9}.items():
        monkeypatch.setattr("time.time", lambda now=now: now)
        modules["aapd"].load(aapd_dir, tmp_path / name)
    for split in ("train", "validation", "test"):
        one, two = ((tmp_path / name / f"{split}.jsonl.gz").read_bytes() for name in ("one", "two"))
        assert one == two


def test_the_command_line_prints_only_the_error_message(tmp_path, modules):
    with pytest.raises(SystemExit, match=r"error: .*nowhere is no folder"):
        modules["shared"].main(modules["aapd"].load, None, [str(tmp_path / "nowhere"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"error: .* has no text_train \(abstracts"):
        modules["shared"].main(modules["aapd"].load, None, [str(tmp_path), str(tmp_path / "out")])

"""The page of a report: its numbers, its safety against markup, and its size."""

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from hcal_hf import Taxonomy, write_report
from hcal_hf.report import figures, page
from hcal_hf.report.label_scores import LabelScores, tree_parents
from hcal_hf.report.predictions import LabelPairs, Predictions
from hcal_hf.report.summary import SplitRows, summarize
from tests.report.builders import collect, facts_of

EVIL = "<script>alert('x')</script>"
EVIL_TAXONOMY = [["top", EVIL], ["top", "]]><!--</script><img src=x onerror=alert(1)>"], ["{{ 7 * 7 }}", "a & b \" '"]]


class Page(HTMLParser):
    """Reads a page: its tags with attributes, the content of its scripts, and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.tables = [], [], "", 0
        self._in = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("td", "th", "dt", "dd", "li", "caption", "summary"):
            self.text += " "
        if tag in ("script", "style"):
            self._in = tag
            if tag == "script":
                self.scripts.append([dict(attributes), ""])

    def handle_endtag(self, tag):
        self._in = None if tag == self._in else self._in

    def handle_data(self, text):
        if self._in == "script":
            self.scripts[-1][1] += text
        elif self._in is None:
            self.text += text

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self):
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))


@pytest.fixture
def without_plotly(monkeypatch):
    monkeypatch.setattr(page, "plotly_script", lambda: None)


def written(path, taxonomy, texts=None, mode="multi_path", documents=60, **changes):
    predictions, _, _ = collect(taxonomy, documents=documents, mode=mode, noise=2.0)
    facts = facts_of(taxonomy, predictions, mode, **changes)
    write_report(path, facts, predictions, texts=texts)
    return facts, predictions, Page(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("mode", ["multi_path", "single_path"])
def test_a_report_has_the_numbers_of_the_run(taxonomy, tmp_path, mode, without_plotly):
    train = np.arange(taxonomy.num_labels)
    rows = [SplitRows("train", 1234, 5, [f"row {i}: the text is empty" for i in range(25)]), SplitRows("test", 60)]
    facts, predictions, read = written(
        tmp_path / "new" / "report.html", taxonomy, mode=mode, train_documents=train, rows=rows,
        notes=["Regime: frozen, because of the time."], tuning=[("temperature", "1", "1.37")],
        texts=lambda rows: [f"text number {row}" for row in rows],
    )  # fmt: skip
    text = " ".join(read.text.replace("\xa0", " ").split())
    for name in ("micro_f1", "macro_f1", "hierarchical_f1", "exact_match", "hvr"):
        assert f"{100 * facts.metrics[name]:.1f} %" in text
    for k in range(3):
        assert f"{100 * facts.metrics[f'accuracy_level_{k}']:.1f}" in text
    error = "6.25" if mode == "single_path" else "12.50"
    assert f"The expected calibration error is {error} %" in text
    assert "25.0 % before it" in text
    assert "Regime: frozen, because of the time." in text
    assert "1.37" in text
    assert "1,234" in text
    assert "row 19: the text" in text
    assert "row 20: the text" not in text
    assert "and 5 more." in text
    summary = summarize(facts, predictions, taxonomy, lambda rows: [f"text number {row}" for row in rows])
    assert summary.confusions
    for pair in summary.confusions:
        assert f"{pair.documents} of {pair.of}" in text
        assert all(example in text for example in pair.texts)
    assert read.data["tree"] == page.tree_data(summary)
    assert [row.train_documents for row in summary.rarest] == sorted(row.train_documents for row in summary.rarest)
    assert [row.f1 for row in summary.worst] == sorted(row.f1 for row in summary.worst)
    assert all(row.documents >= 3 for row in summary.worst)
    assert not list((tmp_path / "new").glob(".*"))


def test_a_report_is_a_well_formed_page_for_all_readers(taxonomy, tmp_path, without_plotly):
    _, _, read = written(tmp_path / "report.html", taxonomy)
    assert read.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in read.all("meta")
    headings = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(headings, headings[1:]))
    assert len(read.all("table")) == len(read.all("caption")) >= 7
    ids = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    links = [attributes["href"] for attributes in read.all("a")]
    assert {link.removeprefix("#") for link in links} <= ids
    regions = [attributes for _, attributes in read.tags if attributes.get("class") == "scroll"]
    assert regions
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)


def test_a_report_needs_no_other_file_and_runs_no_script_but_its_own(taxonomy, tmp_path):
    pytest.importorskip("plotly")
    path = tmp_path / "report.html"
    _, _, read = written(path, taxonomy)
    assert not [tag for tag, attributes in read.tags if "src" in attributes or tag in ("link", "iframe", "object")]
    policy = next(a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    allowed = re.findall(r"'(sha256-[^']+)'", policy)
    # A browser hashes the text between the tags, with line ends as \n.
    raw = path.read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", raw, re.DOTALL)
    found = ["sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert found == allowed
    assert len(found) == 2
    assert set(read.data["figures"]) == {"levels", "tree", "calibration", "coverage"}
    assert path.stat().st_size < 6_000_000


def test_without_plotly_a_report_has_tables_and_says_how_to_get_plots(taxonomy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert figures.plotly_script() is None
    _, _, read = written(tmp_path / "report.html", taxonomy)
    assert 'Plots need plotly: pip install "hcal-hf[report]"' in read.text
    assert read.data["figures"] == {}
    assert not [a for _, a in read.tags if a.get("class") == "figure"]
    assert (tmp_path / "report.html").stat().st_size < 100_000


@pytest.mark.parametrize("plots", [True, False])
def test_markup_in_labels_texts_and_names_is_shown_and_not_run(tmp_path, monkeypatch, plots):
    if plots:
        pytest.importorskip("plotly")
    else:
        monkeypatch.setattr(page, "plotly_script", lambda: None)
    taxonomy = Taxonomy.from_paths(EVIL_TAXONOMY)
    _, _, read = written(
        tmp_path / "report.html", taxonomy, lambda rows: [f"{EVIL} </script> {row} {{{{ 7 * 7 }}}}" for row in rows],
        title=EVIL, model=EVIL, data=EVIL, notes=[EVIL], tuning=[(EVIL, EVIL, EVIL)],
        rows=[SplitRows(EVIL, 3, 0, [EVIL])], settings=[("setting", EVIL)], mode="single_path",
    )  # fmt: skip
    assert len(read.scripts) == (3 if plots else 2)
    assert not read.all("img")
    assert not [a for _, a in read.tags if any(name.startswith("on") for name in a)]
    assert {EVIL, "]]><!--</script><img src=x onerror=alert(1)>", "{{ 7 * 7 }}"} <= set(read.data["tree"]["names"])
    assert f"{EVIL} </script>" in read.text
    assert "{{ 7 * 7 }}" in read.text
    assert read.text.count("alert('x')") > 10
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert "<img" not in raw.split("</style>")[1].split("<script")[0]


def test_texts_are_left_out_shortened_and_freed_of_invisible_characters(taxonomy, tmp_path, without_plotly):
    _, _, read = written(
        tmp_path / "a.html", taxonomy, lambda rows: ["secret\u202e word\ud800 " + "x" * 5000] * len(rows)
    )
    assert "secret word\\ud800 " in read.text
    assert "x" * 280 in read.text
    assert "x" * 300 not in read.text
    assert "contains texts and labels" in read.text
    _, _, read = written(tmp_path / "b.html", taxonomy)
    assert "secret" not in read.text
    assert "Example texts are left out" in read.text
    assert "share it accordingly" not in read.text


def big_taxonomy(labels=47_188, length=90):
    """A made-up tree of the size and depth of ICD-10-CM, with long names."""
    rng = np.random.default_rng(0)
    sizes = [22, 285, 1918, 10096, 14578, 20109, 180]
    names, edges, above = [], [], np.zeros(0, dtype=int)
    for size in sizes:
        first = len(names)
        names += [f"{first + i:05d} " + ("wörter " * (length // 7)).strip() for i in range(size)]
        if len(above):
            edges += list(zip(rng.choice(above, size).tolist(), range(first, first + size)))
        above = np.arange(first, first + size)
    assert len(names) == labels
    return Taxonomy(names, edges)


def test_a_report_of_47188_labels_stays_below_8_megabytes(tmp_path):
    pytest.importorskip("plotly")
    taxonomy = big_taxonomy()
    rng = np.random.default_rng(1)

    def pairs(nodes):
        owners, labels = taxonomy.complete_rows(np.arange(len(nodes)), nodes)
        return LabelPairs(owners, labels, len(nodes), taxonomy.num_labels)

    # Every label occurs, and a third of the documents is predicted elsewhere.
    true = np.concatenate([np.arange(taxonomy.num_labels)] * 2)
    predicted = np.where(rng.random(len(true)) < 0.3, rng.integers(taxonomy.num_labels, size=len(true)), true)
    sets = pairs(predicted)
    found = Predictions(sets, pairs(true), rng.random(len(sets.labels)), rng.random((3, 10)) + 1)
    path = tmp_path / "report.html"
    write_report(path, facts_of(taxonomy, found), found, taxonomy, lambda rows: ["ж" * 4000] * len(rows))
    assert path.stat().st_size < 8_000_000
    tree = Page(path.read_text(encoding="utf-8")).data["tree"]
    assert 10_000 < len(tree["names"]) < taxonomy.num_labels
    assert all(parent < node for node, parent in enumerate(tree["parents"]))
    assert f"only the {len(tree['names']):,} most frequent labels" in path.read_text(encoding="utf-8")


def test_the_tree_has_the_predicted_labels_and_all_ancestors(taxonomy):
    counts = {name: np.zeros(taxonomy.num_labels, dtype=int) for name in ("documents", "predicted", "hits", "ends")}
    predicted = taxonomy.index("opera")
    counts["predicted"][predicted] = 2
    true = taxonomy.complete([taxonomy.index("poetry")])
    counts["documents"][true] = 1

    class Facts:
        labels = LabelScores(tree_parents(taxonomy), **counts)
        names = list(taxonomy.names)

    tree = page.tree_data(Facts)
    assert tree["names"] == ["arts", "writing", "poetry", "stage", "opera"]
    assert tree["parents"] == [-1, 0, 1, 0, 3]
    assert page.tree_data(Facts, limit=75)["names"] == ["arts"]

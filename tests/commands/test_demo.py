"""The demo page: the label tree, the settings, and the exported Space."""

import builtins
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import BertConfig, pipeline

from hcal_hf import Taxonomy
from hcal_hf.commands.demo.page import build_page, export_space, launch
from hcal_hf.commands.demo.reader import Reader, Thresholds, decisions
from hcal_hf.commands.demo.tree import MAX_ANSWERS, answer_html, number, shown_labels, tree_html
from hcal_hf.decoding import METHODS
from tests.builders import build_model, build_tokenizer, random_dag, random_forest

TEXT = "stars and atoms with energy"
EVIL = "<img src=x onerror=alert(1)>"


def make_pipe(taxonomy, **config):
    model = build_model(taxonomy, **config)
    with torch.no_grad():
        torch.nn.init.normal_(model.prototypes.weight)
    return pipeline("hierarchical-text-classification", model=model, tokenizer=build_tokenizer(), device="cpu")


class Tree(HTMLParser):
    """Parses HTML lists into [(row, [children])], where a row is a dictionary. Records all tags and checks nesting."""

    VOID = {"img", "br", "input"}

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.items, self.text = [], [], [], ""
        self.stack, self.row, self.part = [self.items], None, None
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert not [name for name in attributes if name.startswith("on")], attributes
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        kind = attributes.get("class", "")
        if tag == "ul" and self.stack[-1] and self.stack[-1][-1][0]["node"] is not None:
            self.stack.append(self.stack[-1][-1][1])
        elif tag == "ul":
            self.stack.append(self.stack[-1])
        if tag == "details":
            self.details = "open" in attributes
        if "hcal-row" in kind:
            self.row = {"node": int(attributes["data-label"]), "predicted": "hcal-predicted" in kind, "text": ""}
            self.row["open"] = self.details if tag == "summary" else None
            self.stack[-1].append((self.row, []))
        if "hcal-rest" in kind:
            self.row = {"node": None, "text": ""}
            self.stack[-1].append((self.row, []))
        if tag == "i":
            self.row["tick"] = attributes["style"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "ul":
            self.stack.pop()
        if tag == "li":
            self.row = None

    def handle_data(self, data):
        self.text += data
        if self.row is not None:
            self.row["text"] += data

    def walk(self, items=None, above=()):
        """Yields (row, ancestor nodes) for all rows, from the top down."""
        for row, below in self.items if items is None else items:
            yield row, above
            yield from self.walk(below, (*above, row["node"]))


def random_case(seed, build):
    rng = np.random.default_rng(seed)
    taxonomy = build(rng, int(rng.integers(2, 40)))
    p = torch.from_numpy(rng.random(taxonomy.num_labels)).float()
    return rng, taxonomy, p, torch.from_numpy(rng.random(taxonomy.num_labels) < 0.2)


# ---- The tree ----


@pytest.mark.parametrize("build", [random_forest, random_dag])
@pytest.mark.parametrize("seed", range(5))
def test_the_tree_shows_predicted_labels_then_probable_ones_with_all_ancestors(build, seed):
    rng, taxonomy, p, predicted = random_case(seed, build)
    limit = int(rng.integers(1, taxonomy.num_labels + 1))
    shown = shown_labels(p, predicted, taxonomy, limit)
    assert shown.sum() == limit
    assert set(taxonomy.complete(np.flatnonzero(shown))) == set(np.flatnonzero(shown))
    rank = (p + predicted).tolist()
    best = [
        max(rank[other] for other in range(len(rank)) if node in taxonomy.complete([other]))
        for node in range(len(rank))
    ]
    assert sorted(best, reverse=True)[:limit] == pytest.approx(
        sorted((best[i] for i in np.flatnonzero(shown)), reverse=True)
    )


@pytest.mark.parametrize("build", [random_forest, random_dag])
@pytest.mark.parametrize("seed", range(5))
def test_the_full_tree_equals_the_taxonomy_sorted_by_probability(build, seed):
    _, taxonomy, p, predicted = random_case(seed, build)
    tree = Tree(tree_html(p, predicted, taxonomy, taxonomy.num_labels))
    places, branches = set(), {}
    for row, above in tree.walk():
        node = row["node"]
        places.add((above[-1] if above else None, node))
        assert row["predicted"] == bool(predicted[node]) == ("✓predicted: " in row["text"])
        assert taxonomy.names[node] in row["text"]
        assert row["text"].endswith(number(p[node].item()))
    expected = {(parent, child) for parent, child in taxonomy.edges.tolist()}
    assert places == expected | {
        (None, node) for node in range(taxonomy.num_labels) if not len(taxonomy.parents(node))
    }

    def check(items):
        values = [p[row["node"]].item() for row, _ in items]
        assert values == sorted(values, reverse=True)
        for row, below in items:
            if below:
                branches[row["node"]] = branches.get(row["node"], 0) + 1
                inside = [row for row, _ in tree.walk(below)]
                likely = any(predicted[i] or p[i] >= 0.2 for i in [row["node"], *(r["node"] for r in inside)])
                assert row["open"] == bool(likely)
                check(below)
            else:
                assert row["open"] is None

    check(tree.items)
    assert branches == dict.fromkeys(np.unique(taxonomy.edges[:, 0]).tolist(), 1)


def test_hidden_labels_are_counted_at_their_place_in_the_tree(taxonomy):
    p = torch.tensor([0.9, 0.1, 0.7, 0.2, 0.06, 0.04, 0.6, 0.1, 0.15, 0.05, 0.03, 0.02, 0.01])
    assert taxonomy.labels[:6] == ("science", "arts", "physics", "biology", "writing", "stage")
    predicted = torch.zeros(13, dtype=torch.bool)
    predicted[[0, 2, 6]] = True
    html = tree_html(p, predicted, taxonomy, 5)
    rows = [(row["node"], above, row["text"]) for row, above in Tree(html).walk()]
    assert [(node, above) for node, above, _ in rows] == [
        (0, ()),
        (2, (0,)),
        (6, (0, 2)),
        (None, (0, 2)),
        (3, (0,)),
        (8, (0, 3)),
        (None, (0, 3)),
        (None, ()),
    ]
    assert [text for node, _, text in rows if node is None] == [
        "1 more, at most 0.100",
        "1 more, at most 0.050",
        "1 more, at most 0.100",
    ]
    assert "5 of 13 labels are shown" in html
    assert "labels are shown" not in tree_html(p, predicted, taxonomy, 13)


def test_a_label_of_a_dag_appears_below_each_parent_and_its_children_once(dag):
    p = torch.full((dag.num_labels,), 0.5)
    html = tree_html(p, p > 1, dag, 100)
    x = dag.index("x")
    places = [(above, row) for row, above in Tree(html).walk() if row["node"] == x]
    assert [dag.labels[above[-1]] for above, _ in places] == ["a", "b"]
    assert "(its labels: see below a)" in places[1][1]["text"]
    assert "see below" not in places[0][1]["text"]


def test_html_in_names_and_texts_is_escaped():
    names = [EVIL, '"><script>alert(1)</script>', "a & b's `${7*7}` {{8*8}}"]
    taxonomy = Taxonomy.from_edges([(names[0], names[1]), (names[0], names[2])])
    reader = Reader(make_pipe(taxonomy, label_mode="multi_path"))
    html = reader.html(reader.read(f"stars {EVIL} </p><script>"), "closure", 0.0, 30)
    page = Tree(html)
    assert set(page.tags) <= {"div", "p", "ul", "li", "span", "details", "summary", "i"}
    for text in (*names, f"stars {EVIL} </p><script>"):
        assert text in page.text
    nothing = reader.html(reader.read("stars"), "closure", 1.0, 30)
    assert "No label reaches its threshold" in nothing
    assert "img" not in Tree(nothing).tags


def test_the_tree_of_a_large_taxonomy_has_a_limited_size():
    taxonomy = Taxonomy.from_edges([(f"root {i % 100}", f"leaf {i}") for i in range(20_000)])
    p = torch.from_numpy(np.random.default_rng(0).random(taxonomy.num_labels))
    everything = torch.ones_like(p, dtype=torch.bool)
    tree = Tree(tree_html(p, everything, taxonomy, 200))
    rows = [row for row, _ in tree.walk()]
    assert sum(row["node"] is not None for row in rows) == 200
    shown = {row["node"] for row in rows} - {None}
    hidden = [child for parent, child in taxonomy.edges.tolist() if parent in shown and child not in shown]
    counts = [int(re.match("[0-9,]+", row["text"])[0].replace(",", "")) for row in rows if row["node"] is None]
    assert sum(counts) == len(hidden) + sum(root not in shown for root in range(100))
    assert counts[-1] == sum(root not in shown for root in range(100)) > 0
    words = answer_html(p, everything, taxonomy)
    assert words.count("<li>") == MAX_ANSWERS
    assert f"and {20_000 - MAX_ANSWERS:,} more" in words


@pytest.mark.slow
def test_predictions_are_listed_as_whole_paths(taxonomy, dag):
    p = torch.linspace(0.9, 0.1, 13)

    def answer(tree, labels):
        predicted = torch.zeros(tree.num_labels, dtype=torch.bool)
        predicted[tree.encode(labels)] = True
        return answer_html(p[: tree.num_labels], predicted, tree)

    found = re.findall(
        "<li><span>(.*?)</span><span>(.*?)</span>",
        answer(taxonomy, [["arts", "stage", "opera"], ["science", "physics"]]),
    )
    physics, opera = (number(p[taxonomy.index(name)].item()) for name in ("physics", "opera"))
    assert found == [("science &gt; physics", physics), ("arts &gt; stage &gt; opera", opera)]
    assert answer(taxonomy, []) == ""
    assert "c &gt; z (and 2 other paths to it)" in answer(dag, "z")


def test_probabilities_are_rounded_to_0_or_1_only_if_exact():
    assert [number(p) for p in (0.0, 1e-9, 0.0005, 0.4996, 0.9994, 0.99999, 1.0)] == [
        "0.000",
        "&lt;0.001",
        "0.001",
        "0.500",
        "0.999",
        "&gt;0.999",
        "1.000",
    ]


# ---- Decisions and thresholds ----


def test_the_slider_scales_one_or_many_thresholds():
    assert Thresholds(None, 0.5).start == 0.5
    assert Thresholds(None, 0.0).at(0.3) == 0.3
    one = Thresholds(0.4567, 0.5)
    assert (one.start, one.at(0.46), one.at(0.2)) == (0.46, 0.4567, 0.2)
    given = [0.0, 0.2, 0.2, 0.6, 0.9, 1.0]
    many = Thresholds(given, 0.5)
    assert many.start == 0.4
    assert many.at(0.4) == given
    for position in (0.01, 0.3, 0.41, 0.99):
        moved = np.array(many.at(position))
        assert moved[0] == 0
        assert moved[-1] == 1
        assert (np.diff(moved) >= 0).all()
        odds = lambda p: p / (1 - p)  # noqa: E731
        np.testing.assert_allclose(
            odds(moved[1:-1]) / odds(np.array(given[1:-1])), odds(position) / odds(0.4), rtol=1e-9
        )
    assert (many.at(0.0), many.at(1.0)) == (0.0, 1.0)
    rare = Thresholds([0.001, 0.002, 0.003], 0.5)
    assert rare.start == 0.01
    assert rare.at(0.01) == [0.001, 0.002, 0.003]
    same = Thresholds([0.3, 0.3], 0.5)
    assert (same.is_one, same.start, same.at(0.3), same.at(0.9)) == (True, 0.3, [0.3, 0.3], 0.9)


MODELS = [
    {"label_mode": "single_path"},
    {"label_mode": "single_path", "partial_paths": True, "head": "path_softmax"},
    {"label_mode": "single_path", "head": "independent"},
    {"label_mode": "multi_path"},
    {"label_mode": "multi_path", "head": "independent", "risk_alpha": 0.1, "risk_threshold": 0.4},
]


@pytest.mark.parametrize("config", MODELS)
@pytest.mark.parametrize("tuned", [False, True])
def test_decoders_of_the_page_match_the_pipeline_and_the_others_are_redundant(taxonomy, config, tuned):
    thresholds = (0.2 + 0.1 * taxonomy.depths + 0.01 * np.arange(13)).tolist() if tuned else None
    pipe = make_pipe(taxonomy, thresholds=thresholds, **config)
    reader = Reader(pipe)
    offered = [method for _, method in decisions(pipe.model.config)]
    assert offered[0] == reader.start_method
    assert ("risk" in offered) == ("risk_alpha" in config)
    for text in (TEXT, "poems in novels of drama", "a new study"):
        reading = reader.read(text)
        names = lambda mask: [taxonomy.labels[i] for i in mask.nonzero()[:, 0].tolist()]  # noqa: E731
        sets = {}
        for method in METHODS:
            if method not in offered and (
                method == "risk" or (method == "path" and config["label_mode"] == "multi_path")
            ):
                continue
            sets[method] = [item["label"] for item in pipe(text, decode=method)]
            assert names(reader.decide(reading.logits, method, reader.thresholds.start)) == sets[method]
        assert sets[reader.start_method] == [item["label"] for item in pipe(text)]
        for method, found in sets.items():
            if method not in offered:
                assert any(found == sets[other] for other in offered), method
        if not tuned:
            for position in (0.0, 0.35, 0.9):
                expected = [item["label"] for item in pipe(text, threshold=position)]
                assert names(reader.decide(reading.logits, offered[0], position)) == expected


def test_the_page_starts_with_the_decoder_and_threshold_of_the_pipeline(taxonomy):
    model = make_pipe(taxonomy, label_mode="multi_path", thresholds=[0.9] * 13).model

    def reader(**own):
        task = "hierarchical-text-classification"
        return Reader(pipeline(task, model=model, tokenizer=build_tokenizer(), device="cpu", **own))

    assert (reader().start_method, reader().thresholds.start) == ("closure", 0.9)
    assert reader(decode="expected_f1").start_method == "expected_f1"
    assert reader(threshold=0.25).thresholds.start == 0.25


# ---- Messages ----


def test_empty_and_truncated_texts_and_empty_predictions_have_messages(taxonomy):
    pipe = make_pipe(taxonomy, label_mode="multi_path", risk_alpha=0.05, risk_threshold=2.0)
    reader = Reader(pipe)
    for text in ("", " \n\t "):
        assert "The text is empty" in reader.html(reader.read(text), "closure", 0.5, 30)
    short, long = reader.read("stars " * 16), reader.read("stars " * 5000)
    assert "was cut" not in reader.html(short, "closure", 0.5, 30)
    cut = reader.html(long, "closure", 0.5, 30)
    assert "The text was cut: the model read the first 16 of 5,000 tokens." in cut
    assert torch.equal(short.logits, long.logits)
    assert len(cut) < len(reader.html(short, "closure", 0.5, 30)) + 1000
    none = reader.html(short, "closure", 1.0, 30)
    best = taxonomy.labels[int(short.logits.argmax())]
    assert f"No label reaches its threshold. The most probable one is {best}" in none
    assert "hcal-predicted" not in none
    assert "No label is probable enough for a risk of at most 5 %" in reader.html(short, "risk", 0.5, 30)


def test_a_text_without_tokens_has_a_message(taxonomy):
    pipe = make_pipe(taxonomy)
    pipe.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    reader = Reader(pipe)
    reading = reader.read("~~")
    assert "The text has no tokens for this model." in reader.html(reading, "path", 0.0, 30)
    assert reader.read("~stars").logits is not None


def test_predictions_that_contradict_the_hierarchy_have_a_message():
    taxonomy = Taxonomy.from_edges([("a", "a1"), ("b", "b1")])
    reader = Reader(make_pipe(taxonomy, head="independent"))
    logits = torch.tensor([[2.0, -2.0, -2.0, 2.0]])
    reading = reader.read(TEXT)
    html = reader.html(type(reading)(TEXT, 1, logits, 3, 3), "raw", 0.0, 30)
    assert "These labels contradict the hierarchy" in html
    assert "contradict" not in reader.html(type(reading)(TEXT, 1, logits, 3, 3), "path", 0.0, 30)


# ---- The page ----


def functions(page):
    return {function.name: function.fn for function in page.fns.values()}


@pytest.mark.slow
def test_the_encoder_runs_only_once_per_text(taxonomy):
    pytest.importorskip("gradio")
    pipe = make_pipe(taxonomy, label_mode="multi_path")
    calls = []
    pipe.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    page = functions(build_page(pipe, examples=["poems"]))
    reading, html = page["classify"](TEXT, None, "closure", 0.5, 30)
    assert len(calls) == 1
    seen = {html}
    for method, threshold, limit in (("closure", 0.3, 30), ("closure", 0.9, 30), ("closure", 0.5, 5)):
        seen.add(page["redecide"](reading, method, threshold, limit))
    slider, html = page["change_decision"](reading, "expected_f1", 0.5, 30)
    assert slider["interactive"] is False
    assert "Not used" in slider["info"]
    assert page["change_decision"](reading, "closure", 0.5, 30)[0]["interactive"] is True
    assert len(seen | {html}) == 5
    again, _ = page["classify"](TEXT, reading, "closure", 0.5, 30)
    assert again is reading
    assert len(calls) == 1
    assert page["classify"]("poems", reading, "closure", 0.5, 30)[0] is not reading
    assert len(calls) == 2


@pytest.mark.slow
def test_changing_settings_before_a_text_is_classified_does_nothing(taxonomy):
    gradio = pytest.importorskip("gradio")
    page = functions(build_page(make_pipe(taxonomy)))
    assert page["redecide"](None, "path", 0.5, 30) == gradio.skip()
    assert page["change_decision"](None, "path", 0.5, 30)[1] == gradio.skip()


def controls_with_examples(taxonomy):
    blocks = build_page(make_pipe(taxonomy), examples=["first text", "second text"]).blocks.values()
    return {block.elem_id: block for block in blocks if (block.elem_id or "").startswith("hcal-")}


@pytest.mark.slow
def test_the_controls_depend_on_the_model(taxonomy):
    pytest.importorskip("gradio")

    def controls(pipe):
        blocks = build_page(pipe).blocks.values()
        return {block.elem_id: block for block in blocks if (block.elem_id or "").startswith("hcal-")}

    few = controls(make_pipe(Taxonomy.from_edges([("a", "b")])))
    assert few["hcal-limit"].visible is False
    tuned = [0.2] * 6 + [0.6] * 7
    many = controls(make_pipe(taxonomy, label_mode="multi_path", thresholds=tuned, risk_alpha=0.1, risk_threshold=0.5))
    assert many["hcal-limit"].maximum == many["hcal-limit"].value == 13
    assert many["hcal-threshold"].value == 0.6
    assert "from 0.20 to 0.60" in many["hcal-threshold"].info
    assert [name for name, _ in many["hcal-decision"].choices] == [
        "all labels above the threshold",
        "fewest wrong and missing labels",
        "only reliable labels (at most 10 % wrong)",
    ]
    assert many["hcal-text"].value == taxonomy.names[-1]  # a text to start with
    assert controls_with_examples(taxonomy)["hcal-text"].value == "first text"


def test_without_gradio_the_error_says_what_to_install(taxonomy, monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gradio":
            raise ImportError("No module named 'gradio'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: build_page("x"), lambda: launch("x"), lambda: export_space("x", tmp_path)):
        with pytest.raises(ImportError, match=re.escape('pip install "hcal-hf[demo]"')):
            call()


@pytest.mark.slow
def test_other_models_are_refused(taxonomy, tmp_path):
    pytest.importorskip("gradio")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"holds a model of type 'bert'; the page shows HCAL models"):
        build_page(str(tmp_path / "bert"))
    with pytest.raises(ValueError, match=r"'a/b/c' is neither a folder nor a name on the Hub \(owner/model\)"):
        export_space("a/b/c", tmp_path / "space")
    with pytest.raises(TypeError, match=r"model must be a folder, .* got HcalForSequenceClassification"):
        build_page(build_model(taxonomy))
    with pytest.raises(TypeError, match="examples must be a list of texts, got 'stars'"):
        build_page(make_pipe(taxonomy), examples="stars")
    assert not (tmp_path / "space").exists()

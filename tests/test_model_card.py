"""Model cards: their content, the escaping of names, and when cards are written, updated and kept."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import BertConfig

import hcal_hf.card_file as card_file
from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy
from hcal_hf.card_file import is_generated, save_minimal_card, write_card
from hcal_hf.card_markdown import block, cell, code, isolated, prose, readable, table, tree_lines
from hcal_hf.model_card import Details, Evaluation, Facts, build_card, encoder_id
from tests.builders import build_model
from tests.commands.test_train import config_file, data_dir  # noqa: F401

ROOT = Path(__file__).parent.parent
NASTY = [
    "a|b", r"a\|b", "\\", "`", "``` x", "`a``b`", "<img src=x onerror=alert(1)>", "<!-- open", "-->", "</code>",
    "[x](javascript:alert(1))", "![x](http://evil.example/y.png)", "http://evil.example", "www.evil.example",
    "evil.com", "1. evil.com",
    "me@evil.example", "---", "***", "# heading", "> quote", "- item", "1. item", "a\n---\nb", "a\r\n\r\n| x | y |",
    "{{ 7*7 }}", "{% for x in range(9) %}", "{# no #}", "key: value", "@x", "%TAG", "&amp;", "*x*", "__x__", "~~x~~",
    "!!python/object:os.system", "'", '"', "$x$", "word" * 100, "\u05e9\u05dc\u05d5\u05dd", "a\u202eb", "a\u2066b",
    "zero\u200bwidth", "bell\x07", "line\u2028end", "nel\x85x", "\ud800", "\U000e0041", "\U0001f600", "汉字",
    "## Training", "| --- | --- |", "ends with \\", "\u0301combining",
]  # fmt: skip
MARKDOWN = MarkdownIt("gfm-like", {"html": True, "linkify": True})


def tokens_of(text):
    """Returns all Markdown tokens of a text, including inline tokens."""
    return [leaf for token in MARKDOWN.parse(text) for leaf in (token, *(token.children or ()))]


def tables_of(text):
    """Returns the rows of cells of each Markdown table."""
    tables = []
    for token in MARKDOWN.parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and token.level >= 4 and tables:
            tables[-1][-1].append("".join(child.content for child in token.children))
    return tables


def shown(name, limit=80):
    """Returns how a name in a table must look to a reader."""
    return re.sub(r"\\+(?=\|)", lambda run: "＼" * len(run[0]), readable(name, limit))  # noqa: RUF001


# ---- Escaping ----


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_names_with_special_characters_are_displayed_literally(name):
    rows = tables_of(table(["a", "b"], [[cell(name), "1"], ["2", cell(name)]]))[0]
    assert rows == [["a", "b"], [shown(name), "1"], ["2", shown(name)]]
    for text in (code(name), f"Before {code(name)} after.", prose(name), f"# {prose(name)}", f"Of {prose(name)}:"):
        allowed = {
            "paragraph_open",
            "paragraph_close",
            "heading_open",
            "heading_close",
            "inline",
            "text",
            "code_inline",
        }
        assert {token.type for token in tokens_of(text)} <= allowed, text
    (span,) = (token for token in tokens_of(code(name)) if token.type == "code_inline")
    assert span.content == readable(name, 80)
    (fence,) = MARKDOWN.parse(block([readable(name), name.replace("\n", " ").replace("\r", " ")]))
    assert fence.type == "fence"


def test_random_names_do_not_break_the_columns_of_a_table():
    rng = np.random.default_rng(0)
    letters = [*"ab|\\`<>[]()!*_#-\n\t {}%:\"'&~$.@|`\\", "http://", "www.", "\u05d0", "\u202e", "é"]
    for _ in range(300):
        names = ["".join(rng.choice(letters, size=rng.integers(1, 15))) for _ in range(3)]
        found = tables_of(table(["x", "y", "z"], [[cell(name) for name in names]]))
        assert found == [[["x", "y", "z"], [shown(name) or " " for name in names]]], names


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_invisible_characters_are_made_visible(name):
    line = readable(name)
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in line)
    line.encode("utf-8")
    assert len(readable("x" * 500, 60)) == 60
    assert readable("a\u202eb") == "a\\u202eb"
    assert readable("a \n\t b") == "a b"
    assert isolated("abc") == "abc"
    assert isolated("\u05d0") == "\u2068\u05d0\u2069"


def test_plain_words_are_not_escaped():
    assert [prose(name) for name in ("CC BY 3.0", "all-MiniLM-L6-v2", "test", "CLINC150")] == [
        "CC BY 3.0", "all-MiniLM-L6-v2", "test", "CLINC150"
    ]  # fmt: skip
    assert prose("a_b") == "`a_b`"


# ---- A card made of these names ----


@pytest.fixture(scope="module")
def nasty_card():
    names = [name.strip() for name in NASTY]
    taxonomy = Taxonomy.from_edges([(name, f"{name} {i}") for i, name in enumerate(names)])
    model = build_model(taxonomy)
    metrics = {"micro_f1": 0.5, "hvr": 0.0, "raw_hvr": 0.25, "macro_f1": float("nan")}
    scores = np.linspace(0, 1, taxonomy.num_labels)
    found = [Evaluation(name, 7, metrics, np.arange(taxonomy.num_labels), scores) for name in NASTY[:12]]
    details = {
        "model_name": "{{ 7*7 }} # x: |\n---\ny", "language": ["en", "no"], "license": "cc: {{ 7*7 }}",
        "dataset": "<b>|`{{ 7*7 }}",
        "dataset_license": "[x](javascript:1)", "dataset_args": "a|b", "dataset_tags": "me/data", "tags": ["- a", "b: c"],
        "finetuned_from": "me/encoder",
    }  # fmt: skip
    facts = Facts(
        "a'b\"`{{ 7*7 }}", Details.read(details), training={"loss weighting": "|`<i>{{ 7*7 }}"}, results=found
    )
    return build_card(model, facts), details, taxonomy


def test_the_metadata_are_parsed_back_unchanged(nasty_card):
    card, details, _ = nasty_card
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", str(card), re.DOTALL)[1])
    assert data["language"] == ["en", "no"]
    assert data["license"] == details["license"]
    assert data["tags"] == ["hierarchical-text-classification", "hcal", "- a", "b: c"]
    assert (data["base_model"], data["datasets"]) == ("me/encoder", ["me/data"])
    (index,) = data["model-index"]
    assert index["name"] == details["model_name"]
    assert [result["dataset"]["split"] for result in index["results"]] == NASTY[:12]
    assert {result["dataset"]["name"] for result in index["results"]} == {details["dataset"]}
    values = [(metric["name"], metric["value"]) for metric in index["results"][0]["metrics"]]
    assert values == [("micro-F1", 0.5), ("HVR, raw", 0.25), ("HVR, decoded", 0.0)]  # NaN is not a result
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_no_name_in_the_card_becomes_markup(nasty_card):
    card, _, taxonomy = nasty_card
    # The template is not evaluated in title, usage, data, licence and training.
    assert card.text.count("{{ 7*7 }}") >= 5
    links = set()
    for token in tokens_of(card.text):
        assert not token.type.startswith(("html", "image")), token
        if token.type == "link_open":
            links.add(token.attrs["href"])
    assert links == {"https://huggingface.co/me/encoder", "https://huggingface.co/datasets/me/data"}
    headings = [
        text.content for token, text in zip(tokens_of(card.text), tokens_of(card.text)[1:]) if token.tag == "h2"
    ]
    titles = ["Use", "Labels", "Data", "Training", "Results", "Decisions", "Limits", "Licence", "Citation"]
    assert [heading for heading in headings if heading] == titles
    tables = tables_of(card.text)
    for rows in tables:
        assert len({len(row) for row in rows}) == 1, rows
    top = next(rows for rows in tables if rows[0][0] == "top label")
    last = [taxonomy.names[i] for i in range(taxonomy.levels[0].stop - 1, taxonomy.levels[0].stop - 21, -1)]
    assert [row[0] for row in top[1:]] == [shown(name) for name in last]


def test_the_usage_line_is_valid_python_for_any_folder_name(nasty_card):
    block_text = re.search(r"```+python\n(.*?)\n```", nasty_card[0].text, re.DOTALL)[1]
    call = next(line for line in block_text.splitlines() if "pipeline(" in line)
    seen = {}
    exec(call, {"pipeline": lambda task, model: seen.update(task=task, model=model)})
    assert seen == {"task": "hierarchical-text-classification", "model": "a'b\"`{{ 7*7 }}"}


# ---- Content ----


def card_text(taxonomy, facts=None, **config):
    return build_card(build_model(taxonomy, **config), facts or Facts("folder")).text


def test_the_card_says_which_facts_are_unknown(taxonomy):
    text = card_text(taxonomy)
    for sentence in (
        "The settings of the training were not known", "Licence of the weights: not specified.", "No results of this model",
        "Language of the texts: not specified.", "The data were not known", "13 labels on 3 levels", "a bert encoder",
    ):  # fmt: skip
        assert sentence in text
    assert "trust_remote_code" not in text
    assert "![" not in text
    assert text.count("```python") == 1
    assert text.count("```python") + 1 == card_text(taxonomy, Facts("folder", carries_code=True)).count("```python")


def test_the_card_counts_labels_and_shortens_large_taxonomies(taxonomy, dag, ragged):
    assert tree_lines(taxonomy) == [
        "  science (2 below)", "      physics (2 below)", "          astronomy", "          quantum",
        "      biology (2 below)", "  arts (2 below)", "      writing (2 below)", "          poetry",
        "          fiction", "      stage (1 below)",
    ]  # fmt: skip
    wide = Taxonomy.from_edges([(f"r{i}", f"c{i}.{j}") for i in range(1200) for j in range(6)])
    lines = tree_lines(wide)
    assert lines[:5] == ["  r0 (6 below)", "      c0.0", "      c0.1", "      c0.2", "      … 3 more"]
    assert lines[-1] == "  … 1,196 more"
    assert "2 of them have several parents" in card_text(dag, label_mode="multi_path")
    rows = tables_of(card_text(ragged))[0]
    header = ["first labels", "level", "labels", "without children"]
    levels = [["a, b, c", "0", "3", "1"], ["a1, a2, b1, …", "1", "4", "3"], ["a11, a12", "2", "2", "2"]]
    assert rows == [header, *levels]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "Thresholds: none, so paths are not shortened."),
        ({"label_mode": "multi_path"}, "Thresholds: none tuned, 0.5 for every label."),
        ({"thresholds": [0.25] * 13}, "Threshold, tuned: 0.25 for every label."),
        ({"thresholds": [0.1] * 2 + [0.2] * 4 + [0.3] * 7}, "one per level from the top down: 0.1, 0.2, 0.3."),
        ({"thresholds": [0.1] * 12 + [0.9]}, "one per label: from 0.1 to 0.9, median 0.1"),
        ({"score_temperature": 1.5}, "Calibrated temperature of the scores: 1.5."),
        ({"risk_alpha": 0.1, "risk_threshold": 0.7}, "a probability of at least 0.7"),
        ({"head": "independent"}, "The levels are predicted independently; decoding makes them agree."),
        ({"label_mode": "multi_path"}, "any number of labels, also none"),
    ],
)
def test_the_card_describes_decoder_thresholds_and_calibration(taxonomy, config, sentence):
    assert sentence in card_text(taxonomy, **config).replace("\n", " ")


def test_the_card_names_an_encoder_only_if_it_is_on_the_hub(taxonomy, encoder_dir, tmp_path, monkeypatch):
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy)
    assert encoder_id(model.config) is None  # a local folder
    assert str(Path(encoder_dir).parent) not in build_card(model, Facts("x")).content
    config = HcalConfig.from_taxonomy(taxonomy, BertConfig(name_or_path="me/encoder"))
    config.encoder_config._name_or_path = "me/encoder"
    assert encoder_id(config) is None  # not in the Hub cache, so this may have been a folder on another machine
    monkeypatch.setattr("hcal_hf.model_card.try_to_load_from_cache", lambda name, file: f"cache/{name}/{file}")
    assert encoder_id(config) == "me/encoder"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "encoder").mkdir(parents=True)
    assert encoder_id(config) is None


def test_invalid_card_details_are_refused():
    with pytest.raises(ValueError, match=r"no detail 'licence'. Closest: \['license'"):
        Details.read({"licence": "mit"})
    with pytest.raises(ValueError, match="finetuned_from must be one name on the Hub"):
        Details.read({"finetuned_from": "/home/me/encoder"})
    with pytest.raises(ValueError, match="give dataset_tags too"):
        Details.read({"benchmark_task": "x"})
    with pytest.raises(ValueError, match="must be a mapping"):
        Details.read("[1]")
    assert Details.read('{"language": "en"}').language == "en"
    assert Details.read(None) == Details()


# ---- Files ----


def test_an_edited_card_is_not_overwritten_unless_asked(taxonomy, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(card_file.logger, "warning", said.append)
    model, path = build_model(taxonomy), tmp_path / "README.md"
    card = build_card(model, Facts("folder"))
    assert write_card(card, model, tmp_path)
    written = path.read_bytes()
    assert is_generated(path)
    path.write_bytes(written.replace(b"\n", b"\r\n"))  # Git may convert line ends
    assert is_generated(path)
    assert write_card(card, model, tmp_path)
    assert path.read_bytes() == written
    for edited in (
        written.replace(b"# folder", b"# Mine"),
        written.replace(b"library_name", b"license: mit\nlibrary_name"),
        written + b"A word more.\n",
        written.replace(b"<!-- Written", b"<!-- Rewritten"),
        b"# My own card\n",
        b"",
    ):
        path.write_bytes(edited)
        said.clear()
        assert not write_card(card, model, tmp_path)
        assert path.read_bytes() == edited
        assert "edited manually" in said[0]
        assert "overwrite=True" in said[0]
    assert write_card(card, model, tmp_path, overwrite=True)
    assert path.read_bytes() == written


def test_saving_the_model_keeps_the_facts_of_the_card_that_are_still_true(taxonomy, ragged, tmp_path):
    model, path = build_model(taxonomy), tmp_path / "README.md"
    save_minimal_card(model, tmp_path)
    assert "13 labels" in path.read_text(encoding="utf-8")
    scores = Evaluation("test", 7, {"micro_f1": 0.5})
    facts = Facts("x", Details(dataset="Tickets"), training={"steps": "4,321"}, results=[scores])
    write_card(build_card(model, facts), model, tmp_path)
    full = path.read_text(encoding="utf-8")
    save_minimal_card(model, tmp_path)
    assert path.read_text(encoding="utf-8") == full
    model.config.thresholds = [0.25] * 13
    save_minimal_card(model, tmp_path)  # Predictions change, so the results no longer describe this model.
    text = path.read_text(encoding="utf-8")
    assert "4,321" in text
    assert "Tickets." in text
    assert "model-index" not in text
    assert "0.25 for every label" in text
    for other in (build_model(taxonomy, seed=1), build_model(ragged)):
        write_card(build_card(model, facts), model, tmp_path)
        save_minimal_card(other, tmp_path)
        assert "4,321" not in path.read_text(encoding="utf-8")
    path.write_text("# Mine", encoding="utf-8")
    save_minimal_card(model, tmp_path)
    assert path.read_text(encoding="utf-8") == "# Mine"


def test_the_card_names_folders_without_their_parent_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert card_file.folder_name("outputs/model") == "outputs/model"
    assert card_file.folder_name(tmp_path / "a" / "model") == "model"
    assert card_file.folder_name("../../elsewhere/model") == "model"
    assert card_file.folder_name(".") == tmp_path.name


# ---- model_cards/ ----


@pytest.mark.parametrize(
    "name",
    ["clinc150", "clinc150-finetuned", "goemotions", "goemotions-finetuned", "hwv_part", "cei"],
)
def test_the_stored_cards_of_recipes_are_generated_and_complete(name):
    folder = ROOT / "model_cards" / name
    assert is_generated(folder / "README.md")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert not re.search(r"(^|[\s\"'`(])/\w+/", card.text), "an absolute path"
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (folder / picture).is_file()
    for rows in tables_of(card.text):
        assert len({len(row) for row in rows}) == 1


def test_building_a_card_changes_no_tensor_of_the_model(taxonomy):
    model = build_model(taxonomy)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build_card(model, Facts("x"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

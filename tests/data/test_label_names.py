"""Label names for label codes: reading the file, saving in the configuration, and output."""

import json

import pytest
import torch
from transformers import pipeline

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy, read_label_names
from hcal_hf.commands.demo.tree import answer_html, tree_html
from hcal_hf.commands.model_summary import inspect_model


@pytest.fixture
def codes():
    return Taxonomy.from_paths([["11", "111"], ["11", "112"], ["21", "211"]])


def test_code_and_name_columns_are_found_by_header_or_position(codes, tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("level;Title;CODE\n1;Farming;11\n2;Crops;111\n", encoding="utf-8")
    assert read_label_names(path, codes) == {"11": "Farming", "111": "Crops"}
    path.write_text("Nummer;Bezeichnung\n111;Ackerbau\n112;Tiere, Zucht\n", encoding="cp1252")
    assert read_label_names(path, codes) == {"111": "Ackerbau", "112": "Tiere, Zucht"}


def test_a_file_without_a_header_is_read_completely(codes, tmp_path):
    path = tmp_path / "names.tsv"
    path.write_text("11\tFarming\n111\tCrops\n", encoding="utf-8")
    assert read_label_names(path, codes) == {"11": "Farming", "111": "Crops"}


@pytest.mark.parametrize("rows", [{"11": "Farming"}, [{"code": "11", "name": "Farming"}]])
def test_json_files_may_contain_an_object_or_rows(codes, tmp_path, rows):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert read_label_names(path, codes) == {"11": "Farming"}


def test_codes_without_labels_and_labels_without_names_are_counted(codes, tmp_path, caplog):
    path = tmp_path / "names.csv"
    path.write_text("code,name\n11,Farming\n999,Nothing\n998,Nothing\n", encoding="utf-8")
    assert read_label_names(path, codes) == {"11": "Farming"}
    assert "names of 1 labels; 2 codes are not labels; 4 labels have no name" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("code,name\n11,Farming\n11,Fishing\n", "two names for '11': 'Farming' and 'Fishing'"),
        ("code,name\n9,Farming\n", "No code in .* is a label. The first codes are '9'; the labels are '11', '21'"),
        ("code\n11\n", "must have two columns, codes and names, but has 'code'"),
    ],
)
def test_invalid_files_are_refused(codes, tmp_path, content, message):
    path = tmp_path / "names.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_label_names(path, codes)


def test_names_are_used_in_label_texts_and_saved(codes, tmp_path):
    config = HcalConfig.from_taxonomy(
        codes, {"model_type": "bert"}, label_names={"11": "Farming", "111": "Crops"}, prototype_anchor="label_text"
    )
    position = {label: i for i, label in enumerate(config.labels)}
    assert config.label_texts[position["111"]] == "Farming: Crops"
    assert config.label_texts[position["211"]] == "21: 211"
    assert config.shown_names[position["111"]] == "111 Crops"
    assert config.shown_names[position["211"]] == "211"
    config.save_pretrained(tmp_path)
    assert HcalConfig.from_pretrained(tmp_path).label_names == config.label_names


def test_unknown_codes_and_wrong_lengths_are_refused(codes):
    with pytest.raises(ValueError, match="1 keys that are not labels, first 'x': the labels are '11', '21'"):
        HcalConfig.from_taxonomy(codes, {"model_type": "bert"}, label_names={"x": "Farming"})
    with pytest.raises(ValueError, match="label_names must hold one text for each of 5 labels, got 1"):
        HcalConfig.from_taxonomy(codes, {"model_type": "bert"}, label_names=["Farming"])


def test_an_added_label_can_have_a_name(codes, encoder_dir, tokenizer):
    model = HcalForSequenceClassification.from_encoder(
        encoder_dir, codes, label_names={"11": "Farming"}, prototype_anchor="label_text"
    )
    model.add_labels([["11", "113"]], tokenizer)
    names = dict(zip(model.config.labels, model.config.label_names))
    assert (names["11"], names["113"]) == ("Farming", "113")
    assert model.config.label_texts[model.config.labels.index("113")] == "Farming: 113"


def test_names_are_shown_by_pipeline_inspect_and_demo(codes, encoder_dir, tokenizer, tmp_path):
    names = {"11": "Farming", "111": "Crops <b>"}
    model = HcalForSequenceClassification.from_encoder(encoder_dir, codes, label_names=names)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipe = pipeline("hierarchical-text-classification", model=str(tmp_path), top_k=3)
    shown = {step["label"]: step["name"] for step in pipe("stars")}
    assert shown == {"11": "Farming", "21": "21", "111": "Crops <b>", "112": "112", "211": "211"}
    tree = inspect_model(str(tmp_path))["tree"]
    assert [root["label"] for root in tree] == ["11 Farming", "21"]
    assert [child["label"] for child in tree[0]["children"]] == ["111 Crops <b>", "112"]
    p, everything = torch.full((5,), 0.5), torch.ones(5, dtype=torch.bool)
    for html in (tree_html(p, everything, codes, 5, names=model.config.shown_names),
                 answer_html(p, everything, codes, model.config.shown_names)):  # fmt: skip
        assert "111 Crops &lt;b&gt;" in html
    assert "11 Farming &gt; 111 Crops" in answer_html(p, everything, codes, model.config.shown_names)

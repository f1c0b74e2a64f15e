"""Malformed data sets, options and configurations end in errors that say what was given and what to do."""

import pandas as pd
import pytest
from datasets import Dataset

from hcal_hf import HcalForSequenceClassification, HcalTrainer, HcalTrainingArguments, build_taxonomy, encode_dataset
from hcal_hf.commands import main as cli

PATH = [["science", "physics", "quantum"]]


def rows(labels, number=4, **columns):
    return Dataset.from_dict({"text": ["stars"] * number, "labels": [labels] * number, **columns})


@pytest.fixture
def encode(taxonomy, tokenizer):
    return lambda table, **options: encode_dataset(table, taxonomy, tokenizer, **options)


def test_an_empty_table_is_encoded_to_an_empty_table(encode):
    encoded = encode(rows(PATH, 0))
    assert len(encoded) == 0
    assert {"input_ids", "attention_mask", "labels"} <= set(encoded.column_names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_mode": "single"}, 'label_mode must be "single_path", "multi_path" or None, got \'single\''),
        ({"separator": ""}, "separator must be a visible text"),
        ({"delimiter": ""}, "delimiter must be a visible text"),
        ({"max_length": 0}, "max_length must be a whole number of at least 1, got 0"),
        ({"max_length": -1}, "max_length must be a whole number of at least 1, got -1"),
        ({"max_length": "ten"}, "max_length must be a whole number of at least 1, got 'ten'"),
        ({"max_length": 10**20}, "max_length must be a whole number of at least 1 and at most"),
    ],
)
def test_options_of_encoding_are_checked(encode, options, message):
    with pytest.raises(ValueError, match=message):
        encode(rows(PATH), **options)


def test_half_characters_are_a_problem_of_their_row(encode):
    with pytest.raises(ValueError, match="half characters that are not Unicode"):
        encode(pd.DataFrame({"text": ["a \ud800"], "labels": [PATH]}, dtype=object))


@pytest.mark.parametrize("columns", [{"labels": []}, {"labels": [None, None]}])
def test_a_hierarchy_cannot_be_built_from_nothing(columns):
    table = Dataset.from_dict({"text": ["a"] * len(columns["labels"]), **columns})
    with pytest.raises(ValueError, match="No row has a label"):
        build_taxonomy(table)


@pytest.fixture
def train(encoder_dir, taxonomy, tokenizer, tmp_path):
    def run(table, mode="single_path", with_tokenizer=True):
        model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, label_mode=mode)
        args = HcalTrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
        HcalTrainer(model, args, None, table, None, tokenizer if with_tokenizer else None).train()

    return run


TOKENS = {"input_ids": [[2, 5, 3]] * 4, "attention_mask": [[1, 1, 1]] * 4}
NODES = [0, 2, 6]


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1], r"labels must be node indices from 0 to 12, got -1"),
        ([13], r"labels must be node indices from 0 to 12, got 13"),
        (["science"], "labels must be lists of node indices, but row 0 has"),
        (None, "row 0 has no labels .* encode_dataset"),
        (3, "labels must be lists of node indices, but row 0 has"),
        ([0.5], "labels must be lists of node indices, but row 0 has"),
        ([6, 2, 0], "labels must be sorted and hold each ancestor .* encode_dataset"),
        ([0, 2, 2, 6], "labels must be sorted and hold each ancestor .* encode_dataset"),
        ([6], "labels must be sorted and hold each ancestor .* encode_dataset"),
    ],
)
def test_labels_of_training_rows_are_checked(train, mode, labels, message):
    with pytest.raises(ValueError, match=message):
        train(Dataset.from_dict({**TOKENS, "labels": [labels] * 4}), mode)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "The rows have no input_ids, only .* encode_dataset"),
        ({"text": ["a"] * 4}, "The rows have no input_ids, but texts .* encode_dataset"),
        ({"input_ids": [[2, 10**6, 3]] * 4}, "the token 1000000, which is outside the vocabulary of the encoder"),
        (
            {"input_ids": [[5] * 100] * 4},
            "A row has 100 tokens, and the encoder has positions for at most 32: .* max_length=32",
        ),
    ],
)
def test_tokens_of_training_rows_are_checked(train, columns, message):
    with pytest.raises(ValueError, match=message):
        train(Dataset.from_dict({**columns, "labels": [NODES] * 4}))


def test_training_needs_documents(train):
    with pytest.raises(ValueError, match="There are no training documents: pass train_dataset"):
        train(None)


CONFIG = "encoder: {encoder}\ndata_dir: {data}\noutput_dir: {out}\n"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a: [1", "is not valid YAML, line 5"),
        ("a:\n\tb: 1", "is not valid YAML, line 5"),
        ("seed: !!python/object/apply:os.system ['true']", "is not valid YAML, line 4"),
        ("seed: !foo 3", "is not valid YAML, line 4"),
        ("a: " + "[" * 3000, "is nested too deeply"),
        ("num_train_epochs: -1", "num_train_epochs must be above 0, got -1"),
        ("loss_weighting_kwargs: [1]", "loss_weighting_kwargs must be a text or an object or null, got [1]"),
        ("seed: {a: 1}", "seed must be a whole number, got {'a': 1}"),
        ("seed: null", "seed must be a whole number, got None"),
        ("max_length: 0", "max_length must be a whole number of at least 1, got 0"),
        ("max_length: -5", "max_length must be a whole number of at least 1, got -5"),
        ("delimiter: ''", "delimiter must be a visible text"),
        ("separator: ''", "separator must be a visible text"),
        ("labels: {a: b}", "labels must be a column or a list of columns, got {'a': 'b'}"),
        ("projection_dim: 1000000000000", "projection_dim must be from 1 to"),
    ],
)
def test_mistakes_in_a_configuration_are_named(tmp_path, encoder_dir, capsys, lines, message):
    (tmp_path / "train.csv").write_text("text,labels\na,x > y\nb,x > z\nc,x > y\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text(
        CONFIG.format(encoder=encoder_dir, data=tmp_path, out=tmp_path / "out") + lines + "\n", encoding="utf-8"
    )
    assert cli.main(["train", str(tmp_path / "run.yaml"), "--use_cpu", "--report_to", "none"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no row that can be read"),
        (b"{", "has no row that can"),
        (b"\x80\x03\x00\xff", "has no row that can"),
    ],
)
def test_a_file_that_cannot_be_evaluated_is_named(
    encoder_dir, taxonomy, tokenizer, tmp_path, capsys, content, message
):
    HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "a.jsonl").write_bytes(content)
    assert cli.main(["evaluate", str(tmp_path / "model"), str(tmp_path / "a.jsonl"), "--cpu"]) == 1
    error = capsys.readouterr().err
    assert "a.jsonl" in error
    assert message in error.strip().splitlines()[-1], error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["predict", "evaluate", "inspect", "export"])
def test_a_model_without_a_tokenizer_is_named(encoder_dir, taxonomy, tmp_path, capsys, command):
    HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy).save_pretrained(tmp_path / "model")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "labels": "science"}\n', encoding="utf-8")
    arguments = {
        "predict": [str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "b.csv"), "--cpu"],
        "evaluate": [str(tmp_path / "a.jsonl"), "--cpu"],
        "inspect": [],
        "export": ["--output-dir", str(tmp_path / "onnx")],
    }[command]
    code = cli.main([command, str(tmp_path / "model"), *arguments])
    error = capsys.readouterr().err
    if command == "inspect":  # needs no tokenizer
        assert code == 0
        return
    assert code == 1
    assert "has no tokenizer" in error

"""Runs all commands on typical tables: check, train, evaluate, and predict with a review file."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hcal_hf import HcalForSequenceClassification, Taxonomy, build_taxonomy, encode_dataset
from hcal_hf.commands import main as cli
from hcal_hf.commands.table_run import train_table
from tests.builders import WORDS

# Top label and leaves. Some names have umlauts or look like missing values or numbers.
TREE = {"Geräte": ["Drucker", "Bildschirm", "NA"], "Netz": ["VPN", "None", "007"], "Büro": ["Möbel", "1.0"]}
PATHS = [[top, leaf] for top, leaves in TREE.items() for leaf in leaves]


def text(i):
    return f"{WORDS[i % len(PATHS) * 2]} {WORDS[i % len(PATHS) * 2]} {WORDS[i % 17]} {WORDS[(7 * i) % 19]} {i}"


@pytest.fixture
def hcal(encoder_dir, tmp_path, monkeypatch, capsys):
    """Returns a function that runs a command in a new folder and returns its standard output."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        words = [str(word) for word in words]
        if words[0] == "train":
            words += ["--encoder", encoder_dir, "--time-budget", "0", "--use_cpu"]
        elif words[0] in ("evaluate", "predict"):
            words += ["--cpu"]
        assert cli.main(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def way(hcal, tmp_path, file, model, options, rows):
    """Trains on a file, then evaluates and predicts it without the options. Returns the saved configuration."""
    hcal("train", file, *options)
    metrics = json.loads(hcal("evaluate", model, file, "--json"))["metrics"]
    assert 0 < metrics["test_micro_f1"] <= 1
    hcal("predict", model, file, "--out", "predicted.csv", "--review", "0.5", "--level-columns", "--quiet")
    tables = [pd.read_csv(tmp_path / name, dtype=str) for name in ("predicted.csv", "predicted-review.csv")]
    assert sum(map(len, tables)) == rows
    assert set(tables[1]["unsure"]) <= {"True"}
    assert {"row", "labels", "confidence", "level_1", "level_2"} <= set(tables[0].columns)
    return HcalForSequenceClassification.from_pretrained(tmp_path / model).config


def test_a_german_csv_export_of_a_spreadsheet(hcal, tmp_path):
    """The file has semicolons, the encoding cp1252, umlauts, and labels that look like missing values or numbers."""
    frame = pd.DataFrame(
        [
            {"Überschrift": text(i), "Größe": "x", "Bereich": PATHS[i % 8][0], "Gerät": PATHS[i % 8][1]}
            for i in range(96)
        ]
    )
    frame.to_csv(tmp_path / "Anfragen.csv", sep=";", index=False, encoding="cp1252")
    hcal("taxonomy", "check", "Anfragen.csv", "--text", "Überschrift", "--labels", "Bereich", "Gerät")
    options = ["--text", "Überschrift", "Größe", "--labels", "Bereich", "Gerät"]
    config = way(hcal, tmp_path, "Anfragen.csv", "outputs/Anfragen", options, 96)
    assert set(config.labels) == {*TREE, *(leaf for leaves in TREE.values() for leaf in leaves)}
    assert config.table_options["text"] == ["Überschrift", "Größe"]


def test_json_lines_with_nested_paths(hcal, tmp_path):
    rows = [
        {"body": text(i), "paths": [PATHS[i % 8]] + ([PATHS[(i + 3) % 8]] if i % 5 == 0 else [])} for i in range(96)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "docs.jsonl").write_text(lines, encoding="utf-8")
    config = way(hcal, tmp_path, "docs.jsonl", "outputs/docs", ["--text", "body", "--labels", "paths"], 96)
    assert config.label_mode == "multi_path"
    assert len(config.labels) == 11


def test_a_dataset_with_lists_of_class_labels(tokenizer, tmp_path):
    names = [leaf for leaves in TREE.values() for leaf in leaves]
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=names))})
    rows = {"text": [text(i) for i in range(16)], "labels": [[i % 8, (i + 1) % 8] for i in range(16)]}
    data = DatasetDict({split: Dataset.from_dict(rows, features=features) for split in ("train", "test")})
    taxonomy = Taxonomy.from_paths(PATHS)
    for table in (data, DatasetDict({split: table.to_iterable_dataset() for split, table in data.items()})):
        encoded = encode_dataset(table, taxonomy, tokenizer, label_mode="multi_path")
        first = next(iter(encoded["train"]))["labels"]
        assert [taxonomy.labels[node] for node in first] == ["Geräte", "Drucker", "Bildschirm"]


def test_a_csv_export_of_pandas_with_lists_in_cells(hcal, tmp_path):
    frame = pd.DataFrame({"text": [text(i) for i in range(96)], "labels": [[PATHS[i % 8]] for i in range(96)]})
    frame.to_csv(tmp_path / "export.csv")  # with the index column
    config = way(hcal, tmp_path, "export.csv", "outputs/export", [], 96)
    assert {tuple(path) for path in map(tuple, PATHS)} == {
        tuple(config.to_taxonomy().paths(node)[0]) for node in np.flatnonzero(config.to_taxonomy().is_leaf)
    }


@pytest.mark.slow
def test_a_parquet_file_of_200_000_rows_with_missing_labels(encoder_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    rows = 200_000
    labels = [None if i % 5 == 0 else " > ".join(PATHS[i % 8]) for i in range(rows)]
    table = pa.table({"text": [text(i) for i in range(rows)], "labels": pa.array(labels, pa.string())})
    pq.write_table(table, tmp_path / "big.parquet")
    assert len(build_taxonomy(tmp_path / "big.parquet")) == 11
    options = [
        "--encoder",
        encoder_dir,
        "--use_cpu",
        "--max_steps",
        "1",
        "--freeze_encoder",
        "false",
        "--tune",
        "none",
    ]
    metrics = train_table(tmp_path / "big.parquet", options, time_budget=0)
    assert 0 <= metrics["test_micro_f1"] <= 1
    assert "unlabelled rows left out" in caplog.text
    split = json.loads((tmp_path / "outputs/big/split.json").read_text(encoding="utf-8"))
    assert sum(len(split[name]) for name in ("train", "validation", "test")) == rows

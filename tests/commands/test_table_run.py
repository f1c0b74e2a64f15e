"""`hcal train` on one table: automatic choices, written files, refused input and reproducible runs."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from openpyxl import Workbook
from transformers import AutoTokenizer

from hcal_hf import HcalForSequenceClassification
from hcal_hf.commands import main as cli
from hcal_hf.commands import table_run
from hcal_hf.commands.progress import format_log
from tests.builders import WORDS

PATHS = [
    ["science", "physics"],
    ["science", "biology"],
    ["arts", "poetry"],
    ["arts", "music"],
]


def rows(number=60, several=False, partial=False):
    found = []
    for i in range(number):
        path = PATHS[i % 4]
        found.append(
            {"text": f"{WORDS[i % 4 * 3]} {WORDS[i % 17]} {WORDS[(7 * i) % 19]} {WORDS[(3 * i) % 13]}", "path": path}
        )
    if several:
        found[5]["paths"] = [PATHS[0], PATHS[2]]
    if partial:
        found[7]["path"] = ["science"]
    return found


def write_csv(path, number=60, partial=False):
    frame = pd.DataFrame(
        [
            {"Text": row["text"], "Bereich": row["path"][0], "Thema": row["path"][1] if len(row["path"]) > 1 else ""}
            for row in rows(number, partial=partial)
        ]
    )
    frame.to_csv(path, sep=";", index=False, encoding="cp1252")
    return path


@pytest.fixture
def train(encoder_dir, tmp_path, monkeypatch, capsys):
    """Returns a function that runs `hcal train` with the tiny encoder and returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(file, *options, budget="0"):
        code = cli.main(["train", str(file), "--encoder", encoder_dir, "--time-budget", budget, "--use_cpu", *options])
        return (code, *capsys.readouterr())

    return run


CSV = ["--text", "Text", "--labels", "Bereich", "Thema"]


def test_training_on_one_csv_file_gives_a_model_that_predicts(train, tmp_path):
    code, out, err = train(write_csv(tmp_path / "Tickets.csv"), *CSV)
    assert code == 0, err
    folder = tmp_path / "outputs" / "Tickets"
    assert "label_mode: single_path (every row has one path)" in out
    assert "partial_paths: false (every path ends at a leaf)" in out
    assert "Regime: frozen. The encoder stays frozen: the time budget is 0 minutes." in out
    assert f"The model is in {folder.relative_to(tmp_path)}" in out
    assert "'eval_loss'" not in out + err
    model = HcalForSequenceClassification.from_pretrained(folder)
    assert sorted(model.config.labels) == sorted({name for path in PATHS for name in path})
    split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    assert sorted(split["train"] + split["validation"] + split["test"]) == list(range(60))
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert settings["labels"] == ["Bereich", "Thema"]
    assert settings["freeze_encoder"] is True


def test_the_written_configuration_reproduces_the_run(train, tmp_path, monkeypatch):
    train(write_csv(tmp_path / "a.csv"), *CSV)
    first = json.loads((tmp_path / "outputs/a/test_results.json").read_text(encoding="utf-8"))
    assert cli.main(["train", "outputs/a/config.yaml", "--output_dir", "again"]) == 0
    again = json.loads((tmp_path / "again/test_results.json").read_text(encoding="utf-8"))
    timing = ("runtime", "per_second", "preparation_time")
    assert {k: v for k, v in first.items() if not k.endswith(timing)} == {
        k: v for k, v in again.items() if not k.endswith(timing)
    }
    assert json.loads((tmp_path / "again/split.json").read_text(encoding="utf-8")) == json.loads(
        (tmp_path / "outputs/a/split.json").read_text(encoding="utf-8")
    )


def test_label_mode_and_partial_paths_are_inferred_from_the_rows(train, tmp_path):
    lines = [
        {"text": row["text"], "labels": row.get("paths", [row["path"]])} for row in rows(several=True, partial=True)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    code, out, err = train(tmp_path / "a.jsonl")
    assert code == 0, err
    assert "label_mode: multi_path (1 rows have no or several paths, first: row 6)" in out
    assert "partial_paths: true (1 rows end at an inner label, first: row 8)" in out
    config = HcalForSequenceClassification.from_pretrained(tmp_path / "outputs/a").config
    assert (config.label_mode, config.partial_paths) == ("multi_path", True)


def test_training_on_an_excel_file_with_unlabelled_rows(train, tmp_path, caplog):
    book = Workbook()
    book.active.append(["subject", "body", "label"])
    for i, row in enumerate(rows()):
        book.active.append([row["text"], "and more", " > ".join(row["path"]) if i % 5 else None])
    book.save(tmp_path / "a.xlsx")
    code, _, err = train(tmp_path / "a.xlsx", "--text", "subject", "body", "--labels", "label")
    assert code == 0, err
    assert "unlabelled rows left out" in caplog.text


def test_training_on_a_folder_of_splits(train, tmp_path):
    folder = tmp_path / "tickets"
    folder.mkdir()
    frame = pd.DataFrame({"Text": row["text"], "Topic": " > ".join(row["path"])} for row in rows(60, partial=True))
    frame[:40].assign(Note="x").to_csv(folder / "train.csv", index=False)
    frame[40:50].to_csv(folder / "validation.csv", index=False)
    last = frame[50:].reset_index(drop=True)
    last.loc[2, "Topic"] = "arts"
    last.to_csv(folder / "test.csv", index=False)
    options = ("--text", "Text", "--labels", "Topic", "--separator", " > ")
    code, out, err = train(folder, *options)
    assert code == 0, err
    assert "partial_paths: true (2 rows end at an inner label, first: row 8 of train, 3 of test)." in out
    model = tmp_path / "outputs" / "tickets"
    assert not (model / "split.json").exists()
    assert "10 documents" in out  # of the given test file
    assert yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))["data_dir"] == str(folder)
    (folder / "train.csv").unlink()
    code, _, err = train(folder, *options)
    assert code == 1
    assert "has no training file" in err
    code, _, err = train(tmp_path / "missing", *options)
    assert code == 1
    assert "There is no table or folder" in err


def test_rows_of_each_split_of_a_folder_decide_the_regime(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(table_run, "choose_regime", lambda *args, **options: asked.update(options, lengths=args[2]))
    run = table_run._TableRun(tmp_path, range(70), {"train": 50, "validation": 20}, *3 * [None], set(), 0.0)
    run.model_args = run.data_args = run.args = type(
        "Any",
        (),
        {"max_length": 8, "encoder": None, "window_length": None, "label_mode": "single_path", "device": "cpu"},
    )
    run.labelled, run.leaves, run.covered = np.array([0, 3, 49, 50, 69]), 4, 2
    run._choose_regime(None, lambda texts, **options: {"input_ids": [[1, 2]]}, ["a"])
    assert (len(asked["lengths"]), asked["unlabelled"], asked["validation"]) == (3, 47, 2)


def test_a_finished_model_is_not_overwritten_and_an_unfinished_run_is_resumed(train, tmp_path, monkeypatch):
    file = write_csv(tmp_path / "a.csv")
    with monkeypatch.context() as patch:
        patch.setattr(table_run, "run_training", lambda *args: {})  # as after an interruption
        assert train(file, *CSV)[0] == 0
    code, _, err = train(file, *CSV, "--seed", "3")
    assert (code, "an unfinished run with other settings" in err) == (1, True)
    code, out, _ = train(file, *CSV)
    assert (code, "Resuming the unfinished run" in out) == (0, True)
    code, _, err = train(file, *CSV)
    assert (code, "holds a finished model: give --overwrite" in err) == (1, True)
    assert train(file, *CSV, "--overwrite")[0] == 0


@pytest.mark.slow
def test_fine_tuning_is_chosen_within_the_time_budget(train, tmp_path):
    code, out, err = train(write_csv(tmp_path / "a.csv"), *CSV, budget="15")
    assert code == 0, err
    assert "Regime: fine-tuned. The encoder is fine-tuned: fine-tuning 48 documents for 20 epochs is estimated" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            r"has no column 'text': its columns are 'Text', 'Bereich', 'Thema'. Name the columns of the texts with --text",
        ),
        (["--text", "Text"], "has no column 'labels'"),
        ([*CSV, "--tune", "f1"], "metric must be one of micro_f1, macro_f1"),
        ([*CSV, "--no-such-option", "1"], "there is no argument --no-such-option"),
    ],
)
def test_wrong_columns_and_options_are_refused(train, tmp_path, options, message):
    try:
        code, _, err = train(write_csv(tmp_path / "a.csv", 400), *options)
    except SystemExit as stop:  # raised for wrong usage
        code, message = stop.code, ""
        err = ""
    assert code in (1, 2)
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,labels\n", "names columns but has no rows"),
        ("text,labels\na,\nb,\n", "No row has a label in 'labels'"),
        ("text,labels\na,x\nb,x\nc,x\n", "has a single label, 'x': there is nothing to choose between"),
    ],
)
def test_tables_that_cannot_be_trained_on_are_refused_with_a_reason(train, tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    code, _, err = train(tmp_path / "a.csv")
    assert code == 1
    assert message in err
    assert not (tmp_path / "outputs" / "a" / "model.safetensors").exists()


def test_progress_logs_are_one_line():
    assert format_log({"loss": 0.5, "epoch": 1.5, "loss_level_0": 0.1}) == "epoch 1.5, training: loss 0.500"
    line = format_log({"eval_loss": 0.25, "eval_micro_f1": 0.5, "eval_macro_f1": 1 / 3, "epoch": 2})
    assert line == "epoch 2.0, validation: loss 0.250, micro-F1 50.0, macro-F1 33.3"
    assert format_log({"train_runtime": 3}) == ""


def test_evaluate_and_predict_read_the_columns_that_training_used(train, tmp_path, capsys):
    names = tmp_path / "names.csv"
    names.write_text("science,Natural science\nphysics,Matter\n", encoding="utf-8")
    table = write_csv(tmp_path / "Tickets.csv")
    code, _, err = train(table, *CSV, "--label-names", str(names), "--max-length", "12")
    assert code == 0, err
    folder = str(tmp_path / "outputs" / "Tickets")
    config = HcalForSequenceClassification.from_pretrained(folder).config
    assert config.table_options["labels"] == ["Bereich", "Thema"]
    assert dict(zip(config.labels, config.label_names))["physics"] == "Matter"
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 12

    assert cli.main(["evaluate", folder, str(table), "--cpu", "--json"]) == 0
    remembered = json.loads(capsys.readouterr().out)["metrics"]
    assert cli.main(["evaluate", folder, str(table), "--cpu", "--json", "--max-length", "12", *CSV]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["test_micro_f1"] == remembered["test_micro_f1"]

    out = tmp_path / "predictions.csv"
    assert cli.main(["predict", folder, str(table), "--out", str(out), "--cpu", "--quiet"]) == 0
    predicted = pd.read_csv(out)
    shown = {"physics": "Matter", "biology": "biology", "poetry": "poetry", "music": "music"}
    assert list(predicted["names"]) == [shown[labels.split(" > ")[-1]] for labels in predicted["labels"]]
    # A file with other columns is read with the default column name.
    (tmp_path / "lines.txt").write_text("stars\natoms\n", encoding="utf-8")
    assert cli.main(["predict", folder, str(tmp_path / "lines.txt"), "--out", str(out), "--cpu", "--overwrite"]) == 0
    assert len(pd.read_csv(out)) == 2
    with pytest.raises(SystemExit):  # an option without a value
        cli.main(["predict", folder, str(table), "--out", str(out), "--text"])


def test_a_weight_counts_as_copies_of_a_training_document(train, tmp_path):
    table = write_csv(tmp_path / "once.csv")
    frame = pd.read_csv(table, sep=";", encoding="cp1252")
    frame["Anzahl"] = [1 + i % 3 for i in range(len(frame))]
    frame.loc[4, "Anzahl"] = 0
    frame.to_csv(tmp_path / "weighted.csv", index=False)
    code, _, err = train(tmp_path / "weighted.csv", *CSV, "--weight", "Anzahl", "--tune", "none")
    assert code == 0, err
    split = json.loads((tmp_path / "outputs/weighted/split.json").read_text(encoding="utf-8"))
    # The same rows, written as copies into files of the three parts.
    folder = tmp_path / "copies"
    folder.mkdir()
    for name in ("train", "validation", "test"):
        part = frame.iloc[split[name]]
        part = part.loc[part.index.repeat(part["Anzahl"])] if name == "train" else part
        part.to_csv(folder / f"{name}.csv", index=False)
    run = yaml.safe_load((tmp_path / "outputs/weighted/config.yaml").read_text(encoding="utf-8"))
    run |= {"data_dir": str(folder), "output_dir": str(tmp_path / "outputs/copies")}
    del run["weight"]
    (tmp_path / "copies.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    assert cli.main(["train", str(tmp_path / "copies.yaml"), "--use_cpu"]) == 0
    weighted, copies = (
        HcalForSequenceClassification.from_pretrained(tmp_path / "outputs" / name) for name in ("weighted", "copies")
    )
    torch.testing.assert_close(weighted.prototypes.weight, copies.prototypes.weight, atol=1e-4, rtol=1e-3)
    frame["Anzahl"] = frame["Anzahl"] / 2
    frame.to_csv(tmp_path / "half.csv", index=False)
    code, _, err = train(tmp_path / "half.csv", *CSV, "--weight", "Anzahl")
    assert code == 1
    assert "is '0.5', but weights must be whole numbers of at least 0" in err
    code, _, err = train(tmp_path / "half.csv", *CSV, "--weight", "Zahl")
    assert "has no column 'Zahl'" in err
    assert "Name the column of the weights with --weight" in err


def test_empty_cells_that_mean_no_label_make_a_table_multi_path(train, tmp_path):
    frame = pd.DataFrame([{"text": row["text"], "labels": " > ".join(row["path"])} for row in rows(60)])
    frame.loc[7, "labels"] = ""
    frame.to_csv(tmp_path / "table.csv", index=False)
    code, out, err = train(tmp_path / "table.csv", "--overwrite", "--no-report")
    assert code == 0, err
    assert "label_mode: single_path (every row has one path)" in out
    code, out, err = train(tmp_path / "table.csv", "--overwrite", "--no-report", "--empty-means-none", "true")
    assert code == 0, err
    assert "label_mode: multi_path (1 rows have no or several paths, first: row 8)" in out

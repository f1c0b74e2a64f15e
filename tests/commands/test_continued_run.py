"""`hcal train --from MODEL` continues with earlier rows, new rows and new labels."""

import hashlib
import itertools
import json

import pandas as pd
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hcal_hf import DataArguments, HcalForSequenceClassification, load_data, read_table
from hcal_hf.commands import main as cli
from hcal_hf.commands.continued_run import add_earlier_rows
from hcal_hf.data.labels import LabelReader
from hcal_hf.data.rows import class_names
from tests.builders import WORDS

PATHS = [["science", "physics"], ["science", "biology"], ["arts", "poetry"], ["arts", "music"]]
COLUMNS = ["--text", "Text", "--labels", "Area", "Topic"]


def write(path, start, number, paths=PATHS):
    rows = []
    for i in range(start, start + number):
        top, leaf = paths[i % len(paths)]
        text = f"{WORDS[i % len(paths) * 3]} {WORDS[i % 17]} {WORDS[(7 * i) % 19]} {WORDS[(3 * i) % 13]} {i}"
        rows.append({"Text": text, "Area": top, "Topic": leaf})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def hcal(tmp_path, monkeypatch, capsys):
    """Returns a function that runs `hcal train` in a new folder and returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = cli.main(["train", *map(str, words), "--use_cpu"])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def model(hcal, tmp_path, encoder_dir):
    """Returns a model that was trained on 60 rows with a frozen encoder."""
    table = write(tmp_path / "old.csv", 0, 60)
    code, _, err = hcal(table, *COLUMNS, "--encoder", encoder_dir, "--time-budget", "0")
    assert code == 0, err
    return tmp_path / "outputs" / "old"


def test_earlier_rows_keep_their_split_and_new_labels_are_learned(hcal, model, tmp_path):
    old = json.loads((model / "split.json").read_text(encoding="utf-8"))
    new = write(tmp_path / "new.csv", 60, 40, [*PATHS, ["sport", "chess"]])
    code, out, err = hcal(new, "--from", model)
    assert code == 0, err
    assert "New labels: 2 (sport, chess)." in out
    assert "Rows: 40 new, and 60 that the model was trained on or measured with." in out
    folder = tmp_path / "outputs" / "new"
    split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    assert split["earlier"] == [old]
    assert sum(len(split[name]) for name in ("train", "validation", "test")) == 40
    config = HcalForSequenceClassification.from_pretrained(folder).config
    assert {"sport", "chess", "physics"} <= set(config.labels)
    assert config.table_options["labels"] == ["Area", "Topic"]
    # The saved configuration reproduces the run.
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert settings["start_from"] == str(model)
    code, _, err = hcal(folder / "config.yaml", "--output-dir", "again")
    assert code == 0, err
    first, again = (
        json.loads((path / "test_results.json").read_text(encoding="utf-8")) for path in (folder, tmp_path / "again")
    )
    assert first["test_micro_f1"] == again["test_micro_f1"]


def test_texts_of_the_earlier_test_split_are_not_trained_on(hcal, model, tmp_path):
    """A new row joins the split that an earlier row with its text was in, wherever the new table's own split puts it."""
    record = json.loads((model / "split.json").read_text(encoding="utf-8"))
    old = pd.read_csv(tmp_path / "old.csv")
    fresh = pd.read_csv(write(tmp_path / "fresh.csv", 60, 30))
    pd.concat([old, old, fresh]).to_csv(tmp_path / "new.csv", index=False)  # each earlier text twice
    data_args = DataArguments(data_dir="new.csv", text=["Text"], labels=["Area", "Topic"])
    raw = load_data(data_args)
    earlier = {name: set(old["Text"].iloc[record[name]]) for name in ("train", "validation", "test")}
    assert set(raw["train"]["Text"]) & earlier["test"]  # the new table's own split would train on them
    joined, used = add_earlier_rows(raw, [record], data_args)
    assert used == [record]
    assert sum(len(part) for part in joined.values()) == 60 + 120 + 30
    texts = {name: part["Text"][:] for name, part in joined.items()}
    for name, other in itertools.combinations(texts, 2):
        assert not set(texts[name]) & set(texts[other])
    for name, values in texts.items():
        assert all(values.count(text) == 3 for text in earlier[name])


def test_without_the_earlier_file_the_head_is_regularised_towards_its_values(hcal, model, tmp_path, caplog):
    (tmp_path / "old.csv").write_text("Text,Area,Topic\nchanged,arts,music\n", encoding="utf-8")
    new = write(tmp_path / "new.csv", 60, 24, PATHS[:2])
    code, _, err = hcal(new, "--from", model)
    assert code == 0, err
    assert "old.csv are not used: the file is changed" in caplog.text
    assert "Only the new rows are trained on" in caplog.text
    kept = HcalForSequenceClassification.from_pretrained(tmp_path / "outputs" / "new")
    start = HcalForSequenceClassification.from_pretrained(model)
    assert kept.config.labels == start.config.labels
    # Labels that occur only in the earlier rows keep their prototypes.
    arts = [kept.config.labels.index(label) for label in ("arts", "poetry", "music")]
    assert kept.prototypes.weight[arts].equal(start.prototypes.weight[arts])
    assert not kept.prototypes.weight.equal(start.prototypes.weight)
    assert "earlier" not in json.loads((tmp_path / "outputs/new/split.json").read_text(encoding="utf-8"))


def test_two_new_rows_are_enough_to_continue(hcal, model, tmp_path):
    new = write(tmp_path / "new.csv", 60, 2)
    code, out, err = hcal(new, "--from", model)
    assert code == 0, err
    assert "Rows: 2 new, and 60" in out


def test_options_that_the_model_already_fixes_are_refused(hcal, model, tmp_path):
    new = write(tmp_path / "new.csv", 60, 20)
    code, _, err = hcal(new, "--from", model, "--label-mode", "multi_path")
    assert code == 1
    assert "--label-mode is decided by the model" in err
    code, _, err = hcal(new, "--from", model, "--taxonomy", "taxonomy.json")
    assert code == 1
    assert "--taxonomy is" in err
    code, _, err = hcal(new, "--from", model, "--text", "Body")
    assert code == 1
    assert "has no column 'Body': its columns are 'Text', 'Area', 'Topic'" in err


def test_a_fine_tuned_model_is_trained_further_within_the_time_budget(hcal, tmp_path, encoder_dir):
    table = write(tmp_path / "old.csv", 0, 40)
    quick = ("--num-train-epochs", "1", "--tune", "none")
    code, _, err = hcal(table, *COLUMNS, "--encoder", encoder_dir, "--time-budget", "60", *quick)
    assert code == 0, err
    new = write(tmp_path / "new.csv", 60, 20, [*PATHS, ["sport", "chess"]])
    code, _, err = hcal(new, "--from", "outputs/old", "--time-budget", "60", *quick)
    assert code == 0, err
    labels = HcalForSequenceClassification.from_pretrained("outputs/new").config.labels
    assert {"sport", "chess", "physics"} <= set(labels)
    new = write(tmp_path / "more.csv", 60, 20)
    code, _, err = hcal(new, "--from", "outputs/old", "--time-budget", "0", *quick)
    assert code == 1
    assert "was fine-tuned, and continuing takes longer than allowed" in err
    code, out, err = hcal(new, "--from", "outputs/old", "--time-budget", "60", *quick)
    assert code == 0, err
    assert "Regime: fine-tuned." in out


def test_a_model_that_was_trained_on_split_files_keeps_its_earlier_record(hcal, model, tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    for i, name in enumerate(("train", "validation", "test")):
        write(folder / f"{name}.csv", 60 + 20 * i, 20)
    settings = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))
    settings |= {"start_from": str(model), "data_dir": str(folder), "output_dir": str(tmp_path / "second")}
    del settings["encoder"]
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    code, _, err = hcal(tmp_path / "second.yaml")
    assert code == 0, err
    new = write(tmp_path / "third.csv", 120, 20)
    code, out, err = hcal(new, "--from", tmp_path / "second")
    assert code == 0, err
    assert "Rows: 20 new, and 60" in out


def test_label_columns_of_other_types_are_joined(tmp_path, taxonomy):
    """A CSV file has path strings, JSON lines have lists, and a Parquet file has classes: the labels stay the same."""
    pd.DataFrame(
        {
            "text": ["one", "two", "three"],
            "labels": ["arts > stage > opera", '["science > physics > quantum", "botany"]', ""],
        }
    ).to_csv(tmp_path / "a.csv", index=False)
    rows = [{"text": "four", "labels": [["arts", "writing"], ["science"]]}, {"text": "five", "labels": []}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    features = Features({"text": Value("string"), "labels": ClassLabel(names=["fiction", "opera"])})
    Dataset.from_dict({"text": ["six", "seven"], "labels": [0, -1]}, features).to_parquet(tmp_path / "c.parquet")
    tables = {name: read_table(tmp_path / name) for name in ("a.csv", "b.jsonl", "c.parquet")}
    expected = {}
    for table in tables.values():
        names = class_names(table, ["labels"])
        for text, cell in zip(table["text"], table["labels"]):
            labels = LabelReader(class_names=names)([cell])
            expected[text] = None if labels is None else sorted(taxonomy.encode(labels).tolist())
    assert list(expected.values()).count(None) == 2  # of the empty cell and the class -1
    assert expected["five"] == []
    for new in tables:
        data_args = DataArguments(data_dir=str(tmp_path / new))
        records = [
            {
                "file": str(path),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "train": [*range(len(tables[name]))],
            }
            for name in tables
            if name != new
            for path in [tmp_path / name]
        ]
        joined, used = add_earlier_rows(DatasetDict(train=tables[new]), records, data_args)
        assert used == records
        found = {}
        for text, cell in zip(joined["train"]["text"], joined["train"]["labels"]):
            labels = LabelReader()([cell])
            found[text] = None if labels is None else sorted(taxonomy.encode(labels).tolist())
        assert found == expected

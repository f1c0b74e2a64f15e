"""`hcal taxonomy apply` changes the labels of a saved model, and `hcal train --from` continues from the result."""

import json

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from hcal_hf import HcalForSequenceClassification, apply_changes
from tests.commands.test_continued_run import COLUMNS, write

CHANGES = """action,path,new_path
rename,science,sciences
move,arts > music,music
merge,science > physics,sciences > nature
merge,science > biology,sciences > nature
"""


@pytest.fixture
def model(hcal, tmp_path, encoder_dir):
    """Returns a model that was trained on 60 rows with a frozen encoder."""
    table = write(tmp_path / "old.csv", 0, 60)
    code, _, err = hcal("train", table, *COLUMNS, "--encoder", encoder_dir, "--time-budget", "0", "--use_cpu")
    assert code == 0, err
    return tmp_path / "outputs" / "old"


@pytest.fixture
def changes(tmp_path):
    path = tmp_path / "changes.csv"
    path.write_text(CHANGES, encoding="utf-8")
    return path


def labels_of(folder):
    return set(json.loads((folder / "config.json").read_text(encoding="utf-8"))["labels"])


def test_the_changed_model_is_saved_and_training_continues_with_translated_rows(hcal, model, changes, tmp_path):
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    code, out, err = hcal("taxonomy", "apply", model, changes, "--dry-run")
    assert code == 0, err
    assert "6 labels before and 5 after: 0 added, 0 removed, 1 renamed, 1 moved, 1 merged." in out
    assert "Nothing was written" in out
    assert not (tmp_path / "new").exists()
    code, out, err = hcal("taxonomy", "apply", model, changes, "--output-dir", "new")
    assert code == 0, err
    assert "The model is in new." in out
    assert labels_of(tmp_path / "new") == {"sciences", "arts", "music", "nature", "poetry"}
    assert {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()} == before
    assert AutoTokenizer.from_pretrained(tmp_path / "new")("stars")["input_ids"]
    card = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert (
        "The taxonomy was changed after this training, without training again: 1 renamed, 1 moved, 1 merged." in card
    )

    new = write(tmp_path / "new.csv", 60, 20, [["sciences", "nature"], ["arts", "poetry"], ["music", None]])
    code, out, err = hcal("train", new, "--from", "new", "--output-dir", "trained", "--use_cpu")
    assert code == 0, err
    assert "New labels" not in out  # the old names of the earlier rows are translated
    assert "Rows: 20 new, and 60 that the model was trained on" in out
    assert labels_of(tmp_path / "trained") == {"sciences", "arts", "music", "nature", "poetry"}

    # The next change is applied to the earlier rows on top of the first one.
    changes.write_text("change,label,new\nremove,poetry,\nrename,sciences,science\n", encoding="utf-8")
    code, _, err = hcal("taxonomy", "apply", "trained", changes, "--output-dir", "third")
    assert code == 0, err
    records = json.loads((tmp_path / "third" / "split.json").read_text(encoding="utf-8"))["earlier"]
    last, first = (dict(zip(r["relabelled"]["labels"], r["relabelled"]["to"])) for r in records)
    assert first == {
        "science": "science", "arts": "arts", "physics": "nature", "biology": "nature", "poetry": None, "music": "music"
    }  # fmt: skip
    assert last["sciences"] == "science"
    code, out, err = hcal("train", write(tmp_path / "more.csv", 90, 12, [["science", "nature"]]), "--from", "third",
                          "--output-dir", "fourth", "--use_cpu")  # fmt: skip
    assert code == 0, err
    # "arts" has no label below it now, so that rows of the removed label end there.
    assert "Rows: 12 new, and 80 that" in out
    assert labels_of(tmp_path / "fourth") == {"science", "arts", "music", "nature"}


def test_merged_labels_are_weighted_by_training_documents(hcal, model, changes, tmp_path):
    record = json.loads((model / "split.json").read_text(encoding="utf-8"))
    topics = pd.read_csv(tmp_path / "old.csv")["Topic"].iloc[record["train"]]
    number = {topic: int((topics == topic).sum()) for topic in ("physics", "biology")}
    old = HcalForSequenceClassification.from_pretrained(model)
    index = old.taxonomy.label_index
    with torch.no_grad():
        vectors = old.prototypes.vectors(old.projection)
        total = number["physics"] + number["biology"]
        expected = sum(vectors[index[topic]] * number[topic] for topic in number) / total
        report = apply_changes(model, changes, tmp_path / "new")
        new = HcalForSequenceClassification.from_pretrained(tmp_path / "new")
        merged = new.prototypes.vectors(new.projection)[new.taxonomy.index("nature")]
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)
    assert not any("equal weights" in note for note in report.notes)
    (tmp_path / "old.csv").write_text("changed", encoding="utf-8")
    assert any("equal weights" in note for note in apply_changes(model, changes).notes)


def test_a_model_is_replaced_only_on_request(hcal, model, changes):
    before = labels_of(model)
    code, _, err = hcal("taxonomy", "apply", model, changes, "--output-dir", model)
    assert code == 1
    assert "holds a model: give --overwrite to replace it" in err
    assert labels_of(model) == before
    code, out, err = hcal("taxonomy", "apply", model, changes, "--output-dir", model, "--overwrite", "--json")
    assert code == 0, err
    assert json.loads(out)["labels"]["physics"] == "nature"
    assert "nature" in labels_of(model)
    assert not list(model.parent.glob("tmp*"))


def test_an_edited_card_goes_along(hcal, model, changes, tmp_path):
    (model / "README.md").write_text("My card.", encoding="utf-8")
    assert hcal("taxonomy", "apply", model, changes, "--output-dir", "new")[0] == 0
    assert (tmp_path / "new" / "README.md").read_text(encoding="utf-8") == "My card."


def test_invalid_changes_write_nothing(hcal, model, tmp_path):
    path = tmp_path / "changes.csv"
    path.write_text("action,path,new_path\nremove,poetry,\nrename,physic,x\n", encoding="utf-8")
    code, _, err = hcal("taxonomy", "apply", model, path, "--output-dir", "new")
    assert code == 1
    assert "Row 3 of changes.csv: Unknown label 'physic'. Closest known: 'physics'" in err
    assert not (tmp_path / "new").exists()
    assert hcal("taxonomy", "apply", model, path)[0] == 2
    assert hcal("taxonomy", "apply", model, path, "--dry-run", "--output-dir", "new")[0] == 2
    path.write_text("action,path,new_path\n", encoding="utf-8")
    code, _, err = hcal("taxonomy", "apply", model, path, "--dry-run")
    assert code == 1
    assert "has no changes" in err


def test_a_diff_is_applied_as_it_is_written(hcal, model, tmp_path):
    (tmp_path / "new.txt").write_text(
        "science > physics\nscience > biology\narts > poems\nsport > chess\n", encoding="utf-8"
    )
    (tmp_path / "old.txt").write_text(
        "science > physics\nscience > biology\narts > poetry\narts > music\n", encoding="utf-8"
    )
    assert hcal("taxonomy", "diff", "old.txt", "new.txt", "--out", "diff.csv")[0] == 0
    code, _, err = hcal("taxonomy", "apply", model, "diff.csv", "--output-dir", "new")
    assert code == 0, err
    assert labels_of(tmp_path / "new") == {"science", "physics", "biology", "arts", "poems", "sport", "chess"}

"""Prediction files in CSV, Excel, JSON lines and Parquet, with confidence, level columns and a review file."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest
from openpyxl import load_workbook

from hcal_hf import HcalForSequenceClassification
from hcal_hf.commands import main as cli
from hcal_hf.commands import prediction_formats
from hcal_hf.commands.prediction_formats import confidence, end_paths
from tests.builders import WORDS, build_model, build_taxonomy, build_tokenizer

TEXTS = [f"{word} of {other}" for word in WORDS[:6] for other in WORDS[6:9]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    build_model(build_taxonomy()).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    rows = [{"subject": text, "body": "a study"} for text in TEXTS] + [{"subject": "", "body": None}]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def predict(folder, out, *options):
    command = [
        "predict",
        str(folder / "model"),
        str(folder / "texts.jsonl"),
        "--out",
        str(folder / out),
        "--cpu",
        "--quiet",
    ]
    return cli.main([*command, "--text", "subject", "body", "--overwrite", *options])


def read(path):
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    if path.suffix == ".xlsx":
        header, *rows = load_workbook(path).active.iter_rows(values_only=True)
        return [dict(zip(header, row)) for row in rows]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pq.read_table(path).to_pylist()


def test_all_formats_contain_the_same_predictions(folder):
    assert predict(folder, "plain.parquet") == 0
    plain = read(folder / "plain.parquet")
    for suffix in ("csv", "jsonl", "xlsx", "parquet"):
        assert predict(folder, f"a.{suffix}", "--level-columns") == 0
        rows = read(folder / f"a.{suffix}")
        assert len(rows) == len(plain) == len(TEXTS) + 1
        for row, expected in zip(rows, plain):
            paths = end_paths(expected["paths"])
            assert float(row["confidence"]) == pytest.approx(
                confidence(expected["paths"], expected["scores"]), abs=1e-5
            )
            if suffix in ("csv", "xlsx"):
                assert (row["labels"] or "") == "; ".join(" > ".join(path) for path in paths)
            else:
                assert row["labels"] == expected["labels"]
            assert [row[f"level_{k + 1}"] or None for k in range(3)] == (paths[0] if paths else [None] * 3)
        assert "text is empty" in rows[-1]["problem"]
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "xlsx", "parquet"])
def test_rows_with_low_confidence_are_written_to_a_review_file(folder, suffix, capsys):
    assert predict(folder, "plain.parquet") == 0
    scores = sorted(confidence(row["paths"], row["scores"]) for row in read(folder / "plain.parquet"))
    limit = scores[len(scores) // 2]
    assert predict(folder, f"b.{suffix}", "--review", f"{limit:.6f}") == 0
    kept, review = read(folder / f"b.{suffix}"), read(folder / f"b-review.{suffix}")
    assert len(kept) + len(review) == len(TEXTS) + 1
    assert min(float(row["confidence"]) for row in kept) >= max(float(row["confidence"]) for row in review)
    assert sorted(int(row["row"]) for row in kept + review) == list(range(len(TEXTS) + 1))
    assert {str(row["unsure"]) for row in review} == {"True"}
    assert f"{len(review)} rows need a review" in capsys.readouterr().out


def test_one_text_or_standard_input_can_be_predicted(folder, capsys, monkeypatch):
    assert cli.main(["predict", str(folder / "model"), "stars and atoms"]) == 0
    line = capsys.readouterr().out.strip()
    assert line.count(" > ") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("stars and atoms\n\nplants\n"))
    assert cli.main(["predict", str(folder / "model"), "-", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [bool(row["problem"]) for row in rows] == [False, True, False]
    taxonomy = HcalForSequenceClassification.from_pretrained(folder / "model").taxonomy
    assert set(rows[0]["labels"]) <= set(taxonomy.labels)


def test_confidence_is_the_probability_of_the_least_probable_end_label():
    assert confidence([["a"], ["a", "b"], ["c"]], [0.9, 0.4, 0.6]) == 0.4
    assert confidence([], []) == 0.0
    assert end_paths([["a"], ["a", "b"], ["c"]]) == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --out"),
        (["--out", "a.pdf"], "--out must end in .parquet, .csv"),
        (["--out", "a.csv", "--review", "2"], "must be a probability"),
    ],
)
def test_invalid_options_are_refused(folder, options, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["predict", str(folder / "model"), str(folder / "texts.jsonl"), *options])
    assert message in capsys.readouterr().err


def test_too_many_rows_for_excel_and_existing_files_are_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(prediction_formats, "EXCEL_ROWS", 5)
    assert predict(folder, "c.xlsx") == 1
    assert "do not fit into a sheet of Excel" in capsys.readouterr().err
    (folder / "d.csv").write_text("", encoding="utf-8")
    command = ["predict", str(folder / "model"), str(folder / "texts.jsonl"), "--out", str(folder / "d.csv")]
    assert cli.main([*command, "--text", "subject"]) == 1
    assert "exists already" in capsys.readouterr().err

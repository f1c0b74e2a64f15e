"""`hcal audit` writes suspicions as tables and as a page, and applies decisions without losing anything."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hcal_hf import DataArguments, HcalForSequenceClassification, Taxonomy, apply_decisions

LEVELS = ("area", "product")
TEXTS = {
    "Hardware > Printer": "stars and atoms", "Hardware > Screen": "atoms with energy",
    "Network > Wifi": "poems of old", "Network > Cable": "drama with music",
}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_default_encoder(monkeypatch, encoder_dir):
    monkeypatch.setattr("hcal_hf.commands.audit_run.default_encoder", lambda: encoder_dir)


@pytest.fixture
def table(tmp_path):
    """A table of 32 rows, of which row 6 stops too early and row 9 has no known label."""
    path = tmp_path / "tickets.csv"
    rows = [[f"{text} {i}", *label.split(" > ")] for i in range(8) for label, text in TEXTS.items()]
    rows[6][2] = ""
    rows[9][1:] = ["", ""]
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", *LEVELS], *rows])
    return path


def read_csv(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_suspicions_are_written_in_each_format(hcal, table, tmp_path):
    words = ("audit", table, "--labels", *LEVELS, "--folds", 3, "--cpu")
    code, out, err = hcal(*words, "--out", "s.csv", "--page", "page.html", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["documents"] == 31
    assert (report["label_mode"], report["partial_paths"]) == ("single_path", True)
    rows = read_csv("s.csv")
    assert len(rows) == report["suspicions"] == 2  # Wifi and Cable below Network
    assert {(row["row"], row["present"], row["decision"]) for row in rows} == {("6", "Network", "")}
    assert {row["path"] for row in rows} == {"Network > Wifi", "Network > Cable"}
    assert [row["missing"] for row in rows] == [row["path"].split(" > ")[1] for row in rows]
    assert all(0 <= float(row["p_missing"]) <= 1 for row in rows)
    assert len(read_csv("s-wrong.csv")) == report["wrong"]
    assert "Labels that look wrong" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert hcal(*words, "--out", "s.jsonl", "--no-texts")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["missing"] == [rows[0]["missing"]]
    assert "text" not in lines[0]
    assert hcal(*words, "--out", "s.parquet", "--label-mode", "multi_path", "--top", 7)[0] == 0
    assert pq.read_table("s.parquet").num_rows == 7
    assert not (tmp_path / "s-wrong.parquet").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--labels", *LEVELS), 2, "give --out"),
        (("--labels", *LEVELS, "--out", "s.html"), 2, "--out must end in .csv"),
        (("--labels", *LEVELS, "--page", "s.csv"), 2, "--page must end in .html"),
        (("--labels", "topic", "--out", "s.csv"), 1, "has no column 'topic'"),
        (("--labels", *LEVELS, "--out", "s.csv", "--folds", 40), 1, "folds=40 is more than the 31 different"),
        (("--labels", *LEVELS, "--out", "tickets.csv"), 1, "exists already"),
        (("--labels", *LEVELS, "--out", "s.csv", "--model", "m", "--encoder", "e"), 2, "leave out --encoder"),
        (("--apply", "d.csv"), 2, "--apply needs --out"),
    ],
)
def test_wrong_usage_and_bad_data_are_reported(hcal, table, words, code, message):
    found, _, err = hcal("audit", table, *words)
    assert found == code
    assert message in err


def test_decisions_change_only_the_label_cells_of_accepted_rows(hcal, table, tmp_path):
    hcal("audit", table, "--labels", *LEVELS, "--folds", 3, "--out", "s.csv", "--cpu")
    rows = read_csv("s.csv")
    for row in rows:
        row["decision"] = "Accept" if row["path"] == "Network > Wifi" else "reject"
    with open("d.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    code, out, err = hcal("audit", table, "--labels", *LEVELS, "--apply", "d.csv", "--out", "corrected.csv")
    assert code == 0, err
    assert "1 labels were added to 1 of 32 rows, 1 were rejected" in out
    before, after = (p.read_bytes().split(b"\r\n") for p in (table, tmp_path / "corrected.csv"))
    assert len(before) == len(after)
    changed = [(old, new) for old, new in zip(before, after) if old != new]
    assert changed == [(b"poems of old 1,Network,", b"poems of old 1,Network,Wifi")]


# ---- Layouts ----

TAXONOMY = Taxonomy.from_paths([["A", "a1"], ["A", "a2"], ["B", "b1", "b11"]])
ADD = [(0, "A > a2"), (1, "B > b1 > b11"), (2, "A > a1")]


def decide(tmp_path, decisions, name="d.csv"):
    path = tmp_path / name
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("row", "path", "decision"), *decisions])
    return path


def arguments(path, tmp_path, **kwargs):
    TAXONOMY.to_json(tmp_path / "taxonomy.json")
    return DataArguments(data_dir=str(path), taxonomy=str(tmp_path / "taxonomy.json"), **kwargs)


def labels_of(path, **options):
    from hcal_hf import encode_dataset
    from tests.builders import build_tokenizer

    rows = encode_dataset(str(path), TAXONOMY, build_tokenizer(), **{"labels": "labels", **options})
    return [[TAXONOMY.labels[n] for n in row] for row in rows["labels"]]


EXPECTED = [["A", "a1", "a2"], ["A", "B", "a1", "b1", "b11"], ["A", "a1"], ["B"]]
ROWS = {  # the labels of four rows in each layout, and further options
    "paths": ([[["A", "a1"]], [["A", "a1"], ["B"]], [], [["B"]]], {}),
    "path strings": ([["A > a1"], ["A > a1", "B"], [], ["B"]], {}),
    "names": ([["a1"], ["a1", "B"], [], ["B"]], {}),
    "JSON text": (['["a1"]', '[["A", "a1"], ["B"]]', "[]", "B"], {}),
    "delimiter": (["A / a1", "A / a1; B", None, "B"], {"delimiter": ";", "separator": "/", "empty_means_none": True}),
}


@pytest.mark.parametrize("layout", ROWS)
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "csv", "tsv"])
def test_each_layout_reads_back_with_the_accepted_labels(layout, kind, tmp_path):
    cells, options = ROWS[layout]
    if kind in ("csv", "tsv"):
        cells = [json.dumps(cell) if isinstance(cell, list) else cell for cell in cells]
    records = [{"id": i, "labels": cell, "text": f'stars, "{i}"', "more": None} for i, cell in enumerate(cells)]
    path, out = (tmp_path / f"{name}.{kind}" for name in ("data", "out"))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records).replace_schema_metadata({"a": "b"}), path)
    elif kind in ("csv", "tsv"):
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    else:
        text = "\n".join(json.dumps(record) for record in records) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    if layout == "paths" and kind == "csv":
        records[3]["labels"] = None
    decisions = decide(
        tmp_path, [(row, name, "accept") for row, name in ADD] + [(3, "A", "reject"), (3, "B > b1", "")]
    )
    report = apply_decisions(arguments(path, tmp_path, **options), decisions, out)
    assert (report["accepted"], report["changed"], report["rejected"], report["undecided"]) == (3, 3, 1, 1)
    assert labels_of(out, **options) == EXPECTED
    if kind == "parquet":
        old, new = pq.read_table(path), pq.read_table(out)
        assert new.schema == old.schema
        assert new.schema.metadata == old.schema.metadata
        assert new.drop_columns("labels").equals(old.drop_columns("labels"))
    elif kind.startswith("jsonl"):
        read = gzip.open if kind.endswith("gz") else open
        old, new = (read(p, "rt", encoding="utf-8").read().splitlines() for p in (path, out))
        assert old[3] == new[3]
        assert [{**json.loads(line), "labels": 0} for line in new] == [{**record, "labels": 0} for record in records]
    else:
        old, new = (p.read_bytes().split(b"\r\n") for p in (path, out))
        assert old[0] == new[0]
        assert old[4:] == new[4:]


def test_several_paths_fit_into_one_column_per_level(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,top,middle,low\nstars,A,a1,\natoms,B,b1,\ncells,,,\n", encoding="utf-8")
    tables = arguments(path, tmp_path, labels=["top", "middle", "low"], empty_means_none=True)
    decisions = decide(tmp_path, [(0, "b11", "accept"), (1, "b11", "accept"), (2, "B", "accept")])
    apply_decisions(tables, decisions, tmp_path / "out.csv")
    options = {"labels": ["top", "middle", "low"]}
    assert labels_of(tmp_path / "out.csv", **options) == [["A", "B", "a1", "b1", "b11"], ["B", "b1", "b11"], ["B"]]
    assert "atoms,B,b1,b11" in (tmp_path / "out.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ([(0, "a2", "maybe")], "Row 1 of .*: the decision must be accept, reject or empty, got 'maybe'"),
        (
            [(0, "a2", "accept"), (9, "a2", "accept")],
            "Row 2 of .*: the row must be a whole number from 0 to 2, got '9'",
        ),
        ([("x", "a2", "accept")], "got 'x'"),
        ([(0, "a3", "accept")], "Row 1 of .*'a3'"),
        (
            [(0, "a2", "accept"), (0, "A > a2", "reject")],
            "Row 2 of .* is to reject 'A > a2' for row 0, but row 1 decides",
        ),
        (
            [(0, "b11", "accept"), (0, "B > b1", "reject")],
            "Row 1 of .* accepts 'b11' for row 0, but row 2 rejects 'b1'",
        ),
        ([(2, "a2", "accept")], "labels that cannot be read"),
    ],
)
def test_decisions_that_cannot_be_applied_name_their_row(decisions, message, tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [
        {"text": "stars", "labels": ["a1"]},
        {"text": "atoms", "labels": ["B"]},
        {"text": "cells", "labels": ["zz"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        apply_decisions(arguments(path, tmp_path), decide(tmp_path, decisions), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_label_that_does_not_fit_and_another_table_are_refused(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,top\nstars,A\n", encoding="utf-8")
    tables = arguments(path, tmp_path, labels=["top"])
    with pytest.raises(ValueError, match=r"must end like the table, in \.csv"):
        apply_decisions(tables, decide(tmp_path, []), tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="is the table itself"):
        apply_decisions(tables, decide(tmp_path, []), path, overwrite=True)
    two = arguments(path, tmp_path, labels=["top", "text"])
    with pytest.raises(ValueError, match="Row 1 of the decisions"):
        apply_decisions(two, decide(tmp_path, [(0, "b11", "accept")]), tmp_path / "out.csv")
    other = tmp_path / "other.csv"
    other.write_text("row,path,decision,text\n0,a1,accept,atoms\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has another text than row 0 of the table"):
        apply_decisions(tables, other, tmp_path / "out.csv")
    with pytest.raises(ValueError, match="has no column 'decision'"):
        apply_decisions(tables, path, tmp_path / "out.csv") if (
            path.write_text("text,top,row,path\nstars,A,0,a1\n", encoding="utf-8")
        ) else None


def test_a_label_that_is_there_is_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"labels": ["a1"], "text": "stars"}\r\n\r\n{"labels": ["B"],   "text": "b"}', encoding="utf-8")
    report = apply_decisions(arguments(path, tmp_path), decide(tmp_path, [(0, "A", "accept")]), tmp_path / "out.jsonl")
    assert (report["present"], report["accepted"], report["changed"]) == (1, 0, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == path.read_bytes()


def test_a_saved_model_gives_its_encoder_labels_and_columns(hcal, table, tmp_path, encoder_dir, tokenizer):
    taxonomy = Taxonomy.from_paths([*(label.split(" > ") for label in TEXTS), ["Network", "Router"]])
    fields = {"label_mode": "multi_path", "partial_paths": True, "table_options": {"labels": list(LEVELS)}}
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, score_function="linear", **fields)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code, out, err = hcal("audit", table, "--model", "model", "--folds", 3, "--cpu", "--out", "s.csv", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["label_mode"], report["partial_paths"], report["wrong"]) == ("multi_path", True, None)
    assert len(read_csv("s.csv")) == report["suspicions"]
    assert any(row["path"] == "Network > Router" for row in read_csv("s.csv"))  # a label of the model alone
    decide(tmp_path, [(6, "Network > Router", "accept")])
    code, _, err = hcal("audit", table, "--model", "model", "--apply", "d.csv", "--out", "corrected.csv")
    assert code == 0, err
    assert read_csv("corrected.csv")[6]["product"] == "Router"
    table.write_text("text,area,product\nstars,Hardware,Mouse\natoms,Hardware,Printer\n", encoding="utf-8")
    code, _, err = hcal("audit", table, "--model", "model", "--folds", 2, "--out", "t.csv")
    assert code == 1
    assert "'Mouse'" in err

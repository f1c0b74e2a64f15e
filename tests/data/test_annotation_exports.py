"""Exports of annotation tools are tables with one row per document."""

import csv
import json

import pytest
from datasets import Dataset, DatasetDict

from hcal_hf import Taxonomy, build_taxonomy, encode_dataset, read_table
from hcal_hf.data.annotation_exports import unwrap_results
from hcal_hf.data.labels import LabelReader
from hcal_hf.data.tables import TableFile
from hcal_hf.data.taxonomy_check import check_file


def annotation(labels, kind="taxonomy", name="topic", **fields):
    result = (
        [{"id": "x", "from_name": name, "to_name": "text", "type": kind, "value": {kind: labels}}] if labels else []
    )
    return {"id": 1, "completed_by": 1, "result": result, "was_cancelled": False, "ground_truth": False, **fields}


def task(id_, text, *annotations):
    return {
        "id": id_,
        "data": {"text": text},
        "annotations": list(annotations),
        "predictions": [annotation([["never"]])],
    }


TASKS = [
    task(1, "one annotator", annotation([["Hardware", "Printer"]])),
    task(2, "two agree", annotation([["Network"]]), annotation([["Hardware"]]), annotation([["Network"]])),
    task(3, "ground truth", annotation([["Network"]]), annotation([["Hardware", "Screen"]], ground_truth=True)),
    task(4, "cancelled", annotation([["Network"]], was_cancelled=True)),
    task(5, "no annotation"),
    task(6, "tie, any order", annotation([["Network"], ["Hardware"]]), annotation([["Hardware"]])),
    task(
        7,
        "same labels in another order",
        annotation([["Network"], ["Hardware"]]),
        annotation([["Hardware"], ["Network"]]),
    ),
    task(8, "submitted without a choice", annotation([])),
]
EXPECTED = [
    [["Hardware", "Printer"]], [["Network"]], [["Hardware", "Screen"]], None, None, [["Network"], ["Hardware"]],
    [["Network"], ["Hardware"]], None,
]  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def run(content, name="export.json"):
        path = tmp_path / name
        if name.endswith(".csv"):
            columns = list(dict.fromkeys(key for row in content for key in row))
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, quoting=csv.QUOTE_NONNUMERIC)
                writer.writeheader()
                writer.writerows(content)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return run


def labels_of(table, column="labels"):
    reader = LabelReader(column)
    return [reader([cell]) for cell in table[column][:]]


# ---- Label Studio ----


def test_label_studio_json_has_one_row_per_task(write, caplog):
    table = read_table(write(TASKS))
    assert [name for name in table.column_names if not name.startswith("_")] == ["id", "text", "topic", "labels"]
    assert table["text"][:3] == ["one annotator", "two agree", "ground truth"]
    assert table["labels"][:] == table["topic"][:] == EXPECTED
    message = next(r.message for r in caplog.records if "export of Label Studio" in r.message)
    assert (
        "8 documents; 3 without annotation, which are unlabelled; 1 cancelled or discarded annotation(s) left out"
        in message
    )
    assert "3 with several annotations, of which 2 differ" in message
    assert "the first ones in 1 ties; 1 with a ground truth, which is taken" in message


def test_an_export_is_encoded_and_unlabelled_rows_are_left_out(write, tokenizer, caplog):
    path = write(TASKS)
    taxonomy = build_taxonomy(path)
    assert taxonomy == Taxonomy.from_paths([["Hardware", "Printer"], ["Network"], ["Hardware", "Screen"]])
    encoded = encode_dataset(path, taxonomy, tokenizer)
    assert [[taxonomy.labels[i] for i in row] for row in encoded["labels"]] == [
        ["Hardware", "Printer"], ["Network"], ["Hardware", "Screen"], ["Hardware", "Network"], ["Hardware", "Network"]
    ]  # fmt: skip
    assert "3 unlabelled rows left out" in caplog.text


def test_several_questions_have_a_column_each(write):
    both = annotation(["positive"], "choices", "mood")
    both["result"] += annotation([["A", "B"]])["result"]
    region = {"from_name": "span", "type": "labels", "value": {"start": 0, "end": 3, "labels": ["X"]}}
    both["result"].append(region)
    table = read_table(write([task(1, "a", both), task(2, "b")]))
    assert [name for name in table.column_names if not name.startswith("_")] == ["id", "text", "mood", "topic"]
    assert (table["mood"][:], table["topic"][:]) == ([["positive"], None], [[["A", "B"]], None])


def test_old_exports_and_names_of_the_data_are_kept(write):
    old = {"id": 1, "data": {"text": "a", "topic": "raw", "id": "own"}, "completions": [annotation(["A"], "choices")]}
    table = read_table(write([old]))
    assert (table["topic"][:], table["topic.labels"][:], table["labels"][:], table["id"][:]) == (
        ["raw"], [["A"]], [["A"]], ["own"]
    )  # fmt: skip


MINIMAL = [
    {"text": "a", "id": 1, "topic": "Printer"},
    {"text": "b", "id": 2, "topic": {"choices": ["Printer", "Screen"]}},
    {"text": "c", "id": 3, "topic": [{"taxonomy": [["Hardware", "Printer"], ["Network"]]}]},
    {"text": "d", "id": 4, "topic": "Printer"},
    {"text": "d", "id": 4, "topic": "Screen"},
    {"text": "d", "id": 4, "topic": "Screen"},
    {"text": "e", "id": 5, "topic": "Screen", "was_cancelled": True},
    {"text": "f", "id": 6, "topic": ""},
]


@pytest.mark.parametrize("name", ["min.json", "min.csv"])
def test_label_studio_json_min_and_csv_have_one_row_per_task(write, name, caplog):
    about = {"annotator": 1, "annotation_id": 7, "created_at": "2021", "updated_at": "2021", "lead_time": 1.5}
    rows = [{**row, **about, "annotation_id": i, "was_cancelled": row.get("was_cancelled", False)}
            for i, row in enumerate(MINIMAL)]  # fmt: skip
    if name == "min.json":
        path = write(rows, name)
    else:
        cells = [{key: json.dumps(v) if isinstance(v, dict | list) else v for key, v in row.items()} for row in rows]
        path = write(cells, name)
    table = read_table(path)
    assert table["text"][:] == ["a", "b", "c", "d", "f"]
    assert labels_of(table, "topic") == [
        ["Printer"], ["Printer", "Screen"], [["Hardware", "Printer"], ["Network"]], ["Screen"], None
    ]  # fmt: skip
    assert "5 documents; 1 cancelled or discarded annotation(s) left out; 1 with several annotations" in caplog.text


def test_only_results_are_unwrapped():
    assert unwrap_results({"choices": ["A", "B"]}) == ["A", "B"]
    assert unwrap_results([{"taxonomy": [["A"]]}, {"taxonomy": [["A"], ["B"]]}]) == [["A"], ["B"]]
    for other in (
        "A",
        None,
        ["A"],
        [],
        [{"rectanglelabels": ["A"]}],
        {"start": 1, "choices": ["A"]},
        {"choices": "A"},
    ):
        assert unwrap_results(other) == other


# ---- Argilla ----


def record(id_, text, **responses):
    return {
        "id": id_,
        "fields": {"text": text},
        "metadata": {"source": "mail"},
        "suggestions": {"topic": {"value": "never", "score": None, "agent": None}},
        "responses": {
            name: [{"value": value, "user_id": str(i)} for i, value in enumerate(values)]
            for name, values in responses.items()
        },
        "vectors": {},
        "_server_id": "s",
    }  # fmt: skip


def test_argilla_records_have_a_column_per_question(write, caplog):
    path = write([
        record("1", "a", topic=["Printer"], tags=[["x", "y"]]),
        record("2", "b", topic=["Screen", "Printer", "Screen"], tags=[["x"], ["y", "x"], ["x", "y"]]),
        record("3", "c"),
    ])  # fmt: skip
    table = read_table(path)
    assert table["text"][:] == ["a", "b", "c"]
    assert table["source"][:] == ["mail"] * 3
    assert labels_of(table, "topic") == [["Printer"], ["Screen"], None]
    assert labels_of(table, "tags") == [["x", "y"], ["y", "x"], None]
    assert "export of Argilla: 3 documents; 1 without annotation" in caplog.text
    table = read_table(write([record("1", "a", topic=["Printer"])], "one.json"))
    assert table["labels"][:] == table["topic"][:] == ["Printer"]


FLAT = {
    "id": ["1", "2", "3", "4"],
    "text": ["a", "b", "c", "d"],
    "topic.responses": [["Printer"], ["Screen", "Printer", "Printer"], None, ["Screen", "Printer"]],
    "topic.responses.users": [["u"], ["u", "v", "w"], None, ["u", "v"]],
    "topic.responses.status": [["submitted"], ["submitted"] * 3, None, ["discarded", "submitted"]],
    "tags.responses": [[["x", "y"]], [["x"], ["x"], ["y"]], None, [["y"], ["x"]]],
    "tags.responses.users": [["u"], ["u", "v", "w"], None, ["u", "v"]],
    "tags.responses.status": [["submitted"], ["submitted"] * 3, None, ["draft", "submitted"]],
}


@pytest.mark.parametrize("form", ["data set", "splits", "parquet", "json"])
def test_flat_argilla_data_sets_have_a_column_per_question(write, tmp_path, form, caplog):
    dataset = Dataset.from_dict(FLAT)
    if form == "splits":
        table = read_table(DatasetDict(train=dataset))["train"]
    elif form == "data set":
        table = read_table(dataset)
    elif form == "parquet":
        dataset.to_parquet(tmp_path / "t.parquet")
        table = read_table(tmp_path / "t.parquet")
    else:
        table = read_table(write([dict(zip(FLAT, row)) for row in zip(*FLAT.values())]))
    assert labels_of(table, "topic") == [["Printer"], ["Printer"], None, ["Printer"]]
    assert labels_of(table, "tags") == [["x", "y"], ["x"], None, ["x"]]
    assert "4 documents; 1 without annotation, which are unlabelled; 1 cancelled or discarded" in caplog.text


# ---- Other tables ----


def test_exports_are_checked_as_documents(write):
    report = check_file(write(TASKS), min_documents=1)
    assert report.documents == 8
    assert {problem.kind: problem.rows for problem in report.problems}["no-labels"] == 3
    assert report.taxonomy.labels == ("Hardware", "Network", "Printer", "Screen")


def test_other_json_is_read_as_before(write):
    for rows in ([{"text": "a", "data": {"x": 1}}], [{"text": "a", "annotations": []}], [{"fields": {}, "text": "a"}]):
        assert TableFile(write(rows)).columns == list(rows[0])
    plain = Dataset.from_dict({"text": ["a"], "labels": ["b"]})
    assert read_table(plain) is plain
    stream = plain.to_iterable_dataset()
    assert read_table(stream) is stream

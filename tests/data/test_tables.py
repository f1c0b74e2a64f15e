"""Tables of all formats, encodings and separators are read to the same rows."""

import gzip
import json

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from openpyxl import Workbook

from hcal_hf import read_table
from hcal_hf.data.table_formats import detect_delimiter
from hcal_hf.data.tables import UNREADABLE, TableFile
from hcal_hf.data.texts import join_texts

HEADER = ["Beschreibung", "Bereich", "Code"]
ROWS = [
    ["Drucker macht weiße Streifen", "Hardware", "007"],
    ["Kein Netz, kein Ton", "NA", "1.0"],
    ['Er sagt "nein"\nund geht', "None", "1e3"],
]


def csv_text(delimiter):
    quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in [HEADER, *ROWS]]
    return "".join(delimiter.join(row) + "\r\n" for row in quoted)


def write_excel(path):
    book = Workbook()
    for row in [HEADER, *ROWS]:
        book.active.append(row)
    book.save(path)


def write_arrow(path, writer):
    table = pa.table(dict(zip(HEADER, zip(*ROWS))))
    with writer(str(path), table.schema) as file:
        file.write_table(table)


def written(tmp_path):
    """Returns one file for each format, separator and encoding."""
    lines = "".join(json.dumps(dict(zip(HEADER, row)), ensure_ascii=False) + "\n" for row in ROWS)
    contents = {
        "utf8.csv": csv_text(",").encode(),
        "excel.csv": b"\xef\xbb\xbf" + csv_text(";").encode(),
        "cp1252.csv": csv_text(";").encode("cp1252"),
        "unicode_text.txt.csv": csv_text("\t").encode("utf-16"),
        "bars.csv.gz": gzip.compress(csv_text("|").encode()),
        "tabs.tsv": csv_text("\t").encode(),
        "lines.jsonl": lines.encode(),
        "bom.ndjson.gz": gzip.compress(b"\xef\xbb\xbf" + lines.encode()),
        "array.json": json.dumps([dict(zip(HEADER, row)) for row in ROWS]).encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    write_excel(tmp_path / "sheet.xlsx")
    pq.write_table(pa.table(dict(zip(HEADER, zip(*ROWS)))), tmp_path / "table.parquet")
    write_arrow(tmp_path / "file.arrow", pa.ipc.new_file)
    write_arrow(tmp_path / "stream.arrow", pa.ipc.new_stream)
    return [*contents, "sheet.xlsx", "table.parquet", "file.arrow", "stream.arrow"]


def test_every_format_encoding_and_separator_gives_the_same_text(tmp_path):
    for name in written(tmp_path):
        table = TableFile(tmp_path / name)
        assert table.columns == HEADER, name
        assert [list(row.cells) for row in table.rows(HEADER)] == ROWS, name
        assert [list(row.cells) for row in table.rows(["Code", "Beschreibung"])] == [[r[2], r[0]] for r in ROWS], name
        dataset = read_table(tmp_path / name)
        assert [[row[column] for column in HEADER] for row in dataset] == ROWS, name


def test_data_frames_and_datasets_are_read(tmp_path):
    frame = pd.DataFrame(
        {"text": ["a", None, "c"], "labels": [["x", "y"], float("nan"), "z"], "n": [1, 2, 3]}, index=[5, 7, 9]
    )
    dataset = read_table(frame)
    assert dataset["text"][:] == ["a", None, "c"]
    assert dataset["labels"][:] == ['["x", "y"]', None, "z"]  # a column of mixed types is read as text
    assert dataset.column_names == ["text", "labels", "n"]
    assert read_table(polars.DataFrame({"text": ["a"], "labels": [["x", "y"]]}))[0] == {
        "text": "a",
        "labels": ["x", "y"],
    }
    assert read_table(dataset) is dataset
    arrays = read_table(pd.DataFrame({"labels": [np.array(["x", "y"]), np.array(["z"])]}))
    assert arrays["labels"][:] == [["x", "y"], ["z"]]
    with pytest.raises(ValueError, match=r"got list.*from_list"):
        read_table([{"text": "a"}])


def test_a_folder_is_read_as_splits(tmp_path):
    (tmp_path / "train.csv").write_text("text,labels\na,x\n", encoding="utf-8")
    (tmp_path / "test.jsonl").write_text('{"text": "b", "labels": [["x", "y"]]}\n', encoding="utf-8")
    splits = read_table(tmp_path)
    assert isinstance(splits, DatasetDict)
    assert list(splits) == ["train", "test"]
    assert splits["test"]["labels"][0] == [["x", "y"]]
    with pytest.raises(ValueError, match=r"no validation file: it must hold validation\.jsonl"):
        read_table(tmp_path, splits=["validation"])
    (tmp_path / "train.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match="two files for train"):
        read_table(tmp_path)


def test_rows_that_cannot_be_read_are_kept_with_their_reason(tmp_path):
    (tmp_path / "a.csv").write_text('text,labels\na,x\nb,x,y\n"c" d,x\n', encoding="utf-8")
    dataset = read_table(tmp_path / "a.csv")
    assert dataset["text"][:] == ["a", None, None]
    assert dataset[UNREADABLE][0] is None
    assert "the row has 3 cells, the header 2" in dataset[UNREADABLE][1]
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n[1]\n', encoding="utf-8")
    reasons = read_table(tmp_path / "a.jsonl")[UNREADABLE][:]
    assert reasons[0] is None
    assert "not JSON" in reasons[1]
    assert "not a JSON object but list" in reasons[2]


def test_json_lists_stay_lists_if_all_cells_of_the_column_are_lists(tmp_path):
    rows = [
        {"flat": ["a", "b"], "nested": [["a"], ["b", "c"]], "mixed": ["a"], "empty": [], "number": 7},
        {"flat": [], "nested": [], "mixed": "a", "empty": [], "number": 1.0},
        {"flat": None, "nested": [["d"]], "mixed": [["a", 1]], "empty": None, "number": True},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = read_table(tmp_path / "a.jsonl")
    assert dataset["flat"][:] == [["a", "b"], [], None]
    assert dataset["nested"][:] == [[["a"], ["b", "c"]], [], [["d"]]]
    assert dataset["mixed"][:] == ['["a"]', "a", '[["a", 1]]']
    assert dataset["empty"][:] == ["[]", "[]", None]
    assert dataset["number"][:] == ["7", "1.0", "true"]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\none\n", encoding="utf-8")
    assert read_table(path)["text"][:] == ["one"]
    path.write_text("text\ntwo\nthree\n", encoding="utf-8")
    assert read_table(path)["text"][:] == ["two", "three"]


@pytest.mark.parametrize(
    ("lines", "delimiter"),
    [
        (["Text;Preis, netto\n", "a;1,5\n"], ";"),
        (["text,labels\n", "a;b,c\n"], ","),
        (["text\n", "hello, you\n"], ","),
        (["a|b\n", "x, y|z\n"], "|"),
        (['"a;b",c\n', "x,y\n"], ","),
    ],
)
def test_the_delimiter_of_a_csv_file_is_detected(lines, delimiter):
    assert detect_delimiter(lines) == delimiter


def test_encodings_are_detected_and_logged(tmp_path, caplog):
    path = tmp_path / "a.csv"
    path.write_bytes("text\nMüller\n".encode("cp1252"))
    assert TableFile(path).encoding == "cp1252"
    assert "is not UTF-8 and is read as cp1252" in caplog.text
    # A UTF-8 file with one damaged character is not read as cp1252, where each umlaut would become two letters.
    path.write_bytes("text\nMüller\n".encode() + b"Gr\xfc\xdfe\n")
    table = TableFile(path)
    assert table.encoding == "utf-8-sig"
    assert "2 byte(s) are not UTF-8" in caplog.text
    assert next(table.rows(["text"])).cells == ("Müller",)
    with pytest.raises(ValueError, match="encoding='klingon' is unknown"):
        TableFile(path, encoding="klingon")


def test_excel_cells_are_read_as_displayed(tmp_path):
    import datetime

    book = Workbook()
    for row in (["text", "code", None], [None, None, None], ["a", 7, 1.5], [True, 1.0, datetime.datetime(2026, 1, 2)]):
        book.active.append(row)
    book.create_sheet("second")
    book.save(tmp_path / "a.xlsx")
    table = TableFile(tmp_path / "a.xlsx")
    assert [row.cells for row in table.rows(["text", "code"])] == [("a", "7"), ("TRUE", "1")]
    assert read_table(tmp_path / "a.xlsx").column_names == ["text", "code", UNREADABLE]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"is empty: its first line must name the columns"),
        ("a.jsonl", b"", r"has no row that can be read"),
        ("a.parquet", b"PAR1", "is damaged, or is not a Parquet file"),
        ("a.arrow", b"ARROW", "is damaged, or is not an Arrow file"),
        ("a.xlsx", b"PK", r"is damaged, or is not an \.xlsx file"),
        ("a.csv.gz", gzip.compress(b"text\nabc\n", mtime=0)[:-5], "is damaged, or was not written to its end"),
        ("a.json", b"[{", "is not JSON"),
        ("a.xls", b"", r"save the sheet as \.xlsx or as CSV UTF-8"),
        ("a.pdf", b"", r"cannot be read as a table: allowed are \.csv"),
    ],
)
def test_unreadable_files_are_refused_with_a_suggestion(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


def test_errors_for_wrong_columns_list_the_columns(tmp_path):
    (tmp_path / "a.csv").write_text("text,text,label\na,b,c\n", encoding="utf-8")
    table = TableFile(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"no column 'lable', but 'label': its columns are 'text', 'text', 'label'"):
        table.check_columns(["lable"])
    with pytest.raises(ValueError, match="has 2 columns 'text'"):
        table.check_columns(["text"])
    with pytest.raises(FileNotFoundError, match="no file"):
        read_table(tmp_path / "b.csv")


def test_text_columns_are_joined():
    assert join_texts(["subject", None, " ", "body", 3]) == "subject\nbody\n3"
    assert join_texts([None, ""]) == ""
    assert join_texts([5]) == 5  # reported as a text that is not a string


def test_reading_a_large_file_needs_little_memory(tmp_path):
    path = tmp_path / "a.csv"
    with open(path, "w", encoding="utf-8") as file:
        file.write("text,labels\n")
        file.writelines(f"some text {i},x\n" for i in range(20_000))
    dataset = read_table(path)
    assert len(dataset) == 20_000
    assert dataset.cache_files  # the table is on disk
    assert isinstance(dataset, Dataset)

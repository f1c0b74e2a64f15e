"""Detection of cells with several labels although no delimiter was given, of equal rows and of conflicting labels."""

import pytest

from hcal_hf import build_taxonomy
from hcal_hf.commands import main as cli
from hcal_hf.data.cell_check import CellCounter


def suspected(*columns, separator=" > "):
    """Returns the suspected delimiter of the columns and the number of affected rows."""
    counter = CellCounter([f"level {i}" for i in range(len(columns))])
    for cells in zip(*columns):
        counter.add(cells)
    found = counter.suspected(separator)
    return None if found is None else (found.delimiter, found.rows)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["A > B|C > D", "A > B", "C > D", "A > E"], ("|", 1)),
        (["A > B|C > D", "A > E|C > F"], ("|", 2)),  # no cell has a single path
        (["A > B; C > D", "A > B;A > E", "C > D"], (";", 2)),
        (["A > B, C > D", "A > B", "C > D"], (",", 1)),
        (["Joy", "Joy;Anger", "Fear;Joy", "Anger"], (";", 1)),
        (["Joy;Anger", "Joy;Fear", "Fear;Anger"], (";", 3)),
        (["Joy\nAnger", "Joy", "Anger"], ("\n", 1)),
        # names of single labels that contain a delimiter
        (["Food, drink", "Tobacco"], None),
        (["Input/output", "Output"], None),
        (["R&D; consulting", "Retail"], None),
        (["A > B, C", "A > D"], None),
        (["['A', 'B']", "['C']", "A"], None),
        ([None, "", "  ", ["A"], 3], None),
    ],
)
def test_a_delimiter_is_suspected_if_the_parts_of_cells_are_labels(cells, expected):
    assert suspected(cells) == expected


def test_delimiters_are_suspected_with_one_column_per_level_and_other_separators():
    assert suspected(["H", "H", "N;H"], ["Printer;Screen", "Printer", "Screen"]) == (";", 1)
    assert suspected(["A|B", "A|C", "A|B"], separator="|") is None


def test_build_taxonomy_warns_of_cells_with_several_labels(tmp_path, caplog):
    path = tmp_path / "table.csv"
    path.write_text("text,labels\na,A > B|C > D\nb,A > B\nc,C > D\n", encoding="utf-8")
    build_taxonomy(path)
    assert "1 rows of column 'labels' seem to hold several labels, such as 'A > B|C > D'" in caplog.text
    assert "--delimiter '|'" in caplog.text
    caplog.clear()
    assert build_taxonomy(path, delimiter="|").labels == ("A", "C", "B", "D")
    assert caplog.text == ""


def test_the_check_reports_equal_rows_conflicts_and_several_labels(tmp_path, capsys):
    path = tmp_path / "table.csv"
    rows = ["a,,A > B", "a,,A > B", "b,x,A > B", "b,x,C > D", "c,,A > B;C > D", "d,,C > D", ",,C > D"]
    path.write_text("\n".join(["subject,body,labels", *rows]), encoding="utf-8")
    words = ["taxonomy", "check", str(path), "--text", "subject", "body", "--min-documents", "1"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "rows with the text and the labels of an earlier row: 1\n    row 3 and row 2" in out
    assert "rows with the text of an earlier row and other labels: 1\n    row 5 and row 4" in out
    assert "cells that seem to hold several labels: 1\n    column 'labels': 'A > B;C > D'" in out
    assert "--delimiter ';'" in out
    assert "rows without a readable text: 1\n    row 8: the text is empty" in out
    assert cli.main([*words, "--delimiter", ";"]) == 0
    assert "seem to hold" not in capsys.readouterr().out

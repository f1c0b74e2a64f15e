"""The commands read taxonomies in every form."""

import json

import pytest

from hcal_hf import DataArguments, read_taxonomy
from hcal_hf.commands import main as cli
from hcal_hf.commands.run_arguments import parse_arguments
from hcal_hf.commands.run_data import read_or_build_taxonomy
from tests.data.test_taxonomy_reader import GOOGLE


@pytest.fixture
def google(tmp_path):
    path = tmp_path / "google.txt"
    path.write_text(GOOGLE, encoding="utf-8")
    return path


def test_a_run_reads_a_taxonomy_in_any_form(google, tmp_path):
    assert read_or_build_taxonomy(None, DataArguments(taxonomy=str(google))) == read_taxonomy(google)
    for options in ('{"label_by": "id"}', {"label_by": "id"}):
        taxonomy = read_or_build_taxonomy(None, DataArguments(taxonomy=str(google), taxonomy_options=options))
        assert taxonomy.labels == ("1", "166", "3237", "2", "3")
    written = '{"label_by": "id", "code_rule": [2, 4]}'
    assert parse_arguments(["--output_dir", "o", "--taxonomy-options", written])[1].taxonomy_options == {
        "label_by": "id", "code_rule": [2, 4]
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text("taxonomy_options: {label_by: id}\noutput_dir: o\n", encoding="utf-8")
    assert parse_arguments([str(config)])[1].taxonomy_options == {"label_by": "id"}
    with pytest.raises(ValueError, match="taxonomy_options has 'labels', which is no argument of read_taxonomy"):
        read_or_build_taxonomy(None, DataArguments(taxonomy=str(google), taxonomy_options={"labels": "id"}))
    for wrong in ("{", "[1]"):
        with pytest.raises(ValueError, match="taxonomy_options must be an object"):
            DataArguments(taxonomy_options=wrong)
    with pytest.raises(ValueError, match=r'taxonomy_options must be an object such as \{"label_by": "id"\}'):
        DataArguments(taxonomy_options="3")


def test_convert_and_diff_take_the_options_of_the_reader(google, tmp_path, capsys):
    out = tmp_path / "ids.csv"
    assert cli.main(["taxonomy", "convert", str(google), "--out", str(out), "--label-by", "id"]) == 0
    assert read_taxonomy(out).labels == ("1", "166", "3237", "2", "3")
    table = tmp_path / "t.csv"
    table.write_text("key;above;title\n1;;A\n2;1;B\n", encoding="cp1252")
    argv = ["taxonomy", "convert", str(table), "--out", str(tmp_path / "t.json"), "--columns"]
    assert cli.main([*argv, "parent=above", "child=key", "name=title", "--encoding", "cp1252"]) == 0
    assert read_taxonomy(tmp_path / "t.json").label_names == {"1": "A", "2": "B"}
    with pytest.raises(SystemExit):
        cli.main([*argv, "parent=above", "key"])
    assert "must be columns of levels, or all of the form role=column" in capsys.readouterr().err
    (tmp_path / "hs.txt").write_text("01 a\n0101 b\n", encoding="utf-8")
    for rule in ("2,4", r"(\d\d)(\d\d)?"):
        argv = ["taxonomy", "diff", str(tmp_path / "hs.txt"), str(tmp_path / "hs.txt"), "--code-rule", rule, "--json"]
        assert cli.main(argv) == 0
        assert json.loads(capsys.readouterr().out)["new_labels"] == 2
    assert cli.main(["taxonomy", "diff", str(google), str(google), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["old_labels"] == 5
    (tmp_path / "cycle.txt").write_text("A\tB\nB\tA\n", encoding="utf-8")
    assert cli.main(["taxonomy", "convert", str(tmp_path / "cycle.txt"), "--out", str(out)]) == 1
    assert "'A' -> 'B' in line 1; 'B' -> 'A' in line 2" in capsys.readouterr().err

"""The recipe of the quickstart: its data, and a run on a part of them."""

import csv
import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hcal_hf import HcalForSequenceClassification, read_named_taxonomy, read_table
from hcal_hf.commands import main as cli

FOLDER = Path(__file__).parents[2] / "recipes" / "naics2012"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def named():
    return read_named_taxonomy(FOLDER / "data" / "code_book.csv.gz")


def test_the_code_book_has_five_levels_and_names(named):
    taxonomy = named.taxonomy
    assert [level.stop - level.start for level in taxonomy.levels] == [20, 99, 312, 713, 1065]
    assert taxonomy.is_forest
    assert named.names["111110"] == "Soybean Farming"
    assert set(named.names) == set(taxonomy.labels)
    path = taxonomy.paths(taxonomy.index("111110"))[0]
    assert path == ["11", "111", "1111", "11111", "111110"]


def test_entries_have_known_codes_and_are_in_one_split(named):
    tables = {split: read_table(FOLDER / "data" / f"{split}.csv.gz") for split in SPLITS}
    assert [len(tables[split]) for split in SPLITS] == [13478, 1909, 3779]
    texts = [set(tables[split]["text"]) for split in SPLITS]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    leaves = {label for label, leaf in zip(named.taxonomy.labels, named.taxonomy.is_leaf) if leaf}
    assert all(set(table["code"]) <= leaves for table in tables.values())


def test_the_data_are_small_and_their_source_is_named():
    assert sum(path.stat().st_size for path in (FOLDER / "data").iterdir()) < 1_000_000
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "US Census Bureau" in readme
    assert "public domain" in readme


def write(path, rows):
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def small(tmp_path):
    """One sector of the data."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (FOLDER / "data").iterdir():
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        code = header.index("id" if "id" in header else "code")
        write(folder / path.name, [header, *(row for row in rows if row[code].startswith("22"))])
    return folder


def test_it_runs_and_leaves_two_models(small, encoder_dir, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("naics2012", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DATA", small)
    monkeypatch.setattr(module, "CODE_BOOK", small / "code_book.csv.gz")
    monkeypatch.setattr(sys, "argv", ["run.py", "--encoder", encoder_dir, "--output_dir", str(tmp_path / "out")])
    module.main()
    out = capsys.readouterr().out
    for name in ("code book alone", "code book and unlabelled entries", "hierarchical head", "logistic regression"):
        assert name in out
    assert out.count("(right)") + out.count("(wrong, it is 22") == 5
    assert cli.main(["evaluate", str(tmp_path / "out" / "model"), str(small), "--cpu", "--no-report", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    line = next(line for line in out.splitlines() if line.startswith("hierarchical head") and "%" not in line)
    assert float(line.split()[-3]) == pytest.approx(100 * metrics["test_exact_match"], abs=0.06)
    for name in ("code_book", "model"):
        model = HcalForSequenceClassification.from_pretrained(tmp_path / "out" / name)
        assert dict(zip(model.config.labels, model.config.label_names))["221310"].startswith("Water Supply")


def test_make_quickstart_runs_it():
    makefile = (FOLDER.parents[1] / "Makefile").read_text(encoding="utf-8")
    assert "recipes/naics2012/run.py" in makefile
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "code book" in done.stdout

"""The pages of recipes/benchmarks agree with their stored rows, and the index lists pages, rows and scripts."""

import json
import re
from pathlib import Path

import pytest

from tests.builders import import_benchmarks

FOLDER = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    return import_benchmarks("gpu_page", "result_rows", "tables")


def blocks_of(page, modules):
    """Builds the blocks of a page from its stored rows."""
    rows = {
        name: modules.result_rows.read_lines(FOLDER / "rows" / f"{name}.jsonl")
        for name in ("heads", "decisions", "weighting")
    }
    if page == "heads":
        return {"tables": modules.tables.heads_tables(rows[page])}
    if page == "decisions":
        return {"tables": modules.tables.decisions_tables(rows[page])}
    return modules.tables.weighting_tables(rows[page])


@pytest.mark.parametrize("page", ["heads", "decisions", "weighting"])
def test_the_page_agrees_with_its_rows(modules, page):
    text = (FOLDER / "pages" / f"{page}.md").read_text(encoding="utf-8")
    assert text == modules.tables.filled(text, blocks_of(page, modules))
    assert text.count("\n|") > 20


@pytest.mark.parametrize(
    "script", ["audit", "few_labels", "lexical", "reliability", "suggestions", "windows", "zero_shot"]
)
def test_the_page_of_a_script_agrees_with_its_rows(modules, script):
    measured = getattr(import_benchmarks(script), script)
    text = measured.PAGE.read_text(encoding="utf-8")
    assert text == modules.tables.filled(text, measured.tables(modules.result_rows.read_lines(measured.RESULTS)))
    assert text.count("\n|") > 3


def test_the_page_about_onnx_agrees_with_its_rows(modules):
    pytest.importorskip("onnxruntime", reason="the script needs onnxruntime")
    export = import_benchmarks("export").export
    text = export.PAGE.read_text(encoding="utf-8")
    measured = json.loads(export.RESULTS.read_text(encoding="utf-8"))
    assert text == modules.tables.filled(text, {"tables": export.table(measured)})


def test_the_index_lists_all_pages_files_of_rows_and_scripts():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    pages = set(re.findall(r"\]\(pages/(\w+\.md)\)", index))
    rows = set(re.findall(r"`rows/(\w+\.jsonl?)`", index))
    assert pages == {path.name for path in (FOLDER / "pages").iterdir()}
    assert {path.name for path in (FOLDER / "rows").iterdir()} <= rows
    assert {path.name for path in FOLDER.glob("*.py")} <= set(re.findall(r"\b\w+\.py\b", index))


@pytest.mark.parametrize("page", sorted((FOLDER / "pages").glob("*.md")), ids=lambda path: path.stem)
def test_a_page_names_its_rows_and_the_script_that_writes_it(page):
    text = page.read_text(encoding="utf-8")
    for script in re.findall(r"recipes/benchmarks/(\w+\.py)", text):
        assert (FOLDER / script).exists()
    assert re.search(r"recipes/benchmarks/\w+\.py", text)
    rows = re.findall(r"rows/(\w+\.jsonl?)", text)
    assert rows
    assert all((FOLDER / "rows" / name).exists() for name in rows)


def test_a_page_without_a_block_for_its_table_is_refused(modules):
    with pytest.raises(ValueError, match=r"results\.md has no place for <!-- tables -->\. Add this line"):
        modules.tables.filled("no block", {"tables": "| a |"}, "results.md")


def test_the_page_about_gpus_is_built_from_its_rows_and_keeps_added_text(modules, tmp_path, monkeypatch):
    rows = [
        {"part": "machine", "device": "NAME", "torch": "2.11"},
        {"part": "time", "seconds": 1.0},
        {"part": "head", "labels": 1000, "head": "lookahead_softmax", "noise": "plain", "ms": 6.4, "peak_gib": 0.07},
        {"part": "head", "labels": 10000, "head": "lookahead_softmax", "noise": "perturbed", "ms": 7.5, "ratio": 2.5},
        {"part": "same as cpu", "head": "independent", "loss": 4.76837e-07, "same_decisions": True},
        {"part": "waits for the device in a step", "contrast": None, "count": 2, "where": ["a.py:1"]},
        {"part": "something new", "value": 3},
    ]
    (tmp_path / "new.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    results, page = tmp_path / "gpu.jsonl", tmp_path / "gpu.md"
    words = ["gpu_page.py", str(tmp_path / "new.jsonl"), "--results", str(results), "--page", str(page)]
    monkeypatch.setattr("sys.argv", words)
    modules.gpu_page.main()
    text = page.read_text(encoding="utf-8")
    assert "Measured on: NAME, torch 2.11." in text
    assert "| labels | head | perturbation | ms | peak GiB | ratio |" in text
    assert "| 1,000 | lookahead_softmax | plain | 6.4 | 0.07 |  |" in text
    assert "| 10,000 | lookahead_softmax | perturbed | 7.5 |  | 2.5 |" in text
    assert "| independent | 5e-07 | yes |" in text
    assert "| contrast | synchronisations |\n|---|---|\n| none | 2 |" in text
    assert "## Something new\n\n| value |" in text
    assert "1.0" not in text
    assert modules.result_rows.read_lines(results) == rows
    page.write_text(text.replace("<!-- tables -->", "A remark.\n\n<!-- tables -->"), encoding="utf-8")
    monkeypatch.setattr("sys.argv", [words[0], *words[2:]])
    modules.gpu_page.main()
    assert "A remark." in page.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").replace("A remark.\n\n", "") == text

"""`hcal evaluate` and `hcal train` leave a report with the numbers of the run."""

import json

import pytest

from hcal_hf.commands import main as cli
from hcal_hf.commands.evaluation_run import EvaluationArguments
from tests.commands.test_table_run import rows
from tests.report.test_page import EVIL, Page


@pytest.fixture(scope="module")
def run(tmp_path_factory, encoder_dir):
    """(folder of a run of `hcal train` on rows of which some cannot be used, table of further rows)."""
    folder = tmp_path_factory.mktemp("run")
    table = [{"text": f"{row['text']} {EVIL}", "labels": [row["path"]]} for row in rows(120)]
    table[3]["labels"] = None
    table[4]["labels"] = None
    table[8]["text"] = " "
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    words = ["--encoder", encoder_dir, "--time-budget", "0", "--use_cpu", "--on-bad-row", "drop"]
    assert cli.main(["train", str(folder / "train.jsonl"), *words, "--output-dir", str(folder / "model")]) == 0
    return folder / "model", folder / "test.jsonl"


def test_training_leaves_a_report_of_the_run(run):
    folder, _ = run
    read = Page((folder / "report.html").read_text(encoding="utf-8"))
    text = " ".join(read.text.replace("\xa0", " ").split())
    metrics = json.loads((folder / "test_results.json").read_text(encoding="utf-8"))
    assert f"micro-F1 {100 * metrics['test_micro_f1']:.1f} %" in text
    assert f"all labels right {100 * metrics['test_exact_match']:.1f} %" in text
    split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    used = [name for name in ("train", "validation", "test") if name in split]
    assert sum(len(split[name]) for name in used) == 120
    for name in used:
        number = len(split[name]) - len(set(split[name]) & {3, 4, 8})
        unlabelled, bad = len(set(split[name]) & {3, 4}), len(set(split[name]) & {8})
        assert f" {name} {number} {unlabelled} {bad} " in text
    assert "the text is empty" in text
    assert "Regime: frozen. The encoder stays frozen: the time budget is 0 minutes." in text
    assert "label_mode: single_path (every row has one path)." in text
    assert "What was trained" in text
    assert "training documents" in text
    assert read.data["tree"]["documents"][0] > 0


def evaluate(run, capsys, *options):
    folder, table = run
    code = cli.main(["evaluate", str(folder), str(table), "--cpu", "--on-bad-row", "drop", *map(str, options)])
    return (code, *capsys.readouterr())


def test_an_evaluation_writes_the_report_that_is_asked_for(run, tmp_path, capsys):
    report = tmp_path / "new" / "report.html"
    code, out, _ = evaluate(run, capsys, "--report", report, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["report"] == str(report)
    read = Page(report.read_text(encoding="utf-8"))
    text = " ".join(read.text.replace("\xa0", " ").split())
    assert f"micro-F1 {100 * result['metrics']['test_micro_f1']:.1f} %" in text
    assert f"expected calibration error is {100 * result['metrics']['test_end_ece']:.2f} %" in text
    assert " test 117 2 1 " in text
    assert "row 9: the text is empty" in text
    # Examples are the texts of their rows, although rows before them are left out.
    table = [json.loads(line) for line in run[1].read_text(encoding="utf-8").splitlines()]
    shown = [line for line in (row["text"] for row in table) if line in text]
    assert shown
    assert EVIL in text
    assert len(read.scripts) <= 3


def test_examples_belong_to_their_labels(run, tmp_path, capsys):
    evaluate(run, capsys, "--report", tmp_path / "report.html")
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    table = [json.loads(line) for line in run[1].read_text(encoding="utf-8").splitlines()]
    labels = {}
    for row in table:
        if row["labels"] and row["text"].strip():
            labels.setdefault(row["text"], set()).update(" > ".join(row["labels"][0][: k + 1]) for k in range(2))
    section = raw.split('class="confusions"')[1].split("</table>")[0]
    parts = section.split('<tr><th scope="row" class="path">')[1:]
    assert parts
    for part in parts:
        true = Page(part.split("</th>")[0]).text
        examples = Page(part).text.split("example")[1].split("\n")
        texts = [text for text in labels if text in Page(part).text]
        assert examples
        assert texts
        assert all(true in labels[text] for text in texts)


def test_no_texts_and_no_report_are_kept(run, tmp_path, capsys):
    report = tmp_path / "report.html"
    assert evaluate(run, capsys, "--report", report, "--no-texts")[0] == 0
    assert "alert" not in report.read_text(encoding="utf-8")
    report.unlink()
    code, out, _ = evaluate(run, capsys, "--temperature", "--output-dir", tmp_path / "tuned", "--no-report")
    assert code == 1  # one file has no validation split
    code, out, _ = evaluate(run, capsys, "--no-report")
    assert (code, "report" in out) == (0, False)
    code, out, _ = evaluate(run, capsys)
    assert (code, "--report FILE.html" in out) == (0, True)
    assert not list(tmp_path.glob("*.html"))
    code, _, err = evaluate(run, capsys, "--report", report, "--no-report")
    assert (code, "not both" in err) == (1, True)


def test_the_report_goes_where_the_fitted_values_go(tmp_path):
    assert EvaluationArguments(output_dir="new", temperature=True).report_path("model").as_posix() == "new/report.html"
    assert EvaluationArguments(save=True, temperature=True).report_path("model").as_posix() == "model/report.html"
    assert EvaluationArguments(report="a.html", output_dir="new").report_path("model").as_posix() == "a.html"
    assert EvaluationArguments(no_report=True, output_dir="new").report_path("model") is None
    assert EvaluationArguments().report_path("model") is None


def test_what_was_fitted_is_in_the_report(run, tmp_path, capsys):
    folder, table = run
    data = tmp_path / "data"
    data.mkdir()
    for name in ("validation", "test"):
        (data / f"{name}.jsonl").write_text(table.read_text(encoding="utf-8"), encoding="utf-8")
    words = [
        "evaluate",
        folder,
        data,
        "--cpu",
        "--on-bad-row",
        "drop",
        "--temperature",
        "--tune",
        "macro_f1",
        "--json",
    ]
    assert cli.main([*map(str, words), "--output-dir", str(tmp_path / "tuned")]) == 0
    result = json.loads(capsys.readouterr().out)
    text = " ".join(Page((tmp_path / "tuned" / "report.html").read_text(encoding="utf-8")).text.split())
    fitted = result["temperature"]
    assert f"temperature {fitted['temperature_before']:.3g} {fitted['temperature']:.3g}" in text
    thresholds = result["thresholds"]
    assert (
        f"macro-F1 (thresholds: global) {100 * thresholds['before']:.1f} % {100 * thresholds['after']:.1f} %" in text
    )
    assert " validation 117 2 1 " in text


def test_training_without_a_report_leaves_none(tmp_path, encoder_dir, run):
    words = ["--encoder", encoder_dir, "--time-budget", "0", "--use_cpu", "--on-bad-row", "drop", "--no-report"]
    assert cli.main(["train", str(run[1]), *words, "--output-dir", str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert not (tmp_path / "model" / "report.html").exists()

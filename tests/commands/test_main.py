"""The command `hcal`: output, exit codes and error messages."""

import ast
import io
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy
from hcal_hf.commands import command_line
from hcal_hf.commands import main as cli
from hcal_hf.commands.evaluation_run import evaluate_model
from hcal_hf.commands.evaluation_run import parse_arguments as evaluation_arguments
from hcal_hf.commands.model_summary import inspect_model
from tests.builders import build_model, tiny_bert

ROOT = Path(__file__).parents[2]
WORDS = {"astronomy": "stars", "quantum": "atoms", "genetics": "genes", "botany": "plants",
         "poetry": "poems", "fiction": "novels", "opera": "music"}  # fmt: skip
COMMANDS = ("train", "evaluate", "predict", "inspect", "taxonomy check", "demo", "export")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tokenizer, taxonomy):
    folder = tmp_path_factory.mktemp("model")
    build_model(taxonomy).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, taxonomy):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"text": f"{first} {word}", "labels": [taxonomy.paths(taxonomy.index(leaf))[0]]}
            for first in ("the", "new") for leaf, word in WORDS.items()]  # fmt: skip
    for split in ("train", "validation", "test"):
        Dataset.from_list(rows).to_json(folder / f"{split}.jsonl")
    return folder


def usage_error(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_the_command_line_imports_only_the_standard_library_before_a_command_runs():
    folder = ROOT / "hcal_hf/commands"
    waiting, read = [folder / "main.py"], set()
    while waiting:
        path = waiting.pop()
        read.add(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= set(sys.stdlib_module_names), path
            elif isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                files = [base.with_suffix(".py")] if base.with_suffix(".py").exists() else []
                files = files or [base / f"{alias.name}.py" for alias in node.names]
                waiting += [file for file in files if file not in read]
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in sys.stdlib_module_names, path
    assert {path.stem for path in read} >= {"main", "command_line", "train", "predict", "check", "command"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_texts_are_sentences(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: hcal {command}".rstrip())
    assert text.count(". ") >= 3


def options_of(parser):
    """Yields (command, option) of all subcommands."""
    for action in parser._actions:
        if isinstance(action, type(parser._subparsers._group_actions[0]) if parser._subparsers else ()):
            for below in action.choices.values():
                yield from options_of(below)
        elif "--help" not in action.option_strings:
            yield parser.prog, action


def test_every_option_is_explained_in_a_sentence():
    options = list(options_of(cli.build_parser()))
    assert len(options) > 60
    for prog, action in options:
        assert action.help, (prog, action.dest)
        assert action.help.endswith("."), (prog, action.help)
        assert action.help[0].isupper(), (prog, action.help)


def test_an_option_has_the_same_form_in_every_command():
    several, one = ("text", "labels"), ("separator", "delimiter", "out", "output-dir", "encoding", "identity")
    for prog, action in options_of(cli.build_parser()):
        name = max(action.option_strings, key=len, default="").removeprefix("--")
        assert "_" not in name, (prog, name)
        assert name not in several or action.nargs == "+", (prog, name)
        assert name not in one or action.nargs is None, (prog, name)


def test_the_command_line_accepts_all_decoders_splits_and_metrics_of_the_library():
    from hcal_hf.commands.run_arguments import SPLITS
    from hcal_hf.decoding import METHODS
    from hcal_hf.training.thresholds import GRANULARITIES, METRICS

    parser = cli.build_parser()
    args = ["evaluate", "m", "d"]
    for option, values in {"decode": METHODS, "split": SPLITS, "tune": METRICS, "granularity": GRANULARITIES}.items():
        for value in values:
            assert getattr(parser.parse_args([*args, f"--{option}", value]), option) == value
    assert command_line.DECODERS == METHODS


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: COMMAND"),
        (["predikt"], "invalid choice: 'predikt'"),
        (["predict", "m", "f"], "give --out, the file of the predictions"),
        (
            ["predict", "m", "f", "--out", "o.pdf"],
            "--out must end in .parquet, .csv, .tsv, .jsonl, .xlsx, got 'o.pdf'",
        ),
        (["predict", "m", "f", "--out", "o.parquet", "--window", "0"], "whole number of at least 1, got '0'"),
        (["predict", "m", "f", "--out", "o.parquet", "--threshold", "2"], "a probability from 0 to 1, got '2'"),
        (["predict", "m", "f", "--out", "o.parquet", "--top-k", "2", "--decode", "raw"], "give one"),
        (["predict", "m", "f", "--out", "o.parquet", "--thresh", "0.5"], "unrecognized arguments: --thresh"),
        (["train", "c.yml", "--learning_rat", "1"], "There is no configuration c.yml"),
        (["train", "--learning_rate", "1e-3", "c.yaml"], "unrecognized arguments: --learning_rate"),
        (["taxonomy"], "required: COMMAND"),
        (["taxonomy", "check", "f", "--labels", "a", "--edges", "b", "c"], "not both"),
    ],
)
def test_wrong_usage_exits_with_2(argv, message, capsys):
    if "no configuration" in message:
        assert cli.main(argv) == 1
        assert message in capsys.readouterr().err
    else:
        err = usage_error(argv, capsys)
        assert message in err
        assert err.startswith("usage: hcal")


def test_problems_are_reported_in_one_line_with_exit_code_1(model_dir, tmp_path, capsys):
    out = str(tmp_path / "out.parquet")
    (tmp_path / "a.jsonl").write_text('{"body": "stars"}\n', encoding="utf-8")
    for argv, message in (
        (["predict", model_dir, str(tmp_path / "no.jsonl"), "--out", out], "There is no file"),
        (["predict", model_dir, str(tmp_path / "a.jsonl"), "--out", out], "no column 'text': its columns are 'body'"),
        (["inspect", str(tmp_path / "no")], "neither a folder with a saved model"),
        (["evaluate", model_dir, str(tmp_path)], "has no test file"),
        (
            ["evaluate", model_dir, str(tmp_path / "a.jsonl"), "--temperature"],
            "is not a folder, but there must be a folder",
        ),
        (["taxonomy", "check", str(tmp_path / "a.xls")], "CSV UTF-8"),
    ):
        assert cli.main(argv) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        line = captured.err.strip().splitlines()[-1]
        assert message in line
        assert line.startswith(f"hcal {argv[0]}")
    with pytest.raises(FileNotFoundError):
        cli.main(["taxonomy", "check", str(tmp_path / "no.csv"), "--traceback"])


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_a_console_that_cannot_encode_a_label_gets_a_question_mark(encoding, tmp_path, monkeypatch):
    HcalConfig.from_taxonomy(Taxonomy.from_paths([["物理", "é"]]), tiny_bert()).save_pretrained(tmp_path)
    shown = {}
    for name, options in (("text", []), ("json", ["--json"])):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["inspect", str(tmp_path), *options]) == 0
        shown[name] = stdout.buffer.getvalue().decode(encoding)
    assert shown["text"].splitlines()[-2] == ("??" if encoding == "cp1252" else "物理")
    assert json.loads(shown["json"])["tree"][0]["label"] == "物理"


def test_unexpected_errors_are_raised_with_a_traceback(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("hcal_hf.commands.model_summary.inspect_model", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["inspect", str(tmp_path)])


def test_train_accepts_overrides_and_prints_json(encoder_dir, data_dir, tmp_path, capsys):
    values = {"encoder": encoder_dir, "data_dir": str(data_dir), "output_dir": str(tmp_path / "no"), "max_steps": 1,
              "report_to": "none", "use_cpu": True, "save_strategy": "no", "projection_dim": 8}  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    argv = ["train", str(config), "--output_dir", str(tmp_path / "out"), "--head", "path_softmax", "--json"]
    assert cli.main(argv) == 0
    captured = capsys.readouterr()
    metrics = json.loads(captured.out)
    assert metrics == json.loads((tmp_path / "out" / "test_results.json").read_text(encoding="utf-8"))
    assert "test: 14 documents, in percent" in captured.err
    assert HcalConfig.from_pretrained(tmp_path / "out").head == "path_softmax"
    err = usage_error(["train", str(config), "--learning_rat", "1"], capsys)
    assert "there is no argument --learning_rat. Closest: --learning_rate" in err
    config.write_text("encoderr: x\n", encoding="utf-8")
    assert cli.main(["train", str(config)]) == 1
    assert "unknown key 'encoderr'. Closest: ['encoder'" in capsys.readouterr().err


def test_evaluate_accepts_a_folder_or_a_file(model_dir, data_dir, capsys):
    expected = evaluate_model(*evaluation_arguments([model_dir, "--data_dir", str(data_dir), "--use_cpu"]))["metrics"]
    table = capsys.readouterr().out
    assert cli.main(["evaluate", model_dir, str(data_dir), "--cpu"]) == 0
    assert capsys.readouterr().out.strip() == table.strip()
    argv = ["evaluate", model_dir, str(data_dir / "validation.jsonl"), "--cpu", "--json", "--decode", "top_down"]
    assert cli.main(argv) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["metrics"]
    assert found["test_loss"] == pytest.approx(expected["test_loss"])
    assert "14 documents" in captured.err


def test_predict_reports_rows_problems_and_output(model_dir, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("stars and atoms\n\npoems\n", encoding="utf-8")
    out = tmp_path / "out.parquet"
    argv = ["predict", model_dir, str(tmp_path / "a.txt"), "--out", str(out), "--cpu", "--quiet"]
    assert cli.main([*argv, "--keep_text", "--top_k=1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"2 of 3 rows predicted: {out}",
        "1 rows have a problem and no prediction (rows 1, ...):",
        "  1: the text is empty",
    ]
    found = pq.read_table(out)
    assert found.column_names == ["row", "text", "labels", "scores", "paths", "problem"]
    assert [len(labels) for labels in found["labels"].to_pylist()] == [3, 0, 3]
    assert cli.main(argv) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*argv, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "rows": 3, "predicted": 2, "problems": {"the text is empty": 1}, "first_problems": [1],
        "out": str(out), "resumed_rows": 0, "truncated": 0, "max_length": 16
    }  # fmt: skip


def test_inspect_shows_the_model_and_a_tree_of_limited_size(model_dir, tmp_path, capsys, taxonomy):
    assert cli.main(["inspect", model_dir, "--depth", "3", "--max-children", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("science")
    assert lines[start:] == [
        "science",
        "    physics",
        "        astronomy",
        "        ... and 1 more",
        "    ... and 1 more",
        "... and 1 more",
    ]
    assert "  labels             13 on 3 levels (2 + 4 + 7), 7 of them leaves, a forest" in lines
    assert cli.main(["inspect", model_dir, "--depth", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == inspect_model(model_dir, depth=1)
    assert report["tree"] == [
        {"label": "science", "children": [], "hidden": 2},
        {"label": "arts", "children": [], "hidden": 2},
    ]
    model = HcalForSequenceClassification.from_pretrained(model_dir)
    assert sum(report["parameters"].values()) == model.num_parameters()
    assert report["thresholds"] is report["risk"] is None


def test_inspect_shows_thresholds_risk_and_every_position_in_a_dag(dag, tmp_path, capsys):
    config = HcalConfig.from_taxonomy(dag, tiny_bert(), label_mode="multi_path", risk_alpha=0.1, risk_threshold=0.25,
                                      thresholds=[0.1, 0.2, 0.3, 0.3, 0.3, 0.5], score_temperature=1.5)  # fmt: skip
    config.save_pretrained(tmp_path)
    assert cli.main(["inspect", str(tmp_path), "--depth", "2"]) == 0
    text = capsys.readouterr().out
    assert "temperature 1.500" in text
    assert "level 0: 0.100 to 0.300" in text
    assert "0.1, from 0.250" in text
    assert "a DAG" in text
    assert text.endswith("a\n    x (1 below)\nb\n    x (1 below)\n    y\nc\n    z\n")


def test_taxonomy_check_writes_the_taxonomy_only_without_errors(tmp_path, capsys):
    table, target = tmp_path / "tickets.csv", tmp_path / "taxonomy.json"
    table.write_text("area,product\nHardware,Printer\nHardware,printer\n", encoding="utf-8")
    argv = ["taxonomy", "check", str(table), "--labels", "area", "product", "--min-documents", "1"]
    assert cli.main([*argv, "--write", str(target)]) == 0
    assert "'Printer' (row 2) / 'printer' (row 3), below 'Hardware'" in capsys.readouterr().out
    assert Taxonomy.from_json(target) == Taxonomy.from_paths([["Hardware", "Printer"], ["Hardware", "printer"]])
    assert cli.main([*argv, "--strict"]) == 1
    capsys.readouterr()
    table.write_text("area,product\n,Printer\n", encoding="utf-8")
    target.unlink()
    assert cli.main([*argv, "--json", "--write", str(target)]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["errors"], report["findings"][0]["kind"]) == (1, "empty-level")
    assert not target.exists()


def test_demo_and_export_pass_on_their_arguments(monkeypatch, tmp_path, capsys):
    calls = []

    class Demo:
        @staticmethod
        def launch(model, **kwargs):
            calls.append((model, kwargs))

        @staticmethod
        def export_space(model, directory, examples):
            calls.append((model, directory, examples))

    class Export:
        @staticmethod
        def export_onnx(model, directory, quantize=False):
            calls.append((model, directory, quantize))
            return {"files": {"model.onnx": 12345}, "max_difference": 2e-7}

    monkeypatch.setitem(sys.modules, "hcal_hf.commands.demo.page", Demo)
    monkeypatch.setitem(sys.modules, "hcal_hf.commands.onnx_export", Export)
    assert cli.main(["demo", "m", "--host", "0.0.0.0", "--port", "7000", "--share"]) == 0
    (tmp_path / "texts").write_text("one\n\n two \n", encoding="utf-8")
    assert cli.main(["demo", "m", "--export", "d", "--examples", str(tmp_path / "texts")]) == 0
    assert cli.main(["export", "m", "d", "--quantize"]) == 0
    files = {"suggestions": None, "labelled": None}
    served = {"host": "0.0.0.0", "port": 7000, "share": True, "examples": None, **files}
    assert calls == [("m", served), ("m", "d", ["one", "two"]), ("m", "d", True)]
    assert "12,345 bytes  model.onnx" in capsys.readouterr().out


@pytest.mark.parametrize(("module", "missing", "argv"), [
    ("hcal_hf.commands.demo.page", "gradio", ["demo", "m"]),
    ("hcal_hf.commands.onnx_export", "onnxruntime", ["export", "m", "d"]),
])  # fmt: skip
def test_a_missing_extra_is_reported_with_the_command_to_install_it(module, missing, argv, monkeypatch, capsys):
    class Missing:
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setitem(sys.modules, module, Missing())
    assert cli.main(argv) == 1
    assert f'pip install "hcal-hf[{argv[0]}]"' in capsys.readouterr().err


def test_a_full_disc_is_one_line(monkeypatch, tmp_path, capsys):
    class SafetensorError(Exception):
        """The error of safetensors, which is no OSError."""

    def fail(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("hcal_hf.commands.model_summary.inspect_model", fail)
    assert cli.main(["inspect", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("hcal inspect: The disc is full: Error while serializing")
    assert len(captured.err.splitlines()) == 1
    with pytest.raises(SafetensorError):
        cli.main(["inspect", str(tmp_path), "--traceback"])

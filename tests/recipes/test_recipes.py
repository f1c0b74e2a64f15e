"""The configurations and launch lines of recipes/ are accepted by train.py."""

import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from hcal_hf.commands.run_arguments import TableArguments, parse_arguments
from hcal_hf.commands.run_data import load_data

ROOT = Path(__file__).parents[2]
FIELD = ("wos", "bgc", "rcv1", "nyt", "aapd", "eurlex57k")
SETS = ("clinc150", "goemotions", "hwv_part", "cei", *FIELD)
CONFIGS = sorted(path for path in ROOT.glob("recipes/*/*.yaml") if path.parent.name != "accelerate")
# The fields in which both configurations of a data set must agree to be about the same task.
TASK = ("label_mode", "partial_paths", "leave_out", "seed", "report_to")
LAUNCH = re.compile(r"accelerate launch (?:--config_file \S+ )?recipes/train\.py (recipes/\S+\.yaml.*)")


def name_of(path):
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_configuration_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    model, data, args = parse_arguments([str(path), "--use_cpu"])
    assert model.encoder
    assert (data.data_dir is None) == (path.parent.name in SETS)  # these data sets need --data_dir
    assert data.dataset is None
    assert not Path(args.output_dir).is_absolute()


@pytest.mark.parametrize("name", SETS)
def test_both_configurations_of_a_data_set_are_about_the_same_task(name):
    frozen, finetune = (
        yaml.safe_load((ROOT / "recipes" / name / f"{kind}.yaml").read_text(encoding="utf-8"))
        for kind in ("frozen", "finetune")
    )
    assert [frozen.get(key) for key in TASK] == [finetune.get(key) for key in TASK]
    assert (frozen["freeze_encoder"], "freeze_encoder" in finetune) == (True, False)
    assert {"learning_rate", "num_train_epochs"}.isdisjoint(frozen)  # L-BFGS fits the head
    assert finetune["bf16"] is True
    assert [config["output_dir"] for config in (frozen, finetune)] == [
        f"outputs/{name}/{kind}" for kind in ("frozen", "finetune")
    ]


def test_train_prints_a_question_mark_if_the_console_cannot_encode_a_label(tmp_path, encoder_dir, monkeypatch):
    """On Windows, standard output can have the encoding cp1252, and printing a label in Chinese would fail."""
    rows = [{"text": "stars and atoms", "labels": [["物理", "é"]]}, {"text": "poems", "labels": [["arts", "music"]]}]
    for split in ("train", "test"):
        Dataset.from_list(rows).to_json(tmp_path / f"{split}.jsonl")
    values = {"encoder": encoder_dir, "data_dir": str(tmp_path), "output_dir": str(tmp_path / "model"), "use_cpu": True,
              "report_to": "none", "num_train_epochs": 1, "save_strategy": "no", "projection_dim": 8}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "config.yaml")])
    runpy.run_path(str(ROOT / "recipes" / "train.py"), run_name="__main__")
    stdout.flush()
    assert "true:      ?? > é" in stdout.buffer.getvalue().decode("cp1252")


def launch_lines():
    """Returns the (page, arguments of train.py) of each launch line in the pages and configurations."""
    found = []
    pages = [*CONFIGS, *ROOT.glob("recipes/*/README.md"), ROOT / "recipes" / "README.md"]
    for page in sorted(pages):
        for line in LAUNCH.findall(page.read_text(encoding="utf-8")):
            found.append(pytest.param(page, line.split("`")[0], id=f"{name_of(page)}: {line[:60]}"))
    return found


@pytest.mark.parametrize(("page", "line"), launch_lines())
def test_every_launch_line_parses(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.split("#")[0])
    _, data, _ = parse_arguments([*words, "--use_cpu"])
    assert data.data_dir
    if page.suffix == ".yaml":  # a configuration names itself
        assert words[0] == str(page.relative_to(ROOT))


def test_every_data_set_has_launch_lines_and_a_loader_or_page():
    found = {param.values[1].split()[0] for param in launch_lines()}
    assert {f"recipes/{name}/{kind}.yaml" for name in SETS for kind in ("frozen", "finetune")} <= found
    own = {name for name in SETS if (ROOT / "recipes" / name / "README.md").exists()}
    assert own == set(SETS) - set(FIELD)
    text = (ROOT / "recipes" / "loaders" / "README.md").read_text(encoding="utf-8")
    for name in FIELD:
        assert (ROOT / "recipes" / "loaders" / f"{name}.py").exists()
        assert text.count(f"| `{name}` |") == 3  # tables of contents, sources and costs


def test_leave_out_removes_documents_with_a_label(tmp_path, caplog):
    tables = {
        "train": ([["a", "x"]], [["oos"]], [["a", "x"], ["b", "oos"]], []),
        "test": ([["b"]], [["oos", "deeper"]]),
    }
    for split, labels in tables.items():
        Dataset.from_dict({"text": [f"{split} {i}" for i in range(len(labels))], "labels": labels}).to_json(
            tmp_path / f"{split}.jsonl"
        )
    everything = load_data(TableArguments(data_dir=str(tmp_path)))
    assert [len(everything[split]) for split in ("train", "test")] == [4, 2]
    kept = load_data(TableArguments(data_dir=str(tmp_path), leave_out=["oos"]))
    assert kept["train"]["text"][:] == ["train 0", "train 3"]
    assert kept["test"]["text"][:] == ["test 0"]
    alone = load_data(TableArguments(data_dir=str(tmp_path), leave_out=["oos", "b"]), ["test"])
    assert {split: len(table) for split, table in alone.items()} == {"test": 0}


@pytest.mark.parametrize(
    ("rows", "reading"),
    [
        ({"labels": ["a > x", "oos", "b > oos"]}, {}),
        ({"labels": ["a > x; b", "oos; a", "b > oos"]}, {"delimiter": ";"}),
        ({"top": ["a", "oos", "b"], "leaf": ["x", None, "oos"]}, {"labels": ["top", "leaf"]}),
        ({"labels": ["a", "oos", None]}, {}),
    ],
)
def test_leave_out_works_with_all_forms_of_labels(tmp_path, rows, reading):
    Dataset.from_dict({"text": ["one", "two", "three"], **rows}).to_json(tmp_path / "train.jsonl")
    kept = load_data(TableArguments(data_dir=str(tmp_path), leave_out=["oos"], **reading))
    missing = rows.get("labels", [""])[-1] is None  # leave_out keeps rows without labels; encode_dataset handles them
    assert kept["train"]["text"][:] == ["one", *(["three"] if missing else [])]

"""`hcal train` and recipes/train.py with a configuration file."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, DatasetDict
from transformers import pipeline

from hcal_hf import HcalTrainingArguments
from hcal_hf.commands.main import main
from hcal_hf.commands.run_arguments import DataArguments, ModelArguments, TableArguments, parse_arguments
from hcal_hf.commands.run_data import load_data
from hcal_hf.commands.training_run import run_training

ROOT = Path(__file__).parents[2]
WORDS = {"astronomy": "stars", "quantum": "atoms", "genetics": "genes", "botany": "plants",
         "poetry": "poems", "fiction": "novels", "opera": "music"}  # fmt: skip


@pytest.fixture
def data_dir(tmp_path, taxonomy):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, extras in {"train": ("study", "new", "old", "first"), "validation": ("the",), "test": ("a",)}.items():
        rows = [
            {"text": f"{extra} {word} {word}", "labels": [taxonomy.paths(taxonomy.index(leaf))[0]]}
            for extra in extras
            for leaf, word in WORDS.items()
        ]
        Dataset.from_list(rows).to_json(folder / f"{split}.jsonl")
    return folder


def config_file(tmp_path, encoder_dir, data_dir, **kwargs):
    values = {"encoder": encoder_dir, "data_dir": str(data_dir), "output_dir": str(tmp_path / "out"),
              "num_train_epochs": 30, "per_device_train_batch_size": 7, "learning_rate": "1e-2",
              "perturbation": 0.0, "projection_dim": 16, "report_to": "none", "use_cpu": True, "save_strategy": "no",
              "show_predictions": 2, "disable_tqdm": True, "seed": 0, **kwargs}  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_run_trains_evaluates_saves_and_prints_predictions(tmp_path, encoder_dir, data_dir, capsys, freeze):
    path = config_file(tmp_path, encoder_dir, data_dir, freeze_encoder=freeze)
    metrics = run_training(*parse_arguments([path]))
    assert metrics["test_accuracy_level_0"] == 1.0
    assert metrics["test_exact_match"] >= 6 / 7
    assert metrics["test_hvr"] == 0.0
    out = capsys.readouterr().out
    assert "test: 7 documents" in out
    assert out.count("predicted: ") == out.count("true:  ") == 2
    assert "science (" in out
    saved = json.loads((tmp_path / "out" / "test_results.json").read_text(encoding="utf-8"))
    assert saved["test_exact_match"] == metrics["test_exact_match"]
    pipe = pipeline("hierarchical-text-classification", model=str(tmp_path / "out"), device="cpu")
    assert pipe("a music music")[0]["label"] == "arts"
    assert (tmp_path / "out" / "_features").exists() == freeze
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["head"] == "lookahead_softmax"
    expected = ("linear", "label_text") if freeze else ("cosine", None)
    assert (config["score_function"], config.get("prototype_anchor")) == expected
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    assert any("head_strength" in entry for entry in state["log_history"]) == freeze  # L-BFGS reports it


@pytest.mark.parametrize("freeze", [True, False])
def test_a_run_reads_long_texts_in_windows_and_counts_those_it_cuts(tmp_path, encoder_dir, data_dir, freeze, capsys):
    """Windows of 8 tokens with 1 in common, 2 of which hold 15 tokens."""
    long = {"text": "the " * 30 + "music", "labels": [["arts", "stage", "opera"]]}
    fits = {"text": "the " * 14 + "music", "labels": [["arts", "stage", "opera"]]}
    for split, rows in (("test", [long, long, fits]), ("train", [fits])):
        with (data_dir / f"{split}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
    windows = {"window_length": 8, "max_windows": 2, "window_overlap": 1}
    path = config_file(
        tmp_path, encoder_dir, data_dir, freeze_encoder=freeze, num_train_epochs=1, **windows,
        window_pooling="mean" if freeze else "attention",
    )  # fmt: skip
    run_training(*parse_arguments([path]))
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert {name: config[name] for name in windows} == windows
    assert "Longer texts, of which the end was not read: 2 of 10 in test." in (out / "README.md").read_text("utf-8")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert (
        "reads at most 15 tokens of a text. Texts of more than 8 tokens are read in up to 2 windows, which ov" in card
    )
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "test 2 of 10" in report
    assert "up to 2 of 8 tokens, 15 tokens of a text" in report
    pipe = pipeline("hierarchical-text-classification", model=str(out), device="cpu")
    assert pipe.preprocess(long["text"])["input_ids"].shape == (1, 15)
    capsys.readouterr()
    predictions = str(tmp_path / "predictions.csv")
    assert main(["predict", str(out), str(data_dir / "test.jsonl"), "--out", predictions, "--cpu", "--quiet"]) == 0
    assert "2 texts have more than 15 tokens: their end was not read." in capsys.readouterr().out
    assert main(["evaluate", str(out), str(data_dir), "--report", str(tmp_path / "eval.html"), "--cpu"]) == 0
    assert "test 2 of 10" in (tmp_path / "eval.html").read_text(encoding="utf-8")
    again = ["--start_from", str(out), "--output_dir", str(tmp_path / "again"), "--show_predictions", "0"]
    other = config_file(tmp_path, encoder_dir, data_dir, freeze_encoder=freeze, num_train_epochs=1)
    run_training(*parse_arguments([other, *again]))
    again_card = (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    assert "2 of 10 in test" in again_card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_windows": 2, "max_length": 20},
            "2 windows of 16 tokens hold 30 tokens of a text: leave max_length out",
        ),
        ({"window_length": 40}, "window_length=40 is more than the 32 tokens"),
        ({"window_length": 8, "window_overlap": 8}, "window_overlap must be from 0 to 7"),
        ({"max_windows": 0}, "max_windows must be at least 1, got 0"),
        (
            {"max_windows": 2, "window_pooling": "attention", "freeze_encoder": True},
            "but the run has frozen: use regimes",
        ),
        ({"window_pooling": "attention"}, "window_pooling='attention' .* need window_length"),
    ],
)
def test_windows_that_do_not_fit_are_refused(tmp_path, encoder_dir, data_dir, options, message):
    path = config_file(tmp_path, encoder_dir, data_dir, **options)
    with pytest.raises(ValueError, match=message):
        run_training(*parse_arguments([path]))


def test_defaults_for_a_frozen_encoder_can_be_overridden(tmp_path, encoder_dir, data_dir):
    path = config_file(tmp_path, encoder_dir, data_dir, freeze_encoder=True, score_function="cosine")
    run_training(*parse_arguments([path, "--prototype_anchor", "none", "--num_train_epochs", "1"]))
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["score_function"], config.get("prototype_anchor")) == ("cosine", None)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 4
    with pytest.raises(ValueError, match="score_function='cosine'"):
        run_training(*parse_arguments([path, "--head_solver", "lbfgs"]))


def test_the_command_line_takes_precedence_over_the_file(tmp_path, encoder_dir, data_dir):
    path = config_file(
        tmp_path,
        encoder_dir,
        data_dir,
        label_mode="multi_path",
        loss_weighting="hcal",
        loss_weighting_kwargs={"gamma": 2.0},
    )
    model, data, args = parse_arguments([path, "--num_train_epochs", "3", "--labels", "a", "b", "--freeze_encoder"])
    assert (model.label_mode, model.freeze_encoder, data.labels) == ("multi_path", True, ["a", "b"])
    assert (args.num_train_epochs, args.learning_rate) == (3, 1e-2)
    assert args.loss_weighting_kwargs == {"gamma": 2.0}
    args = parse_arguments([path, "--loss_weighting_kwargs", '{"gamma": 3}'])[2]
    assert args.loss_weighting_kwargs == {"gamma": 3}


def test_levels_are_logged_to_tensorboard_by_default(tmp_path, encoder_dir, data_dir):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    kwargs = {"max_steps": 3, "logging_steps": 1, "loss_weighting": "hcal_rate", "show_predictions": 0}
    path = Path(config_file(tmp_path, encoder_dir, data_dir, **kwargs))
    path.write_text(path.read_text(encoding="utf-8").replace("report_to: none\n", ""), encoding="utf-8")
    run_training(*parse_arguments([str(path)]))
    (folder,) = {events.parent for events in (tmp_path / "out").rglob("events.out.tfevents.*")}
    events = accumulator.EventAccumulator(str(folder)).Reload()
    for what in ("loss", "weight", "remaining", "rate"):
        for level in range(3):
            values = [event.value for event in events.Scalars(f"train/{what}_level_{level}")]
            assert len(values) == 3
            assert what != "loss" or len(set(values)) == 3
    assert parse_arguments([str(path), "--report_to", "none"])[2].report_to == []


def test_unknown_keys_are_refused(tmp_path, encoder_dir, data_dir):
    path = config_file(tmp_path, encoder_dir, data_dir, learning_rat=1)
    with pytest.raises(ValueError, match=r"unknown key 'learning_rat'. Closest: \['learning_rate'"):
        parse_arguments([path])
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    with pytest.raises(ValueError, match="must hold a mapping"):
        parse_arguments([str(tmp_path / "list.yaml")])


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("recipes/*/config*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_recipe_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    model, data, args = parse_arguments([str(path), "--use_cpu"])
    assert model.encoder
    assert data.data_dir or data.dataset
    assert isinstance(args, HcalTrainingArguments)


def test_missing_encoder_data_or_splits_are_reported(tmp_path, encoder_dir, data_dir):
    args = HcalTrainingArguments(str(tmp_path / "o"), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="There is no encoder"):
        run_training(ModelArguments(), DataArguments(data_dir=str(data_dir)), args)
    with pytest.raises(ValueError, match="either data_dir"):
        load_data(DataArguments())
    with pytest.raises(ValueError, match="has no training file"):
        load_data(DataArguments(data_dir=str(tmp_path)))
    (data_dir / "test.csv").write_text("text,labels\n", encoding="utf-8")
    with pytest.raises(ValueError, match="two files for test"):
        load_data(DataArguments(data_dir=str(data_dir)))
    (data_dir / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=r"test\.csv names columns but has no rows: 'text', 'labels'"):
        load_data(DataArguments(data_dir=str(data_dir)))


def test_only_the_requested_splits_are_loaded(data_dir, monkeypatch):
    tables = TableArguments(data_dir=str(data_dir))
    assert set(load_data(tables)) == {"train", "validation", "test"}
    assert set(load_data(tables, ["test"])) == {"test"}
    (data_dir / "train.jsonl").unlink()
    assert set(load_data(tables, ["test", "validation"])) == {"test", "validation"}
    with pytest.raises(ValueError, match=r"no training file: it must hold train\.jsonl"):
        load_data(tables)
    hub = DatasetDict({name: Dataset.from_dict({"text": ["a"]}) for name in ("train", "test", "extra")})
    monkeypatch.setattr("datasets.load_dataset", lambda name: hub)
    tables = TableArguments(dataset="somebody/rows")
    assert set(load_data(tables)) == {"train", "test", "extra"}
    assert set(load_data(tables, ["test"])) == {"test"}
    with pytest.raises(ValueError, match=r"somebody/rows has no split named validation, only \['extra'"):
        load_data(tables, ["validation"])


def test_the_paper_preset_runs(tmp_path, encoder_dir, data_dir):
    path = config_file(tmp_path, encoder_dir, data_dir, preset="paper", num_train_epochs=1)
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    del values["projection_dim"], values["perturbation"]
    Path(path).write_text(yaml.safe_dump(values), encoding="utf-8")
    metrics = run_training(*parse_arguments([path]))
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["objective"], config["projection_dim"]) == ("aggregate", 256)
    assert 0 <= metrics["test_raw_hvr"] <= 1

"""Evaluation of saved models with `evaluate_model` and recipes/evaluate.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import BertConfig, set_seed

from hcal_hf import (
    HcalConfig,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    encode_dataset,
)
from hcal_hf.commands.evaluation_run import evaluate_model, parse_arguments
from hcal_hf.commands.run_arguments import TableArguments
from hcal_hf.commands.run_data import load_data

ROOT = Path(__file__).parents[2]
WORDS = {"astronomy": "stars", "quantum": "atoms", "genetics": "genes", "botany": "plants",
         "poetry": "poems", "fiction": "novels", "opera": "music"}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, taxonomy):
    """Returns a folder with three splits. Each leaf has its word, and about every fourth text has a random word."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    words = list(WORDS.values())
    for split, number in {"train": 56, "validation": 41, "test": 28}.items():
        rows = []
        for i in range(number):
            word = words[i % 7] if rng.random() < 0.75 else str(rng.choice(words))
            path = taxonomy.paths(taxonomy.index(list(WORDS)[i % 7]))[0]
            rows.append({"text": f"{rng.choice(['the', 'a', 'old'])} {word} {word}", "labels": [path]})
        Dataset.from_list(rows).to_json(folder / f"{split}.jsonl")
    return str(folder)


def train(folder, encoder_dir, tokenizer, taxonomy, data_dir, **config):
    """Trains a model and saves it in a folder."""
    settings = {"perturbation": 0.0, "projection_dim": 16, "prototype_temperature": 0.03, **config}
    set_seed(0)
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, **settings)
    rows = load_data(TableArguments(data_dir=data_dir), ["train"])["train"]
    data = encode_dataset(rows, taxonomy, tokenizer, label_mode=model.config.label_mode)
    args = HcalTrainingArguments(str(folder), max_steps=100, learning_rate=1e-2, report_to="none", use_cpu=True,
                                 save_strategy="no", disable_tqdm=True, seed=0)  # fmt: skip
    trainer = HcalTrainer(model, args, None, data, None, tokenizer)
    trainer.train()
    trainer.save_model(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, encoder_dir, tokenizer, taxonomy, data_dir):
    folder = tmp_path_factory.mktemp("single")
    return train(folder, encoder_dir, tokenizer, taxonomy, data_dir, head="path_softmax")


@pytest.fixture(scope="module")
def multi_dir(tmp_path_factory, encoder_dir, tokenizer, taxonomy, data_dir):
    folder = tmp_path_factory.mktemp("multi")
    kind = {"label_mode": "multi_path", "head": "conditional_sigmoid"}
    return train(folder, encoder_dir, tokenizer, taxonomy, data_dir, **kind)


def run(model, data_dir, *more):
    return evaluate_model(*parse_arguments([model, "--data_dir", data_dir, "--use_cpu", *map(str, more)]))


def scores(metrics):
    """Returns the rounded metrics without those that measure time."""
    return {name: round(value, 5) for name, value in metrics.items() if "time" not in name and "second" not in name}


@pytest.fixture
def seen(monkeypatch):
    """Records the rows and arguments that each calibration and tuning step receives."""
    rows = {}
    for name in ("calibrate_temperature", "tune_thresholds", "calibrate_risk"):
        original = getattr(HcalTrainer, name)

        def spy(self, dataset, *args, name=name, original=original, **kwargs):
            rows[name] = dataset._indices.column(0).to_pylist() if dataset._indices else list(range(len(dataset)))
            rows[f"{name}_arguments"] = args
            return original(self, dataset, *args, **kwargs)

        monkeypatch.setattr(HcalTrainer, name, spy)
    return rows


def test_an_evaluation_gives_the_metrics_of_the_trainer_and_calibration_errors(
    model_dir, data_dir, tokenizer, taxonomy, tmp_path, capsys
):
    report = run(model_dir, data_dir)
    model = HcalForSequenceClassification.from_pretrained(model_dir)
    rows = load_data(TableArguments(data_dir=data_dir), ["test"])["test"]
    data = encode_dataset(rows, taxonomy, tokenizer, label_mode="single_path")
    args = HcalTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, per_device_eval_batch_size=5)
    expected = HcalTrainer(model, args, None, None, data, tokenizer).evaluate(metric_key_prefix="test")
    metrics = report["metrics"]
    # The memory layout of the weights may change the last digits of a loss.
    for name, value in scores(expected).items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    assert len(scores(expected)) > 30
    assert {"test_ece", "test_brier", "test_end_ece", "test_end_brier"} <= set(metrics)
    assert 0.3 < metrics["test_exact_match"] < 1
    assert (report["split"], report["documents"]) == ("test", {"test": 28})
    assert not {"temperature", "thresholds", "risk"} & set(report)
    out = capsys.readouterr().out
    assert "test: 28 documents, in percent" in out
    assert f"probabilities  {100 * metrics['test_ece']:8.2f}" in out
    assert f"decisions      {100 * metrics['test_end_ece']:8.2f}" in out
    assert "fitted" not in out
    assert run(model_dir, data_dir, "--split", "validation")["documents"] == {"validation": 41}


def test_risk_is_calibrated_on_validation_documents_not_used_for_thresholds(
    model_dir, data_dir, taxonomy, tmp_path, seen, capsys
):
    report = run(
        model_dir, data_dir, "--temperature", "--tune", "macro_f1", "--granularity", "level", "--risk", 0.4,
        "--output_dir", tmp_path / "tuned",
    )  # fmt: skip
    assert seen["calibrate_temperature"] == seen["tune_thresholds"]
    assert len(seen["tune_thresholds"]) == 20
    assert sorted(seen["tune_thresholds"] + seen["calibrate_risk"]) == list(range(41))
    assert seen["tune_thresholds"] != list(range(20))
    assert report["documents"] == {"temperature": 20, "thresholds": 20, "risk": 21, "test": 28}
    assert report["temperature"]["temperature"] != 1
    assert report["temperature"]["nll_after"] < report["temperature"]["nll_before"]
    assert set(report["thresholds"]) == {"before", "after"}
    assert report["risk"]["risk"] <= 0.4
    out = capsys.readouterr().out
    assert "fitted on 20 validation documents" in out
    assert "thresholds (level), tuned on 20 validation documents: macro_f1" in out
    assert "calibrated on 21 validation documents that fitted nothing else" in out
    assert 'decode="risk" at 0.4: ' in out

    config = HcalConfig.from_pretrained(tmp_path / "tuned")
    assert config.score_temperature == report["temperature"]["temperature"]
    assert (config.risk_alpha, config.risk_threshold) == (0.4, report["risk"]["threshold"])
    assert seen["tune_thresholds_arguments"] == ("level", "macro_f1")
    assert [len(set(config.thresholds[level])) for level in taxonomy.levels] == [1, 1, 1]
    again = run(str(tmp_path / "tuned"), data_dir)["metrics"]
    saved = json.loads((tmp_path / "tuned" / "test_results.json").read_text(encoding="utf-8"))
    assert scores(again) == scores(report["metrics"]) == scores(saved)
    assert {"test_answers_risk", "test_answers_empty"} <= set(again)

    first = dict(seen)
    run(model_dir, data_dir, "--tune", "micro_f1", "--risk", 0.4)
    for step in ("tune_thresholds", "calibrate_risk"):  # the same seed gives the same halves
        assert seen[step] == first[step]
    assert seen["tune_thresholds_arguments"] == ("global", "micro_f1")
    run(model_dir, data_dir, "--tune", "micro_f1", "--risk", 0.4, "--seed", 1)
    assert seen["calibrate_risk"] != first["calibrate_risk"]


def test_a_single_fitting_step_uses_all_validation_documents(multi_dir, data_dir, seen, capsys):
    for step, more in (
        ("calibrate_temperature", ["--temperature"]),
        ("tune_thresholds", ["--tune", "micro_f1"]),
        ("calibrate_risk", ["--risk", 0.3]),
    ):
        seen.clear()
        report = run(multi_dir, data_dir, *more)
        assert set(seen) == {step, f"{step}_arguments"}
        assert seen[step] == list(range(41))
        assert sorted(report["documents"].values()) == [28, 41]
        assert "fitted nothing else" not in capsys.readouterr().out
        assert "test_end_ece" not in report["metrics"]


@pytest.mark.parametrize("method", ["expected_f1", "prune", "risk"])
def test_decode_chooses_the_decoder_of_the_decoded_scores(multi_dir, data_dir, method, capsys):
    plain = run(multi_dir, data_dir, "--tune", "macro_f1", "--risk", 0.3)["metrics"]
    capsys.readouterr()
    metrics = run(multi_dir, data_dir, "--tune", "macro_f1", "--risk", 0.3, "--decode", method)["metrics"]
    assert f'"decoded" is decode="{method}".' in capsys.readouterr().out
    assert metrics["test_hvr"] == 0
    assert metrics["test_raw_micro_f1"] == plain["test_raw_micro_f1"]
    if method == "risk":
        assert metrics["test_micro_f1"] != plain["test_micro_f1"]
        # Both sides are the mean number of correct labels per document. Each document has three true labels.
        hits = metrics["test_micro_precision"] * metrics["test_answers_answered"]
        assert hits == pytest.approx(3 * metrics["test_micro_recall"])
    for name in ("answers_risk", "answers_levels", "ece"):
        assert metrics[f"test_{name}"] == pytest.approx(plain[f"test_{name}"])


def test_save_changes_the_configuration_but_not_the_weights(multi_dir, data_dir, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(multi_dir).iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    before = (weights.stat().st_mtime_ns, weights.read_bytes())
    report = run(str(folder), data_dir, "--temperature", "--tune", "micro_f1", "--save")
    assert (weights.stat().st_mtime_ns, weights.read_bytes()) == before
    old, new = HcalConfig.from_pretrained(multi_dir).to_dict(), HcalConfig.from_pretrained(folder).to_dict()
    assert {name for name in old | new if old.get(name) != new.get(name)} == {"score_temperature", "thresholds"}
    assert new["score_temperature"] == report["temperature"]["temperature"]
    assert (folder / "test_results.json").exists()


@pytest.mark.slow
def test_the_script_prints_one_json_object(model_dir, data_dir):
    command = [sys.executable, str(ROOT / "recipes" / "evaluate.py"), model_dir, "--data_dir", data_dir, "--use_cpu"]
    # Without progress bars, the Trainer prints its logs to stdout.
    quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [*command, "--json", "--temperature"], capture_output=True, text=True, timeout=300, cwd=ROOT, env=quiet
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["documents"] == {"temperature": 41, "test": 28}
    assert 0 < report["metrics"]["test_micro_f1"] <= 1
    assert report["temperature"]["temperature"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "dev"], "split must be one of train, validation, test, got 'dev'"),
        (["--tune", "f1"], "tune must be one of micro_f1, macro_f1, got 'f1'"),
        (
            ["--tune", "micro_f1", "--granularity", "leaf"],
            "granularity must be one of global, level, label, got 'leaf'",
        ),
        (["--granularity", "level"], "granularity='level' needs tuned thresholds: give tune"),
        (["--risk", "10"], r"risk must lie between 0 and 1 .*, got 10\.0"),
        (["--risk", "0"], r"risk must lie between 0 and 1 .*, got 0\.0"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--decode", "best"], "decode must be one of raw, closure, .*, got 'best'"),
        (["--decode", "risk"], "decode='risk' needs a calibrated model: give risk=0.1"),
        (["--temperature", "--split", "validation"], 'evaluate split="test", or fit nothing'),
        (["--save"], "nothing to save: give temperature, tune or risk"),
        (["--output_dir", "somewhere"], "nothing to save"),
        (["--temperature", "--save", "--output_dir", "somewhere"], "not both"),
    ],
)
def test_invalid_arguments_are_refused_first(model_dir, data_dir, more, message):
    with pytest.raises(ValueError, match=message):
        run(model_dir, data_dir, *more)


def test_invalid_models_and_data_are_refused(model_dir, multi_dir, data_dir, tmp_path):
    with pytest.raises(ValueError, match="is neither a folder with a saved model"):
        run(str(tmp_path / "nothing"), data_dir)
    with pytest.raises(ValueError, match="save writes into the model's own folder"):
        run("somebody/model", data_dir, "--tune", "micro_f1", "--save")
    with pytest.raises(ValueError, match="is the model's own folder"):
        run(model_dir, data_dir, "--tune", "micro_f1", "--output_dir", model_dir + "/")
    with pytest.raises(ValueError, match='decode="path" needs label_mode="single_path"'):
        run(multi_dir, data_dir, "--decode", "path")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="a model of type 'bert', not an HCAL model: train one with"):
        run(str(tmp_path / "bert"), data_dir)
    with pytest.raises(ValueError, match=r"has no test file: it must hold test\.jsonl"):
        run(model_dir, str(tmp_path))
    rows = (Path(data_dir) / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(ValueError, match="has no validation file"):
        run(model_dir, str(tmp_path), "--temperature")
    (tmp_path / "validation.jsonl").write_text(rows[0], encoding="utf-8")
    with pytest.raises(ValueError, match="validation split has 1 document: risk needs others"):
        run(model_dir, str(tmp_path), "--temperature", "--risk", 0.1)
    # Too few documents for this risk: no labels are predicted.
    assert run(model_dir, str(tmp_path), "--risk", 0.1)["risk"]["empty"] == 1
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"text": "", "labels": [["arts", "stage", "opera"]]}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"The split test of .* has no documents"):
        run(model_dir, str(tmp_path), "--on_bad_row", "drop")


def test_a_new_temperature_removes_the_risk_calibration_with_a_warning(model_dir, data_dir, tmp_path, caplog):
    run(model_dir, data_dir, "--risk", 0.3, "--output_dir", tmp_path / "sure")
    assert HcalConfig.from_pretrained(tmp_path / "sure").risk_alpha == 0.3
    with pytest.raises(ValueError, match="A new temperature drops the model's risk calibration"):
        run(str(tmp_path / "sure"), data_dir, "--temperature", "--decode", "risk")
    report = run(str(tmp_path / "sure"), data_dir, "--temperature")
    assert "from the configuration: risk_threshold" in caplog.text
    assert "test_answers_risk" not in report["metrics"]

"""The card that a trainer writes and pushes."""

import json
import re

import numpy as np
import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard, constants
from transformers import TrainerCallback

from hcal_hf import HcalTrainer, HcalTrainingArguments
from hcal_hf.card_file import is_generated
from hcal_hf.commands.run_arguments import parse_arguments
from hcal_hf.commands.training_run import run_training
from tests.builders import build_model
from tests.commands.test_train import config_file, data_dir  # noqa: F401
from tests.hub_server import HubServer

TOKEN = "hf_aSecretThatNobodyMayRead"


# ---- The trainer ----


def rows_of(taxonomy, tokenizer, texts=("stars", "atoms", "genes", "plants", "poems", "novels", "music"), times=4):
    leaves = np.flatnonzero(taxonomy.is_leaf)
    rows = [{**tokenizer(text), "labels": taxonomy.complete([leaf]).tolist()} for text, leaf in zip(texts, leaves)]
    return Dataset.from_list(rows * times)


@pytest.fixture
def no_pictures(monkeypatch):
    """Replaces the slow drawing of pictures."""
    monkeypatch.setattr("hcal_hf.training.card_mixin.ModelCardMixin._draw_figures", lambda *args: {})


@pytest.fixture
def make_trainer(taxonomy, tokenizer, tmp_path):
    def make(model=None, eval_dataset=None, **kwargs):
        settings = {"max_steps": 4, "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
        settings |= {"save_strategy": "no", **kwargs}
        args = HcalTrainingArguments(str(tmp_path / "out"), **settings)
        rows = rows_of(taxonomy, tokenizer)
        return HcalTrainer(model or build_model(taxonomy), args, None, rows, eval_dataset or rows, tokenizer)

    return make


def test_save_model_writes_a_card_and_its_usage_example_runs(make_trainer, tmp_path, monkeypatch, capsys):
    trainer = make_trainer(loss_weighting="hcal_rate", head_learning_rate=0.02, save_strategy="steps", save_steps=2)
    trainer.train()
    checkpoint = (tmp_path / "out" / "checkpoint-2" / "README.md").read_text(encoding="utf-8")
    assert "| steps | `2, 0.50 epochs` |" in checkpoint
    assert "![" not in checkpoint  # checkpoints have no pictures, which take time
    metrics = trainer.evaluate(metric_key_prefix="test")
    trainer.save_model()
    folder = tmp_path / "out"
    card = ModelCard.load(folder / "README.md")
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results["micro-F1"].metric_value == round(metrics["test_micro_f1"], 4)
    assert results["HVR, raw"].metric_value == round(metrics["test_raw_hvr"], 4)
    assert results["micro-F1"].dataset_split == "test"
    assert (card.data.library_name, card.data.pipeline_tag) == ("hcal_hf", "text-classification")
    for line in (
        "### test: 28 documents, in percent",
        "| `training` | 28 | 28 | 3.00 |",
        "| steps | `4, 1.00 epochs` |",
        "| seed | `42` |",
        "encoder 5e-05, projection and head 0.02, prototypes 0.02",
        "| loss weighting | `hcal_rate (",
        f"| 0 | 2 | {100 * metrics['test_accuracy_level_0']:.1f} |",
        f"transformers {__import__('transformers').__version__}",
    ):
        assert line in card.text, line
    shown_pictures = re.findall(r"!\[.*?\]\((.*?)\)", card.text)
    assert shown_pictures == ["weights.png", "scores.png"]
    assert all((folder / name).is_file() for name in shown_pictures)
    assert str(tmp_path) not in str(card)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], {})
    depth, *_ = capsys.readouterr().out.splitlines()[-3].split()
    assert depth == "0"


def test_the_card_contains_only_results_of_the_current_model(make_trainer, tmp_path, no_pictures):
    trainer = make_trainer(eval_strategy="steps", eval_steps=2)
    path = tmp_path / "out" / "README.md"

    def splits():
        trainer.create_model_card()
        results = ModelCard.load(path).data.eval_results or []
        return [result.dataset_split for result in results if result.metric_name == "micro-F1"]

    assert splits() == []
    assert "The settings of the training were not known" in path.read_text(encoding="utf-8")
    trainer.evaluate(metric_key_prefix="before")
    assert splits() == ["before"]
    trainer.train()
    assert splits() == ["eval"]  # from the last step; training has changed the model since the other evaluation
    trainer.predict(trainer.eval_dataset)
    assert splits() == ["eval", "test"]
    trainer.tune_thresholds()
    assert splits() == []
    trainer.evaluate()
    assert splits() == ["eval"]
    trainer.train()
    trainer.args.eval_strategy = "no"
    assert splits() == ["eval"]


def test_the_card_has_results_of_the_best_step_if_it_was_loaded(make_trainer, tmp_path, no_pictures):
    trainer = make_trainer(
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True, learning_rate=0.02, save_only_model=True,
    )  # fmt: skip
    trainer.train()
    best = trainer.state.best_global_step
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    last = trainer.state.global_step
    assert last != best, "the test needs a best step before the last one"
    assert f"the weights are those of step {best}, the best" in text
    trainer.evaluate(metric_key_prefix="test")
    trainer.create_model_card()
    results = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    micro = {result.dataset_split: result.metric_value for result in results if result.metric_name == "micro-F1"}
    logged = next(entry for entry in trainer.state.log_history if entry["step"] == best and "eval_micro_f1" in entry)
    assert micro["test"] == round(logged["eval_micro_f1"], 4)
    # The last evaluation during training belongs to another step.
    assert "eval" not in micro


def test_step_0_can_be_the_best_step(make_trainer, tmp_path, no_pictures):
    class EvaluateAtStart(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            trainer.evaluate(metric_key_prefix="start")

    trainer = make_trainer(eval_strategy="no")
    trainer.add_callback(EvaluateAtStart())
    trainer.train()
    # The state of a training that saved its weights before the first step and loaded them at its end.
    trainer.args.load_best_model_at_end = True
    trainer.state.best_global_step, trainer.state.best_model_checkpoint = 0, str(tmp_path / "checkpoint-0")
    trainer.create_model_card()
    path = tmp_path / "out" / "README.md"
    assert "the weights are those of step 0, the best" in path.read_text(encoding="utf-8")
    assert {result.dataset_split for result in ModelCard.load(path).data.eval_results} == {"start"}


def test_the_weights_are_those_of_the_last_step_if_no_checkpoint_was_loaded(make_trainer, tmp_path, no_pictures):
    trainer = make_trainer()
    trainer.train()
    # The state of a training that did not find the checkpoint of its best step.
    trainer.args.load_best_model_at_end = True
    trainer.state.best_global_step, trainer.state.best_model_checkpoint = 2, None
    trainer.create_model_card()
    assert "the weights are those of" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_f1_per_label_agrees_with_the_macro_f1(make_trainer):
    trainer = make_trainer()
    metrics = trainer.evaluate()
    found = trainer._recorded["eval"].evaluation
    taxonomy = trainer.unwrapped_model.taxonomy
    assert found.documents == 28
    assert found.support.tolist() == np.bincount(np.concatenate(trainer.eval_dataset["labels"]), minlength=13).tolist()
    for k, level in enumerate(taxonomy.levels):
        assert np.nanmean(found.node_f1[level]) == pytest.approx(metrics[f"eval_macro_f1_level_{k}"])
    trainer.tune_thresholds()
    assert list(trainer._recorded) == ["eval"]  # its predictions do not count as an evaluation


def test_pictures_of_an_earlier_run_are_removed_and_other_files_kept(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    out = tmp_path / "out"
    assert (out / "weights.png").exists()
    assert (out / "scores.png").exists()
    other = make_trainer()
    other.create_model_card()
    assert not (out / "weights.png").exists()
    assert not (out / "scores.png").exists()
    (out / "weights.png").write_bytes(b"\x89PNG of somebody else")
    other.create_model_card()
    assert (out / "weights.png").exists()
    assert "![" not in (out / "README.md").read_text(encoding="utf-8")


def test_details_are_kept_for_later_cards_and_an_edited_card_is_kept(make_trainer, tmp_path, no_pictures):
    trainer = make_trainer()
    trainer.create_model_card(language="en", license="mit", dataset="Tickets", finetuned_from="me/encoder")
    trainer.save_model()
    path = tmp_path / "out" / "README.md"
    data = ModelCard.load(path).data
    assert (data.language, data.license, data.base_model) == ("en", "mit", "me/encoder")
    path.write_text(path.read_text(encoding="utf-8").replace("# out", "# Mine"), encoding="utf-8")
    trainer.save_model()
    trainer.create_model_card()
    assert "# Mine" in path.read_text(encoding="utf-8")
    trainer.create_model_card(overwrite=True)
    assert "# Mine" not in path.read_text(encoding="utf-8")
    assert "Tickets" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="tasks can only be"):
        trainer.create_model_card(tasks="token-classification")
    with pytest.raises(ValueError, match="dataset_tags must be one data set"):
        trainer.create_model_card(dataset_tags=["a/b", "c/d"])


def test_a_benchmark_result_is_written_for_the_hub_and_removed_after_training(make_trainer, tmp_path, no_pictures):
    from huggingface_hub import parse_eval_result_entries

    trainer = make_trainer()
    with pytest.raises(ValueError, match="benchmark_metric='micro_f1' was not measured"):
        trainer.create_model_card(dataset_tags="me/bench", benchmark_task="topics")
    metrics = trainer.evaluate(metric_key_prefix="test")
    trainer.create_model_card()
    (path,) = (tmp_path / "out" / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert (entry.dataset_id, entry.task_id) == ("me/bench", "topics")
    assert entry.value == round(metrics["test_micro_f1"], 4)
    trainer.train()
    trainer.create_model_card()  # the result belongs to the model before this training
    assert not path.exists()


def test_metrics_of_a_custom_function_are_listed_unchanged(taxonomy, tokenizer, tmp_path, no_pictures):
    args = HcalTrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True, disable_tqdm=True)
    rows = rows_of(taxonomy, tokenizer, times=1)
    trainer = HcalTrainer(
        build_model(taxonomy), args, None, None, rows, tokenizer, compute_metrics=lambda _: {"own|x": 0.25}
    )
    trainer.evaluate()
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "`own|x` 0.25" in text
    assert "| raw |" not in text


@pytest.mark.parametrize("freeze", [True, False])
def test_a_training_run_writes_a_card_with_its_test_results(tmp_path, encoder_dir, data_dir, freeze):  # noqa: F811
    details = {"dataset": "Made-up studies", "finetuned_from": "me/encoder", "language": "en"}
    path = config_file(
        tmp_path, encoder_dir, data_dir, freeze_encoder=freeze, card=details, max_steps=4, logging_steps=2
    )
    metrics = run_training(*parse_arguments([path]))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert is_generated(tmp_path / "out" / "README.md")
    assert "### test: 7 documents, in percent" in text
    assert f"Hierarchical F1 {100 * metrics['test_hierarchical_f1']:.1f}" in text
    assert "Made-up studies" in text
    assert ("L-BFGS" in text) == freeze
    assert ("optimizer" in text) == (not freeze)
    assert ("weights.png" in text) == (not freeze)
    assert "scores.png" in text
    for place in (str(tmp_path), encoder_dir, str(data_dir)):
        assert place not in text
    with pytest.raises(ValueError, match="no detail 'languages'"):
        run_training(*parse_arguments([path, "--card", json.dumps({"languages": "en"})]))


# ---- The Hub ----


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer(tokens={TOKEN: "me"}) as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
        yield server


def test_a_push_uploads_the_card_and_keeps_a_card_edited_on_the_hub(hub, make_trainer, tmp_path):
    trainer = make_trainer(hub_model_id="me/topics", hub_token=TOKEN)
    trainer.evaluate(metric_key_prefix="test")
    trainer.push_to_hub(language="en")
    pushed = hub.files("me/topics")["README.md"].decode()
    assert 'model="me/topics"' in pushed
    assert "\n# topics\n" in pushed
    assert "language: en" in pushed
    assert "scores.png" in hub.files("me/topics")
    assert TOKEN not in pushed

    files = dict(hub.files("me/topics"))
    files["README.md"] = b"# Edited on the Hub\n"
    hub.repos["me/topics"].commit("main", files, "edit")
    trainer.push_to_hub()
    assert hub.files("me/topics")["README.md"] == b"# Edited on the Hub\n"
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "# Edited on the Hub\n"
    trainer.push_to_hub(overwrite=True)
    assert hub.files("me/topics")["README.md"].decode() == pushed


def test_a_push_creates_a_missing_branch(hub, make_trainer):
    trainer = make_trainer(hub_model_id="me/branched", hub_token=TOKEN)
    trainer.push_to_hub(revision="trial")
    assert {"README.md", "model.safetensors", "modeling_hcal.py"} <= set(hub.files("me/branched", "trial"))
    assert "model.safetensors" not in hub.files("me/branched")


def test_an_interrupted_push_of_the_trainer_can_be_repeated(hub, make_trainer):
    trainer = make_trainer(hub_model_id="me/cut", hub_token=TOKEN)
    hub.cut = "commit"
    with pytest.raises(ConnectionError, match=r"The push to me/cut was cut off.* Push again"):
        trainer.push_to_hub()
    hub.cut = None
    trainer.push_to_hub()
    assert "model.safetensors" in hub.files("me/cut")


def test_pushes_during_training_contain_the_code(hub, make_trainer):
    trainer = make_trainer(
        hub_model_id="me/often", hub_token=TOKEN, push_to_hub=True, hub_strategy="every_save",
        save_strategy="steps", save_steps=2, max_steps=2,
    )  # fmt: skip
    trainer.train()
    trainer._finish_current_push()
    assert {"model.safetensors", "modeling_hcal.py", "hub.py", "README.md"} <= set(hub.files("me/often"))


def test_pushing_a_model_uploads_a_minimal_card_and_keeps_an_edited_one(hub, taxonomy):
    model = build_model(taxonomy)
    model.push_to_hub("bare", token=TOKEN)
    text = hub.files("me/bare")["README.md"].decode()
    assert 'model="me/bare"' in text
    assert "More Information Needed" not in text
    files = {**hub.files("me/bare"), "README.md": b"---\nlicense: mit\n---\n# Mine\n"}
    hub.repos["me/bare"].commit("main", files, "edit")
    model.push_to_hub("me/bare", token=TOKEN)
    assert hub.files("me/bare")["README.md"].decode().endswith("# Mine\n")

"""Saved and pushed models contain their code, and processes without hcal_hf can load them."""

import ast
import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline
from transformers.dynamic_module_utils import get_relative_import_files

import hcal_hf
from hcal_hf import HcalConfig, HcalTrainer, HcalTrainingArguments
from hcal_hf.hub import TASK, CustomPipelines, clear_push_errors
from tests.builders import build_model
from tests.hub_processes import TEXTS, labels_of, outputs_of
from tests.hub_server import HubServer

PACKAGE = Path(hcal_hf.__file__).parent
PROCESSES = Path(__file__).parent / "hub_processes.py"
TOKEN = "hf_aSecretThatNobodyMayRead"
ALLOWED = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "tqdm", *sys.stdlib_module_names}


def siblings(name):
    """Returns the files of the package that a file imports, directly or indirectly, including itself."""
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
            assert all(node.level == 1 and node.module and "." not in node.module for node in imports), name
            waiting += [node.module for node in imports]
    return found


CARRIED = {f"{name}.py" for name in siblings("modeling_hcal")}


# ---- Files that travel with a model ----


def test_code_in_saved_models_imports_only_itself_and_the_dependencies_of_transformers():
    assert {"modeling_hcal.py", "configuration_hcal.py", "pipeline_hcal.py", "decoding.py", "hub.py"} <= CARRIED
    assert not CARRIED & {"trainer.py", "data.py", "__init__.py"}
    for name in CARRIED:
        for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {n.split(".")[0] for n in names} <= ALLOWED, name
            dynamic = isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", ""))
            assert dynamic not in ("import_module", "__import__", "find_spec"), name


def test_transformers_finds_the_same_files_with_its_regular_expressions():
    # They would miss `from . import x` and would mistake an example in a docstring for an import.
    found = {Path(file).name for file in get_relative_import_files(PACKAGE / "modeling_hcal.py")}
    assert found | {"modeling_hcal.py"} == CARRIED


# ---- All ways of saving, and loading without hcal_hf ----


@pytest.fixture(scope="module")
def work(tmp_path_factory, taxonomy, dag, tokenizer):
    """Saves one model in each possible way. Returns the folder and {subfolder: expected predictions}."""
    folder = tmp_path_factory.mktemp("hub")
    expected = {}

    def predict(name, model):
        expected[name] = outputs_of(model, tokenizer, pipeline(TASK, model, tokenizer=tokenizer, device="cpu"))

    model = build_model(taxonomy)
    with torch.no_grad():
        model.prototypes.weight.normal_(std=2)
    model.config.thresholds = (0.1 + 0.2 * taxonomy.depths).tolist()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    predict("model", model)

    settings = {"prototype_anchor": "label_text", "score_function": "linear", "contrast": "aggregate"}
    model = build_model(dag, 1, label_mode="multi_path", **settings)
    rows = Dataset.from_dict({**tokenizer(TEXTS), "labels": labels_of(model)})
    args = HcalTrainingArguments(folder / "trainer", max_steps=1, report_to="none", use_cpu=True, learning_rate=0.1)
    trainer = HcalTrainer(model, args, None, rows, None, tokenizer)
    trainer.train()
    trainer.save_model()
    predict("trainer", model)
    predict("trainer/checkpoint-1", model)

    model = build_model(taxonomy, 2, preset="paper")
    pipe = pipeline(TASK, model, tokenizer=tokenizer, device="cpu")
    pipe.save_pretrained(folder / "pipe")
    predict("pipe", model)
    return folder, expected


@pytest.fixture(scope="module")
def hub():
    with HubServer(tokens={TOKEN: "me"}) as server:
        yield server


@pytest.fixture(scope="module")
def processes(work, hub):
    """Runs the processes and returns everything that they printed and logged."""
    folder, _ = work
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "TEST_HUB_TOKEN": TOKEN}
    (folder / "elsewhere").mkdir()
    command = [sys.executable, str(PROCESSES), str(folder)]
    done = subprocess.run(
        command, cwd=folder / "elsewhere", env=environment, capture_output=True, text=True, timeout=600
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output.replace(TOKEN, "***")[-6000:]
    return output


def results_of(role):
    @pytest.fixture(scope="module")
    def results(work, processes):
        return json.loads((work[0] / f"{role}.json").read_text(encoding="utf-8"))

    return results


author, reader, again = (results_of(role) for role in ("author", "reader", "again"))


def assert_same(found, expected):
    torch.testing.assert_close(torch.tensor(found["logits"]), torch.tensor(expected["logits"]), rtol=0, atol=1e-6)
    assert len(found["found"]) == len(expected["found"])
    for labels, wanted in zip(found["found"], expected["found"]):
        assert [{**label, "score": 0} for label in labels] == [{**label, "score": 0} for label in wanted]
        assert [label["score"] for label in labels] == pytest.approx([label["score"] for label in wanted], abs=1e-6)


def code_in(folder):
    return {file.name for file in Path(folder).glob("*.py")}


def test_every_way_of_saving_writes_the_code(work):
    folder, expected = work
    for name in expected:
        assert code_in(folder / name) == CARRIED, name
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        assert config["auto_map"] == {
            "AutoConfig": "configuration_hcal.HcalConfig",
            "AutoModelForSequenceClassification": "modeling_hcal.HcalForSequenceClassification",
        }
        assert config["custom_pipelines"] == {
            "hierarchical-text-classification": {
                "impl": "pipeline_hcal.HierarchicalTextClassificationPipeline",
                "pt": ["AutoModelForSequenceClassification"],
                "type": "text",
            }
        }


@pytest.mark.slow
def test_without_hcal_hf_every_saved_model_gives_the_same_predictions(work, author, reader):
    _, expected = work
    wanted = {**expected, "hub": expected["model"], "hub trainer": author["trained"]}
    assert set(reader["read"]) == set(wanted)
    for name, found in reader["read"].items():
        assert_same(found, wanted[name])
        assert found["task"] == TASK
        assert all(module.startswith("transformers_modules.") for module in found["modules"])


@pytest.mark.slow
def test_without_hcal_hf_loading_requires_trust_remote_code(reader):
    assert all("trust_remote_code=True" in problem for problem in reader["untrusted"])


@pytest.mark.slow
def test_a_model_trained_and_saved_again_without_hcal_hf_still_contains_its_code(work, hub, reader, again):
    folder, expected = work
    assert set(again["read"]) == {"tuned", "tuned pipe", "tuned trainer", "tuned hub"}
    for name, found in again["read"].items():
        assert_same(found, reader["tuned"][name])
        assert (torch.tensor(found["logits"]) - torch.tensor(expected["model"]["logits"])).abs().max() > 0.01
        assert found["task"] == TASK
    for name in ("tuned", "tuned pipe", "tuned trainer", "tuned trainer/checkpoint-1"):
        assert code_in(folder / name) == CARRIED
        # No reference to the repository that the model came from. A copy must not download its code from there.
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        assert "--" not in json.dumps([config["auto_map"], config["custom_pipelines"]])
    assert {name for name in hub.files("me/tuned") if name.endswith(".py")} == CARRIED


# ---- With hcal_hf ----


@pytest.mark.slow
def test_with_hcal_hf_the_installed_code_runs_without_trust_remote_code(work, author):
    _, expected = work
    for source in ("folder", "hub", "trusted"):
        assert_same(author[source], expected["model"])
    assert not [module for module in author["modules"] if not module.startswith(("hcal_hf.", "transformers."))]
    assert author["remote modules"] == []


@pytest.mark.parametrize("trust", [None, False, True])
def test_auto_classes_and_pipeline_use_the_registered_classes(work, trust):
    folder, _ = work
    before = set(sys.modules)
    kwargs = {} if trust is None else {"trust_remote_code": trust}
    config = AutoConfig.from_pretrained(folder / "model", **kwargs)
    assert type(config) is HcalConfig
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", **kwargs)
    assert type(model) is type(AutoModelForSequenceClassification.from_config(config, **kwargs))
    assert type(model) is hcal_hf.HcalForSequenceClassification
    assert type(pipeline(TASK, str(folder / "model"), **kwargs)) is hcal_hf.HierarchicalTextClassificationPipeline
    if trust is not False:
        assert type(pipeline(model=str(folder / "model"), **kwargs)) is hcal_hf.HierarchicalTextClassificationPipeline
    assert not [name for name in set(sys.modules) - before if name.startswith("transformers_modules")]


def test_a_folder_without_code_still_loads(work, tmp_path, tokenizer):
    folder, expected = work
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / "model" / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del config["auto_map"], config["custom_pipelines"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same(outputs_of(model, tokenizer, pipeline(model=str(tmp_path), device="cpu")), expected["model"])
    model.save_pretrained(tmp_path)
    assert code_in(tmp_path) == CARRIED


def test_custom_pipelines_are_saved_but_hidden_if_the_task_is_registered(taxonomy):
    pipelines = HcalConfig.from_taxonomy(taxonomy).custom_pipelines
    assert list(pipelines) == [TASK]
    assert TASK not in pipelines
    # `pipeline()` modifies the entry in this way.
    pipelines[TASK]["pt"] = (AutoModelForSequenceClassification,)
    assert pipelines == CustomPipelines() == copy.deepcopy(pipelines)
    assert json.loads(json.dumps(pipelines))[TASK]["pt"] == ["AutoModelForSequenceClassification"]
    # An entry of our task that refers to another repository is replaced. Entries of other tasks are kept.
    stale = {TASK: {"impl": "someone/else--pipeline_hcal.HierarchicalTextClassificationPipeline"}}
    assert HcalConfig.from_taxonomy(taxonomy, custom_pipelines=stale).custom_pipelines == pipelines
    other = {"my-task": {"impl": "my_pipeline.MyPipeline", "pt": ["AutoModelForSequenceClassification"]}}
    theirs = HcalConfig.from_taxonomy(taxonomy, custom_pipelines=other).custom_pipelines
    assert theirs == other
    assert "my-task" in theirs


# ---- Push and load ----


@pytest.mark.slow
def test_push_passes_private_revision_and_commit_message_to_the_hub(hub, author):
    assert hub.repos["me/private"].private
    assert hub.repos["me/trained"].private
    assert not hub.repos["me/cut-upload"].private
    assert set(hub.files("me/private")) == {".gitattributes"}
    assert CARRIED | {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(
        hub.files("me/private", "v1")
    )
    assert hub.seen("me/private/commit/v1")[0].payload["summary"] == "A first version"


@pytest.mark.slow
def test_pushing_from_the_trainer_uploads_code_and_card_but_no_checkpoints(work, hub, author):
    folder, _ = work
    pushed = hub.files("me/trained")
    assert pushed["README.md"] == (folder / "trained" / "README.md").read_bytes()
    assert CARRIED | {"config.json", "model.safetensors", "tokenizer.json"} <= set(pushed)
    assert not [name for name in pushed if "checkpoint" in name]


@pytest.mark.slow
def test_the_token_is_sent_with_every_write_request_and_stored_nowhere(work, hub, reader, processes):
    folder, _ = work
    # transformers lists the chat templates of a repository without a token, and one reader has no token.
    bare = [r for r in hub.seen("me/private|me/trained") if r.token != TOKEN and "/tree/" not in r.path]
    assert [r for r in bare if "me/private" not in r.path or r.method not in ("GET", "HEAD")] == []
    assert len(bare) < len(hub.seen("me/private/resolve"))
    assert {r.token for r in hub.seen("create|branch|preupload|commit/|batch", "POST")} == {TOKEN, "hf_nobody"}
    assert "me/private" in reader["no token"]
    assert "me/private" in processes
    assert TOKEN not in processes
    written = [file for file in folder.rglob("*") if file.is_file()]
    assert len(written) > 100
    assert [file for file in written if TOKEN.encode() in file.read_bytes()] == []
    assert [repo for repo in hub.repos for f in hub.files(repo).values() if TOKEN.encode() in f] == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["upload", "commit"])
def test_an_interrupted_push_raises_a_clear_error_and_a_second_push_completes_it(hub, author, what):
    found = author[f"cut {what}"]
    assert found["problem"].startswith(f"ConnectionError: The push to me/cut-{what} was cut off")
    assert "Push again" in found["problem"]
    assert found["left"] == [".gitattributes"]
    assert {"model.safetensors", "config.json"} | CARRIED <= set(hub.files(f"me/cut-{what}"))
    torch.testing.assert_close(found["received"], found["sent"], rtol=0, atol=1e-6)
    # Files that arrived before the interruption are not sent again.
    oid = hashlib.sha256(hub.files(f"me/cut-{what}")["model.safetensors"]).hexdigest()
    uploads = len(hub.seen(f"/objects/{oid}"))
    assert uploads == 1 if what == "commit" else uploads > 1


@pytest.mark.slow
def test_a_push_refused_by_the_hub_is_not_reported_as_interrupted(author):
    assert author["refused"].startswith("HfHubHTTPError: ") or "401" in author["refused"]
    assert "cut off" not in author["refused"]


def test_only_connection_errors_during_a_push_are_rewritten():
    with pytest.raises(ValueError, match=r"^no$"), clear_push_errors("me/x"):
        raise ValueError("no")
    with pytest.raises(OfflineModeIsEnabled, match=r"^offline$"), clear_push_errors("me/x"):
        raise OfflineModeIsEnabled("offline")
    reset = r"The push to me/x was cut off: reset \(ConnectionResetError\)\. A push ends in one commit"
    with pytest.raises(ConnectionError, match=reset), clear_push_errors("me/x"):
        raise ConnectionResetError("reset")


def test_the_training_arguments_are_saved_without_the_token(tmp_path):
    args = HcalTrainingArguments(tmp_path, hub_token=TOKEN, report_to="none", use_cpu=True)
    torch.save(args, tmp_path / "training_args.bin")
    assert TOKEN.encode() not in (tmp_path / "training_args.bin").read_bytes()

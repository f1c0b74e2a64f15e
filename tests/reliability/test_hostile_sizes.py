"""Configurations that describe far more than the weight file holds are refused before anything is built or allocated."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertModel, pipeline
from transformers.models.bert import modeling_bert

from hcal_hf import HcalConfig, HcalForSequenceClassification
from hcal_hf.commands import main as cli
from hcal_hf.size_checks import WeightFile, check_counts
from tests.builders import build_model, build_taxonomy, tiny_bert


@pytest.fixture(scope="module")
def saved(encoder_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    build_model(build_taxonomy()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_dir).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def encoder(encoder_dir, tmp_path):
    shutil.copytree(encoder_dir, tmp_path / "encoder")
    return tmp_path / "encoder"


def edit(folder, **fields):
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.get("encoder_config", values).update(fields)
    path.write_text(json.dumps(values), encoding="utf-8")


def refusal(call):
    """Returns the messages of the error of a call and of its causes."""
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    problem, messages = caught.value, []
    while problem is not None:
        messages.append(str(problem))
        problem = problem.__cause__ or problem.__context__
    return "\n".join(messages)


@pytest.fixture
def refusals(folder, encoder, capsys, monkeypatch):
    """Returns a function that sets fields of an encoder's configuration and returns what each way of loading says.

    No weight may be allocated: every module of the encoder must be on the meta device.
    """
    built = []

    def watch(kind):
        make = kind.__init__

        def init(self, *args, **kwargs):
            built.append(kind.__name__)
            make(self, *args, **kwargs)
            assert all(parameter.is_meta for parameter in self.parameters())

        monkeypatch.setattr(kind, "__init__", init)

    watch(modeling_bert.BertLayer)
    watch(modeling_bert.BertEmbeddings)

    def say(**fields):
        edit(folder, **fields)
        edit(encoder, **fields)
        said = {
            "from_pretrained": refusal(lambda: HcalForSequenceClassification.from_pretrained(folder)),
            "pipeline": refusal(lambda: pipeline("hierarchical-text-classification", model=str(folder))),
            "from_encoder": refusal(
                lambda: HcalForSequenceClassification.from_encoder(str(encoder), build_taxonomy())
            ),
        }
        assert cli.main(["inspect", str(folder)]) == 1
        said["inspect"] = capsys.readouterr().err
        assert cli.main(["predict", str(folder), "a text", "--cpu"]) == 1
        said["predict"] = capsys.readouterr().err
        assert "Traceback" not in said["inspect"] + said["predict"]
        return said, built

    return say


@pytest.mark.parametrize("layers", [1_001, 100_000, 10**9])
def test_more_layers_than_any_encoder_has_are_refused_before_a_configuration_is_built(refusals, layers):
    said, built = refusals(num_hidden_layers=layers)
    for way, message in said.items():
        assert f"num_hidden_layers={layers:,}, and at most 1,000 are allowed" in message, (way, message)
        assert "Restore the file" in message
    assert not built


def test_more_layers_than_the_file_has_weights_are_refused_before_one_is_built(refusals, saved):
    number = len(load_file(saved / "model.safetensors"))
    said, built = refusals(num_hidden_layers=1_000)
    assert f"num_hidden_layers=1,000, but the weight file holds only {number} weights" in said["from_pretrained"]
    for way, message in said.items():
        assert "num_hidden_layers=1,000, but the weight file holds only" in message, (way, message)
        assert "Restore the config.json" in message
    assert not built


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("hidden_size", "[16, 16]"),
        ("vocab_size", "[22, 16]"),
        ("intermediate_size", "[24, 16]"),
        ("max_position_embeddings", "[32, 16]"),
        ("type_vocab_size", "[2, 16]"),
    ],
)
def test_sizes_beyond_those_of_the_file_are_refused_before_memory_is_asked_for(refusals, field, shape):
    said, _ = refusals(**{field: 10**9})
    for way, message in said.items():
        assert f"{field}=1,000,000,000" in message, (way, message)
        assert f"has the shape {shape} in the file" in message, (way, message)


def test_sizes_that_overflow_are_refused(refusals):
    said, _ = refusals(intermediate_size=10**18)
    for way, message in said.items():
        assert "intermediate_size=1,000,000,000,000,000,000" in message, (way, message)


def test_a_number_of_labels_for_which_names_would_be_made_is_refused(refusals):
    said, built = refusals(num_labels=10**9)
    for way, message in said.items():
        assert "num_labels=1,000,000,000, and at most 1,048,576 are allowed" in message, (way, message)
    assert not built


def test_an_accepted_projection_is_compared_with_the_file_as_well(folder):
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "projection_dim": 10**6}), encoding="utf-8")
    message = refusal(lambda: HcalForSequenceClassification.from_pretrained(folder, accept_edits=True))
    assert "projection.weight would have the shape [1000000, 16]" in message
    assert "projection_dim=1,000,000" in message
    path.write_text(json.dumps({**values, "lexical_terms": 10**6, "lexical_features": 10**6}), encoding="utf-8")
    message = refusal(lambda: HcalForSequenceClassification.from_pretrained(folder, accept_edits=True))
    assert "lexical.vectors would have the shape [1000001, 1000000] (lexical_features=1,000,000" in message
    path.write_text(json.dumps({**values, "num_labels": 10**9}), encoding="utf-8")
    assert "num_labels=1000000000 contradicts the 13 labels" in refusal(lambda: HcalConfig.from_pretrained(folder))


@pytest.mark.parametrize("kind", ["folder", "encoder"])
def test_a_configuration_that_is_nested_too_deeply_is_named(kind, request, capsys):
    folder = request.getfixturevalue(kind)
    path = folder / "config.json"
    deep = "[" * 5_000 + "]" * 5_000
    path.write_text(path.read_text(encoding="utf-8").rstrip()[:-1] + f', "extra": {deep}}}', encoding="utf-8")
    load = (
        (lambda: HcalForSequenceClassification.from_pretrained(folder))
        if kind == "folder"
        else lambda: HcalForSequenceClassification.from_encoder(str(folder), build_taxonomy())
    )
    assert "is nested deeper than the JSON reader of Python allows" in refusal(load)
    assert cli.main(["inspect", str(folder)]) == 1
    assert "is nested deeper than" in capsys.readouterr().err


def test_sharded_weights_are_compared_as_well(folder):
    shutil.rmtree(folder)
    model = build_model(build_taxonomy())
    model.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    weights = WeightFile.find(folder, {})
    assert weights.shapes == {name: tuple(value.shape) for name, value in model.state_dict().items()}
    HcalForSequenceClassification.from_pretrained(folder)
    edit(folder, vocab_size=10**9)
    assert "vocab_size=1,000,000,000" in refusal(lambda: HcalForSequenceClassification.from_pretrained(folder))


def test_a_shard_outside_the_folder_is_not_read(folder, tmp_path):
    save_file({"secret": torch.ones(3)}, tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert WeightFile.find(folder, {}) is None


def test_other_files_and_models_without_weights_are_not_compared(folder, tmp_path):
    assert WeightFile.find(tmp_path / "nowhere", {}) is None
    assert WeightFile.find(folder, {"variant": "fp16"}) is None
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert WeightFile.find(folder, {"variant": "fp16"}).shapes["projection.weight"] == (8, 16)
    (folder / "model.fp16.safetensors").write_bytes(b"none")
    assert WeightFile.find(folder, {"variant": "fp16"}) is None
    assert cli.main(["inspect", str(folder)]) == 0  # the configuration alone can be described


def test_larger_models_for_new_weights_are_accepted(tmp_path, encoder_dir):
    """An explicit argument asks for new weights, such as those of a head with many labels."""
    config = HcalConfig.from_taxonomy(build_taxonomy(), tiny_bert(), projection_dim=2**17)
    with pytest.raises(ValueError, match=r"projection\.weight would have the shape \[131072, 16\]"):
        HcalForSequenceClassification.from_pretrained(encoder_dir, config=config)
    model = HcalForSequenceClassification.from_pretrained(encoder_dir, config=config, allow_new_weights=True)
    expected = BertModel.from_pretrained(encoder_dir).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, expected)


def test_nested_counts_are_found():
    check_counts(
        {"num_hidden_layers": 1_000, "depths": [2, 18], "num_labels": 2, "layer_norm_eps": 1e-5, "is_x": True}
    )
    for values in ({"depths": [2, 10**5]}, {"text_config": {"n_layer": 10**4}}, {"num_local_experts": 1e9}):
        with pytest.raises(ValueError, match="and at most 1,000 are allowed"):
            check_counts(values)

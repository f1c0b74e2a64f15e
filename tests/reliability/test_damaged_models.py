"""A damaged or edited model does not answer: each command and Python call names what is wrong."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, pipeline

from hcal_hf import HcalConfig, HcalForSequenceClassification, HcalTrainer, HcalTrainingArguments
from hcal_hf.commands import main as cli
from hcal_hf.integrity import CHECKSUMS, PARTS, vocabulary_checksum

FIELDS = {
    "head": "conditional_sigmoid",
    "label_mode": "multi_path",
    "prototype_anchor": "label_text",
    "partial_paths": True,
}


@pytest.fixture(scope="module")
def saved(encoder_dir, taxonomy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, **FIELDS)
    model.config.thresholds = [0.5] * len(taxonomy)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_dir).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved model, to be damaged."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (tmp_path / "texts.jsonl").write_text('{"text": "stars", "labels": "science"}\n', encoding="utf-8")
    return copy


def refusals(folder, capsys, can_answer=False):
    """Returns what each way of loading says; an empty text where it answers.

    `can_answer` leaves out the export, which takes seconds if it is not refused.
    """
    texts = str(folder.parent / "texts.jsonl")
    found = {}
    calls = {
        "from_pretrained": lambda: HcalForSequenceClassification.from_pretrained(folder),
        "pipeline": lambda: pipeline("hierarchical-text-classification", model=str(folder))("stars"),
    }
    for name, call in calls.items():
        try:
            call()
        except (ValueError, OSError, RuntimeError) as problem:
            chain = [problem]
            while chain[-1].__cause__ or chain[-1].__context__:
                chain.append(chain[-1].__cause__ or chain[-1].__context__)
            found[name] = "\n".join(map(str, chain))
        else:
            found[name] = ""
    commands = {
        "predict": ["predict", str(folder), texts, "--out", str(folder.parent / "out.csv"), "--cpu"],
        "evaluate": ["evaluate", str(folder), texts, "--cpu", "--empty-means-none"],
        "export": ["export", str(folder), "--output-dir", str(folder.parent / "onnx")],
    }
    if can_answer:
        del commands["export"]
    for name, arguments in commands.items():
        code = cli.main(arguments)
        error = capsys.readouterr().err
        found[name] = error if code else ""
        assert "Traceback" not in error
    return found


def edit_config(folder, change):
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_an_undamaged_model_answers(folder, capsys):
    assert set(refusals(folder, capsys, can_answer=True).values()) == {""}


@pytest.mark.slow
def test_an_undamaged_model_is_exported(folder, capsys):
    assert set(refusals(folder, capsys).values()) == {""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("projection.weight"), "projection.weight is missing"),
        (lambda w: w.pop("prototypes.weight"), "prototypes.weight is missing"),
        (lambda w: w.pop("prototypes.anchors"), "prototypes.anchors is missing"),
        (lambda w: [w.pop(k) for k in list(w) if k.startswith("encoder.")], "more are missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra is unknown"),
        (
            lambda w: w.update({"prototypes.weight": w["prototypes.weight"][:-1].clone()}),
            "prototypes.weight is of another",
        ),
        (lambda w: w["projection.weight"].fill_(torch.nan), "projection.weight is NaN or infinite in places"),
        (lambda w: w["prototypes.weight"][0].fill_(torch.inf), "prototypes.weight is NaN or infinite in places"),
        (lambda w: w.update({"head.scale": torch.tensor(float("nan"))}), "head.scale"),
    ],
)
def test_damaged_weights_are_named_wherever_a_model_is_loaded(folder, capsys, change, message):
    edit_weights(folder, change)
    for way, said in refusals(folder, capsys).items():
        assert message in said, (way, said)


def test_an_unused_pooler_of_the_encoder_is_accepted(folder, capsys):
    edit_weights(folder, lambda w: w.update({"encoder.pooler.dense.weight": torch.zeros(2, 2)}))
    assert set(refusals(folder, capsys, can_answer=True).values()) == {""}


def test_weights_are_new_only_by_an_explicit_argument(folder):
    edit_weights(folder, lambda w: w.pop("projection.weight"))
    with pytest.raises(ValueError, match=r"load it with from_pretrained\(..., allow_new_weights=True\)"):
        HcalForSequenceClassification.from_pretrained(folder)
    model, info = HcalForSequenceClassification.from_pretrained(
        folder, allow_new_weights=True, output_loading_info=True
    )
    assert info["missing_keys"] == {"projection.weight"}
    assert torch.isfinite(model.projection.weight).all()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda c: c.pop("edges"), "hierarchy (edges)"),
        (lambda c: c["edges"].pop(), "hierarchy (edges)"),
        (lambda c: c.update(label_mode="single_path", head="independent"), "head (label_mode,"),
        (lambda c: c.update(partial_paths=False), "head (label_mode,"),
        (lambda c: c.update(score_function="linear"), "head (label_mode,"),
        (lambda c: c.update(pooling="cls"), "head (label_mode,"),
        (lambda c: c.pop("prototype_anchor"), "head (label_mode,"),
        (lambda c: c.update(prototype_temperature=0.5), "head (label_mode,"),
        (lambda c: c.update(score_temperature=2.0), "decisions (thresholds,"),
        (lambda c: c.pop("thresholds"), "decisions (thresholds,"),
        (lambda c: c["labels"].reverse(), "labels (labels)"),
        (lambda c: c.update({CHECKSUMS: "none"}), "labels, hierarchy, head, features, windows, decisions"),
    ],
)
def test_an_edited_configuration_is_refused_and_the_part_is_named(folder, capsys, change, part):
    edit_config(folder, change)
    said = refusals(folder, capsys)
    assert cli.main(["inspect", str(folder)]) == 1
    said["inspect"] = capsys.readouterr().err
    for way, message in said.items():
        assert "config.json was changed after the model was saved" in message, (way, message)
        assert part in message, (way, message)
        assert "hcal inspect MODEL --accept" in message


def test_an_intended_edit_is_accepted_by_an_argument_or_a_command(folder, capsys):
    edit_config(folder, lambda c: c.update(score_temperature=2.0))
    assert HcalForSequenceClassification.from_pretrained(folder, accept_edits=True).config.score_temperature == 2.0
    with pytest.raises(ValueError, match="decisions"):
        HcalConfig.from_pretrained(folder)
    assert cli.main(["inspect", str(folder), "--accept"]) == 0
    assert HcalForSequenceClassification.from_pretrained(folder).config.score_temperature == 2.0
    assert set(refusals(folder, capsys, can_answer=True).values()) == {""}
    assert cli.main(["inspect", "no/such/folder", "--accept"]) == 1


def test_changes_through_the_library_stay_valid(folder, tmp_path):
    model = HcalForSequenceClassification.from_pretrained(folder)
    model.config.thresholds, model.config.score_temperature = None, 1.5
    model.add_labels([["science", "chess"]], AutoTokenizer.from_pretrained(folder))
    model.save_pretrained(tmp_path / "changed")
    assert "chess" in HcalForSequenceClassification.from_pretrained(tmp_path / "changed").config.labels
    changed = HcalConfig.from_pretrained(tmp_path / "changed", score_temperature=3.0)  # the caller's own choice
    assert changed.score_temperature == 3.0


def test_a_model_without_checksums_is_loaded_with_a_note(folder, caplog):
    edit_config(folder, lambda c: c.pop(CHECKSUMS))
    with caplog.at_level(logging.INFO, logger="hcal_hf.integrity"):
        HcalForSequenceClassification.from_pretrained(folder)
    assert "The model has no checksums, because an earlier hcal_hf saved it" in caplog.text


def test_each_field_that_decides_answers_has_a_checksum():
    names = [name for fields in PARTS.values() for name in fields]
    assert len(names) == len(set(names))
    # The other fields change the training, texts for people, how tables are read, or have checks of their own.
    others = {
        "perturbation",
        "contrast",
        "contrast_alpha",
        "contrast_kwargs",
        "label_texts",
        "label_names",
        "table_options",
    }
    others |= {"tokenizer_checksum", "hcal_format_version", "encoder_config", "id2label", "label2id", "problem_type"}
    others |= {"geometry_weight", "geometry_order", "geometry_rows", "geometry_released"}
    own = {name for name in HcalConfig.__annotations__ if not name.startswith("_")}
    assert set(names) | others >= own - {"model_type", "sub_configs", "keys_to_ignore_at_inference"}
    assert set(names) <= own


# ---- The tokenizer ----


def permute(folder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = values["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(values), encoding="utf-8")


def test_a_permuted_tokenizer_is_refused_where_it_meets_the_model(folder, capsys):
    assert HcalConfig.from_pretrained(folder).tokenizer_checksum is not None
    permute(folder)
    said = refusals(folder, capsys)
    assert said.pop("from_pretrained") == ""  # it reads no tokenizer
    for way, message in said.items():
        assert "The tokenizer is not the one that the model was trained with" in message, (way, message)
    with pytest.raises(ValueError, match="The tokenizer is not the one"):
        HcalTrainer(
            HcalForSequenceClassification.from_pretrained(folder),
            HcalTrainingArguments(str(folder), report_to="none", use_cpu=True),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
    assert cli.main(["inspect", str(folder), "--accept"]) == 0
    assert set(refusals(folder, capsys, can_answer=True).values()) == {""}


def test_training_stores_the_checksum_of_its_tokenizer(encoder_dir, taxonomy, tokenizer, tmp_path):
    from datasets import Dataset

    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy)
    assert model.config.tokenizer_checksum is None
    rows = {"input_ids": [[2, 5, 3]] * 2, "attention_mask": [[1, 1, 1]] * 2, "labels": [[0, 2, 6]] * 2}
    args = HcalTrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
    HcalTrainer(model, args, None, Dataset.from_dict(rows), None, tokenizer).train()
    assert model.config.tokenizer_checksum == vocabulary_checksum(tokenizer)


def test_a_tokenizer_larger_than_the_encoder_is_refused(encoder_dir, taxonomy):
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy)
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
    tokenizer.add_tokens([f"new{i}" for i in range(100)])
    with pytest.raises(ValueError, match=r"The tokenizer has \d+ tokens, but the encoder has embeddings for 22"):
        pipeline("hierarchical-text-classification", model=model, tokenizer=tokenizer)

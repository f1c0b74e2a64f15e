import json
import re

import pytest
from transformers import AutoConfig, BertConfig

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy
from hcal_hf.configuration_hcal import FORMAT_VERSION
from hcal_hf.training.risk import NEVER
from tests.builders import tiny_bert


def test_saving_keeps_the_configuration_and_label_maps_follow_from_the_labels(tmp_path, taxonomy):
    config = HcalConfig.from_taxonomy(taxonomy, tiny_bert(), label_mode="multi_path", projection_dim=32)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, HcalConfig)
    assert loaded.to_taxonomy() == taxonomy
    assert loaded.id2label == dict(enumerate(taxonomy.labels))
    assert loaded.label2id == {label: i for i, label in enumerate(taxonomy.labels)}
    assert loaded.num_labels == taxonomy.num_labels
    assert loaded.problem_type == "multi_label_classification"
    assert (loaded.label_mode, loaded.projection_dim) == ("multi_path", 32)
    assert isinstance(loaded.encoder_config, BertConfig)
    assert loaded.encoder_config.hidden_size == 16


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("label_mode", "tree", "label_mode"),
        ("pooling", "median", "pooling"),
        ("head", "flat", "head"),
        ("objective", "all", "objective"),
        ("projection_dim", "256", "projection_dim"),
        ("projection_dim", 0, "from 1 to 1,048,576, got 0"),
        ("prototype_temperature", 0.0, "must lie between 0.001 and 1000, got 0.0"),
        ("prototype_temperature", "cold", "prototype_temperature"),
        ("perturbation", -0.1, "0 (off) or a finite number above, got -0.1"),
        ("thresholds", [0.5] * 12 + [1.01], "from 0 to 1, got 1.01 for "),
        ("thresholds", [-0.01] + [0.5] * 12, "from 0 to 1, got -0.01 for 'science'"),
        ("thresholds", [float("nan")] * 13, "from 0 to 1, got nan for 'science'"),
        ("thresholds", [0.5] * 12, "one number for each of 13 labels, got 12"),
        ("thresholds", [0.5, 0.2] + [0.4] * 11, "is below that of its parent 'science'. Raise it to at least"),
        ("risk_alpha", 0.1, "risk_alpha and risk_threshold belong together"),
        ("score_temperature", 0.0, "must lie between 0.001 and 1000, got 0.0"),
        (
            "score_temperature",
            -1.0,
            "must lie between 0.001 and 1000, got -1.0",
        ),
        ("score_temperature", float("inf"), "must lie between 0.001 and 1000, got inf"),
        ("score_temperature", float("nan"), "must lie between 0.001 and 1000, got nan"),
        ("score_temperature", "warm", "score_temperature"),
        ("partial_paths", "yes", "partial_paths"),
        ("labels", "abc", "labels"),
        ("edges", [[0, 99]], "points outside"),
        ("edges", [[0, 0]], "its own parent"),
        ("id2label", {0: "x"}, "contradict `labels`"),
        ("label2id", {"x": 0}, "contradict `labels`"),
        ("num_labels", 3, "num_labels=3 contradicts the 13 labels"),
        ("problem_type", "single_label_classification", "multi_label_classification"),
    ],
)
def test_invalid_fields_are_refused(taxonomy, field, value, message):
    fields = {"labels": list(taxonomy.labels), "edges": taxonomy.edges.tolist(), field: value}
    with pytest.raises(ValueError, match=re.escape(message)):
        HcalConfig(encoder_config=tiny_bert(), **fields)


@pytest.mark.parametrize(
    ("alpha", "threshold", "message"),
    [
        (0.0, 0.5, "risk_alpha must lie between 0 and 1 (0.1: one label in ten may be wrong), got 0.0"),
        (1.0, 0.5, "risk_alpha must lie between 0 and 1"),
        (float("nan"), 0.5, "risk_alpha must lie between 0 and 1"),
        (0.1, -0.1, "risk_threshold must be a probability from 0 to 1, or 2.0 (no answers), got -0.1"),
        (0.1, 95.0, "risk_threshold must be a probability from 0 to 1, or 2.0 (no answers), got 95.0"),
        (0.1, float("nan"), "risk_threshold must be a probability"),
    ],
)
def test_risk_values_out_of_range_are_refused(taxonomy, alpha, threshold, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        HcalConfig.from_taxonomy(taxonomy, risk_alpha=alpha, risk_threshold=threshold)


def test_limits_of_the_allowed_ranges_are_accepted(taxonomy, tmp_path):
    for threshold in (0.0, 1.0, NEVER):
        config = HcalConfig.from_taxonomy(taxonomy, risk_alpha=0.999, risk_threshold=threshold)
        config.thresholds = [0.0] * 6 + [1.0] * 7
        config.save_pretrained(tmp_path)
        assert HcalConfig.from_pretrained(tmp_path).risk_threshold == threshold
    config.score_temperature = 0.0
    with pytest.raises(ValueError, match=r"between 0\.001 and 1000"):
        config.save_pretrained(tmp_path)


def test_saving_refuses_label_maps_that_were_changed_to_contradict_the_labels(tmp_path, taxonomy):
    config = HcalConfig.from_taxonomy(taxonomy, tiny_bert())
    config.id2label = {0: "renamed"}
    with pytest.raises(ValueError, match="contradict `labels`"):
        config.save_pretrained(tmp_path)


def test_single_path_needs_a_forest(dag):
    with pytest.raises(ValueError, match=r"'x' has 2 parents[^$]*multi_path"):
        HcalConfig.from_taxonomy(dag, tiny_bert())
    assert HcalConfig.from_taxonomy(dag, tiny_bert(), label_mode="multi_path").num_labels == 6


def test_the_paper_preset_sets_the_values_of_the_paper(taxonomy):
    config = HcalConfig.paper(taxonomy, tiny_bert())
    assert (config.objective, config.head, config.label_mode) == ("aggregate", "independent", "single_path")
    assert (config.projection_dim, config.prototype_temperature, config.perturbation) == (256, 0.1, 0.01)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"label_mode": "multi_path"}, "got 'multi_path'"), ({"partial_paths": True}, "partial_paths=True")],
)
def test_the_paper_preset_refuses_multi_path_and_partial_paths(taxonomy, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        HcalConfig.paper(taxonomy, tiny_bert(), **kwargs)
    assert 'use objective="document"' in str(error.value)


def test_the_paper_preset_refuses_leaves_at_different_depths(ragged):
    with pytest.raises(ValueError, match=r"depths 0 \('c'\) to 2: use objective=\"document\""):
        HcalConfig.paper(ragged, tiny_bert())


def test_loader_arguments_in_an_encoder_configuration_are_dropped(taxonomy):
    nested = {
        **tiny_bert().to_dict(),
        "trust_remote_code": True,
        "auto_map": {"AutoModel": "evil.Model"},
        "attn_implementation": "kernels-community/evil",
        "_attn_implementation": "kernels-community/evil",
    }
    config = HcalConfig.from_taxonomy(taxonomy, nested)
    text = str(config.to_dict())
    assert "evil" not in text
    assert "trust_remote_code" not in text


def test_labels_that_are_paths_are_saved_and_loaded():
    taxonomy = Taxonomy.from_paths([["A", "Other"], ["B", "Other"]])
    assert HcalConfig.from_taxonomy(taxonomy, tiny_bert()).to_taxonomy().paths(3) == [["B", "Other"]]


def test_the_local_folder_of_the_encoder_is_not_saved(taxonomy, encoder_dir, tmp_path):
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy)
    model.save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "saved").iterdir():
        assert str(encoder_dir).encode() not in file.read_bytes(), file.name


def rewrite_format_version(folder, version):
    """Sets the format version in a saved config.json, or removes it."""
    file = folder / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields.pop("hcal_format_version")
    file.write_text(
        json.dumps(fields if version is None else {**fields, "hcal_format_version": version}), encoding="utf-8"
    )


@pytest.fixture
def saved_model(tmp_path, make_model, taxonomy):
    make_model(taxonomy).save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_configuration_holds_the_format_version(saved_model):
    fields = json.loads((saved_model / "config.json").read_text(encoding="utf-8"))
    assert fields["hcal_format_version"] == FORMAT_VERSION == 3


@pytest.mark.parametrize("version", [None, 0])
def test_an_older_format_loads_without_a_warning_and_is_saved_in_the_current_format(
    saved_model, tmp_path_factory, caplog, version
):
    rewrite_format_version(saved_model, version)
    with caplog.at_level("WARNING"):
        config = AutoConfig.from_pretrained(saved_model)
        model = HcalForSequenceClassification.from_pretrained(saved_model)
    # transformers logs some warnings only once per process, and other tests may have triggered them.
    assert [record.message for record in caplog.records if record.name.startswith("hcal_hf")] == []
    assert config.hcal_format_version == model.config.hcal_format_version == FORMAT_VERSION
    again = tmp_path_factory.mktemp("again")
    config.save_pretrained(again)
    assert json.loads((again / "config.json").read_text(encoding="utf-8"))["hcal_format_version"] == FORMAT_VERSION


@pytest.mark.parametrize("load", [AutoConfig, HcalConfig, HcalForSequenceClassification])
def test_a_newer_format_is_refused_before_its_other_fields_are_validated(saved_model, load):
    rewrite_format_version(saved_model, FORMAT_VERSION + 1)
    file = saved_model / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text(encoding="utf-8")), "head": "a_head_of_the_future"}), encoding="utf-8"
    )
    message = "has hcal_format_version 4, but this hcal_hf reads versions up to 3. .*update hcal_hf"
    with pytest.raises(ValueError, match=message):
        load.from_pretrained(saved_model)


@pytest.mark.parametrize("version", ["1", -1, 1.5])
def test_an_invalid_format_version_is_refused(saved_model, version):
    rewrite_format_version(saved_model, version)
    with pytest.raises(ValueError, match=f"hcal_format_version must be a whole number of at least 0, got {version!r}"):
        HcalConfig.from_pretrained(saved_model)


def test_from_encoder_refuses_a_format_version(taxonomy, encoder_dir):
    with pytest.raises(TypeError, match="no argument 'hcal_format_version'"):
        HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, hcal_format_version=1)

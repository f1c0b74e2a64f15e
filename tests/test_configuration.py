import re

import pytest
from conftest import tiny_bert
from transformers import AutoConfig, BertConfig

from hcal_hf import HcalConfig, Taxonomy


def test_round_trip_and_derived_label_maps(tmp_path, taxonomy):
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
        ("pooling", "max", "pooling"),
        ("head", "flat", "head"),
        ("objective", "all", "objective"),
        ("projection_dim", "256", "projection_dim"),
        ("projection_dim", 0, "at least 1, got 0"),
        ("prototype_temperature", 0.0, "above 0, got 0.0"),
        ("prototype_temperature", "cold", "prototype_temperature"),
        ("perturbation", -0.1, "0 (off) or above, got -0.1"),
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
def test_wrong_fields_are_refused(taxonomy, field, value, message):
    fields = {"labels": list(taxonomy.labels), "edges": taxonomy.edges.tolist(), field: value}
    with pytest.raises(ValueError, match=re.escape(message)):
        HcalConfig(encoder_config=tiny_bert(), **fields)


def test_a_later_contradiction_is_refused_at_saving(tmp_path, taxonomy):
    config = HcalConfig.from_taxonomy(taxonomy, tiny_bert())
    config.id2label = {0: "renamed"}
    with pytest.raises(ValueError, match="contradict `labels`"):
        config.save_pretrained(tmp_path)


def test_single_path_needs_a_forest(dag):
    with pytest.raises(ValueError, match=r"'x' has 2 parents[^$]*multi_path"):
        HcalConfig.from_taxonomy(dag, tiny_bert())
    assert HcalConfig.from_taxonomy(dag, tiny_bert(), label_mode="multi_path").num_labels == 6


def test_the_paper_preset(taxonomy):
    config = HcalConfig.paper(taxonomy, tiny_bert())
    assert (config.objective, config.head, config.label_mode) == ("aggregate", "independent", "single_path")
    assert (config.projection_dim, config.prototype_temperature, config.perturbation) == (256, 0.1, 0.01)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"label_mode": "multi_path"}, "got 'multi_path'"), ({"partial_paths": True}, "partial_paths=True")],
)
def test_the_paper_refuses_what_it_does_not_define(taxonomy, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        HcalConfig.paper(taxonomy, tiny_bert(), **kwargs)
    assert 'use objective="document"' in str(error.value)


def test_the_paper_refuses_ragged_leaves(ragged):
    with pytest.raises(ValueError, match=r"depths 0 \('c'\) to 2: use objective=\"document\""):
        HcalConfig.paper(ragged, tiny_bert())


def test_an_encoder_configuration_cannot_bring_loader_arguments(taxonomy):
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


def test_path_labels_survive():
    taxonomy = Taxonomy.from_paths([["A", "Other"], ["B", "Other"]])
    assert HcalConfig.from_taxonomy(taxonomy, tiny_bert()).to_taxonomy().paths(3) == [["B", "Other"]]

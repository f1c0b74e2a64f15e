"""Scores that are NaN never become answers: functions raise an error, and bulk prediction leaves the row empty."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, pipeline

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy, decode, tune_thresholds
from hcal_hf.commands.predictor import PredictionArguments, Predictor
from hcal_hf.decoding import METHODS
from hcal_hf.training.calibration import fit_temperature
from hcal_hf.training.thresholds import tune_for_decoding

MESSAGE = r"document 2 has NaN for the label 'b', and 1 of 3 documents have NaN"


@pytest.fixture
def small():
    return Taxonomy.from_edges([("a", "b"), ("a", "c")])


@pytest.fixture
def logits():
    logits = torch.randn(3, 3)
    logits[2, 1] = torch.nan
    return logits


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
@pytest.mark.parametrize("method", METHODS)
def test_decoding_refuses_nan_by_document_and_label(small, logits, mode, method):
    if (mode, method) == ("multi_path", "path"):
        return
    options = {"risk_threshold": 0.5} if method == "risk" else {}
    with pytest.raises(ValueError, match=f"logits: {MESSAGE}"):
        decode(logits, small, mode, method, **options)
    decode(logits.nan_to_num(), small, mode, method, **options)


def test_decoding_refuses_integers_and_unknown_label_modes(small):
    with pytest.raises(ValueError, match=r"logits must be floating-point numbers, got torch.int64"):
        decode(torch.zeros(1, 3, dtype=torch.int64), small, "single_path")
    with pytest.raises(ValueError, match='label_mode must be "single_path" or "multi_path", got \'one\''):
        decode(torch.zeros(1, 3), small, "one")


def test_thresholds_and_calibration_refuse_nan(small, logits):
    truth = np.ones((3, 3), dtype=bool)
    with pytest.raises(ValueError, match=f"probabilities: {MESSAGE}"):
        tune_thresholds(torch.sigmoid(logits), truth, small)
    with pytest.raises(ValueError, match=f"logits: {MESSAGE}"):
        tune_for_decoding(logits, truth, small, "multi_path")
    head = HcalForSequenceClassification(HcalConfig.from_taxonomy(small, {"model_type": "bert"} | TINY)).head
    with pytest.raises(ValueError, match=f"scores: {MESSAGE}"):
        fit_temperature(head, logits, truth)


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 30}


@pytest.mark.parametrize("name", ["score_temperature", "prototype_temperature"])
@pytest.mark.parametrize("value", [0.0, 1e-300, 9e-4, 1.1e3, float("inf"), float("nan")])
def test_temperatures_have_a_range(small, name, value):
    with pytest.raises(ValueError, match=f"{name} must lie between 0.001 and 1000, got"):
        HcalConfig.from_taxonomy(small, {"model_type": "bert"}, **{name: value})


@pytest.mark.parametrize("name", ["perturbation", "contrast_alpha"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_widths_and_weights_are_finite(small, name, value):
    with pytest.raises(ValueError, match=f"{name} must be 0"):
        HcalConfig.from_taxonomy(small, {"model_type": "bert"}, **{name: value})


@pytest.fixture
def broken(encoder_dir, taxonomy):
    """A model that computes NaN for each text with the word "quantum"."""
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy)
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("quantum")] = torch.nan
    return model.eval(), tokenizer


def test_the_pipeline_refuses_nan(broken):
    pipe = pipeline("hierarchical-text-classification", model=broken[0], tokenizer=broken[1])
    assert pipe("stars")
    for options in ({}, {"top_k": 2}):
        with pytest.raises(ValueError, match="document 0 has NaN for the label"):
            pipe("quantum", **options)


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"max_depth": 0}])
def test_bulk_prediction_leaves_the_row_empty_and_continues(broken, options):
    texts = ["stars", "quantum stars", "genes", "", "music"]
    found = Predictor(*broken, PredictionArguments(**options)).predict(texts)
    without = Predictor(*broken, PredictionArguments(**options)).predict(["stars", "genes", "music"])
    assert found["problem"].to_pylist()[1] == "the model computed NaN"
    assert found["labels"].to_pylist()[1] == []
    assert [found["labels"].to_pylist()[i] for i in (0, 2, 4)] == without["labels"].to_pylist()
    assert found["problem"].to_pylist()[0] is None
    assert all(without["labels"].to_pylist())

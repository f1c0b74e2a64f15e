"""Trains, evaluates and predicts with a DAG. Labels have two parents, as in GoEmotions: an Ekman class and a sentiment."""

import pytest
import torch
from datasets import Dataset
from transformers import pipeline

from hcal_hf import HcalForSequenceClassification, HcalTrainer, HcalTrainingArguments, Taxonomy, encode_dataset
from tests.builders import build_tokenizer

TAXONOMY = Taxonomy.from_edges(
    [
        ("ekman/joy", "amusement"),
        ("positive", "amusement"),
        ("ekman/surprise", "realization"),
        ("ambiguous", "realization"),
        ("ekman/surprise", "curiosity"),
        ("ambiguous", "curiosity"),
    ]
)
ROWS = [("stars atoms", ["amusement"]), ("cells genes", ["realization"]), ("poems novels", ["curiosity", "amusement"])]


@pytest.mark.parametrize("freeze", [False, True])
def test_training_evaluation_and_prediction_on_a_dag(encoder_dir, tmp_path, freeze):
    tokenizer = build_tokenizer()
    settings = {"score_function": "linear", "prototype_anchor": "label_text"} if freeze else {}
    model = HcalForSequenceClassification.from_encoder(encoder_dir, TAXONOMY, label_mode="multi_path", **settings)
    assert model.config.head == "lookahead_sigmoid"
    table = Dataset.from_dict({"text": [text for text, _ in ROWS] * 8, "labels": [labels for _, labels in ROWS] * 8})
    table = encode_dataset(table, TAXONOMY, tokenizer)
    # Encoding adds both parents of each label.
    assert TAXONOMY.labels[table[0]["labels"][0]] in ("ekman/joy", "positive")
    assert len(table[0]["labels"]) == 3
    if freeze:
        from hcal_hf import pooled_features

        model.encoder.requires_grad_(False)
        table = pooled_features(model, table, tokenizer)
    arguments = HcalTrainingArguments(
        str(tmp_path), num_train_epochs=40, per_device_train_batch_size=8, learning_rate=5e-3, use_cpu=True,
        report_to="none", save_strategy="no", seed=1,
    )  # fmt: skip
    trainer = HcalTrainer(model, arguments, None, table, table, tokenizer)
    assert ("head_strength" in trainer.train().metrics) == freeze
    scores = trainer.evaluate()
    assert scores["eval_hvr"] == scores["eval_raw_hvr"] == scores["eval_hvr_score"] == 0
    assert scores["eval_micro_f1"] > 0.95
    trainer.save_model()
    found = pipeline("hierarchical-text-classification", str(tmp_path), device="cpu")("poems novels")
    by_label = {item["label"]: item for item in found}
    assert set(by_label) == {"ekman/surprise", "ambiguous", "curiosity", "ekman/joy", "positive", "amusement"}
    assert sorted(by_label["curiosity"]["paths"]) == [["ambiguous", "curiosity"], ["ekman/surprise", "curiosity"]]
    for parent, child in TAXONOMY.edges:
        parent, child = TAXONOMY.labels[parent], TAXONOMY.labels[child]
        if child in by_label:
            assert by_label[child]["score"] <= by_label[parent]["score"] + 1e-6
    assert torch.isfinite(torch.tensor([item["score"] for item in found])).all()

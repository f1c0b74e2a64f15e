"""A trained model is tuned on held-out documents. Cross-validation estimates the improvement."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from hcal_hf import HcalTrainer, HcalTrainingArguments, classification_scores, decode, encode_dataset, tune_model
from hcal_hf.training.thresholds import tune_for_decoding
from hcal_hf.training.tuning import cross_validate
from tests.builders import build_model


def documents(taxonomy, tokenizer, number, seed):
    rng = np.random.default_rng(seed)
    leaves = [label for label, leaf in zip(taxonomy.labels, taxonomy.is_leaf) if leaf]
    rows = [
        {
            "text": f"{rng.choice(['stars', 'genes', 'poems'])} of music",
            "labels": list(rng.choice(leaves, 2, replace=False)),
        }
        for _ in range(number)
    ]
    return encode_dataset(Dataset.from_list(rows), taxonomy, tokenizer, label_mode="multi_path")


@pytest.fixture
def trainer(taxonomy, tokenizer, tmp_path):
    args = HcalTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=2)
    model = build_model(taxonomy, label_mode="multi_path")
    train, held_out = (documents(taxonomy, tokenizer, number, seed) for number, seed in ((20, 0), (60, 1)))
    return HcalTrainer(model=model, args=args, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer)


def test_temperature_and_threshold_are_stored_with_the_model(trainer):
    trainer.train()
    tuned = tune_model(trainer)
    config = trainer.unwrapped_model.config
    assert tuned["documents"] == 60
    assert config.score_temperature == tuned["temperature"]
    assert np.mean(config.thresholds) == tuned["threshold"]
    # The model has hardly been trained and predicts almost no label at 0.5.
    assert 0 <= tuned["before"] <= tuned["after"] <= 1


def test_cross_validation_equals_a_slow_loop(taxonomy):
    torch.manual_seed(0)
    model = build_model(taxonomy, label_mode="multi_path")
    logits = torch.randn(53, 13)
    targets = np.zeros((53, 13), dtype=bool)
    for row, node in zip(targets, np.random.default_rng(0).integers(0, 13, 53)):
        row[taxonomy.complete([int(node)])] = True
    before, after = cross_validate(logits, targets, model, "macro_f1", folds=4)
    part = np.random.default_rng(0).permutation(53) % 4
    sets = np.zeros((53, 13), dtype=bool)
    for i in range(53):
        rest = [j for j in range(53) if part[j] != part[i]]
        options = (taxonomy, "multi_path", False, model.config.head)
        threshold = tune_for_decoding(logits[rest], targets[rest], *options, metric="macro_f1").tolist()
        sets[i] = decode(logits[i : i + 1], taxonomy, "multi_path", None, threshold, False, model.config.head).numpy()
    assert after == classification_scores(sets, targets, taxonomy)["macro_f1"]
    plain = decode(logits, taxonomy, "multi_path", head=model.config.head).numpy()
    assert before == classification_scores(plain, targets, taxonomy)["macro_f1"]


def test_too_few_documents_are_not_tuned_on_and_an_unknown_metric_is_refused(trainer, caplog):
    trainer.eval_dataset = trainer.eval_dataset.select(range(19))
    assert tune_model(trainer) == {}
    assert "there are 19 held-out documents" in caplog.text
    assert trainer.model.config.thresholds is None
    with pytest.raises(ValueError, match="metric must be one of micro_f1, macro_f1, got 'f1'"):
        tune_model(trainer, metric="f1")


def test_a_trainer_tunes_after_training_if_asked(trainer):
    trainer.train()
    assert trainer.tuned == {}
    assert trainer.unwrapped_model.config.thresholds is None
    trainer.args.tune = "macro_f1"
    trainer.train()
    assert trainer.tuned["documents"] == 60
    assert trainer.unwrapped_model.config.thresholds == pytest.approx([trainer.tuned["threshold"]] * 13)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match='tune="macro_f1" needs one eval_dataset'):
        trainer.train()
    with pytest.raises(ValueError, match='tune must be "none", "micro_f1" or "macro_f1", got \'f1\''):
        HcalTrainingArguments("unused", tune="f1")

"""The prefix of a model precedes every text that its encoder reads."""

import pytest
import torch
from datasets import Dataset
from transformers import pipeline

from hcal_hf import HcalClassifier, HcalForSequenceClassification, PredictionArguments, Predictor, encode_dataset
from hcal_hf.pipeline_hcal import TASK

PREFIX = "first study "
TEXTS = ["stars and atoms", "old poems", "genes of plants"]


@pytest.fixture(scope="module")
def models(encoder_dir, tokenizer, tmp_path_factory):
    """Returns a model with a prefix, loaded from its folder, and the same model without one."""
    from tests.builders import build_taxonomy

    fields = {"prototype_anchor": "label_text", "score_function": "linear"}
    torch.manual_seed(0)
    model = HcalForSequenceClassification.from_encoder(encoder_dir, build_taxonomy(), text_prefix=PREFIX, **fields)
    with torch.no_grad():  # so that texts with other words have other states
        model.encoder.embeddings.word_embeddings.weight.mul_(100)
        model.prototypes.weight.normal_()
    model.embed_labels(tokenizer)
    folder = tmp_path_factory.mktemp("prefix")
    model.save_pretrained(folder)
    loaded = HcalForSequenceClassification.from_pretrained(folder).eval()
    without = HcalForSequenceClassification.from_pretrained(folder).eval()
    without.config.text_prefix = ""
    return loaded, without


def test_label_text_has_the_prefix(models, encoder_dir, tokenizer):
    loaded, without = models
    assert loaded.config.text_prefix == PREFIX
    without.config.label_texts = [PREFIX + text for text in loaded.config.label_texts]
    expected = loaded.prototypes.anchors.clone()
    without.embed_labels(tokenizer)
    torch.testing.assert_close(without.prototypes.anchors, expected)


def test_the_pipeline_and_bulk_prediction_add_it(models, tokenizer):
    loaded, without = models
    options = {"top_k": 2}
    found = pipeline(TASK, model=loaded, tokenizer=tokenizer)(TEXTS, **options)
    plain = pipeline(TASK, model=without, tokenizer=tokenizer)
    scores = [[label["score"] for label in labels] for labels in found]
    prefixed = [[label["score"] for label in labels] for labels in plain([PREFIX + text for text in TEXTS], **options)]
    unprefixed = [[label["score"] for label in labels] for labels in plain(TEXTS, **options)]
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(prefixed), rtol=0, atol=1e-7)
    assert not torch.allclose(torch.tensor(scores), torch.tensor(unprefixed), rtol=0, atol=1e-6)
    table = Predictor(loaded, tokenizer, PredictionArguments(top_k=2)).predict(TEXTS)
    torch.testing.assert_close(torch.tensor(table["scores"].to_pylist()), torch.tensor(scores))


def test_encoded_rows_have_it(models, tokenizer):
    table = Dataset.from_dict({"text": TEXTS})
    encoded = encode_dataset(table, models[0].taxonomy, tokenizer, labels=None, prefix=PREFIX)
    assert encoded["input_ids"][:] == tokenizer([PREFIX + text for text in TEXTS])["input_ids"]


def test_the_estimator_trains_and_predicts_with_it(encoder_dir):
    labels = [["science", "physics"], ["arts", "poetry"], ["science", "biology"]] * 10
    texts = TEXTS * 10
    kinds = {"model_kwargs": {"text_prefix": PREFIX}, "random_state": 0}
    by_model = HcalClassifier(encoder_dir, prototype_anchor=None, **kinds).fit(texts, labels)
    prefixed = [PREFIX + text for text in texts]
    by_text = HcalClassifier(encoder_dir, prototype_anchor=None, random_state=0).fit(prefixed, labels)
    torch.testing.assert_close(
        torch.from_numpy(by_model.predict_proba(texts)), torch.from_numpy(by_text.predict_proba(prefixed))
    )


def test_a_prefix_that_is_no_text_is_refused(encoder_dir, taxonomy):
    with pytest.raises(ValueError, match="text_prefix"):
        HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, text_prefix=3)

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.numpy import save_file

from hcal_hf import HcalForSequenceClassification, encode_dataset
from hcal_hf.training import features
from hcal_hf.training.features import encoder_fingerprint, pooled_features

TEXTS = ["stars", "a new study of genes with cells", "poems", "old music and drama in novels", "atoms and energy"]


@pytest.fixture
def encoded(taxonomy, tokenizer):
    table = Dataset.from_dict({"text": TEXTS, "labels": ["astronomy", "genetics", "poetry", "opera", "quantum"]})
    return encode_dataset(table, taxonomy, tokenizer)


def test_features_keep_the_row_order_and_match_the_model(make_model, taxonomy, tokenizer, encoded):
    model = make_model(taxonomy, dropout=0.5).train()
    table = pooled_features(model, encoded, tokenizer, batch_size=2)
    assert model.training
    assert table["labels"][:] == encoded["labels"][:]
    model.eval()
    for row, text in zip(table, TEXTS):
        with torch.no_grad():
            expected = model.encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0]
        assert row["pooled_states"].dtype == np.float32
        np.testing.assert_allclose(row["pooled_states"], expected, atol=1e-5)


def test_features_are_cached_by_content(make_model, taxonomy, tokenizer, encoded, tmp_path, monkeypatch):
    calls = []
    compute = features._compute
    monkeypatch.setattr(features, "_compute", lambda *args: calls.append(1) or compute(*args))
    model = make_model(taxonomy)
    first = pooled_features(model, encoded, tokenizer, cache_dir=tmp_path)
    second = pooled_features(model, encoded, tokenizer, cache_dir=tmp_path)
    assert len(calls) == 1
    assert np.array_equal(first["pooled_states"][:], second["pooled_states"][:])
    with torch.no_grad():
        model.prototypes.weight.add_(1.0)  # the features do not depend on the head
    pooled_features(model, encoded, tokenizer, cache_dir=tmp_path)
    assert len(calls) == 1
    pooled_features(model, encoded.select([1, 0, 2, 3, 4]), tokenizer, cache_dir=tmp_path)
    assert len(calls) == 2
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight.add_(1e-3)
    pooled_features(model, encoded, tokenizer, cache_dir=tmp_path)
    assert len(calls) == 3
    pooled_features(make_model(taxonomy, pooling="cls"), encoded, tokenizer, cache_dir=tmp_path)
    assert len(calls) == 4
    assert len(list(tmp_path.glob("*.safetensors"))) == len(list(tmp_path.iterdir())) == 4


def test_the_cache_fingerprint_depends_on_weights_and_pooling(make_model, taxonomy):
    same = {encoder_fingerprint(make_model(taxonomy, seed=1)) for _ in range(2)}
    assert len(same) == 1
    assert encoder_fingerprint(make_model(taxonomy, seed=2)) not in same
    assert encoder_fingerprint(make_model(taxonomy, seed=1, pooling="last")) not in same
    assert encoder_fingerprint(make_model(taxonomy, seed=1, dtype=torch.bfloat16)) not in same


def test_a_saved_model_reuses_the_cached_features_of_its_training(taxonomy, encoder_dir, tmp_path):
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, label_mode="multi_path")
    before = encoder_fingerprint(model)
    model.save_pretrained(tmp_path / "saved")
    assert encoder_fingerprint(HcalForSequenceClassification.from_pretrained(tmp_path / "saved")) == before


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "is not complete"),
        (lambda path: path.write_bytes(b""), "is not complete"),
        (lambda path: save_file({"other": np.zeros(3, np.float32)}, path), "is not complete"),
        (lambda path: save_file({"pooled_states": np.zeros((1, 2), np.float32)}, path), "holds features of shape"),
        (lambda path: change(path, np.nan), "holds NaN or infinite features"),
        (lambda path: change(path, 0.5), "was changed after it was written"),
    ],
)
def test_damaged_caches_are_computed_again(make_model, taxonomy, encoded, tokenizer, tmp_path, caplog, damage, reason):
    model, data = make_model(taxonomy), encoded
    first = pooled_features(model, data, tokenizer, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    with caplog.at_level("WARNING"):
        again = pooled_features(model, data, tokenizer, cache_dir=tmp_path)
    assert reason in caplog.text
    np.testing.assert_array_equal(np.asarray(again["pooled_states"][:]), np.asarray(first["pooled_states"][:]))
    caplog.clear()
    pooled_features(model, data, tokenizer, cache_dir=tmp_path)
    assert "computed again" not in caplog.text


def change(path, value):
    """Changes one number and keeps the metadata."""
    with safe_open(path, framework="numpy") as file:
        states, metadata = file.get_tensor("pooled_states"), file.metadata()
    states[0, 0] = value
    save_file({"pooled_states": states}, path, metadata=metadata)

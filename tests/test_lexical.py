"""Lexical features equal those of scikit-learn, for any padding, and are part of the model."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn import functional as F

from hcal_hf import (
    Change,
    HcalConfig,
    HcalForSequenceClassification,
    add_lexical_features,
    change_taxonomy,
    encode_dataset,
)
from hcal_hf.lexical import PAIR_KEYS, TOKEN_KEYS, LexicalFeatures, pair_keys
from hcal_hf.training import lexical_fit
from hcal_hf.training.lexical_fit import fit_lexical, right_singular_vectors
from tests.builders import WORDS, build_taxonomy

PAD = 0


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.choice(np.arange(2, 22), size=rng.integers(1, 12)).tolist() for _ in range(40)]


def padded(texts, left=False):
    width = max(map(len, texts))
    rows = [[PAD] * (width - len(t)) + t if left else t + [PAD] * (width - len(t)) for t in texts]
    mask = [[0] * (width - len(t)) + [1] * len(t) if left else [1] * len(t) + [0] * (width - len(t)) for t in texts]
    return torch.tensor(rows), torch.tensor(mask)


def analyze(text):
    """Returns the terms of a text as scikit-learn's analyzers do."""
    return [str(a) for a in text] + [f"{a} {b}" for a, b in zip(text, text[1:])]


def in_two_texts(texts):
    pairs = [{f"{a} {b}" for a, b in zip(text, text[1:])} for text in texts]
    return {pair for found in pairs for pair in found if sum(pair in other for other in pairs) >= 2}


def test_features_equal_the_tfidf_and_svd_of_scikit_learn(texts, monkeypatch):
    monkeypatch.setattr(lexical_fit, "_ITERATIONS", 100)  # random texts have no gap between singular values
    lexical = fit_lexical(texts, [PAD], size=8)
    known = in_two_texts(texts)
    vectorizer = TfidfVectorizer(
        analyzer=lambda text: [term for term in analyze(text) if " " not in term or term in known],
        sublinear_tf=True,
        dtype=np.float64,
    )
    tfidf = vectorizer.fit_transform(texts)
    reference = TruncatedSVD(8, algorithm="arpack").fit(tfidf)
    terms = vectorizer.get_feature_names_out()
    ids = [[int(part) for part in term.split()] for term in terms]
    keys = [i[0] if len(i) == 1 else int(pair_keys(torch.tensor(i[0]), torch.tensor(i[1]))) for i in ids]
    assert len(set(keys)) == len(lexical.idf) - 1
    rows = lexical.index[torch.tensor(keys)].long()
    assert int(rows.min()) == 1
    np.testing.assert_allclose(lexical.idf[rows], vectorizer.idf_, rtol=1e-6)
    features = lexical(*padded(texts)).numpy()
    # Exactly the product of scikit-learn's TF-IDF with the stored vectors.
    np.testing.assert_allclose(features, tfidf @ lexical.vectors[rows].numpy(), atol=1e-6)
    # The vectors span what scikit-learn's SVD does: the inner products of all texts agree.
    expected = tfidf @ reference.components_.T
    np.testing.assert_allclose(features @ features.T, expected @ expected.T, atol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_padding_and_batches_do_not_change_the_features(texts, left):
    lexical = fit_lexical(texts, [PAD], size=8)
    together = lexical(*padded(texts, left))
    alone = torch.cat([lexical(torch.tensor([text])) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_compiled_and_exported_graphs_compute_the_same(texts, monkeypatch):
    lexical = fit_lexical(texts, [PAD], size=8)
    expected = lexical(*padded(texts))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(lexical(*padded(texts)), expected, rtol=0, atol=1e-6)


def test_unknown_terms_have_no_effect(texts):
    lexical = fit_lexical(texts, [PAD], size=4)
    assert not lexical(torch.tensor([[TOKEN_KEYS - 1, TOKEN_KEYS - 2]])).any()
    known = lexical(torch.tensor([[5]]))
    torch.testing.assert_close(lexical(torch.tensor([[5, TOKEN_KEYS - 1]])), known)


def test_special_tokens_are_no_terms(texts):
    marked = [[1, *text, 1] for text in texts]
    lexical = fit_lexical(marked, [PAD, 1], size=8)
    assert len(lexical.idf) == len(fit_lexical(texts, [PAD], size=8).idf)
    torch.testing.assert_close(lexical(*padded(marked)), lexical(*padded(texts)), rtol=0, atol=1e-6)


def test_the_most_frequent_terms_are_kept(texts):
    lexical = fit_lexical(texts, [PAD], size=8, max_terms=5)
    counts = {token: sum(token in text for text in texts) for token in range(2, 22)}
    most = sorted(counts.values(), reverse=True)[4]
    kept = [token for token in counts if lexical.index[token]]
    assert len(lexical.idf) == 6
    assert min(counts[token] for token in kept) >= most


def test_keys_of_pairs_depend_on_the_order_and_lie_in_their_range():
    a, b = torch.arange(0, 250_000, 997), torch.arange(250_000, 0, -997)[:251]
    keys = pair_keys(a, b)
    assert keys.min() >= TOKEN_KEYS
    assert keys.max() < TOKEN_KEYS + PAIR_KEYS
    assert (keys != pair_keys(b, a)).float().mean() > 0.99


def test_singular_vectors_are_orthonormal_and_stop_at_the_rank():
    dense = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) @ torch.randn(4, 20)
    vectors = right_singular_vectors(dense.to_sparse_coo(), size=10)
    assert vectors.shape == (20, 4)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(dense @ vectors @ vectors.T, dense, rtol=1e-3, atol=1e-3)


# ---- In a model ----


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, size=rng.integers(2, 9))) for _ in range(30)]


@pytest.fixture(scope="module")
def lexical_model(encoder_dir, tokenizer, documents):
    taxonomy = build_taxonomy()
    fields = {"score_function": "linear", "prototype_anchor": "label_text"}
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, **fields).eval()
    add_lexical_features(model, encode({"text": documents}, taxonomy, tokenizer), tokenizer, size=6)
    return model.eval()


def encode(columns, taxonomy, tokenizer):
    from datasets import Dataset

    return encode_dataset(Dataset.from_dict(columns), taxonomy, tokenizer, labels=None)


def test_the_states_are_unit_vectors_of_encoder_and_terms(lexical_model, tokenizer, documents):
    model, batch = lexical_model, tokenizer(documents, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.encoder(**batch).last_hidden_state
        states = model.document_states(hidden, batch["input_ids"], batch["attention_mask"])
        pooled = model.pool(hidden, batch["attention_mask"])
        logits = model(**batch).logits
    size = model.config.lexical_features
    torch.testing.assert_close(states[:, :-size], F.normalize(pooled, dim=-1))
    torch.testing.assert_close(torch.linalg.vector_norm(states[:, -size:], dim=1), torch.ones(len(documents)))
    torch.testing.assert_close(model(pooled_states=states).logits, logits)


def test_label_text_has_lexical_features_too(lexical_model):
    size = lexical_model.config.lexical_features
    assert lexical_model.prototypes.anchors.shape[1] == size + 16
    # "new" and other words of labels are terms, because label texts are part of the fit.
    assert lexical_model.config.lexical_terms >= 10


def test_a_saved_model_predicts_the_same(lexical_model, tokenizer, documents, tmp_path):
    lexical_model.save_pretrained(tmp_path)
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = tokenizer(documents, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, lexical_model(**batch).logits)


def test_an_edited_number_of_features_is_found(lexical_model, tmp_path):
    lexical_model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"text_prefix": ""', '"text_prefix": "x"'), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"changed after the model was saved: features \(lexical_features"):
        HcalForSequenceClassification.from_pretrained(tmp_path)


def test_labels_can_be_added_from_their_text(lexical_model, tokenizer, documents, tmp_path):
    lexical_model.save_pretrained(tmp_path)
    model = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    model.prototypes.anchor_scale.data.fill_(1.0)
    assert (
        model.add_labels([["science", "novels"]], tokenizer, {"science > novels": "novels"})
        in (
            ["novels"],
            ["science > novels"],
        )
        or model.config.num_labels == lexical_model.config.num_labels + 1
    )
    batch = tokenizer(documents, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


def test_the_encoder_can_be_fine_tuned_with_fixed_lexical_features(lexical_model, tokenizer, documents):
    batch = tokenizer(documents[:4], padding=True, return_tensors="pt")
    labels = torch.zeros(4, lexical_model.config.num_labels)
    labels[:, lexical_model.taxonomy.complete([lexical_model.config.num_labels - 1])] = 1
    lexical_model.zero_grad()
    lexical_model(**batch, labels=labels).loss.backward()
    gradient = lexical_model.encoder.embeddings.word_embeddings.weight.grad
    lexical_model.zero_grad()
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.any()
    assert not [name for name, _ in lexical_model.lexical.named_parameters()]


def test_embeddings_without_token_ids_are_refused(lexical_model):
    with pytest.raises(ValueError, match="lexical features, which are computed from token ids: give input_ids"):
        lexical_model(inputs_embeds=torch.zeros(1, 2, 16))


def test_a_second_fit_and_wrong_sizes_are_refused(lexical_model, encoder_dir, tokenizer, documents):
    taxonomy = build_taxonomy()
    table = encode({"text": documents}, taxonomy, tokenizer)
    with pytest.raises(ValueError, match="lexical features already"):
        add_lexical_features(lexical_model, table, tokenizer)
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy)
    with pytest.raises(ValueError, match="from 1 to 2,048, got 4096"):
        add_lexical_features(model, table, tokenizer, size=4096)
    with pytest.raises(ValueError, match="have no input_ids, only attention_mask"):
        add_lexical_features(model, table.select_columns("attention_mask"), tokenizer)
    with pytest.raises(ValueError, match="The documents have 1 terms"):
        fit_lexical([[5]], [PAD], size=2)


def test_a_trained_or_zero_shot_model_is_refused(encoder_dir, tokenizer, documents):
    taxonomy = build_taxonomy()
    model = HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy)
    with pytest.raises(ValueError, match="trained or placed already"):
        add_lexical_features(model, encode({"text": documents}, taxonomy, tokenizer), tokenizer)


def test_a_changed_taxonomy_keeps_the_lexical_features(lexical_model, tokenizer, documents, tmp_path):
    lexical_model.save_pretrained(tmp_path)
    model = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    removed = model.taxonomy.labels[-1]
    vectors = model.lexical.vectors.clone()
    change_taxonomy(model, [Change("remove", model.taxonomy.paths(len(model.taxonomy) - 1)[0])], tokenizer)
    assert removed not in model.config.labels
    assert model.config.lexical_features == lexical_model.config.lexical_features
    torch.testing.assert_close(model.lexical.vectors, vectors)
    with torch.no_grad():
        assert torch.isfinite(model(**tokenizer(documents, padding=True, return_tensors="pt")).logits).all()


def test_the_configuration_holds_both_numbers_or_none(taxonomy):
    with pytest.raises(ValueError, match="lexical_features=4 and lexical_terms=None must both be numbers"):
        HcalConfig.from_taxonomy(taxonomy, lexical_features=4)


def test_new_features_are_zero():
    assert not LexicalFeatures(3, 2)(torch.tensor([[1, 2, 3]])).any()

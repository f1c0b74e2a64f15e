"""The words that raise the probability of a label: compared with texts without them, and refused input."""

import pytest
import torch
from datasets import Dataset

from hcal_hf import HcalForSequenceClassification, add_lexical_features, encode_dataset, explain
from hcal_hf.commands.explanation import Explanation
from tests.builders import WORDS


@pytest.fixture
def model(encoder_dir, taxonomy):
    torch.manual_seed(0)
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy).eval()
    with torch.no_grad():
        model.prototypes.weight.normal_()
    return model


@torch.no_grad()
def logits_of(model, tokenizer, text):
    return model(**tokenizer(text, return_tensors="pt")).logits[0]


def test_a_word_has_the_log_odds_that_are_lost_without_it(model, tokenizer):
    text = " ".join(WORDS[:4])
    found = explain(model, tokenizer, [text])[0]
    whole = logits_of(model, tokenizer, text)
    node = model.taxonomy.index(found.label)
    leaves = [i for i in range(len(whole)) if model.taxonomy.is_leaf[i]]
    assert node == max(leaves, key=lambda i: whole[i])
    assert found.probability == pytest.approx(float(whole[node].sigmoid()), abs=1e-6)
    assert [word for word, _ in found.words] == WORDS[:4]
    for i, (_, value) in enumerate(found.words):
        without = logits_of(model, tokenizer, " ".join(WORDS[:i] + WORDS[i + 1 : 4]))
        assert value == pytest.approx(float(whole[node] - without[node]), abs=1e-4)
    for label in (model.config.labels[0], 0):
        assert explain(model, tokenizer, [text], [label])[0].label == model.config.labels[0]


def test_long_texts_are_left_out_in_pieces_of_whole_words(model, tokenizer):
    words = [WORDS[i % len(WORDS)] for i in range(10)]
    found = explain(model, tokenizer, [" ".join(words)], most_pieces=4)[0]
    assert [piece.split() for piece, _ in found.words] == [words[:3], words[3:6], words[6:8], words[8:]]


def test_words_of_the_prefix_are_not_explained(model, tokenizer):
    model.config.text_prefix = f"{WORDS[5]} {WORDS[6]}: "
    found = explain(model, tokenizer, [f"{WORDS[0]} {WORDS[1]}"])[0]
    assert [word for word, _ in found.words] == WORDS[:2]
    whole, without = (
        logits_of(model, tokenizer, model.config.text_prefix + text) for text in (f"{WORDS[0]} {WORDS[1]}", WORDS[1])
    )
    node = model.taxonomy.index(found.label)
    assert found.words[0][1] == pytest.approx(float(whole[node] - without[node]), abs=1e-4)


def test_lexical_features_count(model, tokenizer, encoder_dir, taxonomy):
    rows = encode_dataset(
        Dataset.from_list([{"text": f"{a} {b}"} for a in WORDS for b in WORDS[:3]]), taxonomy, tokenizer, labels=None
    )
    torch.manual_seed(0)
    lexical = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy)
    add_lexical_features(lexical, rows, tokenizer, 4)
    with torch.no_grad():
        # Only the lexical features decide.
        lexical.prototypes.weight.normal_()
        lexical.projection.weight[:, :-4] = 0
    found = explain(lexical, tokenizer, [f"{WORDS[0]} {WORDS[1]}"])[0]
    assert all(abs(value) > 1e-4 for _, value in found.words)


def test_the_strongest_words_raise_the_probability():
    explanation = Explanation("a", 0.5, [("one", 0.1), ("two", -3.0), ("three", 2.0), ("four", 1.0)])
    assert explanation.strongest(2) == [("three", 2.0), ("four", 1.0)]
    assert [word for word, _ in explanation.strongest(9)] == ["three", "four", "one"]


def test_wrong_input_is_refused(model, tokenizer):
    for texts, labels, options, message in (
        ("one text", None, {}, "Give a list of texts"),
        (["a", "b"], ["c"], {}, "got 2 texts and 1 labels"),
        ([""], None, {}, "has no words"),
        ([WORDS[0]], ["unheard of"], {}, "unheard of"),
        ([WORDS[0]], [-1], {}, "an index from 0 to .*, got -1"),
        ([WORDS[0]], None, {"most_pieces": 0}, "most_pieces must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(model, tokenizer, texts, labels, **options)
    with pytest.raises(ValueError, match="need a fast tokenizer"):
        explain(model, object(), [WORDS[0]])

"""The estimator with lexical features, and with features in a narrow cone."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hcal_hf import HcalClassifier
from tests.builders import WORDS

TOPICS = {"sky": WORDS[:3], "life": WORDS[3:6], "art": WORDS[6:9]}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    topics = [list(TOPICS)[i % 3] for i in range(90)]
    texts = [" ".join([rng.choice(TOPICS[topic]), *rng.choice(WORDS[10:], size=5)]) for topic in topics]
    return texts, [["all", topic] for topic in topics]


def test_lexical_features_find_the_words_that_the_encoder_does_not(encoder_dir, tmp_path, table):
    texts, labels = table
    encoder = AutoModel.from_pretrained(encoder_dir)
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight.zero_()
    encoder.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder_dir).save_pretrained(tmp_path)
    scores = []
    for size in (None, 64):
        classifier = HcalClassifier(str(tmp_path), lexical_features=size, prototype_anchor=None, random_state=0)
        scores.append(classifier.fit(texts[:60], labels[:60]).score(texts[60:], labels[60:]))
    assert 10 < classifier.model_.config.lexical_features <= 64
    assert scores[0] < 0.6
    assert scores[1] > 0.9


def test_features_in_a_narrow_cone_are_centred(encoder_dir, tmp_path, table):
    encoder = AutoModel.from_pretrained(encoder_dir)
    with torch.no_grad():
        # All token states get the same large number.
        encoder.encoder.layer[-1].output.LayerNorm.bias[0] += 50
    encoder.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder_dir).save_pretrained(tmp_path)
    classifier = HcalClassifier(str(tmp_path), prototype_anchor=None, C=1.0, random_state=0).fit(*table)
    assert classifier.model_.config.projection_bias
    with torch.no_grad():
        mean = classifier.model_.projection(classifier._states(table[0])).mean(dim=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lexical_features": 0}, "from 1 to 2,048, got 0"),
        ({"lexical_features": 8, "freeze_encoder": False}, "lexical_features need a frozen encoder"),
        ({"lexical_features": 8, "encoder": None}, "lexical_features need a frozen encoder"),
    ],
)
def test_wrong_options_are_refused(encoder_dir, table, options, message):
    with pytest.raises(ValueError, match=message):
        HcalClassifier(**{"encoder": encoder_dir, **options}).fit(*table)

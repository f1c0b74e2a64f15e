"""Poolings of token states, and the pooling that a SentenceTransformer stores."""

import json
import shutil

import pytest
import torch

from hcal_hf import HcalForSequenceClassification
from hcal_hf.pooling import pool_states, stored_pooling

STATES = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [9.0, 9.0]]])
MASK = torch.tensor([[1, 1, 0]])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [2.0, -3.0]), ("cls", [1.0, -5.0]), ("last", [3.0, -1.0]), ("max", [3.0, -1.0])],
)
@pytest.mark.parametrize("left", [False, True])
def test_padding_is_left_out(pooling, expected, left):
    states, mask = (STATES.roll(1, 1), MASK.roll(1, 1)) if left else (STATES, MASK)
    assert pool_states(states, mask, pooling).tolist() == [expected]


def test_all_tokens_count_without_a_mask():
    assert pool_states(STATES, pooling="max").tolist() == [[9.0, 9.0]]


@pytest.fixture
def sentence_encoder(encoder_dir, tmp_path):
    def make(**config):
        folder = tmp_path / "sentence"
        shutil.copytree(encoder_dir, folder, dirs_exist_ok=True)
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_the_pooling_of_a_sentence_transformer_is_the_default(sentence_encoder, taxonomy, stored, expected):
    folder = sentence_encoder(**stored)
    assert HcalForSequenceClassification.from_encoder(folder, taxonomy).config.pooling == expected
    assert HcalForSequenceClassification.from_encoder(folder, taxonomy, pooling="last").config.pooling == "last"


def test_other_encoders_have_the_mean(encoder_dir, taxonomy):
    assert stored_pooling(encoder_dir, {}) is None
    assert HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy).config.pooling == "mean"


@pytest.mark.parametrize(
    "stored",
    [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, {"pooling_mode_weightedmean_tokens": True}],
)
def test_a_pooling_that_does_not_exist_here_is_refused(sentence_encoder, taxonomy, stored):
    with pytest.raises(ValueError, match=r"which is not supported: choose one of cls, last, max, mean with pooling="):
        HcalForSequenceClassification.from_encoder(sentence_encoder(**stored), taxonomy)

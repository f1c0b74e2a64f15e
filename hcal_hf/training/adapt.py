"""Adapts a zero-shot model to unlabelled texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers.utils import logging

from ..anchors import embed_texts
from ..data.texts import text_problem
from ..decoding import PAIRS_PER_CHUNK
from ..modeling_hcal import HcalForSequenceClassification
from ..zero_shot import EXPECTED_LABELS, TEMPERATURE, fit_biases, label_vectors, place_prototypes

logger = logging.get_logger(__name__)

# Fixed on the validation splits of clinc150 and hwv_part: rounds, the number of texts that the label text counts for, and
# the exponent by which frequent labels are damped.
ROUNDS = 3
LABEL_TEXT_WEIGHT = 10.0
BALANCE = 0.5
# Fewer texts say too little about the mean of the features.
FEWEST_TEXTS = 20


@dataclass
class Adaptation:
    """Describes the result of [`adapt`].

    Attributes:
        texts (`int`): the number of different texts.
        rounds (`int`): the number of rounds.
        agreement (`float`): the share of the texts whose most similar label was the same in the last two rounds.
        shift (`float`): the mean cosine between the vectors of the end labels before and after. 1 means that they did not
            move.
    """

    texts: int
    rounds: int
    agreement: float
    shift: float


@torch.no_grad()
def adapt(
    model: HcalForSequenceClassification,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    expected_labels: float = EXPECTED_LABELS,
    rounds: int | None = None,
    batch_size: int = 64,
) -> Adaptation:
    """Adapts a zero-shot model to unlabelled texts, without training.

    The mean of the texts' states becomes the origin of the features. Then each label's vector moves towards the texts that
    it attracts, for a few rounds: texts are assigned softly, by the softmax of their cosines at temperature 0.05, and a
    label's new vector is the unit of 10 times the vector of its label text plus n times the unit mean of its texts, where n
    is their number. Labels that attract many texts are damped by the square root of n. Under multi_path, the biases are
    fitted to the texts too.

    Args:
        model: a model from [`HcalForSequenceClassification.zero_shot`]. It is changed.
        tokenizer: the tokenizer of the encoder.
        texts: texts without labels, at least 20 different ones. Empty texts are left out.
        expected_labels: under multi_path, the mean number of end labels of a document.
        rounds: the number of rounds; 0 only moves the origin. By default 3 for single_path and 0 for multi_path, where
            rounds lowered micro-F1 (goemotions, validation: 37.3 to 34.9).
        batch_size: the number of texts per batch.

    Raises:
        ValueError: for a model of another kind, too few texts, or a negative number of rounds.
    """
    if rounds is None:
        rounds = ROUNDS if model.config.label_mode == "single_path" else 0
    _check(model, rounds)
    different = list(dict.fromkeys(text for text in texts if not text_problem(text)))
    if len(different) < FEWEST_TEXTS:
        raise ValueError(f"There are {len(different)} different texts: adapting needs at least {FEWEST_TEXTS}.")
    states = embed_texts(model, tokenizer, different, batch_size)
    _centre(model, states)
    features = F.normalize(model.projection(states.to(model.projection.weight)).float(), dim=-1)
    ends = torch.from_numpy(model.taxonomy.is_leaf | bool(model.config.partial_paths)).to(features.device)
    vectors = label_vectors(model)
    start = vectors[ends]
    moved, nearest, agreement = start, None, 1.0
    for _ in range(rounds):
        moved, now = _move(start, moved, features)
        agreement = 1.0 if nearest is None else float((nearest == now).double().mean())
        nearest = now
    vectors[ends] = moved
    place_prototypes(model, vectors)
    model.config.score_temperature = 1.0
    model.config.risk_alpha = model.config.risk_threshold = model.config.thresholds = None
    if model.config.label_mode == "multi_path":
        fit_biases(model, features, expected_labels)
    return Adaptation(len(different), rounds, agreement, float((start * moved).sum(dim=1).mean()))


def _check(model: HcalForSequenceClassification, rounds: int) -> None:
    config = model.config
    if not (config.projection_bias and config.prototype_anchor and config.score_function == "linear"):
        raise ValueError(
            "adapt needs a model that compares documents with label texts: build it with "
            "HcalForSequenceClassification.zero_shot."
        )
    if rounds < 0:
        raise ValueError(f"rounds must be 0 or more, got {rounds}.")


def _centre(model: HcalForSequenceClassification, states: torch.Tensor) -> None:
    """Moves the origin of the features to the mean of the states [N, hidden_size], and the mean label text with it."""
    weight, anchors = model.projection.weight, model.prototypes.anchors
    mean = states.mean(dim=0)
    model.projection.bias.copy_(-(weight.float() @ mean).to(weight))
    anchors += (mean - anchors.float().mean(dim=0)).to(anchors)


def _move(start: torch.Tensor, vectors: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs one round. Returns the new vectors [E, d] and the nearest label [N] of each text before it."""
    chunks = features.split(max(PAIRS_PER_CHUNK // len(vectors), 1))
    mass = torch.zeros(len(vectors), dtype=torch.float64, device=vectors.device)
    nearest = []
    for chunk in chunks:
        scores = chunk @ vectors.T
        nearest.append(scores.argmax(dim=1))
        mass += (scores / TEMPERATURE).softmax(dim=1).sum(dim=0)
    damping = mass.clamp(min=1e-9).pow(-BALANCE).to(vectors)
    number, sums = torch.zeros_like(mass), torch.zeros_like(vectors)
    for chunk in chunks:
        shares = (chunk @ vectors.T / TEMPERATURE).softmax(dim=1) * damping
        shares /= shares.sum(dim=1, keepdim=True)
        number += shares.sum(dim=0)
        sums += shares.T @ chunk
    moved = LABEL_TEXT_WEIGHT * start + number.to(vectors)[:, None] * F.normalize(sums, dim=-1)
    return F.normalize(moved, dim=-1), torch.cat(nearest)

"""Adapts a zero-shot model to unlabelled texts and to a few labelled ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from ..anchors import embed_texts
from ..data.label_checks import describe_misfit
from ..data.texts import text_problem
from ..decoding import PAIRS_PER_CHUNK
from ..modeling_hcal import HcalForSequenceClassification
from ..zero_shot import EXPECTED_LABELS, TEMPERATURE, fit_biases, label_vectors, place_prototypes
from .solver import HeadProblem, head_state

logger = logging.get_logger(__name__)

# Fixed on the validation splits of clinc150 and hwv_part: rounds, the number of texts that the label text counts for, and
# the exponent by which frequent labels are damped.
ROUNDS = 3
LABEL_TEXT_WEIGHT = 10.0
BALANCE = 0.5
# Fixed on the validation splits of clinc150 and naics2012: the number of texts that a labelled text counts for, and C of
# the fit to the labelled texts.
LABELLED_WEIGHT = 5.0
STRENGTH = 16.0
# Fewer texts say too little about the mean of the features.
FEWEST_TEXTS = 20


@dataclass
class Adaptation:
    """Describes the result of [`adapt`].

    Attributes:
        texts (`int`): the number of different texts.
        labelled (`int`): the number of labelled texts.
        rounds (`int`): the number of rounds.
        agreement (`float`): the share of the texts whose most similar label was the same in the last two rounds.
        shift (`float`): the mean cosine between the vectors of the end labels before and after. 1 means that they did not
            move.
    """

    texts: int
    labelled: int
    rounds: int
    agreement: float
    shift: float


@torch.no_grad()
def adapt(
    model: HcalForSequenceClassification,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    labelled_texts: Sequence[str] = (),
    labels: Sequence[Any] = (),
    expected_labels: float = EXPECTED_LABELS,
    rounds: int | None = None,
    batch_size: int = 64,
) -> Adaptation:
    """Adapts a zero-shot model to unlabelled texts and, under single_path, to a few labelled ones.

    The mean of the texts' states becomes the origin of the features. Then each label's vector moves towards the texts that
    it attracts, for a few rounds: texts are assigned softly, by the softmax of their cosines at temperature 0.05, and a
    label's new vector is the unit of 10 times the vector of its label text plus n times the unit mean of its texts, where n
    is their number. Labels that attract many texts are damped by the square root of n. Under multi_path, the biases are
    fitted to the texts too.

    Each labelled text is assigned to its own label alone and counts as 5 texts. At the end, L-BFGS fits the prototypes to
    the labelled texts with C = 16 and regularises them towards the adapted vectors. Labels without a labelled text keep
    their adapted vectors.

    Args:
        model: a model from [`HcalForSequenceClassification.zero_shot`]. It is changed.
        tokenizer: the tokenizer of the encoder.
        texts: texts without labels. Empty texts are left out. With the labelled texts, there must be at least 20 different
            ones.
        labelled_texts: texts with known labels.
        labels: the path of each labelled text, in any form that [`Taxonomy.encode`] reads, such as `[["Hardware",
            "Printer"]]`.
        expected_labels: under multi_path, the mean number of end labels of a document.
        rounds: the number of rounds; 0 only moves the origin. By default 3 for single_path and 0 for multi_path, where
            rounds lowered micro-F1 (goemotions, validation: 37.3 to 34.9).
        batch_size: the number of texts per batch.

    Raises:
        ValueError: for a model of another kind, too few texts, a negative number of rounds, or labels that do not fit the
            model or the labelled texts.
    """
    if rounds is None:
        rounds = ROUNDS if model.config.label_mode == "single_path" else 0
    _check(model, rounds)
    nodes = _encode_labels(model, labelled_texts, labels)
    is_labelled = set(labelled_texts)
    unlabelled = list(dict.fromkeys(text for text in texts if not text_problem(text) and text not in is_labelled))
    number = len(unlabelled) + len(is_labelled)
    if number < FEWEST_TEXTS:
        raise ValueError(f"There are {number} different texts: adapting needs at least {FEWEST_TEXTS}.")
    states = embed_texts(model, tokenizer, [*unlabelled, *labelled_texts], batch_size)
    _centre(model, states)
    features = F.normalize(model.projection(states.to(model.projection.weight)).float(), dim=-1)
    features, labelled_features = features.split([len(unlabelled), len(nodes)])
    ends = torch.from_numpy(model.taxonomy.is_leaf | bool(model.config.partial_paths)).to(features.device)
    vectors = label_vectors(model)
    start = vectors[ends]
    pull = LABEL_TEXT_WEIGHT * start
    if len(nodes):
        positions = (ends.cumsum(0) - 1)[torch.tensor([path[-1] for path in nodes], device=ends.device)]
        pull = pull + LABELLED_WEIGHT * _pull_of(labelled_features, positions, len(start))
    moved, nearest, agreement = F.normalize(pull, dim=-1), None, 1.0
    for _ in range(rounds):
        moved, now = _move(pull, moved, features)
        agreement = 1.0 if nearest is None else float((nearest == now).double().mean())
        nearest = now
    vectors[ends] = moved
    place_prototypes(model, vectors)
    model.config.score_temperature = 1.0
    model.config.risk_alpha = model.config.risk_threshold = model.config.thresholds = None
    if model.config.label_mode == "multi_path":
        fit_biases(model, features, expected_labels)
    if len(nodes):
        targets = pad_sequence([torch.from_numpy(path) for path in nodes], batch_first=True, padding_value=-100)
        HeadProblem(model, states[len(unlabelled) :], targets).fit(STRENGTH, centre=head_state(model))
    return Adaptation(number, len(nodes), rounds, agreement, float((start * moved).sum(dim=1).mean()))


def _encode_labels(
    model: HcalForSequenceClassification, texts: Sequence[str], labels: Sequence[Any]
) -> list[np.ndarray]:
    """Returns the sorted nodes of each labelled text's path."""
    config, taxonomy = model.config, model.taxonomy
    if len(texts) != len(labels):
        raise ValueError(
            f"There are {len(texts)} labelled_texts but {len(labels)} labels: give one of each per document."
        )
    if len(texts) and config.label_mode != "single_path":
        raise ValueError(
            f'labelled_texts need label_mode="single_path", got {config.label_mode!r}: train a model with a frozen encoder '
            "instead, as hcal train does."
        )
    rows = []
    for row, (text, names) in enumerate(zip(texts, labels)):
        nodes = taxonomy.encode(names)
        if problem := text_problem(text) or describe_misfit(nodes, taxonomy, "single_path", config.partial_paths):
            raise ValueError(f"Labelled text {row}: {problem}.")
        rows.append(nodes)
    return rows


def _pull_of(features: torch.Tensor, positions: torch.Tensor, number: int) -> torch.Tensor:
    """Returns n times the unit mean of each label's features [number, d], where n is their number."""
    counts = torch.bincount(positions, minlength=number).to(features)
    sums = features.new_zeros(number, features.shape[1]).index_add_(0, positions, features)
    return counts[:, None] * F.normalize(sums, dim=-1)


def _check(model: HcalForSequenceClassification, rounds: int) -> None:
    config = model.config
    is_comparable = config.score_function == "linear" and config.geometry != "hyperbolic"
    if not (config.projection_bias and config.prototype_anchor and is_comparable):
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


def _move(pull: torch.Tensor, vectors: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs one round. Returns the new vectors [E, d] and the nearest label [N] of each text before it.

    `pull` [E, d] is the part of the label text and of the labelled texts in the sum of each label.
    """
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
    moved = pull + number.to(vectors)[:, None] * F.normalize(sums, dim=-1)
    return F.normalize(moved, dim=-1), torch.cat(nearest)

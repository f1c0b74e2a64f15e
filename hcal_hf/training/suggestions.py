"""Suggests which unlabelled documents to label next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..anchors import embed_texts
from ..data.texts import text_problem
from ..decoding import PAIRS_PER_CHUNK, Decision
from ..modeling_hcal import HcalForSequenceClassification

logger = logging.get_logger(__name__)

# Above this many labels the gradients are sketched in as many buckets.
SKETCH = 1024
# More candidates than this are sampled.
MOST_CANDIDATES = 50_000


@dataclass
class Suggestions:
    """Holds the documents to label next.

    Attributes:
        rows (`np.ndarray` of shape `[n]`): their indices among the texts, in the order of suggestion.
        label_sets (`np.ndarray` of shape `[n, L]`, bool): the labels that the model predicts for them.
        probabilities (`np.ndarray` of shape `[n, L]`): the probabilities of all labels.
    """

    rows: np.ndarray
    label_sets: np.ndarray
    probabilities: np.ndarray


@torch.no_grad()
def suggest_documents(
    model: HcalForSequenceClassification,
    tokenizer: Any,
    texts: Sequence[Any],
    number: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> Suggestions:
    """Chooses documents about which the model is uncertain and which differ from each other (BADGE).

    The gradient of the loss, if the model's prediction were the true labels, is large for a document that the model is
    uncertain about on any level, and similar for documents that would teach the same. k-means++ draws documents far apart
    in these gradients. They are the products of the unit features and of probabilities minus predictions over all nodes,
    so the distances need no model-sized vectors.

    Args:
        model: a trained or a zero-shot model.
        tokenizer: its tokenizer.
        texts: the candidates. Equal texts count once, and empty ones are left out. Of more than 50,000, as many are drawn.
        number: how many documents to suggest.
        seed: of the draws.
        batch_size: the number of texts per batch.

    Raises:
        ValueError: if the number is not positive, or larger than that of different texts.

    Source: Ash et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds" (ICLR 2020).
    """
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        if not text_problem(text):
            first.setdefault(text.strip(), row)
    rows = np.array(list(first.values()), dtype=np.int64)
    if not 0 < number <= len(rows):
        raise ValueError(f"number must be from 1 to the {len(rows):,} different texts, got {number}.")
    random = np.random.default_rng(seed)
    if len(rows) > MOST_CANDIDATES:
        logger.warning(f"{MOST_CANDIDATES:,} of {len(rows):,} texts are candidates, drawn with seed {seed}.")
        rows = np.sort(random.choice(rows, max(MOST_CANDIDATES, number), replace=False))
    states = embed_texts(model, tokenizer, [texts[row] for row in rows], batch_size)
    features, errors = prediction_errors(model, states)
    chosen = draw_diverse(features, errors, number, random)
    logits = model(pooled_states=states[chosen].to(model.projection.weight)).logits.cpu()
    sets = Decision.from_config(model.config).decode(logits, model.taxonomy).numpy()
    return Suggestions(rows[chosen], sets, torch.sigmoid(logits).numpy())


@torch.no_grad()
def prediction_errors(model: HcalForSequenceClassification, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the two factors of the gradients of documents from their pooled states [N, hidden_size].

    Returns:
        unit features [N, d], and probabilities minus predictions [N, L], sketched [N, 1024] if there are more labels.
    """
    was_training, taxonomy = model.training, model.taxonomy
    model.eval()
    decision, features, errors = Decision.from_config(model.config), [], []
    sketch = _sketch(taxonomy.num_labels)
    for chunk in states.split(max(PAIRS_PER_CHUNK // taxonomy.num_labels, 1)):
        output = model(pooled_states=chunk.to(model.projection.weight))
        logits = output.logits.cpu()
        error = torch.sigmoid(logits).float() - decision.decode(logits, taxonomy).float()
        if sketch is not None:
            buckets, signs = sketch
            error = torch.zeros(len(error), SKETCH).index_add_(1, buckets, error * signs)
        features.append(output.features.float().cpu())
        errors.append(error)
    model.train(was_training)
    return torch.cat(features), torch.cat(errors)


def _sketch(num_labels: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns bucket and sign of each label [L] for a count sketch, which keeps inner products in expectation."""
    if num_labels <= SKETCH:
        return None
    generator = torch.Generator().manual_seed(0)
    buckets = torch.randint(SKETCH, (num_labels,), generator=generator)
    return buckets, torch.randint(2, (num_labels,), generator=generator).float() * 2 - 1


def draw_diverse(features: torch.Tensor, errors: torch.Tensor, number: int, random: np.random.Generator) -> np.ndarray:
    """Draws documents by k-means++ on the outer products of features [N, d] and errors [N, L].

    The first one is drawn in proportion to the squared length of its gradient, each further one in proportion to the
    squared distance from the nearest gradient that was drawn.

    Returns:
        the indices of the documents, int64 `[number]`.
    """
    lengths = errors.square().sum(dim=1)
    distances = lengths.clone()
    chosen: list[int] = []
    for _ in range(number):
        weights = distances.clamp(min=0).double().numpy()
        weights[chosen] = 0.0
        if not weights.sum() > 0:  # the model is certain of all others
            weights = np.ones(len(weights))
            weights[chosen] = 0.0
        index = int(random.choice(len(weights), p=weights / weights.sum()))
        chosen.append(index)
        similar = (errors @ errors[index]) * (features @ features[index])
        distance = lengths + lengths[index] - 2 * similar
        distances = distance if len(chosen) == 1 else torch.minimum(distances, distance)
    return np.array(chosen, dtype=np.int64)

"""Chooses how a model is trained: label text adapted to few documents, a frozen encoder, a fine-tuned one, or both."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..encoder_inputs import run_encoder
from ..encoder_loading import load_encoder
from .adapt import FEWEST_TEXTS

logger = logging.get_logger(__name__)

ADAPTED, FROZEN, LEXICAL, FINE_TUNED, FINE_TUNED_ADAPTED = REGIMES = (
    "adapted",
    "frozen",
    "lexical",
    "fine-tuned",
    "fine-tuned-adapted",
)

# Training settings of each regime. They are those of recipes/clinc150 and apply where the user sets nothing else.
FINE_TUNING: dict[str, Any] = {
    "num_train_epochs": 4,
    "learning_rate": 1e-4,
    "head_learning_rate": 1e-3,
    "prototype_learning_rate": 3e-3,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 128,
    "train_sampling_strategy": "group_by_length",
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "eval_strategy": "epoch",
}
# Few documents need more and smaller steps; the settings are those of the README's example.
FINE_TUNING_FEW: dict[str, Any] = {**FINE_TUNING, "num_train_epochs": 20, "per_device_train_batch_size": 16}
FEW_DOCUMENTS = 1000
FROZEN_SETTINGS: dict[str, Any] = {"per_device_eval_batch_size": 256}
# Below the first number of documents per leaf, adapted label text was as accurate as any training; above the second, it
# no longer was (recipes/benchmarks/pages/few_labels.md). In between, the validation documents decide.
FEW_PER_LEAF, MANY_PER_LEAF = 2, 20
# If a larger share of the leaves has no documents, adapted label text was more accurate even with 5 documents per leaf, and
# still more with a fine-tuned encoder.
MOST_WITHOUT = 0.1
# Fewer validation documents cannot decide.
FEWEST_VALIDATION = 40
_TIMED_BATCHES = 3


@dataclass(frozen=True)
class Regime:
    """How a model is trained.

    Attributes:
        name (`str`): `"adapted"` (label text, adapted to all texts and to a few labelled ones, [`hcal_hf.adapt`]),
            `"frozen"` (the head on features of a frozen encoder), `"lexical"` (the same with lexical features,
            [`hcal_hf.add_lexical_features`]), `"fine-tuned"` (the whole model) or `"fine-tuned-adapted"` (the encoder
            of a fine-tuned model, with label text that is adapted with it).
        settings (`dict`): values of [`HcalTrainingArguments`] that go with it.
        reason (`str`): why it was chosen, in one sentence.
        seconds (`float`, *optional*): the estimated time of fine-tuning.
        alternatives (`tuple[str, ...]`): other regimes that are worth training too, because only validation documents can
            tell which is best. They add little time.
    """

    name: str
    settings: dict[str, Any]
    reason: str
    seconds: float | None = None
    alternatives: tuple[str, ...] = ()


def choose_regime(
    encoder: str | nn.Module,
    tokenizer: Any,
    lengths: Sequence[int],
    budget: float = 15.0,
    device: str | torch.device = "cpu",
    *,
    leaves: int | None = None,
    covered: int | None = None,
    label_mode: str = "single_path",
    unlabelled: int = 0,
    validation: int = 0,
    window_length: int | None = None,
) -> Regime:
    """Chooses the regime by the number of labelled documents and the time that fine-tuning is estimated to take.

    - Without a labelled document: adapted. Under single_path also with fewer than 2 per leaf.
    - Under single_path with 2 to 20 documents per leaf, if more than a tenth of the leaves have none: fine-tuned-adapted if
      fine-tuning is estimated to fit the time budget, and adapted if not.
    - Else fine-tuned, if that is estimated to fit the time budget, and frozen if not.

    From 2 to 20 documents per leaf, adapting may be better for single_path, with the fine-tuned encoder or without, and a
    frozen encoder may be better than a fine-tuned one. Lexical features may help a frozen encoder
    (recipes/benchmarks/pages/lexical.md). If at least 40 validation documents can decide that, they are alternatives of the
    regime.

    The time of fine-tuning is estimated from three training batches of random tokens with the lengths of random documents.

    Args:
        encoder: name or folder of the encoder, or the encoder itself.
        tokenizer: its tokenizer.
        lengths: the number of tokens of each labelled training document.
        budget: minutes that training may take; 0 excludes fine-tuning without timing.
        device: where training will run.
        leaves: the number of leaves of the hierarchy. Without it, the number of documents per leaf counts as large.
        covered: the number of leaves with a labelled document; all by default.
        label_mode: that of the model.
        unlabelled: the number of texts without labels.
        validation: the number of labelled validation documents.
        window_length: the largest number of tokens of a window, if long texts are read in windows.

    Raises:
        ValueError: for a negative budget, or no documents.
    """
    if not 0 <= budget < float("inf"):
        raise ValueError(f"The time budget must be 0 or more minutes, got {budget}.")
    documents = len(lengths)
    can_adapt = documents + unlabelled >= FEWEST_TEXTS and (label_mode == "single_path" or not documents)
    if not documents:
        if not can_adapt:
            raise ValueError(
                f"There are no labelled training documents, and only {unlabelled} texts without labels: there must be at "
                f"least {FEWEST_TEXTS} texts. hcal zero-shot makes a model from the hierarchy alone."
            )
        reason = f"No document is labelled: the text of each label is adapted to {unlabelled:,} texts."
        return Regime(ADAPTED, FROZEN_SETTINGS, reason)
    per_leaf = float("inf") if leaves is None else documents / leaves
    if can_adapt and per_leaf < FEW_PER_LEAF:
        reason = (
            f"There are {per_leaf:.1f} labelled training documents per leaf, fewer than {FEW_PER_LEAF}: the text of each "
            f"label is adapted to them and to {unlabelled:,} texts without labels."
        )
        return Regime(ADAPTED, FROZEN_SETTINGS, reason)
    cheap = (ADAPTED,) if can_adapt and per_leaf < MANY_PER_LEAF else ()
    can_decide = validation >= FEWEST_VALIDATION
    settings = FINE_TUNING_FEW if documents < FEW_DOCUMENTS or per_leaf < MANY_PER_LEAF else FINE_TUNING
    seconds = None
    fits, minutes = False, "the time budget is 0 minutes"
    if budget > 0:
        seconds = settings["num_train_epochs"] * estimate_epoch(encoder, tokenizer, lengths, device, window_length)
        fits = seconds <= 60 * budget
        minutes = (
            f"fine-tuning {documents:,} documents for {settings['num_train_epochs']} epochs is estimated at "
            f"{_minutes(seconds)}, {'within' if fits else 'more than'} {budget:g}"
        )
    without = 0 if leaves is None or covered is None else leaves - covered
    if cheap and leaves is not None and without > MOST_WITHOUT * leaves:
        reason = (
            f"{without:,} of {leaves:,} leaves have no labelled document, so no training can show them: the text of each "
            f"label is adapted to {documents:,} labelled texts and to {unlabelled:,} without labels. The encoder "
            f"{'is fine-tuned before' if fits else 'stays frozen'}: {minutes}."
        )
        if not fits:
            return Regime(ADAPTED, FROZEN_SETTINGS, reason, seconds)
        return Regime(FINE_TUNED_ADAPTED, settings, reason, seconds, cheap if can_decide else ())
    if fits:
        adapted = (ADAPTED, FINE_TUNED_ADAPTED) if cheap else ()
        reason, alternatives = f"The encoder is fine-tuned: {minutes}.", (*adapted, FROZEN)
        return Regime(FINE_TUNED, settings, reason, seconds, alternatives if can_decide else ())
    reason = f"The encoder stays frozen: {minutes}."
    return Regime(FROZEN, FROZEN_SETTINGS, reason, seconds, (*cheap, LEXICAL) if can_decide else ())


def estimate_epoch(
    encoder: str | nn.Module,
    tokenizer: Any,
    lengths: Sequence[int],
    device: str | torch.device = "cpu",
    window_length: int | None = None,
) -> float:
    """Estimates the seconds of one epoch of fine-tuning from three timed batches."""
    size = min(FINE_TUNING["per_device_train_batch_size"], len(lengths))
    random = torch.Generator().manual_seed(0)
    model: Any = load_encoder(encoder, {}) if isinstance(encoder, str) else copy.deepcopy(encoder)
    model = model.to(device).train()
    vocabulary = min(len(tokenizer), model.get_input_embeddings().num_embeddings)
    taken = []
    for _ in range(_TIMED_BATCHES):
        # Batches of one length each, as group_by_length makes them.
        length = max(int(lengths[int(torch.randint(len(lengths), (1,), generator=random))]), 1)
        windows = 1 if window_length is None else -(-length // window_length)
        shape = (size * windows, -(-length // windows))
        ids = torch.randint(vocabulary, shape, generator=random).to(device)
        start = time.perf_counter()
        run_encoder(model, input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.sum().backward()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) / ids.numel())
    # The first batch also warms up.
    per_token = sum(taken[1:]) / len(taken[1:])
    return per_token * float(sum(lengths))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"

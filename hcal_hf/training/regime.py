"""Chooses between a frozen and a fine-tuned encoder."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.utils import logging

logger = logging.get_logger(__name__)

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
FROZEN: dict[str, Any] = {"per_device_eval_batch_size": 256}
_TIMED_BATCHES = 3


@dataclass(frozen=True)
class Regime:
    """How a model is trained.

    Attributes:
        name (`str`): `"frozen"` (the head on features of a frozen encoder) or `"fine-tuned"` (the whole model).
        settings (`dict`): values of [`HcalTrainingArguments`] that go with it.
        reason (`str`): why it was chosen, in one sentence.
        seconds (`float`, *optional*): the estimated time of fine-tuning.
    """

    name: str
    settings: dict[str, Any]
    reason: str
    seconds: float | None = None


def choose_regime(
    encoder: str | nn.Module,
    tokenizer: Any,
    lengths: Sequence[int],
    budget: float = 15.0,
    device: str | torch.device = "cpu",
) -> Regime:
    """Chooses the regime: frozen, unless fine-tuning is estimated to fit the time budget.

    The time of fine-tuning is estimated from three training batches of random tokens with the lengths of random documents.

    Args:
        encoder: name or folder of the encoder, or the encoder itself.
        tokenizer: its tokenizer.
        lengths: the number of tokens of each training document.
        budget: minutes that training may take; 0 chooses the frozen regime without timing.
        device: where training will run.

    Raises:
        ValueError: for a negative budget, or no documents.
    """
    if not 0 <= budget < float("inf"):
        raise ValueError(f"The time budget must be 0 or more minutes, got {budget}.")
    if not len(lengths):
        raise ValueError("There are no training documents.")
    if budget == 0:
        return Regime("frozen", FROZEN, "The encoder stays frozen: the time budget is 0 minutes.")
    settings = FINE_TUNING_FEW if len(lengths) < FEW_DOCUMENTS else FINE_TUNING
    seconds = settings["num_train_epochs"] * estimate_epoch(encoder, tokenizer, lengths, device)
    estimate = f"fine-tuning {len(lengths):,} documents for {settings['num_train_epochs']} epochs is estimated at"
    minutes = f"{estimate} {_minutes(seconds)}"
    if seconds <= 60 * budget:
        return Regime("fine-tuned", settings, f"The encoder is fine-tuned: {minutes}, within {budget:g}.", seconds)
    return Regime("frozen", FROZEN, f"The encoder stays frozen: {minutes}, more than {budget:g}.", seconds)


def estimate_epoch(
    encoder: str | nn.Module, tokenizer: Any, lengths: Sequence[int], device: str | torch.device = "cpu"
) -> float:
    """Estimates the seconds of one epoch of fine-tuning from three timed batches."""
    size = min(FINE_TUNING["per_device_train_batch_size"], len(lengths))
    random = torch.Generator().manual_seed(0)
    model: Any = AutoModel.from_pretrained(encoder) if isinstance(encoder, str) else copy.deepcopy(encoder)
    model = model.to(device).train()
    vocabulary = min(len(tokenizer), model.get_input_embeddings().num_embeddings)
    taken = []
    for _ in range(_TIMED_BATCHES):
        # Batches of one length each, as group_by_length makes them.
        length = int(lengths[int(torch.randint(len(lengths), (1,), generator=random))])
        ids = torch.randint(vocabulary, (size, max(length, 1)), generator=random).to(device)
        start = time.perf_counter()
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.sum().backward()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) / ids.numel())
    # The first batch also warms up.
    per_token = sum(taken[1:]) / len(taken[1:])
    return per_token * float(sum(lengths))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"

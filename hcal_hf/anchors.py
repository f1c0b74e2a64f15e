"""Computes label texts and embeds texts, for prototypes that are anchored to label embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .progress_bar import progress_bar
from .taxonomy import Taxonomy
from .token_limits import token_limit, tokenize

# A progress bar is shown for at least so many texts.
_MANY_TEXTS = 2000


@torch.no_grad()
def embed_texts(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
    """Computes the pooled encoder states of texts without dropout. `config.text_prefix` precedes each text.

    Texts of similar length share a batch. A progress bar is shown for thousands of texts.

    Returns:
        float32 tensor `[n, hidden_size]` on the model's device, in the order of `texts`.
    """
    was_training = model.training
    model.eval()
    prefix = model.config.text_prefix
    truncation = {"truncation": True, "max_length": None if model.windows is None else token_limit(model, tokenizer)}
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    states = torch.empty(len(texts), model.projection.in_features, device=model.device)
    starts = range(0, len(order), batch_size)
    for start in progress_bar(iterable=starts, desc="Embedding texts", disable=len(texts) < _MANY_TEXTS):
        rows = order[start : start + batch_size]
        chosen = [prefix + texts[i] for i in rows]
        batch = tokenize(tokenizer, chosen, padding=True, **truncation, return_tensors="pt")
        states[rows] = model.encode_documents(dict(batch.to(model.device)))[1].float()
    model.train(was_training)
    return states


def label_texts(
    taxonomy: Taxonomy, descriptions: Mapping[str, str] | None = None, names: Sequence[str] | None = None
) -> list[str]:
    """Returns the text of each label: its description, or its name after its parents' names.

    Args:
        taxonomy: the hierarchy.
        descriptions: texts of some labels.
        names: the name of each label (`config.label_names`); the last step of its path by default.

    Raises:
        ValueError: for a description of an unknown label (the message lists the closest labels).
    """
    texts = taxonomy.texts(names)
    for label, text in (descriptions or {}).items():
        texts[taxonomy.index(label)] = text
    return texts

"""Pools token states to document vectors, and reads which pooling a SentenceTransformer was trained with."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

# Files of a SentenceTransformer, and the names of its poolings with those of `HcalConfig.pooling`.
LENGTH_FILE = "sentence_bert_config.json"
POOLING_FILE = "1_Pooling/config.json"
_STORED_NAMES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


def pool_states(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, pooling: str = "mean"
) -> torch.Tensor:
    """Pools token states [B, S, hidden_size] to document vectors [B, hidden_size].

    Args:
        hidden_states: the states of the tokens.
        attention_mask (`torch.Tensor` of shape `[B, S]`, *optional*): 1 for tokens; all by default. Padding may be on
            either side.
        pooling (`"mean"`, `"cls"`, `"last"` or `"max"`): as in [`HcalConfig`]. The mean is computed in at least float32.
    """
    if attention_mask is None:
        attention_mask = hidden_states.new_ones(hidden_states.shape[:2])
    if pooling == "mean":
        states = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        mask = attention_mask.to(states)[:, :, None]
        return ((states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).to(hidden_states)
    if pooling == "max":
        lowest = torch.finfo(hidden_states.dtype).min
        return hidden_states.masked_fill(attention_mask[:, :, None] == 0, lowest).amax(dim=1)
    if pooling not in ("cls", "last"):
        raise ValueError(f"pooling must be one of cls, last, max, mean, got {pooling!r}.")
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    if pooling == "cls":
        position = attention_mask.long().argmax(dim=1)
    else:
        position = torch.where(attention_mask > 0, positions, -1).amax(dim=1).clamp(min=0)
    rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)  # len() is a constant to torch.export
    return hidden_states[rows, position]


def stored_pooling(encoder: str | os.PathLike, files: dict[str, Any]) -> str | None:
    """Reads the pooling of a SentenceTransformer. Returns None for other encoders.

    Args:
        encoder: name on the Hub or folder.
        files: the arguments of `from_pretrained` that locate files.

    Raises:
        ValueError: for a pooling that [`HcalConfig`] does not have.
    """
    stored = _read_json(encoder, POOLING_FILE, files)
    if stored is None:
        return None
    modes = sorted(name for name, value in stored.items() if name.startswith("pooling_mode") and value is True)
    # Newer versions store the name itself.
    if isinstance(stored.get("pooling_mode"), str):
        modes = [{"lasttoken": "last"}.get(stored["pooling_mode"], stored["pooling_mode"])]
    names = [_STORED_NAMES.get(mode, mode) for mode in modes]
    if len(names) != 1 or names[0] not in _STORED_NAMES.values():
        raise ValueError(
            f"{encoder} was trained with the pooling {' + '.join(names) or 'none'} ({POOLING_FILE}), which is not "
            f"supported: choose one of {', '.join(sorted(_STORED_NAMES.values()))} with pooling=..."
        )
    if names[0] != "mean":
        logger.info(f"pooling={names[0]!r}, as {POOLING_FILE} of {encoder} says.")
    return names[0]


def stored_length(encoder: str | os.PathLike, files: dict[str, Any]) -> int | None:
    """Reads the number of tokens at which a SentenceTransformer cuts texts. Returns None for other encoders.

    The arguments are those of [`stored_pooling`].
    """
    length = (_read_json(encoder, LENGTH_FILE, files) or {}).get("max_seq_length")
    return length if isinstance(length, int) and length > 0 else None


def _read_json(encoder: str | os.PathLike, name: str, files: dict[str, Any]) -> dict[str, Any] | None:
    """Reads a file of an encoder, or returns None if there is none."""
    known = {name: value for name, value in files.items() if name != "trust_remote_code"}
    path = cached_file(
        encoder,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **known,
    )
    stored = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    return stored if isinstance(stored, dict) else None


__all__ = ["LENGTH_FILE", "POOLING_FILE", "pool_states", "stored_length", "stored_pooling"]

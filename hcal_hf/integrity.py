"""Detects damaged or edited models: checksums of config.json and of the tokenizer, and checks of the loaded weights.

Checksums find accidents and careless edits. They do not protect against an attacker, who can write new ones.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The name of the checksums in config.json, and the parts of the configuration that decide answers.
CHECKSUMS = "hcal_checksums"
PARTS = {
    "labels": ("labels",),
    "hierarchy": ("edges",),
    "head": (
        "label_mode",
        "partial_paths",
        "head",
        "objective",
        "classification_loss",
        "classification_loss_kwargs",
        "pooling",
        "projection_dim",
        "projection_bias",
        "geometry",
        "geometry_curvature",
        "score_function",
        "prototype_anchor",
        "prototype_temperature",
    ),
    # Those of `_OPTIONAL` are left out if all values are the defaults, so that earlier models keep their checksums.
    "features": ("lexical_features", "lexical_terms", "text_prefix"),
    "windows": ("window_length", "window_overlap", "max_windows", "window_pooling", "window_affixes"),
    "decisions": ("thresholds", "risk_alpha", "risk_threshold", "score_temperature"),
}
_OPTIONAL = ("features", "windows")
_LENGTH = 16
# Weights that files of other libraries may hold and a model of this one does not use.
_UNUSED = ("encoder.pooler.", "pooler.")


def config_checksums(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Computes a checksum of each part of a configuration.

    Args:
        values: the fields of the configuration, as JSON holds them.
        defaults: the values of fields that are missing.
    """
    found = {}
    for part, names in PARTS.items():
        fields = [values.get(name, defaults.get(name)) for name in names]
        if part in _OPTIONAL and fields == [defaults.get(name) for name in names]:
            continue
        found[part] = _digest(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(errors="replace"))
    return found


def check_config(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Compares the content of a config.json with the checksums in it.

    Raises:
        ValueError: if a part was changed after the model was saved.
    """
    stored = values.get(CHECKSUMS)
    if stored is None:
        logger.info("The model has no checksums, because an earlier hcal_hf saved it. Save it again to add them.")
        return
    now = config_checksums(values, defaults)
    if changed := [part for part in PARTS if not isinstance(stored, Mapping) or stored.get(part) != now.get(part)]:
        fields = ", ".join(name for part in changed for name in PARTS[part])
        raise ValueError(
            f"config.json was changed after the model was saved: {', '.join(changed)} ({fields}). The model would answer "
            "differently or wrongly. If the change is intended, load it with from_pretrained(..., accept_edits=True), or "
            "run hcal inspect MODEL --accept."
        )


def vocabulary_checksum(tokenizer: Any) -> str:
    """Computes a checksum of the tokens of a tokenizer and their numbers."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    return _digest(json.dumps(pairs, ensure_ascii=False, separators=(",", ":")).encode(errors="replace"))


def check_vocabulary(config: Any, tokenizer: Any) -> None:
    """Compares a tokenizer with the one that the model was trained with. Models without a checksum are not checked.

    Raises:
        ValueError: if the tokens or their numbers differ.
    """
    stored = getattr(config, "tokenizer_checksum", None)
    if stored is not None and tokenizer is not None and vocabulary_checksum(tokenizer) != stored:
        raise ValueError(
            "The tokenizer is not the one that the model was trained with: its tokens or their numbers differ, so the "
            "encoder would read other words. Use the tokenizer that was saved with the model. If the change is intended, "
            "set model.config.tokenizer_checksum = None, or run hcal inspect MODEL --accept."
        )


def check_loaded_weights(model: nn.Module, info: Mapping[str, Any], source: str, allow_new: bool = False) -> None:
    """Checks that a model has all of its weights from a file and that they are numbers.

    Args:
        model: the loaded model.
        info: `missing_keys`, `unexpected_keys` and `mismatched_keys` of its loading.
        source: the name of the model, for messages.
        allow_new: accepts missing and misshapen weights, which are new random ones.

    Raises:
        ValueError: for missing, unexpected or misshapen weights, and for NaN and infinite ones.
    """
    hint = "The file is damaged or belongs to another model."
    mismatched = [str(key[0] if isinstance(key, tuple | list) else key) for key in info.get("mismatched_keys", ())]
    kinds = {
        "missing": () if allow_new else info.get("missing_keys", ()),
        "of another shape": () if allow_new else mismatched,
        "unknown": [key for key in info.get("unexpected_keys", ()) if not key.startswith(_UNUSED)],
    }
    problems = [f"{_quote(keys)} {_is(keys)} {kind}" for kind, keys in kinds.items() if keys]
    if problems:
        raise ValueError(
            f"{source}: of the weights, {'; '.join(problems)}. {hint} To train new weights in their place, load it with "
            "from_pretrained(..., allow_new_weights=True)."
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if wrong := [name for name, value in tensors if value.is_floating_point() and not _is_finite(value)]:
        raise ValueError(f"{source}: of the weights, {_quote(wrong)} {_is(wrong)} NaN or infinite in places. {hint}")
    if whole := [name for name, value in model.named_parameters() if not value.is_floating_point()]:
        raise ValueError(f"{source}: of the weights, {_quote(whole)} {_is(whole)} whole numbers. {hint}")


def defaults_of(config_class: Any) -> dict[str, Any]:
    """Returns the default of each field of a configuration, as JSON holds it."""
    found = {}
    for field in dataclasses.fields(config_class):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _is_finite(value: torch.Tensor) -> bool:
    return value.device.type == "meta" or bool(torch.isfinite(value).all())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_LENGTH]


def _quote(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _is(keys: Iterable[str]) -> str:
    return "is" if len(list(keys)) == 1 else "are"


__all__ = [
    "CHECKSUMS",
    "check_config",
    "check_loaded_weights",
    "check_vocabulary",
    "config_checksums",
    "defaults_of",
    "vocabulary_checksum",
]

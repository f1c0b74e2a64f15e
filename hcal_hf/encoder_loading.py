"""Loads the pretrained encoder of a new model."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .configuration_hcal import HcalConfig
from .size_checks import (
    WeightFile,
    auto_class_of,
    build_encoder,
    check_counts,
    check_has_encoder,
    check_reads_tokens,
    check_size,
    expected_weights,
)

# Arguments of from_encoder for the encoder's from_pretrained. All others are fields of HcalConfig.
LOADER_ARGUMENTS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
# Those of them that locate files, also of the tokenizer.
FILE_ARGUMENTS = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


def load_encoder(encoder: str | os.PathLike, arguments: dict[str, Any]) -> PreTrainedModel:
    """Loads an encoder, and checks that a model on it can be saved and loaded.

    Args:
        encoder: name on the Hub or folder.
        arguments: arguments of `from_pretrained`, from `LOADER_ARGUMENTS`.

    Raises:
        TypeError: if `encoder` is neither.
        ValueError: for an HCAL model, an encoder-decoder other than T5 and its relatives, an encoder of something else than
            texts, an architecture that is not part of transformers, or a configuration that describes far more than the
            weight file holds.
        FileNotFoundError: for a folder that does not exist.
    """
    if not isinstance(encoder, str | os.PathLike):
        raise TypeError(f"encoder must be a name on the Hub or a folder, got {type(encoder).__name__}.")
    check_exists(encoder)
    files = {name: arguments[name] for name in FILE_ARGUMENTS if name in arguments and name != "trust_remote_code"}
    stored, _ = HcalConfig.get_config_dict(encoder, **files)
    if stored.get("model_type") == HcalConfig.model_type:
        raise ValueError(f"{encoder} is an HCAL model: load it with HcalForSequenceClassification.from_pretrained.")
    if stored.get("is_encoder_decoder"):
        check_has_encoder(stored.get("model_type"), str(encoder))
    check_counts(stored)
    _check_size(encoder, arguments, stored)
    model: PreTrainedModel = auto_class_of(stored.get("model_type")).from_pretrained(encoder, **arguments)
    if model.config.model_type not in CONFIG_MAPPING_NAMES:
        raise ValueError(
            f"The encoder's model type {model.config.model_type!r} comes from custom code: a saved HCAL model could "
            "not be loaded without it. Use an architecture that is part of transformers."
        )
    check_reads_tokens(model)
    return model


def check_exists(source: Any) -> None:
    """Checks that a source which cannot be a name on the Hub is a folder or a file.

    Raises:
        FileNotFoundError: if it does not exist.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    is_path = name.startswith((".", "~", "/", "\\")) or name.count("/") > 1 or "\\" in name
    if is_path and not os.path.exists(name):
        raise FileNotFoundError(
            f"There is no folder {name}: give the folder of a saved model, or its name on the Hub."
        )


def _check_size(encoder: str | os.PathLike, arguments: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    weights = WeightFile.find(encoder, arguments)
    if weights is None or stored.get("model_type") not in CONFIG_MAPPING_NAMES or "quantization_config" in stored:
        return
    files = {name: arguments[name] for name in FILE_ARGUMENTS if name in arguments and name != "trust_remote_code"}
    config = AutoConfig.from_pretrained(encoder, **files)
    with expected_weights(weights), torch.device("meta"):  # needs no memory for weights
        check_size(build_encoder(config), config)


def hidden_size_of(encoder_config: Any) -> int:
    """Reads the size of the hidden states from an encoder's configuration.

    Raises:
        ValueError: if it has no such field.
    """
    for name in ("hidden_size", "d_model", "dim", "n_embd"):
        if isinstance(size := getattr(encoder_config, name, None), int):
            return size
    raise ValueError(
        f"The size of the hidden states is unknown: {type(encoder_config).__name__} has none of hidden_size, d_model, dim "
        "and n_embd. Use another encoder, or set hidden_size in its configuration."
    )


__all__ = ["FILE_ARGUMENTS", "LOADER_ARGUMENTS", "check_exists", "hidden_size_of", "load_encoder"]

"""Loads saved models for the commands."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..configuration_hcal import HcalConfig
from ..integrity import vocabulary_checksum
from ..modeling_hcal import HcalForSequenceClassification
from ..token_limits import check_tokenizer


def load_model(name: str, **kwargs: Any) -> tuple[HcalForSequenceClassification, Any]:
    """Loads a saved model and its tokenizer.

    Args:
        name: the folder of the model, or its name on the Hub.
        kwargs: passed to the model's `from_pretrained` (`dtype`, ...).

    Raises:
        ValueError: if there is no model, if it is not an HCAL model, or if it has no tokenizer that fits it.
    """
    load_config(name)  # raises a one-line error, where from_pretrained would not
    model = HcalForSequenceClassification.from_pretrained(name, **kwargs)
    tokenizer = load_tokenizer(name)
    check_tokenizer(model, tokenizer)
    if model.windows is not None:
        tokenizer.model_max_length = model.max_tokens  # it stores the limit of the encoder, and windows hold more
    return model, tokenizer


def load_tokenizer(name: str) -> Any:
    """Loads the tokenizer of a saved model.

    Raises:
        ValueError: if there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as problem:
        reason = str(problem).strip().partition("\n")[0]
        raise ValueError(
            f"{name} has no tokenizer that can be read ({reason}): save the tokenizer of training next to the model, "
            "tokenizer.save_pretrained(folder)."
        ) from problem


def load_config(name: str, accept_edits: bool = False) -> HcalConfig:
    """Loads the configuration of a saved model.

    Args:
        name: the folder of the model, or its name on the Hub.
        accept_edits: accept a config.json that was changed after the model was saved.

    Raises:
        ValueError: if there is no model, if it is not an HCAL model, or if it was changed.
    """
    try:
        stored, _ = HcalConfig.get_config_dict(name)
    except OSError as problem:
        raise ValueError(
            f"{name} is neither a folder with a saved model (its config.json) nor a model on the Hub that can be read: "
            f"{problem}"
        ) from problem
    if stored.get("model_type") != HcalConfig.model_type:
        raise ValueError(
            f"{name} is a model of type {stored.get('model_type')!r}, not an HCAL model: train one with hcal train."
        )
    return HcalConfig.from_pretrained(name, accept_edits=accept_edits)


def accept_edits(folder: str) -> None:
    """Accepts a config.json and a tokenizer that were changed after the model was saved, and stores new checksums.

    Raises:
        ValueError: if there is no such folder, or no HCAL model in it.
    """
    if not Path(folder, "config.json").is_file():
        raise ValueError(f"--accept needs the folder of a saved model, and {folder} has no config.json.")
    config = load_config(folder, accept_edits=True)
    if config.tokenizer_checksum is not None:
        config.tokenizer_checksum = vocabulary_checksum(load_tokenizer(folder))
    config.save_pretrained(folder)

"""Loads saved models for the commands."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig

from ..configuration_hcal import HcalConfig
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
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as problem:
        reason = str(problem).strip().partition("\n")[0]
        raise ValueError(
            f"{name} has no tokenizer that can be read ({reason}): save the tokenizer of training next to the model, "
            "tokenizer.save_pretrained(folder)."
        ) from problem
    check_tokenizer(model, tokenizer)
    return model, tokenizer


def load_config(name: str) -> HcalConfig:
    """Loads the configuration of a saved model.

    Raises:
        ValueError: if there is no model, or if it is not an HCAL model.
    """
    try:
        stored, _ = PreTrainedConfig.get_config_dict(name)
    except OSError as problem:
        raise ValueError(
            f"{name} is neither a folder with a saved model (its config.json) nor a model on the Hub that can be read: "
            f"{problem}"
        ) from problem
    if stored.get("model_type") != HcalConfig.model_type:
        raise ValueError(
            f"{name} is a model of type {stored.get('model_type')!r}, not an HCAL model: train one with hcal train."
        )
    return HcalConfig.from_pretrained(name)

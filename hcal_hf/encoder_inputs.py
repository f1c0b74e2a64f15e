"""Runs an encoder so that padding on either side gives the same states of tokens, and tells causal encoders from others."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

# Where encoders keep their table of absolute positions: BERT and its relatives, GPT-2, XLM, OpenAI GPT.
_POSITION_TABLES = ("embeddings.position_embeddings", "wpe", "position_embeddings", "positions_embed")


def run_encoder(encoder: Any, **inputs: Any) -> Any:
    """Runs an encoder on a batch, with positions that count tokens and skip padding.

    Many encoders count positions from the left edge of the batch, so that the states of a text would depend on the
    padding to its left.

    Args:
        encoder (`PreTrainedModel`): the encoder.
        inputs: its inputs. Those that are None are left out.

    Returns:
        The output of the encoder, with `last_hidden_state` `[B, S, hidden_size]`.
    """
    inputs = {name: value for name, value in inputs.items() if value is not None}
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == 2 and "position_ids" not in inputs:
        positions = token_positions(encoder, mask)
        if positions is not None:
            inputs["position_ids"] = positions
    return encoder(**inputs, return_dict=True)


def check_inputs(
    input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, pooled_states: torch.Tensor | None, size: int
) -> None:
    """Checks that a model gets one kind of input, of the right type. Does not wait for the device.

    Args:
        input_ids, inputs_embeds, pooled_states: the inputs of the model.
        size: the size of pooled states.

    Raises:
        ValueError: if it does not.
    """
    if pooled_states is not None and (input_ids is not None or inputs_embeds is not None):
        raise ValueError("Pass either pooled_states or the encoder's inputs (input_ids or inputs_embeds), not both.")
    if pooled_states is not None and (pooled_states.dim() != 2 or pooled_states.shape[1] != size):
        raise ValueError(
            f"pooled_states must have the shape [documents, {size}], got {list(pooled_states.shape)}: use the features of "
            "this model's encoder."
        )
    if pooled_states is None and (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass one of input_ids, inputs_embeds and pooled_states.")
    if input_ids is not None and (input_ids.dim() != 2 or input_ids.is_floating_point()):
        raise ValueError(
            f"input_ids must be whole numbers of the shape [documents, tokens], got {input_ids.dtype} of the shape "
            f"{list(input_ids.shape)}."
        )


def token_positions(encoder: Any, attention_mask: torch.Tensor) -> torch.Tensor | None:
    """Returns the position [B, S] of each token in an encoder's table of positions, or None for encoders without a table.

    Args:
        encoder (`PreTrainedModel`): the encoder.
        attention_mask (`torch.Tensor` of shape `[B, S]`): 1 for tokens, 0 for padding.
    """
    table = position_table(encoder)
    if table is None or "position_ids" not in inspect.signature(encoder.forward).parameters:
        return None
    mask = (attention_mask > 0).long()
    counts = mask.cumsum(dim=1)
    if table.padding_idx is not None:
        return counts * mask + table.padding_idx  # RoBERTa and its relatives have a position for padding
    counts = (counts - 1).clamp(min=0)
    stored = getattr(getattr(encoder, "embeddings", None), "position_ids", None)
    return counts if stored is None else stored[0][counts]


def position_table(encoder: Any) -> Any:
    """Returns the `nn.Embedding` of an encoder's absolute positions, or None if it has none."""
    for name in _POSITION_TABLES:
        module = encoder
        for step in name.split("."):
            module = getattr(module, step, None)
        if isinstance(module, nn.Embedding):
            return module
    return None


def max_positions(encoder: Any, encoder_config: Any) -> int | None:
    """Returns the largest number of tokens that an encoder has positions for, or None without such a limit."""
    limit: int | None = getattr(encoder_config, "max_position_embeddings", None)
    table = position_table(encoder)
    if limit and table is not None and table.padding_idx is not None:
        limit -= table.padding_idx + 1  # RoBERTa starts to count positions there
    return limit


def is_causal(encoder: nn.Module, model_type: str) -> bool:
    """Returns whether each state of an encoder depends only on the tokens up to it, as in decoder-only models.

    Args:
        encoder (`PreTrainedModel`): the encoder. Its attention modules say whether they are causal.
        model_type (`str`): decides for encoders without such modules, such as Mamba and BLOOM.
    """
    flags = [module.is_causal for module in encoder.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    if flags:
        return any(flags)
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


__all__ = ["check_inputs", "is_causal", "max_positions", "position_table", "run_encoder", "token_positions"]

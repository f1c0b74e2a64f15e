"""Checks the token columns of encoded rows against an encoder."""

from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from transformers.utils import logging

from .label_checks import is_list

logger = logging.get_logger(__name__)


def check_tokens(dataset: Dataset, vocabulary: int, max_tokens: int | None, window_length: int | None = None) -> None:
    """Checks that rows have token ids that the encoder has embeddings and positions for.

    Rows of `pooled_states` need no tokens.

    Args:
        dataset: a table in memory.
        vocabulary: the number of tokens that the encoder has embeddings for.
        max_tokens: the largest number of tokens of a text that the model reads; None without a limit.
        window_length: the largest number of tokens of a window, for a model with windows. A warning is logged if no text is
            longer.

    Raises:
        ValueError: if there are no token ids, if one is outside the vocabulary, or if a row is too long.
    """
    names = dataset.column_names
    if not len(dataset) or {"pooled_states", "inputs_embeds"} & set(names):
        return
    if "input_ids" not in names:
        texts = [name for name in names if isinstance(dataset[0][name], str)]
        seen = f", but texts in {texts[0]!r}" if texts else f", only {sorted(names)}"
        raise ValueError(f"The rows have no input_ids{seen}: encode the table with encode_dataset.")
    column: Any = dataset.select_columns("input_ids").with_format("arrow")[:]["input_ids"].combine_chunks()
    if not is_list(column.type):
        raise ValueError(f"input_ids must be lists of token ids, but row 0 has {dataset[0]['input_ids']!r}.")
    limits = pc.min_max(column.flatten()).as_py()
    for token in (limits["min"], limits["max"]):
        if token is not None and not 0 <= token < vocabulary:
            raise ValueError(
                f"The rows have the token {token}, which is outside the vocabulary of the encoder (0 to {vocabulary - 1}): "
                "encode the table with the tokenizer of the encoder."
            )
    longest = pc.max(column.value_lengths()).as_py()
    if max_tokens is not None and longest is not None and longest > max_tokens:
        reads = "the encoder has positions for" if window_length is None else "the windows of the model hold"
        raise ValueError(
            f"A row has {longest:,} tokens, and {reads} at most {max_tokens:,}: encode the table with "
            f"max_length={max_tokens}."
        )
    if window_length is not None and longest is not None and longest <= window_length < (max_tokens or 0):
        logger.warning(
            f"The model reads texts in windows of {window_length:,} tokens, and no row has more than {longest:,}: if texts "
            f"are longer, encode the table with max_length=model.max_tokens ({max_tokens:,})."
        )

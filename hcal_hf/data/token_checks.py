"""Checks the token columns of encoded rows against an encoder."""

from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from .label_checks import is_list


def check_tokens(dataset: Dataset, vocabulary: int, max_tokens: int | None) -> None:
    """Checks that rows have token ids that the encoder has embeddings and positions for.

    Rows of `pooled_states` need no tokens.

    Args:
        dataset: a table in memory.
        vocabulary: the number of tokens that the encoder has embeddings for.
        max_tokens: the number of positions of the encoder; None without a limit.

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
        raise ValueError(
            f"A row has {longest:,} tokens, and the encoder has positions for at most {max_tokens:,}: encode the table "
            f"with max_length={max_tokens}."
        )

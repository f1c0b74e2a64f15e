"""Checks a tokenizer and token ids against the encoder of a model, and finds the longest text that it can read."""

import os
import threading
from typing import Any

from transformers.utils import logging

from .integrity import check_vocabulary

logger = logging.get_logger(__name__)

# A fast tokenizer stores truncation and padding before it reads a text. Without a lock, a thread would get the maximum
# length that another thread has just set.
_TOKENIZING = threading.Lock()


def _renew_lock() -> None:
    global _TOKENIZING
    _TOKENIZING = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)  # another thread of the parent may have held it

# A larger `model_max_length` means that the tokenizer does not store the limit.
NO_LIMIT = 10**9


def token_limit(model: Any, tokenizer: Any, max_length: int | None = None) -> int | None:
    """Returns the maximum number of tokens of a text, or None without a limit.

    It is `max_length`, or by default the limit that the tokenizer stores, but never more than the encoder has positions. A
    warning is logged if `max_length` is lowered. For a model with windows, the default is the number of tokens that they
    hold, and never more, because the tokenizer stores the limit of the encoder.

    Args:
        model ([`HcalForSequenceClassification`]): the model.
        tokenizer: its tokenizer.
        max_length (`int`, *optional*): the limit that a user has set.

    Raises:
        ValueError: if `max_length` is not a whole number of at least 1.
    """
    if max_length is not None:
        check_max_length(max_length)
        if model.max_tokens is not None and max_length > model.max_tokens:
            reads = "encoder can read" if model.windows is None else "windows hold"
            logger.warning(
                f"max_length={max_length:,} is more than the {reads}: "
                f"texts are truncated to {model.max_tokens:,} tokens."
            )
    elif model.windows is None and tokenizer.model_max_length <= NO_LIMIT:
        max_length = tokenizer.model_max_length
    limits = [limit for limit in (max_length, model.max_tokens) if limit is not None]
    return min(limits, default=None)


def tokenize(tokenizer: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a tokenizer. Threads that share it wait for each other, so that each gets its own options."""
    with _TOKENIZING:
        return tokenizer(*args, **kwargs)


def check_max_length(max_length: Any) -> None:
    """Checks a maximum number of tokens.

    Raises:
        ValueError: if it is not a whole number from 1 to 10^9.
    """
    is_whole = isinstance(max_length, int) and not isinstance(max_length, bool)
    if not is_whole or not 1 <= max_length <= NO_LIMIT:
        at_most = f" and at most {NO_LIMIT:,}" if is_whole and max_length > NO_LIMIT else ""
        raise ValueError(f"max_length must be a whole number of at least 1{at_most}, got {max_length!r}.")


def check_characters(text: Any) -> None:
    """Checks that a tokenizer can read a text.

    Raises:
        ValueError: if it is no text, or has half characters (surrogates), which are not Unicode.
    """
    if not isinstance(text, str):
        raise ValueError(f"A text must be a string, got {text!r} of type {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"The text {text!r:.80} has half characters that are not Unicode: read it with its own encoding."
        ) from None


def check_tokenizer(model: Any, tokenizer: Any) -> None:
    """Checks that a tokenizer is the one of the model, and that the encoder has an embedding for each of its tokens.

    Raises:
        ValueError: if the tokenizer has more tokens, or other ones than in training ([`check_vocabulary`]).
    """
    number = model.vocabulary_size
    if tokenizer is not None and len(tokenizer) > number:
        raise ValueError(
            f"The tokenizer has {len(tokenizer):,} tokens, but the encoder has embeddings for {number:,}: use the "
            "tokenizer that was saved with the model, or call model.resize_token_embeddings(len(tokenizer))."
        )
    check_vocabulary(model.config, tokenizer)


__all__ = ["NO_LIMIT", "check_characters", "check_max_length", "check_tokenizer", "token_limit", "tokenize"]

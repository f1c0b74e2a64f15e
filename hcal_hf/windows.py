"""Reads texts that are longer than the encoder allows in overlapping windows, and pools the windows to one vector."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .pooling import stored_length
from .token_limits import NO_LIMIT

# The number of windows by default, if there are windows.
MAX_WINDOWS = 4
# By default, neighbouring windows share this part of their tokens.
_OVERLAP = 8


@dataclass(frozen=True)
class WindowInputs:
    """Holds the W windows of B texts as inputs of an encoder.

    Attributes:
        inputs (`dict`): tensors `[W, S]` by name, padded on the right.
        documents (`torch.Tensor` of shape `[W]`, int64): the text of each window, ascending.
        lengths (`torch.Tensor` of shape `[W]`, int64): the number of tokens of each window, without padding.
    """

    inputs: dict[str, torch.Tensor]
    documents: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Windows:
    """Describes the windows of a model.

    A window repeats the first `before` and the last `after` tokens of the text, which are its special tokens and the
    `text_prefix`. Between them it has up to `length - before - after` other tokens, of which the first `overlap` are also
    the last of the window before. A text of up to `length` tokens is one window, which is the text itself.

    Attributes:
        length: the largest number of tokens of a window.
        overlap: the number of tokens that neighbouring windows share.
        maximum: the largest number of windows of a text.
        before, after: the numbers of tokens that each window repeats.
    """

    length: int
    overlap: int
    maximum: int
    before: int
    after: int

    @classmethod
    def from_config(cls, config: Any) -> "Windows | None":
        """Returns the windows of an [`HcalConfig`], or None for a model without windows."""
        if config.window_length is None:
            return None
        return cls(config.window_length, config.window_overlap, config.max_windows, *config.window_affixes)

    def check(self) -> None:
        """Checks that the numbers fit together.

        Raises:
            ValueError: for a number out of range, or windows without room for text.
        """
        if self.maximum < 1:
            raise ValueError(
                f"max_windows must be at least 1, got {self.maximum}: leave it and window_length out for no windows."
            )
        affixes = self.before + self.after
        room = self.length - affixes
        if room < 1:
            raise ValueError(
                f"window_length={self.length} has no room for text, because each window has {affixes} special tokens and "
                f"tokens of text_prefix: set window_length to {affixes + 32} or more."
            )
        if not 0 <= self.overlap < room:
            raise ValueError(
                f"window_overlap must be from 0 to {room - 1}, below the {room} tokens of text in a window of "
                f"{self.length}, got {self.overlap}: leave it out for {room // _OVERLAP}."
            )

    @property
    def step(self) -> int:
        """The number of tokens from the start of a window to the start of the next."""
        return self.length - self.before - self.after - self.overlap

    @property
    def capacity(self) -> int:
        """The largest number of tokens of a text that all windows together hold, `before` and `after` counted once."""
        return self.length + (self.maximum - 1) * self.step

    def count(self, lengths: Any) -> Any:
        """Returns the number of windows of texts with so many tokens, for an int64 tensor or NumPy array."""
        return (1 + (lengths - self.length + self.step - 1) // self.step).clip(1, self.maximum)

    def split(self, inputs: Mapping[str, torch.Tensor]) -> WindowInputs:
        """Splits B texts into their windows. Tokens that no window holds are left out.

        Args:
            inputs: `input_ids` `[B, T]`, and optionally `attention_mask` and other tensors of one number per token. The
                tokens of a text must be consecutive. Padding may be on either side.
        """
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else (mask > 0).long()
        starts, totals = mask.argmax(dim=1), mask.sum(dim=1)
        is_window = torch.arange(self.maximum, device=ids.device) < self.count(totals)[:, None]
        documents, numbers = is_window.nonzero().unbind(1)
        offsets = numbers * self.step
        totals, starts = totals[documents], starts[documents]
        lengths = (totals - offsets).clamp(max=self.length)
        # torch.export would take a slice for a promise that all texts are longer.
        columns = torch.arange(torch.sym_min(ids.shape[1], self.length), device=ids.device)[None]
        last = lengths[:, None] - columns
        # The first tokens of a window are those of the text, the last ones too, and those between follow the offset.
        source = torch.where(columns < self.before, columns, columns + offsets[:, None])
        source = torch.where(last <= self.after, totals[:, None] - last, source)
        is_token = last > 0
        source = torch.where(is_token, starts[:, None] + source, starts[:, None]).clamp(max=ids.shape[1] - 1)
        windows = {"attention_mask": is_token.to(inputs.get("attention_mask", ids).dtype)}
        for name, values in inputs.items():
            if name != "attention_mask":
                windows[name] = values[documents[:, None], source] * is_token.to(values.dtype)
        return WindowInputs({name: windows[name] for name in {**inputs, "attention_mask": 0}}, documents, lengths)


class WindowAttention(nn.Module):
    """Scores the windows of a text by a learned query, which starts at 0.

    Args:
        size (`int`): the size of the pooled states of a window.

    Attributes:
        query (`torch.Tensor` of shape `[size]`).
    """

    def __init__(self, size: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(size))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Computes the scores [W] of windows [W, size]."""
        return pooled.to(self.query) @ self.query / len(self.query) ** 0.5


def pool_windows(
    pooled: torch.Tensor,
    windows: WindowInputs,
    documents: int,
    pooling: str = "mean",
    scores: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pools the windows of B texts to document vectors [B, size].

    Args:
        pooled (`torch.Tensor` of shape `[W, size]`): the pooled states of the windows.
        windows: the windows.
        documents: B.
        pooling: that of the tokens of a window. With `"max"`, the result is the largest value of each number over all
            windows. Otherwise it is the mean of the windows, weighted by their numbers of tokens, in at least float32. For
            `"mean"`, that is the mean over the tokens of all windows, in which tokens that two windows share count twice.
        scores (`torch.Tensor` of shape `[W]`, *optional*): multiplies the weight of each window by exp(score).
    """
    owners = windows.documents
    if pooling == "max" and scores is None:
        lowest = pooled.new_full((documents, pooled.shape[1]), torch.finfo(pooled.dtype).min)
        return lowest.scatter_reduce(0, owners[:, None].expand_as(pooled), pooled, reduce="amax")
    dtype = torch.promote_types(pooled.dtype, torch.float32)
    weights = windows.lengths.to(dtype)
    if scores is not None:
        scores = scores.to(dtype)
        lowest = scores.new_full((documents,), torch.finfo(dtype).min)
        highest = lowest.scatter_reduce(0, owners, scores.detach(), reduce="amax")
        weights = weights * (scores - highest[owners]).exp()
    # Normalised before the sum, so that the only window of a text has the weight 1 exactly.
    weights = weights / weights.new_zeros(documents).index_add(0, owners, weights)[owners]
    sums = pooled.new_zeros(documents, pooled.shape[1], dtype=dtype)
    return sums.index_add(0, owners, weights[:, None] * pooled.to(dtype)).to(pooled)


def count_affixes(tokenizer: Any, text_prefix: str = "") -> list[int]:
    """Counts the tokens with which every text starts and ends: special tokens, and those of `text_prefix`."""
    bare, word = (tokenizer(text)["input_ids"] for text in ("", "a"))
    before = _common_start(bare, word)
    after = len(bare) - before
    if text_prefix.strip():
        # Without white space at its end, which may belong to the first token of the text.
        prefix = tokenizer(text_prefix.rstrip())["input_ids"]
        before = _common_start(prefix[: len(prefix) - after], tokenizer(f"{text_prefix}a")["input_ids"])
    return [before, after]


def _common_start(first: list[int], second: list[int]) -> int:
    pairs = [a == b for a, b in zip(first, second)]
    return pairs.index(False) if False in pairs else len(pairs)


def window_fields(
    given: Mapping[str, Any], encoder: str | os.PathLike, files: dict[str, Any], tokenizer: Any, encoder_config: Any
) -> dict[str, Any]:
    """Completes the fields of [`HcalConfig`] about windows. Returns {} if none turns windows on.

    Args:
        given: fields of the configuration. `window_length` or `max_windows` turns windows on. The default of
            `window_length` is the length that the files of a SentenceTransformer or its tokenizer store, but not more than
            the encoder has positions.
        encoder, files: as for [`hcal_hf.pooling.stored_pooling`].
        tokenizer: the tokenizer of the encoder.
        encoder_config: the configuration of the encoder.

    Raises:
        ValueError: if there is no length to take as `window_length`.
    """
    length, maximum = given.get("window_length"), given.get("max_windows")
    if length is None and maximum is None:
        return {}
    if length is None:
        stored = tokenizer.model_max_length if tokenizer.model_max_length <= NO_LIMIT else None
        positions = getattr(encoder_config, "max_position_embeddings", None)
        limits = [limit for limit in (stored_length(encoder, files), stored, positions) if limit]
        if not limits:
            raise ValueError(
                f"max_windows={maximum} needs window_length, because neither the tokenizer nor the encoder has a limit: "
                "give window_length=512."
            )
        length = min(limits)
    affixes = given.get("window_affixes") or count_affixes(tokenizer, given.get("text_prefix") or "")
    fields = {"window_length": length, "max_windows": MAX_WINDOWS if maximum is None else maximum}
    return {**fields, "window_affixes": affixes}


def default_overlap(length: int, affixes: list[int]) -> int:
    """Returns an eighth of the tokens of a window, without those that all windows repeat."""
    return max(length - sum(affixes), 0) // _OVERLAP


def check_windows(config: Any) -> None:
    """Checks the fields of an [`HcalConfig`] about windows.

    Raises:
        ValueError: for a number out of range, or an option that needs windows or excludes them.
    """
    length, overlap, maximum, affixes = (
        getattr(config, name) for name in ("window_length", "window_overlap", "max_windows", "window_affixes")
    )
    if length is None:
        if maximum is not None or overlap is not None or config.window_pooling != "mean" or any(affixes):
            raise ValueError(
                f"max_windows={maximum}, window_overlap={overlap}, window_pooling={config.window_pooling!r} and "
                f"window_affixes={affixes} need window_length: give it, or leave them out. from_encoder chooses it if "
                "it gets max_windows."
            )
        return
    if len(affixes) != 2 or min(affixes) < 0:
        raise ValueError(
            f"window_affixes must be two numbers of tokens from 0, at the start and the end of a window, got {affixes}: "
            "from_encoder counts them."
        )
    Windows(length, overlap, maximum, *affixes).check()
    if config.contrast == "hjcl" and config.joint_contrast.needs_tokens:
        raise ValueError(
            f'contrast="hjcl" compares labels with the tokens of a text, which window_length={length} spreads over '
            "windows: leave one of them out."
        )


__all__ = [
    "MAX_WINDOWS",
    "WindowAttention",
    "WindowInputs",
    "Windows",
    "check_windows",
    "count_affixes",
    "default_overlap",
    "pool_windows",
    "window_fields",
]

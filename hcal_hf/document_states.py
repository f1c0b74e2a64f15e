"""Computes the vectors of documents from their tokens: the encoder, the pooling, windows and lexical features."""

from typing import Any

import torch

from .encoder_inputs import max_positions, run_encoder
from .pooling import pool_states
from .windows import WindowAttention, WindowInputs, Windows, pool_windows

# Without gradients, windows of about so many tokens pass through the encoder at a time, on a CPU and on an accelerator. So
# the memory does not grow with the texts, and windows of similar length share a chunk.
_CPU_TOKENS, _TOKENS = 2048, 16384


class DocumentStatesMixin:
    """Adds to [`HcalForSequenceClassification`] the way from the tokens of documents to their vectors."""

    config: Any
    encoder: Any
    lexical: Any
    window_attention: WindowAttention | None
    training: bool

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens that the encoder has embeddings for."""
        embeddings: Any = self.encoder.get_input_embeddings()
        return int(embeddings.num_embeddings)

    @property
    def max_tokens(self) -> int | None:
        """The largest number of tokens of a text that the model reads, or None without such a limit.

        It is the number that the windows hold together, or for a model without windows the number of positions of the
        encoder.
        """
        return self.max_positions if self.windows is None else self.windows.capacity

    @property
    def max_positions(self) -> int | None:
        """The largest number of tokens that the encoder has positions for, or None without such a limit."""
        return max_positions(self.encoder, self.config.encoder_config)

    @property
    def windows(self) -> Windows | None:
        """The windows in which texts are read, or None for a model without windows."""
        return Windows.from_config(self.config)

    def check_window_length(self) -> None:
        """Checks that the encoder has positions for a window.

        Raises:
            ValueError: if it has not.
        """
        length, limit = self.config.window_length, self.max_positions
        if length is not None and limit is not None and length > limit:
            raise ValueError(
                f"window_length={length:,} is more than the {limit:,} tokens that the encoder has positions for: give "
                f"window_length={limit} or less. max_windows sets how many windows of a text are read."
            )

    def encode_documents(self, inputs: dict[str, torch.Tensor], **options: Any) -> tuple[Any, torch.Tensor]:
        """Computes the vectors of B documents from the inputs of the encoder.

        Texts that are longer than `config.window_length` are read in windows ([`hcal_hf.windows.Windows`]).

        Args:
            inputs: `input_ids` `[B, T]` or `inputs_embeds`, and `attention_mask` and other tensors of the encoder.
            options: further arguments of the encoder.

        Returns:
            the output of the encoder, or None if it read windows, and the vectors `[B, hidden_size]`, followed by lexical
            features if there are any.

        Raises:
            ValueError: for windows of `inputs_embeds`, with `position_ids`, or with hidden states or attentions.
        """
        ids, mask, windows = inputs.get("input_ids"), inputs.get("attention_mask"), self.windows
        embedded = inputs.get("inputs_embeds")
        width = (embedded if ids is None else ids).shape[1]  # type: ignore[union-attr]
        shows_states = [name for name in ("output_hidden_states", "output_attentions") if options.get(name)]
        cannot_split = ids is None or "position_ids" in inputs or shows_states
        # Batches of short texts are windows too, so that positions do not depend on padding, and because DDP needs a
        # gradient of the attention.
        if windows is None or (width <= windows.length and cannot_split):
            outputs = run_encoder(self.encoder, **inputs, **options)
            return outputs, self.document_states(outputs.last_hidden_state, ids, mask)
        if ids is None or "position_ids" in inputs:
            given = "inputs_embeds" if ids is None else "position_ids"
            raise ValueError(
                f"Texts of {width:,} tokens are read in windows of {windows.length:,}, which needs input_ids alone: leave "
                f"{given} out, or give at most {windows.length:,} tokens."
            )
        if shows_states:
            raise ValueError(
                f"{shows_states[0]} has no meaning for texts of several windows: leave it out, or call "
                "model.encoder with one window."
            )
        batch = windows.split(inputs)
        pooled = self._pool_each_window(
            batch, options, in_chunks=width > windows.length and not torch.is_grad_enabled()
        )
        scores = None if self.window_attention is None else self.window_attention(pooled)
        documents = pool_windows(pooled, batch, len(ids), self.config.pooling, scores)
        return None, documents if self.lexical is None else self.lexical.append(documents, ids, mask)

    def _pool_each_window(self, batch: WindowInputs, options: dict[str, Any], in_chunks: bool = True) -> torch.Tensor:
        """Computes the pooled states [W, hidden_size] of windows, all at once or in chunks of similar length."""
        if not in_chunks:
            states = run_encoder(self.encoder, **batch.inputs, **options).last_hidden_state
            return self.pool(states, batch.inputs["attention_mask"])
        tokens = _CPU_TOKENS if batch.lengths.device.type == "cpu" else _TOKENS
        order = torch.argsort(batch.lengths, descending=True, stable=True)
        widths, parts, start = batch.lengths[order].tolist(), [], 0
        while start < len(widths):
            width = widths[start]
            rows = order[start : start + max(tokens // width, 1)]
            start += len(rows)
            inputs = {name: values[rows, :width] for name, values in batch.inputs.items()}
            states = run_encoder(self.encoder, **inputs, **options).last_hidden_state
            parts.append(self.pool(states, inputs["attention_mask"]))
        pooled = torch.cat(parts)
        return torch.empty_like(pooled).index_copy_(0, order, pooled)

    def document_states(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pools token states to document vectors [B, hidden_size], followed by the lexical features if there are any."""
        pooled = self.pool(hidden_states, attention_mask)
        return pooled if self.lexical is None else self.lexical.append(pooled, input_ids, attention_mask)

    def pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Pools token states [B, S, hidden_size] to document vectors [B, hidden_size] ([`hcal_hf.pooling.pool_states`])."""
        return pool_states(hidden_states, attention_mask, self.config.pooling)


__all__ = ["DocumentStatesMixin"]

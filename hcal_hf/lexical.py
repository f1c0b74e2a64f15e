"""Computes lexical features of documents: TF-IDF over the tokens of the encoder and their pairs, reduced by an SVD."""

import torch
from torch import nn
from torch.nn import functional as F

# The number of keys of single tokens, which is more than vocabularies have, and of pairs of neighbouring tokens, which
# share keys at random.
TOKEN_KEYS, PAIR_KEYS = 2**18, 2**20
_FIRST, _SECOND = 1_000_003, 7_919
# Texts without a known term have no direction.
_SHORTEST = 1e-12


def pair_keys(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Computes the keys of pairs of neighbouring token ids, int64, from TOKEN_KEYS to TOKEN_KEYS + PAIR_KEYS - 1."""
    return TOKEN_KEYS + (first * _FIRST + second * _SECOND) % PAIR_KEYS


class LexicalFeatures(nn.Module):
    """Maps token ids to k lexical features, with fixed values that [`hcal_hf.add_lexical_features`] fits.

    A term is a token, or a pair of neighbouring tokens. A term t that occurs c times has the value (1 + ln c) idf_t, as in
    scikit-learn's `TfidfTransformer(sublinear_tf=True)`. The values of a text have the length 1, and are multiplied with
    `vectors`. The text is read where the encoder reads it, after truncation.

    Args:
        num_terms (`int`): R, the number of known terms.
        num_features (`int`): k.

    Attributes:
        index (`torch.Tensor` of shape `[TOKEN_KEYS + PAIR_KEYS]`, int32): the row of the term with each key; 0 for unknown
            terms.
        idf (`torch.Tensor` of shape `[R + 1]`): the idf of each term; 0 in row 0.
        vectors (`torch.Tensor` of shape `[R + 1, k]`): the right singular vectors of the SVD; 0 in row 0.
    """

    index: torch.Tensor
    idf: torch.Tensor
    vectors: torch.Tensor

    def __init__(self, num_terms: int, num_features: int):
        super().__init__()
        self.register_buffer("index", torch.zeros(TOKEN_KEYS + PAIR_KEYS, dtype=torch.int32))
        self.register_buffer("idf", torch.zeros(num_terms + 1))
        self.register_buffer("vectors", torch.zeros(num_terms + 1, num_features))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Computes the lexical features [B, k] of token ids [B, S], at least float32. Padding may be on either side."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        keys = torch.cat([input_ids % TOKEN_KEYS, pair_keys(input_ids[:, :-1], input_ids[:, 1:])], dim=1)
        present = torch.cat([mask, mask[:, :-1] * mask[:, 1:]], dim=1) > 0
        terms = torch.where(present, self.index[keys].long(), 0)
        vectors = self.vectors.to(torch.promote_types(self.vectors.dtype, torch.float32))
        idf = self.idf.to(vectors)[terms]
        occurrences = torch.ones_like(idf)
        # The number of a term's occurrences in the text, at each of them.
        totals = idf.new_zeros(idf.shape[0], self.idf.shape[0]).scatter_add(1, terms, occurrences)
        counts = totals.gather(1, terms)
        values = (1 + counts.log()) * idf
        # Each of the c occurrences contributes 1 / c of the term's value.
        length = (values.square() / counts).sum(dim=1, keepdim=True).clamp(min=_SHORTEST).sqrt()
        shares = values / counts / length
        # Without the rows of `vectors` in memory, which exporters and compilers cannot avoid.
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return torch.bmm(shares[:, None], vectors[terms])[:, 0]
        return F.embedding_bag(terms, vectors, mode="sum", per_sample_weights=shares)

    def append(
        self, pooled: torch.Tensor, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Joins the unit vectors of the encoder's pooled states [B, hidden_size] and of the lexical features.

        Returns:
            `torch.Tensor` of shape `[B, hidden_size + k]`, at least float32.

        Raises:
            ValueError: without `input_ids`.
        """
        if input_ids is None:
            raise ValueError(
                "The model has lexical features, which are computed from token ids: give input_ids instead of "
                "inputs_embeds, or pooled_states with the lexical features."
            )
        features = self(input_ids, attention_mask)
        return torch.cat([F.normalize(pooled.to(features), dim=-1), F.normalize(features, dim=-1)], dim=-1)


__all__ = ["PAIR_KEYS", "TOKEN_KEYS", "LexicalFeatures", "pair_keys"]

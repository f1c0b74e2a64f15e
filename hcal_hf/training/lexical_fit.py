"""Fits the lexical features of a model to the tokens of its training documents."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers.utils import logging

from ..lexical import LexicalFeatures, pair_keys
from ..modeling_hcal import HcalForSequenceClassification

logger = logging.get_logger(__name__)

# The default and the largest number of lexical features, and the largest number of terms: 512 features of 32,768 terms are
# 67 MB.
LEXICAL_FEATURES = 512
MOST_FEATURES = 2048
MOST_TERMS = 32_768
# The SVD is fitted to at most this many texts.
_MOST_TEXTS = 50_000
# A pair of tokens must occur in so many texts.
_PAIR_TEXTS = 2
_ITERATIONS, _EXTRA_VECTORS = 4, 16


def add_lexical_features(
    model: HcalForSequenceClassification,
    dataset: Dataset,
    tokenizer: Any,
    size: int = LEXICAL_FEATURES,
    *,
    max_terms: int = MOST_TERMS,
) -> None:
    """Adds lexical features to an untrained model, which it computes from token ids next to the encoder's states.

    The features are TF-IDF over the tokens of the documents and of the label texts, and over pairs of neighbouring tokens
    that occur in at least two texts, reduced by an SVD ([`hcal_hf.lexical.LexicalFeatures`]). They help where single words
    decide, as in short titles. They are part of the model: it is saved, loaded, used and exported like any other.

    Prototypes and projection are made again for the longer features, and label texts are embedded again. Call
    [`standardize_features`] with the new pooled states of the training documents afterwards.

    Args:
        model: an untrained model. It is changed.
        dataset: the training documents, made by [`encode_dataset`], with `input_ids`.
        tokenizer: the tokenizer of the encoder. Its special tokens are no terms.
        size: the number of lexical features, from 1 to 2,048. It is lowered to the rank of the TF-IDF values.
        max_terms: the largest number of terms. The most frequent ones are kept.

    Raises:
        ValueError: if the model has lexical features already or is trained, a size is out of range, or the documents
            have no tokens.
    """
    if model.lexical is not None:
        raise ValueError(
            f"The model has {model.config.lexical_features} lexical features already: build a new model to fit others."
        )
    if model.prototypes.is_anchored and model.prototypes.weight.any():
        raise ValueError(
            "The prototypes are trained or placed already (from_encoder starts with 0), and lexical features would reset "
            "them: add lexical features to a model from HcalForSequenceClassification.from_encoder, before any training."
        )
    if not 1 <= size <= MOST_FEATURES:
        raise ValueError(f"The number of lexical features must be from 1 to {MOST_FEATURES:,}, got {size}.")
    if max_terms < 2:
        raise ValueError(f"max_terms must be at least 2, got {max_terms}.")
    if "input_ids" not in dataset.column_names:
        raise ValueError(
            f"The documents have no input_ids, only {', '.join(dataset.column_names)}: give the table of encode_dataset, "
            "before hcal_hf.pooled_features."
        )
    texts = dataset.with_format(None)["input_ids"][:]
    if model.prototypes.is_anchored:
        label_texts = model.config.label_texts
        assert label_texts is not None
        prefixed = [model.config.text_prefix + text for text in label_texts]
        texts = [*texts, *tokenizer(prefixed, truncation=True)["input_ids"]]
    lexical = fit_lexical(texts, tokenizer.all_special_ids, size, max_terms)
    config = copy.deepcopy(model.config)
    config.lexical_terms, config.lexical_features = len(lexical.idf) - 1, lexical.vectors.shape[1]
    longer = type(model)(config, encoder=model.encoder).to(device=model.device)
    model.config, model.lexical = config, lexical.to(model.device)
    model.projection, model.prototypes = longer.projection, longer.prototypes
    if config.projection_dim is None:
        with torch.no_grad():
            model.projection.weight.copy_(torch.eye(len(model.projection.weight)))
    if model.prototypes.is_anchored:
        model.embed_labels(tokenizer)


def fit_lexical(
    texts: Sequence[Sequence[int]], special_ids: Sequence[int], size: int, max_terms: int = MOST_TERMS
) -> LexicalFeatures:
    """Fits lexical features to texts.

    Args:
        texts: the token ids of each text.
        special_ids: token ids that are no terms.
        size: the number of features, at most.
        max_terms: the number of terms, at most.

    Raises:
        ValueError: if the texts have fewer than two terms.
    """
    rows, keys = _terms_of(texts, special_ids)
    # Each (text, term) pair once, with its count.
    pairs, counts = np.unique(rows * (2**32) + keys, return_counts=True)
    rows, keys = np.divmod(pairs, 2**32)
    terms, columns, frequencies = np.unique(keys, return_inverse=True, return_counts=True)
    is_kept = (terms < pair_keys_start()) | (frequencies >= _PAIR_TEXTS)
    order = np.argsort(np.where(is_kept, -frequencies, 1), kind="stable")[: min(int(is_kept.sum()), max_terms)]
    if len(order) < 2:
        raise ValueError(f"The documents have {len(order)} terms: lexical features need at least 2.")
    position = np.full(len(terms), -1)
    position[order] = np.arange(len(order))
    idf = np.log((1 + len(texts)) / (1 + frequencies[order])) + 1
    columns = position[columns]
    rows, columns, counts = rows[columns >= 0], columns[columns >= 0], counts[columns >= 0]
    values = (1 + np.log(counts)) * idf[columns]
    values /= np.sqrt(np.bincount(rows, values**2, len(texts)))[rows]
    step = -(-len(texts) // _MOST_TEXTS)
    used = rows % step == 0
    indices = torch.from_numpy(np.stack([rows[used] // step, columns[used]]))
    shape = (-(-len(texts) // step), len(order))
    matrix = torch.sparse_coo_tensor(indices, torch.from_numpy(values[used]).float(), shape, check_invariants=True)
    matrix = matrix.coalesce()
    vectors = right_singular_vectors(matrix, size)
    lexical = LexicalFeatures(len(order), vectors.shape[1])
    lexical.index[torch.from_numpy(terms[order])] = torch.arange(1, len(order) + 1, dtype=torch.int32)
    lexical.idf[1:] = torch.from_numpy(idf)
    lexical.vectors[1:] = vectors
    logger.info(f"Lexical features: {len(order):,} terms of {len(texts):,} texts, {vectors.shape[1]:,} features.")
    return lexical


def pair_keys_start() -> int:
    """Returns the lowest key of a pair of tokens."""
    return int(pair_keys(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)))


def _terms_of(texts: Sequence[Sequence[int]], special_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the text and the key of each occurrence of a term."""
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    ids = np.fromiter((token for text in texts for token in text), dtype=np.int64, count=int(sizes.sum()))
    rows = np.repeat(np.arange(len(texts)), sizes)
    is_term = ~np.isin(ids, np.asarray(list(special_ids), dtype=np.int64))
    is_pair = is_term[:-1] & is_term[1:] & (rows[:-1] == rows[1:])
    pairs = pair_keys(torch.from_numpy(ids[:-1][is_pair]), torch.from_numpy(ids[1:][is_pair])).numpy()
    tokens = ids[is_term] % pair_keys_start()
    return np.concatenate([rows[is_term], rows[:-1][is_pair]]), np.concatenate([tokens, pairs])


def right_singular_vectors(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Computes the leading right singular vectors of a sparse matrix [N, R] by subspace iteration from a fixed seed.

    Returns:
        `torch.Tensor` of shape `[R, k]`. k is `size`, or the rank of the matrix if it is lower.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", 2011 (arXiv 0909.4061).
    """
    rows, columns = matrix.shape
    number = min(size + _EXTRA_VECTORS, rows, columns)
    transposed = matrix.t().coalesce()
    basis = torch.randn(columns, number, generator=torch.Generator().manual_seed(0))
    for _ in range(_ITERATIONS):
        basis = _orthonormal(torch.sparse.mm(transposed, torch.sparse.mm(matrix, basis)))
    products = torch.sparse.mm(matrix, basis).double()
    squares, rotation = torch.linalg.eigh(products.T @ products)
    squares, rotation = squares.flip(0), rotation.flip(1)
    rank = int((squares > 1e-6 * squares[0]).sum())
    return basis @ rotation[:, : min(size, rank)].to(basis)


def _orthonormal(vectors: torch.Tensor) -> torch.Tensor:
    """Returns an orthonormal basis of the columns [R, n], by the eigenvectors of their Gram matrix."""
    wide = vectors.double()
    squares, rotation = torch.linalg.eigh(wide.T @ wide)
    kept = squares > 1e-12 * squares[-1]
    return (wide @ (rotation[:, kept] / squares[kept].sqrt())).to(vectors)


__all__ = ["LEXICAL_FEATURES", "MOST_FEATURES", "add_lexical_features", "fit_lexical", "right_singular_vectors"]

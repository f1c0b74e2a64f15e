"""Explains a predicted label by the words of the text that make it more or less probable."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..token_limits import token_limit, tokenize

# A text is left out piece by piece, in at most so many pieces. Those of longer texts have several words.
MOST_PIECES = 32
# Variants of a text that are computed together.
_BATCH = 64


@dataclass(frozen=True)
class Explanation:
    """Holds the effect of each word of a text on the probability of a label.

    Attributes:
        label (`str`): the label, as in `config.labels`.
        probability (`float`): the probability of the label for the whole text.
        words (`list` of (`str`, `float`)): each piece of the text in its order, usually a word, and by how much it raises
            the log-odds of the label. Without the piece, they would be lower by this number. A piece with a negative
            number makes the label less probable.
    """

    label: str
    probability: float
    words: list[tuple[str, float]]

    def strongest(self, number: int = 3) -> list[tuple[str, float]]:
        """Returns up to `number` pieces that make the label more probable, the strongest first."""
        return sorted((word for word in self.words if word[1] > 0), key=lambda word: -word[1])[:number]


def explain(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[str | int] | None = None,
    *,
    max_length: int | None = None,
    most_pieces: int = MOST_PIECES,
    compute: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None = None,
) -> list[Explanation]:
    """Explains predictions by leaving out one word at a time.

    This needs one forward pass per word, with any encoder and head, and no gradients. (The gradient times the embedding
    would say little here: a layer normalisation follows the embeddings, and its result does not depend on their length.)
    Words that only matter together get small numbers each.

    Args:
        model ([`HcalForSequenceClassification`]): a trained model.
        tokenizer: its tokenizer, which must be a fast one.
        texts: the texts. Each must have at least one word.
        labels (*optional*): for each text the label to explain: its name, path or index. By default, the most probable
            label without children.
        max_length: the number of tokens after which texts are cut; the limit of the tokenizer by default.
        most_pieces: texts with more words are left out in this many pieces of several words.
        compute: computes logits [B, L] from the tokenizer's columns; the model by default.

    Returns:
        an explanation for each text.

    Raises:
        ValueError: for a slow tokenizer, a text without words, another number of labels than texts, or an unknown label.
    """
    explained = explain_if_possible(
        model, tokenizer, texts, labels, max_length=max_length, most_pieces=most_pieces, compute=compute
    )
    for text, explanation in zip(texts, explained):
        if explanation is None:
            raise ValueError(f"The text {text[:50]!r} has no words: give texts with words.")
    return [explanation for explanation in explained if explanation is not None]


def explain_if_possible(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[str | int] | None = None,
    *,
    max_length: int | None = None,
    most_pieces: int = MOST_PIECES,
    compute: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None = None,
) -> list[Explanation | None]:
    """Explains predictions like [`explain`], but returns None for texts without words instead of raising an error."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"Explanations need a fast tokenizer, which knows the words of its tokens, got {type(tokenizer).__name__}: "
            "load it with AutoTokenizer.from_pretrained."
        )
    if isinstance(texts, str) or (labels is not None and len(labels) != len(texts)):
        given = "one text" if isinstance(texts, str) else f"{len(texts)} texts and {len(labels or ())} labels"
        raise ValueError(f"Give a list of texts, and no labels or one for each text; got {given}.")
    if most_pieces < 1:
        raise ValueError(f"most_pieces must be at least 1, got {most_pieces}.")
    taxonomy = model.taxonomy
    nodes = None if labels is None else [_node(taxonomy, label) for label in labels]
    limit = token_limit(model, tokenizer, max_length)
    was_training = model.training
    model.eval()
    explained = [
        _explain(model, tokenizer, text, None if nodes is None else nodes[i], limit, most_pieces, compute)
        for i, text in enumerate(texts)
    ]
    model.train(was_training)
    return explained


def _node(taxonomy: Any, label: str | int) -> int:
    """Returns the index of a label that is given by its name, path or index."""
    if isinstance(label, str):
        return int(taxonomy.index(label))
    if not 0 <= label < taxonomy.num_labels:
        raise ValueError(f"A label must be a name or an index from 0 to {taxonomy.num_labels - 1:,}, got {label!r}.")
    return int(label)


@torch.no_grad()
def _explain(
    model: Any,
    tokenizer: Any,
    text: str,
    node: int | None,
    limit: int | None,
    most_pieces: int,
    compute: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None,
) -> Explanation | None:
    prefix = model.config.text_prefix
    how = {"truncation": limit is not None, "max_length": limit, "return_offsets_mapping": True}
    encoded = tokenize(tokenizer, prefix + text, **how)
    offsets, words = encoded.pop("offset_mapping"), encoded.word_ids()
    columns = {name: np.asarray(values) for name, values in encoded.items()}
    # Words of the prefix and special tokens stay.
    pieces = _pieces(words, offsets, len(prefix), most_pieces)
    if not pieces:
        return None
    kept = [np.ones(len(words), dtype=bool)]
    for tokens, _, _ in pieces:
        kept.append(np.ones(len(words), dtype=bool))
        kept[-1][tokens] = False
    logits = []
    for start in range(0, len(kept), _BATCH):
        rows = [
            {name: values[mask].tolist() for name, values in columns.items()} for mask in kept[start : start + _BATCH]
        ]
        batch = {name: value.to(model.device) for name, value in tokenizer.pad(rows, return_tensors="pt").items()}
        logits.append((model(**batch).logits if compute is None else compute(batch)).float().cpu())
    scores = torch.cat(logits)
    if node is None:
        ends = torch.from_numpy(np.flatnonzero(model.taxonomy.is_leaf))
        node = int(ends[scores[0, ends].argmax()])
    differences = (scores[0, node] - scores[1:, node]).tolist()
    return Explanation(
        model.config.labels[node],
        float(torch.sigmoid(scores[0, node])),
        [((prefix + text)[start:end], value) for (_, start, end), value in zip(pieces, differences)],
    )


def _pieces(
    words: Sequence[int | None], offsets: Sequence[tuple[int, int]], prefix: int, most: int
) -> list[tuple[list[int], int, int]]:
    """Groups the tokens of a text into at most `most` pieces of whole words.

    Returns:
        for each piece the numbers of its tokens, and where it starts and ends in the text.
    """
    by_word: dict[int, list[int]] = {}
    for token, word in enumerate(words):
        if word is not None and offsets[token][1] > max(offsets[token][0], prefix):
            by_word.setdefault(word, []).append(token)
    groups = np.array_split(np.arange(len(by_word)), min(most, len(by_word))) if by_word else []
    tokens_of = list(by_word.values())
    pieces = []
    for group in groups:
        tokens = [token for word in group for token in tokens_of[word]]
        start = max(min(offsets[token][0] for token in tokens), prefix)
        pieces.append((tokens, start, max(offsets[token][1] for token in tokens)))
    return pieces


__all__ = ["Explanation", "explain"]

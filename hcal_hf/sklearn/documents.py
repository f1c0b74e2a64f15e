"""Reads documents from scikit-learn's X: texts or features."""

from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.utils.validation import validate_data

from .bad_rows import bad_rows
from .label_arrays import SEQUENCE


def read_texts(X: Any) -> list[str]:
    """Reads N texts from a list, an array, a Series or a table of one column.

    Raises:
        ValueError: if X has another shape or type, has no rows, or holds texts that are empty or not strings (the message
            lists their indices).
    """
    if isinstance(X, str | bytes):
        raise ValueError(f"X must be a sequence of texts, got one text: give [{X!r}].")
    if issparse(X):
        raise ValueError("X is sparse, but an encoder reads texts: for features give encoder=None.")
    texts = X if isinstance(X, list | tuple) else np.asarray(X)
    if isinstance(texts, np.ndarray):
        texts = texts[:, 0] if texts.ndim == 2 and texts.shape[1] == 1 else texts
        if texts.ndim != 1 or texts.dtype.kind not in "OUT":
            raise ValueError(
                f"X must hold texts [N] or [N, 1], got {texts.dtype} of shape {texts.shape}: features need "
                "encoder=None."
            )
    texts = list(texts)
    if not texts:
        raise ValueError("Found array with 0 sample(s), while a minimum of 1 is required: X holds no texts.")
    bad = [
        (row, f"a text must be a string, got {text!r}" if not isinstance(text, str) else "the text is empty")
        for row, text in enumerate(texts)
        if not isinstance(text, str) or not text.strip()
    ]
    if bad:
        raise bad_rows("X", bad)
    return list(map(str, texts))


def read_features(estimator: Any, X: Any, reset: bool) -> np.ndarray:
    """Reads features [N, D].

    Args:
        estimator: the estimator that `validate_data` of scikit-learn checks for the number and names of features.
        X: the features.
        reset: whether this is a call from `fit`, which sets number and names.

    Raises:
        ValueError: if X holds texts, or is not a finite matrix.
        TypeError: if X is sparse.
    """
    if issparse(X):
        raise TypeError(
            "X is sparse, but dense numbers are needed: put sklearn.decomposition.TruncatedSVD(512) before the "
            "classifier in a Pipeline."
        )
    first = X[:1] if isinstance(X, SEQUENCE) else ()
    if len(first) and isinstance(first[0], str):
        raise ValueError(
            f"encoder=None takes numbers [N, D], got the text {first[0]!r}: give encoder, such as "
            '"sentence-transformers/all-MiniLM-L6-v2".'
        )
    options = {"ensure_min_samples": 2} if reset else {}
    return validate_data(estimator, X, reset=reset, dtype=[np.float64, np.float32], **options)

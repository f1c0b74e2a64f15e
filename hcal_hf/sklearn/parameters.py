"""Checks the parameters of the classifier."""

import numbers
from typing import Any

from ..configuration_hcal import HcalConfig
from ..taxonomy import Taxonomy
from ..training.class_weights import check_class_weight
from ..training.lexical_fit import MOST_FEATURES
from ..training.thresholds import METRICS

# Decoders of sets that can be written as paths. `raw` may contradict the hierarchy, and `risk` needs a calibration.
DECODERS = {"single_path": ("path", "top_down"), "multi_path": ("closure", "prune", "top_down", "expected_f1")}
# Fields of HcalConfig that are parameters of the classifier.
CONFIG_FIELDS = ("label_mode", "partial_paths", "head", "score_function", "prototype_anchor")


def check_parameters(classifier: Any) -> None:
    """Raises a ValueError for a parameter that `fit` cannot use."""
    if classifier.encoder is not None and not isinstance(classifier.encoder, str):
        raise ValueError(
            f"encoder must be a name on the Hub, a folder, or None for features, got {classifier.encoder!r}."
        )
    if classifier.encoder is None and not classifier.freeze_encoder:
        raise ValueError("freeze_encoder=False trains an encoder, and encoder=None has none: give one.")
    if classifier.encoder is None and classifier.prototype_anchor not in ("auto", None):
        raise ValueError(
            f"prototype_anchor={classifier.prototype_anchor!r} needs an encoder for the label text, and encoder=None "
            "has none: leave it out."
        )
    if classifier.taxonomy is not None and not isinstance(classifier.taxonomy, Taxonomy):
        raise ValueError(
            f"taxonomy must be a Taxonomy or None, got {type(classifier.taxonomy).__name__}: Taxonomy.from_paths makes one."
        )
    if classifier.label_mode not in ("auto", *DECODERS):
        raise ValueError(f'label_mode must be "auto", "single_path" or "multi_path", got {classifier.label_mode!r}.')
    is_number = isinstance(classifier.C, numbers.Real) and not isinstance(classifier.C, bool)
    if not (0 < float(classifier.C) < float("inf") if is_number else classifier.C == "auto"):
        raise ValueError(f'C must be "auto" or a number above 0, got {classifier.C!r}.')
    fields = set(classifier.model_kwargs or {})
    if own := fields & {"taxonomy", *CONFIG_FIELDS}:
        raise ValueError(f"model_kwargs holds {sorted(own)}, which are parameters: HcalClassifier({min(own)}=...).")
    if classifier.encoder is None and (unknown := fields - set(HcalConfig.__dataclass_fields__)):
        raise ValueError(f"model_kwargs holds {sorted(unknown)}, which are not fields of HcalConfig.")
    size = classifier.lexical_features
    if size is not None and (not isinstance(size, numbers.Integral) or not 1 <= int(size) <= MOST_FEATURES):
        raise ValueError(f"lexical_features must be None or a whole number from 1 to {MOST_FEATURES:,}, got {size!r}.")
    if size is not None and (classifier.encoder is None or not classifier.freeze_encoder):
        raise ValueError(
            "lexical_features need a frozen encoder: give encoder and freeze_encoder=True, or leave it out."
        )
    check_class_weight(classifier.class_weight)
    if not 0 < classifier.validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie between 0 and 1, got {classifier.validation_fraction!r}.")
    if classifier.tune not in (None, *METRICS):
        raise ValueError(f"tune must be None or one of {', '.join(METRICS)}, got {classifier.tune!r}.")
    if not isinstance(classifier.batch_size, numbers.Integral) or classifier.batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {classifier.batch_size!r}.")


def check_decision(classifier: Any, label_mode: str, ndim: int) -> None:
    """Raises a ValueError if `decode` or `threshold` does not fit the label mode or the dimensions of y."""
    allowed = DECODERS[label_mode]
    if classifier.decode is not None and classifier.decode not in allowed:
        raise ValueError(f"decode must be one of {allowed} with {label_mode}, got {classifier.decode!r}.")
    if ndim > 1:
        return
    if label_mode == "multi_path":
        raise ValueError(
            "multi_path documents have any number of paths, but y is 1-d, one label per document: give y as [N, "
            'paths, depth] or a list of lists of paths, or label_mode="single_path".'
        )
    if classifier.threshold is not None:
        raise ValueError(
            "threshold can leave a document without a label, which a 1-d y has no place for: leave it out, or give y "
            "as [N, depth], one column per level."
        )

"""Builds models that read features instead of texts."""

from typing import Any

import torch
from transformers import BertConfig

from ..configuration_hcal import HcalConfig
from ..modeling_hcal import HcalForSequenceClassification
from ..taxonomy import Taxonomy

# A model on features has a projection matrix of this size squared.
MAX_FEATURES = 8192


def feature_model(
    taxonomy: Taxonomy, num_features: int, has_intercept: bool, fields: dict[str, Any]
) -> HcalForSequenceClassification:
    """Builds a model with a placeholder for the encoder, which reads features as pooled states.

    Args:
        taxonomy: the hierarchy.
        num_features: the number of features, without the intercept.
        has_intercept: whether an intercept follows the features.
        fields: fields of [`HcalConfig`].

    Raises:
        ValueError: if there are more than `MAX_FEATURES` features and no `projection_dim`.
    """
    size = num_features + has_intercept
    keeps_size = fields.get("projection_dim") is None
    if keeps_size and size > MAX_FEATURES:
        raise ValueError(
            f"X has {num_features} features, more than {MAX_FEATURES}: reduce them first, for example with "
            "sklearn.decomposition.TruncatedSVD(512) in a Pipeline."
        )
    sizes = {"vocab_size": 2, "max_position_embeddings": 1, "intermediate_size": 1, "type_vocab_size": 1}
    config = BertConfig(hidden_size=size, num_hidden_layers=0, num_attention_heads=1, **sizes)
    model = HcalForSequenceClassification(HcalConfig.from_taxonomy(taxonomy, config, **fields))
    with torch.no_grad():
        if keeps_size:  # each prototype has one number per feature
            model.projection.weight.copy_(torch.eye(size))
        if fields["score_function"] == "linear":  # L-BFGS starts from zero, without random numbers
            model.prototypes.weight.zero_()
    model.encoder.requires_grad_(False)
    return model

"""Centres and scales the features of a frozen encoder, folded into the projection of the model."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..modeling_hcal import HcalForSequenceClassification

# Features lie in a narrow cone if their mean cosine is above this.
NARROW_CONE = 0.5


def lies_in_narrow_cone(pooled_states: torch.Tensor) -> bool:
    """Returns whether the mean cosine of pairs of documents is above 0.5, as with E5, so that features need centring.

    Args:
        pooled_states (`torch.Tensor` of shape `[N, hidden_size]`): the states of documents.
    """
    mean = F.normalize(pooled_states.float(), dim=-1).mean(dim=0)
    return float(mean.square().sum()) > NARROW_CONE


@torch.no_grad()
def standardize_features(model: HcalForSequenceClassification, pooled_states: Any) -> None:
    """Centres and scales the features: the projection maps the mean of the states to 0 and their mean square to 1.

    The encoder's states and the lexical features are scaled separately. The mean is folded into the bias of the projection
    and the scale into its weight, so the saved model holds both. Without it, regularisation acts on a part that all
    documents share.

    Args:
        model: an untrained model. Its projection is changed, for documents and label texts alike.
        pooled_states (`torch.Tensor` or array of shape `[N, hidden_size]`): the pooled states of the training documents.

    Raises:
        ValueError: for states of another size, or without documents.
    """
    projection, pooled_states = model.projection, torch.as_tensor(pooled_states)
    if pooled_states.ndim != 2 or not len(pooled_states) or pooled_states.shape[1] != projection.in_features:
        raise ValueError(
            f"pooled_states must have the shape [N, {projection.in_features}] with N of at least 1, got "
            f"{list(pooled_states.shape)}."
        )
    mean = pooled_states.double().mean(dim=0)
    squares = (pooled_states.double() - mean).square().mean(dim=0)
    lexical = model.config.lexical_features or 0
    parts = [part for part in squares.split([len(squares) - lexical, lexical]) if len(part)]
    scale = torch.cat([part.sum().clamp(min=1e-12).rsqrt().expand(len(part)) for part in parts])
    weight = projection.weight.double() * scale.to(projection.weight.device)
    bias = -(weight @ mean.to(weight))
    projection.weight.copy_(weight)
    if projection.bias is None:
        projection.bias = nn.Parameter(torch.empty_like(projection.weight[:, 0]))
        projection.bias.requires_grad_(projection.weight.requires_grad)
        model.config.projection_bias = True
    projection.bias.copy_(bias)


__all__ = ["lies_in_narrow_cone", "standardize_features"]

"""The asymmetric loss (ASL) and the focal loss in log space, and the maps from their outputs to probabilities.

Sources: Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021 (arXiv 2009.14119), and Lin et al.,
"Focal Loss for Dense Object Detection", ICCV 2017 (arXiv 1708.02002). The maps follow from the condition that the expected
gradient is 0. Charoenphakdee et al., "On Focal Loss for Class-Posterior Probability Estimation", CVPR 2021, derive that of
the focal loss.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .log_space import MAX_LOG_PROB, log1mexp

# The lowest probability that the map gives with a margin, below which all outputs would have probability 0.
FLOOR = 1e-7
# The limit of an adaptive gamma-.
HIGHEST_GAMMA = 8.0
# Below this log(1 - p), -log p is computed from its series, because log p has lost its digits.
_NEAR_ONE = -10.0
# Below this q, log(-log(1 - q)) is computed from its series.
_SMALL = 1e-4


class Shape(NamedTuple):
    """The shape of the loss.

    Attributes:
        gamma_negative (`float` or `torch.Tensor`): gamma- of the negatives, at least 0, or one value per label [L].
        gamma_positive (`float`): gamma+ of the positives, at least 0.
        margin (`float`): m, from 0 to below 1. Negatives with p <= m have loss 0.
        detach (`bool`): whether the factors (1 - p)^gamma+ and (p - m)^gamma- get no gradient.
    """

    gamma_negative: float | torch.Tensor
    gamma_positive: float
    margin: float
    detach: bool


def asymmetric_losses(
    log_p: torch.Tensor, log_not: torch.Tensor, is_positive: torch.Tensor, shape: Shape
) -> torch.Tensor:
    """Computes the asymmetric loss of each (document, label) pair.

    With p_m = max(p - m, 0), the loss is -(1 - p)^gamma+ log p for positives and -p_m^gamma- log(1 - p_m) for negatives
    (Ridnik et al., eq. 4 to 6). With gamma+ = gamma- = m = 0 it is the binary cross-entropy. No value is clamped, so the
    gradient does not vanish for confident errors.

    Args:
        log_p, log_not (`torch.Tensor` of shape `[..., L]`, at least float32): log p and log(1 - p).
        is_positive (`torch.Tensor` of shape `[..., L]`, bool): the labels.
        shape ([`Shape`]): the parameters.

    Returns:
        `torch.Tensor` of shape `[..., L]`, in nats.
    """
    positive = -_factor(log_not, shape.gamma_positive, shape.detach) * log_p
    if not shape.margin:
        negative = -_factor(log_p, shape.gamma_negative, shape.detach) * log_not
    else:
        excess, is_above = _excess(log_p, shape.margin)
        negative = -_factor(excess.log(), shape.gamma_negative, shape.detach) * torch.log1p(-excess)
        negative = torch.where(is_above, negative, 0.0)
    return torch.where(is_positive, positive, negative)


def calibrated_logits(log_p: torch.Tensor, log_not: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Maps the outputs of a model that the asymmetric loss trained to logits of true probabilities.

    The loss is not proper: where a label is true with probability pi, the expected gradient is 0 at another output p. With
    G+ = -dL+/dp and G- = dL-/dp, it is 0 where pi = G- / (G- + G+). The map from p to pi increases, and it is the identity
    if gamma+ = gamma- = m = 0. With a margin, pi is at least 1e-7. With a margin and gamma+ = 0, pi stays below 1: the
    loss drives p to 1 from that pi on.

    Args:
        log_p, log_not (`torch.Tensor` of shape `[..., L]`, at least float32): log p and log(1 - p).
        shape ([`Shape`]): the parameters. `detach` decides which gradient is 0.

    Returns:
        `torch.Tensor` of shape `[..., L]`: logit(pi) = log G- - log G+, finite.
    """
    log_pull = -_log_share(log_p, log_not, shape.gamma_positive, shape.detach)
    if not shape.margin:
        return -_log_share(log_not, log_p, shape.gamma_negative, shape.detach) - log_pull
    excess, is_above = _excess(log_p, shape.margin)
    log_excess, log_rest = excess.log(), torch.log1p(-excess)
    log_push = shape.gamma_negative * log_excess - log_rest
    if not shape.detach:
        is_small = excess < _SMALL
        series = log_excess + excess / 2
        log_log = torch.where(is_small, series, torch.log(-torch.where(is_small, -1.0, log_rest)))
        log_push = log_push + F.softplus(_log(shape.gamma_negative) + log_rest - log_excess + log_log)
    lowest = math.log(FLOOR) - math.log1p(-FLOOR)
    return torch.where(is_above, log_push - log_pull, lowest).clamp(min=lowest)


def focal_losses(log_p: torch.Tensor, gamma: float, detach: bool) -> torch.Tensor:
    """Computes the focal loss -(1 - p)^gamma log p of the true classes of a softmax (Lin et al., eq. 4).

    Args:
        log_p (`torch.Tensor` of any shape, at least float32): the log-probability of each true class.
        gamma (`float`): at least 0.
        detach (`bool`): whether the factor (1 - p)^gamma gets no gradient.

    Returns:
        `torch.Tensor` of the same shape, in nats.
    """
    return -_factor(log1mexp(log_p.clamp(max=MAX_LOG_PROB)), gamma, detach) * log_p


def log_shares(log_p: torch.Tensor, gamma: float, detach: bool) -> torch.Tensor:
    """Maps log-probabilities of a softmax that the focal loss trained to values whose softmax is calibrated.

    The expected gradient is 0 where the true probabilities are proportional to 1 / G+, with G+ = -dL/dp.

    Args:
        log_p (`torch.Tensor` of any shape, at least float32): log p of each class of the softmax.
        gamma, detach: those of [`focal_losses`].

    Returns:
        `torch.Tensor` of the same shape: -log G+, which increases with p.
    """
    log_p = log_p.clamp(max=MAX_LOG_PROB)
    return _log_share(log_p, log1mexp(log_p), gamma, detach)


def sums_by_label(log_p: torch.Tensor, is_positive: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Sums what [`moved_gamma`] needs over the documents.

    Args:
        log_p (`torch.Tensor` of shape `[B, L]`): log p.
        is_positive, counted (`torch.Tensor` of shape `[B, L]`): 1 for positives, and for pairs in the loss; else 0.

    Returns:
        `torch.Tensor` of shape `[4, L]`: the sum of p over positives and their number, the sum of 1 - p over negatives and
        their number.
    """
    p, negative = log_p.detach().exp(), counted - is_positive * counted
    positive = is_positive * counted
    return torch.stack([term.sum(dim=0) for term in (p * positive, positive, (1 - p) * negative, negative)])


def moved_gamma(gamma: torch.Tensor, sums: torch.Tensor, gap: float, rate: float, lowest: float) -> torch.Tensor:
    """Moves gamma- by rate * (gap - dp), where dp is the mean p of positives minus the mean 1 - p of negatives.

    A larger gamma- raises all p, so dp rises too (Ridnik et al., eq. 11; sign and rate are not in the release).

    Args:
        gamma (`torch.Tensor` of shape `[D]`): gamma- of each level.
        sums (`torch.Tensor` of shape `[4, D]`): the sums of [`sums_by_label`] over each level, all micro-batches of an
            optimiser step and all processes. A level without positives or without negatives keeps its gamma-.
        gap (`float`): the target of dp, between -1 and 1.
        rate (`float`): the change of gamma- per step and unit of dp.
        lowest (`float`): the lower limit, gamma+. The upper limit is 8.

    Returns:
        `torch.Tensor` of shape `[D]`.
    """
    positive, positives, negative, negatives = sums
    dp = positive / positives.clamp(min=1) - negative / negatives.clamp(min=1)
    moved = (gamma + (rate * (gap - dp)).to(gamma)).clamp(min=lowest, max=max(lowest, HIGHEST_GAMMA))
    return torch.where((positives > 0) & (negatives > 0), moved, gamma)


def _factor(log_base: torch.Tensor, gamma: float | torch.Tensor, detach: bool) -> torch.Tensor | float:
    """Computes base^gamma."""
    if not isinstance(gamma, torch.Tensor) and gamma == 0:
        return 1.0
    factor = torch.exp(gamma * log_base)
    return factor.detach() if detach else factor


def _excess(log_p: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes p - m, and whether it is above 0. Where it is not, p - m is replaced by a harmless value."""
    excess = log_p.exp() - margin
    is_above = excess > torch.finfo(excess.dtype).tiny
    return torch.where(is_above, excess, 0.5), is_above


def _log_share(log_p: torch.Tensor, log_not: torch.Tensor, gamma: float | torch.Tensor, detach: bool) -> torch.Tensor:
    """Computes -log G for G = (1 - p)^gamma / p - gamma (1 - p)^(gamma - 1) log p, or its first term with `detach`."""
    share = log_p - gamma * log_not
    if detach or (not isinstance(gamma, torch.Tensor) and gamma == 0):
        return share
    # log(-log p). With r = 1 - p it is log r + r / 2 + ... for small r.
    is_near_one = log_not < _NEAR_ONE
    series = log_not + log_not.exp() / 2
    log_log = torch.where(is_near_one, series, torch.log(-torch.where(is_near_one, -1.0, log_p)))
    return share - F.softplus(_log(gamma) + log_p - log_not + log_log)


def _log(gamma: float | torch.Tensor) -> float | torch.Tensor:
    """Computes log gamma. The logarithm of 0 is a number so low that its exponential is 0."""
    if isinstance(gamma, torch.Tensor):
        return gamma.clamp(min=1e-30).log()
    return math.log(max(gamma, 1e-30))

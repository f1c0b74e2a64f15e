"""Arithmetic on log-probabilities."""

import math

import torch

# The largest log p, so that logit(p) = log p - log(1 - p) is finite in float32.
MAX_LOG_PROB = -1e-7


def clamp_log_probs(log_probs: torch.Tensor) -> torch.Tensor:
    """Limits log-probabilities to at most -1e-7, so that their logits are finite."""
    return log_probs.clamp(max=MAX_LOG_PROB)


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Computes log(1 - exp(x)) for x < 0 without cancellation.

    Source: Maechler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    near_zero = x > -math.log(2)
    # The branch that is not selected gets a harmless value, because NaN in it would spoil the gradient.
    small = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, small, large)


def log_probs_to_logits(log_probs: torch.Tensor) -> torch.Tensor:
    """Computes logit(p) = log p - log(1 - p) from log-probabilities below 0 of any shape."""
    return log_probs - log1mexp(log_probs)


def tempered(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divides scores of any shape by T. Returns the same tensor if T is 1."""
    return scores if temperature == 1 else scores / temperature


def segment_logsumexp(values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
    """Computes the log-sum-exp over the rows of each segment.

    Args:
        values (`torch.Tensor` of shape `[n, B]`).
        segments (`torch.Tensor` of shape `[n]`, int64): the segment of each row. Every segment needs a row.

    Returns:
        `torch.Tensor` of shape `[num_segments, B]`.
    """
    columns = values.shape[1]  # len() would be a constant to torch.export
    top = values.new_full((num_segments, columns), -torch.inf)
    top = top.scatter_reduce(0, segments[:, None].expand(-1, columns), values.detach(), reduce="amax")
    shares = (values - top.index_select(0, segments)).exp()
    return top + values.new_zeros(top.shape).index_add(0, segments, shares).log()

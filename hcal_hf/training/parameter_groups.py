"""Gives the parts of a model, and the levels of its prototypes, learning rates of their own."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn


def split_by_part(
    groups: Iterable[dict[str, Any]], named_parameters: Iterable[tuple[str, nn.Parameter]], rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Splits an optimiser's parameter groups by part of the model, each with its learning rate.

    Args:
        groups: the optimiser's groups.
        named_parameters: the model's parameters.
        rates: the learning rates of `encoder`, `head` (with the projection) and `prototypes`.
    """
    part_of = {id(parameter): _part(name) for name, parameter in named_parameters}
    split_groups = []
    for group in groups:
        for part, rate in rates.items():
            parameters = [p for p in group["params"] if part_of.get(id(p), "encoder") == part]
            if parameters:
                split_groups.append({**group, "params": parameters, "lr": rate})
    return split_groups


def _part(name: str) -> str:
    name = name.removeprefix("module.")
    if name.startswith("prototypes."):
        return "prototypes"
    return "head" if name.startswith(("projection.", "head.")) else "encoder"


def scale_prototype_rows(
    optimizer: torch.optim.Optimizer, weight: nn.Parameter, depths: torch.Tensor, multipliers: Sequence[float]
) -> None:
    """Multiplies the learning rates of the prototypes, by level from the deepest one upwards.

    All levels share one parameter. With SGD and momentum, a factor on the gradient and the weight decay of a row equals a
    factor on its learning rate.

    Args:
        optimizer: an SGD optimiser with `weight` in one of its groups.
        weight (`nn.Parameter` of shape `[L, d]`): the prototypes.
        depths (`torch.Tensor` of shape `[L]`): the depth of each label.
        multipliers: the factors, from the deepest level upwards; the last one is repeated.
    """
    factors = torch.tensor(multipliers, dtype=weight.dtype, device=weight.device)
    levels_above_deepest = (depths.max() - depths).clamp(max=len(factors) - 1)
    rows = factors[levels_above_deepest][:, None]
    (group,) = (g for g in optimizer.param_groups if any(p is weight for p in g["params"]))
    decay, group["weight_decay"] = group["weight_decay"], 0.0

    def scale(*_: Any) -> None:
        if weight.grad is not None:
            weight.grad = rows * (weight.grad + decay * weight.detach())

    optimizer.register_step_pre_hook(scale)

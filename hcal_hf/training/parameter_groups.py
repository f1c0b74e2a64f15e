"""Gives the parts of a model, and the levels of its prototypes, learning rates of their own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

# The arguments that give parts of the model learning rates of their own.
_RATES = ("head_learning_rate", "prototype_learning_rate", "prototype_lr_multipliers")


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
    return "head" if name.startswith(("projection.", "head.", "window_attention.")) else "encoder"


def scale_prototype_rows(
    optimizer: torch.optim.Optimizer,
    get_weight: Callable[[], nn.Parameter],
    depths: torch.Tensor,
    multipliers: Sequence[float],
) -> None:
    """Multiplies the learning rates of the prototypes, by level from the deepest one upwards.

    All levels share one parameter. With SGD and momentum, a factor on the gradient and the weight decay of a row equals a
    factor on its learning rate.

    Args:
        optimizer: an SGD optimiser with the weight in one of its groups.
        get_weight: returns the prototypes, a parameter of shape `[L, d]`. FSDP replaces it after the optimiser was created,
            so it is looked up in each step.
        depths (`torch.Tensor` of shape `[L]`): the depth of each label.
        multipliers: the factors, from the deepest level upwards; the last one is repeated.

    Raises:
        ValueError: if the weight is not trained.
        RuntimeError: in a step in which the weight is not among the optimiser's parameters.
    """
    weight = get_weight()
    groups = [group for group in optimizer.param_groups if any(p is weight for p in group["params"])]
    if not groups:
        raise ValueError(
            "prototype_lr_multipliers are factors of learning rates, but the prototypes are frozen: leave them out, or "
            "train the prototypes (model.prototypes.requires_grad_(True))."
        )
    decay, groups[0]["weight_decay"] = groups[0]["weight_decay"], 0.0
    levels_above_deepest = (depths.max() - depths).clamp(max=len(multipliers) - 1)
    factors = torch.tensor(multipliers, dtype=weight.dtype, device=weight.device)[levels_above_deepest][:, None]
    rows: torch.Tensor | None = None

    def scale(*_: Any) -> None:
        nonlocal rows
        weight = get_weight()
        if not any(p is weight for group in optimizer.param_groups for p in group["params"]):
            raise RuntimeError(
                "prototype_lr_multipliers have no effect, because the prototypes are not among the optimiser's parameters."
            )
        if weight.grad is None:
            return
        if rows is None:
            rows = factors.to(weight.device)
            sharded: Any = weight
            if (mesh := getattr(sharded, "device_mesh", None)) is not None:  # by FSDP
                from torch.distributed.tensor import distribute_tensor

                rows = distribute_tensor(rows, mesh, sharded.placements)
        weight.grad = rows * (weight.grad + decay * weight.detach())

    optimizer.register_step_pre_hook(scale)


class ParameterGroupsMixin(_Trainer):
    """Adds to [`HcalTrainer`] learning rates for the parts of the model, and the weighter's own parameters."""

    args: Any
    loss_weighter: Any

    def _check_optimizer_options(self) -> None:
        """Refuses options that the optimiser or the sharding in use would drop.

        Raises:
            ValueError: if `optimizers` has an optimiser and the arguments have rates of parts of the model, or the weighter
                has parameters that it does not train; for FSDP 1, and for FSDP with parameters of a single number; for
                `prototype_lr_multipliers` under DeepSpeed and with another class of optimiser than SGD.
        """
        args, optimizer = self.args, self.optimizer
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version == 1:
            raise ValueError(
                "FSDP 1 hides the parts of the model, so that their learning rates would be lost: use FSDP 2, with "
                'fsdp_config={"version": 2} or fsdp_version: 2 in the file of accelerate.'
            )
        single = [name for name, parameter in self.unwrapped_model.named_parameters() if not parameter.ndim]
        if self.is_fsdp_enabled and single:
            raise ValueError(
                f"FSDP cannot shard parameters of a single number, and the model has {', '.join(single)}: use "
                'score_function="linear" and geometry="euclidean", or several processes without FSDP.'
            )
        if self.is_deepspeed_enabled and args.prototype_lr_multipliers is not None:
            raise ValueError(
                "prototype_lr_multipliers change the gradients of single labels, which DeepSpeed does not expose: use "
                "prototype_learning_rate, or another way to train on several devices."
            )
        other = None if self.optimizer_cls_and_kwargs is None else self.optimizer_cls_and_kwargs[0]
        if args.prototype_lr_multipliers is not None and other not in (None, torch.optim.SGD):
            raise ValueError(
                f"prototype_lr_multipliers need SGD, but optimizer_cls_and_kwargs has {other.__name__}: other optimisers "
                "rescale gradients, which cancels the factors. Use prototype_learning_rate instead."
            )
        if optimizer is None:
            return
        if given := [name for name in _RATES if getattr(args, name) is not None]:
            raise ValueError(
                f"optimizers=... has learning rates of its own, so it cannot be combined with {' and '.join(given)}: set "
                "the rates in the parameter groups of your optimizer, or leave optimizers out."
            )
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if any(id(parameter) not in trained for parameter in self.loss_weighter.parameters()):
            raise ValueError(
                f"{type(self.loss_weighter).__name__} has parameters that the optimizer of optimizers=... does not train. "
                "Build the weighter first (hcal_hf.build_weighter), give its parameters to the optimizer in a group "
                "without weight decay, and pass it as loss_weighter; or leave optimizers out."
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates the optimiser of transformers with a learning rate for each part of the model.

        The parts are the encoder, the head with the projection, the prototypes, and the weighter's own parameters.

        Raises:
            ValueError: if the weighter has parameters under FSDP, or if there are multipliers for frozen prototypes.
        """
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if not created:
            return optimizer
        args = self.args
        head_rate = args.learning_rate if args.head_learning_rate is None else args.head_learning_rate
        prototype_rate = head_rate if args.prototype_learning_rate is None else args.prototype_learning_rate
        named_parameters = (self.model if model is None else model).named_parameters()
        rates = {"encoder": args.learning_rate, "head": head_rate, "prototypes": prototype_rate}
        groups = split_by_part(optimizer.param_groups, named_parameters, rates)
        learned = list(self.loss_weighter.parameters())
        if learned and self.is_fsdp_enabled:
            raise ValueError(
                f"{type(self.loss_weighter).__name__} has its own parameters, which FSDP cannot shard with the model's: "
                "use another loss_weighting, or several processes without FSDP."
            )
        if learned:
            own_rate = self.loss_weighter.learning_rate
            own_rate = head_rate if own_rate is None else own_rate
            groups.append({**groups[0], "params": learned, "lr": own_rate, "weight_decay": 0.0})
        optimizer.param_groups = groups
        if args.prototype_lr_multipliers is not None:
            depths, get_weight = self.unwrapped_model.head.depths, lambda: self.unwrapped_model.prototypes.weight
            scale_prototype_rows(optimizer, get_weight, depths, args.prototype_lr_multipliers)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Leaves out what transformers leaves out, the head's scale and stop scores, and the radius of the documents."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.startswith("head.") and name != "prototypes.radius"]

    def _average_weighter_gradients(self) -> None:
        for parameter in self.loss_weighter.parameters():
            if parameter.grad is not None and self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

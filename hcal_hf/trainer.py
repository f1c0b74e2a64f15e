"""A Trainer that weighs the tasks of an HCAL model and logs each of them."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from .data import HcalDataCollator
from .evaluation import compute_metrics as default_compute_metrics
from .modeling_hcal import HcalForSequenceClassification, HcalOutput
from .training_args import HcalTrainingArguments
from .weighting import LossWeighter, build_weighter

logger = logging.get_logger(__name__)

WEIGHTER_NAME = "loss_weighter.safetensors"


class HcalTrainer(Trainer):
    """
    [`~transformers.Trainer`] for [`HcalForSequenceClassification`]: the loss is sum_k w_k L_k over the model's tasks, with
    weights from a [`LossWeighter`].

    What it adds:

    - Every logging step reports each task's mean loss and weight (`loss_level_0`, `weight_level_0`, ...).
    - Losses over documents are normalised over the whole accumulation window and all processes, so that
      batch 2 x 4 accumulation steps is batch 8, whatever levels the documents reach. Weighters that follow the current
      batch's losses (`per_batch`, such as `hcal`) weigh each micro-batch by its own losses instead.
    - In evaluation the loss is the model's own, the uniform mean over tasks: comparable between weighters.
    - Projection, head and prototypes have learning rates of their own ([`HcalTrainingArguments`]).
    - The weighter's state is saved with each checkpoint and restored on resuming.

    Args:
        model ([`HcalForSequenceClassification`]): the model.
        args ([`HcalTrainingArguments`]): the arguments.
        loss_weighter ([`LossWeighter`], *optional*): overrides `args.loss_weighting`.
        data_collator: [`HcalDataCollator`] by default.
        compute_metrics: F1s, hierarchical F1, accuracies and HVR by default ([`hcal_hf.evaluation.compute_metrics`]).
        kwargs: all other arguments of [`~transformers.Trainer`].

    Raises:
        TypeError: if the model or the arguments are of another class.
    """

    args: HcalTrainingArguments
    # compute_loss does its own scaling over the accumulation window.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: HcalForSequenceClassification | None = None,
        args: HcalTrainingArguments | None = None,
        data_collator: Callable | None = None,
        compute_metrics: Callable | None = None,
        loss_weighter: LossWeighter | None = None,
        **kwargs: Any,
    ):
        args = HcalTrainingArguments(output_dir="tmp_trainer") if args is None else args
        if not isinstance(args, HcalTrainingArguments):
            raise TypeError(
                f"HcalTrainer needs HcalTrainingArguments, got {type(args).__name__}: they take all the same arguments."
            )
        if model is None and kwargs.get("model_init") is not None:
            model = kwargs["model_init"]()
        if not isinstance(model, HcalForSequenceClassification):
            raise TypeError(
                f"HcalTrainer needs an HcalForSequenceClassification, got {type(model).__name__}: make one with "
                "HcalForSequenceClassification.from_encoder(encoder, taxonomy)."
            )
        config = model.config
        if data_collator is None:
            data_collator = HcalDataCollator(kwargs.get("processing_class"), model.taxonomy, config.label_mode)
        if compute_metrics is None:
            compute_metrics = partial(
                default_compute_metrics,
                taxonomy=model.taxonomy,
                label_mode=config.label_mode,
                partial_paths=config.partial_paths,
                head=config.head,
            )
        self.task_names = model.task_names
        weighter_kwargs: Any = args.loss_weighting_kwargs or {}
        self.loss_weighter = loss_weighter or build_weighter(
            args.loss_weighting, len(self.task_names), **weighter_kwargs
        )
        super().__init__(
            model=model, args=args, data_collator=data_collator, compute_metrics=compute_metrics, **kwargs
        )
        self.loss_weighter.to(self.args.device)
        self._document_tasks = torch.tensor(model.document_tasks, device=self.args.device)
        # One row a task: sum of losses times their counts, sum of counts, sum of weights times steps present, steps.
        self._logged = torch.zeros(4, len(self.task_names), dtype=torch.float64, device=self.args.device)
        self._window = torch.zeros(2, len(self.task_names), dtype=torch.float64, device=self.args.device)

    # ---- Loss ----

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """The denominators [T] of the document tasks over an accumulation window, summed over all processes."""
        if not batch_samples or any(batch.get("labels") is None for batch in batch_samples):
            return None
        model = self.accelerator.unwrap_model(self.model)
        counts = torch.stack([model.count_tasks(batch["labels"].to(device)) for batch in batch_samples]).sum(dim=0)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return counts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, HcalOutput]:
        """The weighted loss of a batch (training), or the model's own loss (evaluation).

        Args:
            num_items_in_batch (`torch.Tensor` of shape `[T]`, *optional*): denominators over the accumulation window.

        Raises:
            ValueError: if the batch has no labels.
        """
        outputs = model(**inputs)
        if outputs.task_losses is None:
            raise ValueError(
                f"The batch has no labels, only {sorted(inputs)}: encode the data set with encode_dataset, which makes a "
                '"labels" column.'
            )
        if not model.training:
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        losses, counts = self._over_replicas(outputs.task_losses, outputs.task_counts)
        present = counts > 0
        steps = self.current_gradient_accumulation_steps
        if self.loss_weighter.per_batch or num_items_in_batch is None:
            share = torch.full_like(losses, 1.0 / steps)
        else:
            # Sums over documents divided by the window's denominators; DDP's mean over processes is undone.
            total = num_items_in_batch
            present = torch.where(self._document_tasks, total > 0, present)
            exact = counts.to(losses) / total.clamp(min=1) * self.accelerator.num_processes
            share = torch.where(self._document_tasks, exact, 1.0 / steps)
        weights = self.loss_weighter(losses.detach(), present)
        loss = (weights * share * losses).sum()
        self._record(losses.detach(), counts, weights.detach(), present)
        return (loss, outputs) if return_outputs else loss

    def _over_replicas(self, losses: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Joins what torch.nn.DataParallel has laid end to end, [replicas * T], into [T]."""
        if len(losses) == len(self.task_names):
            return losses, counts
        losses, counts = losses.view(-1, len(self.task_names)), counts.view(-1, len(self.task_names))
        total = counts.sum(dim=0)
        return (losses * counts).sum(dim=0) / total.clamp(min=1), total

    def _record(
        self, losses: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor, present: torch.Tensor
    ) -> None:
        here = (counts > 0).double()
        self._window += torch.stack([losses.double() * counts, counts.double()])
        self._logged += torch.stack([losses.double() * counts, counts.double(), weights * here, here])

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            if type(self.loss_weighter).after_step is not LossWeighter.after_step:
                sums, counts = self.accelerator.reduce(self._window, reduction="sum")
                self.loss_weighter.after_step((sums / counts.clamp(min=1)).to(loss.dtype), counts > 0)
            self._window.zero_()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each task's mean loss and mean weight since the last log to the training logs."""
        if "loss" in logs and self._logged[3].any():
            logs = {**logs, **self._task_logs()}
        super().log(logs, start_time)

    def _task_logs(self) -> dict[str, float]:
        losses, counts, weights, steps = self.accelerator.reduce(self._logged, reduction="sum").cpu()
        self._logged.zero_()
        logs: dict[str, float] = {}
        for k, name in enumerate(self.task_names):
            if steps[k]:
                logs[f"loss_{name}"] = (losses[k] / counts[k]).item()
                logs[f"weight_{name}"] = (weights[k] / steps[k]).item()
        return logs

    # ---- Optimiser ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of transformers, its groups split by learning rate: encoder; projection and head; prototypes."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if not created:
            return optimizer
        named = dict((self.model if model is None else model).named_parameters())
        part_of = {id(parameter): _part(name) for name, parameter in named.items()}
        head_rate = self.args.head_learning_rate
        rates = {
            "encoder": self.args.learning_rate,
            "head": self.args.learning_rate if head_rate is None else head_rate,
        }
        prototype_rate = self.args.prototype_learning_rate
        rates["prototypes"] = rates["head"] if prototype_rate is None else prototype_rate
        groups = []
        for group in optimizer.param_groups:
            for part, rate in rates.items():
                parameters = [p for p in group["params"] if part_of.get(id(p), "encoder") == part]
                if parameters:
                    groups.append({**group, "params": parameters, "lr": rate})
        optimizer.param_groups = groups
        if self.args.prototype_lr_multipliers is not None:
            self._scale_prototype_rows(optimizer)
        return optimizer

    def _scale_prototype_rows(self, optimizer: torch.optim.Optimizer) -> None:
        """Learning-rate factors by level within the one [L, d] parameter: with SGD and momentum, a factor on a row's
        gradient and weight decay is a factor on its learning rate."""
        weight = self.model.prototypes.weight
        factors = torch.tensor(self.args.prototype_lr_multipliers, dtype=weight.dtype, device=weight.device)
        depths = self.model.head.depths
        from_leaves = (depths.max() - depths).clamp(max=len(factors) - 1)
        rows = factors[from_leaves][:, None]
        (group,) = (g for g in optimizer.param_groups if any(p is weight for p in g["params"]))
        decay, group["weight_decay"] = group["weight_decay"], 0.0

        def scale(*_: Any) -> None:
            if weight.grad is not None:
                weight.grad = rows * (weight.grad + decay * weight.detach())

        optimizer.register_step_pre_hook(scale)

    # ---- Checkpoints ----

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {name: value.detach().contiguous() for name, value in self.loss_weighter.state_dict().items()}
            metadata = {"weighter": type(self.loss_weighter).__name__}
            save_file(state, os.path.join(output_dir, WEIGHTER_NAME), metadata=metadata)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, WEIGHTER_NAME)
        if not os.path.isfile(path):
            logger.warning(f"{checkpoint} holds no {WEIGHTER_NAME}: the loss weighter starts anew.")
            return
        with safe_open(path, framework="pt", device=str(self.args.device)) as file:
            saved = (file.metadata() or {}).get("weighter")
            if saved != type(self.loss_weighter).__name__:
                raise ValueError(
                    f"{checkpoint} was trained with the loss weighter {saved}, this run uses "
                    f"{type(self.loss_weighter).__name__}: resume with the same one, or start from the model alone."
                )
            self.loss_weighter.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _part(name: str) -> str:
    name = name.removeprefix("module.")
    if name.startswith("prototypes."):
        return "prototypes"
    return "head" if name.startswith(("projection.", "head.")) else "encoder"

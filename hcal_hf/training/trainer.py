"""A Trainer that weighs the tasks of an HCAL model and logs each of them."""

import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..data.collator import HcalDataCollator
from ..data.label_checks import check_encoded, label_column
from ..modeling_hcal import HcalForSequenceClassification, HcalOutput
from .arguments import HcalTrainingArguments
from .card_mixin import ModelCardMixin
from .evaluation import BatchMetrics
from .evaluation import compute_metrics as default_compute_metrics
from .held_out import HeldOutMixin
from .precision import warn_of_slow_bfloat16
from .solver import feature_tensors, solve, solve_without_validation, unsolvable_because
from .weighting import LossWeighter, build_weighter

logger = logging.get_logger(__name__)

WEIGHTER_NAME = "loss_weighter.safetensors"


class HcalTrainer(ModelCardMixin, HeldOutMixin, Trainer):
    """
    [`~transformers.Trainer`] for [`HcalForSequenceClassification`]: the loss is sum_k w_k L_k over the model's tasks, with
    weights from a [`LossWeighter`].

    What it adds:

    - Every logging step reports each task's mean loss and weight since the last one (`loss_level_0`, `weight_level_0`,
      ...), how much of its first logged loss it still has (`remaining_level_0`: how far it has converged), and what the
      weighter goes by (`rate_level_0` of `hcal_rate` and `dwa`).
    - Losses over documents are normalised over the whole accumulation window and all processes, so that
      batch 2 x 4 accumulation steps is batch 8, and two processes are one, whatever levels the documents reach. Weighters
      that follow the current batch's losses (`per_batch`, such as `hcal`) weigh each micro-batch by its own losses over
      all processes instead, and losses over class means take the means of each micro-batch over all processes: both are
      the same on any number of processes, but not under accumulation.
    - The prototypes' perturbation is drawn once an optimiser step, the same for all its micro-batches and processes.
    - A loss that is NaN or infinite ends the training with a FloatingPointError that names its task and step: before the
      optimiser takes the step, or at the next log with `logging_nan_inf_filter=False` (which saves waiting for the device).
    - In evaluation the loss is the model's own, the uniform mean over tasks: comparable between weighters.
    - Projection, head and prototypes have learning rates of their own ([`HcalTrainingArguments`]).
    - The weighter's state is saved with each checkpoint and restored on resuming.
    - Each save and push writes a model card ([`ModelCardMixin.create_model_card`]).

    Args:
        model ([`HcalForSequenceClassification`]): the model.
        args ([`HcalTrainingArguments`]): the arguments.
        loss_weighter ([`LossWeighter`], *optional*): overrides `args.loss_weighting`.
        data_collator: [`HcalDataCollator`] by default.
        compute_metrics: F1s, hierarchical F1, accuracies and HVR by default ([`hcal_hf.compute_metrics`]).
            With `batch_eval_metrics=True` no logits are kept from batch to batch: for very many labels or documents.
        kwargs: all other arguments of [`~transformers.Trainer`].

    Raises:
        TypeError: if the model or the arguments are of another class.
        ValueError: for an argument that would replace the loss, a weighter for another number of levels, or one that needs
            gradient norms with `torch_compile`.
    """

    args: HcalTrainingArguments
    control: Any
    # compute_loss does its own scaling over the accumulation window.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: HcalForSequenceClassification | None = None,
        args: HcalTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        compute_metrics: Callable | None = None,
        loss_weighter: LossWeighter | None = None,
        **kwargs: Any,
    ):
        args = HcalTrainingArguments(output_dir="tmp_trainer") if args is None else args
        if not isinstance(args, HcalTrainingArguments):
            raise TypeError(
                f"HcalTrainer needs HcalTrainingArguments, got {type(args).__name__}: they take all the same arguments."
            )
        if args.label_smoothing_factor or kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "HcalTrainer computes the loss itself: label_smoothing_factor and compute_loss_func have no place in it. "
                "Write a LossWeighter, or use transformers.Trainer with the model's own loss."
            )
        given = model
        if model is None and kwargs.get("model_init") is not None:
            model = kwargs["model_init"]()  # for its hierarchy; the Trainer makes its own
        if not isinstance(model, HcalForSequenceClassification):
            kind = type(model)
            if kind.__name__ == HcalForSequenceClassification.__name__:
                raise TypeError(
                    f"HcalTrainer needs hcal_hf's own HcalForSequenceClassification, got the one of {kind.__module__}, the "
                    "code that came with the model: import hcal_hf before loading it."
                )
            raise TypeError(
                f"HcalTrainer needs an HcalForSequenceClassification, got {kind.__name__}: make one with "
                "HcalForSequenceClassification.from_encoder(encoder, taxonomy)."
            )
        if args.bf16 or args.bf16_full_eval:
            warn_of_slow_bfloat16(args.device.type)
        config = model.config
        if data_collator is None:
            data_collator = HcalDataCollator(processing_class, model.taxonomy, config.label_mode)
        if compute_metrics is None:
            compute_metrics = self._default_metrics
            if args.batch_eval_metrics:
                compute_metrics = BatchMetrics(model.taxonomy, self._decision)
        self.task_names = model.task_names
        weighter_kwargs: Any = args.loss_weighting_kwargs or {}
        self.loss_weighter = loss_weighter or build_weighter(args.loss_weighting, model.num_levels, **weighter_kwargs)
        self._weighter_by_name = loss_weighter is None
        if self.loss_weighter.num_tasks != model.num_levels:
            raise ValueError(
                f"loss_weighter is for {self.loss_weighter.num_tasks} tasks, the model has {model.num_levels} levels: make "
                f"it with num_tasks={model.num_levels}."
            )
        if args.torch_compile and self.loss_weighter.needs_gradient_norms:
            raise ValueError(
                f"{type(self.loss_weighter).__name__} takes gradients within the forward pass, where a compiled model has "
                "none: use torch_compile=False, or another loss_weighting."
            )
        self._unwrapped: tuple[nn.Module, HcalForSequenceClassification] | None = None
        super().__init__(
            model=given,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        if model.prototypes.is_anchored:
            self.add_callback(_ReembedLabels(self))
        # As precise as the losses.
        state_dtype = torch.promote_types(model.projection.weight.dtype, torch.float32)
        self.loss_weighter.to(device=self.args.device, dtype=state_dtype)
        self._fresh_weighter = {name: value.clone() for name, value in self.loss_weighter.state_dict().items()}
        self._document_tasks = torch.tensor(model.document_tasks, device=self.args.device)
        # One row a task: sum of losses times their counts, sum of counts, sum of weights times steps present, steps.
        # Apple's devices have no float64.
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        self._logged = torch.zeros(4, len(self.task_names), dtype=dtype, device=self.args.device)
        # Of the current accumulation window: sum of losses times their counts, sum of counts; the squared norms of the
        # levels' gradients.
        self._window = torch.zeros(2, len(self.task_names), dtype=dtype, device=self.args.device)
        self._squared_norms = torch.zeros(model.num_levels, dtype=dtype, device=self.args.device)
        self._window_starts = True
        # The first step with a loss, and with a weight, that was not finite; 0 for none.
        self._first_bad = torch.zeros(2, len(self.task_names), dtype=torch.int64, device=self.args.device)

    @property
    def unwrapped_model(self) -> HcalForSequenceClassification:
        """The model without what distributed training or compilation put around it."""
        # accelerate looks for installed packages at each unwrapping, which takes longer than a small head's step.
        if self._unwrapped is None or self._unwrapped[0] is not self.model:
            self._unwrapped = (self.model, self.accelerator.unwrap_model(self.model))
        return self._unwrapped[1]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """[`~transformers.Trainer.train`], after a check of the training rows against the model's label_mode and
        partial_paths (tables in memory; a stream is checked batch by batch).

        A calibrated temperature belongs to the weights that it was fitted for: it goes back to 1, with a warning.

        Raises:
            BadRowsError: for rows that the model could never predict.
        """
        model = self.unwrapped_model
        if model.config.score_temperature != 1:
            logger.warning(
                f"score_temperature={model.config.score_temperature} was fitted for the weights before this training: it "
                "is 1 again. Run trainer.calibrate_temperature(held_out_dataset) afterwards."
            )
            self._set_temperature(1.0)
        self._logged.zero_()
        self._first_bad.zero_()
        self._window_starts = True
        if self.model_init is not None:  # a new model, as in each trial of a search
            self.loss_weighter.load_state_dict(self._fresh_weighter)
        in_memory = isinstance(self.train_dataset, Dataset) and "labels" in self.train_dataset.column_names
        if in_memory:
            config = model.config
            check_encoded(self.train_dataset, model.taxonomy, config.label_mode, config.partial_paths)
        if model.prototypes.is_anchored and in_memory:
            _, carried = label_column(self.train_dataset)
            model.prototypes.trained.zero_()
            model.prototypes.trained[torch.from_numpy(np.unique(carried))] = True
        if self._solves_head(model):
            return self._solve_head(model)
        return super().train(*args, **kwargs)

    def _solves_head(self, model: HcalForSequenceClassification) -> bool:
        """Whether `train` fits the head by L-BFGS instead of running the optimiser."""
        if self.args.head_solver == "optimizer":
            return False
        is_frozen = not any(p.requires_grad for p in model.encoder.parameters())
        has_features = isinstance(self.train_dataset, Dataset) and "pooled_states" in self.train_dataset.column_names
        if self.args.head_solver == "lbfgs":
            if not (is_frozen and has_features):
                raise ValueError(
                    'head_solver="lbfgs" fits the head of a frozen encoder on its features: call '
                    "model.encoder.requires_grad_(False) and give data sets made by hcal_hf.pooled_features, or "
                    'use head_solver="optimizer".'
                )
            if reason := unsolvable_because(model):
                raise ValueError(reason)
        return is_frozen and has_features and unsolvable_because(model) is None

    def _solve_head(self, model: HcalForSequenceClassification) -> TrainOutput:
        args, start = self.args, time.perf_counter()
        logger.warning(
            "The encoder is frozen: L-BFGS fits the head on all documents at once. Learning rates, epochs, batch sizes and "
            'the loss weighter are not used; head_solver="optimizer" would use them.'
        )
        # Callbacks set themselves up here, such as where their logs go.
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        evaluation = self.eval_dataset
        if isinstance(evaluation, Dataset) and "pooled_states" in evaluation.column_names:
            solution = solve(model, feature_tensors(self.train_dataset), feature_tensors(evaluation))
        else:
            solution = solve_without_validation(
                model, feature_tensors(self.train_dataset), args.data_seed or args.seed
            )
        metrics = {
            "train_runtime": time.perf_counter() - start,
            "train_loss": solution.objective,
            "head_strength": solution.strength,
            "head_anchored": float(solution.anchored),
            "head_score": solution.score,
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        return TrainOutput(self.state.global_step, solution.objective, metrics)

    # ---- Loss ----

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """The denominators [T] of the document tasks over an accumulation window, summed over all processes."""
        if not batch_samples or any(batch.get("labels") is None for batch in batch_samples):
            return None
        model = self.unwrapped_model
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
        weighter, levels = self.loss_weighter, self.loss_weighter.num_tasks
        if model.training:
            inputs = {**self._with_noise(inputs), "return_logits": return_outputs}
            if weighter.needs_gradient_norms:
                inputs = {**inputs, "gradient_norms": True}
        outputs = model(**inputs)
        if outputs.task_losses is None:
            raise ValueError(
                f"The batch has no labels, only {sorted(inputs)}: encode the data set with encode_dataset, which makes a "
                '"labels" column.'
            )
        if not model.training:
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        losses, counts = self._over_replicas(outputs.task_losses, outputs.task_counts)
        means, total, steps = losses.detach(), counts, self.current_gradient_accumulation_steps
        if weighter.per_batch or num_items_in_batch is None:
            # This micro-batch is weighed by its own losses, over all processes, which so agree on the weights.
            means, total = self._over_processes(means, counts)
            parts = steps
        else:
            total = torch.where(self._document_tasks, num_items_in_batch, counts)
            parts = 1
        present = total > 0
        # Sums over documents add up over processes, whose gradients DDP averages; class means are gathered already.
        documents = counts.to(losses) / total.clamp(min=1) * self.accelerator.num_processes / parts
        share = torch.where(self._document_tasks, documents, 1.0 / steps)
        hcal = self.unwrapped_model
        counted = (total[:levels],) if weighter.needs_counts else ()
        weights = hcal.weigh_contrast(weighter(means[:levels], present[:levels], *counted), present)
        loss = (weights * share * losses).sum()
        penalty = weighter.penalty(present[:levels])
        if penalty is not None:
            loss = loss + penalty.to(loss) / steps
        if weighter.needs_gradient_norms:
            norms = self._norms_over_replicas(outputs.task_gradient_norms, outputs.task_counts)
            self._squared_norms += (share[:levels] * norms / self.accelerator.num_processes).square()
        self._record(losses.detach(), counts, weights.detach(), present)
        self._watch(means, weights.detach())
        return (loss, outputs) if return_outputs else loss

    def _with_noise(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with the perturbation of this optimiser step, unless they bring their own."""
        if "noise" in inputs:
            return inputs
        # Not from torch's generator, which the processes' dropout leaves in different states.
        seed = np.random.SeedSequence([self.args.seed, self.state.global_step]).generate_state(1)[0]
        noise = self.unwrapped_model.prototypes.sample_noise(int(seed))
        if noise is None:
            return inputs
        if self.args.n_gpu > 1:  # torch.nn.DataParallel deals out the rows of every tensor: one copy for each replica
            noise = noise.repeat(self.args.n_gpu, 1)
        return {**inputs, "noise": noise}

    def _over_replicas(self, losses: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Joins what torch.nn.DataParallel has laid end to end, [replicas * T], into [T]."""
        if len(losses) == len(self.task_names):
            return losses, counts
        losses, counts = losses.view(-1, len(self.task_names)), counts.view(-1, len(self.task_names))
        total = counts.sum(dim=0)
        return (losses * counts).sum(dim=0) / total.clamp(min=1), total

    def _norms_over_replicas(self, norms: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """The norms [D] of the gradients of the joined losses, on the features of all replicas."""
        levels = self.loss_weighter.num_tasks
        if len(norms) == levels:
            return norms
        counts = counts.view(-1, len(self.task_names))[:, :levels]
        return torch.linalg.vector_norm(norms.view(-1, levels) * counts / counts.sum(dim=0).clamp(min=1), dim=0)

    def _over_processes(self, losses: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean losses [T] over the batches of all processes, by their counts, and the sums of these."""
        if self.accelerator.num_processes == 1:
            return losses, counts
        sums, total = self.accelerator.reduce(torch.stack([losses * counts, counts.to(losses)]), reduction="sum")
        return sums / total.clamp(min=1), total

    def _watch(self, losses: torch.Tensor, weights: torch.Tensor) -> None:
        """Remembers, without waiting for the device, the first step with a loss or weight that is not finite."""
        is_bad = ~torch.isfinite(torch.stack([losses, weights])) & (self._first_bad == 0)
        self._first_bad.masked_fill_(is_bad, self.state.global_step + 1)

    def _raise_if_not_finite(self) -> None:
        for what, row in zip(("loss", "weight"), self._first_bad.tolist()):
            found = [(step, name) for step, name in zip(row, self.task_names) if step]
            if found:
                step = min(found)[0]
                names = ", ".join(name for first, name in found if first == step)
                raise FloatingPointError(
                    f"The {what} of {names} was NaN or infinite at step {step}. Lower the learning rate or max_grad_norm, "
                    "look for documents with extreme inputs, and resume from a checkpoint before that step."
                )

    def _record(
        self, losses: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor, present: torch.Tensor
    ) -> None:
        losses, weights, total = losses.to(self._logged), weights.to(self._logged), counts.to(self._logged)
        # Each optimiser step counts once in the mean of a weight, whatever its number of micro-batches.
        here = present.to(self._logged) / self.current_gradient_accumulation_steps
        self._window += torch.stack([losses * total, total])
        self._logged += torch.stack([losses * total, total, weights * here, here])

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self._window_starts:
            self._window.zero_()
            self._squared_norms.zero_()
            self.loss_weighter.zero_grad()  # the Trainer clears the gradients of the model alone
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._window_starts = self.accelerator.sync_gradients
        if self.args.logging_nan_inf_filter:
            # The Trainer is about to wait for the loss of each micro-batch anyway.
            self._raise_if_not_finite()
        if self.accelerator.sync_gradients:
            # Before anything else sees them, such as a gradient scaler that must decide alike on all processes.
            self._average_weighter_gradients()
            self._move_weighter(loss.dtype)
        return loss

    def _move_weighter(self, dtype: torch.dtype) -> None:
        weighter, levels = self.loss_weighter, self.loss_weighter.num_tasks
        if type(weighter).after_step is LossWeighter.after_step:
            return
        sums, counts = self.accelerator.reduce(self._window, reduction="sum")
        means = (sums / counts.clamp(min=1)).to(dtype)
        found: tuple[torch.Tensor, ...] = (means[:levels], counts[:levels] > 0)
        if weighter.needs_gradient_norms:
            found += (self.accelerator.reduce(self._squared_norms, reduction="sum").sqrt().to(dtype),)
        weighter.after_step(*found)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the training logs what each task did since the last one."""
        self._raise_if_not_finite()
        if "loss" in logs and self._logged[3].any():
            logs = {**logs, **self._task_logs()}
        super().log(logs, start_time)

    def _task_logs(self) -> dict[str, float]:
        losses, counts, weights, steps = self.accelerator.reduce(self._logged, reduction="sum").cpu()
        self._logged.zero_()
        logs: dict[str, float] = {}
        history = self.state.log_history
        for k, name in enumerate(self.task_names):
            if steps[k]:
                loss = logs[f"loss_{name}"] = (losses[k] / counts[k]).item()
                logs[f"weight_{name}"] = (weights[k] / steps[k]).item()
                # The log itself remembers where the loss started, also in a checkpoint.
                first = next((entry[f"loss_{name}"] for entry in history if f"loss_{name}" in entry), loss)
                logs[f"remaining_{name}"] = loss / first if first else 1.0
        for what, values in self.loss_weighter.report().items():
            logs |= {f"{what}_{name}": value for name, value in zip(self.task_names, values.tolist())}
        return logs

    def _default_metrics(self, predictions: Any) -> dict[str, float]:
        return default_compute_metrics(predictions, self.unwrapped_model.taxonomy, **self._decision())

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.compute_metrics, BatchMetrics):
            self.compute_metrics.start()  # an earlier evaluation may have been interrupted
        return super().evaluation_loop(*args, **kwargs)

    def _decision(self) -> dict[str, Any]:
        """How the model decides, by its configuration as it is now: thresholds may have been tuned since the Trainer was
        made."""
        config = self.unwrapped_model.config
        return {name: getattr(config, name) for name in ("label_mode", "partial_paths", "head", "thresholds")}

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Of the documents in their order, so that predictions are, too: with `train_sampling_strategy="group_by_length"`
        transformers shuffles the documents of `predict` as it does those of `evaluate`, where no one sees their order."""
        given = self.args.train_sampling_strategy
        self.args.train_sampling_strategy = (
            "random"  # for the sampler of held-out documents: none, one after the other
        )
        try:
            return super().get_test_dataloader(test_dataset)
        finally:
            self.args.train_sampling_strategy = given

    # ---- Optimiser ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of transformers, its groups split by learning rate: encoder; projection and head; prototypes.

        Raises:
            ValueError: for a weighter with parameters under FSDP.
        """
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
        learned = list(self.loss_weighter.parameters())
        if learned and self.is_fsdp_enabled:
            raise ValueError(
                f"{type(self.loss_weighter).__name__} has parameters of its own, which FSDP cannot shard with the model's: "
                "use another loss_weighting, or several processes without FSDP."
            )
        if learned:
            own_rate = self.loss_weighter.learning_rate
            rate = rates["head"] if own_rate is None else own_rate
            groups.append({**groups[0], "params": learned, "lr": rate, "weight_decay": 0.0})
        optimizer.param_groups = groups
        if self.args.prototype_lr_multipliers is not None:
            self._scale_prototype_rows(optimizer)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in transformers, and no weight decay on the head's own scale and stop scores."""
        return [name for name in super().get_decay_parameter_names(model) if not name.startswith("head.")]

    def _average_weighter_gradients(self) -> None:
        for parameter in self.loss_weighter.parameters():
            if parameter.grad is not None and self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

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


class _ReembedLabels(TrainerCallback):
    """Embeds the label texts anew at the start of each epoch but the first, since the encoder has moved.

    Resuming within an epoch keeps the anchors of the checkpoint, as the uninterrupted run would.
    """

    def __init__(self, trainer: HcalTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.unwrapped_model
        tokenizer = self.trainer.processing_class
        if tokenizer is None or not any(p.requires_grad for p in model.encoder.parameters()):
            return
        loader = kwargs["train_dataloader"]
        steps = math.ceil(len(loader) / args.gradient_accumulation_steps)
        if state.global_step and state.global_step % steps == 0:
            model.embed_labels(tokenizer)


def _part(name: str) -> str:
    name = name.removeprefix("module.")
    if name.startswith("prototypes."):
        return "prototypes"
    return "head" if name.startswith(("projection.", "head.")) else "encoder"

"""Trains HCAL models: weights the losses of the levels and logs each of them."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer_pt_utils import nested_concat
from transformers.trainer_utils import number_of_arguments
from transformers.utils import logging

from ..data.collator import HcalDataCollator
from ..data.label_checks import check_encoded
from ..data.token_checks import check_tokens
from ..decoding import Decision
from ..modeling_hcal import HcalForSequenceClassification, HcalOutput
from ..token_limits import check_tokenizer
from .arguments import HcalTrainingArguments
from .card_mixin import ModelCardMixin
from .checkpoints import CheckpointMixin
from .evaluation import BatchMetrics, score_decision
from .frozen_head import FrozenHeadMixin
from .held_out import HeldOutMixin
from .label_text import LabelTextMixin
from .parameter_groups import ParameterGroupsMixin
from .precision import warn_of_float16, warn_of_slow_bfloat16
from .replicas import join_gradient_norms, join_losses
from .sampler import SamplerMixin
from .search import SearchMixin
from .task_log import FiniteCheck, TaskLog, sum_dtype
from .tuning import tune_model
from .weighting import LossWeighter, build_weighter

logger = logging.get_logger(__name__)


class HcalTrainer(
    CheckpointMixin,
    LabelTextMixin,
    ModelCardMixin,
    HeldOutMixin,
    FrozenHeadMixin,
    ParameterGroupsMixin,
    SamplerMixin,
    SearchMixin,
    Trainer,
):
    """
    Trains an [`HcalForSequenceClassification`] on sum_k w_k L_k over its tasks, with weights from a [`LossWeighter`].

    It is a [`~transformers.Trainer`] with these additions:

    - Every logging step reports for each task the mean loss and weight since the last log (`loss_level_0`,
      `weight_level_0`, ...) and the share of its first logged loss that remains (`remaining_level_0`, which shows how far
      the task has converged). `hcal_rate` and `dwa` also report the rates that their weights depend on, and an asymmetric
      loss its adaptive gamma-.
    - Losses over documents are normalised over the whole accumulation window and all processes. Batch 2 with 4
      accumulation steps equals batch 8, and two processes equal one, even if documents reach different levels. Weighters
      that follow the losses of the current batch (`per_batch`, such as `hcal`) weight each micro-batch by its own losses
      over all processes. Contrasts compare the class means, pairs or documents of each micro-batch over all processes. Both
      of these give the same result on any number of processes, but depend on the number of accumulation steps.
    - The perturbation of the prototypes, and the labels that a label penalty compares, are drawn once per optimiser step,
      the same for all micro-batches and processes.
    - A loss that is NaN or infinite stops the training with a FloatingPointError that names the task and the step. This
      happens before the optimiser step. With `logging_nan_inf_filter=False`, which avoids device synchronisation, it
      happens at the next log.
    - In evaluation the loss is the model's own, the uniform mean over tasks. It can be compared between weighters.
    - The projection, the head and the prototypes have their own learning rates ([`HcalTrainingArguments`]).
    - The weighter's state is saved with each checkpoint and restored on resuming.
    - Each save and push writes a model card ([`ModelCardMixin.create_model_card`]).

    Args:
        model ([`HcalForSequenceClassification`]): the model.
        args ([`HcalTrainingArguments`]): the arguments.
        loss_weighter ([`LossWeighter`], *optional*): overrides `args.loss_weighting`.
        data_collator: [`HcalDataCollator`] by default.
        compute_metrics: computes F1s, hierarchical F1, accuracies and HVR by default ([`hcal_hf.compute_metrics`]).
            `batch_eval_metrics=True` keeps no logits between batches, for very many labels or documents.
        kwargs: all other arguments of [`~transformers.Trainer`].

    Raises:
        TypeError: if the model or the arguments are of another class.
        ValueError: if an argument would replace the loss, if the weighter is for another number of levels, if it needs
            gradient norms under `torch_compile`, or if `optimizers` does not train the weighter.
    """

    args: HcalTrainingArguments
    control: Any
    _is_evaluating = False
    # compute_loss itself scales over the accumulation window.
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
                f"HcalTrainer needs HcalTrainingArguments, got {type(args).__name__}: use HcalTrainingArguments with the "
                "same arguments."
            )
        if args.label_smoothing_factor or kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "HcalTrainer computes the loss itself, so it cannot use label_smoothing_factor and compute_loss_func. "
                "Write a LossWeighter, or use transformers.Trainer with the model's own loss."
            )
        model_argument = model
        if model is None and kwargs.get("model_init") is not None:
            model_init = kwargs["model_init"]  # only its hierarchy is used: the Trainer makes its own model
            model = model_init(None) if number_of_arguments(model_init) else model_init()
        if not isinstance(model, HcalForSequenceClassification):
            kind = type(model)
            if kind.__name__ == HcalForSequenceClassification.__name__:
                raise TypeError(
                    "HcalTrainer needs hcal_hf's own HcalForSequenceClassification, but the model was loaded with the code "
                    f"that came with it ({kind.__module__}): import hcal_hf before loading it."
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
        self._weighter_by_name = loss_weighter is None
        if loss_weighter is None:
            loss_weighter = build_weighter(args.loss_weighting, model.num_levels, **weighter_kwargs)
        self.loss_weighter = loss_weighter
        if self.loss_weighter.num_tasks != model.num_levels:
            raise ValueError(
                f"loss_weighter is for {self.loss_weighter.num_tasks} tasks, the model has {model.num_levels} levels: make "
                f"it with num_tasks={model.num_levels}."
            )
        if args.torch_compile and self.loss_weighter.needs_gradient_norms:
            raise ValueError(
                f"{type(self.loss_weighter).__name__} needs gradients within the forward pass, which a compiled model does "
                "not provide: use torch_compile=False, or another loss_weighting."
            )
        self.tuned: dict[str, float] = {}
        warn_of_float16(model)
        if processing_class is not None:
            check_tokenizer(model, processing_class)
        self._unwrapped: tuple[nn.Module, HcalForSequenceClassification] | None = None
        super().__init__(
            model=model_argument,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        self._check_optimizer_options()
        # The weighter's state has the precision of the losses.
        self._state_dtype = torch.promote_types(model.projection.weight.dtype, torch.float32)
        self._place_weighter()
        self._document_tasks = torch.tensor(model.document_tasks, device=self.args.device)
        self.task_log = TaskLog(self.task_names, self.args.device)
        self.finite_check = FiniteCheck(self.task_names, self.args.device)
        # Sums over the current accumulation window: losses times counts, counts; squared norms of the levels' gradients.
        dtype = sum_dtype(self.args.device)
        self._window = torch.zeros(2, len(self.task_names), dtype=dtype, device=self.args.device)
        self._squared_norms = torch.zeros(model.num_levels, dtype=dtype, device=self.args.device)
        self._window_starts = True

    def _place_weighter(self) -> None:
        """Moves the weighter to the device and keeps its state, from which each training with `model_init` starts."""
        self.loss_weighter.to(device=self.args.device, dtype=self._state_dtype)
        self._fresh_weighter = {name: value.clone() for name, value in self.loss_weighter.state_dict().items()}

    @property
    def unwrapped_model(self) -> HcalForSequenceClassification:
        """The model without the wrappers of distributed training and compilation."""
        # Cached, because accelerate's unwrapping takes longer than the training step of a small head.
        if self._unwrapped is None or self._unwrapped[0] is not self.model:
            self._unwrapped = (self.model, self.accelerator.unwrap_model(self.model))
        return self._unwrapped[1]

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as [`~transformers.Trainer.train`] does, after checking the training rows.

        Tables in memory are checked against the model's `label_mode` and `partial_paths`; a stream is checked batch by
        batch. A calibrated temperature is valid only for the weights that it was fitted to, so it is set back to 1, with a
        warning.

        With `args.tune`, the trained model is then tuned on the evaluation documents ([`hcal_hf.tune_model`]). The result
        is the attribute `tuned`.

        Raises:
            BadRowsError: if the model could never predict the labels of a row.
            ValueError: for `args.tune` without evaluation documents, for training rows without tokens or labels that the
                model has, and for a stream without rows.
        """
        if self.model is None:  # a search has released the model of its last trial
            self.model = self.model_wrapped = self.call_model_init(kwargs.get("trial"))
        model = self.unwrapped_model
        if self.train_dataset is None:
            raise ValueError("There are no training documents: pass train_dataset to HcalTrainer.")
        if self.args.tune != "none" and (self.eval_dataset is None or isinstance(self.eval_dataset, dict)):
            raise ValueError(f'tune="{self.args.tune}" needs one eval_dataset: give one, or tune="none".')
        if model.config.score_temperature != 1:
            logger.warning(
                f"score_temperature={model.config.score_temperature} was fitted to the weights before this training, so "
                "it is set back to 1. Run trainer.calibrate_temperature(held_out_dataset) afterwards."
            )
            self._set_temperature(1.0)
        self.task_log.clear()
        self.finite_check.clear()
        self._window_starts = True
        if self.model_init is not None:  # each trial of a search starts with a new model
            self.loss_weighter.load_state_dict(self._fresh_weighter)
        if isinstance(self.train_dataset, Dataset):
            check_tokens(self.train_dataset, model.vocabulary_size, model.max_tokens, model.config.window_length)
            if "labels" in self.train_dataset.column_names:
                config = model.config
                check_encoded(self.train_dataset, model.taxonomy, config.label_mode, config.partial_paths)
        self._note_training_data(model)
        with self._only_training():
            if self._solves_head(model):
                output = self._solve_head(model)
            else:
                checkpoint = self._checked_checkpoint(resume_from_checkpoint)
                try:
                    output = super().train(checkpoint, *args, **kwargs)
                except ValueError as problem:
                    if self.state.global_step == 0 and _is_empty_stream(self.train_dataset):
                        raise ValueError("train_dataset is a stream without rows: check its source.") from problem
                    raise
                self._embed_untrained_labels()
        self.tuned = {} if self.args.tune == "none" else tune_model(self, metric=self.args.tune)
        return output

    # ---- Loss ----

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Counts the denominators [T] of the document tasks over an accumulation window and all processes.

        Returns None in evaluation, where the loss is the model's own.
        """
        if self._is_evaluating or not batch_samples or any(batch.get("labels") is None for batch in batch_samples):
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
        """Computes the weighted loss of a batch in training, or the model's own loss in evaluation.

        Args:
            num_items_in_batch (`torch.Tensor` of shape `[T]`, *optional*): the denominators over the accumulation window.

        Raises:
            ValueError: if the batch has no labels.
        """
        if model.training:
            inputs = {**self._with_noise(inputs), "return_logits": return_outputs}
            if self.unwrapped_model.label_penalty is not None:
                inputs["penalty_seed"] = self._step_seed(1)
            if self.loss_weighter.needs_gradient_norms:
                inputs["gradient_norms"] = True
        outputs = model(**inputs)
        if outputs.task_losses is None:
            raise ValueError(
                f"The batch has no labels, only {sorted(inputs)}: encode the data set with encode_dataset, which makes a "
                '"labels" column.'
            )
        loss = self._weighted_loss(outputs, num_items_in_batch) if model.training else outputs.loss
        return (loss, outputs) if return_outputs else loss

    def _weighted_loss(self, outputs: HcalOutput, window_counts: torch.Tensor | None) -> torch.Tensor:
        """Weights the task losses of a micro-batch and notes them for the logs and the weighter."""
        weighter, levels, steps = (
            self.loss_weighter,
            self.loss_weighter.num_tasks,
            self.current_gradient_accumulation_steps,
        )
        assert outputs.task_losses is not None
        assert outputs.task_counts is not None
        losses, counts = join_losses(outputs.task_losses, outputs.task_counts, len(self.task_names))
        means, total, factors = self._normalise(losses, counts, window_counts)
        present = total > 0
        counts_if_needed = (total[:levels],) if weighter.needs_counts else ()
        level_weights = weighter(means[:levels], present[:levels], *counts_if_needed)
        level_weights = self.unwrapped_model.weigh_sums(level_weights, total[:levels])
        weights = self.unwrapped_model.weigh_contrast(level_weights, present)
        loss = (weights * factors * losses).sum()
        penalty = weighter.penalty(present[:levels])
        if penalty is not None:
            loss = loss + penalty.to(loss) / steps
        if weighter.needs_gradient_norms:
            assert outputs.task_gradient_norms is not None
            norms = join_gradient_norms(outputs.task_gradient_norms, outputs.task_counts, levels, len(self.task_names))
            self._squared_norms += (factors[:levels] * norms / self.accelerator.num_processes).square()
        losses, weights = losses.detach(), weights.detach()
        terms = counts.to(self._window)
        self._window += torch.stack([losses.to(self._window) * terms, terms])
        self.task_log.add(losses, counts, weights, present, steps)
        self.finite_check.watch(means, weights, self.state.global_step + 1)
        return loss

    def _normalise(
        self, losses: torch.Tensor, counts: torch.Tensor, window_counts: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normalises the losses of a micro-batch over this micro-batch, or over the accumulation window.

        Args:
            losses, counts (`torch.Tensor` of shape `[T]`): mean losses, and the numbers of terms that they are means of.
            window_counts (`torch.Tensor` of shape `[T]`, *optional*): those numbers for the window and all processes.

        Returns:
            the mean losses that the weighter sees, the numbers of terms over which the losses are normalised, and the
            factors of `losses` in the loss of this micro-batch.
        """
        means, steps = losses.detach(), self.current_gradient_accumulation_steps
        if self.loss_weighter.per_batch or window_counts is None:
            # The losses over all processes, so that all processes compute the same weights.
            means, total = self._over_processes(means, counts)
            parts = steps
        else:
            total = torch.where(self._document_tasks, window_counts, counts)
            parts = 1
        # Sums over documents add up over processes, and DDP averages the gradients; class means are gathered already.
        documents = counts.to(losses) / total.clamp(min=1) * self.accelerator.num_processes / parts
        return means, total, torch.where(self._document_tasks, documents, 1.0 / steps)

    def _with_noise(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Adds the perturbation of this optimiser step to the inputs, unless they contain one."""
        if "noise" in inputs:
            return inputs
        # torch's generator is in a different state on each process, because of dropout.
        noise = self.unwrapped_model.prototypes.sample_noise(self._step_seed())
        if noise is None:
            return inputs
        if self.args.n_gpu > 1:  # torch.nn.DataParallel splits every tensor by rows, so each replica gets a copy
            noise = noise.repeat(self.args.n_gpu, 1)
        return {**inputs, "noise": noise}

    def _step_seed(self, *purpose: int) -> int:
        """Returns a seed of this optimiser step and of a purpose, the same on all processes."""
        return int(np.random.SeedSequence([self.args.seed, self.state.global_step, *purpose]).generate_state(1)[0])

    def _over_processes(self, losses: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Averages the losses [T] over all processes, weighted by their counts, and sums the counts."""
        if self.accelerator.num_processes == 1:
            return losses, counts
        sums, total = self.accelerator.reduce(torch.stack([losses * counts, counts.to(losses)]), reduction="sum")
        return sums / total.clamp(min=1), total

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self._window_starts:
            self._window.zero_()
            self._squared_norms.zero_()
            self.unwrapped_model.head.start_step()
            self.loss_weighter.zero_grad()  # the Trainer clears only the model's gradients
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._window_starts = self.accelerator.sync_gradients
        if self.args.logging_nan_inf_filter:
            # The Trainer waits for the loss of each micro-batch in this case too.
            self.finite_check.raise_if_any()
        if self.accelerator.sync_gradients:
            # Averaged first, because a gradient scaler must decide equally on all processes.
            self._average_weighter_gradients()
            self._update_weighter(loss.dtype)
            self.unwrapped_model.head.after_step(functools.partial(self.accelerator.reduce, reduction="sum"))
        return loss

    def _update_weighter(self, dtype: torch.dtype) -> None:
        weighter, levels = self.loss_weighter, self.loss_weighter.num_tasks
        if type(weighter).after_step is LossWeighter.after_step:
            return
        sums, counts = self.accelerator.reduce(self._window, reduction="sum")
        means = (sums / counts.clamp(min=1)).to(dtype)
        norms: tuple[torch.Tensor, ...] = ()
        if weighter.needs_gradient_norms:
            norms = (self.accelerator.reduce(self._squared_norms, reduction="sum").sqrt().to(dtype),)
        weighter.after_step(means[:levels], counts[:levels] > 0, *norms)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the losses and weights of the tasks since the last log to the training logs."""
        self.finite_check.raise_if_any()
        if "loss" in logs and not self.task_log.is_empty:
            logs = {**logs, **self._task_logs()}
        super().log(logs, start_time)

    def _task_logs(self) -> dict[str, float]:
        reduce = functools.partial(self.accelerator.reduce, reduction="sum")
        logs = self.task_log.report(reduce, self.state.log_history)
        reports = {**self.loss_weighter.report(), **self.unwrapped_model.head.report()}
        for quantity, values in reports.items():
            logs |= {f"{quantity}_{name}": value for name, value in zip(self.task_names, values.tolist())}
        return logs

    # ---- Evaluation ----

    def _default_metrics(self, predictions: Any) -> dict[str, float]:
        logits, labels = predictions[0], predictions[1]
        if not self.args.eval_do_concat_batches:  # lists of batches
            logits, labels = (functools.reduce(nested_concat, batches) for batches in (logits, labels))
        return score_decision((logits, labels), self.unwrapped_model.taxonomy, self._decision())

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.compute_metrics, BatchMetrics):
            self.compute_metrics.start()  # forgets the batches of an interrupted evaluation
        self._is_evaluating = True
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self._is_evaluating = False

    def _decision(self) -> Decision:
        """Reads the decision from the model's current configuration, which tuning of thresholds changes."""
        return Decision.from_config(self.unwrapped_model.config)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Returns a DataLoader that keeps the document order, even with `group_by_length`."""
        # Without a sampler: transformers' own would group held-out documents by length, and so shuffle predictions.
        return self._get_dataloader(test_dataset, description="test", batch_size=self.args.eval_batch_size)


def _is_empty_stream(dataset: Any) -> bool:
    return isinstance(dataset, IterableDataset) and next(iter(dataset), None) is None

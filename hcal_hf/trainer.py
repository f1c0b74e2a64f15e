"""A Trainer that weighs the tasks of an HCAL model and logs each of them."""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from .data import HcalDataCollator, check_encoded
from .decoding import decode
from .evaluation import compute_metrics as default_compute_metrics
from .evaluation import target_matrix
from .metrics import classification_scores
from .modeling_hcal import HcalForSequenceClassification, HcalOutput
from .risk import calibrate_risk, describe_answers
from .thresholds import tune_for_decoding
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
        if args.batch_eval_metrics and compute_metrics is None:
            raise ValueError(
                "batch_eval_metrics=True needs a compute_metrics of your own: the default takes all at once."
            )
        given = model
        if model is None and kwargs.get("model_init") is not None:
            model = kwargs["model_init"]()  # for its hierarchy; the Trainer makes its own
        if not isinstance(model, HcalForSequenceClassification):
            raise TypeError(
                f"HcalTrainer needs an HcalForSequenceClassification, got {type(model).__name__}: make one with "
                "HcalForSequenceClassification.from_encoder(encoder, taxonomy)."
            )
        config = model.config
        if data_collator is None:
            data_collator = HcalDataCollator(processing_class, model.taxonomy, config.label_mode)
        if compute_metrics is None:
            compute_metrics = self._default_metrics
        self.task_names = model.task_names
        weighter_kwargs: Any = args.loss_weighting_kwargs or {}
        self.loss_weighter = loss_weighter or build_weighter(args.loss_weighting, model.num_levels, **weighter_kwargs)
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
        self.loss_weighter.to(self.args.device)
        self._document_tasks = torch.tensor(model.document_tasks, device=self.args.device)
        # One row a task: sum of losses times their counts, sum of counts, sum of weights times steps present, steps.
        # Apple's devices have no float64.
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        self._logged = torch.zeros(4, len(self.task_names), dtype=dtype, device=self.args.device)
        self._window = torch.zeros(2, len(self.task_names), dtype=dtype, device=self.args.device)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """[`~transformers.Trainer.train`], after a check of the training rows against the model's label_mode and
        partial_paths (tables in memory; a stream is checked batch by batch).

        Raises:
            BadRowsError: for rows that the model could never predict.
        """
        model = self.accelerator.unwrap_model(self.model)
        self._logged.zero_()
        self._window.zero_()
        in_memory = isinstance(self.train_dataset, Dataset) and "labels" in self.train_dataset.column_names
        if in_memory:
            config = model.config
            check_encoded(self.train_dataset, model.taxonomy, config.label_mode, config.partial_paths)
        if model.prototypes.is_anchored and in_memory:
            carried = np.unique(
                np.concatenate([np.asarray(nodes, dtype=np.int64) for nodes in self.train_dataset["labels"]])
            )
            model.prototypes.trained.zero_()
            model.prototypes.trained[torch.from_numpy(carried)] = True
        return super().train(*args, **kwargs)

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
        hcal = self.accelerator.unwrap_model(model)
        levels = hcal.num_levels
        weights = hcal.weigh_contrast(self.loss_weighter(losses[:levels].detach(), present[:levels]), present)
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
        losses, weights, total = losses.to(self._logged), weights.to(self._logged), counts.to(self._logged)
        here = (counts > 0).to(self._logged)
        self._window += torch.stack([losses * total, total])
        self._logged += torch.stack([losses * total, total, weights * here, here])

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            if type(self.loss_weighter).after_step is not LossWeighter.after_step:
                sums, counts = self.accelerator.reduce(self._window, reduction="sum")
                levels = self.loss_weighter.num_tasks
                means = (sums / counts.clamp(min=1)).to(loss.dtype)
                self.loss_weighter.after_step(means[:levels], counts[:levels] > 0)
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
        learned = list(self.loss_weighter.parameters())
        if learned:
            groups.append({**groups[0], "params": learned, "lr": self.args.learning_rate, "weight_decay": 0.0})
            optimizer.register_step_pre_hook(self._average_weighter_gradients)
            # The Trainer clears the gradients of the model alone.
            optimizer.register_step_post_hook(lambda *_: self.loss_weighter.zero_grad())
        optimizer.param_groups = groups
        if self.args.prototype_lr_multipliers is not None:
            self._scale_prototype_rows(optimizer)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in transformers, and no weight decay on the head's own scale and stop scores."""
        return [name for name in super().get_decay_parameter_names(model) if not name.startswith("head.")]

    def _average_weighter_gradients(self, *_: Any) -> None:
        for parameter in self.loss_weighter.parameters():
            if parameter.grad is not None and self.args.world_size > 1:
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

    # ---- Decisions ----

    def tune_thresholds(
        self, dataset: Any = None, granularity: str = "global", metric: str = "micro_f1", **kwargs: Any
    ) -> dict[str, float]:
        """Tunes the label thresholds on a data set and writes them into `model.config.thresholds`, where evaluation, the
        pipeline and `save_model` find them.

        Every process finds the same thresholds, from the predictions gathered. The data set should be one that the
        model was not trained on; report results on a third one.

        Args:
            dataset: rows with labels, as for `predict`; the Trainer's `eval_dataset` by default.
            granularity (`"global"`, `"level"` or `"label"`): one threshold for all labels, one a level, or one a label.
            metric (`"micro_f1"` or `"macro_f1"`): what they maximise.
            kwargs: `min_positives` and `shrinkage` of [`hcal_hf.thresholds.tune_thresholds`].

        Returns:
            `before` and `after`: the metric of the default decoding on this data set.

        Raises:
            ValueError: without a data set or its labels, or for an argument out of range.
        """
        logits, targets = self._predicted(dataset, "tune_thresholds")
        model = self.accelerator.unwrap_model(self.model)
        config = model.config
        mode = (model.taxonomy, config.label_mode)
        tuned = tune_for_decoding(
            logits, targets, *mode, config.partial_paths, config.head, granularity=granularity, metric=metric, **kwargs
        ).tolist()
        found = {}
        for name, thresholds in (("before", config.thresholds), ("after", tuned)):
            sets = decode(logits, *mode, None, thresholds, config.partial_paths, config.head)
            found[name] = classification_scores(sets.numpy(), targets, model.taxonomy)[metric]
        config.thresholds = tuned
        return found

    def calibrate_risk(self, dataset: Any, alpha: float = 0.1) -> dict[str, float]:
        """Sets how deep the answers of `decode="risk"` go, so that the expected share of wrong labels in an answer is at
        most alpha: writes `model.config.risk_alpha` and `risk_threshold` ([`hcal_hf.risk.calibrate_risk`]).

        Never give documents that trained the model or chose anything about it: the checkpoint (early stopping,
        `load_best_model_at_end`), a temperature, label thresholds. The guarantee is for documents exchangeable with
        these. It is void after anything that changes the probabilities or the decoded path: further training, a
        temperature, added labels, another `head`, `label_mode` or `partial_paths`; calibrate again then.
        `tune_thresholds` afterwards does not void it: `decode="risk"` cuts by its own threshold alone.

        Args:
            dataset: held-out rows with labels, as for `predict`.
            alpha (`float`, above 0 and below 1): the risk level; at least 1 / alpha - 1 documents are needed, or every
                answer is empty.

        Returns:
            `alpha`, `threshold`, `documents`, and what the answers on these very documents are like (`risk`, `answered`,
            `levels`, `completeness`, `empty`; [`hcal_hf.risk.describe_answers`]).

        Raises:
            ValueError: for the training data, no data or no labels, or alpha out of range.
        """
        if dataset is not None and dataset is self.train_dataset:
            raise ValueError(
                "calibrate_risk got the training data, on which the model is surer than on new documents: give documents "
                "that were held out from training and from every choice."
            )
        if dataset is not None and dataset is self.eval_dataset and self.args.load_best_model_at_end:
            logger.warning(
                "calibrate_risk got the data that chose the best checkpoint (load_best_model_at_end): the guarantee does "
                "not hold. Give other held-out documents."
            )
        logits, targets = self._predicted(dataset, "calibrate_risk")
        model = self.accelerator.unwrap_model(self.model)
        config = model.config
        mode = (model.taxonomy, config.label_mode)
        kind = {"partial_paths": config.partial_paths, "head": config.head}
        threshold = calibrate_risk(torch.sigmoid(logits.double()), targets, *mode, alpha, **kind)
        config.risk_alpha, config.risk_threshold = float(alpha), threshold
        answers = decode(logits, *mode, "risk", risk_threshold=threshold, **kind)
        found = describe_answers(answers, targets, model.taxonomy)
        return {"alpha": float(alpha), "threshold": threshold, "documents": len(targets), **found}

    def _default_metrics(self, predictions: Any) -> dict[str, float]:
        # Reads the configuration now: thresholds may have been tuned since the Trainer was made.
        model = self.accelerator.unwrap_model(self.model)
        config = model.config
        return default_compute_metrics(
            predictions, model.taxonomy, config.label_mode, config.partial_paths, config.head, config.thresholds
        )

    def _predicted(self, dataset: Any, caller: str) -> tuple[torch.Tensor, np.ndarray]:
        """Logits and true labels (bool) of a data set, both [N, L], gathered from all processes."""
        dataset = self.eval_dataset if dataset is None and caller == "tune_thresholds" else dataset
        if dataset is None or isinstance(dataset, dict):
            got = "none" if dataset is None else f"a dictionary of {sorted(dataset)}"
            raise ValueError(f"{caller} needs one data set with labels, got {got}: {caller}(dataset).")
        # Without metrics: they are not wanted, and with batch_eval_metrics nothing would be gathered.
        compute_metrics: Any = getattr(self, "compute_metrics")  # noqa: B009 - its type is unknown
        self.compute_metrics = None
        try:
            output = self.predict(dataset)
        finally:
            self.compute_metrics = compute_metrics
        if output.label_ids is None:
            raise ValueError(f'{caller} needs a data set with labels: encode_dataset makes its "labels" column.')
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        targets = target_matrix(np.asarray(output.label_ids), logits.shape[1])
        return torch.from_numpy(np.asarray(logits)), targets


class _ReembedLabels(TrainerCallback):
    """Embeds the label texts anew at the start of each epoch but the first, since the encoder has moved.

    Resuming within an epoch keeps the anchors of the checkpoint, as the uninterrupted run would.
    """

    def __init__(self, trainer: HcalTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
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

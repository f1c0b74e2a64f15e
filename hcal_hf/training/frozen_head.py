"""Lets a trainer fit the head of a frozen encoder by L-BFGS, or adapt a zero-shot model."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import ProgressCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..modeling_hcal import HcalForSequenceClassification
from .adapt import Adaptation, adapt
from .solver import feature_tensors, solve, solve_without_validation, unsolvable_because
from .tuning import tune_model

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)


class FrozenHeadMixin(_Trainer):
    """Adds to [`HcalTrainer`] the solver for models with a frozen encoder, and adaptation."""

    control: Any
    _weighter_by_name: bool
    tuned: dict[str, float]

    def adapt(self, texts: Sequence[str], labelled_texts: Sequence[str], labels: Sequence[Any]) -> Adaptation:
        """Adapts a zero-shot model instead of training it ([`hcal_hf.adapt`]), and tunes it as `args.tune` says.

        Args:
            texts, labelled_texts, labels: as in [`hcal_hf.adapt`].

        Raises:
            ValueError: as in [`hcal_hf.adapt`].
        """
        if self.args.class_weight is not None:
            logger.warning(
                "class_weight has no effect here: adapting label text minimises no loss over all documents."
            )
        start = time.perf_counter()
        adaptation = adapt(
            self.unwrapped_model, self.processing_class, texts, labelled_texts=labelled_texts, labels=labels
        )
        self.log(
            {
                "train_runtime": time.perf_counter() - start,
                "adapted_texts": adaptation.texts,
                "adapted_labelled": adaptation.labelled,
            }
        )
        self.tuned = {} if self.args.tune == "none" else tune_model(self, metric=self.args.tune)
        return adaptation

    def _solves_head(self, model: HcalForSequenceClassification) -> bool:
        """Decides whether `train` fits the head by L-BFGS instead of running the optimiser."""
        if model.config.joint_contrast is not None and _has_features(self.train_dataset):
            model.config.joint_contrast.check_pooled()
        if model.window_attention is not None and _has_features(self.train_dataset):
            raise ValueError(
                'window_pooling="attention" learns from the windows of a text, but frozen features (pooled_states) are one '
                'vector per document: use window_pooling="mean", or fine-tune the encoder on rows with input_ids.'
            )
        if self.args.head_solver == "optimizer":
            return False
        is_frozen = not any(parameter.requires_grad for parameter in model.encoder.parameters())
        has_features = _has_features(self.train_dataset)
        if self.args.head_solver == "lbfgs":
            if not (is_frozen and has_features):
                raise ValueError(
                    'head_solver="lbfgs" fits the head of a frozen encoder on its features: call '
                    "model.encoder.requires_grad_(False) and give data sets made by hcal_hf.pooled_features, or "
                    'use head_solver="optimizer".'
                )
            if reason := unsolvable_because(model):
                raise ValueError(reason)
            if given := self._options_of_the_optimizer():
                raise ValueError(
                    f'head_solver="lbfgs" fits all documents at once and would not use {", ".join(given)}: leave '
                    f'{"it" if len(given) == 1 else "them"} out, or use head_solver="optimizer".'
                )
        if not (is_frozen and has_features):
            return False
        if reason := unsolvable_because(model):
            logger.warning(f'head_solver="auto" trains the head in batches by the optimiser. {reason}')
            return False
        return True

    def _options_of_the_optimizer(self) -> list[str]:
        """Returns the given options that only a training in batches uses."""
        args = self.args
        options = {
            # L-BFGS minimises the loss that `likelihood` weights.
            f'loss_weighting="{args.loss_weighting}"': args.loss_weighting not in ("uniform", "likelihood"),
            "loss_weighter": not self._weighter_by_name,
            "head_learning_rate": args.head_learning_rate is not None,
            "prototype_learning_rate": args.prototype_learning_rate is not None,
            "prototype_lr_multipliers": args.prototype_lr_multipliers is not None,
            'train_sampling_strategy="hierarchy"': args.train_sampling_strategy == "hierarchy",
        }
        return [name for name, is_given in options.items() if is_given]

    def _solve_head(self, model: HcalForSequenceClassification) -> TrainOutput:
        """Fits the head by L-BFGS, logs the solution and returns it like a training run."""
        args, start = self.args, time.perf_counter()
        given = ", ".join(self._options_of_the_optimizer())
        logger.warning(
            "The encoder is frozen, so L-BFGS fits the head. Learning rates, epochs, batch sizes and the loss weighter "
            f'have no effect{f" (here {given})" if given else ""}; head_solver="optimizer" uses them.'
        )
        # The solver shows its own progress bar; that of the Trainer counts optimiser steps.
        callbacks = self.callback_handler.callbacks
        self.callback_handler.callbacks = [c for c in callbacks if not isinstance(c, ProgressCallback)]
        # Some callbacks set themselves up here, such as the ones that write logs.
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        options: dict[str, Any] = {"prior": args.head_prior, "show_progress": self._shows_progress()}
        training = feature_tensors(self.train_dataset)
        if _has_features(self.eval_dataset):
            solution = solve(model, training, feature_tensors(self.eval_dataset), **options)
        else:
            seed = args.seed if args.data_seed is None else args.data_seed
            solution = solve_without_validation(model, training, seed, **options)
        metrics = {
            "train_runtime": time.perf_counter() - start,
            "train_loss": solution.objective,
            "head_strength": solution.strength,
            "head_anchored": float(solution.anchored),
            "head_score": solution.score,
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        self.callback_handler.callbacks = callbacks
        return TrainOutput(self.state.global_step, solution.objective, metrics)

    def _shows_progress(self) -> bool:
        return self.is_local_process_zero() and not self.args.disable_tqdm


def _has_features(dataset: Any) -> bool:
    return isinstance(dataset, Dataset) and "pooled_states" in dataset.column_names

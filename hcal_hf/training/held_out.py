"""Fits a temperature, label thresholds and a risk threshold to held-out documents."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from ..decoding import Decision
from ..metrics import classification_scores
from .calibration import (
    calibration_metrics,
    document_scores,
    fit_temperature,
    negative_log_likelihood,
    tempered_logits,
)
from .evaluation import target_matrix
from .risk import calibrate_risk, describe_answers
from .thresholds import tune_for_decoding

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)


class HeldOutMixin(_Trainer):
    """Methods of [`HcalTrainer`] that fit the temperature and the thresholds of a trained model."""

    def calibrate_temperature(self, dataset: Any = None) -> dict[str, float]:
        """Fits one temperature T to held-out documents with [`hcal_hf.fit_temperature`].

        T is stored in `model.config.score_temperature`. It applies to all probabilities of the model: in evaluation, in the
        pipeline and after `save_model`. Losses in training and evaluation always use T = 1. Training again resets T to 1.

        If T changes, label thresholds and the risk threshold are removed with a warning, because they were fitted to the
        previous probabilities. So call this first, then `tune_thresholds`, and then `calibrate_risk` on other documents.

        Args:
            dataset: held-out rows with labels, as for `predict`. By default, the `eval_dataset` of the Trainer.

        Returns:
            `temperature`, `documents`, and the metrics of these documents before and after, with the suffixes `_before`
            and `_after`: `nll` (-log P of the labels of a document, [`hcal_hf.negative_log_likelihood`]), and the
            calibration errors and Brier scores of [`hcal_hf.calibration_metrics`].

        Raises:
            ValueError: if the data set is the training data, is missing or has no labels.
        """
        dataset = self.eval_dataset if dataset is None else dataset
        self._refuse_training_data(dataset, "calibrate_temperature")
        features, targets = self._predict_field(dataset, "calibrate_temperature", "features")
        with _whole_weights(self.unwrapped_model):
            return self._fit_temperature(features, targets)

    def _fit_temperature(self, features: torch.Tensor, targets: np.ndarray) -> dict[str, float]:
        model = self.unwrapped_model
        config = model.config
        options = Decision.from_config(config).model_options
        scores = document_scores(model, features)
        fitted = fit_temperature(model.head, scores, targets)
        report: dict[str, float] = {"temperature": fitted, "documents": len(targets)}
        for name, temperature in (("before", config.score_temperature), ("after", fitted)):
            logits = tempered_logits(model.head, scores, temperature)
            metrics = {"nll": negative_log_likelihood(model.head, scores, targets, temperature)}
            metrics |= calibration_metrics(logits, targets, model.taxonomy, **options)
            report |= {f"{metric}_{name}": value for metric, value in metrics.items()}
        self._set_temperature(fitted)
        return report

    def _set_temperature(self, temperature: float) -> None:
        """Sets the temperature. If it changes, removes thresholds that were fitted to the previous probabilities."""
        config = self.unwrapped_model.config
        if config.score_temperature == temperature:
            return
        config.score_temperature = temperature
        stale = [name for name in ("thresholds", "risk_threshold") if getattr(config, name) is not None]
        if stale:
            config.thresholds = config.risk_alpha = config.risk_threshold = None
            logger.warning(
                f"The temperature is now {temperature:.4g}. This removes all values that were fitted to the previous "
                f"probabilities from the configuration: {' and '.join(stale)}. Run tune_thresholds or calibrate_risk again."
            )

    def tune_thresholds(
        self, dataset: Any = None, granularity: str = "global", metric: str = "micro_f1", **kwargs: Any
    ) -> dict[str, float]:
        """Tunes the label thresholds on a data set with [`hcal_hf.tune_thresholds`].

        The thresholds are stored in `model.config.thresholds`, from which evaluation and the pipeline read them and
        `save_model` saves them. They are tuned on the gathered predictions, so all processes get the same ones. The model
        should not be trained on this data set. Report results on a third one.

        Args:
            dataset: rows with labels, as for `predict`. By default, the `eval_dataset` of the Trainer.
            granularity (`"global"`, `"level"` or `"label"`): one threshold for all labels, one per level, or one per label.
            metric (`"micro_f1"` or `"macro_f1"`): the metric to maximise.
            kwargs: `min_positives`, `shrinkage` and `resamples` of [`hcal_hf.tune_thresholds`].

        Returns:
            `before` and `after`: the metric of the default decoder on this data set.

        Raises:
            ValueError: if the data set is missing or has no labels, or an argument is out of range.
        """
        logits, targets = self._predict_field(dataset, "tune_thresholds", "logits")
        model = self.unwrapped_model
        config = model.config
        before = Decision.from_config(config)
        options = {**before.model_options, "granularity": granularity, "metric": metric, **kwargs}
        after = replace(before, thresholds=tune_for_decoding(logits, targets, model.taxonomy, **options).tolist())
        scores = {}
        for name, decision in (("before", before), ("after", after)):
            label_sets = decision.decode(logits, model.taxonomy)
            scores[name] = classification_scores(label_sets.numpy(), targets, model.taxonomy)[metric]
        config.thresholds = after.thresholds
        return scores

    def calibrate_risk(self, dataset: Any, alpha: float = 0.1) -> dict[str, float]:
        """Calibrates `decode="risk"`, so that the expected share of wrong labels in a predicted set is at most alpha.

        Stores `model.config.risk_alpha` and `risk_threshold` ([`hcal_hf.calibrate_risk`]). A smaller alpha gives sets that
        end at higher levels.

        The guarantee is for documents that are exchangeable with those of `dataset`. It holds only if these documents were
        not used to train the model, or to select the checkpoint (early stopping, `load_best_model_at_end`), the temperature
        or the label thresholds.

        Calibrate again after anything that changes the probabilities or the decoded path: further training, another
        temperature, added labels, another `head`, `label_mode` or `partial_paths`. Label thresholds may change afterwards,
        because `decode="risk"` does not use them.

        Args:
            dataset: held-out rows with labels, as for `predict`.
            alpha (`float`, above 0 and below 1): the risk level. With fewer than 1 / alpha - 1 documents, all predicted
                sets are empty.

        Returns:
            `alpha`, `threshold`, `documents`, and for these documents `risk`, `answered`, `levels`, `completeness` and
            `empty` of [`hcal_hf.describe_answers`].

        Raises:
            ValueError: if the data set is the training data, is missing or has no labels, or alpha is out of range.
        """
        self._refuse_training_data(dataset, "calibrate_risk")
        if dataset is not None and dataset is self.eval_dataset and self.args.load_best_model_at_end:
            logger.warning(
                "calibrate_risk got eval_dataset, which selected the best checkpoint (load_best_model_at_end). The "
                "guarantee does not hold for these documents. Give other held-out documents."
            )
        logits, targets = self._predict_field(dataset, "calibrate_risk", "logits")
        model = self.unwrapped_model
        config = model.config
        options = Decision.from_config(config).model_options
        threshold = calibrate_risk(torch.sigmoid(logits.double()), targets, model.taxonomy, alpha=alpha, **options)
        config.risk_alpha, config.risk_threshold = float(alpha), threshold
        answers = Decision.from_config(config, method="risk").decode(logits, model.taxonomy)
        description = describe_answers(answers, targets, model.taxonomy)
        return {"alpha": float(alpha), "threshold": threshold, "documents": len(targets), **description}

    def _refuse_training_data(self, dataset: Any, caller: str) -> None:
        if dataset is not None and dataset is self.train_dataset:
            raise ValueError(
                f"{caller} got the training data, on which the model is more confident than on new documents: give "
                "documents that were used neither for training nor for model selection."
            )

    def _predict_field(self, dataset: Any, caller: str, field: str) -> tuple[torch.Tensor, np.ndarray]:
        """Predicts one field of the model's output for a data set, gathered from all processes.

        Returns:
            the field (`logits` [N, L] or `features` [N, d]), and the true labels, bool [N, L].
        """
        dataset = self.eval_dataset if dataset is None and caller != "calibrate_risk" else dataset
        if dataset is None or isinstance(dataset, dict):
            got = "none" if dataset is None else f"a dictionary of {sorted(dataset)}"
            raise ValueError(f"{caller} needs one data set with labels, got {got}: call {caller}(dataset).")
        config = self.unwrapped_model.config
        ignored = [name for name in ("logits", *config.keys_to_ignore_at_inference) if name != field]
        # `predict` would compute metrics, or return no logits, or a list of batches.
        with (
            _replaced(self, compute_metrics=None),
            _replaced(self.args, prediction_loss_only=False, eval_do_concat_batches=True),
        ):
            output = self.predict(dataset, ignore_keys=ignored)
        if output.label_ids is None:
            raise ValueError(f'{caller} needs a data set with a column "labels", which encode_dataset adds.')
        values = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        return torch.from_numpy(np.asarray(values)), target_matrix(np.asarray(output.label_ids), config.num_labels)


@contextmanager
def _whole_weights(model: Any) -> Iterator[None]:
    """Gathers the weights of prototypes and head within a `with` block, if FSDP has sharded them."""
    is_sharded = hasattr(model, "unshard")
    if is_sharded:
        model.unshard()
    try:
        yield
    finally:
        if is_sharded:
            model.reshard()


@contextmanager
def _replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Replaces attributes of an object within a `with` block."""
    previous = {name: getattr(target, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in previous.items():
            setattr(target, name, value)

"""What a trainer learns from documents held out from training: a temperature, label thresholds, a risk threshold."""

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
    """Methods of [`HcalTrainer`] that fit what turns a trained model's scores into probabilities and decisions."""

    def calibrate_temperature(self, dataset: Any = None) -> dict[str, float]:
        """Fits one temperature to held-out documents ([`hcal_hf.fit_temperature`]) and writes it into
        `model.config.score_temperature`, where the model's probabilities, and so evaluation, the pipeline and `save_model`,
        find it.

        Label thresholds and a risk calibration are of the probabilities before: where T changes they are dropped, with a
        warning. Do this first, then `tune_thresholds`, then `calibrate_risk` on documents of its own. Training again sets T
        to 1; the losses, in training and in evaluation, are those of T = 1 throughout.

        Args:
            dataset: held-out rows with labels, as for `predict`; the Trainer's `eval_dataset` by default.

        Returns:
            `temperature`, `documents`, and as `..._before` and `..._after`, on these very documents, `nll` (-log P of a
            document's labels, [`hcal_hf.negative_log_likelihood`]), the calibration errors and the Brier
            scores ([`hcal_hf.calibration_metrics`]).

        Raises:
            ValueError: for the training data, or without a data set or its labels.
        """
        dataset = self.eval_dataset if dataset is None else dataset
        self._refuse_training_data(dataset, "calibrate_temperature")
        features, targets = self._predict_field(dataset, "calibrate_temperature", "features")
        model = self.unwrapped_model
        config = model.config
        options = Decision.from_config(config).model_options
        scores = document_scores(model, features)
        fitted = fit_temperature(model.head, scores, targets)
        found: dict[str, float] = {"temperature": fitted, "documents": len(targets)}
        for name, temperature in (("before", config.score_temperature), ("after", fitted)):
            logits = tempered_logits(model.head, scores, temperature)
            metrics = {"nll": negative_log_likelihood(model.head, scores, targets, temperature)}
            metrics |= calibration_metrics(logits, targets, model.taxonomy, **options)
            found |= {f"{metric}_{name}": value for metric, value in metrics.items()}
        self._set_temperature(fitted)
        return found

    def _set_temperature(self, temperature: float) -> None:
        """Sets the temperature and drops what was fitted to the probabilities under another one."""
        config = self.unwrapped_model.config
        if config.score_temperature == temperature:
            return
        config.score_temperature = temperature
        stale = [name for name in ("thresholds", "risk_threshold") if getattr(config, name) is not None]
        if stale:
            config.thresholds = config.risk_alpha = config.risk_threshold = None
            logger.warning(
                f"The temperature is now {temperature:.4g}: {' and '.join(stale)} held for the probabilities before and "
                "are dropped. Run tune_thresholds or calibrate_risk again."
            )

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
            kwargs: `min_positives`, `shrinkage` and `resamples` of [`hcal_hf.tune_thresholds`].

        Returns:
            `before` and `after`: the metric of the default decoding on this data set.

        Raises:
            ValueError: without a data set or its labels, or for an argument out of range.
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
        """Sets how deep the answers of `decode="risk"` go, so that the expected share of wrong labels in an answer is at
        most alpha: writes `model.config.risk_alpha` and `risk_threshold` ([`hcal_hf.calibrate_risk`]).

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
            `levels`, `completeness`, `empty`; [`hcal_hf.describe_answers`]).

        Raises:
            ValueError: for the training data, no data or no labels, or alpha out of range.
        """
        self._refuse_training_data(dataset, "calibrate_risk")
        if dataset is not None and dataset is self.eval_dataset and self.args.load_best_model_at_end:
            logger.warning(
                "calibrate_risk got the data that chose the best checkpoint (load_best_model_at_end): the guarantee does "
                "not hold. Give other held-out documents."
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
                f"{caller} got the training data, on which the model is surer than on new documents: give documents "
                "that were held out from training and from every choice."
            )

    def _predict_field(self, dataset: Any, caller: str, field: str) -> tuple[torch.Tensor, np.ndarray]:
        """Predicts one field of the model's output for a data set, gathered from all processes.

        Returns:
            the field, `logits` [N, L] or `features` [N, d], and the true labels (bool) [N, L].
        """
        dataset = self.eval_dataset if dataset is None and caller != "calibrate_risk" else dataset
        if dataset is None or isinstance(dataset, dict):
            got = "none" if dataset is None else f"a dictionary of {sorted(dataset)}"
            raise ValueError(f"{caller} needs one data set with labels, got {got}: {caller}(dataset).")
        config = self.unwrapped_model.config
        ignored = [name for name in ("logits", *config.keys_to_ignore_at_inference) if name != field]
        # `predict` computes metrics and collects its output as these attributes say.
        with (
            _replaced(self, compute_metrics=None),
            _replaced(self.args, prediction_loss_only=False, eval_do_concat_batches=True),
        ):
            output = self.predict(dataset, ignore_keys=ignored)
        if output.label_ids is None:
            raise ValueError(f'{caller} needs a data set with labels: encode_dataset makes its "labels" column.')
        values = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        return torch.from_numpy(np.asarray(values)), target_matrix(np.asarray(output.label_ids), config.num_labels)


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

"""Tunes a trained model on held-out documents, and estimates the gain by cross-validation."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..decoding import Decision
from ..metrics import classification_scores
from .thresholds import METRICS, tune_for_decoding

logger = logging.get_logger(__name__)

FOLDS = 5
# With fewer held-out documents a tuned threshold is chance.
FEWEST_DOCUMENTS = 20


def tune_model(trainer: Any, dataset: Any = None, metric: str = "micro_f1") -> dict[str, float]:
    """Fits the temperature and, for multi_path models, one threshold to held-out documents, and stores them in the config.

    The scores before and after are estimated by five-fold cross-validation: the threshold for each fifth of the documents
    is tuned on the other four fifths.

    Args:
        trainer ([`HcalTrainer`]): a trainer with a trained model.
        dataset: held-out rows with labels; the `eval_dataset` by default. Neither training nor test documents.
        metric (`"micro_f1"` or `"macro_f1"`): the metric that the threshold maximises.

    Returns:
        `documents`, `temperature_before` and `temperature`, on these documents `nll_before` and `nll_after`, `ece_...` and
        for single_path models `end_ece_...` ([`HcalTrainer.calibrate_temperature`]), and for multi_path models
        `threshold`, `before` and `after`. {} if there are fewer than 20 documents, in which case nothing is changed.

    Raises:
        ValueError: for another metric, or training documents.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}.")
    dataset = trainer.eval_dataset if dataset is None else dataset
    if len(dataset) < FEWEST_DOCUMENTS:
        logger.warning(
            f"Temperature and thresholds keep their defaults: there are {len(dataset)} held-out documents, and tuning "
            f"needs at least {FEWEST_DOCUMENTS}."
        )
        return {}
    tuned: dict[str, float] = {"documents": len(dataset)}
    model = trainer.unwrapped_model
    tuned["temperature_before"] = model.config.score_temperature
    fitted = trainer.calibrate_temperature(dataset)
    names = [f"{name}_{when}" for name in ("nll", "ece", "end_ece") for when in ("before", "after")]
    tuned |= {name: fitted[name] for name in ("temperature", *names) if name in fitted}
    if model.config.label_mode == "multi_path":
        logits, targets = trainer._predict_field(dataset, "tune_model", "logits")
        tuned["before"], tuned["after"] = cross_validate(logits, targets, model, metric)
        trainer.tune_thresholds(dataset, metric=metric)
        tuned["threshold"] = float(np.mean(model.config.thresholds))
    return tuned


def cross_validate(
    logits: torch.Tensor, targets: np.ndarray, model: Any, metric: str = "micro_f1", folds: int = FOLDS
) -> tuple[float, float]:
    """Estimates a metric with the model's present thresholds and with one tuned threshold.

    Args:
        logits (`torch.Tensor` of shape `[N, L]`).
        targets (bool, same shape): the true labels, with all ancestors.
        model ([`HcalForSequenceClassification`]): its configuration says how probabilities become label sets.
        metric (`"micro_f1"` or `"macro_f1"`).
        folds (`int`): the threshold for each of so many parts is tuned on the others.

    Returns:
        the metric before and after. Both are computed once, over all documents.
    """
    taxonomy, decision = model.taxonomy, Decision.from_config(model.config)
    part = np.random.default_rng(0).permutation(len(logits)) % folds

    def decide(rows: Any, thresholds: Any) -> np.ndarray:
        return replace(decision, thresholds=thresholds).decode(logits[rows], taxonomy).numpy()

    before = decide(slice(None), decision.thresholds)
    after = np.zeros_like(before)
    for fold in range(folds):
        held, rest = np.flatnonzero(part == fold), np.flatnonzero(part != fold)
        thresholds = tune_for_decoding(logits[rest], targets[rest], taxonomy, **decision.model_options, metric=metric)
        after[held] = decide(held, thresholds.tolist())
    scores = [classification_scores(sets, targets, taxonomy)[metric] for sets in (before, after)]
    return scores[0], scores[1]

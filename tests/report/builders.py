"""Predictions, facts and reports of random label sets."""

import numpy as np
import torch

from hcal_hf import HcalConfig, classification_scores, violation_rates
from hcal_hf.decoding import Decision
from hcal_hf.report.predictions import PredictionCollector
from hcal_hf.report.summary import RunFacts, SplitRows
from tests.builders import random_multi_hot


def collect(taxonomy, documents=60, mode="multi_path", seed=0, noise=1.0, batch=7):
    """(predictions, logits, truth [N, L]) of noisy logits."""
    rng = np.random.default_rng(seed)
    truth = random_multi_hot(rng, taxonomy, documents, mode == "single_path")
    logits = torch.from_numpy(rng.normal(scale=noise, size=truth.shape)).float() + 4 * truth - 2
    decision = Decision(mode, True, "lookahead_softmax" if mode == "single_path" else "lookahead_sigmoid")
    collector = PredictionCollector(taxonomy, lambda: decision)
    for start in range(0, documents, batch):
        collector.add(logits[start : start + batch], truth[start : start + batch].numpy())
    return collector.result(), logits, truth.numpy() > 0


def facts_of(taxonomy, predictions, mode="multi_path", **changes):
    predicted, true = predictions.predicted.ids(), predictions.true.ids()
    metrics = classification_scores(predicted, true, taxonomy)
    rates = violation_rates(predicted, taxonomy)
    metrics |= {"hvr": rates["hvr"], "raw_hvr": 0.25, "ece": 0.125, "end_ece": 0.0625}
    metrics |= {f"hvr_level_{k}": rate for k, rate in enumerate(rates["hvr_level"])}
    values = {
        "title": "Evaluation",
        "model": "model",
        "data": "data.csv",
        "split": "test",
        "rows": [SplitRows("test", len(true))],
    }
    config = HcalConfig.from_taxonomy(taxonomy, label_mode=mode, partial_paths=True)
    return RunFacts(**{**values, "metrics": metrics, "config": config, **changes})

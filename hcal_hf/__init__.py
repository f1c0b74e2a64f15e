"""Hierarchical text classification for transformers: HCAL and what makes it agree with the hierarchy."""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_hcal import HcalConfig
from .modeling_hcal import HcalForSequenceClassification, HcalOutput, HcalPreTrainedModel
from .pipeline_hcal import TASK, HierarchicalTextClassificationPipeline
from .taxonomy import Taxonomy

if TYPE_CHECKING:
    from .calibration import fit_temperature
    from .data import BadRowsError, HcalDataCollator, build_taxonomy, encode_dataset
    from .decoding import decode
    from .evaluation import compute_metrics
    from .features import pooled_features
    from .metrics import calibration_scores, classification_scores, hierarchical_scores, violation_rates
    from .path_search import PathSearch
    from .risk import calibrate_risk, describe_answers
    from .thresholds import tune_thresholds
    from .trainer import HcalTrainer
    from .training_args import HcalTrainingArguments
    from .weighting import LossWeighter

AutoConfig.register("hcal", HcalConfig, exist_ok=True)
AutoModelForSequenceClassification.register(HcalConfig, HcalForSequenceClassification, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=HierarchicalTextClassificationPipeline,
    pt_model=AutoModelForSequenceClassification,
    type="text",
)

__version__ = "0.1.0"

# What inference does not need comes in at its first use: datasets, evaluate and the Trainer take seconds to import.
_LAZY = {
    "BadRowsError": "data",
    "HcalDataCollator": "data",
    "HcalTrainer": "trainer",
    "HcalTrainingArguments": "training_args",
    "LossWeighter": "weighting",
    "PathSearch": "path_search",
    "build_taxonomy": "data",
    "calibrate_risk": "risk",
    "calibration_scores": "metrics",
    "classification_scores": "metrics",
    "compute_metrics": "evaluation",
    "decode": "decoding",
    "describe_answers": "risk",
    "encode_dataset": "data",
    "fit_temperature": "calibration",
    "hierarchical_scores": "metrics",
    "pooled_features": "features",
    "tune_thresholds": "thresholds",
    "violation_rates": "metrics",
}
# Needs scikit-learn, which is no dependency: not among the names that `import *` brings.
_EXTRA = {"HcalClassifier": "classifier"}

__all__ = [
    "BadRowsError",
    "HcalConfig",
    "HcalDataCollator",
    "HcalForSequenceClassification",
    "HcalOutput",
    "HcalPreTrainedModel",
    "HcalTrainer",
    "HcalTrainingArguments",
    "HierarchicalTextClassificationPipeline",
    "LossWeighter",
    "PathSearch",
    "Taxonomy",
    "build_taxonomy",
    "calibrate_risk",
    "calibration_scores",
    "classification_scores",
    "compute_metrics",
    "decode",
    "describe_answers",
    "encode_dataset",
    "fit_temperature",
    "hierarchical_scores",
    "pooled_features",
    "tune_thresholds",
    "violation_rates",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name) or _EXTRA.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_EXTRA})

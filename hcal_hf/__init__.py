"""Hierarchical text classification for transformers: HCAL and what makes it agree with the hierarchy."""

from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .calibration import fit_temperature
from .configuration_hcal import HcalConfig
from .data import BadRowsError, HcalDataCollator, build_taxonomy, encode_dataset
from .decoding import decode
from .evaluation import compute_metrics
from .features import pooled_features
from .metrics import calibration_scores, classification_scores, hierarchical_scores, violation_rates
from .modeling_hcal import HcalForSequenceClassification, HcalOutput, HcalPreTrainedModel
from .pipeline_hcal import TASK, HierarchicalTextClassificationPipeline
from .risk import calibrate_risk, describe_answers
from .taxonomy import Taxonomy
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

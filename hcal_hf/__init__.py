"""Hierarchical text classification for transformers: HCAL and what makes it agree with the hierarchy."""

from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_hcal import HcalConfig
from .data import BadRowsError, HcalDataCollator, build_taxonomy, encode_dataset
from .decoding import decode
from .evaluation import compute_metrics
from .modeling_hcal import HcalForSequenceClassification, HcalOutput, HcalPreTrainedModel
from .pipeline_hcal import TASK, HierarchicalTextClassificationPipeline
from .taxonomy import Taxonomy
from .trainer import HcalTrainer
from .training_args import HcalTrainingArguments

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
    "Taxonomy",
    "build_taxonomy",
    "compute_metrics",
    "decode",
    "encode_dataset",
]

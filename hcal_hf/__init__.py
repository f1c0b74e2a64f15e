"""Hierarchical text classification for transformers: HCAL, and heads that agree with the hierarchy.

The root of the package holds what a saved model carries to the Hub. Everything else lives in a wing and is imported at
its first use: `metrics`, `data`, `training`, `audit`, `sklearn`, `report` and `commands`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import is_sklearn_available

from .configuration_hcal import HcalConfig
from .modeling_hcal import HcalForSequenceClassification, HcalOutput, HcalPreTrainedModel
from .pipeline_hcal import TASK, HierarchicalTextClassificationPipeline
from .taxonomy import Taxonomy

AutoConfig.register("hcal", HcalConfig, exist_ok=True)
for _auto_class in (AutoModel, AutoModelForSequenceClassification):
    _auto_class.register(HcalConfig, HcalForSequenceClassification, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=HierarchicalTextClassificationPipeline,
    pt_model=AutoModelForSequenceClassification,
    type="text",
)

__version__ = "0.1.0"

# The module of each name that is imported at its first use: datasets, evaluate and the Trainer take seconds to import.
_LAZY = {
    "Annotations": "audit.annotations",
    "AsymmetricOptions": "classification_loss",
    "AuditArguments": "commands.audit_run",
    "AuditReport": "audit.auditing",
    "BadRowsError": "data.rows",
    "BestPaths": "path_search",
    "Change": "data.taxonomy_diff",
    "ChangeTable": "data.change_table",
    "Comparison": "report.comparison",
    "CooccurrenceCounts": "label_order",
    "DataArguments": "commands.run_arguments",
    "Decision": "decoding",
    "DescribedTaxonomy": "data.described_taxonomy",
    "EvaluationArguments": "commands.evaluation_run",
    "Explanation": "commands.explanation",
    "HEADS": "heads",
    "HcalClassifier": "sklearn.classifier",
    "HcalDataCollator": "data.collator",
    "HcalTrainer": "training.trainer",
    "HcalTrainingArguments": "training.arguments",
    "HierarchySampler": "training.sampler",
    "JointContrastOptions": "joint_contrast",
    "LossWeighter": "training.weighting",
    "ModelArguments": "commands.run_arguments",
    "PathSearch": "path_search",
    "PredictionArguments": "commands.predictor",
    "Predictions": "report.predictions",
    "Predictor": "commands.predictor",
    "Ranking": "audit.ranking",
    "Regime": "training.regime",
    "RunFacts": "report.summary",
    "SplitRows": "report.summary",
    "Suggestions": "training.suggestions",
    "TableArguments": "commands.run_arguments",
    "TaxonomyChange": "training.taxonomy_change",
    "WEIGHTERS": "training.weighting",
    "WrongLabels": "audit.wrong",
    "adapt": "training.adapt",
    "add_lexical_features": "training.lexical_fit",
    "apply_changes": "commands.taxonomy_apply_run",
    "apply_decisions": "commands.audit_decisions",
    "audit_features": "audit.auditing",
    "audit_labels": "audit.auditing",
    "audit_recovery": "audit.recovery",
    "audit_table": "commands.audit_run",
    "best_of_all": "path_search",
    "bootstrap_interval": "metrics",
    "build_page": "commands.demo.page",
    "build_taxonomy": "data.taxonomy_builder",
    "build_weighter": "training.weighting",
    "calibrate_risk": "training.risk",
    "calibration_metrics": "training.calibration",
    "calibration_scores": "metrics",
    "change_taxonomy": "training.taxonomy_change",
    "choose_regime": "training.regime",
    "classification_scores": "metrics",
    "collect_predictions": "report.predictions",
    "compare_models": "commands.comparison_run",
    "compare_predictions": "report.comparison",
    "compute_class_weight": "training.class_weights",
    "compute_metrics": "training.evaluation",
    "convert_predictions": "commands.prediction_formats",
    "decode": "decoding",
    "default_encoder": "training.encoders",
    "describe_answers": "training.risk",
    "diff_taxonomies": "data.taxonomy_diff",
    "document_scores": "training.calibration",
    "draw_diverse": "training.suggestions",
    "draw_documents": "metrics",
    "encode_dataset": "data.encoding",
    "encode_splits": "commands.run_data",
    "evaluate_model": "commands.evaluation_run",
    "explain": "commands.explanation",
    "export_onnx": "commands.onnx_export",
    "fit_head": "training.solver",
    "fit_temperature": "training.calibration",
    "has_bfloat16": "training.precision",
    "hide_annotations": "audit.recovery",
    "hierarchical_scores": "metrics",
    "label_frequencies": "audit.posterior",
    "load_data": "commands.run_data",
    "load_model": "commands.saved_model",
    "make_zero_shot": "commands.zero_shot_run",
    "missing_probability": "audit.posterior",
    "negative_log_likelihood": "training.calibration",
    "open_session": "commands.onnx_export",
    "pooled_features": "training.features",
    "predict_file": "commands.prediction_file",
    "prediction_errors": "training.suggestions",
    "quantize_int8": "commands.onnx_export",
    "rank_missing": "audit.ranking",
    "read_changes": "data.change_table",
    "read_label_names": "data.label_names",
    "read_named_taxonomy": "data.taxonomy_reader",
    "read_table": "data.tables",
    "read_taxonomy": "data.taxonomy_reader",
    "run_training": "commands.training_run",
    "search_space": "training.search",
    "solve": "training.solver",
    "split_rows": "data.split",
    "standardize_features": "training.standardize",
    "suggest_documents": "training.suggestions",
    "target_matrix": "training.evaluation",
    "train_table": "commands.table_run",
    "tune_for_decoding": "training.thresholds",
    "tune_model": "training.tuning",
    "tune_thresholds": "training.thresholds",
    "violation_rates": "metrics",
    "write_audit_page": "report.audit_page",
    "write_report": "report.report",
    "write_suggestions": "commands.suggestion_file",
    "write_taxonomy": "data.taxonomy_writer",
    "wrong_labels": "audit.wrong",
}
__all__ = [
    "HEADS",
    "WEIGHTERS",
    "Annotations",
    "AsymmetricOptions",
    "AuditArguments",
    "AuditReport",
    "BadRowsError",
    "BestPaths",
    "Change",
    "ChangeTable",
    "Comparison",
    "CooccurrenceCounts",
    "DataArguments",
    "Decision",
    "DescribedTaxonomy",
    "EvaluationArguments",
    "Explanation",
    "HcalClassifier",
    "HcalConfig",
    "HcalDataCollator",
    "HcalForSequenceClassification",
    "HcalOutput",
    "HcalPreTrainedModel",
    "HcalTrainer",
    "HcalTrainingArguments",
    "HierarchicalTextClassificationPipeline",
    "HierarchySampler",
    "JointContrastOptions",
    "LossWeighter",
    "ModelArguments",
    "PathSearch",
    "PredictionArguments",
    "Predictions",
    "Predictor",
    "Ranking",
    "Regime",
    "RunFacts",
    "SplitRows",
    "Suggestions",
    "TableArguments",
    "Taxonomy",
    "TaxonomyChange",
    "WrongLabels",
    "adapt",
    "add_lexical_features",
    "apply_changes",
    "apply_decisions",
    "audit_features",
    "audit_labels",
    "audit_recovery",
    "audit_table",
    "best_of_all",
    "bootstrap_interval",
    "build_page",
    "build_taxonomy",
    "build_weighter",
    "calibrate_risk",
    "calibration_metrics",
    "calibration_scores",
    "change_taxonomy",
    "choose_regime",
    "classification_scores",
    "collect_predictions",
    "compare_models",
    "compare_predictions",
    "compute_class_weight",
    "compute_metrics",
    "convert_predictions",
    "decode",
    "default_encoder",
    "describe_answers",
    "diff_taxonomies",
    "document_scores",
    "draw_diverse",
    "draw_documents",
    "encode_dataset",
    "encode_splits",
    "evaluate_model",
    "explain",
    "export_onnx",
    "fit_head",
    "fit_temperature",
    "has_bfloat16",
    "hide_annotations",
    "hierarchical_scores",
    "label_frequencies",
    "load_data",
    "load_model",
    "make_zero_shot",
    "missing_probability",
    "negative_log_likelihood",
    "open_session",
    "pooled_features",
    "predict_file",
    "prediction_errors",
    "quantize_int8",
    "rank_missing",
    "read_changes",
    "read_label_names",
    "read_named_taxonomy",
    "read_table",
    "read_taxonomy",
    "run_training",
    "search_space",
    "solve",
    "split_rows",
    "standardize_features",
    "suggest_documents",
    "target_matrix",
    "train_table",
    "tune_for_decoding",
    "tune_model",
    "tune_thresholds",
    "violation_rates",
    "write_audit_page",
    "write_report",
    "write_suggestions",
    "write_taxonomy",
    "wrong_labels",
]
# The estimator needs scikit-learn, which is no dependency: without it `from hcal_hf import *` leaves the name out.
if not is_sklearn_available():
    __all__.remove("HcalClassifier")


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


if TYPE_CHECKING:
    from .audit.annotations import Annotations
    from .audit.auditing import AuditReport, audit_features, audit_labels
    from .audit.posterior import label_frequencies, missing_probability
    from .audit.ranking import Ranking, rank_missing
    from .audit.recovery import audit_recovery, hide_annotations
    from .audit.wrong import WrongLabels, wrong_labels
    from .classification_loss import AsymmetricOptions
    from .commands.audit_decisions import apply_decisions
    from .commands.audit_run import AuditArguments, audit_table
    from .commands.comparison_run import compare_models
    from .commands.demo.page import build_page
    from .commands.evaluation_run import EvaluationArguments, evaluate_model
    from .commands.explanation import Explanation, explain
    from .commands.onnx_export import export_onnx, open_session, quantize_int8
    from .commands.prediction_file import predict_file
    from .commands.prediction_formats import convert_predictions
    from .commands.predictor import PredictionArguments, Predictor
    from .commands.run_arguments import DataArguments, ModelArguments, TableArguments
    from .commands.run_data import encode_splits, load_data
    from .commands.saved_model import load_model
    from .commands.suggestion_file import write_suggestions
    from .commands.table_run import train_table
    from .commands.taxonomy_apply_run import apply_changes
    from .commands.training_run import run_training
    from .commands.zero_shot_run import make_zero_shot
    from .data.change_table import ChangeTable, read_changes
    from .data.collator import HcalDataCollator
    from .data.described_taxonomy import DescribedTaxonomy
    from .data.encoding import encode_dataset
    from .data.label_names import read_label_names
    from .data.rows import BadRowsError
    from .data.split import split_rows
    from .data.tables import read_table
    from .data.taxonomy_builder import build_taxonomy
    from .data.taxonomy_diff import Change, diff_taxonomies
    from .data.taxonomy_reader import read_named_taxonomy, read_taxonomy
    from .data.taxonomy_writer import write_taxonomy
    from .decoding import Decision, decode
    from .heads import HEADS
    from .joint_contrast import JointContrastOptions
    from .label_order import CooccurrenceCounts
    from .metrics import (
        bootstrap_interval,
        calibration_scores,
        classification_scores,
        draw_documents,
        hierarchical_scores,
        violation_rates,
    )
    from .path_search import BestPaths, PathSearch, best_of_all
    from .report.audit_page import write_audit_page
    from .report.comparison import Comparison, compare_predictions
    from .report.predictions import Predictions, collect_predictions
    from .report.report import write_report
    from .report.summary import RunFacts, SplitRows
    from .sklearn.classifier import HcalClassifier
    from .training.adapt import adapt
    from .training.arguments import HcalTrainingArguments
    from .training.calibration import (
        calibration_metrics,
        document_scores,
        fit_temperature,
        negative_log_likelihood,
    )
    from .training.class_weights import compute_class_weight
    from .training.encoders import default_encoder
    from .training.evaluation import compute_metrics, target_matrix
    from .training.features import pooled_features
    from .training.lexical_fit import add_lexical_features
    from .training.precision import has_bfloat16
    from .training.regime import Regime, choose_regime
    from .training.risk import calibrate_risk, describe_answers
    from .training.sampler import HierarchySampler
    from .training.search import search_space
    from .training.solver import fit_head, solve
    from .training.standardize import standardize_features
    from .training.suggestions import Suggestions, draw_diverse, prediction_errors, suggest_documents
    from .training.taxonomy_change import TaxonomyChange, change_taxonomy
    from .training.thresholds import tune_for_decoding, tune_thresholds
    from .training.trainer import HcalTrainer
    from .training.tuning import tune_model
    from .training.weighting import WEIGHTERS, LossWeighter, build_weighter

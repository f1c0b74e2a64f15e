"""Evaluates a saved model, after fitting temperature, thresholds and risk on the validation split if requested."""

import json
import os
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import HfArgumentParser, PrinterCallback

from ..card_file import save_minimal_card
from ..configuration_hcal import HcalConfig
from ..decoding import METHODS, Decision, decode, default_method
from ..modeling_hcal import HcalForSequenceClassification
from ..report.predictions import collect_predictions
from ..report.report import write_report
from ..report.summary import RunFacts
from ..training.arguments import HcalTrainingArguments
from ..training.calibration import calibration_metrics
from ..training.evaluation import score_decision, target_matrix
from ..training.risk import describe_answers
from ..training.thresholds import GRANULARITIES, METRICS
from ..training.trainer import HcalTrainer
from .results_table import results_table
from .run_arguments import SPLITS, TableArguments
from .run_data import encode_splits, load_data
from .run_report import REPORT_FILE, RunRows, temperature_rows, threshold_rows, without_prefix
from .saved_model import load_model


@dataclass
class EvaluationArguments:
    """Selects the split to evaluate and the values to fit on the validation split, in this order."""

    split: str = field(default="test", metadata={"help": "Split to evaluate: train, validation or test."})
    temperature: bool = field(default=False, metadata={"help": "Fit the temperature of the probabilities."})
    tune: str | None = field(
        default=None, metadata={"help": "Tune label thresholds for this metric: micro_f1 or macro_f1."}
    )
    granularity: str | None = field(
        default=None,
        metadata={"help": "Tune one threshold for all labels (global, the default), per level or per label."},
    )
    risk: float | None = field(
        default=None,
        metadata={"help": "Calibrate decode=risk to this share of wrong labels, on documents that fit nothing else."},
    )
    decode: str | None = field(
        default=None, metadata={"help": f"Decoder: {', '.join(METHODS)}. Default: that of the label mode."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the model with the fitted values."})
    save: bool = field(default=False, metadata={"help": "Save the fitted values in the folder of the model."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object instead of tables."})
    batch_size: int = field(default=32, metadata={"help": "Documents per batch."})
    seed: int = field(default=0, metadata={"help": "Seed for halving the validation split."})
    report: str | None = field(
        default=None,
        metadata={
            "help": "Write a report with plots to this file (.html). Default: report.html in the folder that output_dir or "
            "save names, else none."
        },
    )
    no_report: bool = field(default=False, metadata={"help": "Write no report."})
    no_texts: bool = field(default=False, metadata={"help": "Leave all texts out of the report."})
    use_cpu: bool = field(default=False, metadata={"help": "Use no accelerator."})

    def check(self, model: str) -> None:
        """Raises a ValueError if a value is out of range or arguments conflict."""
        for name, allowed in (
            ("split", SPLITS),
            ("tune", METRICS),
            ("granularity", GRANULARITIES),
            ("decode", METHODS),
        ):
            if getattr(self, name) not in (None, *allowed):
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.granularity and not self.tune:
            raise ValueError(f"granularity={self.granularity!r} needs tuned thresholds: give tune (micro_f1) as well.")
        if self.risk is not None and not 0 < self.risk < 1:
            raise ValueError(f"risk must lie between 0 and 1 (0.1: one label in ten may be wrong), got {self.risk}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.fits and self.split == "validation":
            raise ValueError(
                "temperature, tune and risk are fitted on the validation split, so its scores would be biased: evaluate "
                'split="test", or fit nothing.'
            )
        if (self.save or self.output_dir) and not self.fits:
            raise ValueError(
                "There is nothing to save: give temperature, tune or risk, or leave out save and output_dir."
            )
        if self.save and self.output_dir:
            raise ValueError("Give save (the model's own folder) or output_dir (another folder), not both.")
        if self.save and not os.path.isdir(model):
            raise ValueError(f"save writes into the model's own folder, but {model} is not a folder: give output_dir.")
        if self.report and self.no_report:
            raise ValueError(f"Give report ({self.report}) or no_report, not both.")
        if self.output_dir and Path(self.output_dir).resolve() == Path(model).resolve():
            raise ValueError(f"output_dir is the model's own folder, {model}: give save instead.")

    def report_path(self, model: str) -> Path | None:
        """Returns the file of the report, or None if there shall be none."""
        folder = self.output_dir or (model if self.save else None)
        if self.no_report or not (self.report or folder):
            return None
        return Path(self.report or os.path.join(str(folder), REPORT_FILE))

    @property
    def fits(self) -> bool:
        """Whether any value is fitted."""
        return self.temperature or self.tune is not None or self.risk is not None


def parse_arguments(argv: list[str] | None = None) -> tuple[str, EvaluationArguments, TableArguments]:
    """Reads `MODEL [--data_dir DIR] [--split test] ...` from the command line."""
    parser = HfArgumentParser([EvaluationArguments, TableArguments])
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    args, tables, rest = parser.parse_args_into_dataclasses(argv)
    return rest.model, args, tables


def evaluate_model(model_name: str, args: EvaluationArguments, tables: TableArguments) -> dict[str, Any]:
    """Fits the requested values on the validation split, evaluates a split, prints the results, and saves on request.

    The temperature is fitted first, then the thresholds on the same documents, and then the risk. If the risk and another
    value are fitted, the validation documents are halved by the seed, and one half is for the risk alone. The guarantee of
    the risk holds only for documents that selected nothing. They must not have selected the checkpoint either, which cannot
    be checked here.

    Args:
        model_name: the folder of a saved model with its tokenizer, or its name on the Hub.
        args: the values to fit and the split to evaluate.
        tables: the texts and labels. What it does not set is read as in training (`config.table_options`).

    Returns:
        `model`, `split`, `documents` (the number of documents of each step), `metrics` of the split (with the names of the
        Trainer, calibration, and `answers_...` if the model has a calibrated risk), and the results of fitting
        `temperature`, `thresholds` and `risk`, if requested. `report` is the file of the report, if one was written.

    Raises:
        ValueError: if the model is not an HCAL model, data is missing, a value is out of range, or arguments conflict.
    """
    args.check(model_name)
    model, tokenizer = load_model(model_name)
    config = model.config
    check_decoder(args, config)
    tables = tables.with_defaults(config.table_options)
    raw = load_data(tables, ["validation", args.split] if args.fits else [args.split])
    truncated: dict[str, int] = {}
    encoded = encode_splits(
        raw, model.taxonomy, tokenizer, tables, config.label_mode, config.partial_paths, config.text_prefix, truncated
    )
    for split, rows in encoded.items():
        if not len(rows):
            raise ValueError(f"The split {split} of {tables.data_dir or tables.dataset} has no documents.")
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(model, tokenizer, args, folder)
        report = {"model": model_name, "split": args.split, **_fit(trainer, args, encoded.get("validation"))}
        report["documents"][args.split] = len(encoded[args.split])
        path = args.report_path(model_name)
        with collect_predictions(trainer, args.decode) if path else nullcontext() as collector:
            report["metrics"] = trainer.evaluate(encoded[args.split], metric_key_prefix=args.split)
        is_main = trainer.is_world_process_zero()
    if is_main:
        _save(model, tokenizer, model_name, args, report)
        if path is not None and collector is not None:
            rows = RunRows(raw, encoded, model.taxonomy, tables, config, truncated)
            facts = evaluation_facts(model_name, args, tables, report, rows, config)
            texts = None if args.no_texts else rows.texts(args.split)
            report["report"] = str(write_report(path, facts, collector.result(), model.taxonomy, texts))
        print(json.dumps(report, indent=2) if args.json else _as_text(report, args, model))
        if not args.json and path is not None:
            print(f"\nThe report is in {path}.")
        elif not args.json and not args.no_report:
            print("\nFor a report with plots: --report FILE.html")
    return report


def build_trainer(
    model: HcalForSequenceClassification, tokenizer: Any, args: EvaluationArguments, folder: str
) -> HcalTrainer:
    """Builds a trainer that evaluates a model and prints nothing."""
    settings: dict[str, Any] = {
        "report_to": "none",
        "per_device_eval_batch_size": args.batch_size,
        "use_cpu": args.use_cpu,
    }
    trainer = HcalTrainer(
        model,
        HcalTrainingArguments(folder, **settings),
        processing_class=tokenizer,
        compute_metrics=lambda predictions: _metrics(predictions, model, args.decode),
    )
    trainer.remove_callback(PrinterCallback)  # the commands print the results themselves
    return trainer


def check_decoder(args: EvaluationArguments, config: HcalConfig) -> None:
    """Validates the decoder options before the first batch."""
    if args.decode == "risk" and config.risk_threshold is None and args.risk is None:
        raise ValueError("decode='risk' needs a calibrated model: give risk=0.1 (a share of wrong labels) as well.")
    if args.decode == "risk" and args.temperature and args.risk is None:
        raise ValueError(
            "A new temperature drops the model's risk calibration, which decode='risk' needs: give risk too."
        )
    logits = torch.zeros(1, len(config.labels))
    risk_threshold = 1.0 if args.decode == "risk" else None
    decode(logits, config.to_taxonomy(), config.label_mode, args.decode, risk_threshold=risk_threshold)


def _fit(trainer: HcalTrainer, args: EvaluationArguments, validation: Dataset | None) -> dict[str, Any]:
    """Fits the requested values. Returns the result of each method, and the number of its documents."""
    report: dict[str, Any] = {"documents": {}}
    if validation is None or not args.fits:
        return report
    fitting, risk_only = validation, validation
    if args.risk is not None and (args.temperature or args.tune):
        if len(validation) < 2:
            raise ValueError(
                f"The validation split has {len(validation)} document: risk needs others than temperature and tune. Give "
                "more documents, or fit only one of them."
            )
        order = np.random.default_rng(args.seed).permutation(len(validation))
        half = len(validation) // 2
        fitting, risk_only = (validation.select(np.sort(part)) for part in (order[:half], order[half:]))
    if args.temperature:
        before = trainer.unwrapped_model.config.score_temperature
        report["temperature"] = {"temperature_before": before, **trainer.calibrate_temperature(fitting)}
        report["documents"]["temperature"] = len(fitting)
    if args.tune:
        report["thresholds"] = trainer.tune_thresholds(fitting, args.granularity or "global", args.tune)
        report["documents"]["thresholds"] = len(fitting)
    if args.risk is not None:
        report["risk"] = trainer.calibrate_risk(risk_only, args.risk)
        report["documents"]["risk"] = len(risk_only)
    return report


def _metrics(predictions: Any, model: HcalForSequenceClassification, method: str | None) -> dict[str, float]:
    """Computes metrics of the predictions and probabilities, and `answers_...` for predictions at the calibrated risk."""
    config, taxonomy = model.config, model.taxonomy
    decision = Decision.from_config(config, method=method)
    metrics = score_decision(predictions, taxonomy, decision)
    logits = torch.from_numpy(np.asarray(predictions.predictions))
    targets = target_matrix(np.asarray(predictions.label_ids), taxonomy.num_labels)
    metrics |= calibration_metrics(logits, targets, taxonomy, **decision.model_options)
    if config.risk_threshold is not None:
        answers = replace(decision, method="risk").decode(logits, taxonomy)
        metrics |= {f"answers_{name}": value for name, value in describe_answers(answers, targets, taxonomy).items()}
    return metrics


def _as_text(report: dict[str, Any], args: EvaluationArguments, model: HcalForSequenceClassification) -> str:
    """Formats the report as text."""
    config, documents, metrics = model.config, report["documents"], report["metrics"]
    lines = []
    if fitted := report.get("temperature"):
        ece, of = ("end_ece", " of the decisions") if "end_ece_before" in fitted else ("ece", "")
        lines.append(
            f"temperature {fitted['temperature']:.3f}, fitted on {documents['temperature']:,} validation documents: "
            f"-log P of a document's labels {fitted['nll_before']:.3f} -> {fitted['nll_after']:.3f}, "
            f"ECE{of} {100 * fitted[f'{ece}_before']:.2f} -> {100 * fitted[f'{ece}_after']:.2f} %"
        )
    if fitted := report.get("thresholds"):
        lines.append(
            f"thresholds ({args.granularity or 'global'}), tuned on {documents['thresholds']:,} validation documents: "
            f"{args.tune} {100 * fitted['before']:.1f} -> {100 * fitted['after']:.1f} %"
        )
    if fitted := report.get("risk"):
        other = " that fitted nothing else" if args.temperature or args.tune else ""
        lines.append(
            f"risk {fitted['alpha']:g}, calibrated on {documents['risk']:,} validation documents"
            f"{other}: labels are predicted from a probability of "
            f"{fitted['threshold']:.3f}"
        )
    lines.append(results_table(metrics, model.taxonomy, args.split, documents[args.split]))
    if args.decode:
        lines.append(f'\n"decoded" is decode="{args.decode}".')
    if f"{args.split}_answers_risk" in metrics:
        risk, answered, levels, completeness, empty = (
            metrics[f"{args.split}_answers_{name}"] for name in ("risk", "answered", "levels", "completeness", "empty")
        )
        lines.append(
            f'\ndecode="risk" at {config.risk_alpha:g}: on average over the documents, {100 * risk:.1f} % of the predicted '
            f"labels are wrong, {answered:.2f} labels are predicted down to {levels:.2f} levels, "
            f"{100 * completeness:.1f} % of the true labels are found. {100 * empty:.1f} % of the documents have no "
            "predicted label."
        )
    return "\n".join(lines)


def evaluation_facts(
    model_name: str,
    args: EvaluationArguments,
    tables: TableArguments,
    report: dict[str, Any],
    rows: RunRows,
    config: HcalConfig,
) -> RunFacts:
    """Collects what the evaluation knows for its report."""
    data = str(tables.data_dir or tables.dataset)
    tuning, settings = [], [("decoder", args.decode or f"{default_method(config.label_mode)} (default)")]
    if fitted := report.get("temperature"):
        tuning += temperature_rows(fitted)
    if fitted := report.get("thresholds"):
        tuning += threshold_rows(fitted, str(args.tune), f"thresholds: {args.granularity or 'global'}")
    if fitted := report.get("risk"):
        settings.append(("risk", f"{fitted['alpha']:g}: labels from a probability of {fitted['threshold']:.3f}"))
    if tables.leave_out:
        settings.append(("left out before", f"rows with {', '.join(tables.leave_out)}"))
    return RunFacts(
        title=f"Evaluation of {Path(model_name).name or model_name} on {Path(data).name or data}",
        model=model_name,
        data=data,
        split=args.split,
        metrics=without_prefix(report["metrics"], args.split),
        config=config,
        rows=rows.splits,
        tuning=tuning,
        settings=settings,
    )


def _save(
    model: HcalForSequenceClassification,
    tokenizer: Any,
    model_name: str,
    args: EvaluationArguments,
    report: dict[str, Any],
) -> None:
    """Saves the fitted values and the metrics if requested."""
    if args.save:
        model.config.save_pretrained(model_name)  # fitting changes only the configuration
        save_minimal_card(model, model_name)  # the scores of the old card belong to other predictions
    elif args.output_dir:
        model.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
    folder = model_name if args.save else args.output_dir
    if folder:
        path = Path(folder) / f"{args.split}_results.json"
        path.write_text(json.dumps(report["metrics"], indent=2), encoding="utf-8")

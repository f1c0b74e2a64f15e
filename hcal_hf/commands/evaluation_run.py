"""Evaluates a saved model, after fitting temperature, thresholds and risk on the validation split if requested."""

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import HfArgumentParser, PrinterCallback

from ..card_file import save_minimal_card
from ..configuration_hcal import HcalConfig
from ..decoding import METHODS, decode
from ..modeling_hcal import HcalForSequenceClassification
from ..training.arguments import HcalTrainingArguments
from ..training.calibration import calibration_metrics
from ..training.evaluation import compute_metrics, target_matrix
from ..training.risk import describe_answers
from ..training.thresholds import GRANULARITIES, METRICS
from ..training.trainer import HcalTrainer
from .results_table import results_table
from .run_arguments import SPLITS, TableArguments
from .run_data import encode_splits, load_data
from .saved_model import load_model


@dataclass
class EvaluationArguments:
    """What is fitted on the validation split, in this order, and what is evaluated."""

    split: str = field(default="test", metadata={"help": "Split to evaluate: train, validation or test."})
    temperature: bool = field(default=False, metadata={"help": "Fit the temperature of the probabilities."})
    tune: str | None = field(
        default=None, metadata={"help": "Tune label thresholds for this metric: micro_f1 or macro_f1."}
    )
    granularity: str | None = field(
        default=None, metadata={"help": "Of the thresholds: global (default), level or label."}
    )
    risk: float | None = field(
        default=None,
        metadata={"help": "Calibrate decode=risk to this share of wrong labels, on documents that fit nothing else."},
    )
    decode: str | None = field(
        default=None, metadata={"help": f"How to decode: {', '.join(METHODS)}; the label mode's default if not given."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Where the model is saved with what was fitted."})
    save: bool = field(default=False, metadata={"help": "Save what was fitted in the model's own folder."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object instead of tables."})
    batch_size: int = field(default=32, metadata={"help": "Documents a batch."})
    seed: int = field(default=0, metadata={"help": "Of the two parts of the validation split."})
    use_cpu: bool = field(default=False, metadata={"help": "Use no accelerator."})

    def check(self, model: str) -> None:
        """Raises ValueError for a value out of range and for arguments that do not go together."""
        for name, allowed in (
            ("split", SPLITS),
            ("tune", METRICS),
            ("granularity", GRANULARITIES),
            ("decode", METHODS),
        ):
            if getattr(self, name) not in (None, *allowed):
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.granularity and not self.tune:
            raise ValueError(f"granularity={self.granularity!r} is of tuned thresholds: give tune (micro_f1) as well.")
        if self.risk is not None and not 0 < self.risk < 1:
            raise ValueError(f"risk must lie between 0 and 1 (0.1: one label in ten may be wrong), got {self.risk}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.fits and self.split == "validation":
            raise ValueError(
                "temperature, tune and risk are fitted on the validation split, so that its own scores would say nothing: "
                'evaluate split="test", or fit nothing.'
            )
        if (self.save or self.output_dir) and not self.fits:
            raise ValueError(
                "There is nothing to save: give temperature, tune or risk, or leave out save and output_dir."
            )
        if self.save and self.output_dir:
            raise ValueError("Give save (the model's own folder) or output_dir (another folder), not both.")
        if self.save and not os.path.isdir(model):
            raise ValueError(f"save writes into the model's own folder, but {model} is none: give output_dir.")
        if self.output_dir and Path(self.output_dir).resolve() == Path(model).resolve():
            raise ValueError(f"output_dir is the model's own folder, {model}: give save instead.")

    @property
    def fits(self) -> bool:
        """Whether anything is fitted."""
        return self.temperature or self.tune is not None or self.risk is not None


def parse_arguments(argv: list[str] | None = None) -> tuple[str, EvaluationArguments, TableArguments]:
    """Reads `MODEL [--data_dir DIR] [--split test] ...` from the command line."""
    parser = HfArgumentParser([EvaluationArguments, TableArguments])
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    args, tables, rest = parser.parse_args_into_dataclasses(argv)
    return rest.model, args, tables


def evaluate_model(model_name: str, args: EvaluationArguments, tables: TableArguments) -> dict[str, Any]:
    """Fits what is asked for on the validation split, evaluates, prints, and saves if asked to.

    The temperature is fitted first, then the thresholds on the same documents, then the risk. If there is a risk and
    anything before it, the validation documents are shared out by the seed, one half for the risk alone: its guarantee
    holds for documents that chose nothing. They must not have chosen the checkpoint either, which is not known here.

    Args:
        model_name: folder of a saved model with its tokenizer, or its name on the Hub.
        args: what to fit and to evaluate.
        tables: texts and labels.

    Returns:
        `model`, `split`, `documents` (how many each step had), `metrics` of the split (names as the Trainer's, with
        calibration, and `answers_...` where the model has a calibrated risk), and what `temperature`, `thresholds` and
        `risk` fitting returned, where asked for.

    Raises:
        ValueError: for what is no HCAL model, missing data, a value out of range, or arguments that do not go together.
    """
    args.check(model_name)
    model, tokenizer = load_model(model_name)
    config = model.config
    _check_decoder(args, config)
    raw = load_data(tables, ["validation", args.split] if args.fits else [args.split])
    encoded = encode_splits(raw, model.taxonomy, tokenizer, tables, config.label_mode, config.partial_paths)
    for split, rows in encoded.items():
        if not len(rows):
            raise ValueError(f"The split {split} of {tables.data_dir or tables.dataset} has no documents.")
    with tempfile.TemporaryDirectory() as folder:
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
        trainer.remove_callback(PrinterCallback)  # what is printed is up to us
        report = {"model": model_name, "split": args.split, **_fit(trainer, args, encoded.get("validation"))}
        report["documents"][args.split] = len(encoded[args.split])
        report["metrics"] = trainer.evaluate(encoded[args.split], metric_key_prefix=args.split)
        is_main = trainer.is_world_process_zero()
    if is_main:
        print(json.dumps(report, indent=2) if args.json else _as_text(report, args, model))
        _save(model, tokenizer, model_name, args, report)
    return report


def _check_decoder(args: EvaluationArguments, config: HcalConfig) -> None:
    """Lets the decoder speak before any document has been through the model."""
    if args.decode == "risk" and config.risk_threshold is None and args.risk is None:
        raise ValueError("decode='risk' needs a calibrated model: give risk=0.1 (a share of wrong labels) as well.")
    if args.decode == "risk" and args.temperature and args.risk is None:
        raise ValueError(
            "A new temperature drops the model's risk calibration, which decode='risk' needs: give risk too."
        )
    nothing = torch.zeros(1, len(config.labels))
    risk_threshold = 1.0 if args.decode == "risk" else None
    decode(nothing, config.to_taxonomy(), config.label_mode, args.decode, risk_threshold=risk_threshold)


def _fit(trainer: HcalTrainer, args: EvaluationArguments, validation: Dataset | None) -> dict[str, Any]:
    """Fits on the validation documents: what each method returned, and the number of documents that each had."""
    report: dict[str, Any] = {"documents": {}}
    if validation is None or not args.fits:
        return report
    chosen, untouched = validation, validation
    if args.risk is not None and (args.temperature or args.tune):
        if len(validation) < 2:
            raise ValueError(
                f"The validation split has {len(validation)} document: risk needs others than temperature and tune. Give "
                "more documents, or one of them alone."
            )
        order = np.random.default_rng(args.seed).permutation(len(validation))
        half = len(validation) // 2
        chosen, untouched = (validation.select(np.sort(part)) for part in (order[:half], order[half:]))
    if args.temperature:
        report["temperature"] = trainer.calibrate_temperature(chosen)
        report["documents"]["temperature"] = len(chosen)
    if args.tune:
        report["thresholds"] = trainer.tune_thresholds(chosen, args.granularity or "global", args.tune)
        report["documents"]["thresholds"] = len(chosen)
    if args.risk is not None:
        report["risk"] = trainer.calibrate_risk(untouched, args.risk)
        report["documents"]["risk"] = len(untouched)
    return report


def _metrics(predictions: Any, model: HcalForSequenceClassification, method: str | None) -> dict[str, float]:
    """Metrics of the decisions and of the probabilities; `answers_...`: of the answers at the calibrated risk."""
    config, taxonomy = model.config, model.taxonomy
    mode, partial, head = config.label_mode, config.partial_paths, config.head
    risk_threshold = config.risk_threshold
    found = compute_metrics(predictions, taxonomy, mode, partial, head, config.thresholds, method, risk_threshold)
    logits = torch.from_numpy(np.asarray(predictions.predictions))
    targets = target_matrix(np.asarray(predictions.label_ids), taxonomy.num_labels)
    found |= calibration_metrics(logits, targets, taxonomy, mode, partial, head)
    if risk_threshold is not None:
        answers = decode(logits, taxonomy, mode, "risk", None, partial, head, risk_threshold)
        found |= {f"answers_{name}": value for name, value in describe_answers(answers, targets, taxonomy).items()}
    return found


def _as_text(report: dict[str, Any], args: EvaluationArguments, model: HcalForSequenceClassification) -> str:
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
            f"{other}: labels answered from a probability of "
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
            f'\ndecode="risk" at {config.risk_alpha:g}: {100 * risk:.1f} % of an answer\'s labels are wrong; it has '
            f"{answered:.2f} labels down to {levels:.2f} levels, {100 * completeness:.1f} % of the true ones; "
            f"{100 * empty:.1f} % of the answers are empty."
        )
    return "\n".join(lines)


def _save(
    model: HcalForSequenceClassification,
    tokenizer: Any,
    model_name: str,
    args: EvaluationArguments,
    report: dict[str, Any],
) -> None:
    if args.save:
        model.config.save_pretrained(model_name)  # all that was fitted; the weights are as they were
        save_minimal_card(model, model_name)  # its scores were those of other decisions
    elif args.output_dir:
        model.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
    folder = model_name if args.save else args.output_dir
    if folder:
        path = Path(folder) / f"{args.split}_results.json"
        path.write_text(json.dumps(report["metrics"], indent=2), encoding="utf-8")

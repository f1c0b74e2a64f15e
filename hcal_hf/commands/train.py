"""One run from a configuration file: data, model, training, evaluation, a saved model and a few predictions."""

import difflib
import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import DatasetDict
from transformers import AutoTokenizer, HfArgumentParser, pipeline, set_seed
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..card_facts import Details
from ..configuration_hcal import HcalConfig
from ..data.encoding import encode_dataset
from ..data.labels import LabelReader
from ..data.tables import read_table
from ..data.taxonomy_builder import build_taxonomy
from ..modeling_hcal import HcalForSequenceClassification
from ..pipeline_hcal import TASK
from ..taxonomy import SEPARATOR, Taxonomy
from ..training.arguments import PAPER_SETTINGS, HcalTrainingArguments
from ..training.features import CACHE_FOLDER, pooled_features
from ..training.trainer import HcalTrainer

logger = logging.get_logger(__name__)

SPLITS = ("train", "validation", "test")
_DEFAULTS = {name: f.default for name, f in HcalConfig.__dataclass_fields__.items()}


@dataclass
class ModelArguments:
    """The encoder and the fields of [`HcalConfig`]."""

    encoder: str = field(default="", metadata={"help": "Name on the Hub or folder of the encoder."})
    preset: str | None = field(default=None, metadata={"help": '"paper" for HCAL as released.'})
    label_mode: str = field(default=_DEFAULTS["label_mode"], metadata={"help": "single_path or multi_path."})
    head: str = field(
        default=_DEFAULTS["head"],
        metadata={
            "help": "auto (by label_mode), lookahead_softmax, path_softmax, conditional_softmax, lookahead_sigmoid, "
            "conditional_sigmoid, or independent."
        },
    )
    partial_paths: bool = field(
        default=_DEFAULTS["partial_paths"], metadata={"help": "Whether a path may end at an inner node."}
    )
    pooling: str = field(default=_DEFAULTS["pooling"], metadata={"help": "mean, cls or last."})
    projection_dim: int | None = field(
        default=_DEFAULTS["projection_dim"], metadata={"help": "Size of the prototypes; the encoder's by default."}
    )
    score_function: str | None = field(
        default=None, metadata={"help": "cosine or linear; by default linear if the encoder is frozen, else cosine."}
    )
    prototype_anchor: str | None = field(
        default="auto",
        metadata={"help": "label_text or none; by default label_text if the encoder is frozen, else none."},
    )
    contrast: str | None = field(default=None, metadata={"help": "aggregate: one more task a level, on class means."})
    prototype_temperature: float = field(
        default=_DEFAULTS["prototype_temperature"], metadata={"help": "tau in score = cosine / tau."}
    )
    perturbation: float = field(
        default=_DEFAULTS["perturbation"], metadata={"help": "Noise on the prototypes, as at d = 256."}
    )
    freeze_encoder: bool = field(
        default=False, metadata={"help": "Compute the encoder's features once and train the head on them."}
    )


@dataclass
class TableArguments:
    """Where texts and labels come from."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with train, validation and test files (.jsonl, .csv, .parquet, ...)."}
    )
    dataset: str | None = field(default=None, metadata={"help": "Name of a data set on the Hub, instead of data_dir."})
    text: str = field(default="text", metadata={"help": "Column of texts."})
    labels: list[str] = field(
        default_factory=lambda: ["labels"], metadata={"help": "Column of labels, or one column a level."}
    )
    separator: str = field(default=SEPARATOR, metadata={"help": "Between the steps of a path string."})
    delimiter: str | None = field(default=None, metadata={"help": "Between several labels in one string."})
    leave_out: list[str] = field(
        default_factory=list, metadata={"help": "Labels whose documents are no part of the task, such as oos."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens a text at most."})
    on_bad_row: str = field(default="raise", metadata={"help": '"raise" or "drop".'})

    @property
    def reading(self) -> dict[str, Any]:
        """How labels are read, as `build_taxonomy` and `encode_dataset` take it."""
        labels = self.labels[0] if len(self.labels) == 1 else self.labels
        return {"labels": labels, "separator": self.separator, "delimiter": self.delimiter}


@dataclass
class DataArguments(TableArguments):
    """Where texts, labels and hierarchy come from."""

    taxonomy: str | None = field(
        default=None, metadata={"help": "JSON file of the hierarchy; the paths of all splits by default."}
    )
    identity: str = field(default="path", metadata={"help": '"path" or "name": what makes two nodes one.'})
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Where features of a frozen encoder are kept; output_dir/_features by default."},
    )
    show_predictions: int = field(default=5, metadata={"help": "Test documents whose predicted paths are printed."})
    card: dict | str | None = field(
        default=None,
        metadata={
            "help": 'For the model card, as JSON: {"language": "en", "license": "apache-2.0", "dataset": "..."}.'
        },
    )


Arguments = tuple[ModelArguments, DataArguments, HcalTrainingArguments]


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """Reads a YAML file and overrides from the command line: `[config.yaml] [--learning_rate 1e-4 ...]`.

    Logs go to TensorBoard where it is installed; `report_to` names others, or "none".

    Raises:
        ValueError: for a key in the file that is no argument (with the closest ones), or a file that holds no mapping.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser([ModelArguments, DataArguments, HcalTrainingArguments])
    if is_tensorboard_available():
        parser.set_defaults(report_to="tensorboard")
    if argv and argv[0].endswith((".yaml", ".yml")):
        values = _read_config(argv.pop(0))
        if values.get("preset") == "paper":
            values = {**PAPER_SETTINGS, **values}
        parser.set_defaults(**values)
    model, data, training = parser.parse_args_into_dataclasses(argv)
    return model, data, training


def _read_config(path: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as missing:
        raise ImportError('Reading a YAML configuration needs pyyaml: pip install "hcal-hf[quickstart]".') from missing
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of arguments, got {type(values).__name__}.")
    known = [f.name for kind in (ModelArguments, DataArguments, HcalTrainingArguments) for f in fields(kind) if f.init]
    for key in values:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}. Closest: {difflib.get_close_matches(key, known, n=3)}.")
    return values


def run_training(
    model_args: ModelArguments, data_args: DataArguments, args: HcalTrainingArguments
) -> dict[str, float]:
    """Trains, evaluates, saves, and shows a few predictions.

    Writes to `args.output_dir`: the model with its tokenizer, checkpoints, `test_results.json`, the trainer's state and the
    model card with its pictures ([`HcalTrainer.create_model_card`]); pushes them with `push_to_hub`.

    Returns:
        the metrics of the test split (of the validation split, if there is no test split); {} without both.

    Raises:
        ValueError: for missing data, encoder or training split.
    """
    set_seed(args.seed)
    if not model_args.encoder:
        raise ValueError("There is no encoder: give encoder=... (a name on the Hub or a folder).")
    details = Details.read(data_args.card)
    if data_args.dataset and not os.path.exists(data_args.dataset) and details.dataset_tags is None:
        details.dataset_tags = data_args.dataset
    tokenizer = AutoTokenizer.from_pretrained(model_args.encoder)
    raw = load_data(data_args)
    if data_args.taxonomy:
        taxonomy = Taxonomy.from_json(data_args.taxonomy)
    else:
        taxonomy = build_taxonomy(raw, identity=data_args.identity, **data_args.reading)  # type: ignore[arg-type]
    with args.main_process_first(desc="encoding"):
        # The paper preset is for full paths, as HcalConfig.paper checks on the taxonomy.
        encoded = encode_splits(raw, taxonomy, tokenizer, data_args, model_args.label_mode, model_args.partial_paths)

    names = {f.name for f in fields(ModelArguments)} - {"encoder", "preset", "freeze_encoder"}
    chosen = {name: getattr(model_args, name) for name in names}
    # What was most accurate in recipes/benchmarks.
    frozen = model_args.freeze_encoder and model_args.preset is None and model_args.contrast is None
    if chosen["score_function"] is None:
        chosen["score_function"] = "linear" if frozen else "cosine"
    if chosen["prototype_anchor"] == "auto":
        chosen["prototype_anchor"] = "label_text" if frozen else None
    elif chosen["prototype_anchor"] == "none":
        chosen["prototype_anchor"] = None
    if model_args.preset is not None:  # a preset wins over defaults, not over what was asked for
        chosen = {name: value for name, value in chosen.items() if value != _DEFAULTS[name]}
    model = HcalForSequenceClassification.from_encoder(model_args.encoder, taxonomy, model_args.preset, **chosen)
    table = encoded
    if model_args.freeze_encoder:
        model.encoder.requires_grad_(False)
        cache = data_args.feature_cache or os.path.join(args.output_dir, CACHE_FOLDER)
        model.to(args.device)
        with args.main_process_first(desc="features"):
            table = DatasetDict(
                {
                    name: pooled_features(
                        model, split, tokenizer, cache_dir=cache, desc=f"Encoding {name} ({len(split):,} texts)"
                    )
                    for name, split in encoded.items()
                }
            )
    trainer = HcalTrainer(
        model, args, train_dataset=table["train"], eval_dataset=table.get("validation"), processing_class=tokenizer
    )
    trainer.card_details = details
    _announce_launch(trainer)
    resume: Any = args.resume_from_checkpoint
    if str(resume).lower() in ("true", "false", "none"):
        resume = get_last_checkpoint(args.output_dir) if str(resume).lower() == "true" else None
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(args.output_dir)
    trainer.save_state()

    held_out = next((name for name in ("test", "validation") if name in table), None)
    if held_out is None:
        return {}
    metrics = trainer.evaluate(table[held_out], metric_key_prefix=held_out)
    if args.push_to_hub:
        trainer.push_to_hub(commit_message="Results in the model card")
    else:
        trainer.create_model_card()
    if trainer.is_world_process_zero():
        path = os.path.join(args.output_dir, f"{held_out}_results.json")
        Path(path).write_text(json.dumps(metrics, indent=2), encoding="utf-8")
        print(results_table(metrics, taxonomy, held_out, len(table[held_out])))
        # A sharded model predicts on all processes together or not at all: this one loads what was saved.
        sharded = trainer.is_fsdp_enabled
        predictor = args.output_dir if sharded else trainer.accelerator.unwrap_model(trainer.model)
        pipe = pipeline(TASK, model=predictor, tokenizer=tokenizer, device=args.device if sharded else None)
        print_predictions(pipe, raw[held_out], encoded[held_out], taxonomy, data_args)
    return metrics


def end_processes() -> None:
    """Leaves the process group that a launcher's processes share; without one, does nothing. The last thing a script does:
    a worker thread of gloo that lives on as the interpreter ends can abort the process ("terminate called without an active
    exception"), and the launcher would report that all failed."""
    gc.collect()  # the threads end with the group, once no wrapped model of an old trainer holds it
    PartialState().destroy_process_group()


def _announce_launch(trainer: HcalTrainer) -> None:
    """Prints how many processes train in which way, and warns of a way that was asked for and not taken: on a CPU
    accelerate leaves FSDP and DeepSpeed out without a word."""
    taken = {"FSDP": trainer.is_fsdp_enabled, "DeepSpeed": trainer.is_deepspeed_enabled}
    number, device = trainer.accelerator.num_processes, trainer.args.device.type
    ways = [way for way, is_taken in taken.items() if is_taken] or (["DDP"] if number > 1 else [])
    if not trainer.is_world_process_zero():
        return
    plural = "es" if number > 1 else ""
    # At once, so that no other process writes into the line.
    print(f"Training: {number} process{plural} on {device}{''.join(f', {way}' for way in ways)}", flush=True)
    for way, is_taken in taken.items():
        if not is_taken and os.environ.get(f"ACCELERATE_USE_{way.upper()}", "").lower() == "true":
            logger.warning(f"{way} was asked for and is not used on {device}: each process holds the whole model.")


def load_data(data_args: TableArguments, splits: Sequence[str] | None = None) -> DatasetDict:
    """Splits from a folder of files that are named so, or from the Hub, without the documents that `leave_out` names.

    Args:
        data_args: the folder or the name on the Hub; for a single split `data_dir` may also be its file.
        splits: those to load, from `SPLITS`; train, and validation and test where there are any, by default.

    Raises:
        ValueError: if neither or both are given, a split is missing, or the files differ in type.
    """
    if (data_args.data_dir is None) == (data_args.dataset is None):
        raise ValueError(
            "Give either data_dir (a folder with train, validation and test files) or dataset (on the Hub)."
        )
    source: Any = data_args.dataset or Path(data_args.data_dir)  # type: ignore[arg-type]
    if isinstance(source, Path) and not source.is_dir() and (splits is None or len(splits) > 1):
        raise ValueError(
            f"{source} is not a folder, but there must be a folder with the files of "
            f"{', '.join(splits or ('train', 'validation', 'test'))}: give that folder."
        )
    table = read_table(source, splits=splits)
    return _leave_out(table if isinstance(table, DatasetDict) else DatasetDict({splits[0]: table}), data_args)  # type: ignore[index]


def _leave_out(raw: DatasetDict, data_args: TableArguments) -> DatasetDict:
    """The documents with none of the labels in `leave_out`, wherever on a path it stands; how many go is told."""
    if not data_args.leave_out:
        return raw
    names = set(data_args.leave_out)
    reading = data_args.reading
    reader = LabelReader(reading.pop("labels"), **reading)

    def is_kept(*cells: Any) -> bool:
        try:
            labels = reader(cells, known=names) or []
        except ValueError:  # a bad row, which encode_dataset names
            return True
        return names.isdisjoint(step for label in labels for step in ([label] if isinstance(label, str) else label))

    kept = raw.filter(is_kept, input_columns=reader.column_list)
    for split in raw:
        left_out = len(raw[split]) - len(kept[split])
        logger.warning(f"{split}: {left_out:,} rows with a label in {sorted(names)} left out.")
    return kept


def encode_splits(
    raw: DatasetDict,
    taxonomy: Taxonomy,
    tokenizer: Any,
    data_args: TableArguments,
    label_mode: str,
    partial_paths: bool,
) -> DatasetDict:
    """[`encode_dataset`] with the columns and options of the arguments."""
    return encode_dataset(
        raw,
        taxonomy,
        tokenizer,
        data_args.text,
        label_mode=label_mode,  # type: ignore[arg-type]
        partial_paths=partial_paths,
        max_length=data_args.max_length,
        on_bad_row=data_args.on_bad_row,  # type: ignore[arg-type]
        **data_args.reading,
    )


def results_table(metrics: dict[str, float], taxonomy: Taxonomy, prefix: str, documents: int) -> str:
    """Accuracy and F1 of each level, and the overall scores of the raw and the decoded decision, in percent; calibration,
    where it was measured ([`hcal_hf.calibration_metrics`])."""

    def percent(name: str) -> str:
        return f"{100 * metrics[f'{prefix}_{name}']:9.1f}"

    lines = [f"\n{prefix}: {documents:,} documents, in percent", "", "level  labels  accuracy  micro-F1  macro-F1"]
    for k, level in enumerate(taxonomy.levels):
        scores = (percent(f"{name}_level_{k}") for name in ("accuracy", "micro_f1", "macro_f1"))
        lines.append(f"{k:5d}  {level.stop - level.start:6,d} {' '.join(scores)}")
    lines += ["", "decision  micro-F1  macro-F1  exact match  HVR (documents that contradict the hierarchy)"]
    for decision, start in (("raw", "raw_"), ("decoded", "")):
        row = (percent(start + name) for name in ("micro_f1", "macro_f1", "exact_match", "hvr"))
        micro, macro, exact, hvr = row
        lines.append(f"{decision:8s} {micro} {macro}    {exact}  {hvr.strip()}")
    if f"{prefix}_hvr_argmax" in metrics:
        lines += ["", f"HVR of the best label of each level on its own: {percent('hvr_argmax').strip()}"]
    if f"{prefix}_ece" in metrics:
        lines += ["", "calibration of      ECE  ECE, equal width  Brier score"]
        for what, start in (("probabilities", ""), ("decisions", "end_")):
            if f"{prefix}_{start}ece" in metrics:
                mass, width, brier = (
                    100 * metrics[f"{prefix}_{start}{name}"] for name in ("ece", "ece_equal_width", "brier")
                )
                lines.append(f"{what:14s} {mass:8.2f} {width:17.2f} {brier:12.2f}")
    return "\n".join(lines)


def print_predictions(
    pipe: Any,
    raw: Any,
    encoded: Any,
    taxonomy: Taxonomy,
    data_args: DataArguments,
) -> None:
    """Prints predicted and true paths of a few documents, evenly spread over the split."""
    number = min(data_args.show_predictions, len(encoded))
    if not number or len(raw) != len(encoded):  # rows were dropped: texts and labels no longer stand side by side
        return
    rows = [i * len(raw) // number for i in range(number)]
    texts = [raw[i][data_args.text] for i in rows]
    print("\nPredictions (probability of each step):")
    for i, text, labels in zip(rows, texts, pipe(texts, max_length=data_args.max_length)):
        print(f"\n  {' '.join(text.split())[:110]}")
        above = {tuple(label["path"][:-1]) for label in labels}
        scores = {tuple(label["path"]): label["score"] for label in labels}
        for path in [path for path in scores if path not in above] or [()]:
            steps = [path[: depth + 1] for depth in range(len(path))]
            shown = SEPARATOR.join(
                f"{step[-1]} ({scores[step]:.2f})" if step in scores else step[-1] for step in steps
            )
            print(f"    predicted: {shown or '(nothing)'}")
        print(f"    true:      {'; '.join(SEPARATOR.join(path) for path in taxonomy.decode(encoded[i]['labels']))}")

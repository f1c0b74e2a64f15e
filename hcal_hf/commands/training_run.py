"""Trains a model from arguments: loads data, trains, evaluates, saves and prints a few predictions."""

import copy
import gc
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import DatasetDict
from transformers import AutoTokenizer, pipeline, set_seed
from transformers.utils import logging

from ..configuration_hcal import HcalConfig, display_names
from ..data.label_names import read_label_names
from ..data.texts import join_texts
from ..joint_contrast import JointContrastOptions
from ..model_card import Details
from ..modeling_hcal import HcalForSequenceClassification
from ..pipeline_hcal import TASK
from ..report.predictions import collect_predictions
from ..report.report import write_report
from ..taxonomy import SEPARATOR, Taxonomy
from ..training.arguments import HcalTrainingArguments
from ..training.checkpoints import last_whole_checkpoint
from ..training.features import CACHE_FOLDER, pooled_features
from ..training.lexical_fit import LEXICAL_FEATURES, add_lexical_features
from ..training.regime import ADAPTED, FINE_TUNED, FINE_TUNED_ADAPTED, FROZEN, LEXICAL
from ..training.solver import feature_tensors
from ..training.standardize import lies_in_narrow_cone, standardize_features
from ..training.trainer import HcalTrainer
from .continued_run import SPLIT_FILE, continue_from, split_record
from .progress import show_one_line
from .regime_comparison import train_best
from .results_table import results_table
from .run_arguments import DEFAULTS, DataArguments, ModelArguments
from .run_data import COUNT, ROW, encode_splits, load_data, read_or_build_taxonomy, repeat_rows, resolve_windows
from .run_report import REPORT_FILE, RunRows, count_labels, training_facts

logger = logging.get_logger(__name__)


def run_training(
    model_args: ModelArguments, data_args: DataArguments, args: HcalTrainingArguments, notes: Sequence[str] = ()
) -> dict[str, float]:
    """Trains a model, evaluates and saves it, and prints a few predictions.

    Writes to `args.output_dir` the model with its tokenizer, the checkpoints, `test_results.json`, the trainer's state and
    the model card with its pictures ([`HcalTrainer.create_model_card`]). Pushes them if `push_to_hub` is set. Writes
    `report.html` last, which is not pushed, because it can hold texts.

    Args:
        model_args, data_args, args: the arguments of the run.
        notes: decisions that led to these arguments, one sentence each, for the report.

    Returns:
        the metrics of the test split, or of the validation split without a test split, or {} without both.

    Raises:
        ValueError: if data, the encoder or the training split is missing.
    """
    set_seed(args.seed)
    run = _Run.load(model_args, data_args, args)
    regimes = list(model_args.regimes) or [model_args.default_regime]
    if model_args.lexical_features is not None and LEXICAL not in regimes and model_args.start_from is None:
        raise ValueError(
            f"lexical_features={model_args.lexical_features} is for the regime {LEXICAL}, but the run has "
            f"{', '.join(regimes)}: add regimes: {LEXICAL}, or freeze_encoder: true, or leave lexical_features out."
        )
    if LEXICAL in regimes and model_args.preset is not None:
        raise ValueError(f"preset={model_args.preset!r} has no regime {LEXICAL}: leave one of them out.")
    if model_args.window_pooling == "attention" and set(regimes) != {FINE_TUNED}:
        raise ValueError(
            f'window_pooling="attention" is learned while the encoder is fine-tuned, but the run has {", ".join(regimes)}: '
            f"use regimes: {FINE_TUNED}, or window_pooling: mean."
        )
    trainer, lines = train_best(regimes, run.train, args)
    return run.finish(trainer, [*notes, *lines])


@dataclass
class _Run:
    """Holds the data of a run.

    Attributes:
        model_args, data_args, args: the arguments.
        tokenizer: the tokenizer of the encoder.
        raw, encoded: the splits before and after encoding.
        taxonomy ([`Taxonomy`]): the hierarchy.
        split: how one file was split, for later runs that continue from the model.
        start ([`HcalForSequenceClassification`], *optional*): the model to continue from.
        counts: how many times each training document counts, if that is not once.
        truncated: the number of truncated texts of each split.
        fine_tuned ([`HcalTrainer`], *optional*): the trainer of the fine-tuned model, once that is trained.
    """

    model_args: ModelArguments
    data_args: DataArguments
    args: HcalTrainingArguments
    tokenizer: Any
    raw: DatasetDict
    encoded: DatasetDict
    taxonomy: Taxonomy
    split: dict[str, Any]
    start: HcalForSequenceClassification | None
    counts: list[int] | None
    truncated: dict[str, int]
    fine_tuned: HcalTrainer | None = None

    @classmethod
    def load(cls, model_args: ModelArguments, data_args: DataArguments, args: HcalTrainingArguments) -> "_Run":
        """Loads and encodes the data. The arguments are those of [`run_training`]."""
        if not model_args.encoder and not model_args.start_from:
            raise ValueError("There is no encoder: give encoder=... (a name on the Hub or a folder).")
        start = None
        if model_args.start_from:
            start, tokenizer, raw, split = continue_from(model_args, data_args, args)
            taxonomy = start.taxonomy
            if start.windows is not None and data_args.max_length is None:
                data_args.max_length = start.max_tokens
        else:
            tokenizer = AutoTokenizer.from_pretrained(model_args.encoder)
            resolve_windows(model_args, data_args, tokenizer)
            raw = load_data(data_args)
            split = split_record(raw, data_args) if ROW in raw["train"].column_names else {}
            taxonomy = read_or_build_taxonomy(raw, data_args)
        with args.main_process_first(desc="encoding"):
            # The paper preset needs full paths; HcalConfig.paper checks this on the taxonomy.
            mode, partial_paths = model_args.label_mode, model_args.partial_paths
            prefix, truncated = model_args.text_prefix, dict[str, int]()
            encoded = encode_splits(raw, taxonomy, tokenizer, data_args, mode, partial_paths, prefix, truncated)
        counts = None
        if data_args.weight:
            counts = encoded["train"][COUNT][:]
            encoded = encoded.remove_columns(COUNT)
        if data_args.max_length is not None:  # so that texts are cut as in training wherever the model is used
            tokenizer.model_max_length = data_args.max_length
        return cls(model_args, data_args, args, tokenizer, raw, encoded, taxonomy, split, start, counts, truncated)

    def train(self, regime: str) -> HcalTrainer:
        """Builds a model and trains it in one regime ([`REGIMES`]). Returns its trainer."""
        args = self.args
        if regime == FINE_TUNED and self.fine_tuned is not None:
            return self.fine_tuned
        if regime == FINE_TUNED_ADAPTED:
            trained = self.fine_tuned or self.train(FINE_TUNED)
            with self._saved_encoder(trained) as folder:
                model = self._build_model(regime, folder, trained.unwrapped_model.config.pooling)
            encoder_config: Any = model.config.encoder_config
            trained_config: Any = trained.unwrapped_model.config.encoder_config
            encoder_config._name_or_path = trained_config._name_or_path
        else:
            model = self._build_model(regime)
        # A part without labelled documents, as for a table without labels, is like a missing one.
        table = DatasetDict({name: part for name, part in self.encoded.items() if len(part) or name == "train"})
        if regime != FINE_TUNED:
            model.encoder.requires_grad_(False)
            is_new = self.start is None and self.model_args.preset is None
            if regime == LEXICAL and is_new:
                size = self.model_args.lexical_features or LEXICAL_FEATURES
                add_lexical_features(model, self._counted(table["train"]), self.tokenizer, size)
            table = self._features(model, table)
            if regime in (FROZEN, LEXICAL) and is_new:
                states = feature_tensors(self._counted(table["train"]))[0]
                if regime == LEXICAL or lies_in_narrow_cone(states):
                    standardize_features(model, states)
        table["train"] = self._counted(table["train"])
        if "validation" not in table or self.model_args.preset is not None:
            args.tune = "none"
        trainer = HcalTrainer(
            model,
            args,
            train_dataset=table["train"],
            eval_dataset=table.get("validation"),
            processing_class=self.tokenizer,
        )
        trainer.card_details = self._card_details()
        trainer.truncated_texts = {name: (cut, len(self.encoded[name])) for name, cut in self.truncated.items()}
        show_one_line(trainer)
        _announce_launch(trainer)
        if regime in (ADAPTED, FINE_TUNED_ADAPTED):
            if regime == FINE_TUNED_ADAPTED:  # so that card and report tell both parts of the training
                trainer.state = copy.deepcopy(trained.state)
            self._adapt(trainer)
        else:
            resume: Any = args.resume_from_checkpoint
            if str(resume).lower() in ("true", "false", "none"):
                resume = last_whole_checkpoint(str(args.output_dir)) if str(resume).lower() == "true" else None
            trainer.train(
                resume_from_checkpoint=resume if regime == FINE_TUNED or not self.model_args.regimes else None
            )
        if regime == FINE_TUNED:
            self.fine_tuned = trainer
        _report_tuning(trainer.tuned, args.tune)
        return trainer

    def _counted(self, rows: Any) -> Any:
        """Repeats training rows as often as they count."""
        return rows if self.counts is None else repeat_rows(rows, self.counts)

    @contextmanager
    def _saved_encoder(self, trainer: HcalTrainer) -> Iterator[str]:
        """Saves the encoder of a trained model and the tokenizer in a temporary folder.

        Raises:
            ValueError: if the encoder is sharded.
        """
        if trainer.is_fsdp_enabled:
            raise ValueError(
                f"The regime {FINE_TUNED_ADAPTED} does not run under FSDP: use {FINE_TUNED}, or processes without FSDP."
            )
        with tempfile.TemporaryDirectory() as folder:
            trainer.unwrapped_model.encoder.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            yield folder

    def _build_model(
        self, regime: str, encoder: str | None = None, pooling: str | None = None
    ) -> HcalForSequenceClassification:
        """Builds the model of a regime, on the encoder and with the pooling of the arguments by default."""
        model_args, data_args, taxonomy = self.model_args, self.data_args, self.taxonomy
        names = read_label_names(data_args.label_names_file, taxonomy) if data_args.label_names_file else None
        if self.start is not None:
            model = self.start
            model.config.table_options = data_args.table_options
            model.config.label_names = display_names(taxonomy, names) if names else model.config.label_names
            return model
        given: dict[str, Any] = {"table_options": data_args.table_options, "label_names": names}
        encoder = encoder or model_args.encoder
        if regime in (ADAPTED, FINE_TUNED_ADAPTED):
            given |= {"label_mode": model_args.label_mode, "partial_paths": model_args.partial_paths}
            given |= {"pooling": pooling or model_args.pooling, "text_prefix": model_args.text_prefix}
            given |= {name: getattr(model_args, name) for name in ("window_length", "window_overlap", "max_windows")}
            return HcalForSequenceClassification.zero_shot(encoder, taxonomy, **given)
        return HcalForSequenceClassification.from_encoder(
            encoder, taxonomy, model_args.preset, **given, **_config_fields(model_args, regime)
        )

    def _features(self, model: HcalForSequenceClassification, table: DatasetDict) -> DatasetDict:
        """Replaces the tokens of all splits by the pooled states of the encoder."""
        args = self.args
        cache = self.data_args.feature_cache or os.path.join(str(args.output_dir), CACHE_FOLDER)
        model.to(args.device)
        with args.main_process_first(desc="features"):
            features = {}
            for name, part in table.items():
                desc = f"Encoding {name} ({len(part):,} texts)"
                if len(part):
                    features[name] = pooled_features(model, part, self.tokenizer, cache_dir=cache, desc=desc)
            return DatasetDict({**table, **features})

    def _adapt(self, trainer: HcalTrainer) -> None:
        """Adapts the model to the unlabelled rows of all splits and to the labelled training rows."""
        rows = self._rows(trainer)
        labelled = rows.texts("train")(range(len(self.encoded["train"])))
        paths = [self.taxonomy.decode(nodes) for nodes in self.encoded["train"]["labels"][:]]
        if self.counts is not None:
            numbers = np.repeat(np.arange(len(paths)), self.counts).tolist()
            labelled, paths = [labelled[i] for i in numbers], [paths[i] for i in numbers]
        trainer.adapt(rows.unlabelled_texts(), labelled, paths)

    def _rows(self, trainer: HcalTrainer) -> RunRows:
        config = trainer.unwrapped_model.config
        return RunRows(self.raw, self.encoded, self.taxonomy, self.data_args, config, self.truncated)

    def _card_details(self) -> Details:
        dataset = self.data_args.dataset
        details = Details.read(self.data_args.card)
        if dataset and not os.path.exists(dataset) and details.dataset_tags is None:
            details.dataset_tags = dataset
        return details

    def finish(self, trainer: HcalTrainer, notes: Sequence[str]) -> dict[str, float]:
        """Saves and evaluates the model, writes the card and the report, and prints a few predictions."""
        args, data_args, encoded = self.args, self.data_args, self.encoded
        folder = str(args.output_dir)
        trainer.save_model(folder)
        trainer.save_state()
        if self.split and trainer.is_world_process_zero():
            Path(folder, SPLIT_FILE).write_text(json.dumps(self.split), encoding="utf-8")
        held_out = next((name for name in ("test", "validation") if len(encoded.get(name, ()))), None)
        if held_out is None:
            trainer.create_model_card()
            print(
                f"\nThe model is in {folder}. There are no labelled documents to evaluate it on. {_next_steps(folder)}"
            )
            return {}
        documents = encoded[held_out]
        if "pooled_states" in trainer.train_dataset.column_names or not len(trainer.train_dataset):
            documents = self._features(trainer.unwrapped_model, DatasetDict({held_out: documents}))[held_out]
        with nullcontext() if data_args.no_report else collect_predictions(trainer) as collector:
            metrics = trainer.evaluate(documents, metric_key_prefix=held_out)
        if args.push_to_hub:
            trainer.push_to_hub(commit_message="Results in the model card")
        else:
            trainer.create_model_card()
        if not trainer.is_world_process_zero():
            return metrics
        path = os.path.join(folder, f"{held_out}_results.json")
        Path(path).write_text(json.dumps(metrics, indent=2), encoding="utf-8")
        print(results_table(metrics, self.taxonomy, held_out, len(documents)))
        # A sharded model only predicts on all processes together, so this process loads the saved model.
        sharded = trainer.is_fsdp_enabled
        saved_or_trained = folder if sharded else trainer.accelerator.unwrap_model(trainer.model)
        pipe = pipeline(
            TASK, model=saved_or_trained, tokenizer=self.tokenizer, device=args.device if sharded else None
        )
        print_predictions(pipe, self.raw[held_out], encoded[held_out], self.taxonomy, data_args)
        report = ""
        if collector is not None:
            rows = self._rows(trainer)
            facts = training_facts(trainer, self.model_args, data_args, rows, metrics, held_out)
            facts.notes, facts.train_documents = list(notes), count_labels(encoded["train"], self.taxonomy)
            texts = None if data_args.no_texts else rows.texts(held_out)
            report_file = Path(folder, REPORT_FILE)
            report = (
                f", and its report is {write_report(report_file, facts, collector.result(), self.taxonomy, texts)}"
            )
        print(f"\nThe model is in {folder}{report}. {_next_steps(folder)}")
        return metrics


def _next_steps(folder: str) -> str:
    return (
        "What to do next:\n"
        f"  hcal predict {folder} FILE --out predictions.parquet\n"
        f"  hcal evaluate {folder} LABELLED_FILE\n"
        f"  hcal demo {folder}"
    )


def _report_tuning(tuned: dict[str, float], metric: str) -> None:
    """Prints the result of tuning."""
    if not tuned:
        return
    line = f"Tuned on {tuned['documents']:,} validation documents: temperature {tuned['temperature']:.2f}"
    if "threshold" in tuned:
        line += (
            f"; threshold {tuned['threshold']:.2f}; {metric} {100 * tuned['before']:.1f} -> {100 * tuned['after']:.1f} "
            "(five-fold cross-validation)"
        )
    print(f"{line}.", flush=True)


def _config_fields(model_args: ModelArguments, regime: str) -> dict[str, Any]:
    """Returns the fields of [`HcalConfig`] that the arguments set, with automatic values resolved."""
    names = {f.name for f in fields(ModelArguments)} & set(HcalConfig.__dataclass_fields__) - {"lexical_features"}
    config_fields = {name: getattr(model_args, name) for name in names}
    if model_args.pooling is None:
        del config_fields["pooling"]
    if regime in (FROZEN, LEXICAL) and model_args.contrast == "hjcl":
        # Before the features are computed, which takes minutes.
        JointContrastOptions.from_kwargs(config_fields["contrast_kwargs"]).check_pooled()
    # These values were the most accurate in recipes/benchmarks.
    frozen = regime in (FROZEN, LEXICAL) and model_args.preset is None and model_args.contrast is None
    frozen = frozen and model_args.classification_loss != "asl"  # which L-BFGS cannot fit
    if config_fields["score_function"] is None:
        is_euclidean = model_args.geometry == "euclidean"
        config_fields["score_function"] = "linear" if frozen or not is_euclidean else "cosine"
    if config_fields["prototype_anchor"] == "auto":
        config_fields["prototype_anchor"] = "label_text" if frozen else None
    elif config_fields["prototype_anchor"] == "none":
        config_fields["prototype_anchor"] = None
    if model_args.preset is not None:  # a preset overrides defaults, but not values that the user set
        config_fields = {name: value for name, value in config_fields.items() if value != DEFAULTS[name]}
    return config_fields


def end_processes() -> None:
    """Leaves the process group of a launcher. Does nothing without one.

    A script calls this last. A worker thread of gloo that outlives the interpreter can abort the process ("terminate called
    without an active exception"), and the launcher would then report a failure.
    """
    gc.collect()  # the threads end with the group, once no wrapped model of an old trainer refers to it
    PartialState().destroy_process_group()


def _announce_launch(trainer: HcalTrainer) -> None:
    """Prints the number of processes and the kind of parallelism.

    Warns if FSDP or DeepSpeed was requested and is not used. Accelerate ignores them on a CPU without a warning.
    """
    is_enabled = {"FSDP": trainer.is_fsdp_enabled, "DeepSpeed": trainer.is_deepspeed_enabled}
    number, device = trainer.accelerator.num_processes, trainer.args.device.type
    plugins = [plugin for plugin, enabled in is_enabled.items() if enabled] or (["DDP"] if number > 1 else [])
    if not trainer.is_world_process_zero():
        return
    plural = "es" if number > 1 else ""
    line = f"Training: {number} process{plural} on {device}{''.join(f', {plugin}' for plugin in plugins)}"
    # One write, so that no other process writes into the line. `print` writes the end of a line by itself where Python does
    # not buffer, as under `accelerate launch`.
    print(f"{line}\n", end="", flush=True)
    for plugin, enabled in is_enabled.items():
        if not enabled and os.environ.get(f"ACCELERATE_USE_{plugin.upper()}", "").lower() == "true":
            logger.warning(f"{plugin} was requested and is not used on {device}: each process holds the whole model.")


def print_predictions(
    pipe: Any,
    raw: Any,
    encoded: Any,
    taxonomy: Taxonomy,
    data_args: DataArguments,
) -> None:
    """Prints the predicted and true paths of a few documents, evenly spread over the split."""
    number = min(data_args.show_predictions, len(encoded))
    if not number or len(raw) != len(encoded):  # dropped rows: texts and labels no longer correspond
        return
    rows = [i * len(raw) // number for i in range(number)]
    texts = [join_texts([raw[i][name] for name in data_args.text]) for i in rows]
    print("\nPredictions (probability of each step):")
    for i, text, labels in zip(rows, texts, pipe(texts, max_length=data_args.max_length)):
        print(f"\n  {' '.join(text.split())[:110]}")
        inner = {tuple(label["path"][:-1]) for label in labels}
        scores = {tuple(label["path"]): label["score"] for label in labels}
        names = {tuple(label["path"]): f" ({label['name']})" for label in labels if "name" in label}
        for path in [path for path in scores if path not in inner] or [()]:
            steps = [path[: depth + 1] for depth in range(len(path))]
            shown = SEPARATOR.join(
                f"{step[-1]} ({scores[step]:.2f})" if step in scores else step[-1] for step in steps
            )
            print(f"    predicted: {shown or '(nothing)'}{names.get(tuple(path), '')}")
        print(f"    true:      {'; '.join(SEPARATOR.join(path) for path in taxonomy.decode(encoded[i]['labels']))}")

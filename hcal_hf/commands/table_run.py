"""Trains a model on a table, or on a folder of splits, without a configuration file: `hcal train tickets.csv`."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer

from ..configuration_hcal import TABLE_OPTIONS
from ..data.encoding import RowEncoder
from ..data.label_checks import find_misfits
from ..data.labels import LabelReader
from ..data.rows import class_names
from ..data.tables import read_table
from ..data.texts import join_texts
from ..taxonomy import Taxonomy
from ..training.arguments import HcalTrainingArguments
from ..training.encoders import DEFAULT_ENCODER, default_encoder, warn_if_not_english
from ..training.regime import FINE_TUNING_FEW, FROZEN, FROZEN_SETTINGS, LEXICAL, Regime, choose_regime
from .run_arguments import Arguments, DataArguments, ModelArguments, parse_arguments
from .run_data import read_or_build_taxonomy, resolve_windows
from .saved_model import load_model
from .training_run import run_training

CONFIG_FILE = "config.yaml"
# Texts of which the tokens are counted to estimate the time of training.
_SAMPLE = 2000
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def train_table(
    file: str | os.PathLike, overrides: Sequence[str] = (), *, time_budget: float = 15.0, overwrite: bool = False
) -> dict[str, float]:
    """Trains a model on one table of texts and labels, which is split 80/10/10, or on the splits in a folder.

    Decides what a configuration file would say: whether documents have several paths (`label_mode`) or end at inner
    nodes (`partial_paths`), the encoder, and whether label text is adapted or a frozen or fine-tuned encoder is trained
    ([`choose_regime`]). Any number of rows may have no label, also all of them if there is a taxonomy: their texts serve to
    adapt label text. Each decision is printed with its reason, and `config.yaml` in the output folder repeats the run.

    Args:
        file: a table ([`read_table`] lists the formats), or a folder with a table named train and, if they exist,
            validation and test.
        overrides: arguments of a run as on the command line, such as `["--text", "Description"]`.
        time_budget: minutes that fine-tuning may take.
        overwrite: replaces a finished model in the output folder.

    Returns:
        the metrics of the test documents.

    Raises:
        ValueError: for a table that cannot be trained on, or arguments that do not fit it.
        FileExistsError: if the output folder holds a finished model, or an unfinished run with other settings.
    """
    path = Path(file)
    given = {word[2:].split("=")[0].replace("-", "_") for word in overrides if word.startswith("--")}
    given = {{"label_names": "label_names_file", "from": "start_from"}.get(name, name) for name in given}
    defaults = {
        "data_dir": str(path),
        "output_dir": str(Path("outputs") / _name_of(path)),
        "save_strategy": "no",
        "report_to": "none",
    }
    model_args, data_args, args = parse_arguments(list(overrides), defaults)
    table = read_table(path)
    sizes = {} if isinstance(table, Dataset) else {name: len(part) for name, part in table.items()}
    if sizes:
        shared = [
            name for name in table["train"].column_names if all(name in part.column_names for part in table.values())
        ]
        table = concatenate_datasets([part.select_columns(shared) for part in table.values()])
    run = _TableRun(path, table, sizes, model_args, data_args, args, given, time_budget)
    decided = run.continue_model() if model_args.start_from else run.start()
    settings = _settings([*defaults, *decided, *sorted(given)], (model_args, data_args, args))
    _prepare_folder(args, settings, overwrite)
    return run_training(model_args, data_args, args, run.notes)


@dataclass
class _TableRun:
    """Holds a table and the arguments of its run, which it completes.

    Attributes:
        path, table: the file or folder, and its rows.
        sizes: the number of rows of each split of a folder, in the order of the rows; empty for a file.
        model_args, data_args, args: the arguments.
        given: the names of the arguments that the caller has set, which are kept.
        time_budget: minutes that fine-tuning may take.
        notes: the decisions, one sentence each, which are also printed.
        labelled: the numbers of the rows with labels.
        leaves, covered: the number of leaves of the hierarchy, and of those with documents.
    """

    path: Path
    table: Any
    sizes: dict[str, int]
    model_args: ModelArguments
    data_args: DataArguments
    args: HcalTrainingArguments
    given: set[str]
    time_budget: float
    notes: list[str] = field(default_factory=list)
    labelled: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    leaves: int | None = None
    covered: int | None = None

    def note(self, line: str) -> None:
        """Prints a decision, and keeps it for the report."""
        print(line)
        self.notes.append(line)

    def start(self) -> list[str]:
        """Decides how a new model is built and trained. Returns the names of the settings."""
        model_args, data_args = self.model_args, self.data_args
        _check_columns(self.path, self.table.column_names, data_args)
        self._infer_mode()
        texts = self._sample_texts()
        if "encoder" not in self.given:
            model_args.encoder = default_encoder()
            self.note(f"Encoder: {DEFAULT_ENCODER}.")
            warn_if_not_english(texts)
        decided = ["encoder", "text", "labels", "label_mode", "partial_paths", "freeze_encoder"]
        if "lexical_features" in self.given and not self.given & {"freeze_encoder", "regimes"}:
            model_args.freeze_encoder, model_args.regimes = True, [LEXICAL]
            self.note(f"Regime: {LEXICAL}, because lexical_features is set.")
            decided += ["regimes", *self._apply(Regime(LEXICAL, FROZEN_SETTINGS, ""))]
        elif not self.given & {"freeze_encoder", "regimes"} and model_args.preset is None:
            tokenizer = AutoTokenizer.from_pretrained(model_args.encoder)
            regime = self._choose_regime(model_args.encoder, tokenizer, texts)
            model_args.freeze_encoder = regime.name == FROZEN
            model_args.regimes = [*regime.alternatives, regime.name]
            if regime.settings is FINE_TUNING_FEW and "prototype_anchor" not in self.given:
                model_args.prototype_anchor = "label_text"
                decided.append("prototype_anchor")
            self.note(f"Regime: {regime.name}. {regime.reason}")
            if regime.alternatives:
                self.note(
                    f"The validation documents will decide between {', '.join(regime.alternatives)} and {regime.name}."
                )
            decided += ["regimes", *self._apply(regime)]
        return decided

    def continue_model(self) -> list[str]:
        """Decides how training continues from a saved model. Returns the names of the settings.

        Raises:
            ValueError: if an option contradicts the model, or fine-tuning is estimated to take longer than the time budget.
        """
        model_args, data_args = self.model_args, self.data_args
        settled = {f.name for f in fields(ModelArguments)} - {"start_from", "freeze_encoder"}
        settled |= {"taxonomy", "taxonomy_options", "identity"}
        if wrong := sorted(settled & self.given):
            raise ValueError(
                f"--{wrong[0].replace('_', '-')} is decided by the model {model_args.start_from}: leave it out."
            )
        model, tokenizer = load_model(str(model_args.start_from))
        for name, value in (model.config.table_options or {}).items():
            if name not in self.given:
                setattr(data_args, name, value)
        _check_columns(self.path, self.table.column_names, data_args)
        decided = ["start_from", *TABLE_OPTIONS, "freeze_encoder"]
        if "freeze_encoder" in self.given:
            return decided
        # Scores are linear in models that were trained with a frozen encoder.
        model_args.freeze_encoder = model.config.score_function == "linear"
        if model_args.freeze_encoder:
            self.note("Regime: frozen, as the model was trained.")
            return decided + self._apply(Regime(FROZEN, FROZEN_SETTINGS, ""))
        regime = self._choose_regime(model.encoder, tokenizer, self._sample_texts())
        if regime.name == FROZEN:
            raise ValueError(
                f"{model_args.start_from} was fine-tuned, and continuing takes longer than allowed. {regime.reason} Give "
                "more minutes by --time-budget."
            )
        self.note(f"Regime: {regime.name}. {regime.reason}")
        return decided + self._apply(regime)

    def _sample_texts(self) -> list[str]:
        texts = [join_texts(cells) for cells in zip(*(self.table[name][:_SAMPLE] for name in self.data_args.text))]
        return [text for text in texts if isinstance(text, str)]

    def _choose_regime(self, encoder: Any, tokenizer: Any, texts: list[str]) -> Regime:
        """Chooses the regime by the number of tokens of each training document, estimated from a sample of texts."""
        if self.model_args.encoder:
            resolve_windows(self.model_args, self.data_args, tokenizer)
        tokens = tokenizer(texts, truncation=True, max_length=self.data_args.max_length)["input_ids"]
        rows = self.labelled if self.leaves else np.arange(len(self.table))
        if self.sizes:
            ends = np.cumsum(list(self.sizes.values()))
            counts = np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(ends)).tolist()
            by_split = dict(zip(self.sizes, counts))
            documents, validation = by_split["train"], by_split.get("validation", 0)
            unlabelled = self.sizes["train"] - documents
        else:
            documents, validation = int(np.ceil(0.8 * len(rows))), int(0.1 * len(rows))
            unlabelled = len(self.table) - len(rows)
        lengths = np.resize(np.fromiter(map(len, tokens), dtype=np.int64), documents).tolist()
        return choose_regime(
            encoder,
            tokenizer,
            lengths,
            self.time_budget,
            self.args.device,
            leaves=self.leaves,
            covered=self.covered,
            label_mode=self.model_args.label_mode,
            unlabelled=unlabelled,
            validation=validation,
            window_length=self.model_args.window_length,
        )

    def _apply(self, regime: Regime) -> list[str]:
        """Sets the settings of a regime, except for those that are given. Returns their names."""
        for name, value in regime.settings.items():
            if name not in self.given:
                setattr(self.args, name, value)
        return list(regime.settings)

    def _infer_mode(self) -> None:
        """Sets label_mode and partial_paths as the rows need them, unless they are given, and prints the reason."""
        table, model_args, given = self.table, self.model_args, self.given
        reader = LabelReader(**_reader_options(self.data_args), class_names=class_names(table, self.data_args.labels))
        taxonomy = _taxonomy(table, self.data_args)
        encoder = RowEncoder(taxonomy, None, [], reader, None, True, None)
        problems: list[str | None] = [None] * len(table)
        rows, _, unlabelled = encoder.encode_labels([table[name][:] for name in reader.column_list], problems)
        usable = np.array([problem is None and not skip for problem, skip in zip(problems, unlabelled)])
        self.labelled, self.leaves = np.flatnonzero(usable), int(taxonomy.is_leaf.sum())
        found = {node for row, is_usable in zip(rows, usable.tolist()) if is_usable for node in row}
        self.covered = int(taxonomy.is_leaf[sorted(found)].sum())
        sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        nodes = np.array([node for row in rows for node in row], dtype=np.int64)
        several = np.flatnonzero(find_misfits(sizes, nodes, taxonomy, "single_path", True) & usable)
        partial = np.flatnonzero(find_misfits(sizes, nodes, taxonomy, None, False) & usable)
        if "label_mode" not in given and model_args.preset is None:
            model_args.label_mode = "multi_path" if len(several) or not taxonomy.is_forest else "single_path"
            reason = (
                self._first_rows(several, "have no or several paths") if len(several) else "every row has one path"
            )
            if not len(self.labelled):
                reason = "no row has a label; give --label-mode multi_path if documents can have several"
            self.note(f"label_mode: {model_args.label_mode} ({reason}).")
        if "partial_paths" not in given and model_args.preset is None:
            model_args.partial_paths = bool(len(partial))
            reason = (
                self._first_rows(partial, "end at an inner label") if len(partial) else "every path ends at a leaf"
            )
            if not len(self.labelled):
                reason = "no row has a label; give --partial-paths if paths can end at inner labels"
            self.note(f"partial_paths: {str(model_args.partial_paths).lower()} ({reason}).")

    def _first_rows(self, rows: np.ndarray, what: str) -> str:
        """Says how many rows there are, and where the first ones are. Rows count from 1, in each split by itself."""
        places: list[str] = []
        start = 0
        for split, size in (self.sizes or {"": len(self.table)}).items():
            found = rows[(rows >= start) & (rows < start + size)][: 3 - len(places)] - start + 1
            places += [f"{row} of {split}" if split else str(row) for row in found.tolist()]
            start += size
        more = ", ..." if len(rows) > 3 else ""
        return f"{len(rows):,} rows {what}, first: row {', '.join(places)}{more}"


def _name_of(path: Path) -> str:
    """Returns the name of a file without its endings, or that of a folder."""
    return path.resolve().name if path.is_dir() else path.name.removesuffix(".gz").rpartition(".")[0]


def _reader_options(data_args: DataArguments) -> dict[str, Any]:
    options = data_args.label_options
    return {"columns": options.pop("labels"), **options, "empty_means_none": bool(data_args.empty_means_none)}


def _check_columns(path: Path, columns: Sequence[str], data_args: DataArguments) -> None:
    visible = [name for name in columns if not name.startswith("_")]
    wanted = {
        "text": ("columns of the texts", data_args.text),
        "labels": ("column of the labels, or one column per level", data_args.labels),
        "weight": ("column of the weights", [data_args.weight] if data_args.weight else []),
    }
    for option, (what, names) in wanted.items():
        for name in names:
            if name not in visible:
                raise ValueError(
                    f"{path} has no column {name!r}: its columns are {', '.join(map(repr, visible))}. Name the {what} "
                    f"with --{option}."
                )


def _taxonomy(table: Any, data_args: DataArguments) -> Taxonomy:
    taxonomy = read_or_build_taxonomy(table, data_args)
    if not len(taxonomy):
        raise ValueError(
            f"No row of {data_args.data_dir} has a label in {', '.join(map(repr, data_args.labels))}: give the hierarchy "
            "with --taxonomy, to classify the texts by the names of its labels."
        )
    if taxonomy.num_labels == 1:
        raise ValueError(
            f"{data_args.data_dir} has a single label, {taxonomy.labels[0]!r}: there is nothing to choose between."
        )
    return taxonomy


def _prepare_folder(args: HcalTrainingArguments, settings: dict[str, Any], overwrite: bool) -> None:
    """Writes config.yaml; resumes an unfinished run with the same settings.

    Raises:
        FileExistsError: if the folder holds a finished model, or an unfinished run with other settings.
    """
    import yaml

    folder = Path(str(args.output_dir))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    stored = folder / CONFIG_FILE
    if any((folder / name).exists() for name in _WEIGHTS) and not overwrite:
        raise FileExistsError(
            f"{folder} holds a finished model: give --overwrite to replace it, or --output-dir for another folder."
        )
    if stored.exists() and not overwrite:
        if stored.read_text(encoding="utf-8") != text:
            raise FileExistsError(
                f"{folder} holds an unfinished run with other settings ({stored}): give --overwrite to start again, or "
                "--output-dir for another folder."
            )
        args.resume_from_checkpoint = "true"
        print(f"Resuming the unfinished run in {folder}.")
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_text(text, encoding="utf-8")


def _settings(names: Iterable[str], arguments: Arguments) -> dict[str, Any]:
    """Returns the named arguments of a run as config.yaml holds them."""
    return {
        name: _plain(getattr(group, name))
        for name in dict.fromkeys(names)
        for group in arguments
        if name in group.__dataclass_fields__
    }


def _plain(value: Any) -> Any:
    """Converts a value to one that YAML holds."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, dict | str | int | float | bool | None) else str(value)

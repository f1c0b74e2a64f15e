"""Defines and parses the arguments of a run, from a configuration file and the command line."""

import contextlib
import difflib
import json
import re
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from transformers import HfArgumentParser
from transformers.integrations import is_tensorboard_available

from ..configuration_hcal import TABLE_OPTIONS, HcalConfig
from ..taxonomy import SEPARATOR
from ..token_limits import check_max_length
from ..training.arguments import PAPER_SETTINGS, HcalTrainingArguments
from ..training.lexical_fit import MOST_FEATURES
from ..training.regime import FINE_TUNED, FROZEN, LEXICAL, REGIMES
from .value_types import check_types

SPLITS = ("train", "validation", "test")
DEFAULTS = {name: f.default for name, f in HcalConfig.__dataclass_fields__.items()}


def _json_object(name: str, value: Any, example: str) -> dict[str, Any] | None:
    """Reads an option that holds a JSON object. A configuration file gives it as a mapping."""
    written = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} must be an object such as {example}, got {written!r}.")
    return value


@dataclass
class ModelArguments:
    """Selects the encoder and sets the fields of [`HcalConfig`]."""

    encoder: str = field(default="", metadata={"help": "The encoder: its name on the Hub, or its folder."})
    # "from" is a reserved word, so the option --from sets this field (`parse_arguments`).
    start_from: str | None = field(
        default=None,
        metadata={
            "help": "A saved model to continue from, instead of an encoder. Labels that it does not have are added. Its "
            "other settings are kept."
        },
    )
    preset: str | None = field(default=None, metadata={"help": '"paper" for HCAL as in its released code.'})
    label_mode: str = field(default=DEFAULTS["label_mode"], metadata={"help": "single_path or multi_path."})
    head: str = field(
        default=DEFAULTS["head"],
        metadata={
            "help": "auto (by label_mode), lookahead_softmax, path_softmax, conditional_softmax, lookahead_sigmoid, "
            "conditional_sigmoid, or independent."
        },
    )
    partial_paths: bool = field(
        default=DEFAULTS["partial_paths"], metadata={"help": "Whether a path may end at an inner node."}
    )
    classification_loss: str = field(
        default=DEFAULTS["classification_loss"],
        metadata={"help": "auto (the cross-entropy of the head), bce, asl (asymmetric loss), or zlpr."},
    )
    classification_loss_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'Options of the loss as JSON, such as {"gamma_negative": 2}.'}
    )
    pooling: str | None = field(
        default=None,
        metadata={"help": "mean, cls, last or max. Default: that of a SentenceTransformer's own files, else mean."},
    )
    text_prefix: str = field(
        default=DEFAULTS["text_prefix"], metadata={"help": 'Precedes each text, such as "query: " for E5.'}
    )
    window_length: int | None = field(
        default=None,
        metadata={
            "help": "Read texts of more tokens than this in overlapping windows of so many tokens. Default with "
            "max_windows: the length that the tokenizer stores. Without both, longer texts are truncated."
        },
    )
    max_windows: int | None = field(
        default=None, metadata={"help": "Maximum number of windows per text, which bounds the cost. Default: 4."}
    )
    window_overlap: int | None = field(
        default=None, metadata={"help": "Tokens that neighbouring windows share. Default: an eighth of a window."}
    )
    window_pooling: str = field(
        default=DEFAULTS["window_pooling"],
        metadata={"help": "mean (of the windows, by tokens) or attention (learned weights, for fine-tuning)."},
    )
    lexical_features: int | None = field(
        default=None,
        metadata={
            "help": "Train the head of a frozen encoder also on so many lexical features (TF-IDF over tokens): the regime "
            "lexical."
        },
    )
    projection_dim: int | None = field(
        default=DEFAULTS["projection_dim"],
        metadata={"help": "Size of the prototypes. Default: the hidden size of the encoder."},
    )
    score_function: str | None = field(
        default=None, metadata={"help": "cosine or linear. Default: linear if the encoder is frozen, else cosine."}
    )
    prototype_anchor: str | None = field(
        default="auto",
        metadata={"help": "label_text or none. Default: label_text if the encoder is frozen, else none."},
    )
    geometry: str = field(
        default=DEFAULTS["geometry"],
        metadata={"help": "euclidean, hyperbolic_penalty (label loss on distances), or hyperbolic (scores too)."},
    )
    geometry_weight: float = field(
        default=DEFAULTS["geometry_weight"], metadata={"help": "Weight of the label loss of a hyperbolic geometry."}
    )
    geometry_order: str = field(
        default=DEFAULTS["geometry_order"],
        metadata={"help": "Which labels should be close: hops, cooccurrence (in training rows) or mixed."},
    )
    geometry_curvature: float = field(
        default=DEFAULTS["geometry_curvature"], metadata={"help": "c of the curvature -c of the hyperbolic space."}
    )
    geometry_rows: int | None = field(
        default=DEFAULTS["geometry_rows"],
        metadata={
            "help": "Number of labels that the label loss compares with all others in a step. Default: automatic."
        },
    )
    geometry_released: bool = field(
        default=DEFAULTS["geometry_released"],
        metadata={"help": "Train as the release of joint hyperbolic label embeddings."},
    )
    contrast: str | None = field(
        default=None,
        metadata={
            "help": "aggregate adds one task per level, on class means. hjcl adds contrasts of (document, label) pairs and "
            "of documents."
        },
    )
    contrast_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'Options of hjcl as JSON, such as {"label_weight": 0.2}.'}
    )
    prototype_temperature: float = field(
        default=DEFAULTS["prototype_temperature"], metadata={"help": "tau in score = cosine / tau."}
    )
    perturbation: float = field(
        default=DEFAULTS["perturbation"],
        metadata={"help": "Half-width of the noise on the prototypes, at 256 dimensions."},
    )
    freeze_encoder: bool = field(
        default=False, metadata={"help": "Compute the features of the encoder once, and train only the head."}
    )
    regimes: list[str] = field(
        default_factory=list,
        metadata={
            "help": "How the model is trained: adapted (label text, unlabelled rows and a few labelled ones), frozen, "
            "lexical (frozen, with lexical features), fine-tuned or fine-tuned-adapted (label text, adapted with the "
            "encoder of the fine-tuned model). If there are several, the validation documents decide. Default: frozen with "
            "freeze_encoder, else fine-tuned."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.regimes, str):  # in a configuration file
            self.regimes = [self.regimes]
        for name in self.regimes:
            if name not in REGIMES:
                raise ValueError(f"regimes holds {name!r}: the regimes are {', '.join(REGIMES)}.")
        if self.lexical_features is not None and not 1 <= self.lexical_features <= MOST_FEATURES:
            raise ValueError(f"lexical_features must be from 1 to {MOST_FEATURES:,}, got {self.lexical_features}.")
        self.contrast_kwargs = _json_object("contrast_kwargs", self.contrast_kwargs, '{"label_weight": 0.2}')
        example = '{"gamma_negative": 2}'
        self.classification_loss_kwargs = _json_object(
            "classification_loss_kwargs", self.classification_loss_kwargs, example
        )

    @property
    def default_regime(self) -> str:
        """The regime of a run that names none."""
        if self.lexical_features is not None and self.freeze_encoder:
            return LEXICAL
        return FROZEN if self.freeze_encoder else FINE_TUNED


@dataclass
class TableArguments:
    """Selects the source of texts and labels."""

    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with train, validation and test files (.csv, .jsonl, .xlsx, .parquet, ...), or one file. For "
            "training, one file is split 80/10/10."
        },
    )
    dataset: str | None = field(default=None, metadata={"help": "Name of a data set on the Hub, instead of data_dir."})
    text: list[str] = field(
        default_factory=list,
        metadata={"help": "Column of texts, or several columns, which are joined by a line break. Default: text."},
    )
    labels: list[str] = field(
        default_factory=list, metadata={"help": "Column of labels, or one column per level. Default: labels."}
    )
    separator: str | None = field(
        default=None, metadata={"help": f'Separates the steps of a path in a string. Default: "{SEPARATOR}".'}
    )
    delimiter: str | None = field(default=None, metadata={"help": "Separates several labels in one string."})
    empty_means_none: bool | None = field(
        default=None,
        metadata={"help": "An empty cell means that a document has no label, and not that its labels are unknown."},
    )
    leave_out: list[str] = field(
        default_factory=list, metadata={"help": "Labels that exclude a document from the task, such as oos."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Maximum number of tokens per text."})
    on_bad_row: str = field(
        default="raise", metadata={"help": '"raise" an error at a row that cannot be read, or "drop" it.'}
    )

    def __post_init__(self) -> None:
        for name in ("text", "labels", "leave_out"):
            if isinstance(getattr(self, name), str):  # in a configuration file
                setattr(self, name, [getattr(self, name)])
        if self.max_length is not None:
            check_max_length(self.max_length)

    @property
    def label_options(self) -> dict[str, Any]:
        """The options for reading labels: arguments of `build_taxonomy` and `encode_dataset`."""
        options = self.table_options
        labels = options["labels"]
        return {
            "labels": labels[0] if len(labels) == 1 else labels,
            "separator": options["separator"],
            "delimiter": options["delimiter"],
        }

    @property
    def table_options(self) -> dict[str, Any]:
        """How tables are read, as [`HcalConfig`] stores it, with defaults for what is not set."""
        defaults = {"text": ["text"], "labels": ["labels"], "separator": SEPARATOR, "empty_means_none": False}
        return {name: _first_given(getattr(self, name), defaults.get(name)) for name in TABLE_OPTIONS}

    def with_defaults(self, stored: dict[str, Any] | None = None) -> Self:
        """Returns a copy in which what is not set has the values of a model's `config.table_options`, or the defaults."""
        filled = replace(
            self, **{name: _first_given(getattr(self, name), value) for name, value in (stored or {}).items()}
        )
        return replace(filled, **filled.table_options)


def _first_given(value: Any, default: Any) -> Any:
    return default if value is None or (value == [] and default is not None) else value


@dataclass
class DataArguments(TableArguments):
    """Selects the source of texts, labels and hierarchy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.table_options.items():
            setattr(self, name, value)
        self.taxonomy_options = _json_object("taxonomy_options", self.taxonomy_options, '{"label_by": "id"}')

    taxonomy: str | None = field(
        default=None,
        metadata={
            "help": "File of the hierarchy in any form that read_taxonomy reads. Default: the paths in all splits."
        },
    )
    taxonomy_options: dict | str | None = field(
        default=None,
        metadata={"help": 'Arguments of read_taxonomy for that file, as JSON: {"label_by": "id", "language": "de"}.'},
    )
    # TrainingArguments has another field `label_names`, so the option --label-names sets this one (`parse_arguments`).
    label_names_file: str | None = field(
        default=None,
        metadata={"help": "File with the names of labels that are codes: two columns, or a JSON object {code: name}."},
    )
    identity: str = field(default="path", metadata={"help": 'Whether nodes are the same by "path" or by "name".'})
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of the cached features of a frozen encoder. Default: output_dir/_features."},
    )
    weight: str | None = field(
        default=None,
        metadata={"help": "Column of whole numbers: how many times each training document counts. 0 leaves it out."},
    )
    new_rows_only: bool = field(
        default=False,
        metadata={
            "help": "With start_from: leave out the rows that the model was trained on, although their file exists."
        },
    )
    split_seed: int = field(default=0, metadata={"help": "Seed for splitting one file."})
    show_predictions: int = field(default=5, metadata={"help": "Number of test documents with printed predictions."})
    no_report: bool = field(default=False, metadata={"help": "Do not write report.html into the output folder."})
    no_texts: bool = field(default=False, metadata={"help": "Leave all texts out of the report."})
    card: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Facts for the model card, as JSON: {"language": "en", "license": "apache-2.0", "dataset": "..."}.'
        },
    )


# Options of the command line that have another name than their field.
_OPTION_NAMES = {"label[-_]names": "label_names_file", "from": "start_from"}
Arguments = tuple[ModelArguments, DataArguments, HcalTrainingArguments]


def parse_arguments(argv: list[str] | None = None, defaults: dict[str, Any] | None = None) -> Arguments:
    """Reads a YAML file and overrides from the command line: `[config.yaml] [--learning_rate 1e-4 ...]`.

    A run tunes the model by default (`tune: micro_f1`), unlike a Trainer. Logs go to TensorBoard if it is installed;
    `report_to` selects other loggers, or "none".

    Raises:
        ValueError: if a key in the file is not an argument (the message lists the closest ones), or if the file does not
            hold a mapping.
        ImportError: without pyyaml.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser([ModelArguments, DataArguments, HcalTrainingArguments])
    if is_tensorboard_available():
        parser.set_defaults(report_to="tensorboard")
    parser.set_defaults(tune="micro_f1", **(defaults or {}))
    for pattern, name in _OPTION_NAMES.items():
        argv = [re.sub(f"^--{pattern}(?=$|=)", f"--{name}", word) for word in argv]
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
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(problem, "problem", None) or str(problem)
        raise ValueError(f"{path} is not valid YAML{where}: {reason}.") from problem
    except RecursionError as problem:
        raise ValueError(f"{path} is nested too deeply.") from problem
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not a text file in UTF-8: {problem}.") from problem
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of arguments, got {type(values).__name__}.")
    if isinstance(values.get("label_names"), str):
        values["label_names_file"] = values.pop("label_names")
    argument_names = [
        f.name for kind in (ModelArguments, DataArguments, HcalTrainingArguments) for f in fields(kind) if f.init
    ]
    for key in values:
        if key not in argument_names:
            raise ValueError(
                f"{path}: unknown key {key!r}. Closest: {difflib.get_close_matches(str(key), argument_names, n=3)}."
            )
    check_types(path, values, (ModelArguments, DataArguments, HcalTrainingArguments))
    return values

"""The arguments of a run, from a configuration file and the command line."""

import difflib
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.integrations import is_tensorboard_available

from ..configuration_hcal import HcalConfig
from ..taxonomy import SEPARATOR
from ..training.arguments import PAPER_SETTINGS, HcalTrainingArguments

SPLITS = ("train", "validation", "test")
DEFAULTS = {name: f.default for name, f in HcalConfig.__dataclass_fields__.items()}


@dataclass
class ModelArguments:
    """The encoder and the fields of [`HcalConfig`]."""

    encoder: str = field(default="", metadata={"help": "Name on the Hub or folder of the encoder."})
    preset: str | None = field(default=None, metadata={"help": '"paper" for HCAL as released.'})
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
    pooling: str = field(default=DEFAULTS["pooling"], metadata={"help": "mean, cls or last."})
    projection_dim: int | None = field(
        default=DEFAULTS["projection_dim"], metadata={"help": "Size of the prototypes; the encoder's by default."}
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
        default=DEFAULTS["prototype_temperature"], metadata={"help": "tau in score = cosine / tau."}
    )
    perturbation: float = field(
        default=DEFAULTS["perturbation"], metadata={"help": "Noise on the prototypes, as at d = 256."}
    )
    freeze_encoder: bool = field(
        default=False, metadata={"help": "Compute the encoder's features once and train the head on them."}
    )


@dataclass
class TableArguments:
    """Where texts and labels come from."""

    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with train, validation and test files (.csv, .jsonl, .xlsx, .parquet, ...), or one file. For "
            "training, one file is split 80/10/10."
        },
    )
    dataset: str | None = field(default=None, metadata={"help": "Name of a data set on the Hub, instead of data_dir."})
    text: list[str] = field(
        default_factory=lambda: ["text"],
        metadata={"help": "Column of texts, or several columns, which are joined by a line break."},
    )
    labels: list[str] = field(
        default_factory=lambda: ["labels"], metadata={"help": "Column of labels, or one column a level."}
    )
    separator: str = field(default=SEPARATOR, metadata={"help": "Between the steps of a path string."})
    delimiter: str | None = field(default=None, metadata={"help": "Between several labels in one string."})
    empty_means_none: bool = field(
        default=False,
        metadata={"help": "An empty cell means that a document has no label, and not that its labels are unknown."},
    )
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

    def __post_init__(self) -> None:
        if isinstance(self.text, str):  # in a configuration file
            self.text = [self.text]
        if isinstance(self.labels, str):
            self.labels = [self.labels]


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
    split_seed: int = field(default=0, metadata={"help": "Seed of the split of one file."})
    tune: str = field(
        default="micro_f1",
        metadata={
            "help": "Metric for which thresholds are tuned on the validation split after training, with the temperature: "
            "micro_f1, macro_f1, or none."
        },
    )
    show_predictions: int = field(default=5, metadata={"help": "Test documents whose predicted paths are printed."})
    card: dict | str | None = field(
        default=None,
        metadata={
            "help": 'For the model card, as JSON: {"language": "en", "license": "apache-2.0", "dataset": "..."}.'
        },
    )


Arguments = tuple[ModelArguments, DataArguments, HcalTrainingArguments]


def parse_arguments(argv: list[str] | None = None, defaults: dict[str, Any] | None = None) -> Arguments:
    """Reads a YAML file and overrides from the command line: `[config.yaml] [--learning_rate 1e-4 ...]`.

    Logs go to TensorBoard where it is installed; `report_to` names others, or "none".

    Raises:
        ValueError: for a key in the file that is no argument (with the closest ones), or a file that holds no mapping.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser([ModelArguments, DataArguments, HcalTrainingArguments])
    if is_tensorboard_available():
        parser.set_defaults(report_to="tensorboard")
    parser.set_defaults(**(defaults or {}))
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

"""Configuration of an HCAL model: an encoder, a label hierarchy, and how labels are scored and trained."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .hub import CustomPipelines
from .taxonomy import Taxonomy

# The format of config.json and weights that this library writes. Formats up to this one can be read.
# A config.json without `hcal_format_version` has format 0, which differs from format 1 in that field only. Format 2 adds
# `projection_bias`, without which a model would answer differently.
FORMAT_VERSION = 2

# Fields that are removed from an encoder's configuration. A nested dictionary from a repository could otherwise enable
# code or kernels that the user who loads the model never agreed to.
_LOADER_KEYS = (
    "trust_remote_code",
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "code_revision",
    "token",
)

# The options of `table_options`, with the names of [`hcal_hf.encode_dataset`]. `leave_out` holds labels that exclude a row.
TABLE_OPTIONS = ("text", "labels", "separator", "delimiter", "empty_means_none", "leave_out")

# A risk_threshold above every probability, with the same value as `hcal_hf.training.risk.NEVER`.
_NEVER = 2.0

# The coherent heads with the best results on the validation splits of recipes/benchmarks.
DEFAULT_HEADS: dict[str, Literal["lookahead_softmax", "lookahead_sigmoid"]] = {
    "single_path": "lookahead_softmax",
    "multi_path": "lookahead_sigmoid",
}

# The label mode of each head. None means both.
_HEAD_MODES = {
    "independent": None,
    "path_softmax": "single_path",
    "conditional_softmax": "single_path",
    "lookahead_softmax": "single_path",
    "conditional_sigmoid": "multi_path",
    "lookahead_sigmoid": "multi_path",
}


def _as_value_errors(cls: type) -> type:
    """Makes construction and validation raise ValueError, as transformers does, instead of the errors of @strict."""

    def translated(method: Callable) -> Callable:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except StrictDataclassError as problem:
                raise ValueError(str(problem)) from problem

        return call

    cls.__init__ = translated(cls.__init__)  # type: ignore[misc]
    cls.validate = translated(cls.validate)  # type: ignore[attr-defined]
    cls.validate.__is_defined_by_strict_decorator__ = True  # type: ignore[attr-defined]
    return cls


@_as_value_errors
@strict
class HcalConfig(PreTrainedConfig):
    r"""
    Configuration of [`HcalForSequenceClassification`].

    The configuration is the only place that stores the hierarchy. `labels` defines the order of labels, and `id2label`
    and `label2id` are derived from it.

    Args:
        encoder_config (`dict` or `PreTrainedConfig`):
            Configuration of any encoder that `AutoModel` builds.
        labels (`list[str]`):
            The L unique node labels, sorted by depth ([`Taxonomy`] sorts them).
        edges (`list[list[int]]`):
            The E hierarchy edges as [parent, child] indices into `labels`.
        label_mode (`"single_path"` or `"multi_path"`, defaults to `"single_path"`):
            Whether a document has one path from a root (needs a forest), or any ancestor-complete set of nodes, which may
            be empty.
        partial_paths (`bool`, defaults to `False`):
            Whether a document's path may end at an inner node.
        head (`str`, defaults to `"auto"`):
            How scores become node probabilities. Coherent heads, with P(child) <= P(each parent), are
            `lookahead_softmax`, `path_softmax` and `conditional_softmax` (single_path), `lookahead_sigmoid` and
            `conditional_sigmoid` (multi_path). `independent` is the head of HCAL: one softmax per level (single_path) or
            one sigmoid per label (multi_path). `auto` selects `independent` with `objective="aggregate"`, otherwise
            `lookahead_softmax` (single_path) or `lookahead_sigmoid` (multi_path).
        objective (`"document"` or `"aggregate"`, defaults to `"document"`):
            Whether the levels above the leaves are trained on the feature of each document, or on the mean feature of each
            class in the batch (child-to-parent aggregation, HCAL). `aggregate` needs the `independent` head,
            single_path, and leaves at one depth.
        pooling (`"mean"`, `"cls"` or `"last"`, defaults to `"mean"`):
            How token states become the document vector: their mean, the first state, or the last one (for decoder-only
            encoders).
        projection_dim (`int`, *optional*):
            Size d of features and prototypes. Defaults to the hidden size of the encoder (HCAL: 256).
        projection_bias (`bool`, defaults to `False`):
            Whether the projection adds a learned bias, which can centre the pooled states ([`hcal_hf.adapt`]).
        score_function (`"cosine"` or `"linear"`, defaults to `"cosine"`):
            `cosine`: unit prototypes, score = cosine / tau (softmax heads) or a * cosine + b with learned a and b (sigmoid
            heads). `linear`: prototypes of any length, score = <feature, prototype> / tau, plus a learned bias per label
            in the sigmoid heads, as in logistic regression. Anchors have a learned weight per level.
        prototype_temperature (`float`, defaults to 0.1):
            tau in score = cosine / tau. 1 / tau is the initial scale of the sigmoid heads.
        perturbation (`float`, defaults to 0.01):
            Half-width eps of the uniform noise on the unit prototypes in the training loss, at d = 256. The noise that is
            drawn has half-width eps * sqrt(256 / d). 0 disables it.
        contrast (`"aggregate"`, *optional*):
            Adds one task per level, which compares the mean feature of each class in the batch with the perturbed
            prototypes of its level ([`hcal_hf.objectives.aggregate_losses`]). Defined for single_path and multi_path.
        contrast_alpha (`float`, defaults to 0.5):
            Weight of a level's contrast task relative to the level's own weight.
        prototype_anchor (`"label_text"`, *optional*):
            Initialises prototypes from the encoder's embeddings e of the label texts: P = normalize(normalize(g(e)) +
            delta), with the projection g of the documents and a learned delta that starts at 0.
        label_texts (`list[str]`, *optional*):
            The text of each of the L labels, for `prototype_anchor`. Built from the names by default.
        thresholds (`list[float]`, *optional*):
            Lowest probability of a predicted label for each of the L labels ([`HcalTrainer.tune_thresholds`] sets them).
            The threshold of a label must not be below those of its parents. Used if a call passes no threshold.
        risk_alpha, risk_threshold (`float`, *optional*):
            The risk level of `decode="risk"`, above 0 and below 1, and the probability that it needs, from 0 to 1, or 2 to
            always abstain ([`HcalTrainer.calibrate_risk`] sets both).
        score_temperature (`float`, defaults to 1.0):
            T of temperature scaling ([`HcalTrainer.calibrate_temperature`] sets it). Probabilities are computed from all
            scores divided by T, biases and stop scores included. Losses use the undivided scores, so training does not
            depend on T.
        label_names (`list[str]`, *optional*):
            The name of each of the L labels for people, where the labels are codes. Shown after the label, and used for
            the default `label_texts`.
        table_options (`dict`, *optional*):
            How the tables of training were read: `text` and `labels` (lists of columns), `separator`, `delimiter`,
            `empty_means_none` and `leave_out`, as for [`hcal_hf.encode_dataset`]. The commands read other tables in the
            same way. No effect on the model.
        hcal_format_version (`int`):
            Format of config.json and weights. Do not set it: [`from_dict`] checks the number that was read and replaces
            it by the format that this library writes.

    Raises:
        ValueError: for a field of a wrong type or outside its range, an invalid hierarchy, a DAG with single_path,
            `objective="aggregate"` with fields for which it is not defined, an `id2label`, `label2id`, `num_labels` or
            `problem_type` that contradicts `labels`, or a format that this library cannot read.

    Source: Jiang et al., "Hierarchy-Consistent Learning and Adaptive Loss Balancing for Hierarchical Multi-Label
    Classification", CIKM 2025 (arXiv 2508.13452).
    """

    model_type = "hcal"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}
    # Per-task and per-document fields of the output, which evaluation must not gather.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "task_losses",
        "task_counts",
        "features",
        "hidden_states",
        "attentions",
    ]

    encoder_config: dict | PreTrainedConfig | None = None
    labels: list[str] = field(default_factory=list)
    edges: list[list[int]] = field(default_factory=list)
    label_mode: Literal["single_path", "multi_path"] = "single_path"
    partial_paths: bool = False
    head: Literal[
        "auto",
        "independent",
        "path_softmax",
        "conditional_softmax",
        "lookahead_softmax",
        "conditional_sigmoid",
        "lookahead_sigmoid",
    ] = "auto"
    objective: Literal["document", "aggregate"] = "document"
    pooling: Literal["mean", "cls", "last"] = "mean"
    projection_dim: int | None = None
    projection_bias: bool = False
    score_function: Literal["cosine", "linear"] = "cosine"
    prototype_temperature: float | int = 0.1
    perturbation: float | int = 0.01
    contrast: Literal["aggregate"] | None = None
    contrast_alpha: float | int = 0.5
    prototype_anchor: Literal["label_text"] | None = None
    label_texts: list[str] | None = None
    thresholds: list[float] | None = None
    risk_alpha: float | None = None
    risk_threshold: float | None = None
    score_temperature: float | int = 1.0
    label_names: list[str] | None = None
    table_options: dict[str, Any] | None = None
    hcal_format_version: int = FORMAT_VERSION

    id2label: dict[int, str] | dict[str, str] | None = None
    label2id: dict[str, int] | dict[str, str] | None = None
    problem_type: str | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from the content of a config.json of this or an earlier format.

        Raises:
            ValueError: if a newer library wrote it in a format that this one does not know, or a field is invalid.
        """
        # Checked before all other fields, because a newer format may hold values that this library does not know.
        _check_format_version(config_dict.get("hcal_format_version", 0))
        return super().from_dict({**config_dict, "hcal_format_version": FORMAT_VERSION}, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder_config, dict):
            self.encoder_config = {k: v for k, v in self.encoder_config.items() if k not in _LOADER_KEYS}
        num_labels = kwargs.pop("num_labels", None)
        if num_labels is not None and num_labels != len(self.labels):
            raise ValueError(
                f"num_labels={num_labels} contradicts the {len(self.labels)} labels: leave num_labels out, it is derived."
            )
        id2label, label2id = self._derived_label_maps()
        if self.id2label is None:
            self.id2label = id2label
        if self.label2id is None:
            self.label2id = label2id
        if self.head == "auto" and self.label_mode in DEFAULT_HEADS:
            self.head = "independent" if self.objective == "aggregate" else DEFAULT_HEADS[self.label_mode]
        if self.prototype_anchor and self.label_texts is None:
            self.label_texts = self.to_taxonomy().texts(self.label_names)
        if self.problem_type is None:
            self.problem_type = "multi_label_classification"
        kwargs.setdefault("custom_pipelines", None)  # like auto_map, for pipeline() with the code of a repository
        super().__post_init__(**kwargs)
        encoder_config: Any = self.encoder_config
        if getattr(encoder_config, "use_cache", False):
            encoder_config.use_cache = False  # nothing is generated, so no past states are needed
        if os.path.isdir(getattr(encoder_config, "_name_or_path", "")):
            encoder_config._name_or_path = ""  # a local folder means nothing to other users

    def __setattr__(self, name: str, value: Any) -> None:
        # Set by a config.json or by Pipeline.save_pretrained.
        super().__setattr__(name, CustomPipelines(value) if name == "custom_pipelines" else value)

    def _derived_label_maps(self) -> tuple[dict[int, str], dict[str, int]]:
        return dict(enumerate(self.labels)), {label: i for i, label in enumerate(self.labels)}

    # ---- Validation, run by @strict after construction and before saving ----

    def validate_format_version(self) -> None:
        """Checks that this library can read the format."""
        _check_format_version(self.hcal_format_version)

    def validate_label_maps(self) -> None:
        """Checks that id2label, label2id and problem_type agree with `labels`."""
        id2label, label2id = self._derived_label_maps()
        if self.id2label != id2label or self.label2id != label2id:
            raise ValueError(
                "id2label / label2id contradict `labels`, which defines the order of labels. Leave both out, because they "
                "are derived. To rename labels, change `labels`."
            )
        if self.problem_type != "multi_label_classification":
            raise ValueError(
                f"problem_type={self.problem_type!r} is not supported. Every node has its own probability, "
                "sigmoid(logits), so problem_type is always 'multi_label_classification'. Leave it out and choose between "
                "one and several paths per document with label_mode."
            )

    def validate_numbers(self) -> None:
        """Checks the ranges of sizes, widths and temperatures, and the number of label texts."""
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"projection_dim must be at least 1, got {self.projection_dim}.")
        if not self.prototype_temperature > 0:
            raise ValueError(f"prototype_temperature must be above 0, got {self.prototype_temperature}.")
        if not self.perturbation >= 0:
            raise ValueError(f"perturbation must be 0 (off) or above, got {self.perturbation}.")
        if not self.contrast_alpha >= 0:
            raise ValueError(f"contrast_alpha must be 0 or above, got {self.contrast_alpha}.")
        for field_name in ("label_texts", "label_names"):
            texts = getattr(self, field_name)
            if texts is not None and len(texts) != len(self.labels):
                raise ValueError(
                    f"{field_name} must hold one text for each of {len(self.labels)} labels, got {len(texts)}."
                )
        if not 0 < self.score_temperature < math.inf:
            raise ValueError(
                f"score_temperature must be a finite number above 0 (1: scores as they are), got {self.score_temperature}:"
                " trainer.calibrate_temperature sets it."
            )

    def validate_table_options(self) -> None:
        """Checks the names of the options."""
        for name in self.table_options or {}:
            if name not in TABLE_OPTIONS:
                raise ValueError(f"table_options has no option {name!r}: the options are {', '.join(TABLE_OPTIONS)}.")

    def validate_risk(self) -> None:
        """Checks that risk level and threshold are both set or both None, and in range."""
        if (self.risk_alpha is None) != (self.risk_threshold is None):
            raise ValueError("risk_alpha and risk_threshold belong together: trainer.calibrate_risk sets both.")
        if self.risk_alpha is not None and not 0 < self.risk_alpha < 1:
            raise ValueError(
                f"risk_alpha must lie between 0 and 1 (0.1: one label in ten may be wrong), got {self.risk_alpha}."
            )
        if self.risk_threshold is not None and not (0 <= self.risk_threshold <= 1 or self.risk_threshold == _NEVER):
            raise ValueError(
                f"risk_threshold must be a probability from 0 to 1, or {_NEVER} (no answers), got {self.risk_threshold}: "
                "trainer.calibrate_risk sets it."
            )

    def validate_thresholds(self) -> None:
        """Checks that thresholds are one probability per label and do not decrease along edges."""
        if self.thresholds is None:
            return
        if len(self.thresholds) != len(self.labels):
            raise ValueError(
                f"thresholds must hold one number for each of {len(self.labels)} labels, got {len(self.thresholds)}."
            )
        for label, threshold in zip(self.labels, self.thresholds):
            if not 0 <= threshold <= 1:
                raise ValueError(
                    f"thresholds must be probabilities from 0 to 1, got {threshold} for {label!r}: "
                    "trainer.tune_thresholds sets them."
                )
        for parent, child in self.edges:
            if self.thresholds[child] < self.thresholds[parent]:
                raise ValueError(
                    f"The threshold of {self.labels[child]!r} is below that of its parent {self.labels[parent]!r}. Raise "
                    "it to at least the parent's."
                )

    def validate_hierarchy(self) -> None:
        """Checks the hierarchy, and that it fits label_mode, head and objective."""
        fitting = [name for name, mode in _HEAD_MODES.items() if mode in (None, self.label_mode)]
        if self.head not in fitting:
            raise ValueError(f"head={self.head!r} does not fit label_mode={self.label_mode!r}: use one of {fitting}.")
        taxonomy = self.to_taxonomy()
        if self.label_mode == "single_path":
            taxonomy.check_single_path()
        if self.objective == "aggregate":
            self._check_aggregate(taxonomy)

    def _check_aggregate(self, taxonomy: Taxonomy) -> None:
        """Checks that every document has a full path to a leaf, which child-to-parent aggregation needs."""
        instead = 'use objective="document", which trains every level on each document\'s own feature'
        if self.label_mode != "single_path":
            raise ValueError(
                f'objective="aggregate" needs label_mode="single_path", got {self.label_mode!r}: {instead}.'
            )
        if self.partial_paths:
            raise ValueError(f'objective="aggregate" needs full paths, got partial_paths=True: {instead}.')
        if self.head != "independent":
            raise ValueError(f'objective="aggregate" needs head="independent", got {self.head!r}: {instead}.')
        leaf_depths = taxonomy.depths[taxonomy.is_leaf]
        if len(leaf_depths) and leaf_depths.min() < leaf_depths.max():
            shallow = taxonomy.labels[taxonomy.is_leaf.nonzero()[0][leaf_depths.argmin()]]
            raise ValueError(
                'objective="aggregate" needs all leaves at one depth, but they are at depths '
                f"{leaf_depths.min()} ({shallow!r}) to {leaf_depths.max()}: {instead}."
            )

    # ---- Taxonomies and presets ----

    def to_taxonomy(self) -> Taxonomy:
        """Returns the hierarchy as a new [`Taxonomy`]."""
        return Taxonomy(self.labels, self.edges)

    @property
    def shown_names(self) -> list[str]:
        """The name of each label for people: the last step of its path, and its entry in `label_names` if it differs."""
        names = self.to_taxonomy().names
        if self.label_names is None:
            return list(names)
        return [f"{code} {name}" if name != code else code for code, name in zip(names, self.label_names)]

    @classmethod
    def from_taxonomy(cls, taxonomy: Taxonomy, encoder_config: Any = None, **kwargs: Any) -> "HcalConfig":
        """Builds a configuration for a taxonomy.

        Args:
            taxonomy: the hierarchy. Its `label_names`, if it has any ([`DescribedTaxonomy`]), are the default.
            encoder_config: the configuration of the encoder.
            kwargs: the other fields. `label_names` may also be a dictionary from labels, or last steps of their paths, to
                names; labels that it leaves out keep their own.

        Raises:
            ValueError: if `label_names` has keys that no label has, or a field is invalid.
        """
        names = kwargs.get("label_names") or getattr(taxonomy, "label_names", None)
        if isinstance(names, Mapping):
            kwargs["label_names"] = display_names(taxonomy, names) if names else None
        return cls(
            encoder_config=encoder_config, labels=list(taxonomy.labels), edges=taxonomy.edges.tolist(), **kwargs
        )

    @classmethod
    def paper(cls, taxonomy: Taxonomy, encoder_config: Any = None, **kwargs: Any) -> "HcalConfig":
        """Builds the configuration of HCAL as its authors released it.

        Leaves are trained with cross-entropy per document, upper levels with class-mean aggregation. Perturbed prototypes
        have size 256 and temperature 0.1. Train the model with [`HcalTrainingArguments.paper`].

        Raises:
            ValueError: for a ragged taxonomy, partial paths or multi_path, for which the published method is not defined.
                The message names the alternative.
        """
        preset: dict[str, Any] = {
            "label_mode": "single_path",
            "partial_paths": False,
            "head": "independent",
            "objective": "aggregate",
            "projection_dim": 256,
            "prototype_temperature": 0.1,
            "perturbation": 0.01,
        }
        return cls.from_taxonomy(taxonomy, encoder_config, **{**preset, **kwargs})


def display_names(taxonomy: Taxonomy, names: Mapping[str, str]) -> list[str]:
    """Returns the name of each label: that of the label in `names`, else of its last step, else the last step itself.

    Raises:
        ValueError: if `names` has keys that no label has.
    """
    known = {*taxonomy.labels, *taxonomy.names}
    if unknown := [key for key in names if key not in known]:
        raise ValueError(
            f"label_names has {len(unknown):,} keys that are not labels, first {unknown[0]!r}: the labels are "
            f"{', '.join(map(repr, taxonomy.labels[:5]))}, ..."
        )
    return [names.get(label, names.get(name, name)) for label, name in zip(taxonomy.labels, taxonomy.names)]


def _check_format_version(number: Any) -> None:
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"hcal_format_version must be a whole number of at least 0, got {number!r}.")
    if number > FORMAT_VERSION:
        raise ValueError(
            f"The model has hcal_format_version {number}, but this hcal_hf reads versions up to {FORMAT_VERSION}. A newer "
            "hcal_hf wrote the model: update hcal_hf, for example with pip install --upgrade hcal-hf."
        )


# Makes save_pretrained write this file and those that it imports next to the model.
HcalConfig.register_for_auto_class()

__all__ = ["FORMAT_VERSION", "TABLE_OPTIONS", "HcalConfig", "display_names"]

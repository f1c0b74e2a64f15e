"""Configuration of an HCAL model: an encoder, a label hierarchy, and how labels are scored and trained."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_checks import (
    FORMAT_VERSION,
    TABLE_OPTIONS,
    ConfigChecks,
    check_field_names,
    check_format_version,
    check_model_type,
    derived_label_maps,
)
from .hub import CustomPipelines
from .integrity import CHECKSUMS, check_config, config_checksums, defaults_of
from .joint_contrast import JointContrastOptions
from .size_checks import check_counts
from .taxonomy import Taxonomy
from .windows import MAX_WINDOWS, default_overlap

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

# The coherent heads with the best results on the validation splits of recipes/benchmarks.
DEFAULT_HEADS: dict[str, Literal["lookahead_softmax", "lookahead_sigmoid"]] = {
    "single_path": "lookahead_softmax",
    "multi_path": "lookahead_sigmoid",
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
class HcalConfig(ConfigChecks, PreTrainedConfig):
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
        classification_loss (`"auto"`, `"bce"`, `"asl"` or `"zlpr"`, defaults to `"auto"`):
            The loss of the levels. `auto` is the cross-entropy of the head: binary for sigmoid heads (`bce` says so
            explicitly), categorical for softmax heads. `asl` is the asymmetric loss of sigmoid heads or the focal loss of
            softmax heads, with probabilities mapped back to calibrated ones ([`hcal_hf.asymmetric_loss`]). `zlpr` ranks the
            labels of each document against 0 and needs multi_path with the head `independent`
            ([`hcal_hf.classification_loss.zlpr_losses`]).
        classification_loss_kwargs (`dict`, *optional*):
            The options of `asl` ([`hcal_hf.classification_loss.AsymmetricOptions`]), such as `{"gamma_negative": 2}`. The
            only option of `zlpr` is `released` (bool), which ranks the labels of all levels together.
        pooling (`"mean"`, `"cls"`, `"last"` or `"max"`, defaults to `"mean"`):
            How token states become the document vector: their mean, the first state, the last one (for decoder-only
            encoders), or the largest value of each number. [`from_encoder`] reads the pooling of a SentenceTransformer, and
            takes the last state of decoder-only encoders.
        projection_dim (`int`, *optional*):
            Size d of features and prototypes. Defaults to the hidden size of the encoder (HCAL: 256).
        projection_bias (`bool`, defaults to `False`):
            Whether the projection adds a learned bias, which can centre the pooled states ([`hcal_hf.adapt`]).
        lexical_features, lexical_terms (`int`, *optional*):
            The numbers of lexical features, which follow the pooled states, and of their terms. Do not set them:
            [`hcal_hf.add_lexical_features`] does.
        text_prefix (`str`, defaults to `""`):
            Precedes each text of a document or label, as some encoders need it: `"query: "` for E5.
        window_length, window_overlap, max_windows (`int`, *optional*):
            Longer texts than `window_length` tokens are read in up to `max_windows` (4) windows of so many tokens, which
            share `window_overlap` tokens (an eighth) with the next ([`hcal_hf.windows.Windows`]). By default there are no
            windows. [`from_encoder`] chooses `window_length` if it gets `max_windows`.
        window_pooling (`"mean"` or `"attention"`, defaults to `"mean"`):
            How windows become the document vector: their mean by tokens, or a mean with learned weights, for fine-tuning
            ([`hcal_hf.windows.pool_windows`]).
        window_affixes (`list[int]`, defaults to `[0, 0]`):
            The numbers of tokens at the start and the end of a text that each window repeats: special tokens and
            `text_prefix`. [`from_encoder`] counts them.
        score_function (`"cosine"` or `"linear"`, defaults to `"cosine"`):
            `cosine`: unit prototypes, score = cosine / tau (softmax heads) or a * cosine + b with learned a and b (sigmoid
            heads). `linear`: prototypes of any length, score = <feature, prototype> / tau, plus a learned bias per label
            in the sigmoid heads, as in logistic regression. Anchors have a learned weight per level.
        prototype_temperature (`float`, defaults to 0.1):
            tau in score = cosine / tau. 1 / tau is the initial scale of the sigmoid heads.
        geometry (`"euclidean"`, `"hyperbolic_penalty"` or `"hyperbolic"`, defaults to `"euclidean"`):
            The space of the prototypes. `hyperbolic_penalty` keeps the inner products as scores and adds the task
            `label_penalty`: the hyperbolic distances between prototypes follow the order of the labels
            ([`hcal_hf.geometry.LabelPenalty`]). `hyperbolic` has this task too, and its scores are
            (b_c - d(exp_0(r f), e_c)) / tau, with the distance d in the Lorentz model, a learned radius r and learned
            biases b. Both need `score_function="linear"`.
        geometry_weight (`float`, defaults to 0.1):
            Weight of the task `label_penalty` in the loss, which loss weighters do not change. 0 leaves the task out.
        geometry_order (`"hops"`, `"cooccurrence"` or `"mixed"`, defaults to `"hops"`):
            Which labels should be close: those with few hops between them in the hierarchy, those that occur together in
            training rows, or few hops first and co-occurrence among equally many hops.
        geometry_curvature (`float`, defaults to 1.0):
            c of the curvature -c of the hyperbolic space.
        geometry_rows (`int`, *optional*):
            The number of labels that `label_penalty` compares with all others in a training step, drawn again for each.
            By default all of up to 5,000 labels, and 1,000 of more labels.
        geometry_released (`bool`, defaults to `False`):
            Trains as the release of joint hyperbolic label embeddings: features that are not normalised, prototypes of
            length up to 1 with dropout 0.6, and a label loss over all pairs of labels, each against five labels that are at
            most as close. Needs `hyperbolic_penalty`, `cooccurrence`, multi_path and the head `independent`.
        perturbation (`float`, defaults to 0.01):
            Half-width eps of the uniform noise on the unit prototypes in the training loss, at d = 256. The noise that is
            drawn has half-width eps * sqrt(256 / d). 0 disables it.
        contrast (`"aggregate"` or `"hjcl"`, *optional*):
            `aggregate` adds one task per level, which compares the mean feature of each class in the batch with the
            perturbed prototypes of its level ([`hcal_hf.objectives.aggregate_losses`]). `hjcl` adds the tasks
            `contrast_label` and `contrast_instance` of HJCL, which compare (document, label) pairs and documents of the
            batch ([`hcal_hf.joint_contrast`]). Both are defined for single_path and multi_path.
        contrast_alpha (`float`, defaults to 0.5):
            Weight of a level's contrast task relative to the level's own weight, for `aggregate`.
        contrast_kwargs (`dict`, *optional*):
            The options of `hjcl`, such as `{"label_weight": 0.5}` ([`JointContrastOptions`]).
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
        tokenizer_checksum (`str`, *optional*):
            Identifies the tokens of the tokenizer that the model was trained with. Another tokenizer is refused.
        table_options (`dict`, *optional*):
            How the tables of training were read: `text` and `labels` (lists of columns), `separator`, `delimiter`,
            `empty_means_none` and `leave_out`, as for [`hcal_hf.encode_dataset`]. The commands read other tables in the
            same way. No effect on the model.
        hcal_format_version (`int`):
            Format of config.json and weights. Do not set it: [`from_dict`] checks the number that was read and replaces
            it by the format that this library writes.

    Raises:
        ValueError: for a field of a wrong type or outside its range, an invalid hierarchy, a DAG with single_path,
            `objective="aggregate"` or a `geometry` with fields for which it is not defined, an `id2label`, `label2id`,
            `num_labels` or `problem_type` that contradicts `labels`, or a format that this library cannot read.

    Source: Jiang et al., "Hierarchy-Consistent Learning and Adaptive Loss Balancing for Hierarchical Multi-Label
    Classification", CIKM 2025 (arXiv 2508.13452). `geometry`: Chatterjee et al., "Joint Learning of Hyperbolic Label
    Embeddings for Hierarchical Multi-label Classification", EACL 2021 (arXiv 2101.04997).
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
    classification_loss: Literal["auto", "bce", "asl", "zlpr"] = "auto"
    classification_loss_kwargs: dict[str, Any] | None = None
    pooling: Literal["mean", "cls", "last", "max"] = "mean"
    projection_dim: int | None = None
    projection_bias: bool = False
    lexical_features: int | None = None
    lexical_terms: int | None = None
    text_prefix: str = ""
    window_length: int | None = None
    window_overlap: int | None = None
    max_windows: int | None = None
    window_pooling: Literal["mean", "attention"] = "mean"
    window_affixes: list[int] = field(default_factory=lambda: [0, 0])
    score_function: Literal["cosine", "linear"] = "cosine"
    prototype_temperature: float | int = 0.1
    geometry: Literal["euclidean", "hyperbolic_penalty", "hyperbolic"] = "euclidean"
    geometry_weight: float | int = 0.1
    geometry_order: Literal["hops", "cooccurrence", "mixed"] = "hops"
    geometry_curvature: float | int = 1.0
    geometry_rows: int | None = None
    geometry_released: bool = False
    perturbation: float | int = 0.01
    contrast: Literal["aggregate", "hjcl"] | None = None
    contrast_alpha: float | int = 0.5
    contrast_kwargs: dict[str, Any] | None = None
    prototype_anchor: Literal["label_text"] | None = None
    label_texts: list[str] | None = None
    thresholds: list[float] | None = None
    risk_alpha: float | None = None
    risk_threshold: float | None = None
    score_temperature: float | int = 1.0
    label_names: list[str] | None = None
    table_options: dict[str, Any] | None = None
    tokenizer_checksum: str | None = None
    hcal_format_version: int = FORMAT_VERSION

    id2label: dict[int, str] | dict[str, str] | None = None
    label2id: dict[str, int] | dict[str, str] | None = None
    problem_type: str | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from the content of a config.json of this or an earlier format.

        Args:
            config_dict: the content.
            kwargs: fields that replace those of the file. `accept_edits=True` accepts a file that was edited after it was
                saved.

        Raises:
            ValueError: if a newer library wrote it in a format that this one does not know, if it was edited, or if a field
                is invalid.
        """
        # Checked before all other fields, because a newer format may hold values that this library does not know.
        check_format_version(config_dict.get("hcal_format_version", 0))
        if not kwargs.pop("accept_edits", False):
            check_config(config_dict, defaults_of(cls))
        values = {name: value for name, value in config_dict.items() if name != CHECKSUMS}
        return super().from_dict({**values, "hcal_format_version": FORMAT_VERSION}, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the config.json of any model, as [`~transformers.PreTrainedConfig.get_config_dict`] does.

        Raises:
            ValueError: if it is nested too deeply.
        """
        try:
            values: tuple[dict[str, Any], dict[str, Any]] = super().get_config_dict(
                pretrained_model_name_or_path, **kwargs
            )
        except RecursionError as problem:
            raise ValueError(
                f"The config.json of {pretrained_model_name_or_path} is nested deeper than the JSON reader of Python "
                "allows: restore the file that was saved with the weights."
            ) from problem
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns the content of config.json, with checksums of the parts that decide answers."""
        values = json.loads(super().to_json_string(use_diff))
        values[CHECKSUMS] = config_checksums(values, defaults_of(type(self)))
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder_config, dict):
            self.encoder_config = {k: v for k, v in self.encoder_config.items() if k not in _LOADER_KEYS}
            check_counts(self.encoder_config)
            check_model_type(self.encoder_config.get("model_type"))
        num_labels = kwargs.pop("num_labels", None)
        if num_labels is not None and num_labels != len(self.labels):
            raise ValueError(
                f"num_labels={num_labels} contradicts the {len(self.labels)} labels: leave num_labels out, it is derived."
            )
        id2label, label2id = derived_label_maps(self.labels)
        if self.id2label is None:
            self.id2label = id2label
        if self.label2id is None:
            self.label2id = label2id
        if self.head == "auto" and self.label_mode in DEFAULT_HEADS:
            self.head = "independent" if self.objective == "aggregate" else DEFAULT_HEADS[self.label_mode]
        if self.prototype_anchor and self.label_texts is None:
            self.label_texts = self.to_taxonomy().texts(self.label_names)
        if self.window_length is not None:
            self.max_windows = MAX_WINDOWS if self.max_windows is None else self.max_windows
            if self.window_overlap is None:
                self.window_overlap = default_overlap(self.window_length, self.window_affixes)
        if self.problem_type is None:
            self.problem_type = "multi_label_classification"
        kwargs.setdefault("custom_pipelines", None)  # like auto_map, for pipeline() with the code of a repository
        super().__post_init__(**kwargs)
        encoder_config: Any = self.encoder_config
        if getattr(encoder_config, "model_type", None) == self.model_type:
            raise ValueError("encoder_config describes an HCAL model: give the configuration of its encoder alone.")
        if getattr(encoder_config, "use_cache", False):
            encoder_config.use_cache = False  # nothing is generated, so no past states are needed
        if os.path.isdir(getattr(encoder_config, "_name_or_path", "")):
            encoder_config._name_or_path = ""  # a local folder means nothing to other users

    def __setattr__(self, name: str, value: Any) -> None:
        # Set by a config.json or by Pipeline.save_pretrained.
        super().__setattr__(name, CustomPipelines(value) if name == "custom_pipelines" else value)

    @property
    def joint_contrast(self) -> JointContrastOptions | None:
        """The options of `contrast="hjcl"`, or None with another contrast."""
        return JointContrastOptions.from_kwargs(self.contrast_kwargs) if self.contrast == "hjcl" else None

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
            TypeError: if `taxonomy` is no taxonomy, or for an unknown field.
            ValueError: if `label_names` has keys that no label has, or a field is invalid.
        """
        if not hasattr(taxonomy, "num_labels"):  # a model repository has a class of its own
            raise TypeError(f"taxonomy must be a Taxonomy, got {type(taxonomy).__name__}: use Taxonomy.from_paths.")
        check_field_names(kwargs, cls.__dataclass_fields__)
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


# Makes save_pretrained write this file and those that it imports next to the model.
HcalConfig.register_for_auto_class()

__all__ = ["FORMAT_VERSION", "TABLE_OPTIONS", "HcalConfig", "display_names"]

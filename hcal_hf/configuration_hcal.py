"""Configuration of an HCAL model: an encoder, a label hierarchy, and how labels are scored and trained."""

import functools
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .taxonomy import Taxonomy

# What an encoder's configuration must not carry: a nested dictionary from a repository could otherwise switch on code
# or kernels that the one who loads the model never agreed to.
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

# The label mode that each head is for; None: both.
_HEAD_MODES = {
    "independent": None,
    "path_softmax": "single_path",
    "conditional_softmax": "single_path",
    "conditional_sigmoid": "multi_path",
}


def _as_value_errors(cls: type) -> type:
    """Lets construction and validation raise ValueError, as everywhere in transformers, where @strict has classes of its
    own that are none."""

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
    Configuration of [`HcalForSequenceClassification`]. The hierarchy lives here and nowhere else: `labels` is the one
    source of label order, `id2label` and `label2id` are derived from it.

    Args:
        encoder_config (`dict` or `PreTrainedConfig`):
            Configuration of any encoder that `AutoModel` builds.
        labels (`list[str]`):
            The L unique node labels, sorted by depth ([`Taxonomy`] sorts them).
        edges (`list[list[int]]`):
            The E hierarchy edges as [parent, child] indices into `labels`.
        label_mode (`"single_path"` or `"multi_path"`, defaults to `"single_path"`):
            Whether a document carries one path from a root (needs a forest), or any ancestor-closed set of nodes, also
            the empty one.
        partial_paths (`bool`, defaults to `False`):
            Whether a document's path may end at an inner node.
        head (`str`, defaults to `"independent"`):
            How scores become node probabilities. `independent`: one softmax a level (single_path), one sigmoid a label
            (multi_path). Coherent, P(child) <= P(each parent): `path_softmax` and `conditional_softmax` (single_path),
            `conditional_sigmoid` (multi_path).
        objective (`"document"` or `"aggregate"`, defaults to `"document"`):
            What the levels above the leaves are trained on: each document's own feature, or the mean feature of each
            class in the batch (child-to-parent aggregation, HCAL). `aggregate` needs the `independent` head,
            single_path, and leaves that all lie at one depth.
        pooling (`"mean"`, `"cls"` or `"last"`, defaults to `"mean"`):
            Which token states make the document's vector: the mean over the tokens, the first, or the last one (for
            decoder-only encoders).
        projection_dim (`int`, defaults to 256):
            Size d of features and prototypes.
        prototype_temperature (`float`, defaults to 0.1):
            tau in score = cosine / tau of the softmax heads; 1 / tau is the initial scale of the sigmoid heads.
        perturbation (`float`, defaults to 0.01):
            Half-width eps of the uniform noise on the unit prototypes in the training loss, given as at d = 256: the
            width used is eps * sqrt(256 / d). 0 switches it off.
        contrast (`"aggregate"`, *optional*):
            Adds one task a level: the mean feature of each class in the batch against the perturbed prototypes of its
            level ([`hcal_hf.objectives.aggregate_losses`]). Defined for single_path and multi_path.
        contrast_alpha (`float`, defaults to 0.5):
            Weight of a level's contrast task relative to the level's own weight.
        prototype_anchor (`"label_text"`, *optional*):
            Prototypes start from the encoder's embedding of the labels' own words: P = normalize(normalize(g(e)) + delta)
            with the documents' projection g and a learned delta, initially 0.
        label_texts (`list[str]`, *optional*):
            The words of each of the L labels, for `prototype_anchor`; made from the names by default.
        thresholds (`list[float]`, *optional*):
            Lowest probability of a predicted label for each of the L labels ([`HcalTrainer.tune_thresholds`] sets them);
            no label's may be below those of its parents. Used where no threshold is given.
        risk_alpha, risk_threshold (`float`, *optional*):
            The risk level of `decode="risk"` and the probability it calls for ([`HcalTrainer.calibrate_risk`] sets both).

    Raises:
        ValueError: for a field of a wrong type or outside its range, an invalid hierarchy, a DAG
            with single_path, `objective="aggregate"` where it is not defined, or an `id2label`, `label2id`,
            `num_labels` or `problem_type` that contradicts `labels`.

    Source: Jiang et al., "Hierarchy-Consistent Learning and Adaptive Loss Balancing for Hierarchical Multi-Label
    Classification", CIKM 2025 (arXiv 2508.13452).
    """

    model_type = "hcal"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}
    # Per-task and per-document fields of the output that an evaluation must not gather.
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
    head: Literal["independent", "path_softmax", "conditional_softmax", "conditional_sigmoid"] = "independent"
    objective: Literal["document", "aggregate"] = "document"
    pooling: Literal["mean", "cls", "last"] = "mean"
    projection_dim: int = 256
    prototype_temperature: float | int = 0.1
    perturbation: float | int = 0.01
    contrast: Literal["aggregate"] | None = None
    contrast_alpha: float | int = 0.5
    prototype_anchor: Literal["label_text"] | None = None
    label_texts: list[str] | None = None
    thresholds: list[float] | None = None
    risk_alpha: float | None = None
    risk_threshold: float | None = None

    id2label: dict[int, str] | dict[str, str] | None = None
    label2id: dict[str, int] | dict[str, str] | None = None
    problem_type: str | None = None

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
        if self.prototype_anchor and self.label_texts is None:
            self.label_texts = self.to_taxonomy().texts()
        if self.problem_type is None:
            self.problem_type = "multi_label_classification"
        super().__post_init__(**kwargs)
        encoder_config: Any = self.encoder_config
        if getattr(encoder_config, "use_cache", False):
            encoder_config.use_cache = False  # a text is read once, as a whole

    def _derived_label_maps(self) -> tuple[dict[int, str], dict[str, int]]:
        return dict(enumerate(self.labels)), {label: i for i, label in enumerate(self.labels)}

    # ---- Validation, run by @strict after construction and before saving ----

    def validate_label_maps(self) -> None:
        """id2label and label2id must say what `labels` says."""
        id2label, label2id = self._derived_label_maps()
        if self.id2label != id2label or self.label2id != label2id:
            raise ValueError(
                "id2label / label2id contradict `labels`, the one source of label order: leave both out, they are "
                "derived. To rename labels, change `labels`."
            )
        if self.problem_type != "multi_label_classification":
            raise ValueError(
                f"problem_type={self.problem_type!r} does not fit: every node has a probability of its own "
                "(sigmoid(logits)), so it is always 'multi_label_classification'. Leave it out; whether a document has "
                "one path or several is label_mode."
            )

    def validate_numbers(self) -> None:
        """Sizes and widths must be in range."""
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim must be at least 1, got {self.projection_dim}.")
        if not self.prototype_temperature > 0:
            raise ValueError(f"prototype_temperature must be above 0, got {self.prototype_temperature}.")
        if not self.perturbation >= 0:
            raise ValueError(f"perturbation must be 0 (off) or above, got {self.perturbation}.")
        if not self.contrast_alpha >= 0:
            raise ValueError(f"contrast_alpha must be 0 or above, got {self.contrast_alpha}.")
        if self.label_texts is not None and len(self.label_texts) != len(self.labels):
            raise ValueError(
                f"label_texts must hold one text for each of {len(self.labels)} labels, got {len(self.label_texts)}."
            )
        if self.thresholds is not None and len(self.thresholds) != len(self.labels):
            raise ValueError(
                f"thresholds must hold one number for each of {len(self.labels)} labels, got {len(self.thresholds)}."
            )
        if (self.risk_alpha is None) != (self.risk_threshold is None):
            raise ValueError("risk_alpha and risk_threshold belong together: trainer.calibrate_risk sets both.")

    def validate_hierarchy(self) -> None:
        """The hierarchy must be valid and fit label_mode, head and objective."""
        fitting = [name for name, mode in _HEAD_MODES.items() if mode in (None, self.label_mode)]
        if self.head not in fitting:
            raise ValueError(f"head={self.head!r} does not fit label_mode={self.label_mode!r}: use one of {fitting}.")
        taxonomy = self.to_taxonomy()
        if self.label_mode == "single_path":
            taxonomy.check_single_path()
        if self.objective == "aggregate":
            self._check_aggregate(taxonomy)
        if self.thresholds is not None and len(taxonomy.edges):
            low = taxonomy.edges[[self.thresholds[c] < self.thresholds[p] for p, c in taxonomy.edges.tolist()]]
            if len(low):
                parent, child = (taxonomy.labels[i] for i in low[0])
                raise ValueError(f"The threshold of {child!r} is below that of its parent {parent!r}: it must not be.")

    def _check_aggregate(self, taxonomy: Taxonomy) -> None:
        """Child-to-parent aggregation as published needs a full path from root to leaf for every document."""
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
                'objective="aggregate" needs leaves that all lie at one depth, but they lie at depths '
                f"{leaf_depths.min()} ({shallow!r}) to {leaf_depths.max()}: {instead}."
            )

    # ---- Taxonomies and presets ----

    def to_taxonomy(self) -> Taxonomy:
        """The hierarchy as a new [`Taxonomy`]."""
        return Taxonomy(self.labels, self.edges)

    @classmethod
    def from_taxonomy(cls, taxonomy: Taxonomy, encoder_config: Any = None, **kwargs: Any) -> "HcalConfig":
        """A configuration for a taxonomy; `kwargs` are the other fields."""
        return cls(
            encoder_config=encoder_config, labels=list(taxonomy.labels), edges=taxonomy.edges.tolist(), **kwargs
        )

    @classmethod
    def paper(cls, taxonomy: Taxonomy, encoder_config: Any = None, **kwargs: Any) -> "HcalConfig":
        """HCAL as its authors released it: per-document cross-entropy at the leaves, class-mean aggregation above,
        perturbed prototypes of size 256 at temperature 0.1. Train it with [`HcalTrainingArguments.paper`].

        Raises:
            ValueError: for a ragged taxonomy, partial paths or multi_path, where the published method is not defined;
                the message names what to use instead.
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


__all__ = ["HcalConfig"]

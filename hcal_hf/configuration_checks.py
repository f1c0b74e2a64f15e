"""Checks the fields of a configuration, one by one and together."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .classification_loss import check_classification_loss
from .geometry import check_geometry
from .joint_contrast import JointContrastOptions
from .taxonomy import Taxonomy
from .windows import check_windows

# The format of config.json and weights that this library writes. Formats up to this one can be read.
# A config.json without `hcal_format_version` has format 0, which differs from format 1 in that field only. Format 2 adds
# `projection_bias`, and format 3 `classification_loss`, `geometry` and `text_prefix`, without which a model would answer
# differently.
FORMAT_VERSION = 3

# The options of `table_options`, with the names of [`hcal_hf.encode_dataset`]. `leave_out` holds labels that exclude a row.
TABLE_OPTIONS = ("text", "labels", "separator", "delimiter", "empty_means_none", "leave_out")

# A risk_threshold above every probability, with the same value as `hcal_hf.training.risk.NEVER`.
_NEVER = 2.0

# A larger projection would not fit into memory.
LARGEST_DIMENSION = 2**20

# Divided by a temperature outside this range, scores overflow or lose their differences in float32.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-3, 1e3

# Arguments that every configuration of transformers takes and that are not fields of its class.
_MORE_FIELDS = ("attn_implementation", "auto_map", "custom_pipelines", "num_labels", "name_or_path", "torch_dtype")

# The label mode of each head. None means both.
_HEAD_MODES = {
    "independent": None,
    "path_softmax": "single_path",
    "conditional_softmax": "single_path",
    "lookahead_softmax": "single_path",
    "conditional_sigmoid": "multi_path",
    "lookahead_sigmoid": "multi_path",
}


class ConfigChecks:
    """The checks of [`HcalConfig`]. `@strict` runs every `validate_*` method after construction and before saving."""

    labels: list[str]
    edges: list[list[int]]
    label_mode: Any
    partial_paths: bool
    head: Any
    objective: Any
    classification_loss: Any
    classification_loss_kwargs: dict[str, Any] | None
    projection_dim: int | None
    lexical_features: int | None
    lexical_terms: int | None
    prototype_temperature: float | int
    perturbation: float | int
    contrast: Any
    contrast_alpha: float | int
    contrast_kwargs: dict[str, Any] | None
    thresholds: list[float] | None
    risk_alpha: float | None
    risk_threshold: float | None
    score_temperature: float | int
    table_options: dict[str, Any] | None
    hcal_format_version: int
    id2label: Any
    label2id: Any
    problem_type: str | None

    def to_taxonomy(self) -> Taxonomy:
        raise NotImplementedError

    def validate_format_version(self) -> None:
        """Checks that this library can read the format."""
        check_format_version(self.hcal_format_version)

    def validate_label_maps(self) -> None:
        """Checks that id2label, label2id and problem_type agree with `labels`."""
        id2label, label2id = derived_label_maps(self.labels)
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
        if self.projection_dim is not None and not 1 <= self.projection_dim <= LARGEST_DIMENSION:
            raise ValueError(
                f"projection_dim must be from 1 to {LARGEST_DIMENSION:,}, got {self.projection_dim:,}: choose 64 to 1,024."
            )
        for name in ("lexical_features", "lexical_terms"):
            value, other = getattr(self, name), self.lexical_features and self.lexical_terms
            if value is not None and (not other or not 1 <= value <= LARGEST_DIMENSION):
                raise ValueError(
                    f"lexical_features={self.lexical_features} and lexical_terms={self.lexical_terms} must both be numbers "
                    f"from 1 to {LARGEST_DIMENSION:,}, or both None: hcal_hf.add_lexical_features sets them."
                )
        for name in ("prototype_temperature", "score_temperature"):
            value = getattr(self, name)
            if not LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE:
                hint = "; trainer.calibrate_temperature sets it" if name == "score_temperature" else ""
                raise ValueError(
                    f"{name} must lie between {LOWEST_TEMPERATURE:g} and {HIGHEST_TEMPERATURE:g}, got {value}: scores "
                    f"divided by numbers beyond that are no longer exact{hint}."
                )
        for name, meaning in (("perturbation", "0 (off)"), ("contrast_alpha", "0")):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be {meaning} or a finite number above, got {value}.")
        for field_name in ("label_texts", "label_names"):
            texts = getattr(self, field_name)
            if texts is not None and len(texts) != len(self.labels):
                raise ValueError(
                    f"{field_name} must hold one text for each of {len(self.labels)} labels, got {len(texts)}."
                )

    def validate_contrast(self) -> None:
        """Checks the options of the contrast."""
        if self.contrast_kwargs and self.contrast != "hjcl":
            raise ValueError(
                f'contrast_kwargs are options of contrast="hjcl", but contrast is {self.contrast!r}: leave them out.'
            )
        JointContrastOptions.from_kwargs(self.contrast_kwargs)

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

    def validate_classification_loss(self) -> None:
        """Checks that the classification loss and its options fit the other fields."""
        check_classification_loss(self)

    def validate_windows(self) -> None:
        """Checks the windows of long texts."""
        check_windows(self)

    def validate_geometry(self) -> None:
        """Checks that the geometry of the prototypes fits the other fields."""
        check_geometry(self)

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


def derived_label_maps(labels: list[str]) -> tuple[dict[int, str], dict[str, int]]:
    """Returns id2label and label2id, which follow from the order of the labels."""
    return dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}


def check_field_names(names: Iterable[str], fields: Iterable[str]) -> None:
    """Checks that a configuration has each of these fields. transformers would keep the value of an unknown one unused.

    Raises:
        TypeError: for the first one that it does not have.
    """
    known = {*fields, *_MORE_FIELDS}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            raise TypeError(f"HcalConfig has no field {name!r}. Closest: {close or 'none'}.")


def check_model_type(model_type: Any) -> None:
    """Checks that transformers has the architecture of an encoder.

    Raises:
        ValueError: if it has none of this name.
    """
    if model_type != "hcal" and model_type not in list(CONFIG_MAPPING_NAMES):
        close = difflib.get_close_matches(str(model_type), CONFIG_MAPPING_NAMES, n=3)
        raise ValueError(
            f"The encoder's configuration has model_type={model_type!r}, which this version of transformers does not have. "
            f"Closest: {close or 'none'}. Correct it, or update transformers."
        )


def check_format_version(number: Any) -> None:
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"hcal_format_version must be a whole number of at least 0, got {number!r}.")
    if number > FORMAT_VERSION:
        raise ValueError(
            f"The model has hcal_format_version {number}, but this hcal_hf reads versions up to {FORMAT_VERSION}. A newer "
            "hcal_hf wrote the model: update hcal_hf, for example with pip install --upgrade hcal-hf."
        )

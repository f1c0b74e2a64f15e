"""Changes the taxonomy of a trained model and keeps what it has learned."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..anchors import embed_texts, label_texts
from ..configuration_hcal import HcalConfig
from ..data.taxonomy_diff import Change
from ..data.taxonomy_plan import TaxonomyPlan, plan_changes
from ..label_extension import start_from_texts, uses_label_text
from ..label_map import map_config, map_model
from ..taxonomy import Taxonomy
from .changed_labels import ADDED, MERGED, changed_probabilities

logger = logging.get_logger(__name__)

_SHOWN = 5
_NO_TEXT = "added, but the scores of this model do not use label text"
_SPLIT = "has labels below it for the first time: its documents need one of them"
_WAS_INNER = "all labels below it are gone: its documents now end here"


@dataclass
class TaxonomyChange:
    """Reports the changes of a model's labels.

    Attributes:
        labels (`dict[str, str | None]`): the new label of each old one; None if it was removed.
        removed, renamed, moved, added, merged (`list[str]`): the labels by kind of change. `removed` holds old labels, and
            the others hold new ones.
        kept (`list[str]`): the labels that keep their probability for every document.
        changed (`dict[str, str]`): the labels that keep what was learned, but get another probability, with the reason.
        to_train (`dict[str, str]`): the labels that must be trained again, with the reason.
        to_repeat (`list[str]`): the calibrations that must be repeated, in sentences.
        notes (`list[str]`): other remarks, in sentences.
    """

    labels: dict[str, str | None]
    removed: list[str]
    renamed: list[str]
    moved: list[str]
    added: list[str]
    merged: list[str]
    kept: list[str]
    changed: dict[str, str]
    to_train: dict[str, str]
    to_repeat: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as a dictionary that JSON can represent."""
        return asdict(self)

    def __str__(self) -> str:
        kinds = ("added", "removed", "renamed", "moved", "merged")
        numbers = ", ".join(f"{len(getattr(self, kind)):,} {kind}" for kind in kinds)
        total = len(self.kept) + len(self.changed.keys() | self.to_train.keys())
        lines = [f"{len(self.labels):,} labels before and {total:,} after: {numbers}."]
        lines.append(f"Kept exactly: {len(self.kept):,} labels.")
        for title, labels in (
            ("Kept what was learned, with another probability", self.changed),
            ("Must be trained again", self.to_train),
        ):
            lines.append(f"{title}: {len(labels):,} labels{':' if labels else '.'}")
            of_reason: dict[str, list[str]] = defaultdict(list)
            for label, reason in labels.items():
                of_reason[reason].append(label)
            lines += [f"  {reason} ({len(names):,}): {_first(names)}" for reason, names in of_reason.items()]
        return "\n".join([*lines, *self.to_repeat, *self.notes])


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


@torch.no_grad()
def change_taxonomy(
    model: Any,
    changes: Any,
    tokenizer: Any = None,
    *,
    documents: Mapping[str, int] | None = None,
    reembed: bool = False,
) -> TaxonomyChange:
    """Adds, removes, renames, moves and merges labels of a trained model, and keeps what it has learned.

    | action | prototype, bias and stop score | threshold | label text (anchored models) |
    |---|---|---|---|
    | `rename` | unchanged | unchanged | unchanged unless `reembed` |
    | `move`, `add_parent`, `remove_parent` | unchanged | raised to those of the new parents | unchanged unless `reembed` |
    | `merge` | weighted mean | weighted mean | that of the existing label, or of the largest merged one |
    | `remove`, `remove_subtree` | removed | removed | removed |
    | `add` | as in [`HcalForSequenceClassification.add_labels`] | mean of the siblings | new |

    All changes apply at once. If one of them is invalid, the model is not changed at all. The probabilities are coherent
    afterwards under every coherent head. A risk calibration is dropped if any probability changes. The temperature, and
    what is not stored by label, are unchanged.

    The children of merged labels become children of the merged label. The children of a removed label must be moved or
    removed as well, or the whole subtree is removed with `remove_subtree`.

    Args:
        model ([`HcalForSequenceClassification`]): the model, which is changed in place.
        changes: a list of [`Change`], the result of [`diff_taxonomies`] or [`read_changes`]. In a change, `path` is a path
            of the old taxonomy, or a label, and `new_path` is a path of the new one.
        tokenizer: the tokenizer of the encoder. Needed to add labels, and for `reembed`.
        documents (`dict[str, int]`, *optional*): the number of training documents of each label. Merged labels are
            weighted by it. By default, they have equal weights.
        reembed (`bool`): gives renamed and moved labels, and the labels directly below them, a label text with the new
            names, and embeds it. This changes their prototypes. Descriptions are not changed.

    Returns:
        The labels that are kept exactly, changed approximately, or must be trained again.

    Raises:
        ValueError: for changes that are not possible ([`hcal_hf.data.taxonomy_plan.plan_changes`]), several parents under
            single_path, or a missing tokenizer.
    """
    listed: list[Change] = list(getattr(changes, "changes", changes))
    config, taxonomy = model.config, model.taxonomy
    plan = plan_changes(
        taxonomy,
        listed,
        getattr(changes, "places", None),
        single_path=config.label_mode == "single_path",
        documents=None if documents is None else _counts(taxonomy, documents),
    )
    label_map = plan.label_map
    if tokenizer is None and (label_map.is_new.any() or reembed):
        raise ValueError(
            "Labels are added or embedded again, which needs the tokenizer of the encoder: pass tokenizer=..."
        )
    if reembed and not config.prototype_anchor:
        raise ValueError(
            "reembed=True needs prototypes that are anchored to label text, but this model has none: leave it out."
        )
    names = _map_names(config, plan)
    texts, embedded = _map_texts(config, plan, names, reembed)
    changed = changed_probabilities(config, label_map, embedded)
    keep_risk = not changed and label_map.new.num_labels == taxonomy.num_labels
    new_config = map_config(config, label_map, texts, names, keep_risk=keep_risk)
    map_model(model, new_config, label_map)
    new = np.flatnonzero(label_map.is_new)
    if len(new):
        shown = texts or label_texts(model.taxonomy, None, names)
        start_from_texts(model, tokenizer, new, shown)
    if texts is not None and embedded.any():
        rows = np.flatnonzero(embedded)
        embeddings = embed_texts(model, tokenizer, [texts[i] for i in rows])
        model.prototypes.anchors[rows] = embeddings.to(model.prototypes.anchors)
    return _report(plan, config, new_config, changed, uses_label_text(model), reembed)


def _counts(taxonomy: Taxonomy, documents: Mapping[str, int]) -> np.ndarray:
    counts = np.zeros(taxonomy.num_labels)
    for label, number in documents.items():
        counts[taxonomy.index(label)] = number
    return counts


def _map_names(config: HcalConfig, plan: TaxonomyPlan) -> list[str] | None:
    """Returns `label_names` of the new labels. A name that was the label's own follows a rename."""
    label_map = plan.label_map
    if config.label_names is None and not plan.names:
        return None
    old_names = label_map.old.names if config.label_names is None else config.label_names
    names = label_map.carry(old_names, label_map.new.names)
    for i in plan.renamed:
        j = label_map.source[i]
        if old_names[j] == label_map.old.names[j]:
            names[i] = label_map.new.names[i]
    for i, name in plan.names.items():
        names[i] = name
    return names


def _map_texts(
    config: HcalConfig, plan: TaxonomyPlan, names: list[str] | None, reembed: bool
) -> tuple[list[str] | None, np.ndarray]:
    """Returns `label_texts` of the new labels, and the labels [L'] that are not added and get another text."""
    label_map = plan.label_map
    embedded = np.zeros(len(label_map.source), dtype=bool)
    if not config.prototype_anchor:
        return None, embedded
    new = label_map.new
    defaults = label_texts(new, {new.labels[i]: text for i, text in plan.descriptions.items()}, names)
    old_defaults = label_texts(label_map.old, None, config.label_names)
    texts = label_map.carry(config.label_texts or old_defaults, defaults)
    if reembed:
        shown = [name.replace("_", " ") for name in names or new.names]
        old_shown = [name.replace("_", " ") for name in config.label_names or label_map.old.names]
        for i, j in enumerate(label_map.source.tolist()):
            # A text that was built from names is built again. Any other text is a description and stays.
            for of_old, of_new in ((old_defaults, defaults), (old_shown, shown)):
                if j >= 0 and texts[i] == of_old[j] != of_new[i]:
                    texts[i], embedded[i] = of_new[i], True
                    break
    return texts, embedded


def _report(
    plan: TaxonomyPlan,
    config: HcalConfig,
    new_config: HcalConfig,
    changed: dict[int, str],
    uses_text: bool,
    reembed: bool,
) -> TaxonomyChange:
    label_map, new, old = plan.label_map, plan.label_map.new, plan.label_map.old
    labels, fate = new.labels, plan.fate.tolist()
    was_leaf = np.ones(new.num_labels, dtype=bool)
    np.logical_and.at(was_leaf, plan.fate[plan.fate >= 0], old.is_leaf[plan.fate >= 0])
    to_train: dict[int, str] = {}
    for i in np.flatnonzero(was_leaf != new.is_leaf).tolist():
        if not label_map.is_new[i]:
            to_train[i] = _SPLIT if was_leaf[i] else _WAS_INNER
    if not uses_text:
        to_train |= {i: _NO_TEXT for i, reason in changed.items() if reason == ADDED}
    to_repeat = []
    if config.risk_alpha is not None and new_config.risk_alpha is None:
        to_repeat.append("The risk calibration was dropped. Repeat trainer.calibrate_risk on held-out documents.")
    if changed and config.score_temperature != 1:
        to_repeat.append("The temperature is unchanged. Repeat trainer.calibrate_temperature on held-out documents.")
    if changed and config.thresholds is not None:
        to_repeat.append(
            "Thresholds are unchanged where possible. Repeat trainer.tune_thresholds on held-out documents."
        )
    notes = []
    if config.prototype_anchor and not reembed and (plan.renamed | plan.moved):
        notes.append("Renamed and moved labels keep their old label text, so that their prototypes stay the same.")
    if any(reason == MERGED for reason in changed.values()):
        notes.append("Train on documents of the merged labels to fit their prototypes.")
    by_kind = Counter(fate)
    return TaxonomyChange(
        labels={label: labels[i] if i >= 0 else None for label, i in zip(old.labels, fate)},
        removed=plan.removed,
        renamed=_names(labels, plan.renamed),
        moved=_names(labels, plan.moved - set(np.flatnonzero(label_map.is_new).tolist())),
        added=_names(labels, set(np.flatnonzero(label_map.is_new).tolist())),
        merged=_names(labels, {i for i in label_map.merged if by_kind[i] > 1}),
        kept=[label for i, label in enumerate(labels) if i not in changed and i not in to_train],
        changed={labels[i]: reason for i, reason in sorted(changed.items()) if i not in to_train},
        to_train={labels[i]: reason for i, reason in sorted(to_train.items())},
        to_repeat=to_repeat,
        notes=notes,
    )


def _names(labels: Sequence[str], indices: Iterable[int]) -> list[str]:
    return [labels[i] for i in sorted(indices)]


__all__ = ["TaxonomyChange", "change_taxonomy"]

"""Builds the model card of a saved model from the facts that the author and the trainer provide.

A card contains only known facts. Label names and other external text are written in code spans and blocks, in which
nothing is interpreted as Markdown, HTML or a link. huggingface_hub writes the metadata.
"""

import difflib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from .card_markdown import (
    TEMPLATE,
    block,
    cell,
    code,
    counted,
    level_table,
    prose,
    reading_limit,
    table,
    threshold_note,
    tree_lines,
    truncation_note,
)
from .decoding import default_method
from .hub import TASK
from .taxonomy import Taxonomy

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# The results in the metadata: the name of the metric in hcal_hf, and its type and name on the Hub.
INDEXED = (
    ("micro_f1", "f1", "micro-F1"),
    ("macro_f1", "f1", "macro-F1"),
    ("hierarchical_f1", "hierarchical_f1", "hierarchical F1"),
    ("leaf_accuracy", "accuracy", "leaf accuracy"),
    ("raw_hvr", "hvr", "HVR, raw"),
    ("hvr", "hvr", "HVR, decoded"),
)


@dataclass
class Details:
    """Facts that only the author can provide. None means not specified.

    Args:
        model_name (`str`): the title of the card.
        language (`str` or `list[str]`): the language of the texts, as ISO 639 codes.
        license (`str`): the licence of the weights, by its name on the Hub, such as `apache-2.0`.
        tags (`str` or `list[str]`): more tags of the repository.
        finetuned_from (`str`): the name of the encoder on the Hub. By default, that from which the encoder was loaded.
        dataset (`str`): the name of the data set in the text.
        dataset_tags (`str`): the name of the data set on the Hub.
        dataset_args (`str`): its configuration on the Hub.
        dataset_license (`str`): the name of its licence in the text.
        dataset_description (`str`): source, splits and excluded rows. Markdown, which is copied unchanged.
        benchmark_task (`str`): the task of the benchmark `dataset_tags` on the Hub. The result is then also written to
            `.eval_results/`, from which the Hub reads results of its registered benchmarks only.
        benchmark_metric (`str`): the metric of this benchmark.
    """

    model_name: str | None = None
    language: str | list[str] | None = None
    license: str | None = None
    tags: str | list[str] | None = None
    finetuned_from: str | None = None
    dataset: str | None = None
    dataset_tags: str | None = None
    dataset_args: str | None = None
    dataset_license: str | None = None
    dataset_description: str | None = None
    benchmark_task: str | None = None
    benchmark_metric: str = "micro_f1"

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: if a name on the Hub is invalid, or a benchmark has no data set.
        """
        for name in ("finetuned_from", "dataset_tags"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and REPO_ID.fullmatch(value)):
                raise ValueError(
                    f'{name} must be one name on the Hub, such as "sentence-transformers/all-MiniLM-L6-v2", got {value!r}: '
                    "leave it out if it is not on the Hub."
                )
        if self.benchmark_task is not None and self.dataset_tags is None:
            raise ValueError(f"benchmark_task={self.benchmark_task!r} needs its data set: give dataset_tags too.")

    @classmethod
    def read(cls, details: Mapping[str, Any] | str | None) -> "Details":
        """Reads details from a mapping or from JSON.

        Raises:
            ValueError: if the details are not a mapping, or a name (the message lists the closest ones) or a value is
                invalid.
        """
        values = json.loads(details) if isinstance(details, str) else dict(details or {})
        if not isinstance(values, dict):
            raise ValueError(f"The details of the model card must be a mapping, got {values!r}.")
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=3)
                raise ValueError(f"The model card has no detail {name!r}. Closest: {close or names}.")
        return cls(**values)


@dataclass
class DataSummary:
    """One data set that was used in training.

    Args:
        role (`str`): its use, such as "training" or "evaluation".
        documents (`int`, *optional*): the number of documents. None for a stream.
        labelled (`int`, *optional*): the number of documents with labels.
        counts (`np.ndarray` of shape `[L]`, *optional*): the number of documents of each label, ancestors included.
    """

    role: str
    documents: int | None = None
    labelled: int | None = None
    counts: np.ndarray | None = None


@dataclass
class Evaluation:
    """The scores of a model on one data set.

    Args:
        split (`str`): the name of the data set.
        documents (`int`): the number of documents.
        metrics (`dict[str, float]`): values with the names of [`hcal_hf.compute_metrics`].
        support, node_f1 (`np.ndarray` of shape `[L]`, *optional*): the number of documents and the F1 of each label. F1 is
            NaN for a label without documents.
    """

    split: str
    documents: int
    metrics: Mapping[str, float]
    support: np.ndarray | None = None
    node_f1: np.ndarray | None = None


@dataclass
class Facts:
    """The content of a card that does not come from the model itself.

    Args:
        model_id (`str`): the name on the Hub or the folder from which the usage example loads the model.
        details ([`Details`]): the facts that the author provided.
        data: the data sets of the training.
        training (`dict[str, str]`, *optional*): the settings of the training and their values. None if they are unknown.
        results: the scores of the current model.
        pictures (`dict[str, str]`): the alternative text of each figure, by its file in the folder of the model.
        carries_code (`bool`): whether the folder of the model contains its code.
        truncated (`dict`): for each split, the number of texts of which the end was cut off, and of all texts.
        carried (`dict[str, str]`): sections of the previous card in the folder, by title. They replace unknown facts.
    """

    model_id: str
    details: Details = field(default_factory=Details)
    data: Sequence[DataSummary] = ()
    training: Mapping[str, str] | None = None
    results: Sequence[Evaluation] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    carries_code: bool = False
    truncated: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    carried: Mapping[str, str] = field(default_factory=dict)


# ---- The card ----


def build_card(model: Any, facts: Facts) -> ModelCard:
    """Builds the card of an [`HcalForSequenceClassification`].

    Raises:
        ImportError: if jinja2, a dependency of torch, is missing.
    """
    config, taxonomy, details = model.config, model.taxonomy, facts.details
    base, name = details.finetuned_from or encoder_id(config), details.model_name or Path(facts.model_id).name
    counts = next((summary.counts for summary in facts.data if summary.counts is not None), None)
    data_details = (
        details.dataset,
        details.dataset_tags,
        details.dataset_description,
        details.dataset_license,
        details.language,
    )
    data = facts.carried.get("Data") if not facts.data and not any(data_details) else None
    training = facts.carried.get("Training") if facts.training is None else None
    return ModelCard.from_template(
        _metadata(name, base, facts),
        template_str=TEMPLATE,
        title=prose(name),
        summary=_summary(model, base),
        usage=_usage(facts.model_id, remote=False),
        usage_remote=_usage(facts.model_id, remote=True) if facts.carries_code else "",
        decoding=_decoding(config),
        taxonomy=_taxonomy(taxonomy),
        levels=level_table(taxonomy, counts),
        tree=block(tree_lines(taxonomy)),
        data=data or _data(facts),
        training=training or _training(model, facts.training, base),
        results=[_result(evaluation, taxonomy) for evaluation in facts.results],
        pictures=[{"file": file, "alt": alt} for file, alt in facts.pictures.items()],
        decisions=_decisions(config, taxonomy),
        limits=_limits(model, counts),
        licence=_licence(details, base),
        version=package_version("hcal-hf"),
    )


def package_version(distribution: str) -> str:
    """Returns the version of an installed package, or "" if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def encoder_id(config: Any) -> str | None:
    """Returns the name of the encoder on the Hub. None if it is a local folder, or if its files are not in the cache."""
    name = getattr(config.encoder_config, "_name_or_path", None)
    if not name or not REPO_ID.fullmatch(str(name)) or os.path.exists(name):
        return None
    return name if isinstance(try_to_load_from_cache(name, "config.json"), str) else None


# ---- Metadata ----


def _metadata(name: str, base: str | None, facts: Facts) -> ModelCardData:
    details = facts.details
    results = [
        EvalResult(
            task_type="text-classification",
            task_name=TASK,
            dataset_type=details.dataset_tags or "unknown",
            dataset_name=details.dataset or details.dataset_tags or "unknown",
            dataset_config=details.dataset_args,
            dataset_split=evaluation.split,
            metric_type=kind,
            metric_name=title,
            metric_value=round(float(evaluation.metrics[metric]), 4),
        )
        for evaluation in facts.results
        for metric, kind, title in INDEXED
        if metric in evaluation.metrics and np.isfinite(evaluation.metrics[metric])
    ]
    more = [details.tags] if isinstance(details.tags, str) else list(details.tags or ())
    return ModelCardData(
        language=details.language,
        license=details.license,
        library_name="hcal_hf",
        pipeline_tag="text-classification",
        base_model=base,
        datasets=[details.dataset_tags] if details.dataset_tags else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        tags=["hierarchical-text-classification", "hcal", *more],
        model_name=name if results else None,
        eval_results=results or None,
    )


# ---- Sections ----


def _summary(model: Any, base: str | None) -> str:
    config, taxonomy = model.config, model.taxonomy
    if config.label_mode == "single_path":
        prediction = "one path of labels from the top level down"
        prediction += ", which may end above the deepest level" if config.partial_paths else ""
    else:
        prediction = "any number of labels, also none, each with all its ancestors"
    coherence = (
        "The levels are predicted independently; decoding makes them agree."
        if config.head == "independent"
        else "No label is more probable than its parents."
    )
    encoder = f"the encoder [{base}](https://huggingface.co/{base})"
    if not base:
        encoder = f"a {prose(config.encoder_config.model_type)} encoder"
    return (
        f"A hierarchical text classifier with {counted(taxonomy.num_labels, 'label')} on "
        f"{counted(len(taxonomy.levels), 'level')}. It was made with `hcal_hf` from {encoder}. It predicts "
        f"{prediction} for each text. {coherence}"
    )


def _usage(model_id: str, remote: bool) -> str:
    # A Python string on one line of ASCII, for any folder name.
    name = f'"{model_id}"' if re.fullmatch(r"[\w./ -]+", model_id, re.ASCII) else ascii(model_id)
    lines = [] if remote else ["import hcal_hf  # registers the task"]
    lines += [
        "from transformers import pipeline",
        "",
        f'classify = pipeline("{TASK}", model={name}{", trust_remote_code=True" if remote else ""})',
        'for label in classify("Put the text to classify here."):',
        '    print(label["depth"], label["label"], round(label["score"], 3))',
    ]
    return block(lines, "python")


def _decoding(config: Any) -> str:
    return (
        f'`decode="{default_method(config.label_mode)}"` is the default of this model. With every decoder except `"raw"`, '
        "the predicted labels agree with the hierarchy."
    )


def _taxonomy(taxonomy: Taxonomy) -> str:
    if taxonomy.is_forest:
        return (
            f"The {counted(taxonomy.num_labels, 'label')} form a forest: each has one parent, except those of level 0."
        )
    several = int((np.bincount(taxonomy.edges[:, 1]) > 1).sum())
    return (
        f"The {counted(taxonomy.num_labels, 'label')} form a directed acyclic graph: {several:,} of them have several "
        "parents. The level of a label is the length of the longest path from a top label."
    )


def _data(facts: Facts) -> str:
    details, parts = facts.details, []
    if details.dataset_tags:
        link = f"[{details.dataset_tags}](https://huggingface.co/datasets/{details.dataset_tags})"
        name = f"{prose(details.dataset)}, {link}" if details.dataset else link
        parts.append(name + (f", configuration {code(details.dataset_args)}" if details.dataset_args else "") + ".")
    elif details.dataset:
        parts.append(f"{prose(details.dataset)}.")
    if details.dataset_description:
        parts.append(details.dataset_description.strip())
    if facts.data:
        rows = []
        for summary in facts.data:
            row = [cell(summary.role), "unknown" if summary.documents is None else f"{summary.documents:,}"]
            row += ["unknown" if summary.labelled is None else f"{summary.labelled:,}"]
            known = summary.counts is not None and summary.documents
            row += [f"{summary.counts.sum() / summary.documents:.2f}" if known else "unknown"]  # type: ignore[union-attr]
            rows.append(row)
        parts.append(table(["data", "documents", "with labels", "labels per document, with ancestors"], rows))
    if not parts:
        parts.append("The data were not known when this card was written.")
    licence = prose(details.dataset_license) if details.dataset_license else "not specified"
    languages = [details.language] if isinstance(details.language, str) else details.language
    language = ", ".join(map(prose, languages)) if languages else "not specified"
    parts.append(
        f"{truncation_note(facts.truncated)}Language of the texts: {language}. Licence of the data: {licence}."
    )
    return "\n\n".join(parts)


def _training(model: Any, training: Mapping[str, str] | None, base: str | None) -> str:
    config = model.config
    weights = config.joint_contrast.weights.values() if config.joint_contrast else [config.contrast_alpha]
    numbers = ", ".join(f"{weight:g}" for weight in weights)
    contrast = f", contrast {config.contrast} ({numbers})" if config.contrast else ""
    rows = {
        "encoder": f"{base or config.encoder_config.model_type}, {model.encoder.num_parameters():,} parameters",
        "pooling": config.pooling,
        "head": config.head,
        "score function": f"{config.score_function}, temperature {config.prototype_temperature:g}",
        "label mode": config.label_mode + (", partial paths" if config.partial_paths else ", full paths"),
        "objective": config.objective
        + ("" if config.classification_loss == "auto" else f", {config.classification_loss}")
        + contrast,
        "prototypes": f"{_prototype_shape(model)}, anchors: {config.prototype_anchor or 'none'}, "
        f"perturbation {config.perturbation:g}, geometry {config.geometry}",
    }
    text = table(["model", "value"], [[name, cell(value, 200)] for name, value in rows.items()], numbers_from=2)
    if training is None:
        return f"{text}\n\nThe settings of the training were not known when this card was written."
    settings = [[name, cell(value, 200)] for name, value in training.items()]
    return f"{text}\n\n{table(['training', 'value'], settings, numbers_from=2)}"


def _prototype_shape(model: Any) -> str:
    """Writes the shape of the prototypes, such as "120 x 384"."""
    return " x ".join(f"{size:,}" for size in model.prototypes.weight.shape)


def _result(evaluation: Evaluation, taxonomy: Taxonomy) -> dict[str, str]:
    metrics = evaluation.metrics

    def percent(name: str) -> str:
        return f"{100 * metrics[name]:.1f}" if name in metrics else "unknown"

    levels = [
        [str(k), f"{level.stop - level.start:,}"]
        + [percent(f"{name}_level_{k}") for name in ("accuracy", "micro_f1", "macro_f1")]
        for k, level in enumerate(taxonomy.levels)
    ]
    decisions = [
        [title, *(percent(start + name) for name in ("micro_f1", "macro_f1", "exact_match", "hvr", "hvr_node"))]
        for title, start in (("raw", "raw_"), ("decoded", ""))
    ]
    header = ["decision", "micro-F1", "macro-F1", "exact match", "HVR", "HVR of labels"]
    notes = [
        "HVR: documents whose predicted labels lack a parent (of labels: predicted labels that lack one)"
        + ("; decoding makes it 0 by construction" if metrics.get("hvr") == 0 else "")
        + ". Macro-F1 is the mean over the labels that occur in this data set."
    ]
    titles = {
        "hierarchical_f1": "Hierarchical F1",
        "leaf_accuracy": "leaf accuracy",
        "hvr_argmax": "HVR of the best label of each level on its own",
        "ece": "expected calibration error",
    }
    single_scores = [f"{title} {percent(name)}" for name, title in titles.items() if name in metrics]
    has_our_metrics = "micro_f1" in metrics  # else a user replaced compute_metrics
    if single_scores:
        notes.insert(0, ", ".join(single_scores) + ".")
    if not has_our_metrics:
        values = [f"{code(name)} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]
        notes = [", ".join(values) + "."]
    return {
        "title": f"{prose(evaluation.split)}: {counted(evaluation.documents, 'document')}"
        + (", in percent" if has_our_metrics else ""),
        "levels": table(["level", "labels", "accuracy", "micro-F1", "macro-F1"], levels, 0) if has_our_metrics else "",
        "decisions": table(header, decisions) if has_our_metrics else "",
        "notes": "\n\n".join(notes),
        "nodes": _top_nodes(evaluation, taxonomy),
    }


def _top_nodes(evaluation: Evaluation, taxonomy: Taxonomy, most: int = 20) -> str:
    """Writes a table of the top-level labels with their scores: the `most` labels with the most documents."""
    if evaluation.node_f1 is None or evaluation.support is None:
        return ""
    top = taxonomy.levels[0]
    support, f1 = evaluation.support[top], evaluation.node_f1[top]
    order = np.argsort(-support, kind="stable")[:most].tolist()
    rows = [
        [cell(taxonomy.names[top.start + i]), f"{support[i]:,}", "" if np.isnan(f1[i]) else f"{100 * f1[i]:.1f}"]
        for i in order
    ]
    left = top.stop - top.start - len(rows)
    more = f"\n\nThese are the {most} top labels with the most documents; {left:,} more are not shown." if left else ""
    return table(["top label", "documents", "F1, decoded"], rows) + more


def _decisions(config: Any, taxonomy: Taxonomy) -> str:
    parts = [f'Default decoding: `decode="{default_method(config.label_mode)}"`.', threshold_note(config, taxonomy)]
    if config.score_temperature != 1:
        parts.append(f"Calibrated temperature of the scores: {config.score_temperature:.4g}.")
    if config.risk_threshold is not None:
        parts.append(
            f'`decode="risk"` predicts labels with a probability of at least {config.risk_threshold:.4g}. This threshold '
            f"was calibrated so that the expected share of wrong labels in a predicted set is at most {config.risk_alpha:g}"
            " for documents like those of the calibration."
        )
    return " ".join(parts)


def _limits(model: Any, counts: np.ndarray | None) -> str:
    config, taxonomy = model.config, model.taxonomy
    items = [f"It can only predict the {counted(taxonomy.num_labels, 'label')} above."]
    if config.label_mode == "single_path" and config.thresholds is None:
        items.append(
            "It predicts a path for every text, even if no label fits. With a `threshold`, it can be shorter or empty."
        )
    if counts is not None and (unseen := int((counts == 0).sum())):
        basis = "the text of the labels" if config.prototype_anchor else "their place in the hierarchy"
        items.append(f"{counted(unseen, 'label')} had no training document. Their predictions depend only on {basis}.")
    if model.max_tokens:
        items.append(reading_limit(model))
    if config.score_temperature == 1:
        items.append("Its probabilities were not calibrated on held-out documents.")
    items.append(
        "Labels that agree with the hierarchy may still be wrong. The results apply to texts like those of the evaluation. "
        "The model has the biases of its data and its encoder, which were not studied for this card."
    )
    return "\n".join(f"- {item}" for item in items)


def _licence(details: Details, base: str | None) -> str:
    own = (
        f"Licence of the weights: {prose(details.license)}."
        if details.license
        else "Licence of the weights: not specified."
    )
    rest = f" The encoder comes from {base}, under its own licence." if base else ""
    return f"{own}{rest} `hcal_hf` is under Apache-2.0."


__all__ = ["DataSummary", "Details", "Evaluation", "Facts", "build_card"]

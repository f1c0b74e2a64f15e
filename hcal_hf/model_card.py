"""Builds the model card of a saved model from the facts that the author and the trainer provide.

A card contains only known facts. Label names and other text from outside are written in code spans and blocks, where
nothing is read as Markdown, HTML or a link. huggingface_hub writes the metadata.
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

from .card_markdown import TEMPLATE, block, cell, code, counted, level_table, prose, table, tree_lines
from .decoding import default_method
from .hub import TASK
from .taxonomy import Taxonomy

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# The results in the metadata: the metric's name here, and its type and name there.
INDEXED = (
    ("micro_f1", "f1", "micro-F1"),
    ("macro_f1", "f1", "macro-F1"),
    ("hierarchical_f1", "hierarchical_f1", "hierarchical F1"),
    ("leaf_accuracy", "accuracy", "leaf accuracy"),
    ("raw_hvr", "hvr", "HVR, raw"),
    ("hvr", "hvr", "HVR, decoded"),
)


# ---- Facts ----


@dataclass
class Details:
    """What nobody but the author knows; None: not told.

    Args:
        model_name (`str`): title of the card.
        language (`str` or `list[str]`): of the texts, as ISO 639 codes.
        license (`str`): the weights' licence, by the Hub's name for it, such as `apache-2.0`.
        tags (`str` or `list[str]`): more tags of the repository.
        finetuned_from (`str`): the encoder's name on the Hub; found by itself where the encoder was loaded from there.
        dataset (`str`): the data's name, in words.
        dataset_tags (`str`): the data's name on the Hub.
        dataset_args (`str`): its configuration there.
        dataset_license (`str`): its licence, in words.
        dataset_description (`str`): source, splits, what was left out; Markdown, written as given.
        benchmark_task (`str`): a task of `dataset_tags` as the Hub's benchmark names it; the result then also goes to
            `.eval_results/`, where the Hub reads those of its registered benchmarks and of nothing else.
        benchmark_metric (`str`): which metric that benchmark is about.
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
            ValueError: for a name on the Hub that is none, or a benchmark's task without its data set.
        """
        for name in ("finetuned_from", "dataset_tags"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and REPO_ID.fullmatch(value)):
                raise ValueError(
                    f'{name} must be one name on the Hub, such as "sentence-transformers/all-MiniLM-L6-v2", got {value!r}: '
                    "leave it out for what is not there."
                )
        if self.benchmark_task is not None and self.dataset_tags is None:
            raise ValueError(f"benchmark_task={self.benchmark_task!r} is a task of a data set: give dataset_tags too.")

    @classmethod
    def read(cls, given: Mapping[str, Any] | str | None) -> "Details":
        """Details from a mapping, or from JSON.

        Raises:
            ValueError: for a name that is none of the above (with the closest ones), what is no mapping, or an invalid
                value.
        """
        values = json.loads(given) if isinstance(given, str) else dict(given or {})
        if not isinstance(values, dict):
            raise ValueError(f"The model card's details must be a mapping, got {values!r}.")
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=3)
                raise ValueError(f"The model card has no detail {name!r}. Closest: {close or known}.")
        return cls(**values)


@dataclass
class DataSummary:
    """One data set of the training.

    Args:
        role (`str`): what it was for.
        documents (`int`, *optional*): how many; None for a stream.
        labelled (`int`, *optional*): how many have labels.
        counts (`np.ndarray` of shape `[L]`, *optional*): documents of each label, ancestors included.
    """

    role: str
    documents: int | None = None
    labelled: int | None = None
    counts: np.ndarray | None = None


@dataclass
class Evaluation:
    """The scores of a model on one data set.

    Args:
        split (`str`): its name.
        documents (`int`): how many.
        metrics (`dict[str, float]`): as [`hcal_hf.compute_metrics`] names them.
        support, node_f1 (`np.ndarray` of shape `[L]`, *optional*): documents and F1 of each label; F1 is NaN for a label
            that no document has.
    """

    split: str
    documents: int
    metrics: Mapping[str, float]
    support: np.ndarray | None = None
    node_f1: np.ndarray | None = None


@dataclass
class Facts:
    """What a card is made of, besides the model.

    Args:
        model_id (`str`): how the usage block loads the model: its name on the Hub, or a folder.
        details ([`Details`]): what the author told.
        data: the data sets of the training.
        training (`dict[str, str]`, *optional*): settings of the training and their values; None where they are not known.
        results: scores of the model as it is.
        pictures (`dict[str, str]`): files in the model's folder and what they show.
        carries_code (`bool`): whether the model's folder holds its code.
        carried (`dict[str, str]`): sections of the folder's former card, by title, for what is not known any more.
    """

    model_id: str
    details: Details = field(default_factory=Details)
    data: Sequence[DataSummary] = ()
    training: Mapping[str, str] | None = None
    results: Sequence[Evaluation] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    carries_code: bool = False
    carried: Mapping[str, str] = field(default_factory=dict)


# ---- The card ----


def build_card(model: Any, facts: Facts) -> ModelCard:
    """The card of an [`HcalForSequenceClassification`].

    Raises:
        ImportError: without jinja2 (which comes with torch).
    """
    config, taxonomy, details = model.config, model.taxonomy, facts.details
    base, name = details.finetuned_from or encoder_id(config), details.model_name or Path(facts.model_id).name
    counts = next((summary.counts for summary in facts.data if summary.counts is not None), None)
    told = (
        details.dataset,
        details.dataset_tags,
        details.dataset_description,
        details.dataset_license,
        details.language,
    )
    data = facts.carried.get("Data") if not facts.data and not any(told) else None
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
    """The installed version of a package, "" if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def encoder_id(config: Any) -> str | None:
    """The encoder's name on the Hub, if it is one: the cache holds its files then. Never a local folder."""
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
        gives = "one path of labels from the top level down"
        gives += ", which may end above the deepest level" if config.partial_paths else ""
    else:
        gives = "any number of labels, also none, each with all its ancestors"
    coherent = (
        "The levels are predicted independently; decoding makes them agree."
        if config.head == "independent"
        else "No label is more probable than its parents."
    )
    on = f"[{base}](https://huggingface.co/{base})" if base else f"a {prose(config.encoder_config.model_type)} encoder"
    return (
        f"A hierarchical text classifier: {counted(taxonomy.num_labels, 'label')} on "
        f"{counted(len(taxonomy.levels), 'level')}, on {on}, made with `hcal_hf`. It gives each text {gives}. {coherent}"
    )


def _usage(model_id: str, remote: bool) -> str:
    # A string of Python in one line of ASCII, whatever the folder's name.
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
        f'`decode="{default_method(config.label_mode)}"` is the default here; whatever the decoder, `"raw"` excepted, the '
        "labels agree with the hierarchy."
    )


def _taxonomy(taxonomy: Taxonomy) -> str:
    if taxonomy.is_forest:
        return (
            f"The {counted(taxonomy.num_labels, 'label')} form a forest: each has one parent, those of level 0 none."
        )
    several = int((np.bincount(taxonomy.edges[:, 1]) > 1).sum())
    return (
        f"The {counted(taxonomy.num_labels, 'label')} form a directed acyclic graph: {several:,} of them stand below "
        "several parents. A label's level is its longest path from a top label."
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
        parts.append(table(["data", "documents", "with labels", "labels a document, with ancestors"], rows))
    if not parts:
        parts.append("Not known to what wrote this card.")
    told = prose(details.dataset_license) if details.dataset_license else "not told"
    languages = [details.language] if isinstance(details.language, str) else details.language
    language = ", ".join(map(prose, languages)) if languages else "not told"
    parts.append(f"Language of the texts: {language}. Licence of the data: {told}.")
    return "\n\n".join(parts)


def _training(model: Any, training: Mapping[str, str] | None, base: str | None) -> str:
    config = model.config
    rows = {
        "encoder": f"{base or config.encoder_config.model_type}, {model.encoder.num_parameters():,} parameters",
        "pooling": config.pooling,
        "head": config.head,
        "score function": f"{config.score_function}, temperature {config.prototype_temperature:g}",
        "label mode": config.label_mode + (", partial paths" if config.partial_paths else ", full paths"),
        "objective": config.objective
        + (f", contrast {config.contrast} ({config.contrast_alpha:g})" if config.contrast else ""),
        "prototypes": f"{taxonomy_size(model)}, anchors: {config.prototype_anchor or 'none'}, "
        f"perturbation {config.perturbation:g}",
    }
    text = table(["model", "value"], [[name, cell(value, 200)] for name, value in rows.items()], numbers_from=2)
    if training is None:
        return f"{text}\n\nHow it was trained is not known to what wrote this card."
    settings = [[name, cell(value, 200)] for name, value in training.items()]
    return f"{text}\n\n{table(['training', 'value'], settings, numbers_from=2)}"


def taxonomy_size(model: Any) -> str:
    """The shape of the prototypes, as text."""
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
        + ("; decoded, it is 0 by construction" if metrics.get("hvr") == 0 else "")
        + ". Macro-F1 is over the labels that occur in this data set."
    ]
    one = {
        "hierarchical_f1": "Hierarchical F1",
        "leaf_accuracy": "leaf accuracy",
        "hvr_argmax": "HVR of the best label of each level on its own",
        "ece": "expected calibration error",
    }
    found = [f"{title} {percent(name)}" for name, title in one.items() if name in metrics]
    ours = "micro_f1" in metrics
    if found:
        notes.insert(0, ", ".join(found) + ".")
    if not ours:
        shown = [f"{code(name)} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]
        notes = [", ".join(shown) + "."]
    return {
        "title": f"{prose(evaluation.split)}: {counted(evaluation.documents, 'document')}"
        + (", in percent" if ours else ""),
        "levels": table(["level", "labels", "accuracy", "micro-F1", "macro-F1"], levels, 0) if ours else "",
        "decisions": table(header, decisions) if ours else "",
        "notes": "\n\n".join(notes),
        "nodes": _top_nodes(evaluation, taxonomy),
    }


def _top_nodes(evaluation: Evaluation, taxonomy: Taxonomy, most: int = 20) -> str:
    """The top labels with their scores; those with the most documents, if there are many."""
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
    more = f"\n\nThe {most} top labels with the most documents; {left:,} more are not shown." if left else ""
    return table(["top label", "documents", "F1, decoded"], rows) + more


def _decisions(config: Any, taxonomy: Taxonomy) -> str:
    parts = [f'Default decoding: `decode="{default_method(config.label_mode)}"`.', _thresholds(config, taxonomy)]
    if config.score_temperature != 1:
        parts.append(f"Calibrated temperature of the scores: {config.score_temperature:.4g}.")
    if config.risk_threshold is not None:
        parts.append(
            f'`decode="risk"`: labels from a probability of {config.risk_threshold:.4g} on, calibrated so that the '
            f"expected share of wrong labels in an answer is at most {config.risk_alpha:g} on documents like those it was "
            "calibrated on."
        )
    return " ".join(parts)


def _thresholds(config: Any, taxonomy: Taxonomy) -> str:
    if config.thresholds is None:
        if config.label_mode == "single_path":
            return "Thresholds: none, the path goes on to its end."
        return "Thresholds: none tuned, 0.5 for every label."
    values = np.asarray(config.thresholds, dtype=np.float64)
    if (values == values[0]).all():
        return f"Threshold, tuned: {values[0]:.4g} for every label."
    if all((values[level] == values[level.start]).all() for level in taxonomy.levels):
        each = ", ".join(f"{values[level.start]:.4g}" for level in taxonomy.levels)
        return f"Thresholds, tuned, one a level from the top down: {each}."
    return (
        f"Thresholds, tuned, one a label: from {values.min():.4g} to {values.max():.4g}, median {np.median(values):.4g} "
        "(in `config.json`)."
    )


def _limits(model: Any, counts: np.ndarray | None) -> str:
    config, taxonomy = model.config, model.taxonomy
    items = [f"It knows the {counted(taxonomy.num_labels, 'label')} above and no others."]
    if config.label_mode == "single_path" and config.thresholds is None:
        items.append(
            "It answers every text with a path, also one that fits no label: give a `threshold` to let it stop."
        )
    if counts is not None and (unseen := int((counts == 0).sum())):
        items.append(
            f"{counted(unseen, 'label')} had no training document: what it says about them rests on "
            + ("the labels' words alone." if config.prototype_anchor else "nothing but their place in the hierarchy.")
        )
    if model.max_tokens:
        items.append(f"It reads {model.max_tokens:,} tokens of a text at most; its tokenizer may cut earlier.")
    if config.score_temperature == 1:
        items.append("Its probabilities were not calibrated on held-out documents.")
    items.append(
        "Labels that agree with the hierarchy may still be wrong. Results hold for texts like those it was tested on; "
        "biases of the data and of the encoder are in it too and were not studied for this card."
    )
    return "\n".join(f"- {item}" for item in items)


def _licence(details: Details, base: str | None) -> str:
    own = (
        f"Licence of the weights: {prose(details.license)}."
        if details.license
        else "Licence of the weights: not told."
    )
    rest = f" The encoder comes from {base}, under its own licence." if base else ""
    return f"{own}{rest} `hcal_hf` is under Apache-2.0."


__all__ = ["DataSummary", "Details", "Evaluation", "Facts", "build_card"]

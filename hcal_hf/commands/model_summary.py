"""Summarises a saved model: sizes, settings and the hierarchy as a tree."""

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from ..configuration_hcal import HcalConfig
from ..modeling_hcal import HcalForSequenceClassification
from ..size_checks import WeightFile, expected_weights
from ..taxonomy import Taxonomy
from .saved_model import load_config

_SETTINGS = (
    "label_mode",
    "head",
    "partial_paths",
    "objective",
    "classification_loss",
    "classification_loss_kwargs",
    "pooling",
    "text_prefix",
    "window_length",
    "window_overlap",
    "max_windows",
    "lexical_features",
    "projection_dim",
    "score_function",
    "geometry",
    "prototype_temperature",
    "prototype_anchor",
    "perturbation",
    "contrast",
    "contrast_kwargs",
)


def inspect_model(name: str, depth: int = 2, max_children: int = 10) -> dict[str, Any]:
    """Describes a saved model from its configuration. Reads no weights, only the header of their file.

    Args:
        name: the folder of a saved model, or its name on the Hub.
        depth: the number of levels in the tree, from the roots down.
        max_children: the maximum number of roots, and of labels below each label.

    Returns:
        `model`, `encoder` (type and sizes), `parameters` (numbers in encoder and head), `labels` (L), `edges`, `leaves`,
        `is_forest`, `levels` (labels per level), `settings`, `score_temperature`, `thresholds` (None, one number, or the
        lowest and highest of each level), `risk` (None, or level and threshold), and `tree`. A tree is a list of `label`,
        `children` (again a tree) and `hidden`, the number of children that are left out.

    Raises:
        ValueError: if the model is not an HCAL model, if its configuration describes far more than its weight file holds,
            or if a limit is out of range.
    """
    if depth < 1 or max_children < 1:
        raise ValueError(f"depth and max_children must be at least 1, got {depth} and {max_children}.")
    config = load_config(name)
    taxonomy = config.to_taxonomy()
    encoder: Any = config.encoder_config
    sizes = {
        field: getattr(encoder, field, None)
        for field in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings")
    }
    return {
        "model": name,
        "encoder": {"model_type": encoder.model_type, **{k: v for k, v in sizes.items() if v is not None}},
        "parameters": _parameters(config, name),
        "labels": taxonomy.num_labels,
        "edges": len(taxonomy.edges),
        "leaves": int(taxonomy.is_leaf.sum()),
        "is_forest": taxonomy.is_forest,
        "levels": [level.stop - level.start for level in taxonomy.levels],
        "settings": {field: getattr(config, field) for field in _SETTINGS},
        "score_temperature": config.score_temperature,
        "thresholds": _thresholds(config, taxonomy),
        "risk": None
        if config.risk_alpha is None
        else {"alpha": config.risk_alpha, "threshold": config.risk_threshold},
        "tree": _tree(taxonomy, depth, max_children, config.shown_names),
    }


def _parameters(config: HcalConfig, name: str) -> dict[str, int]:
    """Counts the parameters of encoder and head. A weight file in a folder must have about as many."""
    weights = WeightFile.find(name, {}) if os.path.isdir(name) else None
    with expected_weights(weights), torch.device("meta"):  # needs no memory for weights
        model = HcalForSequenceClassification(config)
    counts = {"encoder": 0, "head": 0}
    for name, parameter in model.named_parameters():
        counts["encoder" if name.startswith("encoder.") else "head"] += parameter.numel()
    return counts


def _thresholds(config: HcalConfig, taxonomy: Taxonomy) -> Any:
    """Summarises thresholds as None, one number, or the range of each level."""
    if config.thresholds is None:
        return None
    if len(set(config.thresholds)) == 1:
        return config.thresholds[0]
    levels = (config.thresholds[level] for level in taxonomy.levels)
    return [[min(values), max(values)] for values in levels]


def _tree(taxonomy: Taxonomy, depth: int, max_children: int, names: list[str]) -> list[dict[str, Any]]:
    """Builds the tree of bounded size."""
    children: dict[int, list[int]] = defaultdict(list)
    for parent, child in taxonomy.edges.tolist():
        children[parent].append(child)

    def subtrees(nodes: list[int], levels: int) -> list[dict[str, Any]]:
        return [subtree(node, levels) for node in nodes[:max_children]]

    def subtree(node: int, levels: int) -> dict[str, Any]:
        child_nodes = children.get(node, [])
        visible = subtrees(child_nodes, levels - 1) if levels > 1 else []
        return {"label": names[node], "children": visible, "hidden": len(child_nodes) - len(visible)}

    roots = [node for node in range(taxonomy.num_labels) if not len(taxonomy.parents(node))]
    tree = subtrees(roots, depth)
    if len(roots) > len(tree):
        tree.append({"label": None, "children": [], "hidden": len(roots) - len(tree)})
    return tree


def as_text(report: dict[str, Any]) -> str:
    """Formats the result of [`inspect_model`] as text."""
    encoder, parameters = dict(report["encoder"]), report["parameters"]
    sizes = ", ".join(f"{name} {value:,}" for name, value in encoder.items() if name != "model_type")
    levels = " + ".join(f"{size:,}" for size in report["levels"])
    thresholds = report["thresholds"]
    if isinstance(thresholds, list):
        thresholds = ", ".join(f"level {k}: {low:.3f} to {high:.3f}" for k, (low, high) in enumerate(thresholds))
    elif thresholds is not None:
        thresholds = f"{thresholds:.3f} for all labels"
    risk = report["risk"]
    lines = [
        report["model"],
        f"  encoder            {encoder['model_type']} ({sizes})",
        f"  parameters         {parameters['encoder']:,} in the encoder, {parameters['head']:,} in the head",
        f"  labels             {report['labels']:,} on {len(report['levels'])} levels ({levels}), "
        f"{report['leaves']:,} of them leaves, {'a forest' if report['is_forest'] else 'a DAG'}",
        f"  probabilities      temperature {report['score_temperature']:.3f}",
        f"  thresholds         {thresholds or 'none tuned'}",
        f"  risk               {'not calibrated' if risk is None else '{alpha:g}, from {threshold:.3f}'.format(**risk)}",
        *(f"  {name:18s} {value}" for name, value in report["settings"].items() if value is not None),
        "",
        *_tree_lines(report["tree"], 0),
    ]
    return "\n".join(lines)


def _tree_lines(tree: list[dict[str, Any]], depth: int) -> Iterator[str]:
    """Yields the lines of a tree, indented by depth."""
    for entry in tree:
        indent = "    " * depth
        if entry["label"] is None:
            yield f"{indent}... and {entry['hidden']:,} more"
            continue
        if entry["hidden"] and not entry["children"]:
            yield f"{indent}{entry['label']} ({entry['hidden']:,} below)"
            continue
        yield f"{indent}{entry['label']}"
        yield from _tree_lines(entry["children"], depth + 1)
        if entry["hidden"]:
            yield f"{indent}    ... and {entry['hidden']:,} more"

"""Draws figures of a training run: the losses and weights of the tasks, and the F1 of the labels."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from ..card_markdown import readable
from ..taxonomy import Taxonomy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)

# If the largest loss is more than this times the smallest, the scale is logarithmic.
LOG_SCALE_RATIO = 20.0
# The maximum number of labels in a figure. The deepest levels are left out to satisfy it.
MOST_NODES = 5000
# This entry of the PNG metadata tells figures of this library from files of a user with the same name.
SOFTWARE = "hcal_hf"


def weights_figure(
    log_history: Sequence[Mapping[str, Any]], task_names: Sequence[str], taxonomy: Taxonomy
) -> "Figure | None":
    """Draws the loss and the weight of each task over the optimiser steps.

    It needs no screen and does not change the global state of matplotlib.

    Args:
        log_history: `trainer.state.log_history`. Entries with `loss_{task}` and `weight_{task}` are drawn. If no document
            of an entry reached the level of a task, the task has no point at this step.
        task_names (T names): `trainer.task_names`.
        taxonomy: the hierarchy. The legend contains the number of labels of each level.

    Returns:
        the figure, with the losses on its first axes and the weights on its second. There is one line per logged task. None
        if no step was logged, for example after a fit by L-BFGS.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    series: dict[str, tuple[list[int], list[float], list[float]]] = {}
    for name in task_names:
        values_at = {
            int(entry["step"]): (float(entry[f"loss_{name}"]), float(entry[f"weight_{name}"]))
            for entry in log_history
            if f"loss_{name}" in entry and f"weight_{name}" in entry
        }
        if values_at:
            steps = sorted(values_at)
            series[name] = (steps, [values_at[step][0] for step in steps], [values_at[step][1] for step in steps])
    if not series:
        return None
    from matplotlib.figure import Figure  # pyplot would select a backend for the whole process

    figure = Figure(figsize=(8, 7), layout="constrained")
    loss_axes, weight_axes = figure.subplots(2, 1, sharex=True)
    for name, (steps, losses, weights) in series.items():
        label = _legend_label(name, taxonomy)
        marker = "o" if len(steps) == 1 else None  # a line of one point would be invisible
        loss_axes.plot(steps, losses, label=label, marker=marker)
        weight_axes.plot(steps, weights, label=label, marker=marker)
    values = [value for _, losses, _ in series.values() for value in losses]
    if min(values) > 0 and max(values) > LOG_SCALE_RATIO * min(values):
        loss_axes.set_yscale("log")
    loss_axes.set_ylabel("mean loss")
    weight_axes.set_ylabel("mean weight")
    weight_axes.set_xlabel("optimiser step")
    all_weights = [weight for *_, weights in series.values() for weight in weights]
    if min(all_weights) >= 0 and max(all_weights) > 0:
        weight_axes.set_ylim(0.0, 1.05 * max(all_weights))  # a narrower range would exaggerate small differences
    weight_axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss_axes, weight_axes):
        axes.grid(alpha=0.3)
    loss_axes.legend(fontsize="small")
    return figure


def save_weights(
    path: str | Path, log_history: Sequence[Mapping[str, Any]], task_names: Sequence[str], taxonomy: Taxonomy
) -> bool:
    """Writes [`weights_figure`] as a PNG of 1,200 x 1,050 pixels. Without matplotlib, logs how to install it.

    Returns:
        whether a file was written.
    """
    return _save(path, lambda: weights_figure(log_history, task_names, taxonomy))


def scores_figure(taxonomy: Taxonomy, node_f1: np.ndarray, split: str) -> "Figure | None":
    """Draws the hierarchy as an icicle plot: one column per level and one box per label, coloured by its F1.

    A box is to the right of the box of its parent. Its height is the number of leaves below the label. The name of
    the label is written in the box if there is space. In a DAG, a box is to the right of the first parent on the level
    above.

    Args:
        taxonomy: the hierarchy.
        node_f1 (`np.ndarray` of shape `[L]`): F1 of each label, from 0 to 1. NaN (no document) is drawn in grey.
        split: the name of the evaluated data set, for the title.

    Returns:
        the figure, with the boxes on its first axes. It leaves out the deepest levels to have at most `MOST_NODES` labels.
        None if the top level has more.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    number = sum(level.stop <= MOST_NODES for level in taxonomy.levels)
    if not number:
        return None
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    bottoms, heights = _icicle(taxonomy, number)
    total = float(heights[taxonomy.levels[0]].sum())
    height = float(np.clip(0.17 * total + 1.2, 4.0, 16.0))
    width = max(7.0, 2.6 * number + 1.2)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"].with_extremes(bad="lightgrey")
    shades = colors(np.ma.masked_invalid(node_f1[: taxonomy.levels[number - 1].stop]))
    points = 72 * (height - 1.2) / total  # the height of one leaf
    titles = []
    for k, level in enumerate(taxonomy.levels[:number]):
        low, high = bottoms[level], bottoms[level] + heights[level]
        left, right = np.full_like(low, k), np.full_like(low, k + 1)
        corners = np.stack([left, low, right, low, right, high, left, high], axis=1).reshape(-1, 4, 2)
        line = 0.5 if points * heights[level].min() > 3 else 0.0  # lines would cover thinner boxes
        axes.add_collection(
            PolyCollection(list(corners), facecolors=shades[level], edgecolors="white", linewidths=line)
        )
        for node in range(level.start, level.stop):
            size = min(8.0, 0.75 * points * heights[node])
            if size < 4.0:
                continue
            room = int(72 * (width - 1.2) / number / (0.6 * size))
            dark = shades[node, :3] @ (0.299, 0.587, 0.114) < 0.55
            axes.text(
                k + 0.03, bottoms[node] + heights[node] / 2, readable(taxonomy.names[node], room), fontsize=size,
                va="center", color="white" if dark else "black", parse_math=False, clip_on=True,
            )  # fmt: skip
        f1 = node_f1[level]
        mean = f"macro-F1 {100 * np.nanmean(f1):.1f}" if np.isfinite(f1).any() else "no documents"
        count = level.stop - level.start
        titles.append(f"level {k}\n{count:,} label{'' if count == 1 else 's'}, {mean}")
    axes.set_xlim(0, number)
    axes.set_ylim(total, 0)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(number) + 0.5, titles, fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    left_out = len(taxonomy.levels) - number
    more = f"; the {left_out} deepest levels are left out" if left_out else ""
    title = f"{readable(split, 60)}: F1 of each label; grey: no document has it{more}"
    axes.set_xlabel(title, fontsize=9, parse_math=False)
    figure.colorbar(ScalarMappable(cmap=colors), ax=axes, label="F1", aspect=40, pad=0.01)
    return figure


def save_scores(path: str | Path, taxonomy: Taxonomy, node_f1: np.ndarray, split: str) -> bool:
    """Writes [`scores_figure`] as a PNG. Without matplotlib, logs how to install it.

    Returns:
        whether a file was written.
    """
    return _save(path, lambda: scores_figure(taxonomy, node_f1, split))


def remove_figure(path: str | Path) -> None:
    """Removes the figure of an earlier run. Files that this library did not write are kept."""
    path = Path(path)
    if path.is_file() and SOFTWARE.encode() in path.read_bytes()[:1000]:
        path.unlink()


def _save(path: str | Path, draw: Callable[[], "Figure | None"]) -> bool:
    try:
        figure = draw()
    except ImportError:
        logger.warning(f'{path} was not written, because matplotlib is missing: pip install "hcal-hf[quickstart]".')
        return False
    if figure is None:
        return False
    with warnings.catch_warnings():
        # matplotlib draws a box for a character without a glyph, and warns.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=150, format="png", metadata={"Software": SOFTWARE})
    return True


def _icicle(taxonomy: Taxonomy, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the upper edge [L] and the height [L] of the box of each label, in leaves, for the first `number` levels."""
    stop = taxonomy.levels[-1].stop
    parents, children = taxonomy.edges[:, 0], taxonomy.edges[:, 1]
    # Keep one parent per label, on the level directly above. Every label below the top level has one there.
    above = taxonomy.depths[parents] == taxonomy.depths[children] - 1
    parents, children = parents[above], children[above]
    children, first = np.unique(children, return_index=True)
    parent = np.full(stop, -1)
    parent[children] = parents[first]
    heights = np.zeros(stop)
    for level in reversed(taxonomy.levels):
        heights[level] = np.maximum(heights[level], 1.0)
        below = parent[level]
        np.add.at(heights, below[below >= 0], heights[level][below >= 0])
    bottoms = np.zeros(stop)
    for level in taxonomy.levels[:number]:
        of = parent[level]
        start = np.where(of >= 0, bottoms[of], 0.0)
        order = np.lexsort((np.arange(len(of)), start))
        sizes = heights[level][order]
        before = np.cumsum(sizes) - sizes
        group = np.flatnonzero(np.diff(of[order], prepend=-2))
        before -= np.repeat(before[group], np.diff(group, append=len(of)))
        bottoms[level.start + order] = start[order] + before
    return bottoms, heights


def _legend_label(task: str, taxonomy: Taxonomy) -> str:
    """Formats a task, for example `level_1` as `level 1 (12 labels)` if its name ends in a level of the taxonomy."""
    text, level = task.replace("_", " "), task.rpartition("_")[2]
    if not level.isdigit() or int(level) >= len(taxonomy.levels):
        return text
    number = taxonomy.levels[int(level)].stop - taxonomy.levels[int(level)].start
    return f"{text} ({number:,} label{'' if number == 1 else 's'})"

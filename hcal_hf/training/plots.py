"""Figures of a training: losses and weights, and what the labels score."""

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

# Losses that differ by more than this are drawn on a logarithmic scale.
LOG_SCALE_RATIO = 20.0
# Labels that a figure shows at most; the deepest levels are left out beyond.
MOST_NODES = 5000
# Tells our figures from a user's own files of the same name.
SOFTWARE = "hcal_hf"


def weights_figure(
    log_history: Sequence[Mapping[str, Any]], task_names: Sequence[str], taxonomy: Taxonomy
) -> "Figure | None":
    """The loss and, below it, the weight of each task over the optimiser steps. No screen and no global state of matplotlib
    are needed.

    Args:
        log_history: `trainer.state.log_history`; of its entries those with `loss_{task}` and `weight_{task}` are drawn, a
            task that an entry lacks (no document reached that level) not at that step.
        task_names (T names): `trainer.task_names`.
        taxonomy: the model's; the legend gives the number of labels of each level.

    Returns:
        the figure, its first axes the losses, its second the weights, with a line for each task that was logged; None if no
        step was logged, as after a fit by L-BFGS.

    Raises:
        ImportError: without matplotlib.
    """
    series: dict[str, tuple[list[int], list[float], list[float]]] = {}
    for name in task_names:
        found = {
            int(entry["step"]): (float(entry[f"loss_{name}"]), float(entry[f"weight_{name}"]))
            for entry in log_history
            if f"loss_{name}" in entry and f"weight_{name}" in entry
        }
        if found:
            drawn = sorted(found)
            series[name] = (drawn, [found[step][0] for step in drawn], [found[step][1] for step in drawn])
    if not series:
        return None
    from matplotlib.figure import Figure  # not pyplot: it would choose a backend for the whole program

    figure = Figure(figsize=(8, 7), layout="constrained")
    loss_axes, weight_axes = figure.subplots(2, 1, sharex=True)
    for name, (drawn, losses, weights) in series.items():
        label = _described(name, taxonomy)
        marker = "o" if len(drawn) == 1 else None  # one point makes no line
        loss_axes.plot(drawn, losses, label=label, marker=marker)
        weight_axes.plot(drawn, weights, label=label, marker=marker)
    values = [value for _, losses, _ in series.values() for value in losses]
    if min(values) > 0 and max(values) > LOG_SCALE_RATIO * min(values):
        loss_axes.set_yscale("log")
    loss_axes.set_ylabel("mean loss")
    weight_axes.set_ylabel("mean weight")
    weight_axes.set_xlabel("optimiser step")
    shown = [weight for *_, weights in series.values() for weight in weights]
    if min(shown) >= 0 and max(shown) > 0:
        weight_axes.set_ylim(0.0, 1.05 * max(shown))  # equal weights shall look equal
    weight_axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss_axes, weight_axes):
        axes.grid(alpha=0.3)
    loss_axes.legend(fontsize="small")
    return figure


def save_weights(
    path: str | Path, log_history: Sequence[Mapping[str, Any]], task_names: Sequence[str], taxonomy: Taxonomy
) -> bool:
    """Writes [`weights_figure`] as a PNG, 1,200 x 1,050 pixels. Without matplotlib it logs how to get it instead.

    Returns:
        whether there is a figure.
    """
    return _save(path, lambda: weights_figure(log_history, task_names, taxonomy))


def scores_figure(taxonomy: Taxonomy, node_f1: np.ndarray, split: str) -> "Figure | None":
    """The hierarchy as columns of boxes, one column a level, each label to the right of its parent, as high as the end
    nodes below it are many, and coloured by its F1; names where there is room. A label of a DAG stands to the right of
    its first parent on the level above.

    Args:
        taxonomy: the hierarchy.
        node_f1 (`np.ndarray` of shape `[L]`): F1 of each label from 0 to 1; NaN, for no document, is drawn grey.
        split: what the scores are of, for the title.

    Returns:
        the figure, its first axes the boxes; the deepest levels are left out where the figure would have more than
        `MOST_NODES` labels. None for a top level beyond that.

    Raises:
        ImportError: without matplotlib.
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
    points = 72 * (height - 1.2) / total  # the height of one end node
    titles = []
    for k, level in enumerate(taxonomy.levels[:number]):
        low, high = bottoms[level], bottoms[level] + heights[level]
        left, right = np.full_like(low, k), np.full_like(low, k + 1)
        corners = np.stack([left, low, right, low, right, high, left, high], axis=1).reshape(-1, 4, 2)
        line = 0.5 if points * heights[level].min() > 3 else 0.0  # lines would hide boxes that are hardly higher
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
    """Writes [`scores_figure`] as a PNG. Without matplotlib it logs how to get it instead.

    Returns:
        whether there is a figure.
    """
    return _save(path, lambda: scores_figure(taxonomy, node_f1, split))


def remove_figure(path: str | Path) -> None:
    """Removes a figure that a former run left; a file that is none of ours stays."""
    path = Path(path)
    if path.is_file() and SOFTWARE.encode() in path.read_bytes()[:1000]:
        path.unlink()


def _save(path: str | Path, draw: Callable[[], "Figure | None"]) -> bool:
    try:
        figure = draw()
    except ImportError:
        logger.warning(f'{path} was not drawn: it needs matplotlib, pip install "hcal-hf[quickstart]".')
        return False
    if figure is None:
        return False
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=150, format="png", metadata={"Software": SOFTWARE})
    return True


def _icicle(taxonomy: Taxonomy, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Upper edge and height of each label's box, in end nodes, for the first `number` levels."""
    stop = taxonomy.levels[-1].stop
    parents, children = taxonomy.edges[:, 0], taxonomy.edges[:, 1]
    # One parent each, on the level just above, where there always is one.
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


def _described(task: str, taxonomy: Taxonomy) -> str:
    """`level_1` as `level 1 (12 labels)`, where the name ends in a level of the taxonomy."""
    text, level = task.replace("_", " "), task.rpartition("_")[2]
    if not level.isdigit() or int(level) >= len(taxonomy.levels):
        return text
    number = taxonomy.levels[int(level)].stop - taxonomy.levels[int(level)].start
    return f"{text} ({number:,} label{'' if number == 1 else 's'})"

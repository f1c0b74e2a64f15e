"""Figures of a training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from .taxonomy import Taxonomy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)

# Losses that differ by more than this are drawn on a logarithmic scale.
LOG_SCALE_RATIO = 20.0


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
    try:
        figure = weights_figure(log_history, task_names, taxonomy)
    except ImportError:
        logger.warning(f'{path} was not drawn: it needs matplotlib, pip install "hcal-hf[quickstart]".')
        return False
    if figure is None:
        return False
    figure.savefig(path, dpi=150, format="png")
    return True


def _described(task: str, taxonomy: Taxonomy) -> str:
    """`level_1` as `level 1 (12 labels)`, where the name ends in a level of the taxonomy."""
    text, level = task.replace("_", " "), task.rpartition("_")[2]
    if not level.isdigit() or int(level) >= len(taxonomy.levels):
        return text
    number = taxonomy.levels[int(level)].stop - taxonomy.levels[int(level)].start
    return f"{text} ({number:,} label{'' if number == 1 else 's'})"

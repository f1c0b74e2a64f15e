"""Draws the plots of a report with plotly."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from .comparison import Comparison
from .predictions import BINS
from .summary import Coverage, Summary

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INSTALL = 'pip install "hcal-hf[report]"'
# F1 from 0 to 1. Red to blue can be told apart by readers who are colour-blind.
F1_COLORS = [[0.0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#fddbc7"], [0.75, "#67a9cf"], [1.0, "#2166ac"]]
# Colours with enough contrast on a light and on a dark page.
_BLUE, _ORANGE, _GREY = "#2f7fc1", "#c2571a", "#7d7d7d"


def plotly_script() -> str | None:
    """Returns the code of plotly.js, or None if plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    return str(get_plotlyjs())


def draw(summary: Summary, metrics: Any, num_levels: int, comparison: Comparison | None = None) -> dict[str, Any]:
    """Draws all plots. Needs plotly.

    Returns:
        the plots by name, as plotly.js reads them. `tree` has no labels: the script of the page fills them in.
    """
    figures = {"levels": levels_figure(metrics, num_levels), "tree": tree_figure()}
    if summary.bins[0].any():
        figures["calibration"] = calibration_figure(summary.bins)
    if summary.coverage.shares:
        figures["coverage"] = coverage_figure(summary.coverage)
    if comparison is not None:
        figures["comparison"] = comparison_figure(comparison)
    return {name: json.loads(figure.to_json()) for name, figure in figures.items()}


def levels_figure(metrics: Any, num_levels: int) -> "Figure":
    """Draws accuracy, micro-F1 and macro-F1 of each level as bars."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, title, color in (
        ("accuracy", "accuracy", _BLUE),
        ("micro_f1", "micro-F1", _ORANGE),
        ("macro_f1", "macro-F1", _GREY),
    ):
        values = [metrics[f"{name}_level_{k}"] for k in range(num_levels)]
        figure.add_bar(
            x=[str(k) for k in range(num_levels)],
            y=values,
            name=title,
            marker_color=color,
            hovertemplate="level %{x}, " + title + ": %{y:.1%}<extra></extra>",
        )
    figure.update_layout(
        barmode="group",
        xaxis={"type": "category", "showgrid": False, "title": {"text": "level"}},
        yaxis={"range": [0, 1], "tickformat": ".0%"},
    )
    return _plain(figure)


def tree_figure() -> "Figure":
    """Draws the frame of the tree: a treemap without labels, with the colour scale of F1."""
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Treemap(
            branchvalues="remainder",
            sort=True,
            marker={
                "colorscale": F1_COLORS,
                "cmin": 0,
                "cmax": 1,
                "showscale": True,
                "colorbar": {
                    "title": {"text": "F1", "side": "top"},
                    "thickness": 12,
                    "tickformat": ".0%",
                    "orientation": "h",
                    "y": -0.02,
                    "yanchor": "top",
                    "len": 0.6,
                },
            },
            tiling={"pad": 2},
            pathbar={"visible": False},
            texttemplate="%{label}<br>%{customdata[0]}",
            hovertemplate="<b>%{label}</b><br>documents: %{customdata[1]:,}<br>F1: %{customdata[0]}<extra></extra>",
        )
    )
    figure = _plain(figure)
    # Texts that do not fit are hidden, because plotly would make them too small to read.
    figure.update_layout(margin={"l": 0, "r": 0, "t": 4, "b": 56}, uniformtext={"minsize": 10, "mode": "hide"})
    return figure


def calibration_figure(bins: np.ndarray) -> "Figure":
    """Draws the reliability diagram: the share of true outcomes over the mean probability of each bin."""
    import plotly.graph_objects as go

    used = bins[0] > 0
    count, probability, outcome = bins[:, used]
    size = 8 + 22 * np.sqrt(count / count.max())
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line={"dash": "dash", "color": _GREY}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=(probability / count).tolist(),
        y=(outcome / count).tolist(),
        customdata=count.astype(int).tolist(),
        mode="lines+markers",
        name="this model",
        line={"color": _BLUE},
        marker={"size": size.tolist(), "color": _BLUE, "opacity": 0.8},
        hovertemplate="mean probability %{x:.1%}<br>true %{y:.1%}<br>%{customdata:,} probabilities<extra></extra>",
    )
    axis = {"range": [-0.02, 1.04], "tickformat": ".0%", "dtick": 2 / BINS}
    figure.update_layout(
        xaxis={**axis, "title": {"text": "probability"}}, yaxis={**axis, "title": {"text": "share that is true"}}
    )
    return _plain(figure)


def coverage_figure(coverage: Coverage) -> "Figure":
    """Draws exact match and micro-F1 over the share of documents that are answered."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for values, title, color in (
        (coverage.exact_match, "all labels right", _BLUE),
        (coverage.micro_f1, "micro-F1", _ORANGE),
    ):
        figure.add_scatter(
            x=coverage.shares,
            y=values,
            customdata=coverage.confidences,
            mode="lines+markers" if len(values) < 3 else "lines",
            name=title,
            line={"color": color},
            hovertemplate="%{x:.0%} of the documents, from a confidence of %{customdata:.2f}<br>"
            + title
            + ": %{y:.1%}<extra></extra>",
        )
    axis = {"range": [0, 1.03], "tickformat": ".0%"}
    figure.update_layout(xaxis={**axis, "title": {"text": "share of documents answered"}}, yaxis=axis)
    return _plain(figure)


def comparison_figure(comparison: Comparison) -> "Figure":
    """Draws the difference of each metric with its 95 % interval."""
    import plotly.graph_objects as go

    metrics = comparison.metrics[::-1]  # the first one at the top
    figure = go.Figure()
    figure.add_scatter(
        x=[metric.difference for metric in metrics],
        y=[metric.title for metric in metrics],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [metric.high - metric.difference for metric in metrics],
            "arrayminus": [metric.difference - metric.low for metric in metrics],
            "color": _BLUE,
        },
        mode="markers",
        marker={"size": 9, "color": _BLUE},
        hovertemplate="%{y}: %{x:+.1%}<extra></extra>",
    )
    figure.add_vline(x=0, line={"dash": "dash", "color": _GREY})
    figure = _plain(figure)
    return figure.update_layout(
        xaxis={"tickformat": "+.0%", "nticks": 7, "title": {"text": "B - A"}},
        yaxis={"automargin": True, "type": "category"},
    )


def _plain(figure: "Figure") -> "Figure":
    """Sets the layout that all plots share. The script of the page adds the colours of the reader's theme."""
    return figure.update_layout(
        template="none",
        margin={"l": 56, "r": 12, "t": 12, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )

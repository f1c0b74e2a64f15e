"""Formats the label tree of the demo page as HTML, with probabilities and predictions."""

from collections.abc import Sequence
from html import escape

import numpy as np
import torch

from ...decoding import raise_to_descendants
from ...taxonomy import SEPARATOR, Taxonomy

# Branches with at least this probability are open.
OPEN_FROM = 0.2

# The number of predicted paths above the tree. Further paths are only counted.
MAX_ANSWERS = 20

# The colours come from the theme of gradio. gradio reads this as a template, so it must have no backslash and no "${".
CSS = """
color: var(--body-text-color);
.hcal-answer { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px 16px; margin-bottom: 16px;
    background: var(--background-fill-secondary); overflow-wrap: anywhere; }
.hcal-answer p { margin: 0 0 6px; }
.hcal-answer :last-child { margin-bottom: 0; }
.hcal-text, .hcal-note, .hcal-rest { color: color-mix(in srgb, var(--body-text-color) 75%, transparent); font-size: 0.9em; }
& ul { list-style: none; margin: 0; padding: 0; }
.hcal-paths li { display: flex; justify-content: space-between; gap: 16px; font-weight: 600; padding: 2px 0; }
.hcal-tree ul { margin-left: 9px; padding-left: 12px; border-left: 1px solid var(--border-color-primary); }
.hcal-row { display: flex; align-items: center; gap: 8px; padding: 3px 4px; border-radius: 4px; line-height: 1.4; }
& summary { list-style: none; cursor: pointer; }
& summary::-webkit-details-marker { display: none; }
& summary:hover { background: var(--background-fill-secondary); }
& summary:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 1px; }
.hcal-fold { flex: 0 0 10px; }
& summary .hcal-fold::before { content: "▸"; display: inline-block; }
& details[open] > summary .hcal-fold::before { transform: rotate(90deg); }
.hcal-mark { flex: 0 0 14px; font-weight: 700; color: var(--color-accent); }
.hcal-name { flex: 1 1 auto; min-width: 0; overflow-wrap: anywhere; }
.hcal-predicted .hcal-name { font-weight: 600; }
.hcal-bar { position: relative; flex: 0 0 clamp(48px, 13vw, 170px); height: 10px; border-radius: 2px;
    background: var(--border-color-primary); }
.hcal-bar > span { position: absolute; left: 0; top: 0; bottom: 0; border-radius: 2px;
    background: var(--body-text-color-subdued); }
.hcal-predicted .hcal-bar > span { background: var(--color-accent); }
.hcal-bar > i { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px;
    background: color-mix(in srgb, var(--body-text-color) 80%, transparent); }
.hcal-number { flex: 0 0 3.6em; text-align: right; font-variant-numeric: tabular-nums; }
.hcal-rest { padding: 3px 4px 3px 22px; }
.hcal-note { margin: 12px 0 0; }
.hcal-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
"""

# Branches that a user opened or closed keep their state until the next text. On a narrow screen, results are below the
# input, so the page scrolls to them.
SCRIPT = """
let reading = null;
const chosen = new Map();
const apply = () => {
    const result = element.querySelector('[data-reading]');
    if (!result || result.dataset.reading !== reading) {
        chosen.clear();
        reading = result && result.dataset.reading;
        if (element.getBoundingClientRect().top > window.innerHeight - 80) element.scrollIntoView();
    }
    element.querySelectorAll('details').forEach((branch) => {
        if (chosen.has(branch.dataset.branch)) branch.open = chosen.get(branch.dataset.branch);
    });
};
element.addEventListener('click', (event) => {
    const summary = event.target.closest('summary');
    if (summary) chosen.set(summary.parentElement.dataset.branch, !summary.parentElement.open);
});
watch('value', apply);
"""


def shown_labels(probabilities: torch.Tensor, predicted: torch.Tensor, taxonomy: Taxonomy, limit: int) -> np.ndarray:
    """Selects the labels of a tree of bounded size: predicted labels first, then the most probable, with their ancestors.

    A label has the rank of its best descendant. So no label is shown without its parents, and a probable label below an
    improbable parent is not lost.

    Args:
        probabilities (`torch.Tensor` of shape `[L]`).
        predicted (bool `torch.Tensor` of shape `[L]`).
        taxonomy ([`Taxonomy`]): the hierarchy.
        limit (`int`): the maximum number of labels.

    Returns:
        bool `np.ndarray` of shape `[L]`.
    """
    ranks = raise_to_descendants((probabilities + predicted.to(probabilities))[None], taxonomy)[0]
    # The sort is stable and parents have smaller indices, so a parent comes before a child of equal rank.
    order = ranks.argsort(descending=True, stable=True)
    shown = np.zeros(taxonomy.num_labels, dtype=bool)
    shown[order[:limit].numpy()] = True
    return shown


def tree_html(
    probabilities: torch.Tensor,
    predicted: torch.Tensor,
    taxonomy: Taxonomy,
    limit: int,
    thresholds: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> str:
    """Formats the taxonomy as nested lists, with the most probable label first. Branches are `<details>`.

    Branches with a prediction or with a probability of at least 0.2 are open. At most `limit` labels are shown, and each
    branch counts its hidden labels. In a DAG, a label appears below each of its parents, and its own branch only below the
    first of them.

    Args:
        probabilities (`torch.Tensor` of shape `[L]`).
        predicted (bool `torch.Tensor` of shape `[L]`).
        taxonomy ([`Taxonomy`]): the hierarchy.
        limit (`int`): the maximum number of labels.
        thresholds (L numbers, *optional*): lowest probability of each predicted label, shown as a tick on its bar.
        names (L texts, *optional*): the shown name of each label.

    Returns:
        HTML with escaped names.
    """
    shown = shown_labels(probabilities, predicted, taxonomy, limit)
    return _Tree(probabilities.double().numpy(), predicted.numpy(), taxonomy, shown, thresholds, names).html()


class _Tree:
    """Builds the lists of the shown labels. Keeps only counts and largest probabilities of the others."""

    def __init__(
        self,
        probabilities: np.ndarray,
        predicted: np.ndarray,
        taxonomy: Taxonomy,
        shown: np.ndarray,
        thresholds: Sequence[float] | None,
        names: Sequence[str] | None,
    ):
        self.probabilities, self.predicted, self.taxonomy = probabilities, predicted, taxonomy
        self.thresholds = thresholds
        self.names = taxonomy.names if names is None else names
        self.num_shown = int(shown.sum())
        parents, children = taxonomy.edges[:, 0], taxonomy.edges[:, 1]
        inside = shown[children]  # then their parents are shown too
        self.children: dict[int, list[int]] = {}
        for parent, child in taxonomy.edges[inside].tolist():
            self.children.setdefault(parent, []).append(child)
        outside = shown[parents] & ~inside
        self.num_left_out = np.bincount(parents[outside], minlength=taxonomy.num_labels)
        self.most_left_out = np.zeros(taxonomy.num_labels)
        np.maximum.at(self.most_left_out, parents[outside], probabilities[children[outside]])
        roots = np.arange(taxonomy.num_labels)[taxonomy.levels[0]]
        self.roots = roots[shown[roots]].tolist()
        self.roots_left_out = roots[~shown[roots]]
        self.is_open = shown & (predicted | (probabilities >= OPEN_FROM))
        for parent, child in taxonomy.edges[inside][::-1].tolist():  # from the deepest level up
            self.is_open[parent] |= self.is_open[child]
        self.branch_of: dict[int, int | None] = {}  # the parent with the branch of a label

    def html(self) -> str:
        left_out = self.roots_left_out
        rest = self._rest(len(left_out), self.probabilities[left_out].max(initial=0.0))
        total = self.taxonomy.num_labels
        counts = f"{self.num_shown:,} of {total:,} labels are shown." if self.num_shown < total else ""
        note = f'<p class="hcal-note">{counts}</p>' if counts else ""
        items = self._items(self.roots, None)
        return (
            f'<ul role="list" class="hcal-tree" aria-label="Labels and their probabilities">{items}{rest}</ul>{note}'
        )

    def _items(self, nodes: list[int], parent: int | None) -> str:
        return "".join(self._item(node, parent) for node in sorted(nodes, key=lambda node: -self.probabilities[node]))

    def _item(self, node: int, parent: int | None) -> str:
        has_branch = node in self.children or self.num_left_out[node]
        if not has_branch:
            return f"<li>{self._row('div', node)}</li>"
        if node in self.branch_of:
            above = self.branch_of[node]
            assert above is not None  # a root appears once
            name = escape(self.names[above])
            return f"<li>{self._row('div', node, f' <small>(its labels: see below {name})</small>')}</li>"
        self.branch_of[node] = parent
        items = self._items(self.children.get(node, []), node)
        rest = self._rest(int(self.num_left_out[node]), float(self.most_left_out[node]))
        state = " open" if self.is_open[node] and items else ""
        return (
            f'<li><details data-branch="{node}"{state}>{self._row("summary", node)}'
            f'<ul role="list">{items}{rest}</ul></details></li>'
        )

    def _row(self, tag: str, node: int, note: str = "") -> str:
        p, predicted = float(self.probabilities[node]), bool(self.predicted[node])
        mark = '✓<span class="hcal-hidden">predicted: </span>' if predicted else ""
        tick = ""
        if self.thresholds is not None and 0 < self.thresholds[node] < 1:
            tick = f'<i style="left:{100 * self.thresholds[node]:.1f}%"></i>'
        return (
            f'<{tag} class="hcal-row{" hcal-predicted" if predicted else ""}" data-label="{node}">'
            f'<span class="hcal-fold"></span><span class="hcal-mark">{mark}</span>'
            f'<span class="hcal-name">{escape(self.names[node])}{note}</span>'
            f'<span class="hcal-bar" aria-hidden="true"><span style="width:{100 * p:.1f}%"></span>{tick}</span>'
            f'<span class="hcal-number">{number(p)}</span></{tag}>'
        )

    def _rest(self, count: int, most: float) -> str:
        if not count:
            return ""
        return f'<li class="hcal-rest">{count:,} more, {"each " if count > 1 else ""}at most {number(most)}</li>'


def answer_html(
    probabilities: torch.Tensor, predicted: torch.Tensor, taxonomy: Taxonomy, names: Sequence[str] | None = None
) -> str:
    """Formats the predicted paths, with the most probable first. After the first 20, paths are only counted.

    Args:
        probabilities (`torch.Tensor` of shape `[L]`).
        predicted (bool `torch.Tensor` of shape `[L]`).
        taxonomy ([`Taxonomy`]): the hierarchy.
        names (L texts, *optional*): the shown name of each label.

    Returns:
        HTML with escaped names, or an empty string without labels.
    """
    p, ends = probabilities.double().numpy(), predicted.numpy().copy()
    if not ends.any():
        return ""
    parents, children = taxonomy.edges[:, 0], taxonomy.edges[:, 1]
    ends[parents[ends[children]]] = False  # the right side is computed before the assignment
    nodes = np.flatnonzero(ends)
    best = nodes[np.argsort(-p[nodes], kind="stable")]
    rows = ""
    for node in best[:MAX_ANSWERS].tolist():
        paths = taxonomy.paths(node, limit=MAX_ANSWERS + 1)
        words = escape(SEPARATOR.join(paths[0] if names is None else _first_path(node, taxonomy, names)))
        if len(paths) > 1:
            others = f"{len(paths) - 1}" if len(paths) <= MAX_ANSWERS else f"more than {MAX_ANSWERS - 1}"
            words += f" (and {others} other path{'' if len(paths) == 2 else 's'} to it)"
        rows += f"<li><span>{words}</span><span>{number(float(p[node]))}</span></li>"
    more = len(best) - MAX_ANSWERS
    rest = f"<p>and {more:,} more.</p>" if more > 0 else ""
    return f'<p>Predicted:</p><ul role="list" class="hcal-paths">{rows}</ul>{rest}'


def _first_path(node: int, taxonomy: Taxonomy, names: Sequence[str]) -> list[str]:
    """Returns the names on the way from a root to a node, in a DAG along the first parents."""
    steps = [names[node]]
    while len(parents := taxonomy.parents(node)):
        node = int(parents[0])
        steps.append(names[node])
    return steps[::-1]


def number(p: float) -> str:
    """Formats a probability with three decimals as HTML. Only exact values are shown as 0.000 and 1.000."""
    if 0 < p < 0.0005:
        return "&lt;0.001"
    if 0.9995 <= p < 1:
        return "&gt;0.999"
    return f"{p:.3f}"

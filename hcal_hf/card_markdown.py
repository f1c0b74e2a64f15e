"""Writes the Markdown of a model card: the template, escaped text, tables and the tree of labels."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .taxonomy import Taxonomy

# Some scripts and emoji need zero-width joiners.
_JOINERS = "\u200c\u200d"
_RIGHT_TO_LEFT = ("R", "AL", "AN")


def readable(text: str, limit: int | None = None) -> str:
    """Writes text on one line of at most `limit` characters.

    White space becomes single spaces. Invisible characters (control, text direction, surrogates, line separators) are shown
    as their code points, such as \\u202e.
    """
    line = " ".join("".join(map(_visible, str(text).replace("\t", " ").replace("\n", " ").replace("\r", " "))).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def _visible(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def code(text: str, limit: int | None = 80) -> str:
    """Writes text as a code span, in which nothing is interpreted as Markdown, HTML or a link."""
    line = readable(text, limit) or " "
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def cell(text: str, limit: int | None = 80) -> str:
    """Writes text as a code span for a table. Bars in it are escaped, so that they do not end the cell.

    Parsers differ on a backslash before an escaped bar, so such a backslash is replaced by a full-width one.
    """
    return re.sub(r"\\+(?=\|)", lambda run: "\uff3c" * len(run[0]), code(text, limit)).replace("|", r"\|")


def prose(text: str, limit: int | None = 80) -> str:
    """Writes text for a sentence or a heading: unchanged if it consists of plain words, else as a code span."""
    line = readable(text, limit)
    # A dot before a letter could be read as a link, and a number with a dot at the start of a line as a list.
    plain = re.fullmatch(r"[A-Za-z0-9]+(?:(?:[ -]|, |\.(?=[0-9]))[A-Za-z0-9]+)*", line)
    return line if plain else code(text, limit)


def isolated(text: str) -> str:
    """Keeps right-to-left letters from reordering other characters on the line."""
    if any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in text):
        return f"\u2068{text}\u2069"
    return text


def block(lines: Sequence[str], language: str = "text") -> str:
    """Writes lines as a fenced block. The lines may contain fences."""
    runs = (len(run) for line in lines for run in re.findall("`+", line))
    fence = "`" * max(3, max(runs, default=0) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """Writes a table. Columns from `numbers_from` on are right-aligned. Cells must be escaped already (`cell`)."""
    rule = ["---" if i < numbers_from else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def counted(count: int, noun: str) -> str:
    """Writes a count with its noun, such as "1 label" or "1,200 labels"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def level_table(taxonomy: Taxonomy, counts: np.ndarray | None) -> str:
    """Writes a table of the levels.

    Args:
        taxonomy: the hierarchy.
        counts (`np.ndarray` of shape `[L]`, *optional*): training documents of each label, ancestors included.
    """
    header = ["level", "labels", "without children"]
    header += ["without a training document"] if counts is not None else []
    rows = []
    for k, level in enumerate(taxonomy.levels):
        numbers = [level.stop - level.start, int(taxonomy.is_leaf[level].sum())]
        numbers += [int((counts[level] == 0).sum())] if counts is not None else []
        first = ", ".join(
            cell(taxonomy.names[node], 40) for node in range(level.start, min(level.stop, level.start + 3))
        )
        more = ", …" if level.stop - level.start > 3 else ""
        rows.append([first + more, str(k), *(f"{number:,}" for number in numbers)])
    return table(["first labels", *header], rows)


def tree_lines(taxonomy: Taxonomy, roots: int = 4, children: int = 3) -> list[str]:
    """Writes the first labels of each level as lines of a tree.

    The tree contains the first `roots`, and the first `children` of each of them. Below these, it contains the first
    `children` of each first child only. Other labels are counted.
    """
    num_children = np.bincount(taxonomy.edges[:, 0], minlength=taxonomy.num_labels)
    lines: list[str] = []

    def add(nodes: Sequence[int], shown: int, indent: str, is_top: bool) -> None:
        for i, node in enumerate(nodes[:shown]):
            below = int(num_children[node])
            is_open = bool(below) and (is_top or i == 0)
            name = isolated(readable(taxonomy.names[node], 60))
            lines.append(f"{indent}{name}" + (f" ({below:,} below)" if below else ""))
            if is_open:
                nodes_below = taxonomy.edges[taxonomy.edges[:, 0] == node, 1].tolist()
                add(nodes_below, children, indent + "    ", False)
        if len(nodes) > shown:
            lines.append(f"{indent}… {len(nodes) - shown:,} more")

    top = taxonomy.levels[0]
    add(range(top.start, top.stop), roots, "  ", True)
    return lines


# A Jinja template. `hcal_hf.model_card.build_card` fills it with escaped Markdown.
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ summary }}

## Use

With `hcal_hf` installed:

{{ usage }}
{% if usage_remote %}
Without it (this runs the code in this repository; read it first, and pin a `revision`):

{{ usage_remote }}
{% endif %}
The pipeline returns a list of labels for each text, the top level first. Each label has the keys `label`, `score` (its
probability), `depth` and `path`. {{ decoding }}

## Labels

{{ taxonomy }}

{{ levels }}

{{ tree }}

## Data

{{ data }}

## Training

{{ training }}

## Results
{% for result in results %}
### {{ result.title }}

{{ result.levels }}

{{ result.decisions }}

{{ result.notes }}
{% if result.nodes %}
{{ result.nodes }}
{% endif %}
{%- endfor %}
{%- if not results %}
No results of this model were recorded when this card was written.
{% endif %}
{%- for picture in pictures %}
![{{ picture.alt }}]({{ picture.file }})
{% endfor %}
## Decisions

{{ decisions }}

## Limits

{{ limits }}

## Licence

{{ licence }}

## Citation

The method:

```bibtex
@inproceedings{jiang2025hcal,
  title = {Hierarchy-Consistent Learning and Adaptive Loss Balancing for Hierarchical Multi-Label Classification},
  author = {Jiang, Ruobing and Liu, Mengzhe and Liu, Haobing and Yu, Yanwei},
  booktitle = {Proceedings of the 34th ACM International Conference on Information and Knowledge Management},
  year = {2025},
  doi = {10.1145/3746252.3761241},
  url = {https://arxiv.org/abs/2508.13452}
}
```

The software: `hcal_hf` {{ version }}.
"""


def reading_limit(model: Any) -> str:
    """Describes how many tokens of a text a model reads, in one sentence or two."""
    if model.windows is None:
        return f"It reads at most {model.max_tokens:,} tokens of a text. Its tokenizer may truncate earlier."
    windows = model.windows
    return (
        f"It reads at most {windows.capacity:,} tokens of a text. Texts of more than {windows.length:,} tokens are read "
        f"in up to {windows.maximum} windows, which overlap by {windows.overlap} tokens."
    )


def truncation_note(truncated: Mapping[str, tuple[int, int]]) -> str:
    """Makes a paragraph about the number of texts of each split that were truncated. Returns "" if none was."""
    cut = [f"{number:,} of {total:,} in {name}" for name, (number, total) in truncated.items() if number]
    return f"Longer texts, of which the end was not read: {', '.join(cut)}.\n\n" if cut else ""


def threshold_note(config: Any, taxonomy: Taxonomy) -> str:
    """Describes the thresholds of a model in one sentence."""
    if config.thresholds is None:
        if config.label_mode == "single_path":
            return "Thresholds: none, so paths are not shortened."
        return "Thresholds: none tuned, 0.5 for every label."
    values = np.asarray(config.thresholds, dtype=np.float64)
    if (values == values[0]).all():
        return f"Threshold, tuned: {values[0]:.4g} for every label."
    if all((values[level] == values[level.start]).all() for level in taxonomy.levels):
        each = ", ".join(f"{values[level.start]:.4g}" for level in taxonomy.levels)
        return f"Thresholds, tuned, one per level from the top down: {each}."
    return (
        f"Thresholds, tuned, one per label: from {values.min():.4g} to {values.max():.4g}, median {np.median(values):.4g} "
        "(in `config.json`)."
    )


__all__ = [
    "TEMPLATE",
    "block",
    "cell",
    "code",
    "counted",
    "isolated",
    "level_table",
    "prose",
    "readable",
    "reading_limit",
    "table",
    "threshold_note",
    "tree_lines",
    "truncation_note",
]

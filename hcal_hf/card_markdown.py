"""Markdown of a model card: the template, text that is safe inside it, tables and the tree of labels."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from .taxonomy import Taxonomy

# Zero-width joiners belong to words of some scripts and to emoji.
_JOINERS = "\u200c\u200d"
_RIGHT_TO_LEFT = ("R", "AL", "AN")


def readable(text: str, limit: int | None = None) -> str:
    """Text on one line: white space as single spaces, characters that do not show (control, direction, surrogates, line
    ends) as their code points, cut to `limit` characters."""
    line = " ".join("".join(map(_visible, str(text).replace("\t", " ").replace("\n", " ").replace("\r", " "))).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def _visible(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def code(text: str, limit: int | None = 80) -> str:
    """A code span, in which nothing is read as Markdown, HTML or a link."""
    line = readable(text, limit) or " "
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def cell(text: str, limit: int | None = 80) -> str:
    """A code span for a table, whose bars do not end the cell.

    Parsers differ on a backslash before an escaped bar: such a one is shown as a full-width backslash.
    """
    return re.sub(r"\\+(?=\|)", lambda run: "\uff3c" * len(run[0]), code(text, limit)).replace("|", r"\|")


def prose(text: str, limit: int | None = 80) -> str:
    """Text in a sentence or a heading: as it is where it is plain words, else a code span."""
    line = readable(text, limit)
    # A dot before a letter may make a link of it, a number with one at the start of a line a list.
    plain = re.fullmatch(r"[A-Za-z0-9]+(?:(?:[ -]|, |\.(?=[0-9]))[A-Za-z0-9]+)*", line)
    return line if plain else code(text, limit)


def isolated(text: str) -> str:
    """Keeps right-to-left letters from reordering other characters on the line."""
    if any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in text):
        return f"\u2068{text}\u2069"
    return text


def block(lines: Sequence[str], language: str = "text") -> str:
    """A fenced block of lines, which may hold fences themselves."""
    runs = (len(run) for line in lines for run in re.findall("`+", line))
    fence = "`" * max(3, max(runs, default=0) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """A table; the columns from `numbers_from` on are set to the right. Cells must be safe already (`cell`)."""
    rule = ["---" if i < numbers_from else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def level_table(taxonomy: Taxonomy, counts: np.ndarray | None) -> str:
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
    """The first labels of each level as a tree: the first `roots`, below each of them the first `children`, below the
    first child in turn its first ones, and so on; what is cut is counted."""
    number = np.bincount(taxonomy.edges[:, 0], minlength=taxonomy.num_labels)
    lines: list[str] = []

    def add(nodes: Sequence[int], shown: int, indent: str, is_top: bool) -> None:
        for i, node in enumerate(nodes[:shown]):
            below = int(number[node])
            opened = bool(below) and (is_top or i == 0)
            name = isolated(readable(taxonomy.names[node], 60))
            lines.append(f"{indent}{name}" + (f" ({below:,} below)" if below else ""))
            if opened:
                found = taxonomy.edges[taxonomy.edges[:, 0] == node, 1].tolist()
                add(found, children, indent + "    ", False)
        if len(nodes) > shown:
            lines.append(f"{indent}… {len(nodes) - shown:,} more")

    top = taxonomy.levels[0]
    add(range(top.start, top.stop), roots, "  ", True)
    return lines


# A Jinja template. `hcal_hf.model_card.build_card` fills it with Markdown that is already safe.
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ summary }}

## Use

With `hcal_hf` installed:

{{ usage }}
{% if usage_remote %}
Without it (this runs the code that lies in this repository; read it first, and pin a `revision`):

{{ usage_remote }}
{% endif %}
The pipeline gives for each text a list of labels, the top level first, each with `label`, `score` (its probability),
`depth` and `path`. {{ decoding }}

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
No results of this model as it is were recorded when this card was written.
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
    "table",
    "tree_lines",
]

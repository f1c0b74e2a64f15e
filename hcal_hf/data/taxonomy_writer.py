"""Writes hierarchies in the formats that [`hcal_hf.read_taxonomy`] reads."""

import csv
import io
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Literal

from ..node_names import SEPARATOR
from ..taxonomy import Taxonomy
from .described_taxonomy import DescribedTaxonomy
from .skos import to_turtle

Target = Literal["json", "csv", "paths", "indented", "skos"]
# The format of each ending of a file.
ENDINGS: dict[str, Target] = {".json": "json", ".csv": "csv", ".tsv": "csv", ".ttl": "skos", ".txt": "paths"}


def write_taxonomy(
    taxonomy: Taxonomy, path: str | PathLike, to: Target | None = None, names: Mapping[str, str] | None = None
) -> None:
    """Writes a taxonomy to a file. [`read_taxonomy`] reads each format again.

    | format | ending | content |
    |---|---|---|
    | `"json"` | `.json` | labels and edges, with ids, names and descriptions ([`DescribedTaxonomy`]) |
    | `"csv"` | `.csv`, `.tsv` | one row per edge, with ids, names and descriptions |
    | `"skos"` | `.ttl` | a concept scheme in Turtle, with the labels as notations |
    | `"paths"` | `.txt` | one path per line; forests without names and descriptions |
    | `"indented"` | | one label per line, indented by two spaces per level; forests without names and descriptions |

    Args:
        taxonomy: the hierarchy.
        path: the file to write.
        to: one of the formats; by default that of the ending.
        names: the names of labels that are identifiers; by default those of the taxonomy.

    Raises:
        ValueError: for an unknown format or ending, a DAG as text, or a name that such a text would not read back.
    """
    path = Path(path)
    to = to or ENDINGS.get(path.suffix.lower())
    if names is not None:
        taxonomy = DescribedTaxonomy.of(taxonomy, names)
    if to == "json":
        taxonomy.to_json(path)
    elif to == "csv":
        text = _csv_text(taxonomy, "\t" if path.suffix.lower() == ".tsv" else ",")
        path.write_text(text, encoding="utf-8-sig", newline="")  # the mark tells spreadsheets that it is UTF-8
    elif to == "skos":
        path.write_text(to_turtle(taxonomy), encoding="utf-8", newline="\n")
    elif to in ("paths", "indented"):
        _check_writable(taxonomy, to)
        lines = _path_lines(taxonomy) if to == "paths" else _indented_lines(taxonomy)
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
    elif to is None:
        raise ValueError(
            f"{path} must end in {', '.join(ENDINGS)}, or give the format: to=... (on the command line --to)."
        )
    else:
        raise ValueError(f"to must be json, csv, paths, indented or skos, got {to!r}.")


def first_path(taxonomy: Taxonomy, node: int) -> list[str]:
    """Returns the names on the path to a node along the first parent of each, in a forest the only path."""
    steps = [taxonomy.names[node]]
    while parents := taxonomy.parent_lists[node]:
        node = parents[0]
        steps.append(taxonomy.names[node])
    return steps[::-1]


def _csv_text(taxonomy: Taxonomy, delimiter: str) -> str:
    extras = {
        column: values
        for column, name in (("name", "label_names"), ("id", "ids"), ("description", "descriptions"))
        if (values := getattr(taxonomy, name, None))
    }
    if "name" in extras:
        extras["name"] = {label: extras["name"].get(label, label) for label in taxonomy.labels}
        extras.pop("id", None)  # the labels are ids
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["parent", "id" if "name" in extras else "child", *extras])
    for node, label in enumerate(taxonomy.labels):
        for parent in taxonomy.parent_lists[node] or [-1]:
            above = taxonomy.labels[parent] if parent >= 0 else ""
            writer.writerow([above, label, *(values.get(label, "") for values in extras.values())])
    return file.getvalue()


def _check_writable(taxonomy: Taxonomy, to: str) -> None:
    if not taxonomy.is_forest:
        raise ValueError(f"Some labels have several parents, which {to} text cannot show: write json, csv or skos.")
    for name in taxonomy.names:
        if SEPARATOR.strip() in name or len(name.splitlines()) > 1 or name.startswith("#"):
            raise ValueError(f"The name {name!r} cannot be read back from {to} text: write json, csv or skos.")


def _path_lines(taxonomy: Taxonomy) -> Iterator[str]:
    return (SEPARATOR.join(first_path(taxonomy, node)) + "\n" for node in range(len(taxonomy)))


def _indented_lines(taxonomy: Taxonomy) -> Iterator[str]:
    children: list[list[int]] = [[] for _ in taxonomy.labels]
    for parent, child in taxonomy.edges.tolist():
        children[parent].append(child)
    waiting = [node for node, parents in enumerate(taxonomy.parent_lists) if not parents][::-1]
    while waiting:
        node = waiting.pop()
        yield "  " * int(taxonomy.depths[node]) + taxonomy.names[node] + "\n"
        waiting += reversed(children[node])

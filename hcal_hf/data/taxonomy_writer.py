"""Writes hierarchies in the formats that [`hcal_hf.read_taxonomy`] reads."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..node_names import SEPARATOR
from ..taxonomy import Taxonomy
from .skos import write_skos

Target = Literal["json", "csv", "paths", "indented", "skos"]


def write_taxonomy(
    taxonomy: Taxonomy, path: str | os.PathLike, to: Target = "json", names: Mapping[str, str] | None = None
) -> None:
    """Writes a taxonomy.

    Args:
        taxonomy: the hierarchy.
        path: the file.
        to: `json` ([`Taxonomy.to_json`]), `csv` (columns parent, child and, with names, name), `paths` (one path per line),
            `indented` (by two spaces per level), or `skos` (Turtle).
        names: the names of labels that are codes; written by `csv` and `skos`.

    Raises:
        ValueError: for a DAG as `paths` or `indented`, or a name that such a file would not read back.
        ImportError: for `skos` without rdflib.
    """
    if to == "json":
        taxonomy.to_json(path)
    elif to == "skos":
        write_skos(taxonomy, path, dict(names or {}))
    elif to == "csv":
        _write_edges(taxonomy, path, names or {})
    elif to in ("paths", "indented"):
        _write_lines(taxonomy, path, to)
    else:
        raise ValueError(f"to must be json, csv, paths, indented or skos, got {to!r}.")


def _write_edges(taxonomy: Taxonomy, path: str | os.PathLike, names: Mapping[str, str]) -> None:
    parents = taxonomy.parent_lists
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["parent", "id", "name"] if names else ["parent", "child"])
        for node, label in enumerate(taxonomy.labels):
            for parent in parents[node] or [-1]:
                above = "" if parent < 0 else taxonomy.labels[parent]
                writer.writerow([above, label, names.get(label, label)] if names else [above, label])


def _write_lines(taxonomy: Taxonomy, path: str | os.PathLike, to: str) -> None:
    if not taxonomy.is_forest:
        raise ValueError(f"Some labels have several parents, which {to} text cannot show: write json, csv or skos.")
    paths: list[tuple[str, ...]] = []
    for node, name in enumerate(taxonomy.names):
        parents = taxonomy.parent_lists[node]
        if SEPARATOR.strip() in name or "\n" in name or name.startswith("#") or name != name.strip():
            raise ValueError(f"The name {name!r} cannot be read back from {to} text: write json, csv or skos.")
        paths.append((*paths[parents[0]], name) if parents else (name,))
    children: dict[int, list[int]] = {}
    for parent, child in taxonomy.edges.tolist():
        children.setdefault(parent, []).append(child)
    waiting = [node for node in range(len(taxonomy)) if not taxonomy.parent_lists[node]][::-1]
    lines = []
    while waiting:  # each label before those below it
        node = waiting.pop()
        steps = paths[node]
        lines.append(SEPARATOR.join(steps) if to == "paths" else "  " * (len(steps) - 1) + steps[-1])
        waiting += children.get(node, [])[::-1]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")

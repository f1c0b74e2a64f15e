"""Converts EURLEX57K.

    python recipes/loaders/eurlex57k.py SOURCE_DIR OUT_DIR

Reads the folders `train`, `dev` and `test` with one JSON file per law, {"concepts": [ids], "header", "recitals",
"main_body": [...], ...}, and the descriptors of EUROVOC, `EURLEX57K.json` or `eurovoc_en.json`, {id: {"label",
"parents": [ids], ...}}. The split is the published one: 45,000 / 6,000 / 6,000. The text is header, recitals and main
body.

A concept can have several parents, so the taxonomy is a DAG. It contains the concepts that occur and those above
them. Labels are named by their descriptors. "codes" in taxonomy.json has their ids.
"""

import json
from pathlib import Path
from typing import Any

from shared import Writer, find_file, main, unique_names

from hcal_hf import Taxonomy

FOLDERS = {"train": "train", "validation": "dev", "test": "test"}
PUBLISHED = {"train": 45_000, "validation": 6_000, "test": 6_000}


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path}, line {problem.lineno}: no JSON, {problem.msg}.") from problem
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: {problem}; it must be UTF-8.") from problem
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, got {type(content).__name__}.")
    return content


def read_descriptors(path: Path) -> tuple[dict[str, str], list[tuple[str, str]], int]:
    """Returns the title of each concept, the (parent, child) edges, and the number of parents without a descriptor."""
    titles: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for concept, entry in read_json(path).items():
        try:
            titles[concept], parents[concept] = entry["label"], entry["parents"]
        except (KeyError, TypeError) as problem:
            raise ValueError(f'{path}: concept {concept!r} needs "label" and "parents", got {entry!r}.') from problem
    edges = [(parent, child) for child, above in parents.items() for parent in dict.fromkeys(above)]
    described = [edge for edge in edges if edge[0] in titles]
    return titles, described, len(edges) - len(described)


def read_law(path: Path) -> tuple[str, list[str]]:
    """Reads the text and the concepts of a law."""
    law = read_json(path)
    missing = [key for key in ("concepts", "header", "recitals", "main_body") if key not in law]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}, only {sorted(law)}.")
    body = law["main_body"]
    sections = [law["header"], law["recitals"], *([body] if isinstance(body, str) else body or [])]
    return "\n".join(section.strip() for section in sections if section), [str(concept) for concept in law["concepts"]]


def load(source: Path, output: Path) -> None:
    """Converts the data set in SOURCE_DIR and writes it to OUT_DIR.

    Raises:
        FileNotFoundError: for a missing folder or file.
        ValueError: for a malformed file.
    """
    descriptors = find_file(source, ("EURLEX57K.json", "eurovoc_en.json"), "the descriptors of EUROVOC")
    titles, edges, unknown_parents = read_descriptors(descriptors)
    names = unique_names(titles)
    children = {child for _, child in edges}
    taxonomy = Taxonomy.from_edges(
        [(names[parent], names[child]) for parent, child in edges],
        roots=[name for concept, name in names.items() if concept not in children],
    )
    nodes = {concept: taxonomy.index(name) for concept, name in names.items()}
    laws = {split: sorted((source / folder).glob("*.json")) for split, folder in FOLDERS.items()}
    for split, folder in FOLDERS.items():
        if not laws[split]:
            raise FileNotFoundError(f"{source / folder} has no .json files (the laws of the {split} split).")
    codes = {name: concept for concept, name in names.items()}
    with Writer(output, taxonomy, PUBLISHED, only_used=True, extra={"codes": codes}) as writer:
        writer.note("parents without a descriptor, left out", unknown_parents)
        for split, paths in laws.items():
            for path in paths:
                text, concepts = read_law(path)
                labels = [nodes[concept] for concept in concepts if concept in nodes]
                writer.note("concepts of laws without a descriptor, left out", len(concepts) - len(labels))
                writer.add(split, text, labels)


if __name__ == "__main__":
    main(load, __doc__)

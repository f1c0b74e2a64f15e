"""Checks the names and the shape of a hierarchy that is given by edges or by paths."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from ..taxonomy import SEPARATOR, Taxonomy
from .validation_report import ValidationReport

Steps: TypeAlias = tuple[str, ...]


def check_edges(
    report: ValidationReport,
    triples: Sequence[tuple[Any, Any, str]],
    roots: Iterable[Any],
    build: Callable[[], Taxonomy] | None = None,
) -> None:
    """Checks the edges of a hierarchy and builds it.

    Args:
        report: receives the problems and the taxonomy.
        triples: (parent, child, place of the edge in the file).
        roots: labels without a parent.
        build: builds the taxonomy; by default it is built from `triples` and `roots`.
    """
    roots = list(roots)
    places: dict[Any, str] = {}
    for parent, child, where in triples:
        places.setdefault(parent, where)
        places.setdefault(child, where)
    for name in roots:
        places.setdefault(name, "a root")
    _check_spelling(report, places.items())
    names = [name for name in places if isinstance(name, str)]
    _check_similar(report, names, "", places.__getitem__)

    times = Counter((parent, child) for parent, child, _ in triples)
    repeated = [pair for pair, number in times.items() if number > 1]
    report.add("warning", "repeated-edge", "edges given more than once", "Each counts once.",
                  (f"{a!r} -> {b!r}, {times[a, b]} times" for a, b in repeated))  # fmt: skip
    cycles = find_cycles(times)
    report.add("error", "cycle", "cycles, in which a label is its own ancestor", "Remove one edge of each.",
                  (" -> ".join(map(repr, cycle)) for cycle in cycles))  # fmt: skip
    parents, children = defaultdict(list), defaultdict(list)
    for parent, child in times:
        parents[child].append(parent)
        children[parent].append(child)
    report.add(
        "warning",
        "several-parents",
        "labels with several parents",
        'If that is intended, train with label_mode="multi_path". If it should be a separate label below each parent, give '
        "paths instead of edges.",
        (f"{child!r}: {', '.join(map(repr, above))}" for child, above in parents.items() if len(above) > 1),
    )
    _check_single_children(report, children.items(), repr)

    def from_edges() -> Taxonomy:
        alone = [root for root in roots if root not in parents]
        return Taxonomy.from_edges(times, roots=alone)

    try_to_build(report, build or from_edges)
    names = list(report.taxonomy.names) if report.taxonomy else names
    report.add(
        "warning",
        "separator",
        f"names that contain {SEPARATOR.strip()!r}, which separates the steps of a path",
        "Documents can give such a label alone, but not inside a path string: write it in another way.",
        (repr(name) for name in names if SEPARATOR.strip() in name),
    )


def find_cycles(edges: Iterable[tuple[Any, Any]], limit: int = 100) -> list[list[Any]]:
    """Finds cycles by depth-first search, one for each edge that leads back to a node on the current path."""
    children: dict[Any, list] = {}
    for parent, child in edges:
        children.setdefault(parent, []).append(child)
    cycles: list[list[Any]] = []
    done: set[Any] = set()
    for root in list(children):
        if root in done:
            continue
        path, place, waiting = [root], {root: 0}, [iter(children[root])]
        while waiting and len(cycles) < limit:
            node = next(waiting[-1], None)
            if node is None:
                waiting.pop()
                done.add(last := path.pop())
                del place[last]
            elif node in place:
                cycles.append([*path[place[node] :], node])
            elif node not in done:
                place[node] = len(path)
                path.append(node)
                waiting.append(iter(children.get(node, ())))
    return cycles


# ---- Checks of names and shape ----


def _check_spelling(report: ValidationReport, names: Iterable[tuple[Any, str]]) -> None:
    """Checks (name, place) pairs for empty names and outer white space."""
    for name, where in names:
        if not isinstance(name, str) or not name.strip():
            report.add("error", "empty-name", "names that are empty or no text", "Name them, or remove them.",
                      [f"{where}: {name!r}"])  # fmt: skip
        elif name != name.strip():
            report.add("error", "white-space", "names that start or end with white space", "Remove it.",
                      [f"{where}: {name!r}"])  # fmt: skip


def same_to_the_eye(name: str) -> str:
    """Normalises differences that cannot be seen: Unicode composition, spaces, invisible characters."""
    composed = unicodedata.normalize("NFC", name)
    return " ".join("".join(c for c in composed if unicodedata.category(c) != "Cf").split())


def loosely(name: str) -> str:
    """Removes case, accents on Latin letters, width, white space and the punctuation that varies between spellings."""
    # Combining marks of other scripts are letters there.
    plain = (c for c in unicodedata.normalize("NFKD", name) if not 0x300 <= ord(c) <= 0x36F)
    kept = "".join(
        c for c in plain if unicodedata.category(c) not in ("Cf", "Pd", "Pc", "Zs") and c not in ".,'\u2019/\t"
    )
    return kept.casefold() or name


def _check_similar(report: ValidationReport, names: Sequence[Any], parent: str, where: Callable[[Any], str]) -> None:
    """Finds siblings that are probably spellings of the same label."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for name in names:
        groups[loosely(name)].append(name)
    for group in (group for group in groups.values() if len(group) > 1):
        below = f", below {parent!r}" if parent else ""
        seen: dict[str, list[Any]] = defaultdict(list)
        for name in group:
            seen[same_to_the_eye(name)].append(name)
        for alike in (alike for alike in seen.values() if len(alike) > 1):
            report.add(
                "error",
                "same-to-the-eye",
                "labels written in several ways that look the same (Unicode composition, spaces, invisible characters)",
                "Write them in one way: in Python unicodedata.normalize('NFC', name), then ' '.join(name.split()).",
                [" / ".join(f"{name!a} ({where(name)})" for name in alike) + below],
            )
        if len(seen) > 1:
            report.add(
                "warning",
                "similar",
                "labels that differ from another only in case, accents, spaces or punctuation",
                "If they are one label, write them in one way.",
                [" / ".join(f"{alike[0]!r} ({where(alike[0])})" for alike in seen.values()) + below],
            )


def _check_single_children(
    report: ValidationReport, children: Iterable[tuple[Any, Sequence]], describe: Callable[[Any], str]
) -> None:
    report.add(
        "warning",
        "single-child",
        "labels with a single child and nothing else below them",
        "There is nothing to decide on such a level: merge parent and child, unless you will add other children.",
        (f"{describe(parent)} -> {describe(below[0])}" for parent, below in children if len(below) == 1),
    )


def check_paths(
    report: ValidationReport, paths: Iterable[Steps], where: Callable[[Steps], str], path_ends: Any = ()
) -> dict[Steps, list[Steps]]:
    """Checks the nodes that paths of names span.

    Args:
        report: receives the problems.
        paths: the paths.
        where: returns the place of a node in the file.
        path_ends: nodes where documents end; a single child below such a node is no problem.

    Returns:
        the children of each node.
    """
    nodes = dict.fromkeys(steps[: i + 1] for steps in paths for i in range(len(steps)))
    children: dict[Steps, list[Steps]] = defaultdict(list)
    by_name: dict[str, list[Steps]] = defaultdict(list)
    for node in nodes:
        children[node[:-1]].append(node)
        by_name[node[-1]].append(node)
    _check_spelling(report, ((node[-1], where(node)) for node in nodes))
    report.add(
        "error",
        "separator",
        f"names that contain {SEPARATOR!r}, which separates the steps of a path in labels",
        f"Write them in another way, such as with {' - '!r}.",
        (f"{where(node)}: {node[-1]!r}" for node in nodes if isinstance(node[-1], str) and SEPARATOR in node[-1]),
    )
    for parent, below in children.items():
        names = {node[-1]: node for node in below if isinstance(node[-1], str)}
        places = {name: where(node) for name, node in names.items()}
        _check_similar(report, list(places), join_steps(parent), places.__getitem__)
    report.add(
        "warning",
        "repeats-parent",
        "labels with the name of their parent",
        "If the name only fills an empty cell, leave the cell empty: the path then ends earlier (partial_paths=True).",
        (repr(join_steps(node)) for node in nodes if node[-2:-1] == node[-1:]),
    )
    report.add(
        "warning",
        "same-name",
        "names that occur below several parents",
        'Each is a separate label, as "Other" should be. If they are one label, use identity="name".',
        (
            f"{name!r}: {', '.join(repr(join_steps(node)) for node in same[:3])}{', ...' if len(same) > 3 else ''}"
            for name, same in by_name.items()
            if len(same) > 1
        ),
    )
    inner = ((parent, below) for parent, below in children.items() if parent and parent not in path_ends)
    _check_single_children(report, inner, lambda node: repr(join_steps(node)))
    return children


def join_steps(steps: Steps) -> str:
    return SEPARATOR.join(map(str, steps))


def try_to_build(report: ValidationReport, build: Callable[[], Taxonomy]) -> None:
    """Builds the taxonomy of a report. A failure is a problem unless the checks have found its cause already."""
    try:
        report.taxonomy = build()
    except (ValueError, TypeError) as error:
        if not report.number("error"):
            report.add(
                "error",
                "hierarchy",
                "mistakes that prevent building the hierarchy",
                "Fix the mistake that the message names.",
                [str(error)],
            )

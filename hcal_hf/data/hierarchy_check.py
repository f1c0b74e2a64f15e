"""What is wrong with the names and the shape of a hierarchy, given by its edges or its paths."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from ..taxonomy import SEPARATOR, Taxonomy
from .validation_report import Findings, Report

Steps: TypeAlias = tuple[str, ...]


def check_edges(
    source: str,
    triples: Sequence[tuple[Any, Any, str]],
    roots: Iterable[Any],
    found: Findings,
    build: Callable[[], Taxonomy] | None,
) -> Report:
    """Checks (parent, child, where) triples of labels; `build` makes the taxonomy, by default from them."""
    roots = list(roots)
    places: dict[Any, str] = {}
    for parent, child, where in triples:
        places.setdefault(parent, where)
        places.setdefault(child, where)
    for name in roots:
        places.setdefault(name, "a root")
    _check_spelling(((name, where) for name, where in places.items()), found)
    names = [name for name in places if isinstance(name, str)]
    _check_similar(names, "", places.__getitem__, found)

    times = Counter((parent, child) for parent, child, _ in triples)
    repeated = [pair for pair, number in times.items() if number > 1]
    found.add("warning", "repeated-edge", "edges given more than once", "Each counts once.",
                  (f"{a!r} -> {b!r}, {times[a, b]} times" for a, b in repeated))  # fmt: skip
    cycles = _cycles(times)
    found.add("error", "cycle", "cycles, in which a label stands above itself", "Remove an edge of each.",
                  (" -> ".join(map(repr, cycle)) for cycle in cycles))  # fmt: skip
    parents, children = defaultdict(list), defaultdict(list)
    for parent, child in times:
        parents[child].append(parent)
        children[parent].append(child)
    found.add(
        "warning",
        "several-parents",
        "labels with several parents",
        'If that is meant, train with label_mode="multi_path"; if it should be a label of its own below each parent, give '
        "paths instead of edges.",
        (f"{child!r}: {', '.join(map(repr, above))}" for child, above in parents.items() if len(above) > 1),
    )
    _single_children(((parent, below) for parent, below in children.items()), repr, found)

    def from_edges() -> Taxonomy:
        alone = [root for root in roots if root not in parents]
        return Taxonomy.from_edges(times, roots=alone)

    report = finish(source, found, build or from_edges)
    unread = [name for name in (report.taxonomy.names if report.taxonomy else names) if SEPARATOR.strip() in name]
    found.add(
        "warning",
        "separator",
        f"names that hold {SEPARATOR.strip()!r}, which separates the steps of a path",
        "In documents such a label can be given alone, but not inside a path string: write it in another way.",
        map(repr, unread),
    )
    report.findings = found.sorted()
    return report


def _cycles(edges: Iterable[tuple[Any, Any]], limit: int = 100) -> list[list[Any]]:
    """Cycles of a graph, one for each edge that leads back to a node above it in a depth-first search."""
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


def _check_spelling(names: Iterable[tuple[Any, str]], found: Findings) -> None:
    for name, where in names:
        if not isinstance(name, str) or not name.strip():
            found.add("error", "empty-name", "names that are empty or no text", "Name them, or remove them.",
                      [f"{where}: {name!r}"])  # fmt: skip
        elif name != name.strip():
            found.add("error", "white-space", "names that start or end with white space", "Remove it.",
                      [f"{where}: {name!r}"])  # fmt: skip


def same_to_the_eye(name: str) -> str:
    """A name without what cannot be seen: Unicode composition, kinds and numbers of spaces, zero-width characters."""
    composed = unicodedata.normalize("NFC", name)
    return " ".join("".join(c for c in composed if unicodedata.category(c) != "Cf").split())


def loosely(name: str) -> str:
    """A name without case, accents on Latin letters, width, white space and the punctuation that spellings differ in."""
    # Combining marks of other scripts are letters there.
    plain = (c for c in unicodedata.normalize("NFKD", name) if not 0x300 <= ord(c) <= 0x36F)
    kept = "".join(
        c for c in plain if unicodedata.category(c) not in ("Cf", "Pd", "Pc", "Zs") and c not in ".,'\u2019/\t"
    )
    return kept.casefold() or name


def _check_similar(names: Sequence[Any], above: str, where: Callable[[Any], str], found: Findings) -> None:
    """Among the names that stand together those that are probably one."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for name in names:
        groups[loosely(name)].append(name)
    for group in (group for group in groups.values() if len(group) > 1):
        below = f", below {above!r}" if above else ""
        seen: dict[str, list[Any]] = defaultdict(list)
        for name in group:
            seen[same_to_the_eye(name)].append(name)
        for alike in (alike for alike in seen.values() if len(alike) > 1):
            found.add(
                "error",
                "same-to-the-eye",
                "labels written in several ways that look the same (Unicode composition, spaces, invisible characters)",
                "Write them in one way: in Python unicodedata.normalize('NFC', name), then ' '.join(name.split()).",
                [" / ".join(f"{name!a} ({where(name)})" for name in alike) + below],
            )
        if len(seen) > 1:
            found.add(
                "warning",
                "similar",
                "labels that differ from another only in case, accents, spaces or punctuation",
                "If they are one label, write them in one way.",
                [" / ".join(f"{alike[0]!r} ({where(alike[0])})" for alike in seen.values()) + below],
            )


def _single_children(below: Iterable[tuple[Any, Sequence]], shown: Callable[[Any], str], found: Findings) -> None:
    found.add(
        "warning",
        "single-child",
        "labels with a single child and nothing else below them",
        "Such a level decides nothing: merge parent and child, unless other children will come.",
        (f"{shown(parent)} -> {shown(children[0])}" for parent, children in below if len(children) == 1),
    )


def check_paths(
    paths: Iterable[Steps], found: Findings, where: Callable[[Steps], str], is_counted: bool, ends: Any = ()
) -> dict[Steps, list[Steps]]:
    """Checks the nodes that paths of names span; the children of each node."""
    nodes = dict.fromkeys(steps[: i + 1] for steps in paths for i in range(len(steps)))
    children: dict[Steps, list[Steps]] = defaultdict(list)
    by_name: dict[str, list[Steps]] = defaultdict(list)
    for node in nodes:
        children[node[:-1]].append(node)
        by_name[node[-1]].append(node)
    _check_spelling(((node[-1], where(node)) for node in nodes), found)
    found.add(
        "error",
        "separator",
        f"names that hold {SEPARATOR!r}, which separates the steps of a path in labels",
        f"Write them in another way, such as with {' - '!r}.",
        (f"{where(node)}: {node[-1]!r}" for node in nodes if isinstance(node[-1], str) and SEPARATOR in node[-1]),
    )
    for parent, below in children.items():
        names = {node[-1]: node for node in below if isinstance(node[-1], str)}
        places = {name: where(node) for name, node in names.items()}
        _check_similar(list(places), shown(parent), places.__getitem__, found)
    found.add(
        "warning",
        "repeats-parent",
        "labels with the name of their parent",
        "If that only fills an empty cell, leave the cell empty: the path ends earlier (partial_paths=True).",
        (repr(shown(node)) for node in nodes if node[-2:-1] == node[-1:]),
    )
    found.add(
        "warning",
        "same-name",
        "names that stand below several parents",
        'Each is a label of its own, as "Other" should be; where they are one label, use identity="name".',
        (
            f"{name!r}: {', '.join(repr(shown(node)) for node in same[:3])}{', ...' if len(same) > 3 else ''}"
            for name, same in by_name.items()
            if len(same) > 1
        ),
    )
    inner = ((p, below) for p, below in children.items() if p and not (is_counted and p in ends))
    _single_children(inner, lambda node: repr(shown(node)), found)
    return children


def shown(steps: Steps) -> str:
    return SEPARATOR.join(map(str, steps))


def finish(source: str, found: Findings, build: Callable[[], Taxonomy]) -> Report:
    taxonomy = None
    try:
        taxonomy = build()
    except (ValueError, TypeError) as problem:
        if not found.has_errors:
            found.add(
                "error",
                "hierarchy",
                "mistakes for which no hierarchy can be built",
                "Mend what it names.",
                [str(problem)],
            )
    return Report(source, found.sorted(), taxonomy)

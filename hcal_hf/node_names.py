"""Checks, splits and quotes the names of taxonomy nodes."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import chain

SEPARATOR = " > "


def split_path(text: str, separator: str = SEPARATOR) -> list[str]:
    """Splits a path string into its steps and strips white space, so "A > B" and "A>B" are the same path."""
    return [step.strip() for step in text.split(separator.strip() or separator)]


def check_sequence(values: Iterable[str], what: str) -> None:
    """Checks that values are a sequence of strings and not one string or an object.

    Raises:
        ValueError: if they are not.
    """
    if isinstance(values, str | bytes | Mapping):
        kind = "text" if isinstance(values, str | bytes) else "object"
        raise ValueError(
            f"{what} must be a list of strings, got the {kind} {values!r:.80}: write [...] around its items."
        )
    if not isinstance(values, Iterable):
        raise ValueError(f"{what} must be a list of strings, got {values!r} of type {type(values).__name__}.")


def check_names(names: Sequence[str], what: str) -> None:
    """Checks that every name is a non-empty string without white space at its ends.

    Args:
        names: the names to check.
        what: the word for a name in the error message, such as "label".

    Raises:
        ValueError: for the first name that is not.
    """
    if (
        set(map(type, names)) <= {str}
        and all(names)
        and list(map(str.strip, names)) == list(names)
        and "\0" not in "".join(names)
    ):
        return
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"A {what} must be a string, got {name!r} of type {type(name).__name__}.")
        if not name.strip():
            raise ValueError(
                f"A {what} must not be empty, got {name!r}. In a table with rows of different lengths, leave the empty "
                "cells out: [cell for cell in row if cell]."
            )
        if name != name.strip():
            raise ValueError(f"A {what} must not start or end with white space, got {name!r}: use {name.strip()!r}.")
        if "\0" in name:
            raise ValueError(
                f"A {what} must not have the character NUL, got {name!r}: the file is damaged or no text."
            )


def list_of_pairs(edges: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns edges as a list, and checks that every edge is a pair of labels and not a string.

    Raises:
        ValueError: for the first edge that is not.
    """
    if not isinstance(edges, Iterable):
        raise ValueError(
            f"edges must be (parent, child) pairs of labels, got {edges!r} of type {type(edges).__name__}."
        )
    edges = list(edges)
    if set(map(type, edges)) <= {tuple, list} and set(map(len, edges)) <= {2}:
        return edges
    for edge in edges:
        if isinstance(edge, str | Mapping) or not isinstance(edge, Sized) or len(edge) != 2:
            raise ValueError(f"An edge must be a (parent, child) pair of labels, got {edge!r}.")
    return edges


def unique_paths(paths: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Checks paths of names and returns each path once, in the order of first appearance.

    Raises:
        ValueError: for a path that is a string or empty, an invalid name, or a name that contains `SEPARATOR`.
    """
    if not isinstance(paths, Iterable):
        raise ValueError(f"paths must be a list of paths, got {paths!r} of type {type(paths).__name__}.")
    unique: dict[tuple[str, ...], None] = {}
    for path in paths:
        if isinstance(path, str):
            raise ValueError(f"A path must be a sequence of names, got the string {path!r}: use split_path({path!r}).")
        if isinstance(path, Mapping | set | frozenset):
            raise ValueError(f"A path must be a sequence of names, got {path!r} of type {type(path).__name__}.")
        unique[tuple(path)] = None
    if () in unique:
        raise ValueError("A path must have at least one step, got an empty one: leave it out.")
    names = list(dict.fromkeys(chain.from_iterable(unique)))
    check_names(names, "name in a path")
    for name in names:
        if SEPARATOR in name:
            raise ValueError(
                f"The name {name!r} holds {SEPARATOR!r}, which separates the steps of a path in labels: write it "
                f"in another way, such as {name.replace(SEPARATOR, ' - ')!r}."
            )
    return list(unique)


def names_in_paths(labels: Sequence[str], parent_lists: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Computes each node's name inside a path: its label without the parent's path, if the label starts with that path.

    Args:
        labels: the L labels, parents before children.
        parent_lists: the parents of each node.

    Raises:
        ValueError: if two nodes below one parent have the same name.
    """
    if not any(SEPARATOR in label for label in labels):
        return tuple(labels)
    names = list(labels)
    taken: dict[tuple[int, str], int] = {}
    for node, label in enumerate(labels):
        if SEPARATOR not in label:
            continue
        above, step = "", node
        while parents := parent_lists[step]:
            step = parents[0]
            above = names[step] + SEPARATOR + above
        if above and label.startswith(above) and len(label) > len(above):
            names[node] = label[len(above) :]
    for node, name in enumerate(names):
        for parent in parent_lists[node] or [-1]:
            other = taken.setdefault((parent, name), node)
            if other != node:
                raise ValueError(
                    f"{labels[other]!r} and {labels[node]!r} are both {name!r} inside a path, because a label that starts "
                    f"with its parent's path and {SEPARATOR!r} is named by the rest. Rename one of them."
                )
    return tuple(names)


def quote_duplicates(names: Sequence[str]) -> str:
    """Quotes the names that occur more than once, at most three of them."""
    seen: set[str] = set()
    return quote_first(list(dict.fromkeys(name for name in names if name in seen or seen.add(name))))  # type: ignore[func-returns-value]


def quote_first(names: Sequence[str]) -> str:
    """Quotes the first three names and counts the rest."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"

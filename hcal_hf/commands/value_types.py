"""Checks the types of values from a configuration file against the fields of dataclasses."""

import types
import typing
from collections.abc import Iterable
from typing import Any

_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "an object",
    list: "a list",
    type(None): "null",
}
# Fields that hold names of columns.
_COLUMNS = ("text", "labels")


def check_types(source: str, values: dict[str, Any], kinds: Iterable[type]) -> None:
    """Checks values by the types of the fields with the same names.

    A text is accepted for numbers, because YAML reads 1e-4 as a text; the parser of the arguments converts it.

    Args:
        source: the name of the file, for messages.
        values: the values by name.
        kinds: dataclasses. A name is looked up in the first one that has it.

    Raises:
        ValueError: for the first value of another type.
    """
    hints: dict[str, Any] = {}
    for kind in reversed(list(kinds)):
        hints |= typing.get_type_hints(kind)
    for name, value in values.items():
        allowed = _simple_types(hints.get(name, Any))
        if allowed is None or _fits(value, allowed):
            continue
        wanted = " or ".join(_NAMES[kind] for kind in _NAMES if kind in allowed)
        if name in _COLUMNS:
            wanted = "a column or a list of columns"
        raise ValueError(f"{source}: {name} must be {wanted}, got {value!r}.")


def _fits(value: Any, allowed: set[type]) -> bool:
    if isinstance(value, str):
        return bool(allowed & {str, int, float, list})  # a single text is read as a list of one
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, int):
        return bool(allowed & {int, float})
    return type(value) in allowed


def _simple_types(hint: Any) -> set[type] | None:
    """Returns the types of YAML that a type hint allows. Returns None if it allows others, which are not checked."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return {type(value) for value in typing.get_args(hint)}
    if origin in (typing.Union, types.UnionType):
        parts = [_simple_types(part) for part in typing.get_args(hint)]
        return None if None in parts else set().union(*(part for part in parts if part is not None))
    kind = origin or hint
    return {kind} if kind in _NAMES else None

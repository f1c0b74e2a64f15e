"""Reads JSON files with errors that name the file and the problem."""

import json
import os
from pathlib import Path
from typing import Any


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file in UTF-8, with or without a byte-order mark.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the path is a folder, or the file is empty, is not JSON, is nested too deeply, or repeats a key.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path} is empty.")
    return parse_json(content, str(path))


def parse_json(content: bytes, source: str) -> Any:
    """Parses the content of a JSON file. Errors are those of [`read_json`] and name the source."""
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as problem:
        raise ValueError(f"{source} is not a text file in UTF-8: {problem}.") from problem
    except RecursionError as problem:
        raise ValueError(f"{source} is nested deeper than the JSON reader of Python allows.") from problem
    except json.JSONDecodeError as problem:
        raise ValueError(f"{source} is not JSON: {problem}.") from problem
    except _RepeatedKey as problem:
        raise ValueError(
            f"{source} has the key {str(problem)!r} more than once in one object: keep one of them."
        ) from None


class _RepeatedKey(Exception):
    """Names a key that an object has more than once."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        raise _RepeatedKey(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return values

"""Exit codes, errors, output and argument types that all subcommands of `hcal` share."""

import argparse
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

# 0: done. 1: a problem with data or a model was found and reported. 2: wrong usage. 130: interrupted.
OK, PROBLEM, USAGE, INTERRUPTED = 0, 1, 2, 130

# Libraries that can compute the encoder in bulk prediction.
ENGINES = ("torch", "onnx", "int8")
# A copy of `hcal_hf.decoding.METHODS`, so that parsers import nothing but the standard library. A test compares both.
DECODERS = ("raw", "closure", "prune", "path", "top_down", "expected_f1", "risk")


class UsageError(Exception):
    """Reports a wrong command line."""


def add_command(commands: Any, name: str, help_: str, run: Callable, **kwargs: Any) -> argparse.ArgumentParser:
    """Adds the parser of one command, with the options of all commands."""
    parser = commands.add_parser(
        name, help=help_, description=kwargs.pop("description", help_), allow_abbrev=False, **kwargs
    )
    parser.add_argument("--json", action="store_true", help="Print the result as one JSON object on stdout.")
    parser.add_argument("--traceback", action="store_true", help="Show the traceback of an error.")
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_text_option(parser: argparse.ArgumentParser, fallback: str, *aliases: str, **kwargs: Any) -> None:
    """Adds --text, which names one or several columns. `fallback` describes the columns without it."""
    parser.add_argument(
        "--text",
        *aliases,
        nargs="+",
        metavar="COLUMN",
        help=f"Column of texts, or several, which are joined. Default: {fallback}.",
        **kwargs,
    )


def add_identity_option(parser: argparse.ArgumentParser) -> None:
    """Adds --identity, which decides when two steps of paths are the same label."""
    parser.add_argument(
        "--identity",
        default="path",
        choices=("path", "name"),
        help="Whether a name below two parents is two labels (path, the default) or one label (name).",
    )


def replace_unencodable_output() -> None:
    """Prints "?" for characters that the console cannot encode (cp1252 in a pipe on Windows), instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def to_json(result: Any) -> str:
    """Formats a result as JSON, with escapes if stdout cannot encode all characters."""
    is_utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(result, indent=2, ensure_ascii=not is_utf8)


class VersionAction(argparse.Action):
    """Prints the installed version, read from the metadata of the package."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, *args: Any) -> NoReturn:
        from importlib.metadata import version

        print(version("hcal-hf"))
        raise SystemExit(OK)


def at_least_1(text: str) -> int:
    """Reads a whole number of at least 1."""
    return _whole(text, 1)


def at_least_0(text: str) -> int:
    """Reads a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch("[0-9]+", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return int(text)


def probability(text: str) -> float:
    """Reads a probability."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a probability from 0 to 1, got {text!r}")
    return value

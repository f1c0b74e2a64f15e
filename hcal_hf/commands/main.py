"""The command `hcal`: train, evaluate, predict, inspect, check a taxonomy, a demo page, export.

What takes seconds to import (torch, transformers) is imported by the command that needs it, so that help and usage errors
come at once. Results go to stdout, everything else to stderr.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from . import check, evaluate, export, inspect_model, predict, train
from .command_line import INTERRUPTED, OK, PROBLEM, USAGE, UsageError, VersionAction
from .demo import command as demo

_EXTRAS = {"gradio": "demo", "onnx": "export", "onnxruntime": "export", "onnxscript": "export", "yaml": "quickstart"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: the words after `hcal`; those of the process by default.

    Returns:
        0 if all went well, 1 for a problem with data or a model, 130 if interrupted. Wrong usage exits with 2.
    """
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != ["train"]:  # its overrides are the runner's, with underscores
        words = [_hyphened(word) for word in words]
    args = parser.parse_args(words)
    if args.command == "train" and "--json" in args.overrides:  # may stand behind the overrides, too
        args.overrides.remove("--json")
        args.json = True
    try:
        with _quiet_stdout(args):
            result, text, code = args.run(args)
        shown = json.dumps(result, indent=2, ensure_ascii=False) if args.json else text
        if shown:
            print(shown, flush=True)
        return code
    except UsageError as problem:
        args.parser.error(str(problem))  # exits
        return USAGE
    except BrokenPipeError:  # `hcal inspect MODEL | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ValueError, OSError, ImportError, RuntimeError) as problem:
        if args.traceback or (isinstance(problem, RuntimeError) and not _is_ours(problem)):
            raise
        print(f"{args.parser.prog}: {_explained(problem)}", file=sys.stderr)
        return PROBLEM
    except KeyboardInterrupt:
        print(f"{args.parser.prog}: interrupted.", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="hcal",
        description="Hierarchical text classification: train a model, measure it, and use it.",
        epilog="Every command explains itself: hcal predict --help. Exit codes: 0 done, 1 a problem with data or a model "
        "was found and told, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=VersionAction, help="Print the version and exit.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (train, evaluate, predict, inspect_model, check, demo, export):
        module.add_parser(commands)
    return parser


def _hyphened(word: str) -> str:
    """Options may be written as in the recipes, with underscores."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if re.fullmatch("--[a-z0-9_]+", name) else word


@contextmanager
def _quiet_stdout(args: argparse.Namespace) -> Iterator[None]:
    """With --json, what the library prints goes to stderr."""
    if not args.json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def _is_ours(problem: BaseException) -> bool:
    """Whether a RuntimeError was raised by this package, which then says what to do, and not by torch."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("hcal_hf")


def _explained(problem: BaseException) -> str:
    extra = _EXTRAS.get(getattr(problem, "name", None) or "")
    if isinstance(problem, ImportError) and extra:
        return f'{problem}. It comes with an extra: pip install "hcal-hf[{extra}]".'
    return str(problem)


if __name__ == "__main__":
    sys.exit(main())

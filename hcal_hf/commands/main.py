"""The command `hcal`: trains, evaluates, predicts, inspects, checks a taxonomy, shows a demo page and exports.

Each command imports its own modules only when it runs. The package itself still imports transformers, which takes seconds.
Results go to stdout, and everything else goes to stderr.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from . import audit, check, evaluate, export, inspect_model, predict, suggest, train, zero_shot
from .command_line import (
    INTERRUPTED,
    OK,
    PROBLEM,
    USAGE,
    UsageError,
    VersionAction,
    replace_unencodable_output,
    to_json,
)
from .demo import command as demo

_EXTRAS = {
    "rdflib": "skos",
    "gradio": "demo",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "yaml": "quickstart",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: the words after `hcal`. By default those of the process.

    Returns:
        0 on success, 1 for a problem with data or a model, and 130 after an interruption. Wrong usage exits with 2.
    """
    replace_unencodable_output()
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != ["train"]:  # its overrides are names of arguments, with underscores
        words = [_hyphened(word) for word in words]
    args = parser.parse_args(words)
    if args.command == "train" and "--json" in args.overrides:  # the overrides include all words after the file
        args.overrides.remove("--json")
        args.json = True
    try:
        with _quiet_stdout(args):
            result, text, code = args.run(args)
        output = to_json(result) if args.json else text
        if output:
            print(output, flush=True)
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
        print(f"{args.parser.prog}: {_message(problem)}", file=sys.stderr)
        return PROBLEM
    except Exception as problem:
        if args.traceback or not _is_full_disc(problem):
            raise
        print(f"{args.parser.prog}: {_message(problem)}", file=sys.stderr)
        return PROBLEM
    except KeyboardInterrupt:
        print(f"{args.parser.prog}: interrupted.", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="hcal",
        description="Hierarchical text classification: train a model, measure it, and use it.",
        epilog="Each command has its own help: hcal predict --help. Exit codes: 0 success, 1 a problem with data or a "
        "model, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=VersionAction, help="Print the version and exit.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (train, zero_shot, evaluate, predict, suggest, audit, inspect_model, check, demo, export):
        module.add_parser(commands)
    return parser


def _hyphened(word: str) -> str:
    """Replaces underscores in the name of an option, so that options can be written as in the recipes."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if re.fullmatch("--[a-z0-9_]+", name) else word


@contextmanager
def _quiet_stdout(args: argparse.Namespace) -> Iterator[None]:
    """Redirects prints of the library to stderr if --json is set."""
    if not args.json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def _is_ours(problem: BaseException) -> bool:
    """Returns whether a RuntimeError comes from this package, with a message for users, and not from torch."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("hcal_hf")


def _is_full_disc(problem: BaseException) -> bool:
    """Returns whether a disc is full. safetensors raises its own error, which is no OSError."""
    return "No space left on device" in str(problem)


def _message(problem: BaseException) -> str:
    """Returns the message of an error, with the extra to install if a library is missing."""
    extra = _EXTRAS.get(getattr(problem, "name", None) or "")
    if _is_full_disc(problem):
        return f"The disc is full: {problem}. Free some space, or choose another folder, and run the command again."
    if isinstance(problem, ImportError) and extra:
        return f'{problem}. Install the extra: pip install "hcal-hf[{extra}]".'
    return str(problem)


if __name__ == "__main__":
    sys.exit(main())

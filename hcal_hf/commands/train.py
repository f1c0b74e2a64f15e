"""The command `hcal train`."""

import argparse
import difflib
import os
from typing import Any, NoReturn

from .command_line import OK, UsageError, VersionAction, add_command


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "train",
        "Train a model as a configuration file says.",
        run,
        description="Train a model as a YAML file says, evaluate it, save it, and show a few predictions. Anything in the "
        "file can be overridden behind it: hcal train config.yaml --learning_rate 1e-4 --num_train_epochs 10.",
        epilog="On several processes: accelerate launch recipes/train.py config.yaml, with the same overrides.",
    )
    parser.add_argument(
        "--list-arguments", action=_ListArguments, help="List all arguments, their defaults, and exit."
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="The configuration; recipes/ holds examples.")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="--ARGUMENT VALUE", help="What replaces the file's."
    )


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if not args.config.endswith((".yaml", ".yml")):
        raise UsageError(f"the configuration must be a .yaml file, got {args.config!r}: overrides stand behind it.")
    if not os.path.isfile(args.config):
        raise FileNotFoundError(f"There is no configuration {args.config}.")
    from dataclasses import fields

    from ..training.arguments import HcalTrainingArguments
    from .run_arguments import DataArguments, ModelArguments, parse_arguments
    from .training_run import run_training

    known = {f.name for kind in (ModelArguments, DataArguments, HcalTrainingArguments) for f in fields(kind) if f.init}
    for word in args.overrides:
        name = word[2:].split("=")[0].replace("-", "_")
        if word.startswith("--") and name not in known and name.removeprefix("no_") not in known:
            close = ", ".join("--" + match for match in difflib.get_close_matches(name, known, n=3))
            raise UsageError(f"there is no argument {word}. Closest: {close or 'none; --list-arguments lists them'}.")
    return run_training(*parse_arguments([args.config, *args.overrides])), "", OK


class _ListArguments(VersionAction):
    """Prints the help of a run's arguments."""

    def __call__(self, *args: Any) -> NoReturn:
        from .run_arguments import parse_arguments

        parse_arguments(["--help"])
        raise SystemExit(OK)

"""The command `hcal train`."""

import argparse
import difflib
import os
from typing import Any, NoReturn

from .command_line import OK, UsageError, VersionAction, add_command

# Arguments of the scripts of transformers that have other names here.
_ELSEWHERE = {
    "model_name_or_path": "encoder",
    "max_seq_length": "max_length",
    "text_column_name": "text",
    "text_column_names": "text",
    "label_column_name": "labels",
    "train_file": "data_dir",
    "dataset_name": "dataset",
}


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "train",
        "Train a model on a table or a folder, or from a configuration file.",
        run,
        description="Train a model, evaluate it, save it, and print a few predictions. Give a table of texts and labels: "
        "hcal train tickets.csv --text Description --labels area product problem. Or give a YAML file: hcal train "
        "config.yaml. Any argument of a run can follow, and overrides the file: --learning-rate 1e-4 "
        "--num-train-epochs 10.",
        epilog="On several processes: accelerate launch recipes/train.py config.yaml, with the same overrides.",
    )
    parser.add_argument("--list-arguments", action=_ListArguments, help="List all arguments with their defaults.")
    parser.add_argument(
        "config",
        metavar="FILE",
        help="A table (.csv, .xlsx, .jsonl, .parquet, ...), which is split 80/10/10; a folder with tables named train, "
        "validation and test; or a configuration (.yaml; recipes/ holds examples).",
    )
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="--ARGUMENT VALUE",
        help="Arguments of the run; for a table also --time-budget MINUTES (15) and --overwrite.",
    )


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if args.config.startswith("-"):
        raise UsageError(
            f"the first word must be a table or a .yaml file, got {args.config!r}. Write options after it."
        )
    is_table = not args.config.endswith((".yaml", ".yml"))
    if not (os.path.exists if is_table else os.path.isfile)(args.config):
        raise FileNotFoundError(f"There is no {'table or folder' if is_table else 'configuration'} {args.config}.")
    budget, overwrite = _take_table_options(args.overrides) if is_table else (15.0, False)
    from dataclasses import fields

    from ..training.arguments import HcalTrainingArguments
    from .run_arguments import DataArguments, ModelArguments, parse_arguments
    from .training_run import run_training

    argument_names = {"from"} | {
        f.name for kind in (ModelArguments, DataArguments, HcalTrainingArguments) for f in fields(kind) if f.init
    }
    for word in args.overrides:
        name = word[2:].split("=")[0].replace("-", "_")
        if word.startswith("--") and name not in argument_names and name.removeprefix("no_") not in argument_names:
            names = [_ELSEWHERE[name]] if name in _ELSEWHERE else difflib.get_close_matches(name, argument_names, n=3)
            close = ", ".join("--" + match for match in names)
            raise UsageError(f"there is no argument {word}. Closest: {close or 'none; --list-arguments lists them'}.")
    from .progress import quiet_libraries
    from .table_run import train_table
    from .threads import choose_threads

    choose_threads()
    with quiet_libraries():
        if is_table:
            return train_table(args.config, args.overrides, time_budget=budget, overwrite=overwrite), "", OK
        return run_training(*parse_arguments([args.config, *args.overrides])), "", OK


def _take_table_options(overrides: list[str]) -> tuple[float, bool]:
    """Removes the options of a table from the overrides. Returns the time budget in minutes and whether to overwrite."""
    parser = argparse.ArgumentParser(prog="hcal train", add_help=False, allow_abbrev=False)
    parser.add_argument("--time-budget", "--time_budget", type=float, default=15.0)
    parser.add_argument("--overwrite", action="store_true")
    options, overrides[:] = parser.parse_known_args(overrides)
    return options.time_budget, options.overwrite


class _ListArguments(VersionAction):
    """Prints the arguments of a training run and exits."""

    def __call__(self, *args: Any) -> NoReturn:
        from .run_arguments import parse_arguments

        parse_arguments(["--help"])
        raise SystemExit(OK)

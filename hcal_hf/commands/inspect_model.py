"""The command `hcal inspect`."""

import argparse
from typing import Any

from .command_line import OK, add_command, at_least_1


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(commands, "inspect", "Show sizes, settings and hierarchy of a model.", run)
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument("--depth", type=at_least_1, default=2, metavar="N", help="Levels of the tree. Default: 2.")
    parser.add_argument(
        "--max-children",
        type=at_least_1,
        default=10,
        metavar="N",
        help="Maximum number of labels below each label. Default: 10.",
    )
    parser.add_argument(
        "--accept",
        action="store_true",
        help="Accept a config.json or tokenizer that was changed after the model was saved, and store new checksums. MODEL "
        "must be a folder.",
    )


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    from .model_summary import as_text, inspect_model
    from .saved_model import accept_edits

    if args.accept:
        accept_edits(args.model)
    report = inspect_model(args.model, args.depth, args.max_children)
    return report, as_text(report), OK

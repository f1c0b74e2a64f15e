"""The command `hcal suggest`."""

import argparse
from typing import Any

from .command_line import OK, UsageError, add_command, add_text_option, at_least_1

_FORMATS = (".csv", ".jsonl", ".json")


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "suggest",
        "Choose the documents to label next.",
        run,
        description="Choose unlabelled documents that a model is uncertain about and that differ from each other. The "
        "output has empty label columns to fill in, and hcal train OUT --from MODEL reads it.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument("file", metavar="FILE", help="The texts, in any format of hcal predict.")
    parser.add_argument("--number", type=at_least_1, default=50, metavar="N", help="Documents to choose. Default: 50.")
    parser.add_argument(
        "--out",
        required=True,
        metavar="OUT",
        help="The file to write: .csv or .jsonl with empty label columns, or .json with tasks for Label Studio.",
    )
    add_text_option(parser, "those of training, else text", default=[])
    parser.add_argument("--exclude", metavar="FILE", help="A table of texts that are not suggested again.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the draws. Default: 0.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing OUT.")
    parser.add_argument("--cpu", action="store_true", help="Use no accelerator.")


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if not args.out.endswith(_FORMATS):
        raise UsageError(f"--out must end in {', '.join(_FORMATS)}, got {args.out!r}.")
    from .progress import quiet_libraries
    from .suggestion_file import write_suggestions
    from .threads import choose_threads

    choose_threads()
    names = ("text", "exclude", "seed", "overwrite")
    with quiet_libraries():
        report = write_suggestions(
            args.model,
            args.file,
            args.out,
            args.number,
            use_cpu=args.cpu,
            **{name: getattr(args, name) for name in names},
        )
    hint = ""
    if not args.out.endswith(".json"):
        hint = f" Fill in {', '.join(report['label_columns'])}, then: hcal train {args.out} --from {args.model}"
    return report, f"{report['suggested']:,} of {report['texts']:,} texts: {args.out}.{hint}", OK

"""The command `hcal taxonomy apply`."""

import argparse
from typing import Any

from .command_line import OK, UsageError, add_command


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "apply",
        "Change the labels of a trained model and keep what it has learned.",
        run,
        description="Add, remove, rename, move and merge labels of a trained model. It keeps what it has learned "
        "where labels still mean the same. The command reports the labels that must be trained again.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of the model, or its name on the Hub.")
    parser.add_argument(
        "changes",
        metavar="CHANGES",
        help="A table with one change per row, as hcal taxonomy diff --out writes it: the columns action (add, remove, "
        "remove_subtree, rename, move, merge, add_parent, remove_parent), path and new_path.",
    )
    parser.add_argument("--output-dir", metavar="NEW", help="Folder for the changed model.")
    parser.add_argument("--dry-run", action="store_true", help="Only report what would change.")
    parser.add_argument(
        "--reembed",
        action="store_true",
        help="Give renamed and moved labels a new label text, which changes their prototypes.",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Replace a model in the output folder, which may be MODEL itself."
    )


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if (args.output_dir is None) != args.dry_run:
        raise UsageError("give either --output-dir, the folder for the changed model, or --dry-run.")
    from .progress import quiet_libraries
    from .taxonomy_apply_run import apply_changes
    from .threads import choose_threads

    choose_threads()
    with quiet_libraries():
        report = apply_changes(
            args.model, args.changes, args.output_dir, reembed=args.reembed, overwrite=args.overwrite
        )
    text = str(report)
    if args.dry_run:
        text += "\nNothing was written (--dry-run)."
    else:
        text += (
            f"\n\nThe model is in {args.output_dir}. What to do next:\n"
            f"  hcal evaluate {args.output_dir} LABELLED_FILE\n"
            f"  hcal train LABELLED_FILE --from {args.output_dir}"
        )
    return {**report.to_dict(), "model": args.output_dir}, text, OK

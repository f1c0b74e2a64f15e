"""The command `hcal audit`."""

import argparse
from typing import Any

from .command_line import (
    OK,
    UsageError,
    add_command,
    add_identity_option,
    add_text_option,
    at_least_1,
    probability,
)

_FORMATS = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx")


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "audit",
        "Find labels that are missing in a labelled table, or apply decisions about them.",
        run,
        description="Find labels that the rows of a labelled table probably lack. Each row is scored by a model that was "
        "trained on other rows. If every row has one path, rows with an improbable label are written to a second file, "
        "NAME-wrong. With --apply, write the table with the accepted labels.",
    )
    parser.add_argument("data", metavar="DATA", help="The labelled table (.csv, .xlsx, .jsonl, .parquet, ...).")
    parser.add_argument(
        "--out",
        metavar="OUT",
        help="The file of the suspicions: .csv, .tsv, .jsonl, .parquet or .xlsx. With --apply, the corrected table, with "
        "the ending of DATA.",
    )
    parser.add_argument("--page", metavar="FILE.html", help="Also write a page to read and decide on the suspicions.")
    parser.add_argument(
        "--apply",
        metavar="DECISIONS",
        help="A table with the columns row (from 0), path and decision (accept or reject): OUT of this command with a "
        "filled decision column, or the file that its page saves.",
    )
    add_text_option(parser, "those of the model, else text", default=[])
    parser.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="Column of labels, or one column per level. Default: those of the model, else labels.",
    )
    parser.add_argument("--separator", help='Separates the steps of a path in a string. Default: " > ".')
    parser.add_argument("--delimiter", help="Separates several labels in one cell.")
    parser.add_argument(
        "--empty-means-none",
        action="store_true",
        default=None,
        help="An empty cell means that a row has no label. Such rows are audited, too.",
    )
    parser.add_argument(
        "--on-bad-row",
        default="raise",
        choices=("raise", "drop"),
        help="Stop at rows that cannot be read, or leave them out.",
    )
    parser.add_argument("--max-length", type=at_least_1, metavar="N", help="Maximum number of tokens per text.")
    parser.add_argument("--taxonomy", metavar="FILE", help="File of the hierarchy. Default: the paths in DATA.")
    add_identity_option(parser)
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="A saved model, for its encoder, labels and columns. Its head is trained again.",
    )
    parser.add_argument("--encoder", metavar="ENCODER", help="An encoder: its name on the Hub, or its folder.")
    parser.add_argument("--label-mode", choices=("single_path", "multi_path"), help="Default: as the rows need it.")
    parser.add_argument(
        "--partial-paths",
        action="store_true",
        default=None,
        help="Paths may end at inner labels. Default: if any does.",
    )
    parser.add_argument("--folds", type=at_least_1, default=5, metavar="N", help="Number of folds. Default: 5.")
    parser.add_argument(
        "--fine-tune",
        type=at_least_1,
        metavar="EPOCHS",
        help="Train the encoder in each fold for so many epochs, instead of fitting a head to its frozen features.",
    )
    parser.add_argument("--top", type=at_least_1, default=1000, metavar="N", help="Most suspicions. Default: 1000.")
    parser.add_argument(
        "--label-frequency",
        type=probability,
        metavar="SHARE",
        help="The share of the true labels that are there, if it is known, such as 0.9. Default: estimated per label.",
    )
    parser.add_argument(
        "--wrong-quantile",
        type=probability,
        default=0.99,
        metavar="Q",
        help="Rows count as wrong above this quantile of -log P of their label. Default: 0.99.",
    )
    parser.add_argument("--feature-cache", metavar="DIR", help="Folder that caches the features of a frozen encoder.")
    parser.add_argument("--no-texts", action="store_true", help="Leave all texts out of the outputs.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the folds. Default: 0.")
    parser.add_argument("--overwrite", action="store_true", help="Replace existing outputs.")
    parser.add_argument("--cpu", action="store_true", help="Use no accelerator.")


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if args.apply is not None:
        return _apply(args)
    if args.out is None and args.page is None:
        raise UsageError("give --out (a table of suspicions), --page (an HTML page), or both.")
    if args.out is not None and not args.out.endswith(_FORMATS):
        raise UsageError(f"--out must end in {', '.join(_FORMATS)}, got {args.out!r}.")
    if args.page is not None and not args.page.endswith((".html", ".htm")):
        raise UsageError(f"--page must end in .html, got {args.page!r}.")
    if args.model and (args.encoder or args.taxonomy):
        raise UsageError("--model has its encoder and its hierarchy: leave out --encoder and --taxonomy.")
    from .audit_run import AuditArguments, audit_table
    from .progress import quiet_libraries
    from .threads import choose_threads

    choose_threads()
    audit_args = AuditArguments(**{name: getattr(args, name) for name in AuditArguments.__dataclass_fields__})
    with quiet_libraries():
        report = audit_table(audit_args, _tables(args))
    lines = [
        f"{report['documents']:,} rows were audited in {report['folds']} folds: {report['suspicions']:,} suspicions, "
        f"{report['expected_missing']:,.0f} labels are expected to be missing."
    ]
    if report["wrong"] is not None:
        lines.append(f"{report['wrong']:,} rows have a label that looks wrong.")
    lines += [f"Written: {report[name]}" for name in ("out", "wrong_file", "page") if report.get(name)]
    return report, "\n".join(lines), OK


def _apply(args: argparse.Namespace) -> tuple[Any, str, int]:
    if args.out is None:
        raise UsageError("--apply needs --out, the file of the corrected table.")
    from .audit_decisions import apply_decisions
    from .progress import quiet_libraries

    with quiet_libraries():
        report = apply_decisions(_tables(args), args.apply, args.out, model=args.model, overwrite=args.overwrite)
    text = (
        f"{report['accepted']:,} labels were added to {report['changed']:,} of {report['rows']:,} rows, "
        f"{report['rejected']:,} were rejected, "
        f"{report['undecided']:,} are undecided, {report['present']:,} were there already.\n"
        f"Written: {report['out']}"
    )
    return report, text, OK


def _tables(args: argparse.Namespace) -> Any:
    from .run_arguments import DataArguments

    names = ("text", "labels", "separator", "delimiter", "empty_means_none", "on_bad_row", "max_length", "taxonomy")
    given = {name: value for name in (*names, "identity") if (value := getattr(args, name)) not in (None, [])}
    if args.model:
        from .saved_model import load_config

        given = {**(load_config(args.model).table_options or {}), **given}
    return DataArguments(data_dir=args.data, **given)

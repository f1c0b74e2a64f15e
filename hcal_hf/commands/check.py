"""The command `hcal taxonomy check`."""

import argparse
from typing import Any

from . import taxonomy_apply, taxonomy_files
from .command_line import OK, PROBLEM, UsageError, add_command, add_identity_option, add_text_option, at_least_0


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    group = commands.add_parser(
        "taxonomy",
        help="Check, convert and compare hierarchies, and change that of a model.",
        description="Check a hierarchy or labels, convert a hierarchy, compare two of them, or change that of a model.",
    )
    subcommands = group.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    taxonomy_files.add_parsers(subcommands)
    taxonomy_apply.add_parser(subcommands)
    parser = add_command(
        subcommands,
        "check",
        "Find problems of a hierarchy or of the labels of a table, and say how to fix them.",
        run,
        description="Find problems of a hierarchy or of the labels of a table of documents, and say where they are and how "
        "to fix them. Row numbers are those of a spreadsheet. The exit code is 1 for errors and 0 for warnings.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="A taxonomy in any form that hcal taxonomy convert reads, a table with one row per edge (columns parent and "
        "child), or a table with one row per document (.csv, .tsv, .jsonl, .parquet).",
    )
    parser.add_argument(
        "--labels", nargs="+", metavar="COLUMN", help="Column of the labels of documents, or one column per level."
    )
    parser.add_argument("--edges", nargs=2, metavar=("PARENT", "CHILD"), help="The two columns of a table of edges.")
    add_text_option(parser, "text, if it exists; the texts are checked too")
    parser.add_argument("--taxonomy", metavar="FILE", help="Taxonomy that must contain the labels of the documents.")
    parser.add_argument(
        "--separator", default=" > ", help='Separates the steps of a path in a string. Default: " > ".'
    )
    parser.add_argument("--delimiter", help="Separates several labels in one cell.")
    add_identity_option(parser)
    parser.add_argument(
        "--min-documents",
        type=at_least_0,
        default=5,
        metavar="N",
        help="Warn of labels with fewer documents. Use 0 if the rows are paths of a hierarchy. Default: 5.",
    )
    parser.add_argument("--encoding", help="Encoding of text files, such as cp1252. Default: UTF-8, else cp1252.")
    parser.add_argument("--strict", action="store_true", help="Also exit with 1 for warnings.")
    parser.add_argument(
        "--out", "--write", metavar="TAXONOMY.json", help="Write the hierarchy, if there are no errors."
    )


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if args.labels and args.edges:
        raise UsageError("give --labels (a table of documents) or --edges (a table of edges), not both.")
    from ..data.taxonomy_check import check_file

    names = ("labels", "edges", "text", "taxonomy", "separator", "delimiter", "identity", "min_documents", "encoding")
    report = check_file(args.file, **{name: getattr(args, name) for name in names})
    text = str(report)
    if args.out and report.taxonomy is not None and not report.number("error"):
        report.taxonomy.to_json(args.out)
        text += f"\nWritten: {args.out}"
    elif args.out:
        text += f"\nNot written, because of the errors: {args.out}"
    bad = report.number("error") or (args.strict and report.number("warning"))
    return report.to_dict(), text, PROBLEM if bad else OK

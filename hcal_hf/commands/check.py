"""The command `hcal taxonomy check`."""

import argparse
from typing import Any

from .command_line import OK, PROBLEM, UsageError, add_command, at_least_0


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    group = commands.add_parser(
        "taxonomy", help="Check a hierarchy and labels before training.", description="Work on a hierarchy."
    )
    parser = add_command(
        group.add_subparsers(dest="subcommand", metavar="COMMAND", required=True),
        "check",
        "Say what is wrong with a hierarchy or with the labels of a table, where, and how to mend it.",
        run,
        description="Say what is wrong with a hierarchy or with the labels of a table of documents, where, and how to mend "
        "it. Rows are counted as a spreadsheet does. The exit code is 1 if there are errors, 0 if there are only warnings.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="Taxonomy JSON; a table with a row for each edge (columns parent and child); or a table with a row for each "
        "document (.csv, .tsv, .jsonl, .parquet).",
    )
    parser.add_argument(
        "--labels", nargs="+", metavar="COLUMN", help="Column of the documents' labels, or one column a level."
    )
    parser.add_argument("--edges", nargs=2, metavar=("PARENT", "CHILD"), help="The two columns of a table of edges.")
    parser.add_argument(
        "--text", metavar="COLUMN", help="Column of texts, to be checked too. Default: text, if there is one."
    )
    parser.add_argument("--taxonomy", metavar="FILE", help="Taxonomy JSON that the documents' labels must be in.")
    parser.add_argument("--separator", default=" > ", help='Between the steps of a path string. Default: " > ".')
    parser.add_argument("--delimiter", help="Between several labels in one cell.")
    parser.add_argument(
        "--identity",
        default="path",
        choices=("path", "name"),
        help="Whether the same name below two parents is two labels (path, the default) or one (name).",
    )
    parser.add_argument(
        "--min-documents",
        type=at_least_0,
        default=5,
        metavar="N",
        help="Tell labels with fewer documents; 0 if the rows are paths of a hierarchy and no documents. Default: 5.",
    )
    parser.add_argument("--encoding", help="Encoding of text files, such as cp1252. Default: UTF-8, else cp1252.")
    parser.add_argument("--strict", action="store_true", help="Exit with 1 for warnings, too.")
    parser.add_argument("--write", metavar="TAXONOMY.json", help="Write the hierarchy, if there are no errors.")


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if args.labels and args.edges:
        raise UsageError("give --labels (a table of documents) or --edges (a table of edges), not both.")
    from ..data.taxonomy_check import check_file

    names = ("labels", "edges", "text", "taxonomy", "separator", "delimiter", "identity", "min_documents", "encoding")
    report = check_file(args.file, **{name: getattr(args, name) for name in names})
    text = str(report)
    if args.write and report.taxonomy is not None and not report.number("error"):
        report.taxonomy.to_json(args.write)
        text += f"\nWritten: {args.write}"
    elif args.write:
        text += f"\nNot written, because of the errors: {args.write}"
    bad = report.number("error") or (args.strict and report.number("warning"))
    return report.to_dict(), text, PROBLEM if bad else OK

"""The commands `hcal taxonomy convert` and `hcal taxonomy diff`."""

import argparse
from typing import Any

from .command_line import OK, UsageError, add_command, add_identity_option

_TARGETS = ("json", "csv", "paths", "indented", "skos")


def add_parsers(commands: Any) -> None:
    """Adds the parsers of both commands."""
    parser = add_command(
        commands, "convert", "Write a hierarchy in another format.", _convert,
        description="Read a hierarchy in any format, and write it as JSON, as a table of edges, as text or as SKOS.",
    )  # fmt: skip
    parser.add_argument("file", metavar="IN", help="The hierarchy.")
    parser.add_argument("--out", required=True, metavar="OUT", help="The file to write.")
    parser.add_argument(
        "--to",
        choices=_TARGETS,
        help="Format of OUT. Default: by its ending, .json, .csv (edges), .ttl (SKOS) or .txt (one path per line).",
    )
    _add_reading_options(parser)
    parser = add_command(
        commands, "diff", "List what differs between two versions of a hierarchy.", _diff,
        description="List the labels that were added, removed, renamed or moved between two versions of a hierarchy.",
    )  # fmt: skip
    parser.add_argument("old", metavar="OLD", help="The old hierarchy.")
    parser.add_argument("new", metavar="NEW", help="The new hierarchy.")
    parser.add_argument("--out", metavar="DIFF.csv", help="Also write the changes as a table.")
    _add_reading_options(parser)


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("paths", "indented", "parent-children", "codes", "edges", "levels", "nested", "skos"),
        help="Form of the file. Default: detected.",
    )
    parser.add_argument("--separator", help="Separates the steps of a path. Default: detected.")
    add_identity_option(parser)
    parser.add_argument(
        "--label-by",
        default="auto",
        choices=("auto", "name", "id"),
        help="Whether names or ids are the labels. Default: ids for codes, tables of ids and notations, else names.",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="COLUMN",
        help="Columns of a table: one per level, or by role as in parent=parent_id child=id name=title.",
    )
    parser.add_argument(
        "--code-rule",
        metavar="RULE",
        help="How a code contains its parent: a separator, prefix lengths (2,3,4), or a regular expression in which each "
        "group ends one level. Default: a dot, or the levels of ICD-10.",
    )
    parser.add_argument("--language", help="Language of the labels of SKOS. Default: that of most labels.")
    parser.add_argument("--root", help="Name of a virtual root, which is not a label.")
    parser.add_argument("--encoding", help="Encoding of text files, such as cp1252. Default: detected.")


def _reading_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("format", "separator", "identity", "label_by", "code_rule", "language", "root", "encoding")
    options = {name: getattr(args, name) for name in names}
    if args.columns:
        by_role = [word.partition("=")[::2] for word in args.columns if "=" in word]
        if by_role and len(by_role) < len(args.columns):
            raise UsageError(
                f"--columns must be columns of levels, or all of the form role=column; got {args.columns}."
            )
        options["columns"] = dict(by_role) if by_role else args.columns
    return options


def _convert(args: argparse.Namespace) -> tuple[Any, str, int]:
    from pathlib import Path

    from ..data.taxonomy_reader import read_named_taxonomy
    from ..data.taxonomy_writer import ENDINGS, write_taxonomy

    to = args.to or ENDINGS.get(Path(args.out).suffix.lower())
    if to is None:
        raise UsageError(f"--out must end in {', '.join(ENDINGS)}, or give --to; got {args.out!r}.")
    found = read_named_taxonomy(args.file, **_reading_options(args))
    write_taxonomy(found.taxonomy, args.out, to)
    report = {"labels": len(found.taxonomy), "read_as": found.format, "written_as": to, "out": args.out}
    return report, f"{len(found.taxonomy):,} labels written as {to}: {args.out}", OK


def _diff(args: argparse.Namespace) -> tuple[Any, str, int]:
    from ..data.taxonomy_diff import diff_taxonomies
    from ..data.taxonomy_reader import read_taxonomy

    options = _reading_options(args)
    diff = diff_taxonomies(read_taxonomy(args.old, **options), read_taxonomy(args.new, **options))
    text = str(diff)
    if args.out:
        diff.to_csv(args.out)
        text += f"\nWritten: {args.out}"
    return diff.to_dict(), text, OK

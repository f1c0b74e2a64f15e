"""The commands `hcal taxonomy convert` and `hcal taxonomy diff`."""

import argparse
from typing import Any

from .command_line import OK, UsageError, add_command

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
        choices=("paths", "indented", "parent-children", "codes"),
        help="Form of a text file. Default: detected.",
    )
    parser.add_argument("--separator", help="Separates the steps of a path. Default: detected.")
    parser.add_argument(
        "--identity",
        default="path",
        choices=("path", "name"),
        help="Whether a name below two parents is two labels (path, the default) or one label (name).",
    )
    parser.add_argument("--codes-as-labels", action="store_true", help="Use codes that stand before paths as labels.")
    parser.add_argument(
        "--code-rule",
        default=".",
        metavar="RULE",
        help="How a code shows its parent: a separator, prefix lengths (2,3,4), or a regular expression with the parent as "
        "its first group. Default: a dot.",
    )
    parser.add_argument("--language", default="en", help="Language of the labels of SKOS. Default: en.")


def _reading_options(args: argparse.Namespace) -> dict[str, Any]:
    import re

    rule: Any = args.code_rule
    if re.fullmatch(r"\d+(,\d+)*", rule):
        rule = [int(length) for length in rule.split(",")]
    names = ("format", "separator", "identity", "codes_as_labels", "language")
    return {"code_rule": rule, **{name: getattr(args, name) for name in names}}


def _convert(args: argparse.Namespace) -> tuple[Any, str, int]:
    from pathlib import Path

    by_suffix = {".json": "json", ".csv": "csv", ".ttl": "skos", ".txt": "paths"}
    to: Any = args.to or by_suffix.get(Path(args.out).suffix)
    if to is None:
        raise UsageError(f"--out must end in {', '.join(by_suffix)}, or give --to; got {args.out!r}.")
    from ..data.taxonomy_formats import read_named_taxonomy
    from ..data.taxonomy_writer import write_taxonomy

    found = read_named_taxonomy(args.file, **_reading_options(args))
    write_taxonomy(found.taxonomy, args.out, to, found.names)
    report = {"labels": len(found.taxonomy), "read_as": found.format, "written_as": to, "out": args.out}
    return report, f"{len(found.taxonomy):,} labels written as {to}: {args.out}", OK


def _diff(args: argparse.Namespace) -> tuple[Any, str, int]:
    from ..data.taxonomy_diff import diff_taxonomies
    from ..data.taxonomy_formats import read_taxonomy

    options = _reading_options(args)
    diff = diff_taxonomies(read_taxonomy(args.old, **options), read_taxonomy(args.new, **options))
    text = str(diff)
    if args.out:
        diff.to_csv(args.out)
        text += f"\nWritten: {args.out}"
    return diff.to_dict(), text, OK

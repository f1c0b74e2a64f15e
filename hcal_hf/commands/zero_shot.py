"""The command `hcal zero-shot`."""

import argparse
from typing import Any

from .command_line import OK, UsageError, add_command, add_text_option, at_least_1


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "zero-shot",
        "Make a model from a hierarchy alone, without labelled documents.",
        run,
        description="Make a model that compares documents with the names of the labels. No document needs a label. With "
        "--texts, the model is adapted to unlabelled texts, which improves it.",
    )
    parser.add_argument(
        "taxonomy",
        metavar="TAXONOMY",
        help="The hierarchy: a text file with one path per line (A > B > C), taxonomy JSON, or a table with one row per "
        "edge or per path.",
    )
    parser.add_argument("--output-dir", required=True, metavar="MODEL", help="Folder for the model.")
    parser.add_argument("--texts", metavar="FILE", help="A table of unlabelled texts, in any format of hcal predict.")
    add_text_option(parser, "text", default=[])
    parser.add_argument(
        "--encoder",
        metavar="ENCODER",
        help="Name on the Hub or folder. Default: sentence-transformers/all-MiniLM-L6-v2.",
    )
    parser.add_argument(
        "--label-names",
        metavar="FILE",
        help="Names of labels that are codes: two columns, codes and names, or a JSON object.",
    )
    parser.add_argument(
        "--descriptions", metavar="FILE", help="Texts that describe labels, in the same form as the names."
    )
    parser.add_argument(
        "--label-mode",
        choices=("single_path", "multi_path"),
        help="Whether a document has one path or any number. Default: single_path, unless a label has several parents.",
    )
    parser.add_argument("--partial-paths", action="store_true", help="Paths may end at inner labels.")
    parser.add_argument(
        "--expected-labels",
        type=float,
        default=1.5,
        metavar="K",
        help="Mean number of paths of a document, for multi_path. Default: 1.5.",
    )
    parser.add_argument("--max-length", type=at_least_1, metavar="N", help="Maximum number of tokens per text.")
    parser.add_argument(
        "--window-length",
        type=at_least_1,
        metavar="N",
        help="Read longer texts in windows of N tokens. Default with --max-windows: the length in the encoder's files.",
    )
    parser.add_argument("--max-windows", type=at_least_1, metavar="N", help="Maximum number of windows per text.")
    parser.add_argument("--separator", help="Separates the steps of a path. Default: detected.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing model.")


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if args.text and not args.texts:
        raise UsageError("--text names a column of the file that --texts names: give --texts as well.")
    from .progress import quiet_libraries
    from .threads import choose_threads
    from .zero_shot_run import make_zero_shot

    choose_threads()
    names = ("texts", "text", "encoder", "label_names", "descriptions", "label_mode", "partial_paths", "expected_labels",
             "max_length", "window_length", "max_windows", "separator", "overwrite")  # fmt: skip
    with quiet_libraries():
        report = make_zero_shot(args.taxonomy, args.output_dir, **{name: getattr(args, name) for name in names})
    lines = [f"{report['labels']:,} labels, {report['leaves']:,} of them leaves."]
    if report["texts"]:
        lines.append(
            f"Adapted to {report['texts']:,} texts. In the last round, {100 * report['agreement']:.1f} % of them kept "
            "their most similar label."
        )
    folder = args.output_dir
    lines.append(
        f"\nThe model is in {folder}. What to do next:\n"
        f"  hcal predict {folder} FILE --out predictions.csv\n"
        f"  hcal demo {folder}\n"
        f"  hcal train LABELLED_FILE --from {folder}"
    )
    return report, "\n".join(lines), OK

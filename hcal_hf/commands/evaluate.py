"""The command `hcal evaluate`."""

import argparse
import os
from typing import Any

from .command_line import DECODERS, OK, add_command, at_least_1


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "evaluate",
        "Measure a saved model on labelled documents.",
        run,
        description="Measure a saved model on labelled documents. Temperature, thresholds and risk level are fitted on the "
        "validation split first, if asked for.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument(
        "data",
        metavar="DATA",
        help="A folder with train, validation and test files, one file of documents (.jsonl, .csv, .parquet, .arrow), or "
        "the name of a data set on the Hub.",
    )
    parser.add_argument(
        "--split", default="test", choices=("train", "validation", "test"), help="Split to measure on. Default: test."
    )
    parser.add_argument("--text", default="text", metavar="COLUMN", help="Column of texts. Default: text.")
    parser.add_argument(
        "--labels", nargs="+", default=["labels"], metavar="COLUMN", help="Column of labels, or one column a level."
    )
    parser.add_argument("--separator", default=" > ", help='Between the steps of a path string. Default: " > ".')
    parser.add_argument("--delimiter", help="Between several labels in one cell.")
    parser.add_argument("--max-length", type=at_least_1, metavar="N", help="Tokens of a text at most.")
    parser.add_argument(
        "--on-bad-row",
        default="raise",
        choices=("raise", "drop"),
        help="Stop at bad rows, or leave them out and say so.",
    )
    parser.add_argument("--temperature", action="store_true", help="Fit the temperature of the probabilities.")
    parser.add_argument(
        "--tune", choices=("micro_f1", "macro_f1"), help="Tune the labels' thresholds for this metric."
    )
    parser.add_argument(
        "--granularity", choices=("global", "level", "label"), help="Thresholds for all, a level or a label."
    )
    parser.add_argument(
        "--risk",
        type=float,
        metavar="SHARE",
        help="Calibrate the risk decoder to this share of wrong labels, such as 0.1.",
    )
    parser.add_argument("--decode", choices=DECODERS, help="How label sets are decided; the model's way by default.")
    parser.add_argument("--output-dir", metavar="DIR", help="Save the model with what was fitted in this folder.")
    parser.add_argument("--save", action="store_true", help="Save what was fitted in the model's own folder.")
    parser.add_argument(
        "--batch-size", type=at_least_1, default=32, metavar="N", help="Documents a batch. Default: 32."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the two halves of the validation split. Default: 0."
    )
    parser.add_argument("--cpu", action="store_true", help="Use no accelerator.")


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    from .evaluation_run import EvaluationArguments, evaluate_model
    from .run_arguments import TableArguments

    chosen = EvaluationArguments(
        **{name: getattr(args, name) for name in EvaluationArguments.__dataclass_fields__ if hasattr(args, name)},
        use_cpu=args.cpu,
    )
    chosen.json = False  # printed here
    place = "data_dir" if os.path.exists(args.data) else "dataset"
    reading = ("text", "labels", "separator", "delimiter", "max_length", "on_bad_row")
    tables = TableArguments(**{place: args.data}, **{name: getattr(args, name) for name in reading})
    return evaluate_model(args.model, chosen, tables), "", OK

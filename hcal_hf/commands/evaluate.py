"""The command `hcal evaluate`."""

import argparse
import os
from typing import Any

from .command_line import DECODERS, OK, UsageError, add_command, add_text_option, at_least_1


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "evaluate",
        "Measure a saved model on labelled documents, or compare two.",
        run,
        description="Measure a saved model on labelled documents. On request, first fit temperature, thresholds and "
        "risk level on the validation split. Two models are compared on the same documents: the difference of each metric "
        "with its 95 % interval and p by the paired bootstrap, and the documents on which they differ.",
        usage="%(prog)s [options] MODEL [MODEL] DATA",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="Folder of a saved model, or its name on the Hub. Two are compared."
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="A folder with train, validation and test files, one file of documents (.jsonl, .csv, .parquet, .arrow), or "
        "the name of a data set on the Hub.",
    )
    parser.add_argument(
        "--split", default="test", choices=("train", "validation", "test"), help="Split to measure on. Default: test."
    )
    add_text_option(parser, "those of training, else text", default=[])
    parser.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="Column of labels, or one column per level. Default: those of training, else labels.",
    )
    parser.add_argument(
        "--separator", help='Separates the steps of a path in a string. Default: as in training, else " > ".'
    )
    parser.add_argument("--delimiter", help="Separates several labels in one cell. Default: as in training.")
    parser.add_argument(
        "--empty-means-none",
        action="store_true",
        default=None,
        help="An empty cell means that a document has no label, and not that its labels are unknown.",
    )
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="LABEL", help="Labels that exclude a document, such as oos."
    )
    parser.add_argument("--max-length", type=at_least_1, metavar="N", help="Maximum number of tokens per text.")
    parser.add_argument(
        "--on-bad-row",
        default="raise",
        choices=("raise", "drop"),
        help="Stop at rows that cannot be read, or drop and count them.",
    )
    parser.add_argument("--temperature", action="store_true", help="Fit the temperature of the probabilities.")
    parser.add_argument(
        "--tune", choices=("micro_f1", "macro_f1"), help="Tune the thresholds of the labels for this metric."
    )
    parser.add_argument(
        "--granularity",
        choices=("global", "level", "label"),
        help="Tune one threshold for all labels, per level or per label.",
    )
    parser.add_argument(
        "--risk",
        type=float,
        metavar="SHARE",
        help="Calibrate the risk decoder to this share of wrong labels, such as 0.1.",
    )
    parser.add_argument("--decode", choices=DECODERS, help="Decoder of label sets. Default: that of the model.")
    parser.add_argument("--output-dir", metavar="DIR", help="Save the model with the fitted values in this folder.")
    parser.add_argument("--save", action="store_true", help="Save the fitted values in the folder of the model.")
    parser.add_argument(
        "--batch-size", type=at_least_1, default=32, metavar="N", help="Documents per batch. Default: 32."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed for halving the validation split, and for the bootstrap. Default: 0."
    )
    parser.add_argument(
        "--resamples",
        type=at_least_1,
        default=10_000,
        metavar="N",
        help="Bootstrap resamples of the documents for the comparison of two models. Default: 10000.",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="Write a report with plots to this HTML file. Default: report.html in the folder that --output-dir or --save "
        "names, else none.",
    )
    parser.add_argument("--no-report", action="store_true", help="Write no report.")
    parser.add_argument("--no-texts", action="store_true", help="Leave all texts out of the report.")
    parser.add_argument("--cpu", action="store_true", help="Use no accelerator.")


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if len(args.models) > 2:
        raise UsageError(f"compare two models at a time, got {len(args.models)}: {', '.join(args.models)}.")
    from .evaluation_run import EvaluationArguments, evaluate_model
    from .run_arguments import TableArguments

    evaluation_args = EvaluationArguments(
        **{name: getattr(args, name) for name in EvaluationArguments.__dataclass_fields__ if hasattr(args, name)},
        use_cpu=args.cpu,
    )
    evaluation_args.json = False  # the command prints the JSON
    source = "data_dir" if os.path.exists(args.data) else "dataset"
    names = ("text", "labels", "separator", "delimiter", "empty_means_none", "leave_out", "max_length", "on_bad_row")
    tables = TableArguments(**{source: args.data}, **{name: getattr(args, name) for name in names})
    if len(args.models) == 1:
        return evaluate_model(args.models[0], evaluation_args, tables), "", OK
    from .comparison_run import compare_models

    first, second = args.models
    return compare_models(first, second, evaluation_args, tables, args.resamples), "", OK

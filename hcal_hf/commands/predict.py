"""The command `hcal predict`."""

import argparse
from typing import Any

from .command_line import DECODERS, OK, UsageError, add_command, at_least_0, at_least_1, probability


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "predict",
        "Predict the labels of every row of a file.",
        run,
        description="Predict the labels of every row of a file of any size. The output is a Parquet file with the columns "
        "row (from 0), labels, scores, paths and problem (why a row has no prediction, else empty). After an interruption, "
        "the same command resumes.",
        epilog="On several processes: accelerate launch recipes/predict.py MODEL FILE --out OUT.parquet.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument(
        "file",
        metavar="FILE",
        help="The rows: .jsonl, .csv, .tsv, .txt (one text per line), each also .gz, or .parquet.",
    )
    parser.add_argument("--out", required=True, metavar="OUT.parquet", help="The file of the predictions.")
    parser.add_argument("--text-column", default="text", metavar="COLUMN", help="Column of texts. Default: text.")
    parser.add_argument("--id-column", metavar="COLUMN", help="Column of a key that is copied to the output, as id.")
    parser.add_argument("--keep-text", action="store_true", help="Also write the texts.")
    parser.add_argument("--decode", choices=DECODERS, help="Decoder of label sets. Default: that of the model.")
    parser.add_argument("--threshold", type=probability, metavar="P", help="Lowest probability of a predicted label.")
    parser.add_argument(
        "--top-k", type=at_least_1, metavar="K", help="Write the K most probable labels of each level instead."
    )
    parser.add_argument(
        "--max-depth", type=at_least_0, metavar="D", help="Leave out labels below this depth; 0 is the top level."
    )
    parser.add_argument("--max-length", type=at_least_1, metavar="N", help="Maximum number of tokens per text.")
    parser.add_argument(
        "--window",
        type=at_least_1,
        default=4096,
        metavar="N",
        help="Rows that are sorted by length and written together. An interruption loses at most these. Default: 4096.",
    )
    parser.add_argument(
        "--batch-tokens",
        type=at_least_1,
        metavar="N",
        help="Tokens per batch, with padding. Fewer need less memory. Default: 2048 on a CPU, 4096 on a CPU with --bf16, "
        "else 8192.",
    )
    parser.add_argument("--bf16", action="store_true", help="Compute the encoder in bfloat16.")
    parser.add_argument("--encoding", help="Encoding of text files, such as cp1252. Default: UTF-8, else cp1252.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing OUT at the end.")
    parser.add_argument("--restart", action="store_true", help="Delete the finished windows of an interrupted run.")
    parser.add_argument("--cpu", action="store_true", help="Use no accelerator.")
    parser.add_argument("--quiet", action="store_true", help="Show no progress bar.")


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if args.decode and args.top_k:
        raise UsageError(
            "--top-k lists the most probable labels of each level, --decode predicts a label set: give one."
        )
    if not args.out.endswith(".parquet"):
        raise UsageError(f"--out must end in .parquet, got {args.out!r}.")
    from .prediction_file import predict_file
    from .predictor import PredictionArguments

    prediction_args = PredictionArguments(
        **{name: getattr(args, name) for name in PredictionArguments.__dataclass_fields__}
    )
    report = predict_file(
        args.model,
        args.file,
        args.out,
        prediction_args,
        use_cpu=args.cpu,
        overwrite=args.overwrite,
        restart=args.restart,
        progress=not args.quiet,
    )
    if not report:  # this is not the main process
        args.json = False
        return report, "", OK
    lines = [f"{report['predicted']:,} of {report['rows']:,} rows predicted: {report['out']}"]
    if report["resumed_rows"]:
        lines.append(f"{report['resumed_rows']:,} of them were finished by an earlier run.")
    if report["problems"]:
        first = ", ".join(map(str, report["first_problems"]))
        lines.append(
            f"{report['rows'] - report['predicted']:,} rows have a problem and no prediction (rows {first}, ...):"
        )
        lines += [f"  {number:,}: {problem}" for problem, number in list(report["problems"].items())[:10]]
    return report, "\n".join(lines), OK

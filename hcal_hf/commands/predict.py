"""The command `hcal predict`."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from .command_line import (
    DECODERS,
    ENGINES,
    OK,
    UsageError,
    add_command,
    add_text_option,
    at_least_0,
    at_least_1,
    probability,
)


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "predict",
        "Predict the labels of every row of a file.",
        run,
        description="Predict the labels of every row of a file of any size, of one text, or of the lines of standard input "
        "(FILE is -). The output has the columns row (from 0), labels, scores, paths and problem (why a row has no "
        "prediction, else empty), and for other formats than Parquet the confidence. After an interruption, the same "
        "command resumes.",
        epilog="On several processes: accelerate launch recipes/predict.py MODEL FILE --out OUT.parquet.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument(
        "file",
        metavar="FILE",
        help="The rows: .csv, .tsv, .jsonl, .txt (one text per line), each also .gz, .xlsx, .parquet or .arrow; or a "
        "text of several words; or - for standard input.",
    )
    parser.add_argument(
        "--out",
        metavar="OUT",
        help="The file of the predictions: .parquet, .csv, .tsv, .jsonl or .xlsx.",
    )
    add_text_option(parser, "those of training, else text", "--text-column", dest="text_column")
    parser.add_argument(
        "--level-columns", action="store_true", help="Also write one column per level: level_1, level_2, ..."
    )
    parser.add_argument(
        "--review",
        type=probability,
        metavar="P",
        help="Write rows with a confidence below this to a second file, OUT-review, and mark them as unsure.",
    )
    parser.add_argument("--id-column", metavar="COLUMN", help="Column of a key that is copied to the output, as id.")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="Also write the three words that raise the probability of the label most. Takes a forward pass per word.",
    )
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
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="torch",
        help="Library that computes the encoder: torch, onnx (onnxruntime, equal results) or int8 (onnxruntime, weights of "
        '8 bits, slightly different results). The latter two need: pip install "hcal-hf[export]". Default: torch.',
    )
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
    from .prediction_formats import FORMATS
    from .predictor import PredictionArguments

    if args.file == "-" or (" " in args.file and not os.path.exists(args.file)):
        return _predict_texts(args)
    if not args.out:
        raise UsageError("give --out, the file of the predictions, such as --out predictions.csv.")
    if Path(args.out).suffix not in FORMATS:
        raise UsageError(f"--out must end in {', '.join(FORMATS)}, got {args.out!r}.")

    prediction_args = PredictionArguments(
        **{name: getattr(args, name) for name in PredictionArguments.__dataclass_fields__}
    )
    report = _predict_file(args, prediction_args)
    if not report:  # this is not the main process
        args.json = False
        return report, "", OK
    lines = [f"{report['predicted']:,} of {report['rows']:,} rows predicted: {report['out']}"]
    if report["resumed_rows"]:
        lines.append(f"{report['resumed_rows']:,} of them were finished by an earlier run.")
    if report["truncated"]:
        lines.append(
            f"{report['truncated']:,} texts have more than {report['max_length']:,} tokens: their end was not read."
        )
    if report["problems"]:
        first = ", ".join(map(str, report["first_problems"]))
        lines.append(
            f"{report['rows'] - report['predicted']:,} rows have a problem and no prediction (rows {first}, ...):"
        )
        lines += [f"  {number:,}: {problem}" for problem, number in list(report["problems"].items())[:10]]
    if "review_file" in report:
        lines.append(f"{report['review_rows']:,} rows need a review: {report['review_file']}")
    return report, "\n".join(lines), OK


def _predict_file(args: argparse.Namespace, prediction_args: Any) -> dict[str, Any]:
    """Predicts a file, and converts the predictions if another format than plain Parquet is wanted."""
    from .prediction_file import predict_file
    from .prediction_formats import convert_predictions
    from .saved_model import load_config

    out = Path(args.out)
    needs_conversion = out.suffix != ".parquet" or args.level_columns or args.review is not None
    if needs_conversion and out.exists() and not args.overwrite:
        raise FileExistsError(f"{out} exists already: remove it, or give --overwrite.")
    parquet = out.with_name(f".{out.name}.parquet") if needs_conversion else out
    report = predict_file(
        args.model,
        args.file,
        parquet,
        prediction_args,
        use_cpu=args.cpu,
        overwrite=args.overwrite or needs_conversion,
        restart=args.restart,
        progress=not args.quiet,
    )
    if report and needs_conversion:
        levels = len(load_config(args.model).to_taxonomy().levels) if args.level_columns else 0
        report |= convert_predictions(parquet, out, num_levels=levels, review=args.review)
        parquet.unlink()
    return report


def _predict_texts(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Predicts one text, or the lines of standard input."""
    from .prediction_formats import confidence, end_paths
    from .predictor import PredictionArguments, Predictor
    from .saved_model import load_model

    texts = [line.rstrip("\n") for line in sys.stdin] if args.file == "-" else [args.file]
    names = ("decode", "threshold", "top_k", "max_depth", "max_length", "engine")
    model, tokenizer = load_model(args.model)
    predictor = Predictor(model, tokenizer, PredictionArguments(**{name: getattr(args, name) for name in names}))
    predictions = predictor.predict(texts)
    rows = (predictor.explain(predictions, texts) if args.explain else predictions).to_pylist()
    lines = []
    for row in rows:
        paths = "; ".join(" > ".join(path) for path in end_paths(row["paths"]))
        row["confidence"] = round(confidence(row["paths"], row["scores"]), 6)
        lines.append(
            f"{paths or '(nothing)'} ({row['confidence']:.2f})"
            + (f", because of {row['explanation']}" if row.get("explanation") else "")
            if not row["problem"]
            else f"({row['problem']})"
        )
    return rows, "\n".join(lines), OK

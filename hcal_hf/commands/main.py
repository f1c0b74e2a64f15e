"""The command `hcal`: train, evaluate, predict, inspect, check a taxonomy, a demo page, export.

What takes seconds to import (torch, transformers) is imported by the command that needs it, so that help and usage errors
come at once. Results go to stdout, everything else to stderr.
"""

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn

# 0: done. 1: a problem with data or a model was found and told. 2: wrong usage. 130: interrupted.
OK, PROBLEM, USAGE, INTERRUPTED = 0, 1, 2, 130

_EXTRAS = {"gradio": "demo", "onnx": "export", "onnxruntime": "export", "onnxscript": "export", "yaml": "quickstart"}
_DECODERS = ("raw", "closure", "prune", "path", "top_down", "expected_f1", "risk")


class UsageError(Exception):
    """A command line that cannot be run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: the words after `hcal`; those of the process by default.

    Returns:
        0 if all went well, 1 for a problem with data or a model, 130 if interrupted. Wrong usage exits with 2.
    """
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != ["train"]:  # its overrides are the runner's, with underscores
        words = [_hyphened(word) for word in words]
    args = parser.parse_args(words)
    if args.command == "train" and "--json" in args.overrides:  # may stand behind the overrides, too
        args.overrides.remove("--json")
        args.json = True
    try:
        with _quiet_stdout(args):
            result, text, code = args.run(args)
        shown = json.dumps(result, indent=2, ensure_ascii=False) if args.json else text
        if shown:
            print(shown, flush=True)
        return code
    except UsageError as problem:
        args.parser.error(str(problem))  # exits
        return USAGE
    except BrokenPipeError:  # `hcal inspect MODEL | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ValueError, OSError, ImportError, RuntimeError) as problem:
        if args.traceback or (isinstance(problem, RuntimeError) and not _is_ours(problem)):
            raise
        print(f"{args.parser.prog}: {_explained(problem)}", file=sys.stderr)
        return PROBLEM
    except KeyboardInterrupt:
        print(f"{args.parser.prog}: interrupted.", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="hcal",
        description="Hierarchical text classification: train a model, measure it, and use it.",
        epilog="Every command explains itself: hcal predict --help. Exit codes: 0 done, 1 a problem with data or a model "
        "was found and told, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="Print the version and exit.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_train, _add_evaluate, _add_predict, _add_inspect, _add_taxonomy, _add_demo, _add_export):
        add(commands)
    return parser


def _command(commands: Any, name: str, help_: str, run: Callable, **kwargs: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help_, description=kwargs.pop("description", help_), allow_abbrev=False, **kwargs
    )
    parser.add_argument("--json", action="store_true", help="Print the result as one JSON object on stdout.")
    parser.add_argument("--traceback", action="store_true", help="Show where in the code a problem arose.")
    parser.set_defaults(run=run, parser=parser)
    return parser


# ---- train ----


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        "Train a model as a configuration file says.",
        _train,
        description="Train a model as a YAML file says, evaluate it, save it, and show a few predictions. Anything in the "
        "file can be overridden behind it: hcal train config.yaml --learning_rate 1e-4 --num_train_epochs 10.",
        epilog="On several processes: accelerate launch recipes/train.py config.yaml, with the same overrides.",
    )
    parser.add_argument(
        "--list-arguments", action=_ListArguments, help="List all arguments, their defaults, and exit."
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="The configuration; recipes/ holds examples.")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="--ARGUMENT VALUE", help="What replaces the file's."
    )


def _train(args: argparse.Namespace) -> tuple[Any, str, int]:
    if not args.config.endswith((".yaml", ".yml")):
        raise UsageError(f"the configuration must be a .yaml file, got {args.config!r}: overrides stand behind it.")
    if not os.path.isfile(args.config):
        raise FileNotFoundError(f"There is no configuration {args.config}.")
    from dataclasses import fields

    from ..training.arguments import HcalTrainingArguments
    from .train import DataArguments, ModelArguments, parse_arguments, run_training

    known = {f.name for kind in (ModelArguments, DataArguments, HcalTrainingArguments) for f in fields(kind) if f.init}
    for word in args.overrides:
        name = word[2:].split("=")[0].replace("-", "_")
        if word.startswith("--") and name not in known and name.removeprefix("no_") not in known:
            close = ", ".join("--" + match for match in difflib.get_close_matches(name, known, n=3))
            raise UsageError(f"there is no argument {word}. Closest: {close or 'none; --list-arguments lists them'}.")
    return run_training(*parse_arguments([args.config, *args.overrides])), "", OK


# ---- evaluate ----


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        "Measure a saved model on labelled documents.",
        _evaluate,
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
    parser.add_argument("--max-length", type=_at_least_1, metavar="N", help="Tokens of a text at most.")
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
    parser.add_argument("--decode", choices=_DECODERS, help="How label sets are decided; the model's way by default.")
    parser.add_argument("--output-dir", metavar="DIR", help="Save the model with what was fitted in this folder.")
    parser.add_argument("--save", action="store_true", help="Save what was fitted in the model's own folder.")
    parser.add_argument(
        "--batch-size", type=_at_least_1, default=32, metavar="N", help="Documents a batch. Default: 32."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the two halves of the validation split. Default: 0."
    )
    parser.add_argument("--cpu", action="store_true", help="Use no accelerator.")


def _evaluate(args: argparse.Namespace) -> tuple[Any, str, int]:
    from .evaluate import EvaluationArguments, evaluate_model
    from .train import TableArguments

    chosen = EvaluationArguments(
        **{name: getattr(args, name) for name in EvaluationArguments.__dataclass_fields__ if hasattr(args, name)},
        use_cpu=args.cpu,
    )
    chosen.json = False  # printed here
    place = "data_dir" if os.path.exists(args.data) else "dataset"
    reading = ("text", "labels", "separator", "delimiter", "max_length", "on_bad_row")
    tables = TableArguments(**{place: args.data}, **{name: getattr(args, name) for name in reading})
    return evaluate_model(args.model, chosen, tables), "", OK


# ---- predict ----


def _add_predict(commands: Any) -> None:
    parser = _command(
        commands,
        "predict",
        "Predict the labels of every row of a file.",
        _predict,
        description="Predict the labels of every row of a file of any size, into a Parquet file with the columns row (from "
        "0), labels, scores, paths and problem (why a row has no answer; empty for all others). The same command after an "
        "interruption goes on where it was.",
        epilog="On several processes: accelerate launch recipes/predict.py MODEL FILE --out OUT.parquet.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument(
        "file",
        metavar="FILE",
        help="The rows: .jsonl, .csv, .tsv, .txt (one text a line), each also .gz, or .parquet.",
    )
    parser.add_argument("--out", required=True, metavar="OUT.parquet", help="Where the predictions go.")
    parser.add_argument("--text-column", default="text", metavar="COLUMN", help="Column of texts. Default: text.")
    parser.add_argument("--id-column", metavar="COLUMN", help="Column of a key that is written along, as id.")
    parser.add_argument("--keep-text", action="store_true", help="Write the texts along.")
    parser.add_argument("--decode", choices=_DECODERS, help="How label sets are decided; the model's way by default.")
    parser.add_argument("--threshold", type=_probability, metavar="P", help="Lowest probability of a predicted label.")
    parser.add_argument("--top-k", type=_at_least_1, metavar="K", help="List the K best labels of each level instead.")
    parser.add_argument(
        "--max-depth", type=_at_least_0, metavar="D", help="Leave out labels deeper than this; 0 is the top level."
    )
    parser.add_argument("--max-length", type=_at_least_1, metavar="N", help="Tokens of a text at most.")
    parser.add_argument(
        "--window",
        type=_at_least_1,
        default=4096,
        metavar="N",
        help="Rows that are sorted by length and finished together; an interruption costs at most these. Default: 4096.",
    )
    parser.add_argument(
        "--batch-tokens",
        type=_at_least_1,
        metavar="N",
        help="Tokens of a batch, padding included; fewer need less memory. Default: 2048 on a CPU, 4096 there with --bf16, "
        "else 8192.",
    )
    parser.add_argument("--bf16", action="store_true", help="Compute the encoder in bfloat16.")
    parser.add_argument("--encoding", help="Encoding of text files, such as cp1252. Default: UTF-8, else cp1252.")
    parser.add_argument("--overwrite", action="store_true", help="Replace OUT, when all is done, where it exists.")
    parser.add_argument("--restart", action="store_true", help="Throw away what an interrupted run had finished.")
    parser.add_argument("--cpu", action="store_true", help="Use no accelerator.")
    parser.add_argument("--quiet", action="store_true", help="Show no progress bar.")


def _predict(args: argparse.Namespace) -> tuple[Any, str, int]:
    if args.decode and args.top_k:
        raise UsageError("--top-k lists the most probable labels of each level, --decode decides on a set: give one.")
    if not args.out.endswith(".parquet"):
        raise UsageError(f"--out must end in .parquet, got {args.out!r}.")
    from .predict import PredictionArguments, predict_file

    chosen = PredictionArguments(**{name: getattr(args, name) for name in PredictionArguments.__dataclass_fields__})
    report = predict_file(
        args.model,
        args.file,
        args.out,
        chosen,
        use_cpu=args.cpu,
        overwrite=args.overwrite,
        restart=args.restart,
        progress=not args.quiet,
    )
    if not report:  # one of several processes, and not the main one
        args.json = False
        return report, "", OK
    lines = [f"{report['predicted']:,} of {report['rows']:,} rows predicted: {report['out']}"]
    if report["resumed_rows"]:
        lines.append(f"{report['resumed_rows']:,} of them had been finished by an earlier run.")
    if report["problems"]:
        first = ", ".join(map(str, report["first_problems"]))
        lines.append(
            f"{report['rows'] - report['predicted']:,} rows have an empty answer and a problem (rows {first}, ...):"
        )
        lines += [f"  {number:,}: {problem}" for problem, number in list(report["problems"].items())[:10]]
    return report, "\n".join(lines), OK


# ---- inspect ----


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", "Show a model's sizes, settings and hierarchy.", _inspect)
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument("--depth", type=_at_least_1, default=2, metavar="N", help="Levels of the tree. Default: 2.")
    parser.add_argument(
        "--max-children",
        type=_at_least_1,
        default=10,
        metavar="N",
        help="Labels listed below each label. Default: 10.",
    )


def _inspect(args: argparse.Namespace) -> tuple[Any, str, int]:
    from .inspect_model import as_text, inspect_model

    report = inspect_model(args.model, args.depth, args.max_children)
    return report, as_text(report), OK


# ---- taxonomy check ----


def _add_taxonomy(commands: Any) -> None:
    group = commands.add_parser(
        "taxonomy", help="Check a hierarchy and labels before training.", description="Work on a hierarchy."
    )
    parser = _command(
        group.add_subparsers(dest="subcommand", metavar="COMMAND", required=True),
        "check",
        "Say what is wrong with a hierarchy or with the labels of a table, where, and how to mend it.",
        _check,
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
        type=_at_least_0,
        default=5,
        metavar="N",
        help="Tell labels with fewer documents; 0 if the rows are paths of a hierarchy and no documents. Default: 5.",
    )
    parser.add_argument("--encoding", help="Encoding of text files, such as cp1252. Default: UTF-8, else cp1252.")
    parser.add_argument("--strict", action="store_true", help="Exit with 1 for warnings, too.")
    parser.add_argument("--write", metavar="TAXONOMY.json", help="Write the hierarchy, if there are no errors.")


def _check(args: argparse.Namespace) -> tuple[Any, str, int]:
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


# ---- demo and export ----


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "Try a model in a web page.",
        _demo,
        description="Try a model in a web page on this machine, or write the page as a Space for the Hub.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on. Default: 127.0.0.1, this machine only."
    )
    parser.add_argument("--port", type=int, help="Port to listen on; by default the first free one from 7860.")
    parser.add_argument("--share", action="store_true", help="Also make a public link, through gradio's servers.")
    parser.add_argument(
        "--export", metavar="DIR", help="Write the page as a Space into this folder, and show nothing."
    )
    parser.add_argument("--examples", metavar="FILE", help="Texts to offer on the page, one a line, UTF-8.")


def _demo(args: argparse.Namespace) -> tuple[Any, str, int]:
    from .demo.page import export_space, launch

    examples = None
    if args.examples:
        with open(args.examples, encoding="utf-8") as file:
            examples = [line.strip() for line in file if line.strip()]
    if args.export:
        export_space(args.model, args.export, examples)
        push = f"hf upload USER/SPACE {args.export} --repo-type space"
        return {"directory": args.export}, f"Written to {args.export}. To push it: {push}", OK
    launch(args.model, host=args.host, port=args.port, share=args.share, examples=examples)
    return {}, "", OK


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", "Write a model as ONNX.", _export)
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument("directory", metavar="DIR", help="Folder for the ONNX files.")
    parser.add_argument(
        "--quantize", action="store_true", help="Also write the model with its encoder's weights as int8."
    )


def _export(args: argparse.Namespace) -> tuple[Any, str, int]:
    from .export import export_onnx

    report = export_onnx(args.model, args.directory, quantize=args.quantize)
    lines = [f"{size:>14,} bytes  {name}" for name, size in report["files"].items()]
    largest = f"Largest difference of a probability from torch: {report['max_difference']:.1e}"
    if "int8_max_difference" in report:
        largest += f" (int8: {report['int8_max_difference']:.1e})"
    return report, "\n".join([f"Written to {args.directory}:", *lines, largest]), OK


# ---- Details ----


class _Version(argparse.Action):
    """Prints the installed version without importing the package's modules."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, *args: Any) -> NoReturn:
        from importlib.metadata import version

        print(version("hcal-hf"))
        raise SystemExit(OK)


class _ListArguments(_Version):
    """Prints the help of a run's arguments."""

    def __call__(self, *args: Any) -> NoReturn:
        from .train import parse_arguments

        parse_arguments(["--help"])
        raise SystemExit(OK)


def _at_least_1(text: str) -> int:
    return _whole(text, 1)


def _at_least_0(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch("[0-9]+", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return int(text)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a probability from 0 to 1, got {text!r}")
    return value


def _hyphened(word: str) -> str:
    """Options may be written as in the recipes, with underscores."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if re.fullmatch("--[a-z0-9_]+", name) else word


@contextmanager
def _quiet_stdout(args: argparse.Namespace) -> Iterator[None]:
    """With --json, what the library prints goes to stderr."""
    if not args.json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def _is_ours(problem: BaseException) -> bool:
    """Whether a RuntimeError was raised by this package, which then says what to do, and not by torch."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("hcal_hf")


def _explained(problem: BaseException) -> str:
    extra = _EXTRAS.get(getattr(problem, "name", None) or "")
    if isinstance(problem, ImportError) and extra:
        return f'{problem}. It comes with an extra: pip install "hcal-hf[{extra}]".'
    return str(problem)


if __name__ == "__main__":
    sys.exit(main())

"""The command `hcal export`."""

import argparse
from typing import Any

from .command_line import OK, UsageError, add_command


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(commands, "export", "Write a model as ONNX.", run)
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument("directory", nargs="?", metavar="DIR", help="Folder for the ONNX files.")
    parser.add_argument("--output-dir", dest="directory_option", metavar="DIR", help="The same as DIR.")
    parser.add_argument("--quantize", action="store_true", help="Also write the model with encoder weights as int8.")


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    folders = [folder for folder in (args.directory, args.directory_option) if folder]
    if len(folders) != 1:
        raise UsageError("give one folder for the ONNX files: hcal export MODEL --output-dir DIR.")
    from .onnx_export import export_onnx

    args.directory = folders[0]
    report = export_onnx(args.model, args.directory, quantize=args.quantize)
    lines = [f"{size:>14,} bytes  {name}" for name, size in report["files"].items()]
    largest = f"Largest difference of a probability from torch: {report['max_difference']:.1e}"
    if "int8_max_difference" in report:
        largest += f" (int8: {report['int8_max_difference']:.1e})"
    return report, "\n".join([f"Written to {args.directory}:", *lines, largest]), OK

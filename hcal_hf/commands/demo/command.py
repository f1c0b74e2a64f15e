"""The command `hcal demo`."""

import argparse
from typing import Any

from ..command_line import OK, UsageError, add_command


def add_parser(commands: Any) -> None:
    """Adds the parser of the command."""
    parser = add_command(
        commands,
        "demo",
        "Try a model in a web page.",
        run,
        description="Try a model in a web page on this machine, or write the page as a Space for the Hub. With "
        "--suggestions, the page has a tab to label the texts that hcal suggest has chosen.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of a saved model, or its name on the Hub.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on. Default: 127.0.0.1, this machine only."
    )
    parser.add_argument("--port", type=int, help="Port to listen on. Default: the first free port from 7860.")
    parser.add_argument(
        "--share", action="store_true", help="Also create a public link through the servers of gradio."
    )
    parser.add_argument(
        "--export", metavar="DIR", help="Write the page as a Space into this folder, and do not show it."
    )
    parser.add_argument("--examples", metavar="FILE", help="Example texts for the page, one per line, UTF-8.")
    parser.add_argument(
        "--suggestions", metavar="FILE", help="A table of hcal suggest. The page has a tab to label its texts."
    )
    parser.add_argument(
        "--labelled",
        metavar="FILE",
        help="The file of JSON lines for these labels, which hcal train FILE --from MODEL reads. Labels that it holds "
        "already are kept. Default: to_label.labelled.jsonl for to_label.csv.",
    )


def run(args: argparse.Namespace) -> tuple[Any, str, int]:
    """Runs the command. Returns its result, its text and the exit code."""
    if args.labelled and not args.suggestions:
        raise UsageError("--labelled needs --suggestions: give the table of hcal suggest whose texts are labelled.")
    if args.suggestions and args.export:
        raise UsageError("--export writes a page without labelling: leave out --suggestions.")
    if args.suggestions and args.share:
        raise UsageError(
            "--share cannot be combined with --suggestions, because anybody with the link could read the texts and label "
            "them. With --host 0.0.0.0, other machines of your network can use the page."
        )
    from .page import export_space, launch

    examples = None
    if args.examples:
        with open(args.examples, encoding="utf-8") as file:
            examples = [line.strip() for line in file if line.strip()]
    if args.export:
        export_space(args.model, args.export, examples)
        push = f"hf upload USER/SPACE {args.export} --repo-type space"
        return {"directory": args.export}, f"Written to {args.export}. To push it: {push}", OK
    launch(
        args.model,
        host=args.host,
        port=args.port,
        share=args.share,
        examples=examples,
        suggestions=args.suggestions,
        labelled=args.labelled,
    )
    return {}, "", OK

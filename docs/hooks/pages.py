"""Hooks of the manual: pages that come from elsewhere in the repository, and links to files outside the manual."""

import argparse
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]

# The folder of the benchmark pages. They appear in the manual under benchmarks/.
BENCHMARK_PAGES = "recipes/benchmarks/pages"
# Page of the manual -> its file in the repository, for pages that live outside docs/.
OUTSIDE_PAGES = {
    f"benchmarks/{name}.md": f"{BENCHMARK_PAGES}/{name}.md"
    for name in ("results", "heads", "audit", "decisions", "weighting", "speed", "gpu", "export")
}
COMMANDS_MARK = "<!-- every command and its options -->"

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that live outside docs/."""
    for page, source in OUTSIDE_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Adapts the links of a page, and fills in the reference of the command line."""
    path = page.file.src_uri
    markdown = site_links(markdown, path)
    return markdown.replace(COMMANDS_MARK, command_reference()) if COMMANDS_MARK in markdown else markdown


def site_links(markdown: str, page: str) -> str:
    """Adapts relative links, which are written for a reader of the repository, to the site.

    A link to a page of the manual is kept, also if its file lives elsewhere in the repository. A link to any other file
    becomes the path of this file, because the site does not contain it.

    Args:
        markdown: the text of the page.
        page: the path of the page in the site, such as `how-to/hub.md`.
    """
    source_folder = posixpath.dirname(OUTSIDE_PAGES.get(page, f"docs/{page}"))
    pages = {source: page for page, source in OUTSIDE_PAGES.items()}

    def replaced(match: re.Match) -> str:
        mark, text, link = match.groups()
        target, _, anchor = link.partition("#")
        if not target or re.match(r"[a-z]+:", link):
            return match[0]
        repository_path = posixpath.normpath(posixpath.join(source_folder, target))
        site_path = pages.get(repository_path)
        if repository_path.startswith("docs/"):
            site_path = repository_path.removeprefix("docs/")
        elif repository_path == "recipes/benchmarks/README.md":
            site_path = "benchmarks/index.md"
        if site_path:
            relative = posixpath.relpath(site_path, posixpath.dirname(page) or ".")
            return f"{mark}[{text}]({relative}{'#' + anchor if anchor else ''})"
        name = f"`{repository_path}`"
        return (
            name if text.strip("`") in (repository_path, posixpath.basename(repository_path)) else f"{text} ({name})"
        )

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)  # code blocks have odd indices
    return "".join(part if i % 2 else _LINK.sub(replaced, part) for i, part in enumerate(parts))


def command_reference() -> str:
    """Describes each command of `hcal` from its parser: usage, arguments, options and their help."""
    os.environ["COLUMNS"] = "80"  # the width of the usage lines
    from hcal_hf.commands.main import build_parser

    sections = []
    for parser in command_parsers(build_parser()):
        usage = re.sub(r"\x1b\[[0-9;]*m", "", parser.format_usage()).removeprefix("usage: ").rstrip()
        lines = [f"## {parser.prog}", "", parser.description or "", "", "```text", usage, "```", ""]
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| {_argument_name(action)} | {_cell(action.help or '')} |" for action in command_arguments(parser)]
        sections.append("\n".join([*lines, "", parser.epilog or ""]))
    return "\n\n".join(sections)


def command_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields the parsers of all commands that can be run, in the order of the help."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for child in group.choices.values():
            yield from command_parsers(child)


def command_arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Returns the arguments of a command, `--help` last."""
    return sorted(parser._actions, key=lambda action: "--help" in action.option_strings)


def _argument_name(action: argparse.Action) -> str:
    values: Any = action.metavar or action.dest.upper()
    if action.choices:
        values = "{" + ", ".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return f"`{_cell(values)}`"
    if action.nargs == 0:
        values = ""
    elif isinstance(values, tuple):
        values = " ".join(values)
    elif action.nargs == "+":
        values = f"{values} ..."
    return f"`{_cell(' '.join([', '.join(action.option_strings), values]).strip())}`"


def _cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|")

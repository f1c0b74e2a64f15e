"""Writes pages/reliability.md from the counts of a run of the reliability tests.

    make reliability                                                     # runs the tests, then this script
    python recipes/benchmarks/reliability.py outputs/reliability.jsonl   # stores the counts of a run as rows
    python recipes/benchmarks/reliability.py --tables

The tests write a row per kind of cases ([`tests/reliability/counted.py`]). Each run replaces the rows of its kinds in
rows/reliability.jsonl.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from result_rows import ROWS, read_lines
from tables import PAGES, markdown, write_page

RESULTS = ROWS / "reliability.jsonl"
PAGE = PAGES / "reliability.md"
FUZZED = ("taxonomy", "tables", "label cells", "damaged files", "decoders", "metrics")
# Facts of a row for the last column, with their words.
FACTS = {
    "growth_mb": "{} MB of growth",
    "resumed_from_a_checkpoint": "{} had a checkpoint",
    "partial_checkpoints": "{} left a partial checkpoint",
    "partial_newest": "{} of them the newest",
    "jobs": "{} jobs",
}


def join(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds up the rows of equal kind and unit, in the order of their first appearance."""
    joined: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        whole = joined.setdefault((row["kind"], row["unit"]), {**row, "cases": 0, "seconds": 0.0, "cpu_seconds": 0.0})
        for name in ("cases", "seconds", "cpu_seconds"):
            whole[name] = round(whole[name] + row[name], 1)
        whole["passed"] = whole["passed"] and row["passed"]
    return list(joined.values())


def store(run: Path, results: Path) -> None:
    """Replaces the stored rows of the kinds that a run has measured.

    Raises:
        ValueError: if a test of the run has failed.
    """
    rows = join(read_lines(run))
    if failed := [row["kind"] for row in rows if not row["passed"]]:
        raise ValueError(f"{run} has failed tests, of which no counts are published: {', '.join(failed)}.")
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers")}}
    measured = {row["kind"] for row in rows}
    kept = [row for row in read_lines(results) if row["kind"] not in measured] if results.exists() else []
    lines = [*kept, *({**row, "versions": versions} for row in rows)]
    results.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Formats the counts as Markdown: fuzzed cases, and the others."""

    def cells(row: dict[str, Any]) -> list[str]:
        facts = [words.format(row[name]) for name, words in FACTS.items() if name in row]
        if "kills_by_weighter" in row:
            facts.append(f"{len(row['kills_by_weighter'])} weighters")
        time = f"{row['cpu_seconds']:,.0f}" if row["cpu_seconds"] >= row["seconds"] / 20 else "in other processes"
        return [row["kind"], row["unit"], f"{row['cases']:,}", "0", ", ".join(facts), time]

    columns = ("kind", "one case", "cases", "differences or errors", "also counted", "CPU seconds")
    fuzzed = [row for row in rows if row["kind"] in FUZZED]
    others = [row for row in rows if row["kind"] not in FUZZED]
    total = [
        "all",
        "",
        f"{sum(row['cases'] for row in fuzzed):,}",
        "0",
        "",
        f"{sum(r['cpu_seconds'] for r in fuzzed):,.0f}",
    ]
    return {
        "fuzzed": "\n".join(markdown(columns, [*map(cells, fuzzed), total])),
        "others": "\n".join(markdown(columns, map(cells, others))),
    }


def main() -> None:
    """Stores the counts of a run and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="file of rows that the tests have written")
    parser.add_argument("--tables", action="store_true", help="only write the page from the stored rows")
    args = parser.parse_args()
    if not args.tables:
        if args.run is None:
            parser.error("give the file of a run, or --tables")
        store(args.run, RESULTS)
    write_page(PAGE, tables(read_lines(RESULTS)))


if __name__ == "__main__":
    main()

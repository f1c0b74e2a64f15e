"""Stores rows measured on a GPU and writes pages/gpu.md from them.

    python recipes/benchmarks/gpu_page.py [NEW_ROWS.jsonl]

NEW_ROWS has one JSON object per line with a `part`, which names its table, and the columns of the table. It replaces
rows/gpu.jsonl. Without it the page is written from the stored rows. If there is no page yet, it is made from
`TEMPLATE`. Text that is added around the block of tables is kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from result_rows import ROWS, read_lines
from tables import END, PAGES, markdown, write_page

RESULTS, PAGE = ROWS / "gpu.jsonl", PAGES / "gpu.md"
TEMPLATE = f"""# Speed and memory on a GPU

The tables are written by `recipes/benchmarks/gpu_page.py` from `recipes/benchmarks/rows/gpu.jsonl`. Measurements on CPUs
are in [speed.md](speed.md).

<!-- tables -->
{END}
"""
# Title and description of each part. Other parts get their name as the title.
PARTS = {
    "step": (
        "Training step",
        "Compares a training step with transformers' classifier on the same encoder (*plain classifier*). The ratio is "
        "relative to it, in the same precision.",
    ),
    "head": (
        "Head alone",
        "Compares the forward and backward pass of scores and losses on given features with the three matrix products in "
        "it: scores, gradient of the features, gradient of the prototypes. *Perturbed* has the perturbation of prototypes "
        "on, which is the default. Peak GiB is the peak memory of tensors.",
    ),
    "same as cpu": (
        "Agreement with the CPU",
        "Runs the same step on the GPU and on the CPU. Loss, logits and gradient are the largest differences.",
    ),
    "full determinism": (
        "Full determinism",
        "Runs a step that requires deterministic algorithms. A fault is an operation without a deterministic "
        "implementation.",
    ),
    "waits for the device in a step": (
        "Device synchronisations",
        "Counts how often the CPU waits for the device in a training step.",
    ),
    "compile": (
        "Compilation",
        "Compiles the model with `torch.compile`. Breaks is the number of graph breaks in a training step.",
    ),
}
COLUMNS = {
    "bare_ms": "matrix products, ms",
    "peak_gib": "peak GiB",
    "what": "model",
    "noise": "perturbation",
    "count": "synchronisations",
    "mode": "label mode",
}
# Parts about the run itself, and columns with details that a table cannot hold.
NO_TABLE = ("machine", "time")
NO_COLUMN = ("part", "where", "reasons")


def cell(value: Any) -> str:
    """Formats a value of a table. Numbers are shown as they are stored."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.1g}" if 0 < abs(value) < 1e-3 else f"{value:,}"
    return str(value)


def tables(rows: list[dict[str, Any]]) -> str:
    """Returns the block of gpu.md: the machine, and a table for each part in the order of `PARTS`."""
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        rows_of.setdefault(row["part"], []).append(row)
    lines = []
    for machine in rows_of.get("machine", ()):
        facts = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("part", "device"))
        lines += [f"Measured on: {machine['device']}{', ' if facts else ''}{facts}.", ""]
    for part in (*PARTS, *(part for part in rows_of if part not in PARTS and part not in NO_TABLE)):
        if part not in rows_of:
            continue
        title, description = PARTS.get(part, (part[:1].upper() + part[1:], ""))
        columns = [
            name for name in dict.fromkeys(name for row in rows_of[part] for name in row) if name not in NO_COLUMN
        ]
        cells = [[cell(row[name]) if name in row else "" for name in columns] for row in rows_of[part]]
        titles = [COLUMNS.get(name, name.replace("_", " ")) for name in columns]
        lines += [f"## {title}", "", *([description, ""] if description else []), *markdown(titles, cells), ""]
    return "\n".join(lines[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new_rows", nargs="?", type=Path, help="file of rows; by default the stored rows are used")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.new_rows is not None:
        rows = read_lines(options.new_rows)
        options.results.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    if not options.page.exists():
        options.page.write_text(TEMPLATE, encoding="utf-8")
    write_page(options.page, {"tables": tables(read_lines(options.results))})


if __name__ == "__main__":
    main()

"""Measures the library's overhead over its encoder, and its cost with up to a million labels.

    python recipes/benchmarks/speed.py --encoder NAME [--parts step head data metrics decode search predict ...]
    python recipes/benchmarks/speed.py --tables

The actions of a part are measured in turns in one run. Times are medians over rounds. Rows are stored in
rows/speed.json, and pages/speed.md is written from them. With --tables nothing is measured. Times depend on the
machine and its load, so compare ratios. Memory does not depend on them.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from data import ENCODER
from data_speed import decoders, encoding, metrics
from prediction_speed import imports, prediction
from result_rows import ROWS
from search_speed import path_search
from tables import PAGES, markdown, write_page
from timing import Row
from training_speed import all_heads, contrast_step, head_alone, leaks, training_memory, training_step

from hcal_hf import has_bfloat16

RESULTS, PAGE = ROWS / "speed.json", PAGES / "speed.md"
PARTS = {
    "step": ("Training step", training_step),
    "contrast": ("Contrast of HJCL", contrast_step),
    "head": ("Head alone", head_alone),
    "data": ("Data", encoding),
    "metrics": ("Metrics", metrics),
    "decode": ("Decoding", decoders),
    "search": ("Most probable paths", path_search),
    "predict": ("Bulk prediction", prediction),
    "imports": ("Import", imports),
    "leaks": ("Memory over time", leaks),
    "memory": ("Memory of a training step", training_memory),
    "heads": ("All heads at 100,000 labels", all_heads),
}


def table(part: str, rows: list[Row], conditions: str) -> str:
    """Returns the section of a part: the docstring of its function, the conditions and the table."""
    title, function = PARTS[part]
    columns = list(dict.fromkeys(name for entry in rows for name in entry))
    lines = [f"## {title}", "", " ".join((function.__doc__ or "").split()), "", f"{conditions}.", ""]
    cells = [[_cell(entry.get(name, ""), name) for name in columns] for entry in rows]
    return "\n".join(lines + markdown([name.replace("_", " ") for name in columns], cells))


def tables(measured: dict[str, dict[str, Any]]) -> str:
    """Returns the block of speed.md: a section for each part that was measured."""
    return "\n\n".join(
        table(part, measured[part]["rows"], measured[part]["conditions"]) for part in PARTS if part in measured
    )


def _cell(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    digits = {
        "ratio": 2, "documents_per_second": 0, "seconds": 4 if value < 0.01 else 3, "GiB": 3, "recall": 3, "first": 3,
        "known to be exact": 3, "of the first": 2, "tokens": 2,
    }.get(column, 1)  # fmt: skip
    return f"{value:,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tables", action="store_true", help="only write the page from the stored rows")
    parser.add_argument("--encoder", default=ENCODER, help="name on the Hub or folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--labels",
        nargs="+",
        type=int,
        default=[1000, 10_000, 100_000, 1_000_000],
        help="numbers of labels of part head",
    )
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory of tensors in part head")
    parser.add_argument(
        "--search_labels", nargs="*", type=int, default=[1_000_000], help="numbers of labels of part search"
    )
    parser.add_argument("--texts", type=int, default=20_000, help="number of texts of part predict")
    parser.add_argument("--prediction_rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    has = {True: "with", False: "without", None: "perhaps with"}[has_bfloat16()]
    for part in () if options.tables else options.parts:
        rounds = options.prediction_rounds if part == "predict" else options.rounds
        conditions = f"{options.threads} CPU thread(s) {has} bfloat16, torch {torch.__version__}, {rounds} round(s)"
        rows: list[Row] = []
        for entry in PARTS[part][1](options):
            print(part, entry, flush=True)
            rows.append(entry)
            # Rows are stored at once, so that an interrupted part keeps its measurements.
            measured[part] = {"rows": rows, "conditions": conditions}
            options.results.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    write_page(options.page, {"tables": tables(measured)})


if __name__ == "__main__":
    main()

"""Writes pages/results.md and the tables of pages/heads.md from the stored rows.

    python recipes/benchmarks/results.py [--data_dir DIR]

The rows are in rows/results.json and rows/heads.jsonl. With --data_dir the paired bootstrap is repeated: every method is
compared with the best baseline on resampled test documents. This needs the label sets of the runs in --cache. Without
--data_dir the stored bootstrap is kept.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from data import true_labels
from result_rows import RESULTS, ROWS, Row, mean, methods_of, read, read_lines, stored_label_sets, write
from scoring import difference, resampled_scores
from tables import (
    COMPARED,
    FULL_MODEL,
    PAGES,
    device_of,
    differences_table,
    heads_tables,
    learning_curve,
    scores_table,
    write_page,
)

from hcal_hf import Taxonomy

PAGE = PAGES / "results.md"
REGIMES = ("fine-tuned", "frozen", "few-shot", "ablation")


def compare(rows: list[Row], truth: np.ndarray, taxonomy: Taxonomy, cache: Path) -> None:
    """Adds the paired bootstrap to every row of a table, for each metric.

    A method is compared with the baseline that has the best mean on the test split, which is the hardest one to beat. In an
    ablation it is compared with the full model. If the label sets of the best baseline are missing, the stored bootstrap is
    kept. If those of a method are missing, the method has no bootstrap.
    """
    methods = methods_of(rows)
    resampled = {
        name: [resampled_scores(stored_label_sets(row, cache), truth, taxonomy) for row in runs]
        for name, runs in methods.items()
        if all(row.label_sets_path(cache).exists() for row in runs)
    }
    references = [name for name, runs in methods.items() if not runs[0].ours] or [FULL_MODEL] * (FULL_MODEL in methods)
    for metric in (metric for metric in COMPARED if metric in rows[0].metrics and references):
        best = max(references, key=lambda name: mean(methods[name], metric))
        if best not in resampled:
            print(
                f"{rows[0].table}, {metric}: {cache} has no label sets of the best baseline, {best!r}. The stored "
                "bootstrap is kept. To repeat it, rerun this baseline."
            )
            continue
        for name, runs in methods.items():
            for row in runs:
                row.against_best_baseline.pop(metric, None)
            if name == best or name not in resampled:
                continue
            bootstrap = difference([own[metric] for own in resampled[name]], [own[metric] for own in resampled[best]])
            gain = round(mean(runs, metric) - mean(methods[best], metric), 2)
            for row in runs:
                row.against_best_baseline[metric] = {"baseline": best, "difference": gain, **bootstrap}


def tables(rows: list[Row], not_run: dict[tuple[str, str], str]) -> str:
    """Returns the block of results.md: the tables of all rows, and the commands of those that were not run.

    Args:
        rows: all rows.
        not_run: for each expected (regime, data set) the command that fills its table.
    """
    rows_of: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        rows_of.setdefault(row.table, []).append(row)
    ordered = sorted(rows_of, key=lambda key: (REGIMES.index(key[0]), key[1], key[2] or 0, key[3] or 0))
    lines = []
    for dataset in dict.fromkeys(key[1] for key in ordered if key[0] == "few-shot"):
        few = [row for key in ordered if key[:2] == ("few-shot", dataset) for row in rows_of[key]]
        lines += [
            "",
            f"## {dataset}, learning curve",
            "",
            "Leaf accuracy by number of training documents per leaf.",
            "",
            *learning_curve(few),
        ]
    for key in ordered:
        regime, dataset, size, per_leaf = key
        extra = ""
        if size:
            extra = f", {size:,} training documents"
        elif per_leaf:
            extra = f", {per_leaf} {'document' if per_leaf == 1 else 'documents'} per leaf"
        devices = "; ".join(sorted({device_of(row) for row in rows_of[key]}))
        lines += ["", f"## {dataset}, {regime}{extra}", "", f"Run on: {devices}.", "", *scores_table(rows_of[key])]
        if bootstraps := differences_table(rows_of[key]):
            lines += ["", "Difference, 95 % interval and p of the paired bootstrap:", "", *bootstraps]
    missing = {key: command for key, command in not_run.items() if not any(k[:2] == key for k in rows_of)}
    if missing:
        lines += ["", "## Not run", "", "| regime | set | command |", "|---|---|---|"]
        lines += [f"| {regime} | {dataset} | `{command}` |" for (regime, dataset), command in missing.items()]
    return "\n".join(lines[1:])


def expected() -> dict[tuple[str, str], str]:
    """Returns the command that fills each table of fine-tuned models, by (regime, data set)."""
    command = "python recipes/benchmarks/finetune.py --data_dir DIR --sets {}"
    return {("fine-tuned", name): command.format(name) for name in ("goemotions", "clinc150", "hwv_part", "cei")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument(
        "--data_dir", type=Path, default=None, help="repeat the bootstrap; by default the stored one is kept"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("outputs/benchmarks"), help="folder with label sets of runs"
    )
    options = parser.parse_args()
    rows = read(options.results)
    if options.data_dir is not None:
        for name in dict.fromkeys(row.dataset for row in rows):
            taxonomy, truth = true_labels(name, options.data_dir / name)
            for key in dict.fromkeys(row.table for row in rows if row.dataset == name):
                compare([row for row in rows if row.table == key], truth["test"], taxonomy, options.cache)
        write(rows, options.results)
    write_page(options.page, {"tables": tables(rows, expected())})
    write_page(PAGES / "heads.md", {"tables": heads_tables(read_lines(ROWS / "heads.jsonl"))})


if __name__ == "__main__":
    main()

"""Measures how well an audit finds annotations that were hidden, with frozen features.

    python recipes/benchmarks/audit.py --data_dir DIR [--sets cei goemotions debtags] [--seeds 0 1 2 3 4] [--mode uniform]
    python recipes/benchmarks/audit.py --speed DOCUMENTS --score conditional
    python recipes/benchmarks/audit.py --tables

A tenth of the annotations of the training split is hidden. Models are trained on the rest in five folds, and all methods
rank the same candidates by the same out-of-fold probabilities. Rows are stored in rows/audit.jsonl, and the tables of
pages/audit.md are written from them.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import ENCODER, Task
from result_rows import ROWS, read_lines
from tables import PAGES, markdown, mean_and_sd, write_page

from hcal_hf import Annotations, Taxonomy, audit_recovery, rank_missing
from hcal_hf.data.texts import group_equal_texts

RESULTS = ROWS / "audit.jsonl"
PAGE = PAGES / "audit.md"
SETS = ("cei", "goemotions", "debtags")
AGGREGATES = ("mean", "sum", "min")
TITLES = {
    "random": "random",
    "probability": "flat, P(end node)",
    "mean": "mean over the missing path",
    "sum": "sum over the missing path",
    "min": "minimum over the missing path",
    "conditional": "P given the present ancestors",
    "context": "P given the text and all other labels (default)",
}
TARGET = 1.15


def measure(task: Task, args: argparse.Namespace) -> None:
    """Measures one data set and appends its rows to the file."""
    documents, nodes = task.y["train"].numpy().nonzero()
    annotations = Annotations.from_pairs(task.taxonomy, len(task.x["train"]), documents, nodes)
    start = time.perf_counter()
    for row in audit_recovery(
        task.x["train"].numpy(),
        annotations,
        task.taxonomy,
        rate=args.rate,
        seeds=args.seeds,
        mode=args.mode,
        label_mode=task.label_mode,
        partial_paths=task.partial_paths,
        groups=group_equal_texts(task.texts["train"]),
        strength=args.strength,
        max_iterations=args.max_iterations,
    ):
        row = {"set": task.name, "mode": args.mode, "rate": args.rate, **row}
        print(
            task.name,
            row["seed"],
            row["method"],
            f"{row['average_precision']:.4f} {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        with open(args.results, "a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")


class Repeated:
    """Probabilities [N, L] that repeat the same rows, as a file on disk would be read in parts."""

    def __init__(self, rows: np.ndarray, number: int):
        self.rows, self.shape = rows, (number, rows.shape[1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        index = np.arange(self.shape[0])[rows] if isinstance(rows, slice) else np.asarray(rows)
        return self.rows[index % len(self.rows)]


def measure_speed(documents: int, score: str, file: Path) -> None:
    """Ranks given probabilities of 10,110 labels on three levels, and stores seconds and the peak of memory."""
    random = np.random.default_rng(0)
    paths = [(f"{i}", f"{i}.{j}", f"{i}.{j}.{k}") for i in range(10) for j in range(10) for k in range(100)]
    taxonomy = Taxonomy.from_paths(paths)
    leaves = np.flatnonzero(taxonomy.is_leaf)
    annotations = Annotations.from_pairs(
        taxonomy, documents, np.repeat(np.arange(documents), 2), random.choice(leaves, 2 * documents)
    )
    values = random.random((1000, taxonomy.num_labels), dtype=np.float32) ** 4
    for level, edges in zip(taxonomy.levels[1:], taxonomy.edge_slices[1:]):
        values[:, level] *= values[:, taxonomy.edges[edges, 0]]
    probabilities = Repeated(values, documents)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, cpu = time.perf_counter(), time.process_time()
    rank_missing(probabilities, annotations, taxonomy, score=score, label_frequency=0.9)
    row = {
        "set": "speed",
        "method": score,
        "documents": documents,
        "labels": taxonomy.num_labels,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before,
    }
    print(row)
    with open(file, "a", encoding="utf-8") as rows:
        rows.write(json.dumps(row) + "\n")


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Formats the rows as Markdown, in percent: overall, by depth, and the gain over the best aggregate."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    speed = [
        [
            row["method"],
            f"{row['documents']:,}",
            f"{row['labels']:,}",
            f"{row['cpu_seconds']:,.0f}",
            f"{row['documents'] * row['labels'] / row['cpu_seconds'] / 1e6:.1f}",
            f"{row['megabytes']:,.0f}",
        ]
        for row in rows
        if row["set"] == "speed"
    ]
    for row in (row for row in rows if row["set"] != "speed"):
        groups.setdefault((row["set"], row["mode"]), {}).setdefault(row["method"], []).append(row)
    overall, gains, depths = [], [], []
    for (name, mode), methods in groups.items():
        for method in sorted(methods, key=list(TITLES).index):
            runs = methods[method]
            cells = [
                mean_and_sd([100 * run[metric] for run in runs])
                for metric in ("average_precision", "precision", "recall")
            ]
            cells += [mean_and_sd([run["lift"] for run in runs]), mean_and_sd([100 * run["labelled"] for run in runs])]
            overall.append([name, mode, TITLES[method], *cells, str(len(runs))])
            by_depth = sorted({depth for run in runs for depth in run["by_depth"]}, key=int)
            values = [[run["by_depth"][d] for run in runs if d in run["by_depth"]] for d in by_depth]
            if method != "random":
                for depth, runs_of_depth in zip(by_depth, values):
                    metrics = ("average_precision", "precision", "recall")
                    texts = [mean_and_sd([100 * run[metric] for run in runs_of_depth]) for metric in metrics]
                    lift = mean_and_sd([run["lift"] for run in runs_of_depth])
                    depths.append([name, mode, depth, TITLES[method], *texts, lift])
        aggregates = [name_ for name_ in AGGREGATES if name_ in methods]
        if "context" in methods and aggregates:
            average = {m: statistics.mean(run["average_precision"] for run in methods[m]) for m in methods}
            best = max(aggregates, key=average.__getitem__)
            expected = statistics.mean(run["expected"] for run in methods["context"])
            positives = statistics.mean(run["positives"] for run in methods["context"])
            gain = average["context"] / average[best]
            verdict = "reached" if gain >= TARGET else "missed"
            gains.append([name, mode, best, f"{gain:.3f}", verdict, f"{positives:,.0f}", f"{expected:,.0f}"])
    speed_columns = ("score", "documents", "labels", "CPU seconds", "million pairs per second", "MB of memory")
    columns = ("set", "mode", "ranked by", "average precision", "precision", "recall", "lift")
    return {
        "speed": "\n".join(markdown(speed_columns, speed)),
        "gain": "\n".join(
            markdown(
                (
                    "set",
                    "mode",
                    "best aggregate",
                    "times its average precision",
                    f"target {TARGET}",
                    "hidden",
                    "expected",
                ),
                gains,
            )
        ),
        "overall": "\n".join(markdown((*columns, "documents with a label", "seeds"), overall)),
        "depth": "\n".join(
            markdown(("set", "mode", "depth", "ranked by", "average precision", "precision", "recall", "lift"), depths)
        ),
    }


def main() -> None:
    """Runs the measurements that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="folder with one folder per data set")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--mode", choices=("uniform", "rare", "deepest"), default="uniform")
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--strength", type=float, default=16.0, help="C of the heads")
    parser.add_argument("--max_iterations", type=int, default=30, help="L-BFGS iterations of each fit")
    parser.add_argument("--encoder", default=ENCODER, help="name on the Hub or folder")
    parser.add_argument("--cache", type=Path, default=Path("outputs/benchmarks"), help="folder for features")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows")
    parser.add_argument("--speed", type=int, metavar="DOCUMENTS", help="measure the ranking of given probabilities")
    parser.add_argument("--score", choices=("conditional", "context"), default="conditional", help="for --speed")
    parser.add_argument("--tables", action="store_true", help="only write the page from the stored rows")
    args = parser.parse_args()
    if args.tables:
        write_page(PAGE, tables(read_lines(args.results)))
        return
    if args.speed is not None:
        measure_speed(args.speed, args.score, args.results)
        return
    if args.data_dir is None:
        parser.error("--data_dir is needed, or --tables, or --speed")
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        task = Task(name, args.data_dir / name, args.encoder, args.cache)
        measure(task, args)


if __name__ == "__main__":
    main()

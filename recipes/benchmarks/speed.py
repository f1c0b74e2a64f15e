"""How long the parts outside the model take: python recipes/benchmarks/speed.py

Prints a table of medians over rounds, as kept in speed.md. Times depend on the machine and on what else it does: compare
ratios within one run.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch

from hcal_hf import Taxonomy, decode
from hcal_hf.metrics import classification_scores, violation_rates

ROOT = Path(__file__).parent.parent.parent


def seconds(action: Callable[[], Any], rounds: int) -> float:
    """Median wall-clock seconds of an action, after one round to warm up."""
    action()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def tree_edges(size: int, children: int = 10) -> tuple[list[tuple[str, str]], list[str]]:
    """(parent, child) labels of a tree whose nodes have `children` children each, and its roots."""
    names = [f"label number {i}" for i in range(size)]
    return [(names[i // children], names[i]) for i in range(children, size)], names[:children]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    rows: list[tuple[str, float]] = []

    edges, roots = tree_edges(1_000_000)
    rows.append(
        ("taxonomy of 1,000,000 nodes from edges in order", seconds(lambda: Taxonomy.from_edges(edges, roots), rounds))
    )
    shuffled = [edges[i] for i in rng.permutation(len(edges))]
    rows.append(("the same, edges shuffled", seconds(lambda: Taxonomy.from_edges(shuffled, roots), rounds)))

    edges, roots = tree_edges(500, children=5)
    taxonomy = Taxonomy.from_edges(edges, roots)
    dense = rng.random((100_000, 500)) < 0.01
    other = rng.random((100_000, 500)) < 0.01
    half = rng.random((100_000, 500)) < 0.5
    ids = [np.flatnonzero(row).tolist() for row in dense]
    scores = rng.random((100_000, 500), dtype=np.float32)
    hvr = evaluate.load(str(ROOT / "hcal_hf" / "metrics" / "hvr"))
    pairs = taxonomy.edges.tolist()
    size = "100,000 x 500"
    rows += [
        (f"violation_rates, {size} bool, 1 % true", seconds(lambda: violation_rates(dense, taxonomy), rounds)),
        (f"violation_rates, {size} bool, 50 % true", seconds(lambda: violation_rates(half, taxonomy), rounds)),
        (f"violation_rates, {size}, with scores", seconds(lambda: violation_rates(dense, taxonomy, scores), rounds)),
        (f"violation_rates, {size} as id lists", seconds(lambda: violation_rates(ids, taxonomy), rounds)),
        (
            f"classification_scores, {size} bool",
            seconds(lambda: classification_scores(dense, other, taxonomy), rounds),
        ),
        (
            f"evaluate module hvr, {size} as id lists",
            seconds(lambda: hvr.compute(predictions=ids, edges=pairs, num_labels=500), rounds),
        ),
    ]
    logits = torch.randn(100_000, 500)
    for mode, methods in (
        ("single_path", ("raw", "path", "top_down")),
        ("multi_path", ("closure", "prune", "expected_f1")),
    ):
        for method in methods:
            took = seconds(lambda m=method, mode=mode: decode(logits, taxonomy, mode, m), rounds)  # type: ignore[misc]
            rows.append((f"decode {method} ({mode}), {size}", took))

    width = max(len(name) for name, _ in rows)
    print(f"| {'what':{width}} | seconds |\n|{'-' * (width + 2)}|---------|")
    for name, took in rows:
        print(f"| {name:{width}} | {took:7.3f} |")


if __name__ == "__main__":
    main()

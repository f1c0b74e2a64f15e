"""How long the parts outside the model take, and what training with many labels needs:

    python recipes/benchmarks/speed.py

Prints tables, times being medians over rounds, as kept in speed.md. Times depend on the machine and on what else it does:
compare ratios within one run. Memory does not: it is what tensors hold.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy, decode
from hcal_hf.heads import HEADS
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


def peak_bytes(action: Callable[[], Any]) -> int:
    """The most bytes that tensors hold at one time while an action runs, above what they hold before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    with tempfile.TemporaryDirectory() as folder:
        record.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    sizes = [event["args"] for event in sorted(events, key=lambda e: e.get("ts", 0)) if event["name"] == "[memory]"]
    return max(size["Total Allocated"] for size in sizes) - (sizes[0]["Total Allocated"] - sizes[0]["Bytes"])


def training_steps(rounds: int, size: int = 100_000, batch: int = 16) -> list[tuple[str, float, float]]:
    """Forward and backward pass from given pooled states to the gradients of projection, prototypes and head, for each
    head: (what, peak GiB above parameters and gradients, seconds)."""
    edges, roots = tree_edges(size, children=5)
    taxonomy = Taxonomy.from_edges(edges, roots)
    encoder = BertConfig(hidden_size=256, num_hidden_layers=0, num_attention_heads=4, vocab_size=2)
    states = torch.randn(batch, 256)
    paths = [torch.from_numpy(taxonomy.complete([size - 1 - i])) for i in range(batch)]
    labels = torch.nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-100)
    variants: dict[str, dict[str, Any]] = {
        "": {},
        ", label_text": {"prototype_anchor": "label_text"},
        ", linear": {"score_function": "linear"},
    }
    rows = []
    for head, mode in HEADS:
        for name, options in variants.items():
            config = HcalConfig.from_taxonomy(
                taxonomy, encoder, head=head, label_mode=mode, partial_paths=True, **options
            )
            model = HcalForSequenceClassification(config).train()
            if model.prototypes.is_anchored:
                model.prototypes.anchors.normal_()

            def step(model: HcalForSequenceClassification = model) -> None:
                outputs = model(pooled_states=states, labels=labels)
                outputs.loss.backward()  # with the logits, and what they were made of, still held

            took = seconds(step, rounds)
            rows.append((f"{head} ({mode}){name}", peak_bytes(step) / 2**30, took))
    return rows


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

    steps = training_steps(rounds)
    width = max(len(name) for name, _, _ in steps)
    title = "training step"
    print(f"\n| {title:{width}} | GiB   | seconds |\n|{'-' * (width + 2)}|-------|---------|")
    for name, peak, took in steps:
        print(f"| {name:{width}} | {peak:.3f} | {took:7.3f} |")


if __name__ == "__main__":
    main()

"""Speed of taxonomies, encoding, metrics and decoding: a part of speed.py."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Dataset
from timing import Row, seconds, timed_row, tree_edges, tree_of_depth
from transformers import AutoTokenizer

from hcal_hf import HcalDataCollator, Taxonomy, classification_scores, decode, encode_dataset, violation_rates

REPOSITORY = Path(__file__).parents[2]


def encoding(options: argparse.Namespace) -> Iterator[Row]:
    """Builds taxonomies, encodes label sets and collates batches."""
    rounds, rng = options.rounds, np.random.default_rng(0)
    edges, roots = tree_edges(1_000_000)
    took = seconds(lambda: Taxonomy.from_edges(edges, roots), rounds)
    yield timed_row("taxonomy of 1,000,000 labels from edges in order", took, target="1 s")
    shuffled = [edges[i] for i in rng.permutation(len(edges))]
    yield timed_row("the same, edges shuffled", seconds(lambda: Taxonomy.from_edges(shuffled, roots), rounds))
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    for labels in (500, 1_000_000):
        taxonomy = Taxonomy.from_edges(*tree_edges(labels))
        leaves = rng.choice(np.flatnonzero(taxonomy.is_leaf), size=1_000_000)
        rows = Dataset.from_dict({"text": ["a"] * len(leaves), "labels": [[taxonomy.labels[i]] for i in leaves]})
        times = [encoding_seconds(rows, labels_of, tokenizer) for labels_of in (None, taxonomy)]
        what = f"1,000,000 label sets of {labels:,} labels, without tokenization"
        yield timed_row(what, times[1] - times[0], target="5 s")
    taxonomy = tree_of_depth(161, 2)
    collator = HcalDataCollator(tokenizer, taxonomy)
    batch = [{"input_ids": [1] * 64, "attention_mask": [1] * 64, "labels": [0, 20]} for _ in range(32)]
    yield timed_row(
        "collator, 32 documents of 64 tokens", seconds(lambda: collator(batch), 100), target="1 % of a step"
    )


def encoding_seconds(rows: Dataset, taxonomy: Taxonomy | None, tokenizer: Any) -> float:
    """Returns the seconds of encoding a table. Without a taxonomy, the labels are left out."""
    labels = None if taxonomy is None else "labels"
    used = taxonomy or Taxonomy.from_edges([], roots=["any"])
    with tempfile.TemporaryDirectory() as folder:
        # The table is read from a file, because a table in memory would be hashed as a whole.
        rows.to_parquet(f"{folder}/rows.parquet")
        table: Any = Dataset.from_parquet(f"{folder}/rows.parquet", cache_dir=folder)
        start = time.perf_counter()
        encode_dataset(table, used, tokenizer, labels=labels, max_length=8)
        return time.perf_counter() - start


def metrics(options: argparse.Namespace) -> Iterator[Row]:
    """Scores 100,000 documents with 500 labels."""
    rounds, rng = options.rounds, np.random.default_rng(0)
    taxonomy = Taxonomy.from_edges(*tree_edges(500, children=5))
    dense, other = rng.random((100_000, 500)) < 0.01, rng.random((100_000, 500)) < 0.01
    half, scores = rng.random((100_000, 500)) < 0.5, rng.random((100_000, 500), dtype=np.float32)
    ids = [np.flatnonzero(labels).tolist() for labels in dense]
    hvr = evaluate.load(str(REPOSITORY / "hcal_hf" / "metrics" / "hvr"))
    pairs = taxonomy.edges.tolist()
    for what, action, target in (
        ("violation_rates, 1 % true", lambda: violation_rates(dense, taxonomy), "0.1 s"),
        ("violation_rates, 50 % true", lambda: violation_rates(half, taxonomy), "0.1 s"),
        ("violation_rates, with scores", lambda: violation_rates(dense, taxonomy, scores), ""),
        ("violation_rates, id lists", lambda: violation_rates(ids, taxonomy), "0.1 s"),
        ("classification_scores", lambda: classification_scores(dense, other, taxonomy), "0.1 s"),
        (
            "evaluate module hvr, id lists",
            lambda: hvr.compute(predictions=ids, edges=pairs, num_labels=500),
            "1 s",
        ),
    ):
        yield timed_row(what, seconds(action, rounds), target=target)
    large = Taxonomy.from_edges(*tree_edges(1_000_000))
    sets = [large.complete([i]).tolist() for i in rng.integers(1_000_000, size=10_000)]
    others = [large.complete([i]).tolist() for i in rng.integers(1_000_000, size=10_000)]
    took = seconds(lambda: classification_scores(sets, others, large), rounds)
    yield timed_row("classification_scores, 10,000 documents, 1,000,000 labels, id lists", took)


def decoders(options: argparse.Namespace) -> Iterator[Row]:
    """Decodes 100,000 documents with 1,000 labels."""
    taxonomy = Taxonomy.from_edges(*tree_edges(1000, children=5))
    logits = torch.randn(100_000, 1000)
    for mode, methods in (
        ("single_path", ("raw", "path", "top_down", "risk")),
        ("multi_path", ("raw", "closure", "prune", "expected_f1", "risk")),
    ):
        for method in methods:
            for head in ("independent", "coherent") if method == "path" else ("coherent",):
                limit = {"risk_threshold": 0.3} if method == "risk" else {}

                def action(mode: str = mode, method: str = method, head: str = head, limit: Any = limit) -> None:
                    decode(logits, taxonomy, mode, method, head=head, **limit)

                what = f"{method} ({mode}{', independent' if head == 'independent' else ''})"
                yield timed_row(what, seconds(action, options.rounds), target="1 s")

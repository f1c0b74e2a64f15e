"""Measures what longer texts gain by windows: one window of 256 or 512 tokens, or several of them.

    python recipes/benchmarks/windows.py --data_dir DIR --set cei --length 256 --numbers 1 2 4
    python recipes/benchmarks/windows.py --tables

The encoder reads a text in up to so many windows of `--length` tokens (`window_length`, `max_windows`), which are pooled to
the mean of their tokens. One window means that texts are truncated. The first windows of a text are the same whatever
their number is, so they are computed once.

Head: the coherent head of this library with label text, on the features as they are, fitted by L-BFGS with the strengths of
which the validation split chooses one. `--train` and `--test` take so many random documents of a split, from a fixed seed.

Rows are stored in rows/windows.jsonl, and the tables of pages/windows.md are written from them. Speeds are documents per
processor second of one thread, on 64 random test documents.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from data import PARTIAL, SINGLE_PATH, SPLITS, add_options, multi_hot, taxonomy_of
from lexical import decide
from result_rows import ROWS, append_line, read_lines
from tables import PAGES, markdown, write_page
from transformers import AutoTokenizer

from hcal_hf import (
    DataArguments,
    HcalForSequenceClassification,
    classification_scores,
    encode_dataset,
    load_data,
    pooled_features,
    solve,
)
from hcal_hf.windows import WindowInputs, pool_windows

RESULTS = ROWS / "windows.jsonl"
PAGE = PAGES / "windows.md"
METRICS = {"whole_path": "right path or label set", "micro_f1": "micro-F1", "macro_f1": "macro-F1"}


SPEED_DOCUMENTS = 64


def build_model(options: argparse.Namespace, number: int) -> HcalForSequenceClassification:
    """Builds the untrained model that reads up to `number` windows."""
    return HcalForSequenceClassification.from_encoder(
        options.encoder,
        taxonomy_of(options.set, Path(options.data_dir) / options.set),
        label_mode="single_path" if options.set in SINGLE_PATH else "multi_path",
        partial_paths=options.set in PARTIAL,
        score_function="linear",
        prototype_anchor="label_text",
        window_length=options.length,
        max_windows=number,
    ).eval()


@dataclass
class Split:
    """The windows of N documents, their labels, and their numbers of tokens without truncation.

    Attributes:
        pooled (`torch.Tensor` of shape `[W, hidden_size]`): the pooled states of all windows.
        documents, lengths (`torch.Tensor` of shape `[W]`): the document of each window, ascending, and its tokens.
        truth (`np.ndarray` of shape `[N, L]`, bool): the labels.
        tokens (`np.ndarray` of shape `[N]`): the number of tokens of each text.
    """

    pooled: torch.Tensor
    documents: torch.Tensor
    lengths: torch.Tensor
    truth: np.ndarray
    tokens: np.ndarray

    def states(self, number: int) -> torch.Tensor:
        """Pools the first `number` windows of each document, [N, hidden_size]."""
        ranks = torch.arange(len(self.documents)) - torch.searchsorted(self.documents, self.documents)
        kept = ranks < number
        windows = WindowInputs({}, self.documents[kept], self.lengths[kept])
        return pool_windows(self.pooled[kept], windows, len(self.truth))


@torch.no_grad()
def read_split(options: argparse.Namespace, model: HcalForSequenceClassification, split: str) -> Split:
    """Computes the windows of a split, or reads them from the cache."""
    folder = Path(options.data_dir) / options.set
    table = load_data(DataArguments(data_dir=str(folder)), [split])[split]
    limit = {"train": options.train, "test": options.test}.get(split)
    rows = np.arange(len(table))
    if limit is not None and limit < len(rows):
        rows = np.random.default_rng(0).permutation(rows)[:limit]
    table = table.select(rows)
    truth = multi_hot(table, list(range(len(table))), model.taxonomy)
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    ids = tokenizer(table["text"][:], verbose=False)["input_ids"]
    tokens = np.array(list(map(len, ids)))
    path = options.cache / "windows" / f"{options.set}_{split}_{len(rows)}_{model.windows}.npz"
    if not path.exists():
        encoded = tokenizer(table["text"][:], truncation=True, max_length=model.max_tokens)["input_ids"]
        order, found = np.argsort(-tokens, kind="stable"), []
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            assert model.windows is not None
            windows = model.windows.split(
                tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
            )
            pooled = model._pool_each_window(windows, {})
            found.append((torch.from_numpy(batch)[windows.documents], windows.lengths, pooled))
            print(f"{options.set} {options.length} {split}: {start + len(batch):,} of {len(order):,}", flush=True)
        documents, lengths, pooled = (torch.cat(parts) for parts in zip(*found))
        first = torch.argsort(documents, stable=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, documents=documents[first], lengths=lengths[first], pooled=pooled[first])
    with np.load(path) as stored:
        pooled, documents, lengths = (torch.from_numpy(stored[name]) for name in ("pooled", "documents", "lengths"))
    return Split(pooled, documents, lengths, truth, tokens)


def measure_speed(options: argparse.Namespace, model: HcalForSequenceClassification) -> float:
    """Returns the documents per processor second of the encoder, on random test documents."""
    table = load_data(DataArguments(data_dir=str(Path(options.data_dir) / options.set)), ["test"])["test"]
    rows = np.random.default_rng(1).permutation(len(table))[:SPEED_DOCUMENTS]
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    encoded = encode_dataset(table.select(rows), model.taxonomy, tokenizer, labels=None, max_length=model.max_tokens)
    started = time.process_time()
    pooled_features(model, encoded, tokenizer, batch_size=64)
    return len(rows) / (time.process_time() - started)


def measure(options: argparse.Namespace, number: int, splits: dict[str, Split]) -> dict[str, Any]:
    """Fits the head on up to `number` windows and returns its row."""
    model = build_model(options, number)
    with torch.no_grad():
        model.projection.weight.copy_(torch.eye(len(model.projection.weight)))
    states = {name: split.states(number) for name, split in splits.items()}
    truth = {name: split.truth for name, split in splits.items()}
    pairs = {name: (states[name], torch.from_numpy(truth[name]).float()) for name in SPLITS[:2]}
    solution = solve(model, pairs["train"], pairs["validation"])
    tokens = np.concatenate([split.tokens for split in splits.values()])
    row: dict[str, Any] = {
        "set": options.set,
        "length": options.length,
        "windows": number,
        "documents": {name: len(split.truth) for name, split in splits.items()},
        "truncated": float((tokens > model.max_tokens).mean()),
        "docs_per_second": round(measure_speed(options, model), 2),
        "strength": solution.strength,
        "anchored": solution.anchored,
    }
    features: Any = SimpleNamespace(states=states)
    for split in SPLITS[1:]:
        for metric in ("micro_f1", "macro_f1"):
            sets = decide(model, features, truth, split, metric)
            row[f"{split}_{metric}"] = classification_scores(sets, truth[split], model.taxonomy)[metric]
            if metric == "micro_f1":
                row[f"{split}_whole_path"] = float((sets == truth[split]).all(axis=1).mean())
    return row


def name_of(row: dict[str, Any]) -> str:
    """Describes the part of a text that the encoder reads."""
    if row["windows"] == 1:
        return f"first {row['length']} tokens"
    return f"up to {row['windows']} windows of {row['length']}"


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Makes the tables of the page: one for each split, in percent, and one of the speed."""
    last = {(row["set"], name_of(row)): row for row in rows}
    sets = list(dict.fromkeys(row["set"] for row in rows))
    readings = list(dict.fromkeys(map(name_of, sorted(rows, key=lambda row: (row["length"], row["windows"])))))

    def table(cell: Any) -> str:
        lines = [[name, *(cell(last[s, name]) if (s, name) in last else "" for s in sets)] for name in readings]
        return "\n".join(markdown(["the encoder reads", *sets], lines) if lines else ["not run"])

    made = {
        split: table(
            lambda row, split=split: " / ".join(f"{100 * row[f'{split}_{metric}']:.1f}" for metric in METRICS)
        )
        for split in SPLITS[1:]
    }
    made["speed"] = table(lambda row: f"{row['docs_per_second']:.1f} ({100 * row['truncated']:.1f} %)")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="only write the tables of the page")
    if "--tables" in sys.argv:
        write_page(PAGE, tables(read_lines(RESULTS)))
        return
    add_options(parser)
    parser.add_argument("--set", required=True)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--numbers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--train", type=int, help="number of training documents; all by default")
    parser.add_argument("--test", type=int, help="number of test documents; all by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    longest = build_model(options, max(options.numbers))
    splits = {split: read_split(options, longest, split) for split in SPLITS}
    for number in options.numbers:
        append_line(RESULTS, measure(options, number, splits))


if __name__ == "__main__":
    main()

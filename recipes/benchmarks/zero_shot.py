"""Measures models that were made from a hierarchy alone, without a labelled document.

    python recipes/benchmarks/zero_shot.py --data_dir DIR [--sets clinc150 hwv_part naics2012 icd10cm goemotions cei]
    python recipes/benchmarks/zero_shot.py --tables

Models are adapted to the texts of the training split, without their labels. Settings were fixed on validation splits. Rows
are stored in rows/zero_shot.jsonl, and the tables of pages/zero_shot.md are written from them.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import ENCODER, LEFT_OUT, MAX_LENGTHS, taxonomy_of
from datasets import Dataset
from result_rows import ROWS, read_lines
from tables import PAGES, markdown, write_page
from torch.nn import functional as F
from transformers import AutoTokenizer

from hcal_hf import (
    DataArguments,
    Decision,
    HcalForSequenceClassification,
    Taxonomy,
    adapt,
    classification_scores,
    encode_dataset,
    load_data,
    pooled_features,
)

RESULTS = ROWS / "zero_shot.jsonl"
PAGE = PAGES / "zero_shot.md"
SETS = ("clinc150", "hwv_part", "naics2012", "icd10cm", "goemotions", "cei")
MULTI_PATH = ("goemotions", "cei")
# Documents whose paths end at inner nodes.
PARTIAL = ("icd10cm", "goemotions", "cei")
# The mean number of paths of a document, which a user would guess.
EXPECTED = {"goemotions": 1.2, "cei": 2.3}
METRICS = ("leaf_accuracy", "micro_f1", "macro_f1")


def measure(name: str, folder: Path, encoder: str, split: str) -> Iterator[dict[str, Any]]:
    """Yields a row for each method on one split of a data set."""
    taxonomy = taxonomy_of(name, folder)
    rows = load_data(DataArguments(data_dir=str(folder)), ["train", split])
    keep = {s: [i for i, labels in enumerate(rows[s]["labels"]) if labels != LEFT_OUT.get(name)] for s in rows}
    texts = {s: [rows[s]["text"][i] for i in keep[s]] for s in rows}
    truth = np.zeros((len(keep[split]), taxonomy.num_labels), dtype=bool)
    for row, i in enumerate(keep[split]):
        truth[row, taxonomy.encode(rows[split]["labels"][i])] = True
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = MAX_LENGTHS.get(name, 128)
    path = folder / "descriptions.json"
    descriptions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    start = time.perf_counter()
    model = HcalForSequenceClassification.zero_shot(
        encoder,
        taxonomy,
        descriptions,
        label_mode="multi_path" if name in MULTI_PATH else "single_path",
        partial_paths=name in PARTIAL,
    )
    seconds = time.perf_counter() - start
    tokens = encode_dataset(Dataset.from_dict({"text": texts[split]}), taxonomy, tokenizer, labels=None)
    states = torch.from_numpy(np.asarray(pooled_features(model, tokens, tokenizer)["pooled_states"][:]))
    base = {
        "set": name,
        "split": split,
        "documents": len(states),
        "labels": taxonomy.num_labels,
        "regime": "zero-shot",
    }
    if name in MULTI_PATH:
        yield {
            **base,
            "method": "label text, cosine at least 0.5",
            **scores(nearest_sets(model, states), truth, taxonomy),
        }
        train = np.zeros(taxonomy.num_labels)
        for i in keep["train"]:
            train[taxonomy.encode(rows["train"]["labels"][i])] += 1
        sets = frequent(train, truth, taxonomy)
        yield {**base, "method": "most frequent labels (uses labels)", **scores(sets, truth, taxonomy)}
    yield {**base, "method": "without texts", **model_scores(model, states, truth), "seconds": round(seconds, 1)}
    start = time.perf_counter()
    adapt(model, tokenizer, texts["train"], expected_labels=EXPECTED.get(name, 1.0))
    seconds = time.perf_counter() - start
    cost = {"texts": len(texts["train"]), "seconds": round(seconds, 1)}
    yield {**base, "method": "adapted to texts", **model_scores(model, states, truth), **cost}


def nearest_sets(model: HcalForSequenceClassification, states: torch.Tensor) -> np.ndarray:
    """Returns the labels with a cosine of at least 0.5 to their text, with all ancestors, bool [N, L]."""
    anchors = F.normalize(model.prototypes.anchors.float(), dim=-1)
    near = (F.normalize(states.float(), dim=-1) @ anchors.T >= 0.5).numpy()
    return np.stack([_complete(row, model.taxonomy) for row in near])


def _complete(row: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    full = np.zeros_like(row)
    full[taxonomy.complete(np.flatnonzero(row).tolist())] = True
    return full


def frequent(counts: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns the k most frequent labels for every document, with the k of the best micro-F1, bool [N, L]."""
    order, best = np.argsort(-counts, kind="stable"), (-1.0, truth)
    for k in range(1, min(30, len(order)) + 1):
        sets = np.zeros_like(truth)
        sets[:, order[:k]] = True
        best = max(best, (classification_scores(sets, truth, taxonomy)["micro_f1"], sets), key=lambda pair: pair[0])
    return best[1]


@torch.no_grad()
def model_scores(model: HcalForSequenceClassification, states: torch.Tensor, truth: np.ndarray) -> dict[str, float]:
    """Scores the decoded predictions of pooled states."""
    decision = Decision.from_config(model.config)
    sets = [decision.decode(model(pooled_states=chunk).logits, model.taxonomy).numpy() for chunk in states.split(256)]
    return scores(np.concatenate(sets), truth, model.taxonomy)


def scores(sets: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> dict[str, float]:
    """Returns micro- and macro-F1, and the share of documents with exactly the right labels."""
    found = classification_scores(sets, truth, taxonomy)
    exact = float((sets == truth).all(axis=1).mean())
    return {"micro_f1": found["micro_f1"], "macro_f1": found["macro_f1"], "whole_path": exact}


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Formats the rows of the test split as Markdown, in percent."""
    columns = ("set", "labels", "method", "whole path", "micro-F1", "macro-F1", "seconds")
    lines = [
        [
            row["set"],
            f"{row['labels']:,}",
            row["method"],
            *(f"{100 * row[metric]:.1f}" for metric in ("whole_path", "micro_f1", "macro_f1")),
            f"{row['seconds']:.0f}" if "seconds" in row else "",
        ]
        for row in rows
        if row["split"] == "test"
    ]
    return {"table": "\n".join(markdown(columns, lines))}


def main() -> None:
    """Runs the measurements that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="folder with one folder per data set")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--encoder", default=ENCODER, help="name on the Hub or folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="only write the page from the stored rows")
    args = parser.parse_args()
    if args.tables:
        write_page(PAGE, tables(read_lines(args.results)))
        return
    if args.data_dir is None:
        parser.error("--data_dir is needed, or --tables")
    torch.set_num_threads(args.threads)
    for name in args.sets:
        for row in measure(name, args.data_dir / name, args.encoder, args.split):
            print(row, flush=True)
            with open(args.results, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

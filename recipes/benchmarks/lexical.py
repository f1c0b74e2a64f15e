"""Measures lexical features next to those of a frozen encoder.

    python recipes/benchmarks/lexical.py --data_dir DIR --set naics2012 --sizes 0 512 --heads hcal softmax
    python recipes/benchmarks/lexical.py --tables

Features: those of the encoder alone (size 0), or with so many lexical features (`add_lexical_features`), centred and scaled
(`standardize_features`). `--raw` leaves the encoder's features as they are.

Heads: the coherent head of this library with label text (`hcal`), or a softmax over the leaves (`softmax`). Both are fitted
by L-BFGS with the strengths of `--strengths`, of which the validation split chooses one.

Rows are stored in rows/lexical.jsonl, and the tables of pages/lexical.md are written from them. Times are processor seconds
of fitting heads, without the features.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import fit_softmax
from data import SPLITS, Task, add_options
from result_rows import ROWS, append_line, read_lines
from tables import PAGES, markdown, write_page
from torch.nn import functional as F
from transformers import AutoConfig

from hcal_hf import (
    Decision,
    HcalConfig,
    HcalForSequenceClassification,
    classification_scores,
    solve,
    standardize_features,
    tune_for_decoding,
)
from hcal_hf.training.solver import STRENGTHS

RESULTS = ROWS / "lexical.jsonl"
PAGE = PAGES / "lexical.md"
HEADS = {"hcal": "coherent head with label text", "softmax": "softmax over the leaves"}
METRICS = {"whole_path": "right path or label set", "micro_f1": "micro-F1", "macro_f1": "macro-F1"}


class Features:
    """The features of the documents and label texts of a task.

    Args:
        task: the task, with the features of the encoder.
        encoder: the encoder.
        size: the number of lexical features; 0 for none.
    """

    def __init__(self, task: Task, encoder: str, size: int):
        self.task, self.encoder = task.with_lexical_features(size) if size else task, encoder
        self.lexical = self.task.lexical
        self.size = 0 if self.lexical is None else self.lexical.vectors.shape[1]
        self.states = {split: self.task.x[split].float() for split in SPLITS}
        self.anchors = self.task.anchors.float()

    def model(self, is_raw: bool) -> HcalForSequenceClassification:
        """Builds an untrained model for the features, with a random encoder that is not used."""
        task, terms = self.task, None if self.lexical is None else len(self.lexical.idf) - 1
        fields: dict[str, Any] = {"lexical_features": self.size or None, "lexical_terms": terms}
        config = HcalConfig.from_taxonomy(
            task.taxonomy,
            AutoConfig.from_pretrained(self.encoder),
            label_mode=task.label_mode,
            partial_paths=task.partial_paths,
            score_function="linear",
            prototype_anchor="label_text",
            **fields,
        )
        model = HcalForSequenceClassification(config)
        with torch.no_grad():
            model.projection.weight.copy_(torch.eye(len(model.projection.weight)))
        model.prototypes.anchors.copy_(self.anchors)
        if not is_raw:
            standardize_features(model, self.states["train"])
        return model


def best_softmax(
    features: dict[str, torch.Tensor], ends: dict[str, torch.Tensor], number: int, strengths: list[float]
) -> tuple[torch.Tensor, float]:
    """Fits a softmax over `number` leaves with each strength. Returns the best weights on validation, and their C."""
    best = (-1.0, torch.empty(0), 0.0)
    for strength, weight in fit_softmax(features["train"], ends["train"], number, strengths):
        right = (features["validation"] @ weight.T).argmax(dim=1) == ends["validation"]
        accuracy = float(right.float().mean())
        if accuracy > best[0]:
            best = (accuracy, weight, strength)
        print(f"softmax, C = {strength:g}: {100 * accuracy:.2f}", flush=True)
    return best[1], best[2]


def measure(task: Task, encoder: str, size: int, head: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fits one head and returns its row."""
    features = Features(task, encoder, size)
    model = features.model(options.raw)
    strengths = options.strengths
    truth = {split: task.truth(split) for split in SPLITS}
    started = time.process_time()
    if head == "softmax":
        leaves = np.flatnonzero(task.taxonomy.is_leaf)
        ends = {split: torch.from_numpy(truth[split][:, leaves].argmax(axis=1)) for split in SPLITS}
        with torch.no_grad():
            units = {s: F.normalize(model.projection(features.states[s]), dim=1) for s in SPLITS}
        weight, strength = best_softmax(units, ends, len(leaves), strengths)
        anchored = False
        seconds = time.process_time() - started
        found = (units[options.split] @ weight.T).argmax(dim=1).tolist()
        sets = np.zeros_like(truth[options.split])
        for row, leaf in enumerate(found):
            sets[row, task.taxonomy.complete([leaves[leaf]])] = True
        by_metric = {"micro_f1": sets, "macro_f1": sets}
    else:
        pairs = {s: (features.states[s], task.y[s]) for s in ("train", "validation")}
        alternatives = (True, False)[: options.alternatives]
        solution = solve(model, pairs["train"], pairs["validation"], strengths=strengths, anchored=alternatives)
        strength, anchored = solution.strength, solution.anchored
        seconds = time.process_time() - started
        by_metric = {
            metric: decide(model, features, truth, options.split, metric) for metric in ("micro_f1", "macro_f1")
        }
    scores = {
        metric: classification_scores(sets, truth[options.split], task.taxonomy)[metric]
        for metric, sets in by_metric.items()
    }
    exact = (by_metric["micro_f1"] == truth[options.split]).all(axis=1).mean()
    return {
        "set": task.name,
        "split": options.split,
        "head": head,
        "size": features.size,
        "raw": options.raw,
        "strengths": len(strengths),
        "strength": strength,
        "anchored": anchored,
        "seconds": round(seconds, 1),
        "whole_path": float(exact),
        **scores,
    }


@torch.no_grad()
def decide(
    model: HcalForSequenceClassification, features: Features, truth: dict[str, np.ndarray], split: str, metric: str
) -> np.ndarray:
    """Predicts label sets, bool [N, L]. Under multi_path, one threshold is tuned on the validation split."""
    model.eval()

    def logits(name: str) -> torch.Tensor:
        return torch.cat([model(pooled_states=chunk).logits for chunk in features.states[name].split(2000)])

    decision = Decision.from_config(model.config, thresholds=None)
    if model.config.label_mode == "multi_path":
        thresholds = tune_for_decoding(
            logits("validation"), truth["validation"], model.taxonomy, **decision.model_options, metric=metric
        )
        decision = replace(decision, thresholds=thresholds.tolist())
    sets: np.ndarray = decision.decode(logits(split), model.taxonomy).numpy()
    return sets


def name_of(row: dict[str, Any]) -> str:
    """Names the features and the head of a row."""
    features = f"encoder and {row['size']:,} lexical features" if row["size"] else "encoder"
    return f"{features}{', as they are' if row['raw'] else ''}, {HEADS[row['head']]}"


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Makes the tables of the page, in percent."""
    made = {}
    for split in SPLITS[1:]:
        chosen = [row for row in rows if row["split"] == split]
        sets = list(dict.fromkeys(row["set"] for row in chosen))
        lines = []
        for name in dict.fromkeys(name_of(row) for row in chosen):
            cells = []
            for dataset in sets:
                found = [row for row in chosen if (row["set"], name_of(row)) == (dataset, name)]
                if not found:
                    cells.append("")
                    continue
                scores = " / ".join(f"{100 * found[-1][metric]:.1f}" for metric in METRICS)
                cells.append(f"{scores} ({found[-1]['seconds']:,.0f} s)")
            lines.append([name, *cells])
        table = markdown(["features and head", *sets], lines) if lines else ["not run"]
        made[split] = "\n".join(table)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="only write the tables of the page")
    if "--tables" in sys.argv:
        write_page(PAGE, tables(read_lines(RESULTS)))
        return
    add_options(parser)
    parser.add_argument("--set", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 512])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=["hcal"])
    parser.add_argument("--split", choices=SPLITS[1:], default="validation")
    parser.add_argument("--strengths", type=float, nargs="+", default=list(STRENGTHS))
    parser.add_argument(
        "--alternatives", type=int, choices=(1, 2), default=2, help="1 leaves out heads without anchors"
    )
    parser.add_argument("--raw", action="store_true", help="neither centre nor scale")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = Task(options.set, Path(options.data_dir) / options.set, options.encoder, options.cache)
    for size in options.sizes:
        for head in options.heads:
            row = measure(task, options.encoder, size, head, options)
            append_line(RESULTS, row)


if __name__ == "__main__":
    main()

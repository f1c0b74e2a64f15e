"""Simulates labelling: how many labels does `suggest_documents` need for the score that random choice reaches with 1,000?

    python recipes/benchmarks/suggestions.py --data_dir DIR [--sets clinc150 cei] [--seeds 5]
    python recipes/benchmarks/suggestions.py --tables

Both ways start without labels from a head that is anchored to the label texts. After each step, the head is fitted to all
chosen training documents (C = 16, on cei 4) and scored on the test split: accuracy of the path on clinc150, micro-F1 with
the best single threshold on cei. Rows are stored in rows/suggestions.jsonl, and the tables of pages/suggestions.md are
written from them.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import ENCODER, Task
from result_rows import ROWS, read_lines
from tables import PAGES, markdown, write_page

from hcal_hf import (
    Decision,
    HcalForSequenceClassification,
    classification_scores,
    draw_diverse,
    fit_head,
    prediction_errors,
    tune_for_decoding,
)

RESULTS = ROWS / "suggestions.jsonl"
PAGE = PAGES / "suggestions.md"
SIZES = (100, 200, 300, 450, 600, 800, 1000)
STRENGTHS = {"clinc150": 16.0, "cei": 4.0}
# Candidates of each step, drawn at random.
CANDIDATES = 4000
METHODS = ("random", "suggested")


def simulate(task: Task, encoder: str, method: str, seed: int) -> list[float]:
    """Returns the score after each size."""
    random = np.random.default_rng(seed)
    fields: dict[str, Any] = {"label_mode": task.label_mode, "partial_paths": task.partial_paths}
    fields |= {"score_function": "linear", "prototype_anchor": "label_text"}
    model = HcalForSequenceClassification.from_encoder(encoder, task.taxonomy, **fields).eval()
    start = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    chosen: list[int] = []
    scores = []
    for size in SIZES:
        rest = np.setdiff1d(np.arange(len(task.x["train"])), chosen)
        candidates = random.choice(rest, min(CANDIDATES, len(rest)), replace=False)
        if method == "random":
            chosen += candidates[: size - len(chosen)].tolist()
        else:
            features, errors = prediction_errors(model, task.x["train"][candidates])
            chosen += candidates[draw_diverse(features, errors, size - len(chosen), random)].tolist()
        model.load_state_dict(start, strict=False)
        fit_head(model, task.x["train"][chosen], task.y["train"][chosen], STRENGTHS[task.name], max_iterations=30)
        scores.append(score(model.eval(), task))
    return scores


@torch.no_grad()
def score(model: HcalForSequenceClassification, task: Task) -> float:
    """Scores a model on the test split."""
    states, truth = task.x["test"], task.truth("test")
    logits = torch.cat([model(pooled_states=chunk).logits for chunk in states.split(1000)])
    decision = Decision.from_config(model.config)
    if task.label_mode == "single_path":
        return float((decision.decode(logits, task.taxonomy).numpy() == truth).all(axis=1).mean())
    options = decision.model_options
    thresholds = tune_for_decoding(logits, truth, task.taxonomy, **options).tolist()
    sets = Decision.from_config(model.config, thresholds=thresholds).decode(logits, task.taxonomy).numpy()
    return classification_scores(sets, truth, task.taxonomy)["micro_f1"]


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Formats mean and standard deviation over the seeds as Markdown, in percent."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        for method in METHODS:
            runs = [row["scores"] for row in rows if (row["set"], row["method"]) == (name, method)]
            cells = [
                f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}" for values in zip(*runs)
            ]
            lines.append([name, method, *cells])
    return {"table": "\n".join(markdown(("set", "documents", *(f"{size:,}" for size in SIZES)), lines))}


def main() -> None:
    """Runs the simulations that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="folder with one folder per data set")
    parser.add_argument("--sets", nargs="+", default=list(STRENGTHS), choices=list(STRENGTHS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--encoder", default=ENCODER, help="name on the Hub or folder")
    parser.add_argument("--cache", type=Path, default=Path("outputs/benchmarks"), help="folder for features")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows")
    parser.add_argument("--tables", action="store_true", help="only write the page from the stored rows")
    args = parser.parse_args()
    if args.tables:
        write_page(PAGE, tables(read_lines(args.results)))
        return
    if args.data_dir is None:
        parser.error("--data_dir is needed, or --tables")
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        task = Task(name, args.data_dir / name, args.encoder, args.cache)
        for method in METHODS:
            for seed in range(args.seeds):
                row = {
                    "set": name,
                    "method": method,
                    "seed": seed,
                    "scores": simulate(task, args.encoder, method, seed),
                }
                print(row, flush=True)
                with open(args.results, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
